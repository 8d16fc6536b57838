-- Which features the model was given and the store has cells of: one row a code.
--
-- n_values counts the ranges of its numbers (and being recorded without one).
-- Arguments: run.
-- Example: whenwhy query STORE features
create or replace temp macro features(run := null) as table
select f.code, min(f.description) as description, min(f.unit) as unit, count(*)::integer as n_values
from feature_values f
where f.run_id = coalesce(run::varchar, (select min(run_id) from runs))
    and exists (select 1 from cells c where c.run_id = f.run_id and c.level = 'code' and c.code = f.code)
group by f.code
order by f.code;
