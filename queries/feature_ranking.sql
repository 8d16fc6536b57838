-- Which features vary most, or are most concentrated in time or in some of their values.
--
-- One row a feature. variance is that of single contributions; entropy_over_time and entropy_over_values say how evenly
-- the absolute contribution spreads over all time bins before the prediction, and over all of the feature's values: 0, all
-- of it in one, up to 1, the same in each. Missing where there is no time, or nothing is contributed. Of what may be shown.
-- Arguments: criterion, 'variance' (the largest first), 'entropy_over_time' or 'entropy_over_values' (the least first);
-- split, class, stratum, run, top, min_patients.
-- Example: whenwhy query STORE feature_ranking criterion=entropy_over_time top=5
create or replace temp macro feature_ranking(
    criterion := 'variance', split := 'held_out', class := 'all', stratum := 'all', run := null, top := 20, min_patients := 11
) as table
with known as (
    select c.* from cells c
    where c.split = split and c.class = class and c.stratum = stratum and c.time_axis = 'before_prediction'
        and c.run_id = coalesce(run::varchar, (select min(run_id) from runs))
),
places as (
    select 'time' as over, null::varchar as code, max(a.n_bins) as n from axes a where a.time_axis = 'before_prediction'
    union all
    select 'values', f.code, count(*) from feature_values f
    where f.run_id = coalesce(run::varchar, (select min(run_id) from runs)) group by f.code
),
shares as (
    select 'time' as over, k.code, k.sum_abs / nullif(sum(k.sum_abs) over (partition by k.code), 0) as share
    from known k where k.level = 'code' and k.time_bin is not null
    union all
    select 'values', k.code, k.sum_abs / nullif(sum(k.sum_abs) over (partition by k.code), 0)
    from known k where k.level = 'value' and k.time_bin is null
),
entropies as (
    select s.over, s.code,
        case when any_value(p.n) = 1 then 0
            else -sum(case when s.share > 0 then s.share * log2(s.share) else 0 end) / log2(any_value(p.n)) end as entropy
    from shares s join places p on p.over = s.over and (p.code is null or p.code = s.code)
    group by s.over, s.code having count(s.share) > 0
),
told as (
    select e.code, e.description, e.n_patients, e.n_events, e.mean_per_event, e.mean_abs_per_prediction,
        greatest(0, e.sum_sq / e.n_events - e.mean_per_event * e.mean_per_event) as variance,
        t.entropy as entropy_over_time, v.entropy as entropy_over_values
    from estimates_for(run, 'code', null, 'before_prediction', false, split, class, stratum, null) e
    left join entropies t on t.over = 'time' and t.code = e.code
    left join entropies v on v.over = 'values' and v.code = e.code
    where e.n_patients >= min_patients::integer
)
select
    row_number() over (
        order by case criterion when 'entropy_over_time' then t.entropy_over_time when 'entropy_over_values' then t.entropy_over_values
            else -t.variance end nulls last, t.code
    )::integer as rank,
    t.*
from told t
qualify rank <= top::integer
order by rank;
