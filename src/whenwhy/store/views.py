"""The views and macros of a store: attributions as people see them, cells of any cohort, estimates with their intervals."""

from __future__ import annotations

import re
from typing import Final

import duckdb

from whenwhy.statistics.time_axis import AFTER_ANCHOR, BEFORE_PREDICTION, SINCE

#: No interval where fewer patients than this, in effect, stand behind a mean.
FEWEST_EFFECTIVE_PATIENTS: Final = 30

#: The compact rows with patient, times in hours, and target.
ATTRIBUTIONS_VIEW: Final = """
create view attributions as
select r.run_id, p.subject_id, p.prediction_time, p.target, r.step,
    p.prediction_time - to_minutes(r.minutes) as time, r.minutes / 60.0::double as hours_before,
    r.feature_value_id, r.numeric_value, r.attribution, r.spread
from rows r join predictions p using (run_id, prediction_id)
"""


def define_estimates(db: duckdb.DuckDBPyConnection, with_rows: bool) -> None:
    """The view estimates (of ready cells) and the macros cells_for and estimates_for (of any cohort) are there.

    Args:
        with_rows: the database has rows, of which cells are made for a cohort that has none.
    """
    db.execute(_student_t_975_macro())
    db.execute("create macro quoted(said) as coalesce('''' || replace(said, '''', '''''') || '''', 'null')")
    db.execute(f"create view estimates as {_estimated(_READY)}")
    arguments = "run, level, feature, axis, dated, split, class, stratum, cohort"
    ready = f"""select * from ({_READY}) c
        where cohort is null and c.run_id = coalesce(run::varchar, (select min(run_id) from runs)) and c.level = level and (feature is null or c.code = feature)
            and c.time_axis = axis and (c.time_bin is not null) = dated and c.split = split and c.class = class
            and c.stratum = stratum"""
    if with_rows:
        db.execute(f"create macro cohort_cells({arguments}) as {_text_of(_OF_A_COHORT)}")
        computed = f"query(cohort_cells({arguments}))"
    else:
        computed = f"""(select * from ({_READY}) where error('A cohort of one''s own needs rows.duckdb, for analysts: '
            || 'ask for one of the cohorts that are ready'))"""
    db.execute(
        f"""create macro cells_for({arguments}) as table
        {ready} union all by name select * from {computed} where cohort is not null"""
    )
    db.execute(
        f"""create macro estimates_for({arguments}) as table
        {_estimated(f"select * from cells_for({arguments})")}"""
    )


def _student_t_975_macro() -> str:
    """The scalar macro student_t_975(degrees): Cornish and Fisher's expansion, within 1e-6 from 29 degrees on."""
    z = 1.959963984540054
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    expansion = " + ".join(f"{term!r} / pow(degrees, {power})" for power, term in enumerate(terms))
    return f"create macro student_t_975(degrees) as ({expansion})"


#: Cells that are ready, beside who is at risk in them.
_READY: Final = """select c.* exclude (histogram, sum_gradient), e.n_predictions as n_at_risk, e.n_patients as n_patients_at_risk,
        e."s_NN" as s_nn_at_risk
    from cells c
    left join exposure e on e.run_id = c.run_id and e.target = c.target and e.split = c.split and e.class = c.class
        and e.stratum = c.stratum and e.time_axis = c.time_axis and e.time_bin is not distinct from c.time_bin"""


def _estimated(cells: str) -> str:
    """Cells with their two means, each with a 95 % interval over patients.

    Per event: m = sum / n, variance (S_ss - 2 m S_sn + m^2 S_nn) / n^2 * P / (P - 1).
    Per prediction at risk: mu = sum / N, variance (S_ss - 2 mu S_sN + mu^2 S_NN) / N^2 * P_R / (P_R - 1).
    t with P_eff - 1 degrees of freedom, P_eff = n^2 / S_nn; no interval below 30 effective patients.
    """
    return f"""
with names as (
    select run_id, 'value' as level, code, feature_value_id, description, unit, bin, low, high from feature_values
    union all
    select run_id, 'code', code, null, min(description), min(unit), null, null, null from feature_values group by all
),
means as (
    select c.*, n.description, n.unit, n.bin, n.low, n.high,
        c.n_events * c.n_events / c.s_nn as effective_patients,
        c.sum / c.n_events as mean_per_event,
        c.sum / c.n_at_risk as mean_per_prediction,
        c.sum_abs / c.n_at_risk as mean_abs_per_prediction
    from ({cells}) c
    left join names n on n.run_id = c.run_id and n.level = c.level and n.code = c.code
        and n.feature_value_id is not distinct from c.feature_value_id
),
variances as (
    select *,
        greatest(0, s_ss - 2 * mean_per_event * s_sn + mean_per_event * mean_per_event * s_nn)
            / (n_events::double * n_events) * n_patients / nullif(n_patients - 1, 0) as variance_per_event,
        greatest(0, s_ss - 2 * mean_per_prediction * "s_s_N" + mean_per_prediction * mean_per_prediction * s_nn_at_risk)
            / (n_at_risk::double * n_at_risk) * n_patients_at_risk / nullif(n_patients_at_risk - 1, 0) as variance_per_prediction,
        case when effective_patients >= {FEWEST_EFFECTIVE_PATIENTS} then student_t_975(effective_patients - 1) end as t
    from means
)
select * exclude (t, s_nn_at_risk),
    mean_per_event - t * sqrt(variance_per_event) as mean_per_event_low,
    mean_per_event + t * sqrt(variance_per_event) as mean_per_event_high,
    mean_per_prediction - t * sqrt(variance_per_prediction) as mean_per_prediction_low,
    mean_per_prediction + t * sqrt(variance_per_prediction) as mean_per_prediction_high
from variances
"""


