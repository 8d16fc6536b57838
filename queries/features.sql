-- Which features the model was given and the store has cells of: one row a code.
--
-- n_values counts the ranges of its numbers (and being recorded without one); has_time says whether any time
-- bin of it is shown, which static values never have.
-- Arguments: run.
-- Example: whenwhy query STORE features
create or replace temp macro features(run := null) as table
select f.code, min(f.description) as description, min(f.unit) as unit, count(*)::integer as n_values,
    exists (select 1 from cells t where t.run_id = any_value(f.run_id) and t.code = f.code and t.time_bin is not null) as has_time
from feature_values f
where f.run_id = coalesce(run::varchar, (select min(run_id) from runs))
    and exists (select 1 from cells c where c.run_id = f.run_id and c.level = 'code' and c.code = f.code)
group by f.code
order by f.code;
