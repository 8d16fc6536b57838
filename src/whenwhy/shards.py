"""A directory of immutable entries: data under its content hash, each entry's manifest published once, last.

    DIR/manifest.json        what the stage was asked to do: run id, settings, inputs, the entries it needs
    DIR/entries/NAME.json    one finished entry: its files with their sha256, and a summary
    DIR/data/SHA256.EXT      the files

A stage can be killed at any instant: what has a manifest is finished, everything else is done again.
Readers trust manifests, never listings, and verify the checksum before they use a file.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whenwhy.errors import UserError
from whenwhy.schema import FORMAT_VERSION

Json = dict[str, Any]


def canonical(value: Any) -> bytes:
    """The one JSON text of a value: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def content_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run_id_of(stage: str, settings: Json, inputs: Json, code_version: str) -> str:
    """16 hexadecimal digits that name everything a stage's output depends on.

    Paths do not count, contents do: a directory that was moved keeps its run id.

    Example:
        >>> run_id_of("prepare", {"bins": 10}, {}, "0.1") == run_id_of("prepare", {"bins": 10}, {}, "0.1")
        True
    """
    contents = {name: {k: v for k, v in value.items() if k != "path"} for name, value in inputs.items()}
    asked = {"stage": stage, "settings": settings, "inputs": contents, "code": code_version, "format": FORMAT_VERSION}
    return hashlib.sha256(canonical(asked)).hexdigest()[:16]


@dataclass(frozen=True)
class Entry:
    """One finished entry: its files (name -> sha256, bytes, rows) and what was said of it."""

    name: str
    files: Mapping[str, Json]
    summary: Json


