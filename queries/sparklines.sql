-- How the most important features' contributions run over time: what a ranking draws beside each feature.
--
-- One row a feature and bin of time, in the order of top_features and nearest to the prediction first: the mean
-- contribution per prediction at risk then. A bin that fewer than min_patients have the feature in is missing, not 0, as
-- is a feature without times.
-- Arguments: split, class, stratum, run, top, how many features; min_patients; cohort, a predicate over predictions.
-- Example: whenwhy query STORE sparklines top=5
create or replace temp macro sparklines(
    split := 'held_out', class := 'all', stratum := 'all', run := null, top := 20, min_patients := 11, cohort := null
) as table
with shown as (
    select c.code, row_number() over (order by c.sum_abs / c.n_at_risk desc, c.code)::integer as rank
    from cells_for(run, 'code', null, 'before_prediction', false, split, class, stratum, cohort) c
    where c.n_patients >= min_patients::integer
    qualify rank <= top::integer
)
select s.rank, s.code, c.time_bin, c.low_hours, c.high_hours, c.n_patients, c.n_at_risk,
    c.sum / c.n_at_risk as mean_per_prediction
from shown s
join cells_for(run, 'code', null, 'before_prediction', true, split, class, stratum, cohort) c on c.code = s.code
where c.n_patients >= min_patients::integer and c.n_at_risk is not null
order by s.rank, c.time_bin;
