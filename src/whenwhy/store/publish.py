"""Attributions and their cells flow in, a published version of the store flows out.

    STORE/CURRENT                    the published version's folder, replaced atomically
    STORE/versions/HASH/rows.duckdb       for analysts: every table of the contract
    STORE/versions/HASH/shareable.duckdb  for viewers: cells that may be shown, no patient's row
    STORE/cells/RUN/                 the finished cells, so that aggregating again is quick

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
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from whenwhy.attribution.attribution_directory import ABOUT, FIRST_LAYER_ROWS, PREDICTION_ROWS, ROWS
from whenwhy.attribution.registry import method_named
from whenwhy.attribution.run_summary import residual_summary
from whenwhy.engine import Progress
from whenwhy.errors import UserError
from whenwhy.manifests import canonical
from whenwhy.schema import ATTRIBUTION_UNITS, FORMAT_VERSION, RUNS
from whenwhy.shards import StageDirectory
from whenwhy.statistics.aggregate import CELL_ROWS, EXPOSURE_ROWS, PLACE_ROWS, attribution_files, vocabulary_of
from whenwhy.statistics.cells import list_of
from whenwhy.store.suppression import shown_cells, shown_exposure
from whenwhy.store.views import ATTRIBUTIONS_VIEW, ESTIMATES_VIEW, student_t_975_macro

ROWS_FILE, SHAREABLE_FILE = "rows.duckdb", "shareable.duckdb"

#: Versions that stay: the published one, and the one before it for readers that have it open.
KEPT_VERSIONS = 2


def publish_store(
    store: Path, cells: StageDirectory, attribution_paths: Sequence[Path], memory_limit: str = "2GB"
) -> Path:
    """The published version's folder. The same attributions give the same folder name.

    Raises:
        UserError: unfinished inputs, or a version that does not agree with them.
    """
    runs = [StageDirectory.open(path, "attribute").require_complete() for path in attribution_paths]
    made_from = {
        "cells": cells.content_sha256(),
        "runs": [run.content_sha256() for run in runs],
        "format": FORMAT_VERSION,
    }
    name = hashlib.sha256(canonical(made_from)).hexdigest()[:16]
    version = store / "versions" / name
    with Progress("publish", total=3, unit="tables") as progress:
        if not version.exists():
            building = store / f".building-{uuid.uuid4().hex}"
            building.mkdir(parents=True)
            try:
                _build_rows(building, cells, runs, memory_limit)
                progress.advance(ROWS_FILE, 6)
                _build_shareable(building, memory_limit)
                progress.advance(SHAREABLE_FILE, 4)
                version.parent.mkdir(exist_ok=True)
                os.replace(building, version)
            finally:
                shutil.rmtree(building, ignore_errors=True)
        else:
            progress.finished = 2
        _point_current_at(store, version)
        progress.advance("CURRENT", 1)
    return version


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


def _build_rows(folder: Path, cells: StageDirectory, runs: Sequence[StageDirectory], memory_limit: str) -> None:
    """rows.duckdb: the tables and views of the contract, verified against the inputs."""
    with _connect(folder / ROWS_FILE, memory_limit) as db:
        vocabulary = vocabulary_of(runs)
        db.register("vocabulary", vocabulary)
        names = pa.table({"run_id": [run.run_id for run in runs]})
        db.register("names", names)
        db.execute("create table feature_values as select n.run_id, v.* from names n, vocabulary v order by 1, 2")
        for table, order in (
            (CELL_ROWS, "run_id, level, code, feature_value_id, split, class, stratum, time_bin"),
            (EXPOSURE_ROWS, "run_id, split, class, stratum, time_bin"),
            (PLACE_ROWS, "run_id, feature_value_id, stream, split, class, stratum, time_bin"),
        ):
            files = [cells.file(n, table) for n in cells.shards if table in cells.entry(n).files]
            if table == PLACE_ROWS and not files:
                continue  # no run tells absence
            db.execute(f"create table {table} as select * from read_parquet({list_of(files)}) order by {order}")
        rows, predictions, first_layers = [], [], []
        for run in runs:
            given = f"select '{run.run_id}' as run_id, * from read_parquet"
            if FIRST_LAYER_ROWS in run.needs:
                first_layers.append(f"{given}({list_of([run.file(FIRST_LAYER_ROWS, FIRST_LAYER_ROWS)])})")
            rows.append(f"{given}({list_of(attribution_files(run, ROWS))})")
            predictions.append(f"{given}({list_of(attribution_files(run, PREDICTION_ROWS))})")
        db.execute(
            f"create table rows as select * from ({' union all '.join(rows)}) "
            "order by run_id, feature_value_id, prediction_id, step"
        )
        if first_layers:
            db.execute(
                f"create table first_layer as select * from ({' union all '.join(first_layers)}) order by 1, 2, 3"
            )
        db.execute(f"create temp table all_predictions as {' union all '.join(predictions)}")
        strata = [
            n
            for (n,) in db.execute(
                "select distinct unnest(map_keys(strata)) from all_predictions order by 1"
            ).fetchall()
        ]
        columns = "".join(f""", strata['{n.replace("'", "''")}'] as "{n.replace('"', '""')}" """ for n in strata)
        db.execute(
            f"create table predictions as select * exclude (strata){columns} from all_predictions "
            "order by run_id, prediction_id"
        )
        db.register("told", _runs_table(runs))
        db.execute("create table runs as select * from told")
        db.execute(ATTRIBUTIONS_VIEW)
        db.execute(student_t_975_macro())
        db.execute(ESTIMATES_VIEW)
        _verify(db, cells, runs)
    shutil.rmtree(folder / "scratch", ignore_errors=True)


