-- Which runs the store holds: what was explained, how, and how well the explained model predicts.
--
-- One row a run. auroc is the explained model's own on held-out patients, reference_auroc that of a logistic
-- regression on the same inputs; of several classes both are means over the classes, each beside all others.
-- mean_auroc and mean_reference_auroc are means over n_folds folds of patients, each with a model trained the same
-- way. measures says what a run's numbers are: not all are contributions. Counts are missing where they may not be
-- shown. The sha256 are of the model's weights, of the vocabulary and of the sequences that it was made of.
-- Example: whenwhy query STORE runs
create or replace temp macro runs() as table
select
    r.run_id, r.outcome, r.method, r.measures, r.baseline, r.target, r.precision, r.n_predictions, r.tolerance,
    r.residual_median, r.residual_maximum, r.n_over_tolerance,
    (r.quality::json ->> '$.folds[0].auroc')::double as auroc,
    (r.quality::json ->> '$.folds[0].logistic_regression_auroc')::double as reference_auroc,
    (r.quality::json ->> '$.auroc')::double as mean_auroc,
    (r.quality::json ->> '$.logistic_regression_auroc')::double as mean_reference_auroc,
    json_array_length(r.quality::json, '$.folds')::integer as n_folds,
    r.code_version, r.format_version, r.model_sha256, r.vocabulary_sha256, r.input_sha256
from runs r
order by r.run_id;
