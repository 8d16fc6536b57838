"""A range of features over all shards flows in; its finished cells flow out of one DuckDB.

A cell's patients and errors do not add up over bins, values or codes, so the margins that people ask for
are rows of their own, from grouping sets: value and code (or code group), bin and all time, each class
and all, each stratum and all.

All sums are of integers (attributions lie on a grid), so they are exact in any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import duckdb
import pyarrow as pa

from whenwhy.schema import ATTRIBUTION_UNITS, CELLS, EXPOSURE
from whenwhy.statistics.time_axis import TimeAxis

ALL = "all"


def list_of(files: Sequence[Path]) -> str:
    """A SQL list of file names."""
    return "[" + ", ".join("'" + str(file).replace("'", "''") + "'" for file in files) + "]"


def time_bin_of(minutes: str, axis: TimeAxis) -> str:
    """The SQL of a column's time bin; null where the column is (SQL's least would skip a null)."""
    return f"(case when {minutes} is not null then least({minutes} // {60 * axis.width_hours}, {axis.n_bins - 1}) end)::integer"


def define_predictions(db: duckdb.DuckDBPyConnection, files: Sequence[Path], axis: TimeAxis) -> None:
    """Table predictions: (prediction_id, subject_id, target, split, class, strata varchar[], history_bin)."""
    db.execute(
        f"""create table predictions as
        select prediction_id, subject_id, target, split, label as class,
            ['{ALL}'] || list_transform(map_entries(strata), lambda e: e.key || '=' || e.value) as strata,
            {time_bin_of("history_minutes", axis)} as history_bin
        from read_parquet({list_of(files)})"""
    )


def define_at_risk(db: duckdb.DuckDBPyConnection, axis: TimeAxis) -> None:
    """Table at_risk: a patient's predictions whose history reaches back to each bin; the last entry: all of them."""
    db.execute(
        f"""create table at_risk as
        with margins as (
            select subject_id, target, split, case grouping(class) when 1 then '{ALL}' else class end as class, stratum,
                list(history_bin) as bins, count(*) as all_time
            from (select subject_id, target, split, class, unnest(strata) as stratum, history_bin from predictions)
            group by grouping sets ((subject_id, target, split, class, stratum), (subject_id, target, split, stratum))
        )
        select * exclude (bins, all_time),
            list_transform(range({axis.n_bins}), lambda b: len(list_filter(bins, lambda h: h >= b))) || [all_time] as counts
        from margins"""
    )


def exposure_table(db: duckdb.DuckDBPyConnection, run_id: str, axis: TimeAxis) -> pa.Table:
    """`schema.EXPOSURE` from at_risk: who was under observation in each bin."""
    table = db.sql(
        f"""with long as (
            select target, split, class, stratum, unnest(range({axis.n_bins + 1}))::integer as bin, unnest(counts) as n
            from at_risk
        )
        select target, split, class, stratum,
            case when bin < {axis.n_bins} then bin end as time_bin,
            sum(n)::bigint as n_predictions, count(*)::bigint as n_patients, sum(n * n)::double as "s_NN"
        from long where n > 0
        group by all order by target, split, class, stratum, time_bin nulls last"""
    ).to_arrow_table()
    return completed(table, EXPOSURE, run_id, axis)


