"""Attribution directories flow in, a directory of cells flows out. Dask brings the workers, DuckDB the sums.

A task takes a range of features over all shards and finishes its cells: partial cells per shard would
not shrink, while ranges need no merge, and give the per-patient sums that intervals rest on.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.callbacks import Callback

from whenwhy import __version__
from whenwhy.attribution.attribution_directory import ABOUT, GRADIENT_ROWS, PREDICTION_ROWS, ROWS
from whenwhy.engine import Progress
from whenwhy.errors import UserError
from whenwhy.events.out_of_core import connect
from whenwhy.events.sequence_directory import VOCABULARY
from whenwhy.locations import location, named, require_local
from whenwhy.shards import Json, StageDirectory, run_id_of
from whenwhy.statistics.cells import cells_table, define_at_risk, define_predictions, exposure_table
from whenwhy.statistics.places import recorded_places_table, with_places
from whenwhy.statistics.time_axis import TimeAxis, readable_axis

CELL_ROWS, EXPOSURE_ROWS, PLACE_ROWS = "cells", "exposure", "recorded_places"

#: Rows of attributions a task takes, about. Part of the result's layout, so no option: the same input
#: gives the same files whatever the number of workers.
ROWS_A_TASK = 2_000_000
FEWEST_TASKS = 8


def aggregate_cells(
    attribution_paths: Sequence[Path],
    out: Path,
    *,
    time_bin_hours: int | None = None,
    memory_limit: str = "1GB",
    workers: int | None = None,
) -> StageDirectory:
    """The directory of cells and exposure of these runs, below `out`: one entry a range of features.

    Args:
        attribution_paths: what `whenwhy attribute` wrote, one directory a run; all of one vocabulary.
        time_bin_hours: width of a time bin; None: the narrowest readable one for 24 bins.
        memory_limit: of each task's DuckDB.
        workers: Dask threads; None: one a core.

    Raises:
        UserError: unfinished or differing inputs.
    """
    require_local(out, "A store")
    connect(memory_limit, out).close()
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not (out / "cells").is_dir())):
        raise UserError(f"{out} is not empty and is no store: give --out a new directory, or a store.")
    runs = [StageDirectory.open(path, "attribute").require_complete() for path in attribution_paths]
    names = [run.run_id for run in runs]
    if len(set(names)) < len(names):
        raise UserError("The same run of attributions is given twice: name each directory once.")
    vocabulary = vocabulary_of(runs)
    axis = readable_axis(_history_minutes(runs), time_bin_hours)
    settings: Json = {"time_axis": axis.name, "width_hours": axis.width_hours, "n_bins": axis.n_bins}
    inputs = {f"attributions {run.run_id}": run.as_input() for run in runs}
    layout = {run.run_id: _feature_ranges(run, vocabulary) for run in runs}
    parts = [f"{run_id}-{part}" for run_id, ranges in layout.items() for part in [EXPOSURE_ROWS, *ranges]]
    folder = out / "cells" / run_id_of("aggregate", settings, inputs, __version__)
    stage = StageDirectory.create(
        folder, stage="aggregate", settings=settings, inputs=inputs, shards=parts, code_version=__version__
    )
    missing = set(stage.missing())
    if not missing:
        return stage
    scratch = folder / "scratch"
    tasks = []
    for run in runs:
        for part in [EXPOSURE_ROWS, *layout[run.run_id]]:
            name = f"{run.run_id}-{part}"
            if name in missing:
                features = layout[run.run_id].get(part)
                tasks.append(
                    dask.delayed(_finish)(
                        str(folder), named(run.path), name, features, axis, memory_limit, str(scratch)
                    )
                )
    with (
        Progress("aggregate", total=len(parts), unit="cells", finished=len(parts) - len(missing)) as progress,
        Callback(posttask=lambda key, made, *_: progress.advance(made[0], made[1])),
    ):
        dask.compute(*tasks, scheduler="threads", num_workers=workers or os.cpu_count(), optimize_graph=False)
    shutil.rmtree(scratch, ignore_errors=True)
    return stage


def vocabulary_of(runs: Sequence[StageDirectory]) -> pa.Table:
    """The feature values that all runs share (`schema.FEATURE_VALUES`).

    Raises:
        UserError: they were made from different ones, whose ids cannot be compared.
    """
    if len({run.entry(ABOUT).summary["vocabulary_sha256"] for run in runs}) > 1:
        raise UserError("The attributions are of different feature values: aggregate each into a store of its own.")
    table: pa.Table = runs[0].read(ABOUT, VOCABULARY)
    return table


def attribution_files(run: StageDirectory, name: str) -> list[Path]:
    """A run's files of rows, predictions or gradients, checksums verified."""
    return [run.file(shard, name) for shard in run.shards if name in run.entry(shard).files]


