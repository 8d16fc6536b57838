"""Attribution directories flow in, directories of summed cells flow out. Dask brings the workers, DuckDB the sums.

    STORE/time_axes.json    the bins of time, the same for every version of a store
    STORE/cells/RUN/        the sums of one run's one generation of patients: an entry a range of features

A task takes a range of features over all shards and finishes its cells: partial cells per shard would not
shrink, while ranges need no merge, and give the per-patient sums that intervals rest on. Sums are whole numbers,
so that generations are added up when a version of the store is built; what did not change is not done again.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy import __version__
from whenwhy.attribution.attribution_directory import ABOUT, GRADIENT_ROWS, PREDICTION_ROWS, ROWS
from whenwhy.engine import Progress
from whenwhy.errors import UserError
from whenwhy.events.out_of_core import connect, literal, within
from whenwhy.events.sequence_directory import CODE_GROUPS, VOCABULARY, shard_place
from whenwhy.locations import location, named, replace, require_local
from whenwhy.manifests import canonical, sealed
from whenwhy.schema import EVERYTHING_ABSENT, RECORDED
from whenwhy.shards import Json, StageDirectory, run_id_of
from whenwhy.statistics.cells import CODE, GROUP, cell_sums
from whenwhy.statistics.cohorts import define_cohorts, exposure_sums, list_of, read_cohorts, write_cohorts
from whenwhy.statistics.dask_tasks import compute
from whenwhy.statistics.places import place_sums, with_places
from whenwhy.statistics.store_axes import AXES_FILE, time_axes
from whenwhy.statistics.sums import (
    CELL_ROWS,
    EXPOSURE_ROWS,
    HISTOGRAM_ROWS,
    ORDER,
    PLACE_ROWS,
    bounds_of,
    finished_sql,
    merged_sql,
)
from whenwhy.statistics.time_axis import (
    TimeAxis,
)

#: Rows of attributions a task takes, about, and twice the cells that these may give. Part of the result's layout, so
#: no option: the same input gives the same files whatever the number of workers.
SIZE_OF_A_TASK = 2_000_000
FEWEST_TASKS = 8

#: Cells that a row may count for, and that a feature may have, about.
CELLS_OF_A_ROW, CELLS_OF_A_FEATURE = 12, 3_000


@dataclass(frozen=True)
class Generation:
    """The patients of a run that were added at once."""

    run: StageDirectory
    number: int

    @property
    def shards(self) -> list[str]:
        return [name for name in self.run.shards if shard_place(name)[0] == self.number]

    def files(self, name: str) -> list[Path]:
        """Its files of rows, predictions or gradients, checksums verified."""
        return [self.run.file(shard, name) for shard in self.shards if name in self.run.entry(shard).files]


@dataclass(frozen=True)
class Cells:
    """The summed cells of some runs: a directory a run and generation, in order."""

    axes: list[TimeAxis]
    parts: dict[str, list[StageDirectory]]  # by run id

    def content_sha256(self) -> str:
        """The hash of all sums."""
        told = {run: [part.content_sha256() for part in parts] for run, parts in self.parts.items()}
        return hashlib.sha256(canonical({"runs": told, "axes": [asdict(axis) for axis in self.axes]})).hexdigest()

    def insert_into(self, db: duckdb.DuckDBPyConnection, name: str, table: str) -> None:
        """A new table of the contract (cells, exposure, recorded_places), of all runs; not there where no run has it.

        Filled a range of codes at a time, and within it in the order of the table's keys; of cells those of all time come
        first, and all together, since rankings read no others.
        """
        db.register("bounds", bounds_of(self.axes))
        if name == CELL_ROWS:
            self._fill(db, name, "all_time", "time_bin is null", "temp table")
            db.execute(f"create table {table} as from all_time order by run_id, {ORDER[name]}")
            db.execute("drop table all_time")
            self._fill(db, name, table, "time_bin is not null")
        else:
            self._fill(db, name, table)
        db.unregister("bounds")

    def _fill(
        self, db: duckdb.DuckDBPyConnection, name: str, table: str, where: str = "true", kind: str = "table"
    ) -> None:
        """The rows of all runs are in the table, which is made, of this kind, if it is not there."""
        for run_id, parts in self.parts.items():
            entries = [entry for entry in parts[0].shards if name in parts[0].entry(entry).files]
            for entry in entries[:1] if name == PLACE_ROWS else entries:
                histograms = self._summed(run_id, HISTOGRAM_ROWS, entry, where) if name == CELL_ROWS else ""
                query = finished_sql(name, run_id, self._summed(run_id, name, entry, where), histograms)
                db.execute(f"create {kind} if not exists {table} as from ({query}) limit 0")
                db.execute(f"insert into {table} {query} order by {ORDER[name]}")

    def table(self, name: str) -> pa.Table:
        """The same as an Arrow table, for one that fits in memory."""
        with duckdb.connect() as db:
            self.insert_into(db, name, "found")
            return db.sql("select * from found").to_arrow_table()

    def _summed(self, run_id: str, name: str, entry: str, where: str) -> str:
        """The SQL of the sums over all generations of what the first one has in an entry; of places, in all of them."""
        first, *later = self.parts[run_id]
        if name == PLACE_ROWS:
            every = [
                part.file(e, name) for part in self.parts[run_id] for e in part.shards if name in part.entry(e).files
            ]
            return merged_sql(name, f"select * from read_parquet({list_of(every)})")
        rows = f"select * from read_parquet({list_of([first.file(entry, name)])}) where {where}"
        if not later:
            return rows
        # Others may cut the codes elsewhere.
        low, high = (literal(code) for code in first.entry(entry).summary.get("codes", ("", "")))
        level = entry.partition("-")[0]
        for part in later:
            files = [part.file(e, name) for e in part.shards if e.startswith(level) and name in part.entry(e).files]
            these = f" and code between {low} and {high}" if level != EXPOSURE_ROWS else ""
            rows += f" union all select * from read_parquet({list_of(files)}) where {where}{these}"
        return merged_sql(name, rows)


def aggregate_cells(
    attribution_paths: Sequence[Path],
    store: Path,
    *,
    time_bin_hours: int | None = None,
    since: Sequence[str] = (),
    memory_limit: str = "500MB",
    workers: int | None = None,
    scheduler: str | None = None,
) -> Cells:
    """The summed cells and exposure of these runs, below `store`; only what is new or has changed is computed.

    Args:
        attribution_paths: what `whenwhy attribute` wrote, one directory a run; all of one vocabulary.
        time_bin_hours: width of a bin of time; None: the store's, or the narrowest readable one for 24 bins.
        since: codes whose first records are another beginning of time each, besides those that the store has.
        memory_limit: of each task's DuckDB.
        workers: Dask threads; None: one a core. With "processes" as the scheduler, so many processes.
        scheduler: None: threads of this process; "processes"; or a Dask scheduler's address, whose workers see the
            same folders.

    Raises:
        UserError: unfinished or differing inputs, an unknown code, or too little memory.
    """
    require_local(store, "A store")
    connect(memory_limit, store).close()
    if store.exists() and (not store.is_dir() or (any(store.iterdir()) and not (store / "cells").is_dir())):
        raise UserError(f"{store} is not empty and is no store: give --out a new directory, or a store.")
    runs = [StageDirectory.open(path, "attribute").require_complete() for path in attribution_paths]
    names = [run.run_id for run in runs]
    if len(set(names)) < len(names):
        raise UserError("The same run of attributions is given twice: name each directory once.")
    vocabulary = vocabulary_of(runs)
    with within(memory_limit, store):
        axes = time_axes(store, runs, vocabulary, time_bin_hours, since, memory_limit)
        folder = store / "cells"
        folder.mkdir(parents=True, exist_ok=True)
        replace(store / AXES_FILE, sealed({"axes": [asdict(axis) for axis in axes]}))
        works = {
            run.run_id: [
                _Work(folder, Generation(run, number), vocabulary, axes, memory_limit)
                for number in sorted({shard_place(name)[0] for name in run.shards})
            ]
            for run in runs
        }
        every = [work for of_run in works.values() for work in of_run]
        missing = [(work, part) for work in every for part in work.stage.missing()]
        if missing:
            total = sum(len(work.stage.shards) for work in every)
            try:
                with Progress("aggregate", total=total, unit="cells", finished=total - len(missing)) as progress:
                    for work in {id(work): work for work, _ in missing}.values():
                        work.prepare()
                    compute([work.task(part) for work, part in missing], progress, workers, scheduler)
            finally:
                for work in every:
                    shutil.rmtree(work.scratch, ignore_errors=True)
    return Cells(axes, {run_id: [work.stage for work in of_run] for run_id, of_run in works.items()})


def vocabulary_of(runs: Sequence[StageDirectory]) -> pa.Table:
    """The feature values that all runs share (`schema.FEATURE_VALUES`).

    Raises:
        UserError: they were made from different ones, whose ids cannot be compared, or by an older whenwhy.
    """
    for run in runs:
        if CODE_GROUPS not in run.entry(ABOUT).files:
            raise UserError(
                f"{run.path} was made by an older whenwhy: run `whenwhy prepare`, and what follows it, into new directories."
            )
    if len({run.entry(ABOUT).summary["vocabulary_sha256"] for run in runs}) > 1:
        raise UserError("The attributions are of different feature values: aggregate each into a store of its own.")
    table: pa.Table = runs[0].read(ABOUT, VOCABULARY)
    return table


# -- tasks ----------------------------------------------------------------------------------------


def directory_of(
    folder: Path, generation: Generation, axes: Sequence[TimeAxis], entries: Sequence[str]
) -> StageDirectory:
    """The directory of a generation's cells below `folder`: new, or an earlier one of the same patients and axes.

    Args:
        entries: that it is to have if it is new.
    """
    run = generation.run
    settings: Json = {"axes": [asdict(axis) for axis in axes]}
    told = {
        "path": named(run.path),
        "run_id": run.run_id,
        "generation": generation.number,
        "vocabulary": run.entry(ABOUT).summary["vocabulary_sha256"],
        "sha256": run.content_sha256(generation.shards),
    }
    inputs = {"attributions": told}
    path = folder / run_id_of("aggregate", settings, inputs, __version__)
    return StageDirectory.create(
        path, stage="aggregate", settings=settings, inputs=inputs, shards=entries, code_version=__version__
    )


def recorded_codes(vocabulary: pa.Table) -> pa.Table:
    """feature_value_id and code of what was recorded, and does not follow from something recorded."""
    return vocabulary.filter(pc.equal(vocabulary["kind"], RECORDED)).select(["feature_value_id", "code"])


def features_of(vocabulary: pa.Table) -> dict[str, pa.Table]:
    """Level (code, group) -> feature_value_id, code: which feature values belong to which code, or code group."""
    ids, groups = vocabulary["feature_value_id"], vocabulary["groups"].combine_chunks()
    grouped = {"feature_value_id": ids.take(pc.list_parent_indices(groups)), "code": pc.list_flatten(groups)}
    return {CODE: pa.table({"feature_value_id": ids, "code": vocabulary["code"]}), GROUP: pa.table(grouped)}


def exposure_of(
    db: duckdb.DuckDBPyConnection, run: StageDirectory, gradients: Sequence[Path], axes: Sequence[TimeAxis]
) -> pa.Table:
    """`schema.EXPOSURE_SUMS`, with what tells absence where the run does; the tables of cohorts are there."""
    table = exposure_sums(db, axes)
    return with_places(db, gradients, table, axes[0]) if run.settings.get("absence", False) else table


class _Work:
    """The directory of one generation's cells, and the tasks that fill it."""

    def __init__(
        self, folder: Path, generation: Generation, vocabulary: pa.Table, axes: Sequence[TimeAxis], memory_limit: str
    ) -> None:
        self.generation, self.axes, self.memory_limit = generation, list(axes), memory_limit
        self.layout = _feature_ranges(generation.run, vocabulary)
        self.stage = directory_of(folder, generation, axes, [EXPOSURE_ROWS, *self.layout])
        self.scratch = self.stage.path / "scratch"
        self.codes = recorded_codes(vocabulary)

    def prepare(self) -> None:
        """What every task needs to know of the predictions, written once; and the exposure."""
        self.scratch.mkdir(exist_ok=True)
        with connect(self.memory_limit, self.scratch) as db:
            of = self.generation
            define_cohorts(db, of.files(PREDICTION_ROWS), of.files(ROWS), self.axes, self.codes)
            write_cohorts(db, self.scratch)
            if not self.stage.has(EXPOSURE_ROWS):
                exposure = exposure_of(db, of.run, of.files(GRADIENT_ROWS), self.axes)
                self.stage.publish(EXPOSURE_ROWS, {EXPOSURE_ROWS: exposure})

    def task(self, part: str) -> Callable[[], tuple[str, int]]:
        of = self.generation
        return _Finish(
            str(self.stage.path),
            named(of.run.path),
            of.number,
            part,
            self.layout.get(part),
            self.axes,
            self.memory_limit,
        )


