"""The text of SQL that works out from rows what no ready cell tells: of any cohort, and of two beside each other.

A table macro gives it to DuckDB's `query()`. It is written as a template, whose parts in [[...]] are SQL that gives
text, made from the macro's arguments; they must fold to a constant, as arguments that are prepared do.
"""

from __future__ import annotations

import re
from typing import Final

from whenwhy.statistics.cohorts import ALL, CORRECT
from whenwhy.statistics.time_axis import AFTER_ANCHOR, BEFORE_PREDICTION, SINCE

#: SQL that complains where a cohort is asked for that only rows could tell.
NO_ROWS: Final = (
    "error('A cohort of one''s own needs rows.duckdb, for analysts: ask for one of the cohorts that are ready')"
)


def text_of(template: str) -> str:
    """The SQL of a scalar that gives the template's text.

    Example:
        >>> text_of("select [[quoted(name)]]")
        "'select ' || (quoted(name))::varchar || ''"
    """
    parts = []
    for number, part in enumerate(re.split(r"\[\[(.*?)\]\]", template, flags=re.DOTALL)):
        if number % 2:  # SQL already, in which texts hold more of it
            for name, text in _BINS.items():
                part = part.replace("{" + name + "}", text.replace("'", "''"))
            parts.append(f"({part})::varchar")
        else:
            parts.append("'" + part.replace("'", "''") + "'")
    return " || ".join(parts)


# -- bins of time ---------------------------------------------------------------------------------


def _bin(position: str) -> str:
    """The SQL of the bin of a position in minutes, on the axis x."""
    return (
        f"(least((greatest({position}, x.first_bin * x.width_hours * 60) - x.first_bin * x.width_hours * 60) "
        "// (x.width_hours * 60), x.n_bins - 1) + x.first_bin)::integer"
    )


def _position(minutes: str) -> str:
    return f"case when x.time_axis = '{BEFORE_PREDICTION}' then {minutes} else p.origin - {minutes} end"


_BINS: Final = {
    "bin": f"(case when r.minutes is not null and p.origin is not null then {_bin(_position('r.minutes'))} end)",
    "first": _bin(f"least({_position('0')}, {_position('p.history_minutes')})"),
    "last": _bin(f"greatest({_position('0')}, {_position('p.history_minutes')})"),
}

#: Where a bin of the axis x begins and ends.
_BOUNDS: Final = """case when {bin} = x.first_bin and x.first_bin < 0 then '-infinity'::double
        else {bin} * x.width_hours::double end as low_hours,
    case when {bin} = x.first_bin + x.n_bins - 1 then 'infinity'::double
        else ({bin} + 1) * x.width_hours::double end as high_hours"""


# -- who is meant ---------------------------------------------------------------------------------


def _side(suffix: str, cohort: str) -> str:
    """Whether a prediction is of the class and stratum of the arguments so called, and of a predicate."""
    label, stratum = "class" + suffix, "stratum" + suffix
    return f"""([[quoted({label})]] = '{ALL}' or label = [[quoted({label})]])
        and [[case when {stratum} = '{ALL}' then 'true'
            when {stratum} like '{CORRECT}=%' then '(predicted = label) = ' || ({stratum} = '{CORRECT}=yes')
            else '"' || replace(split_part({stratum}, '=', 1), '"', '""') || '" = '
                || quoted(substr({stratum}, instr({stratum}, '=') + 1)) end]]
        and ([[{cohort}]]
        )"""  # on a line of its own, since a predicate may end in a comment


_THIS: Final = "this as (select coalesce([[quoted(run::varchar)]], (select min(run_id) from runs)) as run_id)"

#: The predictions of a cohort, and where on the axis they begin. Nobody where no cohort was asked for.
_PEOPLE: Final = f"""{_THIS},
axis as (select * from axes where time_axis = [[quoted(axis)]]),
people as (
    select prediction_id, subject_id, history_minutes,
        [[case when axis = '{BEFORE_PREDICTION}' then '0' when axis = '{AFTER_ANCHOR}' then 'anchor_minutes'
            else '(select max(r.minutes) from rows r join feature_values f on f.run_id = r.run_id
                and f.feature_value_id = r.feature_value_id and f.kind = ''recorded''
                where r.run_id = predictions.run_id and r.prediction_id = predictions.prediction_id
                and f.code = ' || quoted(substr(axis, {len(SINCE) + 1})) || ')' end]] as origin
    from predictions
    where run_id = (select run_id from this) and split = [[quoted(split)]]
        and {_side("", "coalesce(cohort, 'false')")}
)"""