def cells_table(
    db: duckdb.DuckDBPyConnection, files: Sequence[Path], features: pa.Table, level: str, run_id: str, axis: TimeAxis
) -> pa.Table:
    """`schema.CELLS` of some features; `predictions` and `at_risk` are there.

    Args:
        files: attribution shards.
        features: columns feature_value_id, code: which rows belong to which code (or group).
        level: "code" gives the levels value and code, "group" the level group.
    """
    db.register("features", features)
    db.execute(
        f"""create or replace temp table entries as
        select p.target, p.split, p.class, p.subject_id, p.strata, f.code, a.feature_value_id,
            {time_bin_of("a.minutes", axis)} as time_bin,
            (a.attribution::double * {ATTRIBUTION_UNITS})::bigint as units,
            (a.slope::double * {ATTRIBUTION_UNITS})::bigint as slope_units
        from read_parquet({list_of(files)}) a
        join features f using (feature_value_id) join predictions p using (prediction_id)
        where a.feature_value_id between (select min(feature_value_id) from features)
                                     and (select max(feature_value_id) from features)"""
    )
    of_features = ["code, feature_value_id", "code"] if level == "code" else ["code"]
    margins = [
        [feature, *time, *of_class]
        for feature in of_features
        for time in (["time_bin"], [])
        for of_class in (["class"], [])
    ]
    name_margins = f"""case grouping(feature_value_id) when 0 then 'value' else '{level}' end as level,
        code, feature_value_id, target, split, stratum,
        case grouping(class) when 1 then '{ALL}' else class end as class,
        grouping(time_bin) as all_time, time_bin"""
    if level == "group":
        name_margins = name_margins.replace(
            "case grouping(feature_value_id) when 0 then 'value' else 'group' end", "'group'"
        ).replace("code, feature_value_id,", "code, null::integer as feature_value_id,")

    def sets(*more: str) -> str:
        return ", ".join("(" + ", ".join([*more, "target", "split", "stratum", *margin]) + ")" for margin in margins)

    unit = float(ATTRIBUTION_UNITS)
    keys = "level, code, feature_value_id, target, split, stratum, class, time_bin"
    table = db.sql(
        f"""with per_patient as (
            select {name_margins}, subject_id,
                sum(units) as s, count(*)::hugeint as n, sum(abs(units)) as s_abs, sum(units::hugeint * units) as s_sq,
                sum(slope_units) as slopes
            from (select *, unnest(strata) as stratum from entries)
            group by grouping sets ({sets("subject_id")})
        ),
        with_risk as (
            select p.*, r.counts[case when p.all_time = 1 then {axis.n_bins + 1} else p.time_bin + 1 end]::hugeint as risk
            from per_patient p join at_risk r using (subject_id, target, split, class, stratum)
            where p.all_time = 1 or p.time_bin is not null
        ),
        sums as (
            select {keys}, sum(n)::bigint as n_events, count(*)::bigint as n_patients,
                sum(s)::double / {unit} as sum, sum(s_abs)::double / {unit} as sum_abs,
                sum(s_sq)::double / {unit**2} as sum_sq,
                sum(s * s)::double / {unit**2} as s_ss, sum(s * n)::double / {unit} as s_sn, sum(n * n)::double as s_nn,
                sum(s * risk)::double / {unit} as "s_s_N",
                sum(s * s * s)::double / {unit**3} as s_sss, sum(s * s * n)::double / {unit**2} as s_ssn,
                sum(s * n * n)::double / {unit} as s_snn, sum(n * n * n)::double as s_nnn,
                sum(slopes)::double / {unit} as sum_gradient
            from with_risk group by all
        ),
        histograms as (
            select {keys}, histogram(power) as histogram from (
                select {name_margins}, unnest(list(signed_power)) as power
                from (select *, '{ALL}' as stratum, {SIGNED_POWER} as signed_power from entries)
                group by grouping sets ({sets()})
            ) where all_time = 1 or time_bin is not null group by all
        )
        select s.*, h.histogram from sums s left join histograms h
            on s.level = h.level and s.code = h.code and s.feature_value_id is not distinct from h.feature_value_id
            and s.target = h.target and s.split = h.split and s.stratum = h.stratum and s.class = h.class
            and s.time_bin is not distinct from h.time_bin
        order by s.code, s.level, s.feature_value_id nulls last, s.target, s.split, s.class, s.stratum, s.time_bin nulls last"""
    ).to_arrow_table()
    db.unregister("features")
    return completed(table, CELLS, run_id, axis)


#: A contribution's place in the histogram: 0, or the sign times (25 + floor(log2 |contribution|)), at most 64 in size.
#: Fixed edges, so that histograms merge by addition.
SIGNED_POWER = "(sign(units) * least(64, case when units = 0 then 0 else 1 + floor(log2(abs(units))) end))::tinyint"


def completed(table: pa.Table, schema: pa.Schema, run_id: str, axis: TimeAxis) -> pa.Table:
    """The table with run, axis and the bins' bounds; columns that nothing fills are null."""
    bins = table["time_bin"].to_pylist()
    bounds = [(None, None) if time_bin is None else axis.bounds(time_bin) for time_bin in bins]
    told = {
        "run_id": pa.array([run_id] * table.num_rows, pa.string()),
        "time_axis": pa.array([axis.name] * table.num_rows, pa.string()),
        "low_hours": pa.array([low for low, _ in bounds], pa.float64()),
        "high_hours": pa.array([high for _, high in bounds], pa.float64()),
    }
    columns = [
        told[field.name]
        if field.name in told
        else (table[field.name] if field.name in table.column_names else pa.nulls(table.num_rows, field.type))
        for field in schema
    ]
    return pa.table(columns, names=schema.names).cast(schema)
