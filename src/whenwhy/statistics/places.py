"""What tells absence flows in, its sums per cohort and time bin flow out: places, gradients, and who records what.

A place is a step of a prediction, or its static values. Its time is the step's own, since a value that is not
recorded has none; an event of a wide step may lie in another bin.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from whenwhy.attribution.absence import vectors
from whenwhy.schema import ATTRIBUTION_UNITS, EVERYTHING_ABSENT, RECORDED_PLACES
from whenwhy.statistics.cells import ALL, completed, list_of, time_bin_of
from whenwhy.statistics.time_axis import TimeAxis

#: Gradients that are added up together.
AT_ONCE = 1 << 16


def with_places(db: duckdb.DuckDBPyConnection, files: Sequence[Path], exposure: pa.Table, axis: TimeAxis) -> pa.Table:
    """Exposure (`schema.EXPOSURE`) with the number of places, and the sums of their gradients; `predictions` is there.

    Args:
        files: tables of `schema.GRADIENTS`.
    """
    known = db.sql(
        "select prediction_id, dense_rank() over (order by target, split, class, strata) - 1 as cohort "
        "from predictions order by prediction_id"
    ).fetchnumpy()
    cohorts = db.sql(
        "select distinct target, split, class, strata from predictions order by target, split, class, strata"
    ).fetchall()
    ids, cohort = known["prediction_id"], known["cohort"].astype(np.int64)
    static = axis.n_bins  # the static values' place among the bins
    n_places = np.zeros(len(cohorts) * (static + 1), dtype=np.int64)
    sums: dict[bool, np.ndarray] = {}  # of static values or not: [cohort * bin, width], whole units
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(AT_ONCE):
            of_static = pc.is_null(batch["step"]).to_numpy(zero_copy_only=False)
            minutes = pc.fill_null(batch["minutes"], 0).to_numpy(zero_copy_only=False)
            time_bin = np.where(of_static, static, np.minimum(minutes // (60 * axis.width_hours), axis.n_bins - 1))
            at = cohort[np.searchsorted(ids, batch["prediction_id"].to_numpy())] * (static + 1) + time_bin
            n_places += np.bincount(at, minlength=len(n_places))
            for kind in (False, True):
                rows = batch.filter(pa.array(of_static == kind))
                if not rows.num_rows:
                    continue
                units = rows["gradient"].flatten().to_numpy().astype(np.float64) * ATTRIBUTION_UNITS
                gradients = units.astype(np.int64).reshape(rows.num_rows, -1)
                total = sums.setdefault(kind, np.zeros((len(n_places), gradients.shape[1]), dtype=np.int64))
                own = at[of_static == kind]
                order = np.argsort(own, kind="stable")
                place, first = np.unique(own[order], return_index=True)
                total[place] += np.add.reduceat(gradients[order], first, axis=0)
    return _beside(exposure, cohorts, n_places, sums, axis)


def _beside(
    exposure: pa.Table,
    cohorts: Sequence[tuple[str, str, str, list[str]]],
    n_places: np.ndarray,
    sums: dict[bool, np.ndarray],
    axis: TimeAxis,
) -> pa.Table:
    """Exposure beside the sums over all cohorts that each of its rows holds."""
    margins: dict[tuple[str, ...], int] = {}
    links = [
        (margins.setdefault((target, split, label, stratum), len(margins)), at)
        for at, (target, split, own, strata) in enumerate(cohorts)
        for label in (own, ALL)
        for stratum in strata
    ]
    margin, of = np.array(links, dtype=np.int64).reshape(-1, 2).T

    def summed(parts: np.ndarray) -> np.ndarray:
        """[margin, bin, ...]: each time bin, the static values, and last all time."""
        per_cohort = parts.reshape(len(cohorts), axis.n_bins + 1, *parts.shape[1:])
        total = np.zeros((len(margins), *per_cohort.shape[1:]), dtype=np.int64)
        np.add.at(total, margin, per_cohort[of])
        return np.concatenate([total, total[:, : axis.n_bins].sum(1, keepdims=True)], axis=1)

    keys = zip(*(exposure[name].to_pylist() for name in ("target", "split", "class", "stratum")), strict=True)
    row = np.array([margins[key] for key in keys], dtype=np.int64)
    time_bin = exposure["time_bin"].fill_null(axis.n_bins + 1).to_numpy()
    all_time = time_bin == axis.n_bins + 1
    told = {"n_places": pa.array(summed(n_places)[row, time_bin])}
    for kind, name in ((False, "sum_gradient_vector"), (True, "sum_static_gradient_vector")):
        if kind not in sums:
            continue
        found = summed(sums[kind])[row, np.where(kind, axis.n_bins, time_bin)] / ATTRIBUTION_UNITS
        column = vectors(found)
        told[name] = pc.if_else(pa.array(all_time), column, pa.scalar(None, column.type)) if kind else column
    for name, column in told.items():
        at = exposure.column_names.index(name)
        exposure = exposure.set_column(at, exposure.schema.field(name), column)
    return exposure


def recorded_places_table(
    db: duckdb.DuckDBPyConnection, files: Sequence[Path], features: pa.Table, run_id: str, axis: TimeAxis
) -> pa.Table:
    """`schema.RECORDED_PLACES` of some features; `predictions` is there.

    Args:
        files: attribution shards of a run that tells absence.
        features: columns feature_value_id, code.
    """
    db.register("features", features)
    keys = "feature_value_id, stream, target, split, stratum"
    sets = ", ".join(f"(subject_id, {keys}{time}{label})" for time in (", time_bin", "") for label in (", class", ""))
    unit = float(ATTRIBUTION_UNITS)
    table = db.sql(
        f"""with entries as (
            select p.target, p.split, p.class, p.subject_id, unnest(p.strata) as stratum, a.feature_value_id,
                case when a.step is null then 'static' else 'events' end as stream,
                {time_bin_of("a.step_minutes", axis)} as time_bin, a.slope is not null as is_first,
                (a.attribution::double * {ATTRIBUTION_UNITS})::bigint as units,
                (a.slope::double * {ATTRIBUTION_UNITS})::bigint as slope_units
            from read_parquet({list_of(files)}) a
            join features f using (feature_value_id) join predictions p using (prediction_id)
            where a.feature_value_id <> {EVERYTHING_ABSENT}
                and a.feature_value_id between (select min(feature_value_id) from features)
                                           and (select max(feature_value_id) from features)
        ),
        per_patient as (
            select {keys}, case grouping(class) when 1 then '{ALL}' else class end as class, time_bin,
                grouping(time_bin) as all_time, subject_id, count(*) filter (is_first) as n,
                sum(units) as s, sum(slope_units) as slopes
            from entries group by grouping sets ({sets})
        )
        select {keys}, class, time_bin, sum(n)::bigint as n_places, count(*)::bigint as n_patients,
            sum(s)::double / {unit} as sum, sum(slopes)::double / {unit} as sum_gradient
        from per_patient where all_time = 1 or time_bin is not null
        group by {keys}, class, time_bin
        order by feature_value_id, stream, target, split, class, stratum, time_bin nulls last"""
    ).to_arrow_table()
    db.unregister("features")
    return completed(table, RECORDED_PLACES, run_id, axis)
