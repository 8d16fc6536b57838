"""The cells of a run by one DuckDB alone: a GROUP BY of patients within cells, and one of cells. The oracle in tests.

It says what the cells are in as few words as SQL has for it, of one axis, for feature values and their codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

#: Sums over patients, in units; s, n: a patient's sum and count, risk: its predictions at risk.
SUMS = """sum(n)::bigint as n_events, count(*) as n_patients, sum(s)::bigint as sum, sum(s_abs)::bigint as sum_abs, sum(s_sq) as sum_sq,
    sum(s * s) as s_ss, sum(s * n) as s_sn, sum(n * n)::bigint as s_nn, sum(s * risk) as "s_s_N",
    0::bigint as n_beyond, sum(s * s * s) as s_sss, sum(s * s * n) as s_ssn, sum(s * n * n) as s_snn, sum(n * n * n) as s_nnn,
    sum(n_slopes)::bigint as n_slopes, coalesce(sum(slopes), 0)::bigint as sum_gradient"""


def list_of(files: Sequence[Path]) -> str:
    return "[" + ", ".join(f"'{file}'" for file in files) + "]"


def cells_by_duckdb(
    db: duckdb.DuckDBPyConnection,
    rows: Sequence[Path],
    predictions: Sequence[Path],
    features: pa.Table,
    width_hours: int,
    n_bins: int,
) -> None:
    """Table `cells_found`: level, code, feature_value_id, target, split, class, stratum, time_bin, and `SUMS`.

    Args:
        features: feature_value_id, code, parents.
    """
    db.register("features", features)
    # least() would skip a null.
    bins = f"case when minutes is not null then least(minutes // {60 * width_hours}, {n_bins - 1}) end"
    db.execute(
        f"""create or replace temp table of_predictions as
        select prediction_id, subject_id, target, split, unnest([label, 'all']) as class, stratum, history_minutes
        from (select *, unnest(['all'] || list_transform(map_entries(strata), lambda e: e.key || '=' || e.value)
            || ['predicted=' || predicted, 'correct=' || case when predicted = label then 'yes' else 'no' end]) as stratum
            from read_parquet({list_of(predictions)}))"""
    )
    db.execute(
        f"""create or replace temp table at_risk as
        select subject_id, target, split, class, stratum, time_bin, count(*) as risk
        from (select *, unnest([null] || range(case when history_minutes is null then 0
            else {bins.replace("minutes", "history_minutes")} + 1 end)) as time_bin from of_predictions)
        group by all"""
    )
    db.execute(
        f"""create or replace temp table cells_found as
        with entries as (
            select p.*, f.code, f.parents, a.feature_value_id, {bins} as time_bin, (a.attribution::double * 16777216)::bigint as units,
                (a.slope::double * 16777216)::bigint as slope
            from read_parquet({list_of(rows)}) a join features f using (feature_value_id)
            join of_predictions p using (prediction_id)
        ),
        levels as (
            select 'value' as level, * exclude (parents) from entries union all
            select 'group', * exclude (parents) replace (null as feature_value_id, unnest(parents) as code) from entries
        ),
        patients as (
            select case grouping(feature_value_id) when 1 then 'code' else level end as level, code, feature_value_id,
                subject_id, target, split, class, stratum, time_bin, grouping(time_bin) as all_time,
                sum(units)::hugeint as s, count(*)::hugeint as n, sum(abs(units)) as s_abs, sum(units::hugeint * units) as s_sq,
                sum(slope) as slopes, count(slope) as n_slopes
            from levels
            group by grouping sets (
                (level, code, feature_value_id, subject_id, target, split, class, stratum, time_bin),
                (level, code, feature_value_id, subject_id, target, split, class, stratum),
                (level, code, subject_id, target, split, class, stratum, time_bin),
                (level, code, subject_id, target, split, class, stratum))
        )
        select level, code, feature_value_id, target, split, class, stratum, p.time_bin, {SUMS}
        from patients p join at_risk r using (subject_id, target, split, class, stratum)
        where r.time_bin is not distinct from p.time_bin and (all_time = 1 or p.time_bin is not null)
            -- The codes of values; a group has no values, so its two kinds of sets are the same.
            and not (level = 'code' and code in (select unnest(parents) from features))
        group by all"""
    )
