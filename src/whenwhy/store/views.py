"""The views and macros of a store: attributions as people see them, cells of any cohort, estimates and comparisons."""

from __future__ import annotations

from typing import Final

import duckdb

from whenwhy.statistics.cohorts import ALL
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.cohort_sql import CELLS_OF_A_COHORT, PREDICTIONS_OF_A_COHORT, RISK_OF_A_COHORT, TWO_COHORTS, text_of
from whenwhy.store.distributions import define_distributions

#: No interval where fewer patients than this, in effect, stand behind a mean.
FEWEST_EFFECTIVE_PATIENTS: Final = 30

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
    """The view estimates (of ready cells) and macros of any cohort are there: cells_for, estimates_for, risk_for, comparison_for.

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
    db.execute(
        """create macro welch_degrees(one_variance, other_variance, one_degrees, other_degrees) as (
            pow(one_variance + other_variance, 2)
                / (pow(one_variance, 2) / one_degrees + pow(other_variance, 2) / other_degrees))"""
    )
    # The largest probability of a difference so far from 0, while the true one is at most `least`.
    db.execute(
        """create macro p_of_difference(difference, error, degrees, least_effect) as (
            student_t_tail((abs(difference) - least_effect) / error, degrees)
            + student_t_tail((abs(difference) + least_effect) / error, degrees))"""
    )
    # Hall's transformation of a quantile (Annals of Statistics 20, 1992), by sum(u^3) / sum(u^2)^1.5.
    db.execute(
        """create macro without_skewness(quantile, skewness) as (case when abs(skewness) < 1e-6 then quantile
            else 3 / skewness * (cbrt(1 + skewness * (quantile - skewness / 6)) - 1) end)"""
    )
    db.execute(FEATURE_NAMES_VIEW)
    db.execute(f"create view estimates as {_estimated(_READY)}")
    _define_cells(db, with_rows)
    _define_risk(db, with_rows)
    _define_comparison(db, with_rows)
    _define_disagreement(db)
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
        c.sum_abs / c.n_at_risk as mean_abs_per_prediction,
        c.s_nn_at_risk / c.n_at_risk as usual_n_at_risk
    from ({cells}) c
    left join feature_names n on n.run_id = c.run_id and n.level = c.level and n.code = c.code
        and n.feature_value_id is not distinct from c.feature_value_id
),
left_over as (
    select *,
        greatest(0, s_ss - 2 * mean_per_event * s_sn + mean_per_event * mean_per_event * s_nn) as u_squares,
        greatest(0, s_ssn - 2 * mean_per_event * s_snn + mean_per_event * mean_per_event * s_nnn) as u_squares_by_n,
        s_sss - 3 * mean_per_event * s_ssn + 3 * pow(mean_per_event, 2) * s_snn - pow(mean_per_event, 3) * s_nnn as u_cubes,
        greatest(0, s_ss - 2 * mean_per_prediction * "s_s_N" + mean_per_prediction * mean_per_prediction * s_nn_at_risk)
            as v_squares,
        s_sss - usual_n_at_risk * (3 * mean_per_prediction * s_ss - 3 * pow(mean_per_prediction, 2) * "s_s_N"
            + pow(mean_per_prediction, 3) * s_nn_at_risk) as v_cubes
    from means
),
variances as (
    select *,
        case when n_patients > 1 then coalesce(u_squares + 2 * u_squares_by_n / n_events, u_squares * n_patients / (n_patients - 1))
            / (n_events::double * n_events) end as variance_per_event,
        u_cubes / nullif(pow(u_squares, 1.5), 0) as skewness_per_event,
        v_squares / (n_at_risk::double * n_at_risk) * n_patients_at_risk / nullif(n_patients_at_risk - 1, 0)
            as variance_per_prediction,
        v_cubes / nullif(pow(v_squares, 1.5), 0) as skewness_per_prediction,
        case when effective_patients >= {FEWEST_EFFECTIVE_PATIENTS} then student_t_975(degrees_of_freedom) end as t
    from left_over
)
select * exclude (t, s_nn_at_risk, usual_n_at_risk, u_squares, u_squares_by_n, u_cubes, v_squares, v_cubes),
    mean_per_event - sqrt(variance_per_event) * greatest(t, without_skewness(t, skewness_per_event)) as mean_per_event_low,
    mean_per_event - sqrt(variance_per_event) * least(-t, without_skewness(-t, skewness_per_event)) as mean_per_event_high,
    mean_per_prediction - sqrt(variance_per_prediction) * greatest(t, without_skewness(t, skewness_per_prediction))
        as mean_per_prediction_low,
    mean_per_prediction - sqrt(variance_per_prediction) * least(-t, without_skewness(-t, skewness_per_prediction))
        as mean_per_prediction_high
from variances
"""


