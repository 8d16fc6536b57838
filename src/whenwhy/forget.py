"""Patients who withdrew flow in, with every directory that may hold them; the directories without them flow out.

Rows go from MEDS files, labels, splits, sequences, held-out predictions and attributions; a store is made
anew from its attributions, and its old versions are removed. What was *fitted* with a patient stays: bin
edges, counts of feature values, and a model's weights. That is said, and ends by training again.
"""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy.attribution.attribution_directory import FITTED, GRADIENT_ROWS, PREDICTION_ROWS, ROWS
from whenwhy.attribution.population import POPULATION, REFERENCES_TABLE
from whenwhy.attribution.run_summary import shard_residuals
from whenwhy.errors import UserError
from whenwhy.events.parquet_files import parquet_files
from whenwhy.events.sequence_directory import TABLE
from whenwhy.locations import require_local
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.statistics.leaving import leave, leaving
from whenwhy.store import publish_store
from whenwhy.store.publish import ROWS_FILE, current_version, made_from
from whenwhy.working_folder import alone, fsync

if TYPE_CHECKING:
    from whenwhy.server.saved_cohorts import SavedCohorts

#: Ends the name of a file that is written beside another.
_BESIDE = re.compile(r"-[0-9a-f]{32}")

#: The table with a subject_id, by stage.
TABLES = {"prepare": TABLE, "train": "predictions", "attribute": PREDICTION_ROWS}


def forget(subjects: Collection[int], paths: Sequence[Path]) -> list[str]:
    """A line for each directory: what was removed from it.

    Args:
        subjects: ids of the patients.
        paths: MEDS data sets, directories that stages wrote, and stores; a store's attributions among them,
            or in their old place.

    Raises:
        UserError: nobody of that id anywhere, or a path that is none of these. Nothing is changed then.

    Example: `forget({42}, [Path("demo/meds"), Path("demo/sequences"), Path("demo/store")])`
    """
    if any(not -(2**63) <= subject < 2**63 for subject in subjects):
        raise UserError("The id of a subject is a whole number of 64 bits: check it.")
    wanted = pa.array(sorted(subjects), pa.int64())
    for path in paths:
        require_local(path, "What a patient is removed from")
    kinds = {path: _kind(path) for path in paths}
    stages = [StageDirectory.open(path).require_complete() for path, kind in kinds.items() if kind == "stage"]
    for stage in stages:
        if stage.manifest["stage"] not in TABLES:
            raise UserError(f"{stage.path} was written by `whenwhy {stage.manifest['stage']}`: name its store instead.")
    stores = [path for path, kind in kinds.items() if kind == "store"]
    of_store = {path: _attributions_of(path, stages) for path in stores}
    data_sets = [path for path, kind in kinds.items() if kind == "meds"]
    with ExitStack() as held_alone:
        for stage in stages:
            held_alone.enter_context(alone(stage.path))
        return _forgotten(wanted, paths, data_sets, stages, of_store)


def _forgotten(
    wanted: pa.Array,
    paths: Sequence[Path],
    data_sets: Sequence[Path],
    stages: Sequence[StageDirectory],
    of_store: Mapping[Path, list[Path]],
) -> list[str]:
    held = [_holds(stage, wanted) for stage in stages]
    in_data = any(_file_holds(file, wanted) for path in data_sets for file in _meds_files(path))
    # A call that was killed may have cleaned the attributions and not yet their store.
    if not any(held) and not in_data and not any(_store_holds(store, wanted) for store in of_store):
        named = ", ".join(str(path) for path in paths)
        raise UserError(f"No subject {', '.join(map(str, wanted.to_pylist()))} is in {named}: check the id.")
    leavers = {
        store: [
            one
            for stage, names in zip(stages, held, strict=True)
            if stage.path in runs
            for one in leaving(store, stage, [name for name in names if name in stage.shards], wanted)
        ]
        for store, runs in of_store.items()
    }
    lines = [_forget_in_meds(path, wanted) for path in data_sets]
    lines += [_forget_in_stage(stage, names, wanted) for stage, names in zip(stages, held, strict=True)]
    for store, runs in of_store.items():
        leave(store, leavers[store])
        lines += _leave_saved_cohorts(store, wanted)
        lines.append(_rebuilt(store, runs, wanted))
    if any(stage.manifest["stage"] == "train" for stage in stages):
        lines.append("Weights keep what they learned from a training patient: train again to remove that too.")
    lines += [
        f"{stage.path}: what its method learned stays (entry '{FITTED}'): attribute into a new directory to remove that too."
        for stage in stages
        if FITTED in stage.needs
    ]
    return lines