#: The same cells from rows, for the predictions that a predicate picks. What stands in [[...]] is SQL that gives text.
_OF_A_COHORT: Final = f"""
with this as (select coalesce([[quoted(run::varchar)]], (select min(run_id) from runs)) as run_id),
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
        and ([[quoted(class)]] = 'all' or label = [[quoted(class)]])
        and [[case when stratum = 'all' then 'true'
            when stratum like 'correct=%' then '(predicted = label) = ' || (stratum = 'correct=yes')
            else '"' || replace(split_part(stratum, '=', 1), '"', '""') || '" = '
                || quoted(substr(stratum, instr(stratum, '=') + 1)) end]]
        and ([[coalesce(cohort, 'false')]]
        )  -- on a line of its own, since a predicate may end in a comment
),
entries as (
    [[case when not dated and level <> 'value' then
        'select p.subject_id, null::integer as feature_value_id, c.code, null::integer as time_bin, r.sum as s, r.n_events as n,
            r.sum_abs as s_abs, null::double as s_sq
        from prediction_codes r join people p using (prediction_id)
        join (select code_number, ' || case level when 'group' then
            'unnest((select any_value(f.parents) from feature_values f where f.code = codes.code)) as code' else 'code' end
            || ' from codes) c using (code_number) where r.run_id = (select run_id from this)'
            || case when feature is null then '' else ' and c.code = ' || quoted(feature) end
        else
        'select p.subject_id, ' || case level when 'value' then 'r.feature_value_id' else 'null::integer' end
            || ' as feature_value_id, f.code, ' || case when dated then '{{bin}}' else 'null::integer' end
            || ' as time_bin, r.attribution::double as s, 1 as n, abs(r.attribution::double) as s_abs,
            r.attribution::double * r.attribution as s_sq
        from rows r join people p using (prediction_id)
        join (select feature_value_id, ' || case level when 'group' then 'unnest(parents)' else 'code' end
            || ' as code from feature_values where run_id = (select run_id from this)) f using (feature_value_id)
        cross join axis x where r.run_id = (select run_id from this)'
            || case when feature is null then '' else ' and f.code = ' || quoted(feature) end end]]
),
patients as (
    select subject_id, feature_value_id, code, time_bin, sum(s) as s, sum(n)::double as n, sum(s_abs) as s_abs, sum(s_sq) as s_sq
    from entries where [[dated]] = (time_bin is not null) group by all
),
risk as (
    [[case when dated then
        'select subject_id, unnest(range({{first}}, {{last}} + 1))::integer as time_bin from people p cross join axis x
        where history_minutes is not null and origin is not null'
        else 'select subject_id, null::integer as time_bin from people where origin is not null' end]]
),
risks as (select subject_id, time_bin, count(*)::double as n from risk group by all),
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
    s.* replace (s.time_bin as time_bin), [[quoted(axis)]] as time_axis,
    case when s.time_bin = x.first_bin and x.first_bin < 0 then '-infinity'::double
        else s.time_bin * x.width_hours::double end as low_hours,
    case when s.time_bin = x.first_bin + x.n_bins - 1 then 'infinity'::double
        else (s.time_bin + 1) * x.width_hours::double end as high_hours,
    e.n_at_risk, e.n_patients_at_risk, e.s_nn_at_risk
from sums s cross join axis x join at_risk e on e.time_bin is not distinct from s.time_bin
"""


def _bin(position: str) -> str:
    """The SQL of the bin of a position in minutes, on the axis x."""
    return (
        f"(least((greatest({position}, x.first_bin * x.width_hours * 60) - x.first_bin * x.width_hours * 60) "
        "// (x.width_hours * 60), x.n_bins - 1) + x.first_bin)::integer"
    )


def _position(minutes: str) -> str:
    return f"case when x.time_axis = '{BEFORE_PREDICTION}' then {minutes} else p.origin - {minutes} end"


def _text_of(template: str) -> str:
    """The SQL of a scalar that gives the template's text."""
    least, most = (
        f"least({_position('0')}, {_position('p.history_minutes')})",
        f"greatest({_position('0')}, {_position('p.history_minutes')})",
    )
    dated = f"(case when r.minutes is not null and p.origin is not null then {_bin(_position('r.minutes'))} end)"
    bins = {"bin": dated, "first": _bin(least), "last": _bin(most)}
    parts = []
    for number, part in enumerate(re.split(r"\[\[(.*?)\]\]", template, flags=re.DOTALL)):
        if number % 2:  # SQL already, in which texts hold more of it
            for name, text in bins.items():
                part = part.replace("{" + name + "}", text.replace("'", "''"))
            parts.append(f"({part})::varchar")
        else:
            parts.append("'" + part.replace("'", "''") + "'")
    return " || ".join(parts)
