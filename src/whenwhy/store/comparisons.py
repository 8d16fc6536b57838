"""The macros that compare: two cohorts, or the strata of a kind, feature by feature, with false discovery controlled."""

from __future__ import annotations

from typing import Final

import duckdb

from whenwhy.statistics.cohorts import ALL
from whenwhy.statistics.time_axis import BEFORE_PREDICTION
from whenwhy.store.cohort_sql import NO_ROWS, TWO_COHORTS, text_of
from whenwhy.store.distributions import FEWEST_EFFECTIVE_PATIENTS

#: No test where fewer patients than this, in effect, stand behind a mean: below, intervals hold less than they say.
FEWEST_TESTED: Final = 60

#: A margin beside 0 that rounding may leave of a variance, as a part of what it is made of.
_ROUNDING: Final = 1e-12


def define_comparisons(db: duckdb.DuckDBPyConnection, with_rows: bool, run: str) -> None:
    """comparison_for and disagreement_for are there, and shares_patients, which they ask.

    Args:
        with_rows: the database has rows, which tell how patients who are in both cohorts vary.
        run: SQL of the run that is meant by the argument `run`.
    """
    _define_shares_patients(db)
    db.execute(
        """create macro welch_degrees(one_variance, other_variance, one_degrees, other_degrees) as (
            case when one_variance = 0 or one_degrees is null then other_degrees
                when other_variance = 0 or other_degrees is null then one_degrees
                else pow(one_variance + other_variance, 2)
                    / (pow(one_variance, 2) / one_degrees + pow(other_variance, 2) / other_degrees) end)"""
    )
    _define_comparison(db, with_rows)
    _define_disagreement(db, run)


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


# -- from a difference to its interval and its test -----------------------------------------------


def _judged(pairs: str, minimum_effect: str) -> str:
    """SQL of pairs with the difference's interval and p value.

    The pairs tell means, variances, degrees of freedom, skewness and effective patients of both sides, their covariance,
    and `patients_shared`. The p value is the largest under which the true difference is at most `minimum_effect`: of
    Student's t, with Hall's correction for skewness or without, whichever is larger.
    """
    return f"""
with differences as (
    select p.*, p.mean_a - p.mean_b as difference,
        case when p.variance_a + p.variance_b - 2 * p.covariance > {_ROUNDING} * (p.variance_a + p.variance_b)
            then p.variance_a + p.variance_b - 2 * p.covariance end as variance,
        -- A side on which nobody has the feature adds nothing to the error, and least() passes over it.
        least(p.effective_a, p.effective_b) as effective,
        case when p.patients_shared then least(p.degrees_a, p.degrees_b)
            else welch_degrees(p.variance_a, p.variance_b, p.degrees_a, p.degrees_b) end as degrees
    from ({pairs}) p
),
errors as (
    select d.*, case when d.effective >= {FEWEST_EFFECTIVE_PATIENTS} then sqrt(d.variance) end as error,
        (coalesce(d.skewness_a * pow(d.variance_a, 1.5), 0) - coalesce(d.skewness_b * pow(d.variance_b, 1.5), 0))
            / pow(d.variance, 1.5) as skewness
    from differences d
),
standardised as (
    select e.*, case when e.effective >= {FEWEST_TESTED} then (abs(e.difference) - {minimum_effect}) / e.error end as t_beyond,
        (abs(e.difference) + {minimum_effect}) / e.error as t_opposite, sign(e.difference) * e.skewness as skewed
    from errors e
)
select s.* exclude (effective, effective_a, effective_b, degrees, degrees_a, degrees_b, variance_a, variance_b, covariance,
        skewness_a, skewness_b, variance, error, skewness, t_beyond, t_opposite, skewed),
    lower_bound(s.difference, s.error, student_t_975(s.degrees), s.skewness) as difference_low,
    upper_bound(s.difference, s.error, student_t_975(s.degrees), s.skewness) as difference_high,
    case when s.t_beyond is not null then least(1, greatest(
        student_t_tail(s.t_beyond, s.degrees) + student_t_tail(s.t_opposite, s.degrees),
        student_t_tail(with_skewness(s.t_beyond, s.skewed), s.degrees)
            + student_t_tail(-with_skewness(-s.t_opposite, s.skewed), s.degrees))) end as p_value
from standardised s"""


