"""Attributions and their cells flow in, a published version of the store flows out.

    STORE/CURRENT                    the published version's folder, replaced atomically
    STORE/versions/HASH/rows.duckdb       for analysts: every table of the contract
    STORE/versions/HASH/shareable.duckdb  for viewers: cells that may be shown, no patient's row
    STORE/versions/HASH/made_from.json    the runs and cells that it was made from
    STORE/cells/RUN/                 summed cells, so that aggregating again does only what is new
    STORE/access.jsonl               who asked what: never touched here

A version is built beside, verified, renamed, and never touched again. Its name is the hash of what it was
made from.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from whenwhy.attribution.attribution_directory import (
    ABOUT,
    FIRST_LAYER_ROWS,
    PREDICTION_ROWS,
    ROWS,
    attribution_files,
    first_prediction_id,
)
from whenwhy.attribution.registry import method_named
from whenwhy.attribution.run_summary import residual_summary
from whenwhy.engine import Progress
from whenwhy.errors import UserError
from whenwhy.events.out_of_core import literal, within
from whenwhy.events.sequence_directory import CODE_GROUPS
from whenwhy.locations import named
from whenwhy.manifests import canonical, sealed, unsealed
from whenwhy.schema import ATTRIBUTION_UNITS, MIN_PATIENTS, RUNS, STORE_FORMAT
from whenwhy.shards import Json, StageDirectory
from whenwhy.statistics.aggregate import Cells, vocabulary_of
from whenwhy.statistics.cohorts import CORRECT, PREDICTED, list_of
from whenwhy.statistics.sums import CELL_ROWS, EXPOSURE_ROWS, PLACE_ROWS
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.shareable import SHAREABLE_FILE, build_shareable
from whenwhy.store.views import ATTRIBUTIONS_VIEW, define_estimates

ROWS_FILE, MADE_FROM_FILE = "rows.duckdb", "made_from.json"

#: Rows that are put in order together, about.
ROWS_AT_ONCE = 8_000_000

#: Versions that stay: the published one, and the one before it for readers that have it open.
KEPT_VERSIONS = 2


def publish_store(
    store: Path,
    cells: Cells,
    attribution_paths: Sequence[Path],
    memory_limit: str = "1GB",
    *,
    min_patients: int | None = None,
    allow_small_cells: bool = False,
) -> Path:
    """The published version's folder. The same attributions and threshold give the same folder name.

    Args:
        min_patients: the fewest patients of a cell that viewers see; None: the store's, or 11.
        allow_small_cells: that may be fewer than 11; the table `privacy` says so.

    Raises:
        UserError: unfinished inputs, a version that does not agree with them, or a threshold below 11 that is not allowed.
    """
    threshold = shown_from(store, min_patients, allow_small_cells)
    runs = [StageDirectory.open(path, "attribute").require_complete() for path in attribution_paths]
    made_from = {
        "runs": {run.run_id: {"path": named(run.path), "sha256": run.content_sha256()} for run in runs},
        "cells": {run_id: [part.run_id for part in parts] for run_id, parts in cells.parts.items()},
        "format": STORE_FORMAT,
        "min_patients": threshold,
    }
    contents = made_from | {"runs": {run.run_id: run.content_sha256() for run in runs}}
    name = hashlib.sha256(canonical(contents)).hexdigest()[:16]
    version = store / "versions" / name
    with Progress("publish", total=3, unit="tables") as progress, within(memory_limit, store):
        if not version.exists():
            building = store / f".building-{uuid.uuid4().hex}"
            building.mkdir(parents=True)
            try:
                _build_rows(building, cells, runs, memory_limit, threshold)
                progress.advance(ROWS_FILE, 8)
                with _connect(building / ROWS_FILE, memory_limit) as db:
                    build_shareable(db, building / SHAREABLE_FILE, threshold)
                shutil.rmtree(building / "scratch", ignore_errors=True)
                progress.advance(SHAREABLE_FILE, 4)
                (building / MADE_FROM_FILE).write_bytes(sealed(made_from))
                version.parent.mkdir(exist_ok=True)
                os.replace(building, version)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        else:
            progress.finished = 2
        _point_current_at(store, version)
        progress.advance("CURRENT", 1)
    _collect_cells(store)
    return version


def shown_from(store: Path, min_patients: int | None = None, allow_small_cells: bool = False) -> int:
    """From how many patients on viewers of a store see a cell: as asked, or as its published version has it, or 11.

    Raises:
        UserError: fewer than 11, and nobody said that this is allowed; or none.
    """
    if min_patients is None:
        published = made_from(current_version(store)) if (store / "CURRENT").exists() else {}
        min_patients = int(published.get("min_patients", MIN_PATIENTS))
    if min_patients < 1:
        raise UserError(f"--min-patients is {min_patients}: give a whole number of at least 1.")
    if min_patients < MIN_PATIENTS and not allow_small_cells:
        raise UserError(
            f"Cells of fewer than {MIN_PATIENTS} patients may tell who they are, and {min_patients} would show them: give "
            f"--min-patients {MIN_PATIENTS} or more, or add --allow-small-cells."
        )
    return min_patients


def made_from(version: Path) -> Json:
    """What a version was made from: runs (by run id: path, sha256), the directories of their cells, and min_patients."""
    file = version / MADE_FROM_FILE
    return unsealed(file, file.read_bytes(), "run `whenwhy aggregate` again")


def _collect_cells(store: Path) -> None:
    """Remove the cells that no version is made from any more."""
    versions = [version for version in (store / "versions").iterdir() if (version / MADE_FROM_FILE).exists()]
    used = {name for version in versions for parts in made_from(version)["cells"].values() for name in parts}
    for folder in (store / "cells").iterdir():
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def current_version(store: Path) -> Path:
    """The folder of the published version.

    Raises:
        UserError: there is no store, or nothing is published in it yet.
    """
    try:
        version = store / (store / "CURRENT").read_text().strip()
    except UnicodeDecodeError:
        raise UserError(f"{store / 'CURRENT'} is damaged: run `whenwhy aggregate` again.") from None
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{store} is no store (there is no {store / 'CURRENT'}): make one by `whenwhy aggregate`."
        ) from None
    if not (version / ROWS_FILE).exists() and not (version / SHAREABLE_FILE).exists():
        raise UserError(f"{store} names the version {version.name}, which is not there: run `whenwhy aggregate` again.")
    return version


def _point_current_at(store: Path, version: Path) -> None:
    beside = store / f".current-{uuid.uuid4().hex}"
    with beside.open("w") as file:
        file.write(f"versions/{version.name}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, store / "CURRENT")
    os.utime(version)
    others = sorted((path for path in version.parent.iterdir() if path != version), key=lambda p: p.stat().st_mtime)
    for old in others[: max(0, len(others) - KEPT_VERSIONS + 1)]:
        shutil.rmtree(old, ignore_errors=True)


def _connect(file: Path, memory_limit: str) -> duckdb.DuckDBPyConnection:
    return duckdb.connect(
        str(file),
        config={
            "memory_limit": memory_limit,
            "temp_directory": str(file.parent / "scratch"),
            "autoinstall_known_extensions": "false",
        },
    )


def _build_rows(folder: Path, cells: Cells, runs: Sequence[StageDirectory], memory_limit: str, threshold: int) -> None:
    """rows.duckdb: the tables and views of the contract, verified against the inputs."""
    with _connect(folder / ROWS_FILE, memory_limit) as db:
        vocabulary = vocabulary_of(runs)
        db.register("vocabulary", vocabulary)
        names = pa.table({"run_id": [run.run_id for run in runs]})
        db.register("names", names)
        db.execute("create table feature_values as select n.run_id, v.* from names n, vocabulary v order by 1, 2")
        db.execute(
            """create table codes as
            select (row_number() over (order by code) - 1)::integer as code_number, code from (select distinct code from vocabulary)"""
        )
        db.register("hierarchy", runs[0].read(ABOUT, CODE_GROUPS))
        db.execute("create table code_groups as select n.run_id, h.* from names n, hierarchy h order by all")
        for table in (CELL_ROWS, EXPOSURE_ROWS, PLACE_ROWS):
            cells.insert_into(db, table, table)
        _build_predictions(db, runs)
        for run in runs:
            _insert_rows(db, run)
        db.register("told", _runs_table(runs))
        db.execute("create table runs as select * from told")
        db.execute(ATTRIBUTIONS_VIEW)
        db.register("given_axes", pa.Table.from_pylist([asdict(axis) for axis in cells.axes]))
        db.execute(
            "create table axes as select name as time_axis, width_hours, n_bins, first_bin from given_axes order by 1"
        )
        db.execute(
            f"create table privacy as select {threshold}::integer as min_patients, "
            f"{threshold < MIN_PATIENTS} as small_cells_allowed"
        )
        define_estimates(db, with_rows=True)
        _verify(db, runs)
        db.execute("checkpoint")  # closing does it too, and says nothing when the disk is full
    shutil.rmtree(folder / "scratch", ignore_errors=True)


def _build_predictions(db: duckdb.DuckDBPyConnection, runs: Sequence[StageDirectory]) -> None:
    """Tables predictions (a column a stratum), first_layer where a run tells absence, and partitions.

    The last tells of each kind of cohort (class, sex...) whether some patient has predictions in several of them.
    """
    predictions, first_layers = [], []
    for run in runs:
        given = f"select '{run.run_id}' as run_id, * from read_parquet"
        if FIRST_LAYER_ROWS in run.needs:
            first_layers.append(f"{given}({list_of([run.file(FIRST_LAYER_ROWS, FIRST_LAYER_ROWS)])})")
        predictions.append(f"{given}({list_of(attribution_files(run, PREDICTION_ROWS))})")
    if first_layers:
        db.execute(f"create table first_layer as select * from ({' union all '.join(first_layers)}) order by 1, 2, 3")
    db.execute(f"create temp table all_predictions as {' union all '.join(predictions)}")
    strata = [
        n for (n,) in db.execute("select distinct unnest(map_keys(strata)) from all_predictions order by 1").fetchall()
    ]
    columns = "".join(f""", strata[{literal(n)}] as "{n.replace('"', '""')}" """ for n in strata)
    db.execute(
        f"create table predictions as select * exclude (strata){columns} from all_predictions "
        "order by run_id, prediction_id"
    )
    db.execute("drop table all_predictions")
    kinds = {"class": "label", PREDICTED: "predicted", CORRECT: "predicted = label"}
    kinds |= {name: '"' + name.replace('"', '""') + '"' for name in strata}
    recurring = " union all ".join(
        f"select run_id, split, {literal(kind)} as kind, max({column}) is distinct from min({column}) as recurs "
        "from predictions group by run_id, split, subject_id"
        for kind, column in kinds.items()
    )
    db.execute(
        f"create table partitions as select run_id, split, kind, bool_or(recurs) as patients_recur from ({recurring}) "
        "group by all order by all"
    )


