-- When, and for which of its values, a feature contributes differently in two cohorts.
--
-- One row a bin of time (with level=value a row a range of its values and a bin of time; with by_time=false all time
-- together): the mean contribution per event of both cohorts and their difference with its 95 % interval over patients.
-- interval_of: 'separate patients' (Welch's); or 'at least', where somebody may be in both cohorts, and the widest
-- possible one is given. is_different: the interval excludes 0, as that of one cell in 20 does where nothing differs.
-- No interval where fewer than 30 effective patients stand behind a mean. A cohort is a class and a stratum that are
-- ready, or a predicate over predictions, or all of them; where one predicate alone is given, the other cohort is who
-- does not fulfil it.
-- Arguments: feature, a code (or a code group with level=group); level; by_time; cohort_a minus cohort_b (predicates over
-- predictions), class_a, class_b, stratum_a, stratum_b; axis, of time; split, run, min_patients (in both cohorts).
-- Example: whenwhy query STORE feature_comparison feature=hdl class_a=true class_b=false
create or replace temp macro feature_comparison(
    feature, level := 'code', by_time := true, class_a := 'all', class_b := 'all', stratum_a := 'all', stratum_b := 'all',
    cohort_a := null, cohort_b := null, axis := 'before_prediction', split := 'held_out', run := null, min_patients := 11
) as table
with shared as (
    -- Text, so that rows are asked only where there are predicates, which roles without rows refuse below.
    from query(case when cohort_a is null and cohort_b is null or not has_rows() then 'select shares_patients('
            || concat_ws(', ', quoted(run::varchar), quoted(split), quoted(class_a), quoted(class_b), quoted(stratum_a),
                quoted(stratum_b)) || ') as patients_shared'
        else 'select exists (from predictions_for('
            || concat_ws(', ', quoted(run::varchar), quoted(split), quoted(class_a), quoted(stratum_a),
                quoted(coalesce(cohort_a, '(' || cohort_b || chr(10) || ') is not true')))
            || ') a semi join predictions_for('
            || concat_ws(', ', quoted(run::varchar), quoted(split), quoted(class_b), quoted(stratum_b),
                quoted(coalesce(cohort_b, '(' || cohort_a || chr(10) || ') is not true')))
            || ') b using (subject_id)) as patients_shared' end)
),
pairs as (
    select a.feature_value_id, a.bin, a.low, a.high, a.unit, a.time_bin, a.low_hours, a.high_hours, s.patients_shared,
        a.n_patients as n_patients_a, b.n_patients as n_patients_b, a.n_events as n_events_a, b.n_events as n_events_b,
        a.mean_per_event as mean_a, b.mean_per_event as mean_b, a.mean_per_event - b.mean_per_event as difference,
        least(a.effective_patients, b.effective_patients) as effective,
        -- Cauchy and Schwarz: the covariance is no less than minus the product of both errors.
        case when s.patients_shared then pow(sqrt(a.variance_per_event) + sqrt(b.variance_per_event), 2)
            else a.variance_per_event + b.variance_per_event end as variance,
        case when s.patients_shared then least(a.degrees_of_freedom, b.degrees_of_freedom)
            else welch_degrees(a.variance_per_event, b.variance_per_event, a.degrees_of_freedom, b.degrees_of_freedom)
            end as degrees,
        coalesce(a.skewness_per_event * pow(a.variance_per_event, 1.5), 0)
            - coalesce(b.skewness_per_event * pow(b.variance_per_event, 1.5), 0) as skewed
    from estimates_for(run, level, feature, axis, by_time::boolean, split, class_a, stratum_a,
        coalesce(cohort_a, '(' || cohort_b || chr(10) || ') is not true')) a
    join estimates_for(run, level, feature, axis, by_time::boolean, split, class_b, stratum_b,
            coalesce(cohort_b, '(' || cohort_a || chr(10) || ') is not true')) b
        on b.feature_value_id is not distinct from a.feature_value_id and b.time_bin is not distinct from a.time_bin
    cross join shared s
    where least(a.n_patients, b.n_patients) >= min_patients::integer
),
errors as (
    select p.*, sqrt(p.variance) as error,
        case when p.effective >= 30 and p.variance > 0 then student_t_975(p.degrees) end as t,
        p.skewed / nullif(pow(p.variance, 1.5), 0) as skewness
    from pairs p
),
intervals as (
    select e.*, lower_bound(e.difference, e.error, e.t, e.skewness) as difference_low,
        upper_bound(e.difference, e.error, e.t, e.skewness) as difference_high
    from errors e
)
select
    d.feature_value_id, d.bin, d.low, d.high, d.unit, d.time_bin, d.low_hours, d.high_hours,
    d.n_patients_a, d.n_patients_b, d.n_events_a, d.n_events_b, d.mean_a, d.mean_b,
    d.difference, d.difference_low, d.difference_high,
    case when d.patients_shared then 'at least' else 'separate patients' end as interval_of,
    d.difference_low > 0 or d.difference_high < 0 as is_different
from intervals d
order by d.bin nulls first, d.time_bin;
