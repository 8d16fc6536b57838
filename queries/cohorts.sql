-- Which cohorts the store holds: one row a split, class and stratum with cells that may be shown.
--
-- n_patients and n_predictions count the whole cohort; missing where that count is not shown.
-- Arguments: run.
-- Example: whenwhy query STORE cohorts
create or replace temp macro cohorts(run := null) as table
with cohort as (
    select distinct c.run_id, c.split, c.class, c.stratum
    from cells c
    where c.run_id = coalesce(run::varchar, (select min(run_id) from runs))
)
select c.split, c.class, c.stratum, x.n_patients, x.n_predictions
from cohort c
left join exposure x on x.run_id = c.run_id and x.split = c.split and x.class = c.class
    and x.stratum = c.stratum and x.time_bin is null
    and x.time_axis = 'before_prediction'
order by c.split, c.class, c.stratum;