#: A store's rows: few bytes each, in two orders; and what a prediction's rows of one code add up to.
_ROWS = "'{run}' as run_id, *"


def _insert_rows(db: duckdb.DuckDBPyConnection, run: StageDirectory) -> None:
    """Tables rows (by feature value), rows_by_prediction, prediction_codes: each filled in its order, part by part."""
    columns = _ROWS.format(run=run.run_id)
    files = attribution_files(run, ROWS)

    def into(table: str, query: str) -> None:
        there = db.execute("select 1 from duckdb_tables() where table_name = ? and not temporary", [table]).fetchall()
        db.execute(f"insert into {table} {query}" if there else f"create table {table} as {query}")

    counts = db.execute(
        """select feature_value_id, sum(n_events)::bigint as n from cells where run_id = ? and level = 'value' and class = 'all'
        and stratum = 'all' and time_axis = ? and time_bin is null group by 1 order by 1""",
        [run.run_id, BEFORE_PREDICTION],
    ).fetchnumpy()
    part = np.cumsum(counts["n"]) // ROWS_AT_ONCE
    for number in np.unique(part) if len(part) else [None]:
        ids = counts["feature_value_id"][part == number] if number is not None else [0]
        into(
            "rows",
            f"select {columns} from read_parquet({list_of(files)}) where feature_value_id between {min(ids)} and {max(ids)} "
            "order by feature_value_id, prediction_id, step, minutes, numeric_value, attribution",
        )
    # A shard's predictions lie together.
    for file in sorted(zip(map(first_prediction_id, run.shards), files, strict=True)):
        shard = list_of(file[1:])
        order = "order by prediction_id, step nulls first, feature_value_id, minutes, numeric_value, attribution"
        into("rows_by_prediction", f"select {columns} from read_parquet({shard}) {order}")
        into(
            "prediction_codes",
            f"""select '{run.run_id}' as run_id, prediction_id, c.code_number, count(*)::integer as n_events,
                sum(attribution::double) as sum, sum(abs(attribution)::double) as sum_abs
            from read_parquet({shard}) join vocabulary using (feature_value_id) join codes c using (code)
            group by prediction_id, c.code_number order by prediction_id, c.code_number""",
        )


