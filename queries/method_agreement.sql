-- How far two runs agree on what matters: one row for all features that both have.
--
-- rank_correlation is Spearman's of the mean absolute contributions per prediction, correlation is Pearson's of the
-- signed means, same_sign the share of features whose means have one sign in both, and shared_top the share of the
-- first run's `top` features that are among the second's. Missing where fewer than two features are shared.
-- Arguments: run_a, run_b (see runs); level, split, class, stratum, top, min_patients (in each run).
-- Example: whenwhy query STORE method_agreement run_a=RUN run_b=RUN
create or replace temp macro method_agreement(
    run_a, run_b, level := 'code', split := 'held_out', class := 'all', stratum := 'all', top := 20, min_patients := 11
) as table
with a as (from ranked_for(run_a, level, split, class, stratum, min_patients)),
b as (from ranked_for(run_b, level, split, class, stratum, min_patients)),
both_have as (
    select a.mean_per_prediction as mean_a, b.mean_per_prediction as mean_b,
        (a.place <= top::integer and b.place <= top::integer)::integer as is_on_top,
        rank() over (order by a.mean_abs_per_prediction) + (count(*) over (partition by a.mean_abs_per_prediction) - 1) / 2.0
            as rank_a,
        rank() over (order by b.mean_abs_per_prediction) + (count(*) over (partition by b.mean_abs_per_prediction) - 1) / 2.0
            as rank_b
    from a join b on b.code = a.code and b.feature_value_id is not distinct from a.feature_value_id
)
select
    count(*)::integer as n_features,
    case when count(*) > 1 then corr(rank_a, rank_b) end as rank_correlation,
    case when count(*) > 1 then corr(mean_a, mean_b) end as correlation,
    avg((sign(mean_a) = sign(mean_b))::integer) as same_sign,
    sum(is_on_top) / (select nullif(count(*), 0) from a where a.place <= top::integer)::double as shared_top
from both_have;
