-- One patient's predictions, and what each recorded value contributed to each of them.
--
-- One row a recorded feature value of a prediction: the newest prediction first, and in it the most recent value;
-- values without a time last. contribution is what the value adds to score - baseline_score. A prediction that has
-- nothing recorded is one row without a value.
-- Needs rows_by_prediction: these are a patient's own records, so rows.duckdb alone answers this, for analysts.
-- Arguments: subject_id, the patient's number; run.
-- Example: whenwhy query STORE patient subject_id=42
create or replace temp macro patient(subject_id, run := null) as table
with predicted as (
    select p.* from predictions p
    where p.subject_id = subject_id::bigint and p.run_id = coalesce(run::varchar, (select min(run_id) from runs))
)
select
    p.prediction_time, p.target, p.label, p.predicted, p.split, p.score, p.baseline_score, p.probability,
    r.step, p.prediction_time - to_minutes(r.minutes) as time, r.minutes / 60.0::double as hours_before,
    f.code, f.description, f.unit, r.numeric_value, r.feature_value_id, f.low, f.high, r.attribution as contribution
from predicted p
left join rows_by_prediction r using (run_id, prediction_id)
left join feature_values f using (run_id, feature_value_id)
order by p.prediction_time desc, p.prediction_id desc, r.step desc nulls last, r.minutes nulls last, r.feature_value_id,
    r.numeric_value, r.attribution;
