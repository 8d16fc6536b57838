"""What tells absence flows in, its sums per cohort and time bin flow out: places, gradients, and who records what.

A place is a step of a prediction, or its static values. Its time is the step's own, since a value that is not
recorded has none; an event of a wide step may lie in another bin. Absence is told before the prediction alone.
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
from whenwhy.schema import ATTRIBUTION_UNITS, EVERYTHING_ABSENT, PLACE_SUMS
from whenwhy.statistics.cohorts import list_of
from whenwhy.statistics.time_axis import TimeAxis

#: Gradients that are added up together.
AT_ONCE = 1 << 16


def with_places(db: duckdb.DuckDBPyConnection, files: Sequence[Path], exposure: pa.Table, axis: TimeAxis) -> pa.Table:
    """Exposure (`schema.EXPOSURE_SUMS`) with the number of places, and the sums of their gradients in units.

    The tables of cohorts are there.

    Args:
        files: tables of `schema.GRADIENTS`.
        axis: before the prediction.
    """
    known = db.sql("select prediction_id, cohort from predictions order by prediction_id").fetchnumpy()
    ids, cohort = known["prediction_id"], known["cohort"].astype(np.int64)
    n_cohorts = db.execute("select count(*) from cohorts").fetchall()[0][0]
    static = axis.n_bins  # the static values' place among the bins
    n_places = np.zeros(n_cohorts * (static + 1), dtype=np.int64)
    sums: dict[bool, np.ndarray] = {}  # of static values or not: [cohort * bin, width], whole units
    for file in files:
        for batch in pq.ParquetFile(file).iter_batches(AT_ONCE):
            at = np.searchsorted(ids, batch["prediction_id"].to_numpy())
            kept = ids[np.minimum(at, len(ids) - 1)] == batch["prediction_id"].to_numpy() if len(ids) else at < 0
            if not kept.all():  # of patients who are not asked for
                batch, at = batch.filter(pa.array(kept)), at[kept]
            of_static = pc.is_null(batch["step"]).to_numpy(zero_copy_only=False)
            minutes = pc.fill_null(batch["minutes"], 0).to_numpy(zero_copy_only=False)
            time_bin = np.where(of_static, static, np.minimum(minutes // (60 * axis.width_hours), axis.n_bins - 1))
            at = cohort[at] * (static + 1) + time_bin
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
    return _beside(db, exposure, n_places, sums, axis)


def _beside(
    db: duckdb.DuckDBPyConnection,
    exposure: pa.Table,
    n_places: np.ndarray,
    sums: dict[bool, np.ndarray],
    axis: TimeAxis,
) -> pa.Table:
    """Exposure beside the sums over all cohorts that each of its rows holds."""
    links = db.sql("select cohort, margin from cohort_margins").fetchnumpy()
    names = db.sql("select target, split, class, stratum from margins order by margin").fetchall()
    margins = {key: at for at, key in enumerate(names)}

    def summed(parts: np.ndarray) -> np.ndarray:
        """[margin, bin, ...]: each time bin, the static values, and last all time."""
        per_cohort = parts.reshape(-1, axis.n_bins + 1, *parts.shape[1:])
        total = np.zeros((len(margins), *per_cohort.shape[1:]), dtype=np.int64)
        np.add.at(total, links["margin"], per_cohort[links["cohort"]])
        return np.concatenate([total, total[:, : axis.n_bins].sum(1, keepdims=True)], axis=1)

    keys = zip(*(exposure[name].to_pylist() for name in ("target", "split", "class", "stratum")), strict=True)
    row = np.array([margins[key] for key in keys], dtype=np.int64)
    on_axis = pc.equal(exposure["time_axis"], axis.name)
    time_bin = pc.if_else(on_axis, exposure["time_bin"].fill_null(axis.n_bins + 1), 0).to_numpy()
    all_time = pc.and_(on_axis, pc.is_null(exposure["time_bin"]))

    def told(name: str, column: pa.Array, where: pa.ChunkedArray) -> None:
        nonlocal exposure
        at = exposure.column_names.index(name)
        field = exposure.schema.field(name)
        exposure = exposure.set_column(at, field, pc.if_else(where, column, pa.scalar(None, field.type)))

    told("n_places", pa.array(summed(n_places)[row, time_bin]), on_axis)
    for kind, name in ((False, "sum_gradient_vector"), (True, "sum_static_gradient_vector")):
        if kind in sums:
            column = vectors(summed(sums[kind])[row, np.where(kind, axis.n_bins, time_bin)])
            told(name, column, all_time if kind else on_axis)
    return exposure


def place_sums(db: duckdb.DuckDBPyConnection, files: Sequence[Path], features: pa.Table, axis: TimeAxis) -> pa.Table:
    """`schema.PLACE_SUMS` of some features; the tables of cohorts are there.

    Args:
        files: attribution shards of a run that tells absence.
        features: columns feature_value_id, code.
        axis: before the prediction.
    """
    db.register("features", features)
    keys = "feature_value_id, stream, margin"
    table = db.sql(
        f"""with entries as (
            select p.patient, p.cohort, a.feature_value_id, case when a.step is null then 'static' else 'events' end as stream,
                {axis.bin_of("a.step_minutes")} as time_bin, a.slope is not null as is_first,
                (a.attribution::double * {ATTRIBUTION_UNITS})::bigint as units,
                (a.slope::double * {ATTRIBUTION_UNITS})::bigint as slope_units
            from read_parquet({list_of(files)}) a
            join features f using (feature_value_id) join predictions p using (prediction_id)
            where a.feature_value_id <> {EVERYTHING_ABSENT}
                and a.feature_value_id between (select min(feature_value_id) from features)
                                           and (select max(feature_value_id) from features)
        ),
        per_patient as (
            select {keys}, time_bin, grouping(time_bin) as all_time, patient, count(*) filter (is_first) as n,
                sum(units) as s, sum(slope_units) as slopes
            from entries join cohort_margins using (cohort)
            group by grouping sets ((patient, {keys}, time_bin), (patient, {keys}))
        ),
        summed as (
            select {keys}, time_bin, sum(n)::bigint as n_places, count(*)::bigint as n_patients,
                sum(s)::bigint as sum, coalesce(sum(slopes), 0)::bigint as sum_gradient
            from per_patient where all_time = 1 or time_bin is not null group by {keys}, time_bin
        )
        select target, split, class, stratum, feature_value_id, stream, '{axis.name}' as time_axis, time_bin::integer as time_bin,
            n_places, n_patients, sum, sum_gradient
        from summed join margins using (margin)
        order by feature_value_id, stream, target, split, class, stratum, time_bin nulls last"""
    ).to_arrow_table()
    db.unregister("features")
    return table.select(PLACE_SUMS.names).cast(PLACE_SUMS)
