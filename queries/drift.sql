-- How features differ between two runs: two models, two methods, or the same at another time.
--
-- One row a feature that both runs have, the largest difference of mean contributions per prediction first, with
-- its rank by mean absolute contribution in either. No interval: the runs explain the same patients, and how a
-- model differs from another is not a matter of which patients were drawn.
-- Arguments: run_a, run_b (see runs); level, split, class, stratum, top, min_patients (in each run).
-- Example: whenwhy query STORE drift run_a=RUN run_b=RUN top=5
create or replace temp macro drift(
    run_a, run_b, level := 'code', split := 'held_out', class := 'all', stratum := 'all', top := 20, min_patients := 11
) as table
with a as (from ranked_for(run_a, level, split, class, stratum, min_patients)),
b as (from ranked_for(run_b, level, split, class, stratum, min_patients))
select
    row_number() over (
        order by abs(a.mean_per_prediction - b.mean_per_prediction) desc, a.code, a.feature_value_id
    )::integer as rank,
    a.code, a.feature_value_id, a.description,
    a.mean_per_prediction as mean_a, b.mean_per_prediction as mean_b,
    a.mean_per_prediction - b.mean_per_prediction as difference,
    a.mean_abs_per_prediction as mean_abs_a, b.mean_abs_per_prediction as mean_abs_b,
    a.place::integer as rank_a, b.place::integer as rank_b
from a
join b on b.code = a.code and b.feature_value_id is not distinct from a.feature_value_id
qualify rank <= top::integer
order by rank;
