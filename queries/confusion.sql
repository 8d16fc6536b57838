-- How often which class is predicted for which label: one row a label and predicted class.
--
-- Counts of predictions and patients. Of everybody they are ready, for viewers too; those of another stratum or cohort
-- are counted from rows, for analysts. A pair of fewer than min_patients is no row, which is not to say that it has none.
-- Arguments: split, stratum, cohort, a predicate over predictions; run; min_patients.
-- Example: whenwhy query STORE confusion
create or replace temp macro confusion(
    split := 'held_out', stratum := 'all', cohort := null, run := null, min_patients := 11
) as table
select c.label, c.predicted, c.n_predictions, c.n_patients
from (
    select x.class as label, substr(x.stratum, 11) as predicted, x.n_predictions, x.n_patients
    from exposure x
    where stratum = 'all' and cohort is null and x.stratum like 'predicted=%' and x.class <> 'all'
        and x.run_id = coalesce(run::varchar, (select min(run_id) from runs)) and x.split = split
        and x.time_axis = 'before_prediction' and x.time_bin is null
    union all
    from query(case when stratum = 'all' and cohort is null then 'select null::varchar, null::varchar, 0, 0 where false'
        when not has_rows() then 'select null::varchar, null::varchar, 0, error(
            ''A stratum or cohort beside what is predicted needs rows.duckdb, for analysts'')::bigint'
        else 'select p.label, p.predicted, count(*), count(distinct p.subject_id) from predictions_for('
            || concat_ws(', ', quoted(run::varchar), quoted(split), quoted('all'), quoted(stratum), quoted(cohort))
            || ') p group by all' end)
) c
where c.n_patients >= min_patients::integer
order by c.label, c.predicted;