def _computed(db: duckdb.DuckDBPyConnection, name: str, arguments: str, template: str, with_rows: bool) -> str:
    """The SQL of a table worked out from rows, or of a complaint."""
    if not with_rows:
        return (
            "(select * from no_rows where error('A cohort of one''s own needs rows.duckdb, for analysts: ask for one of the "
            "cohorts that are ready'))"
        )
    db.execute(f"create macro {name}({arguments}) as {text_of(template)}")
    return f"query({name}({arguments}))"


def _define_cells(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    arguments = "run, level, feature, axis, dated, split, class, stratum, cohort"
    ready = f"""select * from ({_READY}) c
        where cohort is null and c.run_id = {_RUN} and c.level = level and (feature is null or c.code = feature)
            and c.time_axis = axis and (c.time_bin is not null) = dated and c.split = split and c.class = class
            and c.stratum = stratum"""
    computed = _computed(db, "cohort_cells", arguments, CELLS_OF_A_COHORT, with_rows).replace("no_rows", f"({_READY})")
    db.execute(
        f"""create macro cells_for({arguments}) as table
        {ready} union all by name select * from {computed} where cohort is not null"""
    )
    db.execute(
        f"""create macro estimates_for({arguments}) as table
        {_estimated(f"select * from cells_for({arguments})")}"""
    )
    # Of all time, with the place of each by its mean absolute contribution.
    db.execute(
        f"""create macro ranked_for(run, level, split, class, stratum, min_patients) as table
        select e.*, row_number() over (order by e.mean_abs_per_prediction desc, e.code, e.feature_value_id) as place
        from estimates_for(run, level, null, '{BEFORE_PREDICTION}', false, split, class, stratum, null) e
        where e.n_patients >= min_patients::integer"""
    )


def _define_risk(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    columns = "time_bin, low_hours, high_hours, n_patients, n_predictions"
    arguments = "run, axis, dated, split, class, stratum, cohort"
    computed = _computed(db, "cohort_risk", arguments, RISK_OF_A_COHORT, with_rows).replace("no_rows", "exposure")
    db.execute(
        f"""create macro risk_for({arguments}) as table
        select {columns} from exposure e
        where cohort is null and e.run_id = {_RUN} and e.time_axis = axis and (e.time_bin is not null) = dated
            and e.split = split and e.class = class and e.stratum = stratum
        union all select {columns} from {computed} where cohort is not null"""
    )


def _define_shares_patients(db: duckdb.DuckDBPyConnection) -> None:
    """shares_patients: whether somebody may be in both of two cohorts; where classes or strata exclude one another, nobody is."""

    def apart(one: str, other: str, kind: str) -> str:
        return f"""({one} <> {other} and '{ALL}' not in ({one}, {other}) and not coalesce((select any_value(k.patients_recur)
            from partitions k where k.run_id = coalesce(of_run::varchar, (select min(r.run_id) from runs r))
            and k.split = of_split and k.kind = {kind}), true))"""

    of_stratum = apart("one_stratum", "other_stratum", "split_part(one_stratum, '=', 1)")
    db.execute(
        f"""create macro shares_patients(of_run, of_split, one_class, other_class, one_stratum, other_stratum) as (
            not ({apart("one_class", "other_class", "'class'")}
                or (split_part(one_stratum, '=', 1) = split_part(other_stratum, '=', 1) and {of_stratum})))"""
    )


def _define_comparison(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    """comparison_for: two cohorts, feature by feature, with the difference of their means per prediction at risk.

    Its variance is the sum of both where no patient is in both cohorts; otherwise less twice the covariance, which rows
    tell; and without rows no more than the square of the sum of both standard errors (Cauchy and Schwarz).
    The p value is the largest under which the true difference is at most minimum_effect, and the q value is its smallest
    false discovery rate (Benjamini and Hochberg 1995) among the features that both cohorts have enough patients of.
    """
    _define_shares_patients(db)
    sides = "class_a, class_b, stratum_a, stratum_b, cohort_a, cohort_b"
    ready = f"""select a.run_id, a.code, a.feature_value_id, a.n_patients as n_patients_a, b.n_patients as n_patients_b,
        a.effective_patients as effective_a, b.effective_patients as effective_b,
        a.degrees_of_freedom as degrees_a, b.degrees_of_freedom as degrees_b,
        a.mean_per_prediction as mean_a, b.mean_per_prediction as mean_b,
        a.variance_per_prediction as variance_a, b.variance_per_prediction as variance_b,
        case when {{shared}} then -sqrt(a.variance_per_prediction) * sqrt(b.variance_per_prediction) else 0 end as covariance,
        case when {{shared}} then 'at least' else 'separate patients' end as interval_of
    from estimates_for(run, level, null, '{BEFORE_PREDICTION}', false, split, class_a, stratum_a, null) a
    join estimates_for(run, level, null, '{BEFORE_PREDICTION}', false, split, class_b, stratum_b, null) b
        on b.code = a.code and b.feature_value_id is not distinct from a.feature_value_id"""
    shared = "shares_patients(run, split, class_a, class_b, stratum_a, stratum_b)"
    if with_rows:
        arguments = f"run, level, feature, split, {sides}, wanted"
        db.execute(f"create macro two_cohorts({arguments}) as {text_of(TWO_COHORTS)}")
        db.execute(
            f"""create macro either_cohorts(run, level, split, {sides}) as table
            select * from ({ready.format(shared="false")}) where cohort_a is null and cohort_b is null and not {shared}
            union all by name
            select *, 'shared patients' as interval_of from query(two_cohorts(run, level, null, split, {sides},
                case when cohort_a is null and cohort_b is null
                    then 'shares_patients(' || quoted(run::varchar) || ', ' || quoted(split) || ', ' || quoted(class_a) || ', '
                        || quoted(class_b) || ', ' || quoted(stratum_a) || ', ' || quoted(stratum_b) || ')' else 'true' end))"""
        )
    else:
        complaint = (
            "error('A cohort of one''s own needs rows.duckdb, for analysts: ask for one of the cohorts that are ready')"
        )
        db.execute(
            f"""create macro either_cohorts(run, level, split, {sides}) as table
            select * from ({ready.format(shared=shared)}) where case when cohort_a is null and cohort_b is null then true else {complaint} end"""
        )
    db.execute(
        f"""create macro comparison_for(run, level, split, {sides}, min_patients, minimum_effect) as table
        {_compared(f"either_cohorts(run, level, split, {sides})")}"""
    )


#: The false discovery rate of a row and those with no larger p_value: Benjamini and Hochberg 1995. Of a table `tested`.
_Q_VALUE: Final = """select p.* exclude (place), case when p.p_value is not null
        then min(p.p_value * p.n_tested / p.place) over (order by p.p_value desc range unbounded preceding) end as q_value
    from (
        select t.*, count(t.p_value) over () as n_tested,
            count(t.p_value) over (order by t.p_value range unbounded preceding) as place
        from tested t
    ) p"""


def _compared(cohorts: str) -> str:
    return f"""
with pairs as (
    select c.*, c.mean_a - c.mean_b as difference, c.variance_a + c.variance_b - 2 * c.covariance as variance,
        least(c.effective_a, c.effective_b) as effective
    from {cohorts} c where c.n_patients_a >= min_patients::integer and c.n_patients_b >= min_patients::integer
),
errors as (
    select p.*, case when p.effective >= {FEWEST_EFFECTIVE_PATIENTS} and p.variance > 0 then sqrt(p.variance) end as error,
        case when p.interval_of = 'separate patients' then welch_degrees(p.variance_a, p.variance_b, p.degrees_a, p.degrees_b)
            else least(p.degrees_a, p.degrees_b) end as degrees
    from pairs p
),
tested as (
    select e.* exclude (effective, degrees_a, degrees_b, variance, covariance, error, degrees),
        e.difference - student_t_975(e.degrees) * e.error as difference_low,
        e.difference + student_t_975(e.degrees) * e.error as difference_high,
        p_of_difference(e.difference, e.error, e.degrees, minimum_effect::double) as p_value
    from errors e
)
select q.*, n.description
from ({_Q_VALUE}) q
left join feature_names n on n.run_id = q.run_id and n.level = level and n.code = q.code
    and n.feature_value_id is not distinct from q.feature_value_id
"""


def _define_disagreement(db: duckdb.DuckDBPyConnection) -> None:
    """disagreement_for: the two strata of a kind between which a feature's mean per prediction differs most surely.

    The p value is that of the pair, times the number of pairs (Bonferroni); where patients recur in several strata, the
    variance is its largest possible. The q value is over all features.
    """
    db.execute(
        f"""create macro disagreement_for(run, level, split, class, subgroups, min_patients) as table
        with side as (
            select e.*, e.effective_patients as effective, e.variance_per_prediction as variance, e.degrees_of_freedom as degrees
            from estimates e where e.run_id = {_RUN} and e.level = level and e.split = split and e.class = class
                and split_part(e.stratum, '=', 1) = subgroups and e.time_axis = '{BEFORE_PREDICTION}' and e.time_bin is null
                and e.n_patients >= min_patients::integer
        ),
        signs as (
            select s.code, s.feature_value_id, count(*) as n_subgroups,
                coalesce(bool_or(s.mean_per_prediction_high < 0) and bool_or(s.mean_per_prediction_low > 0), false) as signs_differ
            from side s group by all
        ),
        pairs as (
            select a.run_id, a.code, a.feature_value_id, a.stratum as stratum_a, b.stratum as stratum_b,
                a.n_patients as n_patients_a, b.n_patients as n_patients_b,
                a.mean_per_prediction as mean_a, b.mean_per_prediction as mean_b,
                a.mean_per_prediction - b.mean_per_prediction as difference,
                case when least(a.effective, b.effective) >= {FEWEST_EFFECTIVE_PATIENTS} then nullif(
                    case when shares_patients(run, split, class, class, a.stratum, b.stratum)
                        then sqrt(a.variance) + sqrt(b.variance) else sqrt(a.variance + b.variance) end, 0) end as error,
                case when shares_patients(run, split, class, class, a.stratum, b.stratum)
                    then least(a.degrees, b.degrees)
                    else welch_degrees(a.variance, b.variance, a.degrees, b.degrees) end as degrees
            from side a join side b
                on b.code = a.code and b.feature_value_id is not distinct from a.feature_value_id and b.stratum > a.stratum
        ),
        surest as (
            select p.*, p_of_difference(p.difference, p.error, p.degrees, 0) as p_of_pair,
                count(p.error) over (partition by p.code, p.feature_value_id) as n_pairs
            from pairs p
            qualify row_number() over (partition by p.code, p.feature_value_id
                order by p_of_pair nulls last, abs(p.difference) desc, p.stratum_a, p.stratum_b) = 1
        ),
        tested as (
            select s.* exclude (error, degrees, p_of_pair, n_pairs), g.n_subgroups, g.signs_differ,
                case when s.p_of_pair * s.n_pairs > 1 then 1 else s.p_of_pair * s.n_pairs end as p_value
            from surest s join signs g on g.code = s.code and g.feature_value_id is not distinct from s.feature_value_id
        )
        select q.*, n.description
        from ({_Q_VALUE}) q
        left join feature_names n on n.run_id = q.run_id and n.level = level and n.code = q.code
            and n.feature_value_id is not distinct from q.feature_value_id"""
    )
