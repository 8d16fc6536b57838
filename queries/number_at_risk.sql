-- Who was under observation: patients and predictions whose history reaches back to each time bin.
--
-- One row a bin, nearest to the prediction first; the last row, without a bin, counts everybody.
-- Arguments: axis, of time; split, class, stratum, run, min_patients; cohort, a predicate over predictions.
-- Example: whenwhy query STORE number_at_risk class=true
create or replace temp macro number_at_risk(
    axis := 'before_prediction', split := 'held_out', class := 'all', stratum := 'all', run := null, min_patients := 11,
    cohort := null
) as table
select x.time_bin, x.low_hours, x.high_hours, x.n_patients, x.n_predictions
from (
    from risk_for(run, axis, true, split, class, stratum, cohort) union all
    from risk_for(run, axis, false, split, class, stratum, cohort)
) x
where x.n_patients >= min_patients::integer
order by x.time_bin nulls last;
