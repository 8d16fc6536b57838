"""A version's rows.duckdb flows in, the file that may be shared flows out: what is left of it after suppression."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from whenwhy.events.out_of_core import literal
from whenwhy.schema import MIN_PATIENTS, RUNS
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.suppression import CELL_COLUMNS, apart, shown_cells, shown_exposure
from whenwhy.store.views import define_estimates

SHAREABLE_FILE = "shareable.duckdb"

#: Cells of which it is decided together who sees them, about.
CELLS_AT_ONCE = 2_000_000


def build_shareable(db: duckdb.DuckDBPyConnection, file: Path, threshold: int = MIN_PATIENTS) -> None:
    """The file is there: cells, exposure, feature values, runs and axes after suppression, and estimates of them.

    Args:
        db: rows.duckdb, opened for writing.
        threshold: the fewest patients of a cell that is shown.
    """
    db.execute(f"attach {literal(str(file))} as shareable")
    exposure = db.sql("select * from exposure").to_arrow_table()
    exposure = exposure.filter(pa.array(_find_shown_cells(db, exposure, threshold)))
    # A histogram's small counts would undo the suppression. So would what tells absence: counts of steps are not
    # suppressed, and sums of gradients, as many numbers as the embeddings are wide, differ by a few patients' records.
    exposure = _without(exposure, ["n_places", "sum_gradient_vector", "sum_static_gradient_vector"])
    runs = _shareable_runs(db.sql("select * from runs").to_arrow_table())
    db.register("shown_exposure", exposure)
    db.register("shown_runs", runs)
    db.execute(
        "create table shareable.cells as select * replace (null::map(smallint, bigint) as histogram, "
        "null::double as sum_gradient) from cells where rowid in (select place from shown_cells) order by rowid"
    )
    db.execute("create table shareable.exposure as select * from shown_exposure")
    db.execute("create table shareable.runs as select * from shown_runs")
    # A training count is the count of a cell: it is shown where that cell is, unless it differs by a few (whom training
    # knew, and who are not explained). An edge is a value that somebody had: it is shown where both its bins are.
    db.execute(
        f"""create table shareable.feature_values as
        with shown as (
            select f.*, c.n_patients is not null as is_shown,
                abs(f.n_train_patients - c.n_patients) between 1 and {threshold - 1}
                    or abs(f.n_train - c.n_events) between 1 and {threshold - 1} as tells_few
            from feature_values f left join shareable.cells c on c.run_id = f.run_id
                and c.feature_value_id = f.feature_value_id and c.level = 'value' and c.split = 'train'
                and c.class = 'all' and c.stratum = 'all' and c.time_bin is null
        ),
        hidden_edges as (
            select run_id, code, unnest([low, high]) as edge from shown where not is_shown and bin is not null
        )
        select s.* exclude (is_shown, tells_few, n_train, n_train_patients) replace (
                case when isinf(low) or not exists (select 1 from hidden_edges h
                    where h.run_id = s.run_id and h.code = s.code and h.edge = s.low) then low end as low,
                case when isinf(high) or not exists (select 1 from hidden_edges h
                    where h.run_id = s.run_id and h.code = s.code and h.edge = s.high) then high end as high),
            case when not tells_few then n_train end as n_train,
            case when not tells_few then n_train_patients end as n_train_patients
        from shown s order by run_id, feature_value_id"""
    )
    db.execute("use shareable")
    for table in ("axes", "code_groups", "privacy"):
        db.execute(f"create table {table} as select * from rows.{table}")
    db.execute("create table partitions as select * from rows.partitions semi join exposure using (run_id, split)")
    define_estimates(db, with_rows=False)
    db.execute("checkpoint shareable")  # closing does it too, and says nothing when the disk is full
    db.execute("use rows")
    db.execute("detach shareable")


def _find_shown_cells(db: duckdb.DuckDBPyConnection, exposure: pa.Table, threshold: int) -> np.ndarray:
    """Temporary table shown_cells: the places of the cells that may be shown; and whether each row of exposure may be."""
    db.execute("create temp table shown_cells (place bigint)")
    exposure_shown = shown_exposure(exposure, threshold)
    parents = db.sql(
        """select c.code, any_value(f.groups) as parents, c.n::bigint as n from (select code, count(*) as n from cells group by 1) c
        left join feature_values f on f.code = c.code group by c.code, c.n order by c.code"""
    ).to_arrow_table()
    if not parents.num_rows:
        return exposure_shown
    everybodys = _codes_of_everybody(db)
    parts = apart(parents, CELLS_AT_ONCE, parents["n"].to_numpy())
    first = [part for part in parts if set(part.to_pylist()) & set(everybodys["code"].to_pylist())]
    decide = _Decision(db, exposure, parents, threshold)
    while first:
        db.execute("delete from shown_cells")
        for codes in first:
            decide(codes, exposure_shown)
        still = shown_exposure(exposure, threshold, told_by_hidden=_told_by_hidden(db, everybodys))
        if (still & exposure_shown == exposure_shown).all():
            break
        exposure_shown &= still
    for codes in parts:
        if not any(codes is one for one in first):
            decide(codes, exposure_shown)
    return exposure_shown


def _codes_of_everybody(db: duckdb.DuckDBPyConnection) -> pa.Table:
    """Codes that all patients have who are at risk on an axis, such as the age, or the code that it begins at."""
    return db.sql(
        """select c.code, e.time_axis from cells c join exposure e using (run_id, target, split, class, stratum)
        where c.level = 'code' and c.time_bin is null and e.time_bin is null and class = 'all' and stratum = 'all'
        group by all having bool_and(c.n_patients = e.n_patients) and count(*) = (
            select count(*) from exposure o where o.time_axis = any_value(e.time_axis) and o.time_bin is null
            and o.class = 'all' and o.stratum = 'all')
        order by all"""
    ).to_arrow_table()


def _told_by_hidden(db: duckdb.DuckDBPyConnection, everybodys: pa.Table) -> np.ndarray:
    """Whether a row of exposure counts the very patients of a hidden cell of a code that everybody has [row]."""
    db.register("everybodys", everybodys)
    told = db.sql(
        f"""select exists (select 1 from everybodys v join cells c on c.code = v.code
            where v.time_axis = e.time_axis and c.level = 'code' and c.time_bin is null
            and c.run_id = e.run_id and c.target = e.target and c.split = e.split and c.class = e.class
            and c.stratum = e.stratum and c.rowid not in (select place from shown_cells)
            and (e.time_bin is null or (e.time_bin = 0 and e.time_axis <> '{BEFORE_PREDICTION}'))) as told
        from exposure e order by e.rowid"""
    ).fetchnumpy()["told"]
    return np.asarray(told)


class _Decision:
    """Puts into shown_cells which cells of some codes may be shown."""

    def __init__(self, db: duckdb.DuckDBPyConnection, exposure: pa.Table, parents: pa.Table, threshold: int) -> None:
        self.db, self.exposure, self.parents, self.threshold = db, exposure, parents, threshold
        names = {
            name: ", ".join(
                literal(one) for (one,) in db.execute(f"select distinct {name} from cells order by 1").fetchall()
            )
            for name in ("run_id", "target", "split", "class", "stratum", "time_axis", "level", "code")
        }
        self.columns = ", ".join(f"{c}::enum({names[c]}) as {c}" if c in names else c for c in CELL_COLUMNS)
        self.cohorts = db.execute("select distinct run_id, target, split from cells order by all").fetchall()

    def __call__(self, codes: pa.Array, exposure_shown: np.ndarray) -> None:
        self.db.register("some_codes", pa.table({"code": codes}))
        for cohort in self.cohorts:
            cells = self.db.sql(
                f"""select rowid as place, {self.columns} from cells where run_id = ? and target = ? and split = ?
                and code in (select code from some_codes)""",
                params=list(cohort),
            ).to_arrow_table()
            shown = shown_cells(cells, self.exposure, exposure_shown, self.parents, self.threshold)
            self.db.register("some_shown", pa.table({"place": cells["place"].filter(pa.array(shown))}))
            self.db.execute("insert into shown_cells select place from some_shown")
        self.db.unregister("some_codes")


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
