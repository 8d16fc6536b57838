"""The views and macros of a store: attributions as people see them, cells of any cohort, and estimates."""

from __future__ import annotations

from typing import Final

import duckdb

from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.cohort_sql import CELLS_OF_A_COHORT, NO_ROWS, PREDICTIONS_OF_A_COHORT, RISK_OF_A_COHORT, text_of
from whenwhy.store.comparisons import define_comparisons
from whenwhy.store.distributions import FEWEST_EFFECTIVE_PATIENTS, define_distributions

#: The compact rows with patient, times in hours, and target. One patient is what people ask of it: DuckDB passes over
#: the row groups of other predictions, so it reads the order in which a patient lies together.
ATTRIBUTIONS_VIEW: Final = """
create view attributions as
select r.run_id, p.subject_id, p.prediction_time, p.target, r.step,
    p.prediction_time - to_minutes(r.minutes) as time, r.minutes / 60.0::double as hours_before,
    r.feature_value_id, r.numeric_value, r.attribution, r.spread
from rows_by_prediction r join predictions p using (run_id, prediction_id)
"""

#: What a feature of any level is called.
FEATURE_NAMES_VIEW: Final = """
create view feature_names as
select run_id, 'value' as level, code, feature_value_id, description, unit, bin, low, high from feature_values
union all
select run_id, 'code', code, null, min(description), min(unit), null, null, null from feature_values group by all
union all
select run_id, 'group', code, null, min(description), null, null, null, null from code_groups group by all
"""

#: The run that is meant where none is named.
_RUN: Final = "coalesce(run::varchar, (select min(run_id) from runs))"


