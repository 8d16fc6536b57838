"""The views of a store: attributions as people see them, and estimates with their intervals."""

from __future__ import annotations

from typing import Final

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


def student_t_975_macro() -> str:
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


#: Cells with their two means, each with a 95 % interval over patients.
#: Per event: m = sum / n, variance (S_ss - 2 m S_sn + m^2 S_nn) / n^2 * P / (P - 1).
#: Per prediction at risk: mu = sum / N, variance (S_ss - 2 mu S_sN + mu^2 S_NN) / N^2 * P_R / (P_R - 1).
#: t with P_eff - 1 degrees of freedom, P_eff = n^2 / S_nn; no interval below 30 effective patients.
ESTIMATES_VIEW: Final = f"""
create view estimates as
with names as (
    select run_id, 'value' as level, code, feature_value_id, description, unit, bin, low, high from feature_values
    union all
    select run_id, 'code', code, null, min(description), min(unit), null, null, null from feature_values group by all
),
means as (
    select c.*, n.description, n.unit, n.bin, n.low, n.high,
        e.n_predictions as n_at_risk, e.n_patients as n_patients_at_risk, e."s_NN" as s_nn_at_risk,
        c.n_events * c.n_events / c.s_nn as effective_patients,
        c.sum / c.n_events as mean_per_event,
        c.sum / e.n_predictions as mean_per_prediction,
        c.sum_abs / e.n_predictions as mean_abs_per_prediction
    from cells c
    left join exposure e on e.run_id = c.run_id and e.target = c.target and e.split = c.split and e.class = c.class
        and e.stratum = c.stratum and e.time_axis = c.time_axis and e.time_bin is not distinct from c.time_bin
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