def _discovered(tested: str) -> str:
    """SQL of tested rows with the false discovery rate of each and those with no larger p value, and their descriptions.

    Benjamini and Hochberg, Journal of the Royal Statistical Society B 57, 1995.
    """
    return f"""
select q.* exclude (place), case when q.p_value is not null
        then min(q.p_value * q.n_tested / q.place) over (order by q.p_value desc range unbounded preceding) end as q_value,
    n.description
from (
    select t.*, count(t.p_value) over () as n_tested,
        count(t.p_value) over (order by t.p_value range unbounded preceding) as place
    from ({tested}) t
) q
left join feature_names n on n.run_id = q.run_id and n.level = level and n.code = q.code
    and n.feature_value_id is not distinct from q.feature_value_id
"""


# -- two cohorts ----------------------------------------------------------------------------------


def _define_comparison(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    """comparison_for: two cohorts, feature by feature, ranked by the difference of their means per prediction at risk.

    Its variance is the sum of both where no patient is in both cohorts; otherwise less twice the covariance, which rows
    tell; and without rows no more than the square of the sum of both standard errors (Cauchy and Schwarz). A feature that
    nobody of one cohort has contributes 0 there; without rows that is not known, and the feature is left out.
    """
    sides = "class_a, class_b, stratum_a, stratum_b, cohort_a, cohort_b"
    shared = "shares_patients(run, split, class_a, class_b, stratum_a, stratum_b)"
    ready = f"""select coalesce(a.run_id, b.run_id) as run_id, coalesce(a.code, b.code) as code,
        coalesce(a.feature_value_id, b.feature_value_id) as feature_value_id,
        coalesce(a.n_patients, 0) as n_patients_a, coalesce(b.n_patients, 0) as n_patients_b,
        a.effective_patients as effective_a, b.effective_patients as effective_b,
        a.degrees_of_freedom as degrees_a, b.degrees_of_freedom as degrees_b,
        coalesce(a.mean_per_prediction, 0) as mean_a, coalesce(b.mean_per_prediction, 0) as mean_b,
        coalesce(a.variance_per_prediction, 0) as variance_a, coalesce(b.variance_per_prediction, 0) as variance_b,
        a.skewness_per_prediction as skewness_a, b.skewness_per_prediction as skewness_b,
        {{covariance}} as covariance, {{of}} as interval_of, {{shared}} as patients_shared
    from estimates_for(run, level, null, '{BEFORE_PREDICTION}', false, split, class_a, stratum_a, null) a
    {{join}} join estimates_for(run, level, null, '{BEFORE_PREDICTION}', false, split, class_b, stratum_b, null) b
        on b.code = a.code and b.feature_value_id is not distinct from a.feature_value_id"""
    if with_rows:
        arguments = f"run, level, feature, split, {sides}, wanted"
        db.execute(f"create macro two_cohorts({arguments}) as {text_of(TWO_COHORTS)}")
        apart = ready.format(covariance="0", of="'separate patients'", shared="false", join="full")
        db.execute(
            f"""create macro either_cohorts(run, level, split, {sides}) as table
            select * from ({apart}) where cohort_a is null and cohort_b is null and not {shared}
            union all by name
            select *, case when patients_shared then 'shared patients' else 'separate patients' end as interval_of
            from query(two_cohorts(run, level, null, split, {sides},
                case when cohort_a is null and cohort_b is null
                    then 'shares_patients(' || quoted(run::varchar) || ', ' || quoted(split) || ', ' || quoted(class_a) || ', '
                        || quoted(class_b) || ', ' || quoted(stratum_a) || ', ' || quoted(stratum_b) || ')' else 'true' end))"""
        )
    else:
        known = ready.format(
            covariance=f"case when {shared} then -sqrt(a.variance_per_prediction) * sqrt(b.variance_per_prediction) else 0 end",
            of=f"case when {shared} then 'at least' else 'separate patients' end",
            shared=shared,
            join="inner",
        )
        db.execute(
            f"""create macro either_cohorts(run, level, split, {sides}) as table
            select * from ({known}) where case when cohort_a is null and cohort_b is null then true else {NO_ROWS} end"""
        )
    pairs = f"""select * from either_cohorts(run, level, split, {sides})
        where greatest(n_patients_a, n_patients_b) >= min_patients::integer"""
    db.execute(
        f"""create macro comparison_for(run, level, split, {sides}, min_patients, minimum_effect, false_discovery_rate, top) as table
        select
            row_number() over (order by coalesce(c.q_value <= false_discovery_rate::double, false) desc, abs(c.difference) desc,
                c.code, c.feature_value_id)::integer as rank,
            c.code, c.feature_value_id, c.description, c.n_patients_a, c.n_patients_b, c.mean_a, c.mean_b,
            c.difference, c.difference_low, c.difference_high, c.interval_of, c.p_value, c.q_value, c.n_tested,
            c.q_value <= false_discovery_rate::double as is_discovery
        from ({_discovered(_judged(pairs, "minimum_effect::double"))}) c
        qualify rank <= top::integer"""
    )


# -- strata of a kind -----------------------------------------------------------------------------


def _define_disagreement(db: duckdb.DuckDBPyConnection, run: str) -> None:
    """disagreement_for: the two strata of a kind between which a feature's mean per prediction differs most surely.

    The p value is that of the pair, times the number of pairs (Bonferroni); where patients recur in several strata, the
    variance is its largest possible. The q value is over all features.
    """
    sides = f"""select e.* from estimates e where e.run_id = {run} and e.level = level and e.split = split and e.class = class
        and split_part(e.stratum, '=', 1) = subgroups and e.time_axis = '{BEFORE_PREDICTION}' and e.time_bin is null
        and e.n_patients >= min_patients::integer"""
    pairs = f"""select a.run_id, a.code, a.feature_value_id, a.stratum as stratum_a, b.stratum as stratum_b,
            a.n_patients as n_patients_a, b.n_patients as n_patients_b,
            a.effective_patients as effective_a, b.effective_patients as effective_b,
            a.degrees_of_freedom as degrees_a, b.degrees_of_freedom as degrees_b,
            a.mean_per_prediction as mean_a, b.mean_per_prediction as mean_b,
            a.variance_per_prediction as variance_a, b.variance_per_prediction as variance_b,
            a.skewness_per_prediction as skewness_a, b.skewness_per_prediction as skewness_b,
            shares_patients(run, split, class, class, a.stratum, b.stratum) as patients_shared
        from ({sides}) a join ({sides}) b
            on b.code = a.code and b.feature_value_id is not distinct from a.feature_value_id and b.stratum > a.stratum"""
    with_covariance = f"""select q.*, case when q.patients_shared then -sqrt(q.variance_a) * sqrt(q.variance_b) else 0 end
        as covariance from ({pairs}) q"""
    surest = f"""select j.*, count(j.p_value) over (partition by j.code, j.feature_value_id) as n_pairs
        from ({_judged(with_covariance, "0")}) j
        qualify row_number() over (partition by j.code, j.feature_value_id
            order by j.p_value nulls last, abs(j.difference) desc, j.stratum_a, j.stratum_b) = 1"""
    tested = f"""select s.* exclude (n_pairs, difference_low, difference_high)
            replace (case when s.p_value * s.n_pairs > 1 then 1 else s.p_value * s.n_pairs end as p_value),
            g.n_subgroups, g.signs_differ
        from ({surest}) s
        join (
            select f.code, f.feature_value_id, count(*) as n_subgroups, coalesce(
                bool_or(f.mean_per_prediction_high < 0) and bool_or(f.mean_per_prediction_low > 0), false) as signs_differ
            from ({sides}) f group by all
        ) g on g.code = s.code and g.feature_value_id is not distinct from s.feature_value_id"""
    db.execute(
        f"create macro disagreement_for(run, level, split, class, subgroups, min_patients) as table {_discovered(tested)}"
    )