def _runs_table(runs: Sequence[StageDirectory]) -> pa.Table:
    rows = []
    for run in runs:
        about, settings, residual = run.entry(ABOUT).summary, run.settings, residual_summary(run)
        method = method_named(settings["method"])
        rows.append(
            {
                "run_id": run.run_id,
                "method": settings["method"],
                "measures": method.measures,
                "baseline": method.compares_with(settings["baseline"]),
                "target": settings["target"],
                "precision": settings["precision"],
                "outcome": about["outcome"],
                "model_sha256": about["model_sha256"],
                "vocabulary_sha256": about["vocabulary_sha256"],
                "input_sha256": run.manifest["inputs"]["sequences"]["sha256"],
                "code_version": run.manifest["code_version"],
                "format_version": STORE_FORMAT,
                "tolerance": settings["tolerance"],
                "n_predictions": residual["n_predictions"],
                "residual_median": residual["median"],
                "residual_maximum": residual["maximum"],
                "n_over_tolerance": residual["n_over_tolerance"],
                "quality": json.dumps(about["quality"], sort_keys=True),
            }
        )
    return pa.Table.from_pylist(rows, schema=RUNS)


def _verify(db: duckdb.DuckDBPyConnection, runs: Sequence[StageDirectory]) -> None:
    """Every row of every shard is there once in every order, and the cells hold exactly the rows' sums."""
    for run in runs:
        expected = sum(int(run.entry(shard).summary["n_rows"]) for shard in run.shards)
        found = {
            table: db.execute(f"select {count}, {units} from {table} where run_id = ?", [run.run_id]).fetchall()[0]
            for table, count, units in (
                ("rows", "count(*)", f"sum((attribution::double * {ATTRIBUTION_UNITS})::bigint)::double"),
                ("rows_by_prediction", "count(*)", f"sum((attribution::double * {ATTRIBUTION_UNITS})::bigint)::double"),
                ("prediction_codes", "sum(n_events)", f"sum((sum * {ATTRIBUTION_UNITS})::bigint)::double"),
            )
        }
        found["cells"] = db.execute(
            f"""select sum(n_events), sum(sum) * {ATTRIBUTION_UNITS} from cells where run_id = ? and level = 'code'
            and time_axis = '{BEFORE_PREDICTION}' and time_bin is null and class = 'all' and stratum = 'all'""",
            [run.run_id],
        ).fetchall()[0]
        total = found["rows"][1]
        for table, (count, units) in found.items():
            if (count or 0) != expected or (expected and not np.isclose(units, total, rtol=1e-12)):
                raise UserError(
                    f"The built version does not agree with {run.path} ({count or 0:,} rows in {table} for {expected:,}): "
                    "remove STORE/cells and run `whenwhy aggregate` again."
                )
