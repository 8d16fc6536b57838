"""The register of sources: what `whenwhy import NAME` can turn into a MEDS data set."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import importlib
import importlib.metadata
import inspect
import json
import os
import pkgutil
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args, get_origin

from whenwhy.engine import Progress
from whenwhy.engine.progress import console
from whenwhy.errors import UserError, unknown_name
from whenwhy.events.sources.meds_writer import MedsWriter
from whenwhy.shards import content_sha256

Write = Callable[..., None]

#: In an option's annotation: it says how the work is done, never what comes out, so it is not recorded.
NOT_RECORDED: Final = "not recorded"

ENTRY_POINTS: Final = "whenwhy.sources"


@dataclass(frozen=True)
class Source:
    """A named source: `write(writer, inputs, *, its options)` writes a whole data set by a `MedsWriter`.

    A function with the parameter `inputs` (a tuple of paths) reads files; where that has a default it can do without.
    Its keyword-only parameters, annotated by `typer.Option`, are the options of `whenwhy import NAME`.
    """

    name: str
    describes: str
    write: Write

    @property
    def parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(self.write, eval_str=True).parameters

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The options by name, with their types and defaults."""
        return {name: given for name, given in self.parameters.items() if given.kind is given.KEYWORD_ONLY}

    @property
    def reads_files(self) -> bool:
        return "inputs" in self.parameters

    @property
    def needs_files(self) -> bool:
        return self.reads_files and self.parameters["inputs"].default is inspect.Parameter.empty


_SOURCES: dict[str, Source] = {}


def source(name: str, describes: str) -> Callable[[Write], Write]:
    """Registers the decorated function as a source.

    Example:
        >>> @source("nobody", "an empty cohort")
        ... def nobody(writer: MedsWriter, *, patients: int = 0) -> None:
        ...     pass
        >>> list(registered_sources()["nobody"].options)
        ['patients']
        >>> del _SOURCES["nobody"]
    """

    def register(write: Write) -> Write:
        _SOURCES[name] = Source(name, describes, write)
        return write

    return register


def registered_sources() -> dict[str, Source]:
    """Every source by name: each module of this folder, and each entry point `whenwhy.sources`, registers its own."""
    package = __name__.rpartition(".")[0]
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        importlib.import_module(f"{package}.{module.name}")
    for entry in importlib.metadata.entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # a stranger's package must not take the other sources away
            console.print(f"The source '{entry.name}' ({entry.value}) cannot be loaded: {error!r}.")
    return dict(sorted(_SOURCES.items()))


def named_source(name: str) -> Source:
    """The source of that name.

    Raises:
        UserError: there is none; the sentence has the nearest.
    """
    known = registered_sources()
    if name not in known:
        raise unknown_name("source", name, known)
    return known[name]


def import_source(name: str, out: Path, *inputs: Path, **options: Any) -> bool:
    """True if the MEDS data set was written to `out`, False if the same one was there already.

    It is written beside and renamed, so a killed import leaves nothing half-written at `out`; what it leaves
    beside, the next import removes.

    Args:
        inputs: the files or folders that the source reads.
        options: the source's own; `whenwhy import NAME --help` lists them.

    Raises:
        UserError: no such source or option, bad input, or `out` holds something else.

    Example: `import_source("synthetic", Path("made_up"), patients=1000)`
    """
    found = named_source(name)
    asked = _bound(found, options)
    if inputs and not found.reads_files:
        raise UserError(f"The source '{name}' reads no file, so {inputs[0]} has no place: give its options alone.")
    if found.needs_files and not inputs:
        raise UserError(f"The source '{name}' reads a file or folder: name it before the place of the data set.")
    for path in (*inputs, *(value for value in asked.values() if isinstance(value, Path))):
        if not path.exists():
            raise UserError(f"{path} does not exist: name the file or folder that '{name}' is to read.")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        _check_same(out, _etl(found, asked, inputs))
        return False
    with _beside(out) as folder, Progress("import", total=1, unit="events") as progress:
        writer = MedsWriter(folder, progress)
        etl = _etl(found, asked, inputs)
        found.write(writer, *([tuple(inputs)] if found.reads_files else []), **asked)
        writer.finish(etl)
        if out.exists():
            out.rmdir()
        folder.rename(out)
    return True


