-- Which features contribute differently in two cohorts, per prediction.
--
-- One row a feature, as class_comparison has it: discoveries first, each by the largest difference of mean contributions
-- per prediction, with its 95 % interval over patients, who may be in both cohorts. A cohort is a class and a
-- stratum that are ready, or a predicate over predictions, or all of them; where one predicate alone is given, the
-- other cohort is who does not fulfil it.
-- Arguments: cohort_a minus cohort_b (predicates over predictions), class_a, class_b, stratum_a, stratum_b; level, split,
-- run, top, min_patients (in either cohort); minimum_effect, in units of the contributions; false_discovery_rate.
-- Example: whenwhy query STORE cohort_comparison cohort_a="n_steps > 2" top=5
create or replace temp macro cohort_comparison(
    cohort_a := null, cohort_b := null, class_a := 'all', class_b := 'all', stratum_a := 'all', stratum_b := 'all',
    level := 'code', split := 'held_out', run := null, top := 20, min_patients := 11, minimum_effect := 0,
    false_discovery_rate := 0.05
) as table
from comparison_for(
    run, level, split, class_a, class_b, stratum_a, stratum_b, cohort_a, cohort_b, min_patients, minimum_effect,
    false_discovery_rate, top
)
order by rank;
