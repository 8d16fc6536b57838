-- What a code group's parts carry: the groups and codes directly below it, or the topmost groups and the codes in none.
--
-- One row a part, the largest mean absolute contribution per prediction first: how many recorded codes lie in it, patients
-- and events, the mean signed contribution per prediction with its 95 % interval over patients, share (of what all parts
-- of `within` contribute in absolute terms; without it, all codes do), and the code that carries most of it. Signed and
-- absolute contributions of parts add up to the whole where no code lies in two parts; patients and intervals never do.
-- Where the group's own code is recorded too, it is a part.
-- Arguments: within, a code group, or null for the topmost ones and the codes that lie in no group; split, class, stratum, run, top, min_patients; cohort, a
-- predicate over predictions.
-- Example: whenwhy query STORE group_rollup top=10
create or replace temp macro group_rollup(
    within := null, split := 'held_out', class := 'all', stratum := 'all', run := null, top := 100, min_patients := 11,
    cohort := null
) as table
with this as (select coalesce(run::varchar, (select min(run_id) from runs)) as run_id),
edges as (select g.* from code_groups g where g.run_id = (select run_id from this)),
recorded as (
    select f.code, any_value(f."groups") as above from feature_values f
    where f.run_id = (select run_id from this) and f.feature_value_id > 0 group by f.code
),
in_group as (select r.code, unnest(r.above) as member from recorded r),
parts as (
    select distinct e.code, e.code in (select i.member from in_group i) as is_group from edges e
    where e.parent is not distinct from within::varchar
    union all
    select r.code, false from recorded r
    where case when within is null then len(r.above) = 0 and exists (from edges) else r.code = within::varchar end
),
codes_of as (
    select p.code as part, p.is_group, r.code from parts p join recorded r
        on case when p.is_group then list_contains(r.above, p.code) else r.code = p.code end
),
estimated as (
    select 'group' as level, e.* exclude (level)
    from estimates_for(run, 'group', null, 'before_prediction', false, split, class, stratum, cohort) e
    union all by name
    select 'code' as level, e.* exclude (level)
    from estimates_for(run, 'code', null, 'before_prediction', false, split, class, stratum, cohort) e
),
heaviest as (
    select c.part, c.is_group, count(*) as n_codes, first(e.code order by e.mean_abs_per_prediction desc nulls last, e.code) as leading_code
    from codes_of c left join estimated e
        on e.level = 'code' and e.code = c.code and e.n_patients >= min_patients::integer
    group by c.part, c.is_group
),
whole as (
    select sum(e.mean_abs_per_prediction) as size from estimated e
    where case when within is null then e.level = 'code' else e.level = 'group' and e.code = within::varchar end
)
select
    row_number() over (order by e.mean_abs_per_prediction desc, e.level, e.code)::integer as rank,
    e.level, e.code, e.description, l.n_codes::integer as n_codes, e.n_patients, e.n_events,
    e.mean_per_prediction, e.mean_per_prediction_low, e.mean_per_prediction_high, e.mean_abs_per_prediction,
    e.mean_abs_per_prediction / nullif((select w.size from whole w), 0) as share, l.leading_code
from parts p
join estimated e on e.code = p.code and e.level = case when p.is_group then 'group' else 'code' end
join heaviest l on l.part = p.code and l.is_group = p.is_group
where e.n_patients >= min_patients::integer
qualify rank <= top::integer
order by rank;
