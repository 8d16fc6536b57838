-- Which features carry the model's predictions, ranked by mean absolute contribution per prediction, or otherwise.
--
-- One row a feature: how many patients and events have it, the mean absolute contribution per prediction
-- (the ranking), and the mean signed contribution per event with its 95 % interval over patients.
-- Arguments: level 'code', 'value' or 'group'; split, class and stratum of the predictions; run (the
-- store's first where not given); top, how many rows; min_patients, the fewest patients a row may rest on; cohort, a predicate over predictions;
-- order_by, 'size' (the mean absolute contribution), 'mean' (the mean per event, whatever its sign), or 'significance' (how
-- far its interval stays from 0).
-- Example: whenwhy query STORE top_features top=5
create or replace temp macro top_features(
    level := 'code', split := 'held_out', class := 'all', stratum := 'all', run := null, top := 20, min_patients := 11,
    cohort := null, order_by := 'size'
) as table
with ordered as (
    select e.*, case order_by when 'size' then e.mean_abs_per_prediction when 'mean' then abs(e.mean_per_event)
            when 'significance' then case when e.mean_per_event_low > 0 then e.mean_per_event_low
                when e.mean_per_event_high < 0 then -e.mean_per_event_high end end as place
    from estimates_for(run, level, null, 'before_prediction', false, split, class, stratum, cohort) e
    where e.n_patients >= min_patients::integer
)
select
    row_number() over (order by o.place desc nulls last, o.code, o.feature_value_id)::integer as rank,
    o.code, o.feature_value_id, o.description, o.unit, o.low, o.high, o.n_patients, o.n_events,
    o.mean_abs_per_prediction, o.mean_per_event, o.mean_per_event_low, o.mean_per_event_high
from ordered o
qualify rank <= top::integer
order by rank;