def _kind(path: Path) -> str:
    if (path / "manifest.json").exists():
        return "stage"
    if (path / "CURRENT").exists():
        return "store"
    if (path / "data").is_dir():
        return "meds"
    raise UserError(f"{path} is no MEDS data set, no directory of a stage and no store: name one of these.")


# -- MEDS ----------------------------------------------------------------------------------------


def _meds_files(path: Path) -> list[Path]:
    """The Parquet files of a data set that have subjects."""
    files = [
        # A link's own target is rewritten, so that the patient leaves that too.
        file.resolve()
        for part in ("data", "labels", "metadata", "truth")
        for file in parquet_files(path / part)
    ]
    return [file for file in files if "subject_id" in pq.read_schema(file).names]


def _file_holds(file: Path, wanted: pa.Array) -> bool:
    parquet = pq.ParquetFile(file)
    return any(
        pc.any(pc.is_in(batch["subject_id"], wanted)).as_py() for batch in parquet.iter_batches(columns=["subject_id"])
    )


def _forget_in_meds(path: Path, wanted: pa.Array) -> str:
    removed = 0
    files = _meds_files(path)
    for file in files:
        for left in file.parent.glob(f".{file.name}-*"):  # by a call that was killed
            if _BESIDE.fullmatch(left.name.removeprefix(f".{file.name}")):
                left.unlink()
        if not _file_holds(file, wanted):
            continue
        parquet = pq.ParquetFile(file)
        beside = file.with_name(f".{file.name}-{uuid.uuid4().hex}")
        try:
            with pq.ParquetWriter(beside, parquet.schema_arrow) as out:
                for batch in parquet.iter_batches(1 << 18):
                    table = pa.Table.from_batches([batch])
                    kept = table.filter(pc.invert(pc.is_in(table["subject_id"], wanted)))
                    removed += table.num_rows - kept.num_rows
                    out.write_table(kept)
            shutil.copymode(file, beside)
            fsync(beside)
            os.replace(beside, file)
        finally:
            beside.unlink(missing_ok=True)
    return f"{path}: {removed:,} rows removed"


# -- stages --------------------------------------------------------------------------------------


def _holds(stage: StageDirectory, wanted: pa.Array) -> list[str]:
    """The entries that hold one of the patients."""
    table = TABLES[stage.manifest["stage"]]
    tables = [(name, table) for name in stage.shards]
    if POPULATION in stage.needs and stage.has(POPULATION):
        tables.append((POPULATION, REFERENCES_TABLE))  # records that others are compared with
    return [
        name
        for name, table in tables
        if pc.any(pc.is_in(stage.read(name, table, ["subject_id"])["subject_id"], wanted)).as_py()
    ]


