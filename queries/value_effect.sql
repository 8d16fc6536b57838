-- How a feature's contribution depends on its value: one row a bin of values, in original units.
--
-- The dose-response of the model: mean contribution per event of each range low <= value < high, with its
-- 95 % interval over patients; bin is null where the feature was recorded without a number.
-- Arguments: feature, a code; split, class, stratum, run, min_patients; cohort, a predicate over predictions.
-- Example: whenwhy query STORE value_effect feature=hdl
create or replace temp macro value_effect(
    feature, split := 'held_out', class := 'all', stratum := 'all', run := null, min_patients := 11,
    cohort := null
) as table
select
    e.feature_value_id, e.bin, e.low, e.high, e.unit, e.n_patients, e.n_events,
    e.mean_per_event, e.mean_per_event_low, e.mean_per_event_high
from estimates_for(run, 'value', feature, 'before_prediction', false, split, class, stratum, cohort) e
where e.n_patients >= min_patients::integer
order by e.bin nulls first;
