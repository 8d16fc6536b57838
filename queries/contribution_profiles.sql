-- What each code contributes to each of a sample of predictions: where the Projection page places them in the plane.
--
-- One row a sampled prediction and code that it has recorded, the sum of the code's contributions; a prediction that has
-- nothing recorded is one row without a code. The sample is the same each time: the predictions of the least hashes.
-- Needs prediction_codes: these are patients' own records, so rows.duckdb alone answers this, for analysts.
-- Arguments: split, class, stratum, cohort, a predicate over predictions; run; sample, how many predictions at most.
-- Example: whenwhy query STORE contribution_profiles sample=5
create or replace temp macro contribution_profiles(
    split := 'held_out', class := 'all', stratum := 'all', cohort := null, run := null, sample := 3000
) as table
with sampled as (
    select p.run_id, p.prediction_id, p.subject_id, p.prediction_time, p.label, p.score
    from predictions_for(run, split, class, stratum, cohort) p
    order by hash(p.prediction_id), p.prediction_id
    limit (select sample::integer)
),
-- By the id alone, which is far faster than by run and id.
found as (
    select r.prediction_id, r.code_number, r.sum from prediction_codes r
    where r.run_id = (select any_value(s.run_id) from sampled s)
        and r.prediction_id in (select s.prediction_id from sampled s)
)
select s.prediction_id, s.subject_id, s.prediction_time, s.label, s.score, c.code, f.sum as contribution
from sampled s
left join found f on f.prediction_id = s.prediction_id
left join codes c on c.code_number = f.code_number
order by s.prediction_id, f.code_number;
