-- How much one feature carries: its row of the ranking, whatever its rank.
--
-- One row, or none where the feature has no cell that may be shown in this cohort: patients and events, the
-- mean absolute contribution per prediction, and the mean signed contribution per event with its 95 %
-- interval over patients.
-- Arguments: feature, a code (or a code group with level=group); split, class, stratum, run, min_patients;
-- cohort, a predicate over predictions.
-- Example: whenwhy query STORE feature_summary feature=hdl
create or replace temp macro feature_summary(
    feature, level := 'code', split := 'held_out', class := 'all', stratum := 'all', run := null, min_patients := 11,
    cohort := null
) as table
select
    e.code, e.description, e.unit, e.n_patients, e.n_events,
    e.mean_abs_per_prediction, e.mean_per_event, e.mean_per_event_low, e.mean_per_event_high
from estimates_for(run, level, feature, 'before_prediction', false, split, class, stratum, cohort) e
where e.n_patients >= min_patients::integer
    and case when level in ('code', 'group') then true else error('level is code or group here') end;