def _forget_in_stage(stage: StageDirectory, names: Sequence[str], wanted: pa.Array) -> str:
    kind = stage.manifest["stage"]
    removed = 0
    for name in names:
        if name == POPULATION:
            references = stage.read(name, REFERENCES_TABLE)
            left = references.filter(pc.invert(pc.is_in(references["subject_id"], wanted)))
            stage.replace(name, {REFERENCES_TABLE: left}, dict(stage.entry(name).summary))
            continue
        table = stage.read(name, TABLES[kind])
        gone = pc.is_in(table["subject_id"], wanted)
        kept = table.filter(pc.invert(gone))
        removed += table.num_rows - kept.num_rows
        files: dict[str, pa.Table | bytes] = {TABLES[kind]: kept}
        summary = dict(stage.entry(name).summary)
        if kind == "attribute":
            rows = stage.read(name, ROWS)
            ids = table["prediction_id"].filter(gone)
            kept_rows = rows.filter(pc.invert(pc.is_in(rows["prediction_id"], ids)))
            files[ROWS] = kept_rows
            if GRADIENT_ROWS in stage.entry(name).files:
                gradients = stage.read(name, GRADIENT_ROWS)
                files[GRADIENT_ROWS] = gradients.filter(pc.invert(pc.is_in(gradients["prediction_id"], ids)))
            summary |= {"n_predictions": kept.num_rows, "n_rows": kept_rows.num_rows}
            summary |= shard_residuals(kept, stage.settings["tolerance"])
        elif kind == "prepare":
            summary |= {
                "n_predictions": kept.num_rows,
                "n_events": int(pc.sum(pc.list_value_length(kept["event_id"])).as_py() or 0) if kept.num_rows else 0,
                "n_static": int(pc.sum(pc.list_value_length(kept["static_id"])).as_py() or 0) if kept.num_rows else 0,
                "n_steps": int(pc.sum(pc.list_value_length(kept["step_minutes"])).as_py() or 0) if kept.num_rows else 0,
            }
        stage.replace(name, files, summary)
    stage.sweep()  # of calls that were killed
    return f"{stage.path}: {removed:,} predictions removed from {len(names):,} of {len(stage.shards):,} shards"


# -- stores --------------------------------------------------------------------------------------


def _attributions_of(store: Path, stages: Sequence[StageDirectory]) -> list[Path]:
    """Where the attributions lie that a store's published version was made from."""
    given = {stage.run_id: stage.path for stage in stages}
    runs = []
    for run_id, told in made_from(current_version(store))["runs"].items():
        path = given.get(run_id, Path(told["path"]))
        if not (path / "manifest.json").exists() or StageDirectory.open(path).run_id != run_id:
            raise UserError(
                f"{store} was made from the attributions {told['path']}, which are not there: name the place they have now."
            )
        if path not in given.values():
            raise UserError(f"{store} is made from {path}: name it too, so that the patient leaves it first.")
        runs.append(path)
    return runs


def _store_holds(store: Path, wanted: pa.Array) -> bool:
    """Whether a version of the store, old or current, has a row of one of the patients, or a saved cohort names one."""
    ids = ", ".join(map(str, wanted.to_pylist()))
    for file in (store / "versions").glob(f"*/{ROWS_FILE}"):
        with duckdb.connect(str(file), read_only=True) as db:
            if db.execute(f"select 1 from predictions where subject_id in ({ids}) limit 1").fetchall():
                return True
    saved = _saved_cohorts(store)
    return any(store.glob(".building-*")) or (saved is not None and bool(saved.naming(set(wanted.to_pylist()))))


def _leave_saved_cohorts(store: Path, wanted: pa.Array) -> list[str]:
    """A line where cohorts that were drawn on the dashboard named one of the patients."""
    saved = _saved_cohorts(store)
    n = 0 if saved is None else saved.leave(set(wanted.to_pylist()))
    return [f"{store}: removed from {n:,} saved cohort{'s' if n > 1 else ''}"] if n else []


def _saved_cohorts(store: Path) -> SavedCohorts | None:
    if not (store / "cohorts.json").exists():
        return None
    from whenwhy.server.saved_cohorts import SavedCohorts  # Bokeh need not be there otherwise

    return SavedCohorts(store)


def _rebuilt(store: Path, runs: Sequence[Path], wanted: pa.Array) -> str:
    """The store made anew from what its attributions hold now; everything older is removed."""
    for building in store.glob(".building-*"):  # of a call that was killed
        shutil.rmtree(building)
    cells = aggregate_cells(runs, store)
    version = publish_store(store, cells, runs, allow_small_cells=True)  # where the store does
    for old in (store / "versions").iterdir():
        if old != version:
            shutil.rmtree(old)
    used = {part.path for parts in cells.parts.values() for part in parts}
    for old in (store / "cells").iterdir():
        if old not in used:
            shutil.rmtree(old)
    assert not _store_holds(store, wanted), "the store was made from attributions that still hold the patient"
    return f"{store}: made anew as version {version.name}; older versions removed"
