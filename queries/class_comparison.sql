-- Which features contribute differently in two classes of patients, per prediction.
--
-- One row a feature, discoveries first, each by the largest difference of mean contributions per prediction, with its
-- 95 % interval over patients. interval_of says of what: 'separate patients' (Welch's); 'shared patients', some of whom
-- have predictions in both classes, with their covariance; or 'at least', where only rows could tell it and the widest
-- possible one is given. p_value tests a difference of at most minimum_effect; q_value is the false discovery rate among all
-- n_tested features (Benjamini and Hochberg), whichever are shown; is_discovery: it is at most false_discovery_rate. There
-- is no interval where fewer than 30 effective patients stand behind a mean, and no test below 60. A feature that nobody of
-- one class has contributes 0 there; a viewer, who cannot know that, sees features of both. Of 1,000 features without a
-- difference, very skewed ones of few patients are still found more often than the rate says.
-- Arguments: class_a minus class_b (labels); level, split, stratum, run, top, min_patients (in either class);
-- minimum_effect, in units of the contributions; false_discovery_rate; cohort, a predicate over predictions of both.
-- Example: whenwhy query STORE class_comparison class_a=true class_b=false top=5
create or replace temp macro class_comparison(
    class_a := 'true', class_b := 'false', level := 'code', split := 'held_out', stratum := 'all', run := null,
    top := 20, min_patients := 11, minimum_effect := 0, false_discovery_rate := 0.05, cohort := null
) as table
from comparison_for(
    run, level, split, class_a, class_b, stratum, stratum, cohort, cohort, min_patients, minimum_effect,
    false_discovery_rate, top
)
order by rank;
