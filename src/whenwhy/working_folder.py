"""A directory while it is being written: held by one process, with a scratch folder, tidied after kills."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from whenwhy.errors import UserError

#: The folder in which a stage keeps what only it reads, while it works.
SCRATCH = "scratch"

#: Held by a process that must be alone in a directory.
LOCK = ".lock"

#: In a scratch folder that is ours.
_MARK = ".whenwhy"

_TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{32}")


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """While this lasts, no other process that asks for it writes in a directory.

    Raises:
        UserError: another one does.
    """
    path.mkdir(parents=True, exist_ok=True)
    lock = path / LOCK
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = lock.exists() and os.fstat(file.fileno()).st_ino == lock.stat().st_ino
        except BlockingIOError:
            free = False
        if not free:  # held, or just let go by its holder, who removes it
            raise UserError(f"Another process is at work in {path}: wait until it ends, or give another --out.")
        try:
            yield
        finally:
            lock.unlink()


@contextmanager
def appears_whole(path: Path) -> Iterator[Path]:
    """A file to write that then takes the place of `path`: two processes that write the same do no harm."""
    beside = path.with_name(f"{path.name}{temporary_name()}")
    yield beside
    os.replace(beside, path)


def new_scratch(path: Path) -> Path:
    """An empty scratch folder in a directory, known as ours."""
    remove_scratch(path)
    # Marked before it has the name, so that a kill leaves no folder that nobody knows.
    made = path / temporary_name()
    made.mkdir()
    (made / _MARK).touch()
    return made.rename(path / SCRATCH)


def remove_scratch(path: Path) -> None:
    """Remove a directory's scratch folder, if it is ours."""
    if (path / SCRATCH / _MARK).exists():
        # The name goes first: a kill half-way could take the mark and leave the rest.
        shutil.rmtree((path / SCRATCH).rename(path / temporary_name()))


def temporary_name() -> str:
    """The name of something half-written, a new one each time."""
    return f".tmp-{uuid.uuid4().hex}"


def remove_temporaries(path: Path) -> None:
    """Remove the half-written files and folders that killed calls left."""
    for folder in (path, *(path / name for name in ("data", "entries", "generations"))):
        for item in folder.glob(".tmp-*") if folder.is_dir() else ():
            if _TEMPORARY.fullmatch(item.name):
                shutil.rmtree(item, ignore_errors=True) if item.is_dir() else item.unlink()


def left_by_us(item: Path) -> bool:
    """Whether something in a directory without a manifest was left by a call that was killed early."""
    if item.name in ("data", "entries"):
        return item.is_dir() and all(_TEMPORARY.fullmatch(file.name) for file in item.iterdir())
    if item.name == SCRATCH:
        return (item / _MARK).exists()
    return item.name == LOCK or bool(_TEMPORARY.fullmatch(item.name))


def fsync(path: Path) -> None:
    """What was written to a file or folder is on disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