@dataclass(frozen=True)
class _Finish:
    """A Dask task: one entry computed and published. Holds names; gives the entry and its number of cells."""

    stage: str
    run: str
    number: int
    part: str
    features: pa.Table | None
    axes: list[TimeAxis]
    memory_limit: str

    def __call__(self) -> tuple[str, int]:
        stage, run = StageDirectory.open(Path(self.stage), "aggregate"), StageDirectory.open(location(self.run))
        if self.features is None:  # the exposure, which is made with the cohorts
            return self.part, int(stage.entry(self.part).files[EXPOSURE_ROWS]["rows"])
        rows = Generation(run, self.number).files(ROWS)
        level = self.part.partition("-")[0]
        scratch = stage.path / "scratch"
        with connect(self.memory_limit, scratch, threads=1) as db:  # Dask brings the others
            read_cohorts(db, scratch)
            cells, histograms = cell_sums(db, rows, self.features, level, self.axes)
            files: dict[str, pa.Table | bytes] = {CELL_ROWS: cells, HISTOGRAM_ROWS: histograms}
            if level == CODE and run.settings.get("absence", False):
                files[PLACE_ROWS] = place_sums(db, rows, self.features, self.axes[0])
        codes = self.features["code"]
        stage.publish(self.part, files, {"codes": [pc.min(codes).as_py(), pc.max(codes).as_py()]})
        count = cells.num_rows
        del cells, histograms, files
        pa.default_memory_pool().release_unused()  # another task has other needs
        return self.part, count


def _feature_ranges(run: StageDirectory, vocabulary: pa.Table) -> dict[str, pa.Table]:
    """Entry name -> the features of one task (feature_value_id, code), codes and groups never divided.

    By how often training patients have each feature value, and how many rows the run's first patients have for those.
    """
    ids = vocabulary["feature_value_id"]
    counts = np.zeros(vocabulary.num_rows, dtype=np.int64)
    counts[ids.to_numpy()] = pc.fill_null(vocabulary["n_train"], 0).to_numpy()
    n_rows = sum(int(run.entry(name).summary["n_rows"]) for name in Generation(run, 0).shards)
    # To a power of two, so that a patient who leaves hardly ever changes the ranges.
    counts *= 1 << max(0, round(np.log2(max(1, n_rows) / max(1, int(counts.sum())))))
    counts += 2 * np.minimum(CELLS_OF_A_ROW * counts, CELLS_OF_A_FEATURE)
    per_task = max(1, min(SIZE_OF_A_TASK, int(counts.sum()) // FEWEST_TASKS))
    counts[EVERYTHING_ABSENT] = per_task  # a row a step, where there is one
    ranges: dict[str, pa.Table] = {}
    for level, features in features_of(vocabulary).items():
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