#: Who was under observation in each bin, or at all: a patient's predictions.
_RISKS: Final = """risk as (
    [[case when dated then
        'select subject_id, unnest(range({first}, {last} + 1))::integer as time_bin from people p cross join axis x
        where history_minutes is not null and origin is not null'
        else 'select subject_id, null::integer as time_bin from people where origin is not null' end]]
),
risks as (select subject_id, time_bin, count(*)::double as n from risk group by all)"""


# -- what they have -------------------------------------------------------------------------------


def _undated_codes(more: str) -> str:
    """SQL text: a patient's sums of each code, or code group, from those of its predictions."""
    return f"""'select p.subject_id{more}, null::integer as feature_value_id, c.code, null::integer as time_bin, r.sum as s,
            r.n_events as n, r.sum_abs as s_abs, null::double as s_sq
        from prediction_codes r join people p using (prediction_id)
        join (select code_number, ' || case level when 'group' then
            'unnest((select any_value(f."groups") from feature_values f where f.code = codes.code)) as code' else 'code' end
            || ' from codes) c using (code_number) where r.run_id = (select run_id from this)'
            || case when feature is null then '' else ' and c.code = ' || quoted(feature) end"""


def _rows(more: str, time_bin: str) -> str:
    """SQL text: a row each."""
    return f"""'select p.subject_id{more}, ' || case level when 'value' then 'r.feature_value_id' else 'null::integer' end
            || ' as feature_value_id, f.code, ' || {time_bin} || ' as time_bin, r.attribution::double as s, 1 as n,
            abs(r.attribution::double) as s_abs, r.attribution::double * r.attribution as s_sq
        from rows r join people p using (prediction_id)
        join (select feature_value_id, ' || case level when 'group' then 'unnest("groups")' else 'code' end
            || ' as code from feature_values where run_id = (select run_id from this)) f using (feature_value_id)
        cross join axis x where r.run_id = (select run_id from this)'
            || case when feature is null then '' else ' and f.code = ' || quoted(feature) end"""


_DATED_BIN: Final = "case when dated then '{bin}' else 'null::integer' end"

#: Cells of a cohort. Arguments: run, level, feature, axis, dated, split, class, stratum, cohort.
CELLS_OF_A_COHORT: Final = f"""
with {_PEOPLE},
entries as ([[case when not dated and level <> 'value' then {_undated_codes("")} else {_rows("", _DATED_BIN)} end]]),
patients as (
    select subject_id, feature_value_id, code, time_bin, sum(s) as s, sum(n)::double as n, sum(s_abs) as s_abs, sum(s_sq) as s_sq
    from entries where [[dated]] = (time_bin is not null) group by all
),
{_RISKS},
at_risk as (
    select time_bin, sum(n)::bigint as n_at_risk, count(*) as n_patients_at_risk, sum(n * n) as s_nn_at_risk from risks group by 1
),
sums as (
    select feature_value_id, code, p.time_bin, sum(p.n)::bigint as n_events, count(*) as n_patients, sum(s) as sum,
        sum(s_abs) as sum_abs, sum(s_sq) as sum_sq, sum(s * s) as s_ss, sum(s * p.n) as s_sn, sum(p.n * p.n) as s_nn,
        sum(s * r.n) as "s_s_N", sum(s * s * s) as s_sss, sum(s * s * p.n) as s_ssn, sum(s * p.n * p.n) as s_snn,
        sum(p.n * p.n * p.n) as s_nnn
    from patients p join risks r on r.subject_id = p.subject_id and r.time_bin is not distinct from p.time_bin group by all
)
select (select run_id from this) as run_id,
    (select any_value(target) from predictions where run_id = (select run_id from this)) as target,
    [[quoted(split)]] as split, [[quoted(class)]] as class, [[quoted(stratum)]] as stratum, [[quoted(level)]] as level,
    s.* replace (s.time_bin as time_bin), [[quoted(axis)]] as time_axis, {_BOUNDS.replace("{bin}", "s.time_bin")},
    e.n_at_risk, e.n_patients_at_risk, e.s_nn_at_risk
from sums s cross join axis x join at_risk e on e.time_bin is not distinct from s.time_bin
"""

#: Who of a cohort was under observation. Arguments: run, axis, dated, split, class, stratum, cohort.
RISK_OF_A_COHORT: Final = f"""
with {_PEOPLE},
{_RISKS}
select r.time_bin, {_BOUNDS.replace("{bin}", "r.time_bin")}, count(*) as n_patients, sum(r.n)::bigint as n_predictions
from risks r cross join axis x group by all
"""

#: Predictions of a cohort. Arguments: run, split, class, stratum, cohort.
PREDICTIONS_OF_A_COHORT: Final = f"""
with {_THIS}
select predictions.* from predictions where run_id = (select run_id from this) and split = [[quoted(split)]]
    and {_side("", "coalesce(cohort, 'true')")}
"""