def _bound(found: Source, options: Mapping[str, Any]) -> dict[str, Any]:
    """Every option with its value, checked against the bounds that its annotation states."""
    known = found.options
    for name in options:
        if name not in known:
            raise unknown_name("option", name, known, f"the source '{found.name}'")
    asked = {}
    for name, parameter in known.items():
        value = options.get(name, parameter.default)
        spelled = f"--{name.replace('_', '-')}"
        if value is inspect.Parameter.empty:
            raise UserError(f"The source '{found.name}' needs {spelled}: give it.")
        for told in _annotations(parameter):
            low, high = getattr(told, "min", None), getattr(told, "max", None)
            if value is None or ((low is None or value >= low) and (high is None or value <= high)):
                continue
            within = f"at least {low:,}" if high is None else f"between {low or 0:,} and {high:,}"
            raise UserError(f"The source '{found.name}' takes {spelled} {within}, not {value}: give another.")
        asked[name] = value
    return asked


def _annotations(parameter: inspect.Parameter) -> tuple[Any, ...]:
    return get_args(parameter.annotation)[1:] if get_origin(parameter.annotation) is Annotated else ()


def _etl(found: Source, asked: Mapping[str, Any], inputs: tuple[Path, ...]) -> dict[str, Any]:
    """What dataset.json says of the import: its name, and all that its output depends on, contents and not paths."""
    recorded = {
        name: contents_sha256(value) if isinstance(value, Path) else value
        for name, value in asked.items()
        if NOT_RECORDED not in _annotations(found.options[name])
    }
    if inputs:
        recorded["inputs"] = [contents_sha256(path) for path in inputs]
    # As JSON has it, so that what is read back compares equal.
    return {"etl_name": f"whenwhy import {found.name}", "settings": json.loads(json.dumps(recorded))}


def contents_sha256(path: Path) -> str:
    """A hash of a file's bytes, or of all files below a folder and their names there.

    Example: `contents_sha256(Path("events.parquet"))`
    """
    if not path.is_dir():
        return content_sha256(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.is_file()):
        digest.update(f"{file.relative_to(path)} {content_sha256(file)}\n".encode())
    return digest.hexdigest()


def _check_same(out: Path, etl: Mapping[str, Any]) -> None:
    marker = out / "metadata" / "dataset.json"
    if not marker.is_file():
        raise UserError(f"{out} is not empty and is no MEDS data set: give a new directory.")
    try:
        there = json.loads(marker.read_text())
    except ValueError:
        raise UserError(f"{marker} is no JSON: mend it, or give a new directory.") from None
    maker = there.get("etl_name", "another program")
    if maker != etl["etl_name"]:
        raise UserError(f"{out} holds a data set made by {maker}, not by {etl['etl_name']}: give a new directory.")
    # Data sets of the first version had no settings to record.
    old, new = there.get("settings", {}), etl["settings"]
    different = [key for key in {**new, **old} if old.get(key) != new.get(key)]
    if different:
        said = ", ".join(
            f"other {key}" if key == "inputs" else f"--{key.replace('_', '-')} {_shown(old.get(key))}"
            for key in different[:3]
        )
        raise UserError(f"{out} holds a data set of other settings ({said}): give a new directory, or remove it.")


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) < 40 else text[:8] + "..."


@contextmanager
def _beside(out: Path) -> Iterator[Path]:
    """A new folder beside `out`, gone at the end unless it was renamed; what killed imports left there goes first.

    The folder is locked by its process while that lives, so that only abandoned ones are removed.
    """
    out.parent.mkdir(parents=True, exist_ok=True)
    for left in out.parent.glob(f".{glob.escape(out.name)}-{'[0-9a-f]' * 32}"):
        with _locked(left) as ours:
            if ours:
                shutil.rmtree(left, ignore_errors=True)
    folder = out.parent / f".{out.name}-{uuid.uuid4().hex}"
    folder.mkdir()
    try:
        with _locked(folder):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """True if no other process held the folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(handle)