def _history_minutes(runs: Sequence[StageDirectory]) -> np.ndarray:
    columns = [
        run.read(shard, PREDICTION_ROWS, ["history_minutes"])["history_minutes"] for run in runs for shard in run.shards
    ]
    return np.concatenate([pc.drop_null(column).to_numpy() for column in columns])


def _feature_ranges(run: StageDirectory, vocabulary: pa.Table) -> dict[str, pa.Table]:
    """Entry name -> the features of one task (feature_value_id, code), codes and groups never divided."""
    counts = np.zeros(vocabulary.num_rows, dtype=np.int64)
    for file in attribution_files(run, ROWS):
        ids = pq.read_table(file, columns=["feature_value_id"])["feature_value_id"].to_numpy()
        counts += np.bincount(ids, minlength=len(counts))
    per_task = max(1, min(ROWS_A_TASK, int(counts.sum()) // FEWEST_TASKS))
    ids = vocabulary["feature_value_id"]
    of_codes = pa.table({"feature_value_id": ids, "code": vocabulary["code"]})
    parents = vocabulary["parents"].combine_chunks()
    of_groups = pa.table(
        {"feature_value_id": pc.list_parent_indices(parents).cast(pa.int32()), "code": pc.list_flatten(parents)}
    )
    ranges: dict[str, pa.Table] = {}
    for level, features in (("code", of_codes), ("group", of_groups)):
        features = features.sort_by([("code", "ascending"), ("feature_value_id", "ascending")])
        if not features.num_rows:
            continue
        rows = counts[features["feature_value_id"].to_numpy()]
        _, name, size = np.unique(
            features["code"].to_numpy(zero_copy_only=False).astype(str), return_index=True, return_counts=True
        )
        begin, filled, number = 0, 0, 0
        for first, length in zip(name, size, strict=True):
            filled += int(rows[first : first + length].sum())
            if filled >= per_task or first + length == features.num_rows:
                ranges[f"{level}-{number:05d}"] = features.slice(begin, first + length - begin)
                begin, filled, number = int(first + length), 0, number + 1
    return ranges


def _finish(
    out: str, run_path: str, name: str, features: pa.Table | None, axis: TimeAxis, memory_limit: str, scratch: str
) -> tuple[str, int]:
    """The Dask task: one entry computed and published. Receives names; returns the entry and its number of cells."""
    stage, run = StageDirectory.open(Path(out), "aggregate"), StageDirectory.open(location(run_path), "attribute")
    with connect(memory_limit, Path(scratch), threads=1) as db:  # Dask brings the others
        define_predictions(db, attribution_files(run, PREDICTION_ROWS), axis)
        define_at_risk(db, axis)
        absence, rows = run.settings.get("absence", False), attribution_files(run, ROWS)
        if features is None:
            table = exposure_table(db, run.run_id, axis)
            if absence:
                table = with_places(db, attribution_files(run, GRADIENT_ROWS), table, axis)
            files = {EXPOSURE_ROWS: table}
        else:
            level = name.split("-")[1]
            table = cells_table(db, rows, features, level, run.run_id, axis)
            files = {CELL_ROWS: table}
            if absence and level == "code":
                files[PLACE_ROWS] = recorded_places_table(db, rows, features, run.run_id, axis)
    stage.publish(name, files)
    return name, table.num_rows
