"""The register of sources: what `whenwhy import NAME OUT_MEDS` can turn into a MEDS data set."""

from __future__ import annotations

import importlib
import pkgutil
import shutil
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from whenwhy.engine import Progress
from whenwhy.errors import UserError, unknown_name

#: Writes a data set into a folder, and tells progress how many files there will be and when each is done.
Write = Callable[[Path, Progress], None]


@dataclass(frozen=True)
class Source:
    """A named source. `write(folder, progress)` writes a whole MEDS data set with its labels into an empty folder."""

    name: str
    describes: str
    write: Write


_SOURCES: dict[str, Source] = {}


def source(name: str, describes: str) -> Callable[[Write], Write]:
    """Registers the decorated function as a source.

    Example:
        >>> @source("nobody", "an empty cohort")
        ... def nobody(folder: Path, progress: Progress) -> None:
        ...     pass
        >>> registered_sources()["nobody"].describes
        'an empty cohort'
        >>> del _SOURCES["nobody"]
    """

    def register(write: Write) -> Write:
        _SOURCES[name] = Source(name, describes, write)
        return write

    return register


def registered_sources() -> dict[str, Source]:
    """Every source by name; each module of this folder registers its own."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    return dict(sorted(_SOURCES.items()))


def import_source(name: str, out: Path) -> bool:
    """True if the MEDS data set was written to `out`, False if it was there already.

    It is written beside and renamed, so a killed import leaves nothing half-written.

    Raises:
        UserError: no such source, or `out` holds something else.
    """
    known = registered_sources()
    if name not in known:
        raise unknown_name("source", name, known)
    marker = out / "metadata" / "dataset.json"
    if marker.exists():
        return False
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not empty and is no MEDS data set: give a new directory.")
    beside = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    beside.mkdir(parents=True)
    try:
        with Progress("import", total=1, unit="events") as progress:
            known[name].write(beside, progress)
        if out.exists():
            out.rmdir()
        beside.rename(out)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return True
