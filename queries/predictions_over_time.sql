-- How predictions and outcomes run over the calendar: one row a year or month and label.
--
-- time is when the year or month begins; predictions and patients of the label then, their mean probability (of the class
-- that calibration names), and the share that they are of all predictions of that time, whichever rows are shown. Dates
-- that were shifted to protect patients tell no calendar.
-- Needs predictions: rows.duckdb alone has them, for analysts.
-- Arguments: unit, 'year' or 'month'; split, stratum, cohort, a predicate over predictions; run; min_patients.
-- Example: whenwhy query STORE predictions_over_time unit=year
create or replace temp macro predictions_over_time(
    unit := 'year', split := 'held_out', stratum := 'all', cohort := null, run := null, min_patients := 11
) as table
with dated as (
    select date_trunc(unit, p.prediction_time)::timestamp as time, p.label, p.subject_id, p.probability
    from predictions_for(run, split, 'all', stratum, cohort) p
),
counted as (
    select d.time, d.label, count(*) as n_predictions, count(distinct d.subject_id) as n_patients,
        avg(d.probability) as mean_probability
    from dated d group by all
),
shares as (select c.*, c.n_predictions / sum(c.n_predictions) over (partition by c.time) as observed_share from counted c)
select s.time, s.label, s.n_predictions, s.n_patients, s.mean_probability, s.observed_share
from shares s
where s.n_patients >= min_patients::integer
order by s.time, s.label;
