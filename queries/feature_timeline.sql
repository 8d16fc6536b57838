-- When a feature mattered: its contribution in each time bin, with intervals.
--
-- One row a bin, nearest to the prediction first (on another axis, the earliest first): the predictions under
-- observation then (n_at_risk) and their patients (n_patients_at_risk), those who have the feature there (n_patients), the mean contribution per event and per prediction at risk, each with its
-- 95 % interval over patients. The two means answer different questions.
-- Arguments: feature, a code (or a code group with level=group); axis, of time (see time_axes); split, class, stratum, run, min_patients; cohort, a predicate over predictions.
-- Example: whenwhy query STORE feature_timeline feature=hdl
create or replace temp macro feature_timeline(
    feature, level := 'code', axis := 'before_prediction', split := 'held_out', class := 'all', stratum := 'all', run := null,
    min_patients := 11, cohort := null
) as table
select
    e.time_bin, e.low_hours, e.high_hours, e.n_at_risk, e.n_patients_at_risk, e.n_patients, e.n_events,
    e.mean_per_event, e.mean_per_event_low, e.mean_per_event_high,
    e.mean_per_prediction, e.mean_per_prediction_low, e.mean_per_prediction_high
from estimates_for(run, level, feature, axis, true, split, class, stratum, cohort) e
where e.n_patients >= min_patients::integer
    and case when level in ('code', 'group') then true else error('level is code or group here') end
order by e.time_bin;