def define_estimates(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    """The view estimates (of ready cells) and macros of any cohort are there: cells_for, estimates_for and the like.

    Args:
        with_rows: the database has rows, of which cells are made for a cohort that has none.
    """
    define_distributions(db)
    db.execute("create macro quoted(said) as coalesce('''' || replace(said, '''', '''''') || '''', 'null')")
    # Of sum / count, by linearisation: ss, sn, nn are sums over patients of squares and products of both.
    db.execute(
        """create macro variance_of_ratio(ratio, ss, sn, nn, count, patients) as (
            greatest(0, ss - 2 * ratio * sn + ratio * ratio * nn) / (count::double * count)
            * patients / nullif(patients - 1, 0))"""
    )
    # Of what is left of s, with N as if it were the same for all.
    db.execute(
        """create macro skewness_of_ratio(ratio, ss, sn, nn, sss, count) as (
            (sss - nn / count * (3 * ratio * ss - 3 * ratio * ratio * sn + ratio * ratio * ratio * nn))
            / nullif(pow(greatest(0, ss - 2 * ratio * sn + ratio * ratio * nn), 1.5), 0))"""
    )
    db.execute(f"create macro has_rows() as {'true' if with_rows else 'false'}")
    db.execute(FEATURE_NAMES_VIEW)
    db.execute(f"create view estimates as {_estimated(_READY)}")
    _define_cells(db, with_rows)
    _define_risk(db, with_rows)
    define_comparisons(db, with_rows, _RUN)
    if with_rows:
        arguments = "run, split, class, stratum, cohort"
        db.execute(f"create macro cohort_predictions({arguments}) as {text_of(PREDICTIONS_OF_A_COHORT)}")
        db.execute(
            f"create macro predictions_for({arguments}) as table select * from query(cohort_predictions({arguments}))"
        )


#: Cells that are ready, beside who is at risk in them.
_READY: Final = """select c.* exclude (histogram, sum_gradient), e.n_predictions as n_at_risk, e.n_patients as n_patients_at_risk,
        e."s_NN" as s_nn_at_risk
    from cells c
    left join exposure e on e.run_id = c.run_id and e.target = c.target and e.split = c.split and e.class = c.class
        and e.stratum = c.stratum and e.time_axis = c.time_axis and e.time_bin is not distinct from c.time_bin"""


def _estimated(cells: str) -> str:
    """Cells with their two means, each with a 95 % interval over patients.

    s, n: a patient's sum and count in the cell, N its predictions at risk; u = s - m n, v = s - mu N what is left of s.

    - Per event: m = sum / n. Its variance is sum(u^2 (1 + 2 n_p / n)) / n^2: a patient of many events draws the mean to
      itself, and what is left of its sum is too small (MacKinnon and White's HC3, 1985, for patients, to first order).
    - Per prediction at risk: mu = sum / N, variance sum(v^2) / N^2 * P_R / (P_R - 1).

    t with n S_nn / S_nnn - 1 degrees of freedom: the geometric mean of the effective numbers of patients behind a mean
    (n^2 / S_nn) and behind its variance (S_nn^3 / S_nnn^2). Hall (1992) corrects the interval of a mean for skewness,
    which few patients hardly tell; so each bound is the farther one, with his correction or without. Of predictions the
    skewness is that with N as if the same for all. No interval below 30 effective patients.
    """
    return f"""
with means as (
    select c.*, n.description, n.unit, n.bin, n.low, n.high,
        c.n_events::double * c.n_events / c.s_nn as effective_patients,
        coalesce(c.n_events * c.s_nn / c.s_nnn, c.n_events::double * c.n_events / c.s_nn) - 1 as degrees_of_freedom,
        c.sum / c.n_events as mean_per_event,
        c.sum / c.n_at_risk as mean_per_prediction,
        c.sum_abs / c.n_at_risk as mean_abs_per_prediction
    from ({cells}) c
    left join feature_names n on n.run_id = c.run_id and n.level = c.level and n.code = c.code
        and n.feature_value_id is not distinct from c.feature_value_id
),
left_over as (
    select *,
        greatest(0, s_ss - 2 * mean_per_event * s_sn + mean_per_event * mean_per_event * s_nn) as u_squares,
        case when s_nnn is not null
            then greatest(0, s_ssn - 2 * mean_per_event * s_snn + mean_per_event * mean_per_event * s_nnn) end as u_squares_by_n,
        s_sss - 3 * mean_per_event * s_ssn + 3 * pow(mean_per_event, 2) * s_snn - pow(mean_per_event, 3) * s_nnn as u_cubes,
        skewness_of_ratio(mean_per_prediction, s_ss, "s_s_N", s_nn_at_risk, s_sss, n_at_risk) as skewness_per_prediction
    from means
),
variances as (
    select *,
        case when n_patients > 1 then coalesce(u_squares + 2 * u_squares_by_n / n_events, u_squares * n_patients / (n_patients - 1))
            / (n_events::double * n_events) end as variance_per_event,
        u_cubes / nullif(pow(u_squares, 1.5), 0) as skewness_per_event,
        variance_of_ratio(mean_per_prediction, s_ss, "s_s_N", s_nn_at_risk, n_at_risk, n_patients_at_risk)
            as variance_per_prediction,
        case when effective_patients >= {FEWEST_EFFECTIVE_PATIENTS} then student_t_975(degrees_of_freedom) end as t
    from left_over
)
select * exclude (t, s_nn_at_risk, u_squares, u_squares_by_n, u_cubes),
    lower_bound(mean_per_event, sqrt(variance_per_event), t, skewness_per_event) as mean_per_event_low,
    upper_bound(mean_per_event, sqrt(variance_per_event), t, skewness_per_event) as mean_per_event_high,
    lower_bound(mean_per_prediction, sqrt(variance_per_prediction), t, skewness_per_prediction) as mean_per_prediction_low,
    upper_bound(mean_per_prediction, sqrt(variance_per_prediction), t, skewness_per_prediction) as mean_per_prediction_high
from variances
"""


def _computed(
    db: duckdb.DuckDBPyConnection, name: str, arguments: str, template: str, with_rows: bool, like: str
) -> str:
    """The SQL of a table worked out from rows where a cohort is given, of nothing where none is, or of a complaint.

    Args:
        like: SQL of a table with the columns that it has.
    """
    if not with_rows:
        return f"(select * from ({like}) where {NO_ROWS})"
    db.execute(f"create macro {name}({arguments}) as {text_of(template)}")
    # Planning takes longer than reading, so what is not asked for is not planned.
    return f"query(case when cohort is null then {_nothing_like(db, like)} else {name}({arguments}) end)"


def _nothing_like(db: duckdb.DuckDBPyConnection, like: str) -> str:
    """The SQL of the text of SQL of no rows with the columns of a table."""
    columns = db.execute(f"describe {like}").fetchall()
    nulls = ", ".join(f'null::{kind} as "{name}"' for name, kind, *_ in columns)
    return "'" + f"select {nulls} where false".replace("'", "''") + "'"


def _define_cells(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    arguments = "run, level, feature, axis, dated, split, class, stratum, cohort"
    where = f"cohort is null and c.run_id = {_RUN} and c.time_axis = axis and c.split = split and c.class = class and c.stratum = stratum"
    ready = f"""select * from ({_READY}) c
        where {where} and c.level = level and (feature is null or c.code = feature)
            and case when dated then c.time_bin is not null else c.time_bin is null end"""
    computed = _computed(db, "cohort_cells", arguments, CELLS_OF_A_COHORT, with_rows, _READY)
    db.execute(
        f"""create macro cells_for({arguments}) as table
        {ready} union all by name select * from {computed} where cohort is not null"""
    )
    db.execute(
        f"""create macro estimates_for({arguments}) as table
        {_estimated(f"select * from cells_for({arguments})")}"""
    )
    _define_feature(db, where, with_rows)
    # Of all time, with the place of each by its mean absolute contribution.
    db.execute(
        f"""create macro ranked_for(run, level, split, class, stratum, min_patients) as table
        select e.*, row_number() over (order by e.mean_abs_per_prediction desc, e.code, e.feature_value_id) as place
        from estimates_for(run, level, null, '{BEFORE_PREDICTION}', false, split, class, stratum, null) e
        where e.n_patients >= min_patients::integer"""
    )


def _define_feature(db: duckdb.DuckDBPyConnection, where: str, with_rows: bool) -> None:
    """estimates_of: one feature at once, as a whole and by range of values, in each bin of time and for all time."""
    arguments = "run, feature, axis, split, class, stratum, cohort"
    computed = f"(select * from ({_READY}) where {NO_ROWS})"
    if with_rows:
        each = " || ' union all by name ' || ".join(
            f"'(' || cohort_cells(run, '{level}', feature, axis, {dated}, split, class, stratum, cohort) || ')'"
            for level in ("code", "value")
            for dated in ("true", "false")
        )
        computed = f"query(case when cohort is null then {_nothing_like(db, _READY)} else {each} end)"
    cells = f"""select * from ({_READY}) c where {where} and c.level in ('code', 'value') and c.code = feature
        union all by name select * from {computed} where cohort is not null"""
    db.execute(f"create macro estimates_of({arguments}) as table {_estimated(cells)}")


def _define_risk(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    columns = "time_bin, low_hours, high_hours, n_patients, n_predictions"
    arguments = "run, axis, dated, split, class, stratum, cohort"
    computed = _computed(db, "cohort_risk", arguments, RISK_OF_A_COHORT, with_rows, f"select {columns} from exposure")
    db.execute(
        f"""create macro risk_for({arguments}) as table
        select {columns} from exposure e
        where cohort is null and e.run_id = {_RUN} and e.time_axis = axis and case when dated then e.time_bin is not null else e.time_bin is null end
            and e.split = split and e.class = class and e.stratum = stratum
        union all select {columns} from {computed} where cohort is not null"""
    )