def _either(own: str, other: str) -> str:
    """SQL text of a cohort's predicate: its own, or that of all whom the other's leaves out."""
    return f"coalesce({own}, '(' || {other} || chr(10) || ') is not true', 'true')"


#: Two cohorts beside each other, of each feature the sums over patients of either and of both, for all time.
#: Arguments: run, level, feature, split, class_a, class_b, stratum_a, stratum_b, cohort_a, cohort_b, wanted (whether anybody is).
#: Where one cohort alone is given, the other is who is not of it.
TWO_COHORTS: Final = f"""
with {_THIS},
sides as (
    select prediction_id, subject_id, coalesce({_side("_a", _either("cohort_a", "cohort_b"))}, false) as is_a,
        coalesce({_side("_b", _either("cohort_b", "cohort_a"))}, false) as is_b
    from predictions where run_id = (select run_id from this) and split = [[quoted(split)]] and ([[wanted]])
),
people as (from sides where is_a or is_b),
axis as (select 1),
entries as (
    [[case when level <> 'value' then {_undated_codes(", p.is_a, p.is_b")} else {_rows(", p.is_a, p.is_b", "'null::integer'")} end]]
),
patients as (
    select subject_id, feature_value_id, code,
        coalesce(sum(s) filter (is_a), 0) as s_a, coalesce(sum(s) filter (is_b), 0) as s_b,
        coalesce(sum(n) filter (is_a), 0)::double as n_a, coalesce(sum(n) filter (is_b), 0)::double as n_b
    from entries group by all
),
risks as (
    select subject_id, count(*) filter (is_a)::double as r_a, count(*) filter (is_b)::double as r_b from people group by all
),
at_risk as (
    select count(*) filter (r_a > 0) as patients_a, count(*) filter (r_b > 0) as patients_b, sum(r_a) as r_a, sum(r_b) as r_b,
        sum(r_a * r_a) as r_aa, sum(r_b * r_b) as r_bb, sum(r_a * r_b) as r_ab, count(*) filter (r_a > 0 and r_b > 0) as patients_ab
    from risks
),
sums as (
    select p.feature_value_id, p.code,
        count(*) filter (p.n_a > 0) as n_patients_a, count(*) filter (p.n_b > 0) as n_patients_b,
        sum(p.n_a) as n_a, sum(p.n_b) as n_b, sum(p.n_a * p.n_a) as nn_a, sum(p.n_b * p.n_b) as nn_b,
        sum(p.n_a * p.n_a * p.n_a) as nnn_a, sum(p.n_b * p.n_b * p.n_b) as nnn_b,
        sum(s_a) as s_a, sum(s_b) as s_b, sum(s_a * s_a) as s_aa, sum(s_b * s_b) as s_bb, sum(s_a * s_b) as s_ab,
        sum(s_a * s_a * s_a) as s_aaa, sum(s_b * s_b * s_b) as s_bbb,
        sum(s_a * r.r_a) as s_a_r_a, sum(s_b * r.r_b) as s_b_r_b, sum(s_a * r.r_b) as s_a_r_b, sum(s_b * r.r_a) as s_b_r_a
    from patients p join risks r using (subject_id) group by all
),
means as (select s.s_a / t.r_a as mean_a, s.s_b / t.r_b as mean_b, s.*, t.* rename (r_a as at_risk_a, r_b as at_risk_b)
    from sums s cross join at_risk t where t.r_a > 0 and t.r_b > 0)
select (select run_id from this) as run_id, code, feature_value_id, n_patients_a, n_patients_b,
    n_a * n_a / nullif(nn_a, 0) as effective_a, n_b * n_b / nullif(nn_b, 0) as effective_b,
    n_a * nn_a / nullif(nnn_a, 0) - 1 as degrees_a, n_b * nn_b / nullif(nnn_b, 0) - 1 as degrees_b, mean_a, mean_b,
    variance_of_ratio(mean_a, s_aa, s_a_r_a, r_aa, at_risk_a, patients_a) as variance_a,
    variance_of_ratio(mean_b, s_bb, s_b_r_b, r_bb, at_risk_b, patients_b) as variance_b,
    skewness_of_ratio(mean_a, s_aa, s_a_r_a, r_aa, s_aaa, at_risk_a) as skewness_a,
    skewness_of_ratio(mean_b, s_bb, s_b_r_b, r_bb, s_bbb, at_risk_b) as skewness_b,
    (s_ab - mean_b * s_a_r_b - mean_a * s_b_r_a + mean_a * mean_b * r_ab) / (at_risk_a * at_risk_b)
        * sqrt(patients_a / nullif(patients_a - 1, 0) * (patients_b / nullif(patients_b - 1, 0))) as covariance,
    patients_ab > 0 as patients_shared
from means
"""