def _build_shareable(folder: Path, memory_limit: str) -> None:
    """shareable.duckdb: cells, exposure, feature values and runs after suppression."""
    with _connect(folder / ROWS_FILE, memory_limit) as db:
        cells = db.sql("select * from cells").to_arrow_table()
        exposure = db.sql("select * from exposure").to_arrow_table()
        features = db.sql("select * from feature_values").to_arrow_table()
        parents = db.sql("select code, any_value(parents) as parents from feature_values group by 1").to_arrow_table()
        runs = db.sql("select * from runs").to_arrow_table()
    cells = cells.filter(pa.array(shown_cells(cells, exposure, parents)))
    exposure = exposure.filter(pa.array(shown_exposure(exposure)))
    # A histogram's small counts would undo the suppression. So would what tells absence: counts of steps are not
    # suppressed, and sums of gradients, as many numbers as the embeddings are wide, differ by a few patients' records.
    cells = _without(cells, ["histogram", "sum_gradient"])
    exposure = _without(exposure, ["n_places", "sum_gradient_vector", "sum_static_gradient_vector"])
    runs = _shareable_runs(runs)
    with _connect(folder / SHAREABLE_FILE, memory_limit) as db:
        for name, table in (("cells", cells), ("exposure", exposure), ("all_features", features), ("runs_told", runs)):
            db.register(f"given_{name}", table)
        db.execute("create table cells as select * from given_cells")
        db.execute("create table exposure as select * from given_exposure")
        db.execute("create table runs as select * from given_runs_told")
        # A training count is the count of a cell: it is shown where that cell is. An edge is a value that
        # somebody had: it is shown where both its bins are.
        db.execute(
            """create table feature_values as
            with shown as (
                select f.*, exists (
                    select 1 from cells c where c.run_id = f.run_id and c.feature_value_id = f.feature_value_id
                    and c.level = 'value' and c.split = 'train' and c.class = 'all' and c.stratum = 'all'
                    and c.time_bin is null
                ) as is_shown from given_all_features f
            ),
            hidden_edges as (
                select run_id, code, unnest([low, high]) as edge from shown where not is_shown and bin is not null
            )
            select s.* exclude (is_shown, n_train, n_train_patients) replace (
                    case when isinf(low) or not exists (select 1 from hidden_edges h
                        where h.run_id = s.run_id and h.code = s.code and h.edge = s.low) then low end as low,
                    case when isinf(high) or not exists (select 1 from hidden_edges h
                        where h.run_id = s.run_id and h.code = s.code and h.edge = s.high) then high end as high),
                case when is_shown then n_train end as n_train,
                case when is_shown then n_train_patients end as n_train_patients
            from shown s order by run_id, feature_value_id"""
        )
        db.execute(student_t_975_macro())
        db.execute(ESTIMATES_VIEW)
    shutil.rmtree(folder / "scratch", ignore_errors=True)


def _without(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The table with nothing in these columns."""
    for name in names:
        field = table.schema.field(name)
        table = table.set_column(table.column_names.index(name), field, pa.nulls(table.num_rows, field.type))
    return table


def _shareable_runs(runs: pa.Table) -> pa.Table:
    """The runs without counts of patients: a total less the splits that are shown gives one that is hidden."""
    counts = {"n_predictions", "n_over_tolerance"}
    rows = []
    for row in runs.to_pylist():
        quality = json.loads(row["quality"])
        quality["folds"] = [
            {key: value for key, value in fold.items() if not key.startswith("n_")} for fold in quality.get("folds", [])
        ]
        rows.append(row | dict.fromkeys(counts) | {"quality": json.dumps(quality, sort_keys=True)})
    return pa.Table.from_pylist(rows, schema=RUNS)


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
                "format_version": FORMAT_VERSION,
                "tolerance": settings["tolerance"],
                "n_predictions": residual["n_predictions"],
                "residual_median": residual["median"],
                "residual_maximum": residual["maximum"],
                "n_over_tolerance": residual["n_over_tolerance"],
                "quality": json.dumps(about["quality"], sort_keys=True),
            }
        )
    return pa.Table.from_pylist(rows, schema=RUNS)


def _verify(db: duckdb.DuckDBPyConnection, cells: StageDirectory, runs: Sequence[StageDirectory]) -> None:
    """Every row of every shard and every cell is there once, and the cells hold exactly the rows' sums."""
    counted = sum(told["rows"] for name in cells.shards for told in cells.entry(name).files.values())
    tables = {table for name in cells.shards for table in cells.entry(name).files}
    found = sum(count for table in tables for (count,) in db.execute(f"select count(*) from {table}").fetchall())
    if found != counted:
        raise UserError(f"The built version has {found:,} cells and counts for {counted:,}: aggregate again.")
    for run in runs:
        expected = sum(int(run.entry(shard).summary["n_rows"]) for shard in run.shards)
        rows, units = db.execute(
            f"select count(*), sum((attribution::double * {ATTRIBUTION_UNITS})::bigint)::double from rows where run_id = ?",
            [run.run_id],
        ).fetchall()[0]
        events, total = db.execute(
            """select sum(n_events), sum(sum) from cells where run_id = ? and level = 'code' and time_bin is null
            and class = 'all' and stratum = 'all'""",
            [run.run_id],
        ).fetchall()[0]
        if rows != expected or (
            rows and (events != rows or not np.isclose(total, units / ATTRIBUTION_UNITS, rtol=1e-12))
        ):
            raise UserError(
                f"The built version does not agree with {run.path} ({rows:,} rows for {expected:,}, "
                f"{events:,} events in cells): remove STORE/cells and run `whenwhy aggregate` again."
            )
