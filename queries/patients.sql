-- Who is in a cohort: its predictions one by one, and the code that carries most of each.
--
-- One row a prediction: patient, time, label and predicted class, score, probability, how many values were recorded, and
-- the code whose contributions add up to most, in size, with their sum (missing where nothing was recorded).
-- Needs prediction_codes: these are patients' own records, so rows.duckdb alone answers this, for analysts.
-- Arguments: split, class, stratum, cohort, a predicate over predictions; run; order_by, 'score' (the highest first),
-- 'lowest score', 'time' (the latest first), 'n_values' (the most first) or 'subject_id'; top, how many; skip, how many
-- of those before.
-- Example: whenwhy query STORE patients class=true order_by=score top=5
create or replace temp macro patients(
    split := 'held_out', class := 'all', stratum := 'all', cohort := null, run := null, order_by := 'score', top := 20,
    skip := 0
) as table
with listed as (
    select p.run_id, p.prediction_id, p.subject_id, p.prediction_time, p.label, p.predicted, p.score, p.probability,
        p.n_values, case order_by when 'score' then -p.score when 'lowest score' then p.score
            when 'time' then -epoch_us(p.prediction_time) when 'n_values' then -p.n_values when 'subject_id' then 0
            else error('order_by is score, lowest score, time, n_values or subject_id') end as place
    from predictions_for(run, split, class, stratum, cohort) p
    order by place, p.subject_id, p.prediction_time, p.prediction_id
    limit (select top::integer) offset (select skip::integer)
),
carriers as (
    select r.prediction_id, arg_max({code: c.code, sum: r.sum}, (abs(r.sum), -r.code_number)) as most
    from prediction_codes r join codes c using (code_number)
    where r.run_id = (select any_value(l.run_id) from listed l)
        and r.prediction_id in (select l.prediction_id from listed l)
    group by all
)
select l.subject_id, l.prediction_time, l.label, l.predicted, l.score, l.probability, l.n_values,
    c.most.code as code, c.most.sum as contribution
from listed l left join carriers c using (prediction_id)
order by l.place, l.subject_id, l.prediction_time, l.prediction_id;
