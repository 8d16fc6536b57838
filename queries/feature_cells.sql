-- Everything of one feature at once: as a whole and by range of values, in each bin of time and for all time.
--
-- One row a cell: level is 'code' (the feature as a whole) or 'value' (a range low <= value < high of it); without a time_bin
-- it is of all time. Each has what feature_summary, value_effect, feature_timeline and feature_heatmap tell of it; one
-- question is answered sooner than four.
-- Arguments: feature, a code; axis, of time; split, class, stratum, run, min_patients; cohort, a predicate over predictions.
-- Example: whenwhy query STORE feature_cells feature=hdl
create or replace temp macro feature_cells(
    feature, axis := 'before_prediction', split := 'held_out', class := 'all', stratum := 'all', run := null,
    min_patients := 11, cohort := null
) as table
select
    e.level, e.feature_value_id, e.bin, e.low, e.high, e.unit, e.time_bin, e.low_hours, e.high_hours, e.n_at_risk,
    e.n_patients_at_risk, e.n_patients, e.n_events, e.mean_per_event, e.mean_per_event_low, e.mean_per_event_high,
    e.mean_per_prediction, e.mean_per_prediction_low, e.mean_per_prediction_high, e.mean_abs_per_prediction
from estimates_of(run, feature, axis, split, class, stratum, cohort) e
where e.n_patients >= min_patients::integer
order by e.level, e.time_bin nulls first, e.bin nulls first;