class StageDirectory:
    """A stage's output directory. `create` starts or resumes it, `open` reads it.

    Example:
        >>> import tempfile
        >>> stage = StageDirectory.create(Path(tempfile.mkdtemp()) / "out", stage="example",
        ...     settings={}, inputs={}, shards=["a"], code_version="0.1")
        >>> stage.missing()
        ['a']
        >>> _ = stage.publish("a", {"numbers": pa.table({"n": [1, 2]})})
        >>> stage.missing(), stage.read("a", "numbers").num_rows
        ([], 2)
    """

    def __init__(self, path: Path, manifest: Json) -> None:
        self.path = path
        self.manifest = manifest

    # -- starting and opening ------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        path: Path,
        *,
        stage: str,
        settings: Json,
        inputs: Json,
        shards: Sequence[str],
        besides: Sequence[str] = (),
        code_version: str,
    ) -> StageDirectory:
        """The directory for this run: new, or the same run's earlier one to be continued.

        It is complete when every entry of `besides` and of `shards` is published.

        Raises:
            UserError: the directory holds another run, or something that is no stage directory.
        """
        run_id = run_id_of(stage, settings, inputs, code_version)
        manifest: Json = {
            "stage": stage,
            "run_id": run_id,
            "format_version": FORMAT_VERSION,
            "code_version": code_version,
            "settings": settings,
            "inputs": inputs,
            "besides": list(besides),
            "shards": list(shards),
        }
        if path.exists() and not path.is_dir():
            raise UserError(f"{path} is a file: give --out a directory that is new or holds this very run.")
        file = path / "manifest.json"
        if path.is_dir() and not file.exists() and any(p for p in path.iterdir() if p.name not in {"data", "entries"}):
            raise UserError(f"{path} is not empty and is no whenwhy directory: give --out a new directory.")
        for folder in (path / "data", path / "entries"):
            folder.mkdir(parents=True, exist_ok=True)
        if not file.exists():
            _publish_once(file, json.dumps(manifest, indent=2).encode())
        found = cls.open(path)
        if found.run_id != run_id:
            raise UserError(
                f"{path} already holds another run ({found.run_id}, {_difference(found.manifest, manifest)}): "
                "give --out a new directory, or remove this one."
            )
        return found

    @classmethod
    def open(cls, path: Path, stage: str | None = None) -> StageDirectory:
        """The directory that a stage wrote.

        Raises:
            UserError: there is none, it is another stage's, or a newer version wrote it.
        """
        file = path / "manifest.json"
        wanted = f"a directory that `whenwhy {stage}` wrote" if stage else "a directory that a whenwhy command wrote"
        try:
            manifest = json.loads(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not {wanted}: there is no {file}.") from None
        except ValueError:
            raise UserError(f"{file} is damaged: run the command that wrote {path} into a new directory.") from None
        if manifest.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer whenwhy ({manifest['code_version']}): upgrade whenwhy.")
        if stage is not None and manifest["stage"] != stage:
            raise UserError(f"{path} was written by `whenwhy {manifest['stage']}`: name {wanted}.")
        return cls(path, manifest)

    @property
    def run_id(self) -> str:
        return str(self.manifest["run_id"])

    @property
    def settings(self) -> Json:
        return dict(self.manifest["settings"])

    # -- entries -------------------------------------------------------------------------------------

    @property
    def shards(self) -> list[str]:
        """The names of the shards, in order."""
        return list(self.manifest["shards"])

    @property
    def needs(self) -> list[str]:
        """The entries that make this directory complete, in order."""
        return [*self.manifest["besides"], *self.manifest["shards"]]

    def entry(self, name: str) -> Entry:
        """One finished entry's manifest."""
        file = self.path / "entries" / f"{name}.json"
        try:
            told = json.loads(file.read_bytes())
        except FileNotFoundError:
            stage = self.manifest["stage"]
            raise UserError(f"{self.path} is unfinished ('{name}' is missing): run `whenwhy {stage}` again.") from None
        return Entry(name, told["files"], told["summary"])

    def has(self, name: str) -> bool:
        return (self.path / "entries" / f"{name}.json").exists()

    def missing(self) -> list[str]:
        """The needed entries that are not finished yet."""
        return [name for name in self.needs if not self.has(name)]

    def require_complete(self) -> StageDirectory:
        """Itself, if every needed entry is there."""
        missing = self.missing()
        if missing:
            raise UserError(
                f"{self.path} is unfinished ({len(missing)} of {len(self.needs)} entries are missing): "
                f"run `whenwhy {self.manifest['stage']}` again to finish it."
            )
        return self

    def content_sha256(self) -> str:
        """The hash of everything in a complete directory, without times, paths and host facts."""
        self.require_complete()
        contents = {
            name: {file: told["sha256"] for file, told in self.entry(name).files.items()} for name in self.needs
        }
        return hashlib.sha256(canonical(contents)).hexdigest()

    def as_input(self) -> Json:
        """What a later stage records of this one."""
        return {"path": str(self.path.resolve()), "run_id": self.run_id, "sha256": self.content_sha256()}

    # -- files ---------------------------------------------------------------------------------------

    def publish(self, name: str, files: Mapping[str, pa.Table | bytes], summary: Json | None = None) -> bool:
        """True if this call finished the entry, False if another had already done so.

        Tables are written as Parquet, bytes as they are. The entry's manifest comes last and is never
        overwritten, so a late duplicate cannot win.
        """
        told: dict[str, Json] = {}
        for file, content in files.items():
            temporary = self.path / "data" / f".tmp-{uuid.uuid4().hex}"
            try:
                if isinstance(content, pa.Table):
                    pq.write_table(content, temporary, compression="zstd", row_group_size=1 << 17)
                    extension, rows = ".parquet", content.num_rows
                else:
                    temporary.write_bytes(content)
                    extension, rows = Path(file).suffix, None
                _fsync(temporary)
                sha256 = content_sha256(temporary)
                size = temporary.stat().st_size
                os.replace(temporary, self.path / "data" / f"{sha256}{extension}")
            finally:
                temporary.unlink(missing_ok=True)
            told[file] = {"sha256": sha256, "file": f"{sha256}{extension}", "bytes": size, "rows": rows}
        _fsync(self.path / "data")
        manifest = {"run_id": self.run_id, "name": name, "files": told, "summary": summary or {}}
        return _publish_once(self.path / "entries" / f"{name}.json", json.dumps(manifest, indent=2).encode())

    def file(self, entry: str, name: str) -> Path:
        """The path of a finished entry's file, its checksum verified (once a process)."""
        files = self.entry(entry).files
        if name not in files:
            raise UserError(f"{self.path}: entry '{entry}' has no file '{name}'.")
        path = self.path / "data" / str(files[name]["file"])
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise UserError(f"{path} is missing: it belongs to '{entry}'; remove {self.path} and run again.") from None
        if _verified(path, stat.st_size, stat.st_mtime_ns) != files[name]["sha256"]:
            raise UserError(
                f"{path} is damaged (its checksum is not the recorded one): remove it and "
                f"{self.path / 'entries' / (entry + '.json')}, and run the command again."
            )
        return path

    def read(self, entry: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table of a finished entry, its checksum verified."""
        return pq.read_table(self.file(entry, name), columns=columns)


@lru_cache(maxsize=65536)
def _verified(path: Path, size: int, modified: int) -> str:
    return content_sha256(path)


def _publish_once(path: Path, content: bytes) -> bool:
    """Write `path` unless it exists. A hard link either makes the whole file appear or fails."""
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(content)
        _fsync(temporary)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    _fsync(path.parent)
    return True


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _difference(found: Json, asked: Json) -> str:
    """The first thing in which two manifests differ, in words."""
    for what in ("stage", "code_version"):
        if found[what] != asked[what]:
            return f"{what.replace('_', ' ')} {found[what]}, not {asked[what]}"
    for what in ("settings", "inputs"):
        for key in sorted(set(found[what]) | set(asked[what])):
            before, now = found[what].get(key), asked[what].get(key)
            if before != now:
                if what == "inputs":
                    return f"made from other {key}"
                return f"with {key} = {before}, not {now}"
    return "asked otherwise"
