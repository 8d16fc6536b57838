-- When which values of a feature mattered: one row a bin of values and a bin of time.
--
-- The mean contribution per event of each cell with its 95 % interval over patients.
-- Arguments: feature, a code; axis, of time; split, class, stratum, run, min_patients; cohort, a predicate
-- over predictions.
-- Example: whenwhy query STORE feature_heatmap feature=hdl class=true
create or replace temp macro feature_heatmap(
    feature, axis := 'before_prediction', split := 'held_out', class := 'all', stratum := 'all', run := null,
    min_patients := 11, cohort := null
) as table
select
    e.feature_value_id, e.bin, e.low, e.high, e.unit, e.time_bin, e.low_hours, e.high_hours,
    e.n_patients, e.n_events, e.mean_per_event, e.mean_per_event_low, e.mean_per_event_high
from estimates_for(run, 'value', feature, axis, true, split, class, stratum, cohort) e
where e.n_patients >= min_patients::integer
order by e.bin nulls first, e.time_bin;
