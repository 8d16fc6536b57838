"""A directory of immutable entries: data under its content hash, each entry's manifest published once, last.

    DIR/manifest.json        what the stage was asked to do: run id, settings, inputs, the entries it needs
    DIR/generations/N.json   entries that were added later, and what they were made from
    DIR/entries/NAME.json    one finished entry: its files with their sha256, and a summary
    DIR/data/SHA256.EXT      the files

A stage can be killed at any instant: what has a manifest is finished, everything else is done again.
Readers trust manifests, never listings of data, and verify the checksum before they use a file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from whenwhy.errors import UserError
from whenwhy.locations import (
    exists,
    is_remote,
    local_copy,
    make_folder,
    named,
    names_in,
    publish_once,
    read,
    read_all,
    replace,
    require_put_if_absent,
)
from whenwhy.manifests import canonical, sealed, unsealed
from whenwhy.schema import FORMAT_VERSION, rows_a_group, with_dictionary, with_statistics
from whenwhy.working_folder import left_by_us, remove_scratch, remove_temporaries

Json = dict[str, Any]

#: The content hash that a directory had before a patient was forgotten.
_FIRST = "first.json"


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

    def __init__(self, path: Path, manifest: Json, generations: Sequence[Json] = ()) -> None:
        self.path = path
        self.manifest = manifest
        self.generations = list(generations)

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
        started = cls.started(path)
        for folder in (path / "data", path / "entries"):
            make_folder(folder)
        if not started:
            publish_once(path / "manifest.json", sealed(manifest))
        require_put_if_absent(path / "manifest.json")
        found = cls.open(path)
        if found.run_id != run_id:
            raise UserError(
                f"{path} already holds another run ({found.run_id}, {_difference(found.manifest, manifest)}): "
                "give --out a new directory, or remove this one."
            )
        return found

    @staticmethod
    def started(path: Path) -> bool:
        """Whether a run began to write here; False: the place is free for a new one.

        Raises:
            UserError: something else is there.
        """
        if exists(path) and not (not is_remote(path) and path.is_dir()):
            raise UserError(f"{path} is a file: give --out a directory that is new or holds this very run.")
        if exists(path / "manifest.json"):
            return True
        if not all(left_by_us(path / name) for name in names_in(path)):
            if exists(path / "manifest.json"):  # published by another driver meanwhile
                return True
            raise UserError(f"{path} is not empty and is no whenwhy directory: give --out a new directory.")
        return False

    @classmethod
    def open(cls, path: Path, stage: str | None = None) -> StageDirectory:
        """The directory that a stage wrote.

        Raises:
            UserError: there is none, it is another stage's, or a newer version wrote it.
        """
        file = path / "manifest.json"
        wanted = f"a directory that `whenwhy {stage}` wrote" if stage else "a directory that a whenwhy command wrote"
        try:
            manifest = unsealed(file, read(file), f"run the command that wrote {path} into a new directory")
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{path} is not {wanted}: there is no {file}.") from None
        if manifest.get("format_version", 0) > FORMAT_VERSION:
            raise UserError(f"{path} was written by a newer whenwhy ({manifest['code_version']}): upgrade whenwhy.")
        if stage is not None and manifest["stage"] != stage:
            raise UserError(f"{path} was written by `whenwhy {manifest['stage']}`: name {wanted}.")
        generations: list[Json] = []
        later = set(names_in(path / "generations"))
        while (name := f"{len(generations) + 1}.json") in later:
            file = path / "generations" / name
            generations.append(unsealed(file, read(file), f"run the commands that wrote {path} into a new directory"))
        return cls(path, manifest, generations)

    def extended(self, number: int, inputs: Json, shards: Sequence[str], besides: Sequence[str] = ()) -> StageDirectory:
        """The directory with generation `number` of entries, made from other inputs; the others stay as they are.

        Raises:
            UserError: another driver gave this number to other inputs.
        """
        folder = self.path / "generations"
        make_folder(folder)
        told = {"inputs": inputs, "besides": list(besides), "shards": list(shards)}
        file = folder / f"{number}.json"
        if not publish_once(file, sealed(told)) and _asked(unsealed(file, read(file))) != _asked(told):
            raise UserError(
                f"{self.path} was given other entries as generation {number} meanwhile: run the same command again."
            )
        return StageDirectory.open(self.path)

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
        return [name for told in (self.manifest, *self.generations) for name in told["shards"]]

    @property
    def needs(self) -> list[str]:
        """The entries that make this directory complete, in order."""
        return [name for told in (self.manifest, *self.generations) for name in (*told["besides"], *told["shards"])]

    def entry(self, name: str) -> Entry:
        """One finished entry's manifest."""
        file = self.path / "entries" / f"{name}.json"
        try:
            told = unsealed(file, read(file))
        except FileNotFoundError:
            stage = self.manifest["stage"]
            raise UserError(f"{self.path} is unfinished ('{name}' is missing): run `whenwhy {stage}` again.") from None
        return Entry(name, told["files"], told["summary"])

    def has(self, name: str) -> bool:
        return exists(self.path / "entries" / f"{name}.json")

    def missing(self) -> list[str]:
        """The needed entries that are not finished yet."""
        # An entry's manifest appears in the listing whole or not at all.
        finished = set(names_in(self.path / "entries"))
        return [name for name in self.needs if f"{name}.json" not in finished]

    def require_complete(self) -> StageDirectory:
        """Itself, if every needed entry is there."""
        missing = self.missing()
        if missing:
            raise UserError(
                f"{self.path} is unfinished ({len(missing)} of {len(self.needs)} entries are missing): "
                f"run `whenwhy {self.manifest['stage']}` again to finish it."
            )
        return self

    def content_sha256(self, names: Sequence[str] | None = None) -> str:
        """The hash of everything in a complete directory, or of these entries, without times, paths and host facts."""
        self.require_complete()
        return self._hash_of(self.needs if names is None else names)

    def _hash_of(self, names: Sequence[str]) -> str:
        files = [self.path / "entries" / f"{name}.json" for name in names]
        manifests = read_all(files)
        contents = {
            name: {file: told["sha256"] for file, told in unsealed(at, manifest)["files"].items()}
            for name, at, manifest in zip(names, files, manifests, strict=True)
        }
        return hashlib.sha256(canonical(contents)).hexdigest()

    def as_input(self) -> Json:
        """What a later stage records of this one: everything that it holds now."""
        return {"path": named(self.path), "run_id": self.run_id, "sha256": self.content_sha256()}

    def as_growing_input(self) -> Json:
        """What a stage that works shard by shard records: what was there first.

        It stays the same when a generation is added or a patient is forgotten, so that the later stage's
        directory follows without being made anew.
        """
        self.require_complete()
        file = self.path / _FIRST
        first = unsealed(file, read(file))["first"] if exists(file) else self._first_sha256()
        return {"path": named(self.path), "run_id": self.run_id, "sha256": first}

    def _first_sha256(self) -> str:
        return self._hash_of([*self.manifest["besides"], *self.manifest["shards"]])

    def replace(self, name: str, files: Mapping[str, pa.Table | bytes], summary: Json) -> None:
        """A finished entry with other contents, for a patient who withdrew: the old files are removed.

        The new entry takes the old one's place at once; the old files go when nothing refers to them.
        """
        first = self.path / _FIRST
        if not first.exists():
            publish_once(first, sealed({"first": self._first_sha256()}))
        before = self.entry(name)
        told = self._written(files)
        kept = {file: said for file, said in before.files.items() if file not in told}
        manifest = {"run_id": self.run_id, "name": name, "files": kept | told, "summary": summary}
        replace(self.path / "entries" / f"{name}.json", sealed(manifest))
        self.sweep()

    def sweep(self) -> None:
        """Remove what no finished entry refers to, and what killed calls left; nobody else may be writing here."""
        used = {
            str(told["file"])
            for entry in (self.path / "entries").glob("*.json")
            for told in unsealed(entry, entry.read_bytes())["files"].values()
        }
        for file in (self.path / "data").iterdir():
            if file.name not in used:
                file.unlink()
        remove_temporaries(self.path)
        remove_scratch(self.path)

    # -- files ---------------------------------------------------------------------------------------

    def publish(self, name: str, files: Mapping[str, pa.Table | bytes], summary: Json | None = None) -> bool:
        """True if this call finished the entry, False if another had already done so.

        Tables are written as Parquet, bytes as they are. The entry's manifest comes last and is never
        overwritten, so a late duplicate cannot win.
        """
        manifest = {"run_id": self.run_id, "name": name, "files": self._written(files), "summary": summary or {}}
        return publish_once(self.path / "entries" / f"{name}.json", sealed(manifest))

    def _written(self, files: Mapping[str, pa.Table | bytes]) -> dict[str, Json]:
        """What an entry's manifest says of these files, once they are safely on disk."""
        told: dict[str, Json] = {}
        for file, content in files.items():
            if isinstance(content, pa.Table):
                data, extension, rows = parquet_bytes(content), ".parquet", content.num_rows
            else:
                data, extension, rows = content, Path(file).suffix, None
            sha256 = hashlib.sha256(data).hexdigest()
            replace(self.path / "data" / f"{sha256}{extension}", data)
            told[file] = {"sha256": sha256, "file": f"{sha256}{extension}", "bytes": len(data), "rows": rows}
        return told

    def file(self, entry: str, name: str) -> Path:
        """A local path of a finished entry's file, its checksum verified (once a process).

        Of a bucket it is a copy, which goes when this process ends: for libraries that want a path.
        """
        told = self._file(entry, name)
        path = self.path / "data" / str(told["file"])
        if is_remote(path):
            return local_copy(path, told["sha256"], lambda: self.read_bytes(entry, name))
        try:
            stat = path.stat()
        except FileNotFoundError:
            raise self._missing(path, entry) from None
        if _verified(path, stat.st_size, stat.st_mtime_ns) != told["sha256"]:
            raise self._damaged(path, entry)
        return path

    def read_bytes(self, entry: str, name: str) -> bytes:
        """A finished entry's file, its checksum verified."""
        told = self._file(entry, name)
        path = self.path / "data" / str(told["file"])
        for _ in range(2 if is_remote(path) else 1):  # what came badly over a network may come well again
            try:
                content = read(path)
            except FileNotFoundError:
                raise self._missing(path, entry) from None
            if hashlib.sha256(content).hexdigest() == told["sha256"]:
                return content
        raise self._damaged(path, entry)

    def read(self, entry: str, name: str, columns: list[str] | None = None) -> pa.Table:
        """A table of a finished entry, its checksum verified."""
        if is_remote(self.path):
            return pq.read_table(pa.BufferReader(self.read_bytes(entry, name)), columns=columns)
        return pq.read_table(self.file(entry, name), columns=columns)

    def _file(self, entry: str, name: str) -> Json:
        """What an entry's manifest says of a file."""
        files = self.entry(entry).files
        if name not in files:
            raise UserError(f"{self.path}: entry '{entry}' has no file '{name}'.")
        return files[name]

    def _missing(self, path: Path, entry: str) -> UserError:
        manifest = self.path / "entries" / f"{entry}.json"
        return UserError(f"{path} is missing: remove {manifest}, to which it belongs, and run the command again.")

    def _damaged(self, path: Path, entry: str) -> UserError:
        return UserError(
            f"{path} is damaged (its checksum is not the recorded one): remove it and "
            f"{self.path / 'entries' / (entry + '.json')}, and run the command again."
        )


@lru_cache(maxsize=65536)
def _verified(path: Path, size: int, modified: int) -> str:
    return content_sha256(path)


def parquet_bytes(table: pa.Table) -> bytes:
    """The one Parquet file of a table.

    Example:
        >>> pq.read_table(pa.BufferReader(parquet_bytes(pa.table({"n": [1, 2]})))).num_rows
        2
    """
    buffer = BytesIO()
    pq.write_table(
        table,
        buffer,
        compression="zstd",
        row_group_size=rows_a_group(table.schema),
        use_dictionary=with_dictionary(table.schema),
        write_statistics=with_statistics(table.schema),
    )
    return buffer.getvalue()


def _asked(told: Json) -> Json:
    """What a generation is, wherever its inputs lie."""
    inputs = {name: {k: v for k, v in value.items() if k != "path"} for name, value in told["inputs"].items()}
    return told | {"inputs": inputs}


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
