-- Which features carry the model's predictions, ranked by mean absolute contribution per prediction.
--
-- One row a feature: how many patients and events have it, the mean absolute contribution per prediction
-- (the ranking), and the mean signed contribution per event with its 95 % interval over patients.
-- Arguments: level 'code', 'value' or 'group'; split, class and stratum of the predictions; run (the
-- store's first where not given); top, how many rows; min_patients, the fewest patients a row may rest on; cohort, a predicate over predictions.
-- Example: whenwhy query STORE top_features top=5
create or replace temp macro top_features(
    level := 'code', split := 'held_out', class := 'all', stratum := 'all', run := null, top := 20, min_patients := 11,
    cohort := null
) as table
select
    row_number() over (order by e.mean_abs_per_prediction desc, e.code, e.feature_value_id)::integer as rank,
    e.code, e.feature_value_id, e.description, e.unit, e.low, e.high, e.n_patients, e.n_events,
    e.mean_abs_per_prediction, e.mean_per_event, e.mean_per_event_low, e.mean_per_event_high
from estimates_for(run, level, null, 'before_prediction', false, split, class, stratum, cohort) e
where e.n_patients >= min_patients::integer
qualify rank <= top::integer
order by rank;
