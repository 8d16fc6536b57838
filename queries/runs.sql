-- Which runs the store holds: what was explained, how, and how well the explained model predicts.
--
-- One row a run. auroc is the explained model's, reference_auroc a logistic regression's, both on held-out
-- patients (the mean over folds); missing where they were not measured.
-- Example: whenwhy query STORE runs
create or replace temp macro runs() as table
select
    r.run_id, r.outcome, r.method, r.baseline, r.target, r.n_predictions, r.tolerance,
    r.residual_median, r.residual_maximum, r.n_over_tolerance,
    (r.quality::json ->> '$.auroc')::double as auroc,
    (r.quality::json ->> '$.logistic_regression_auroc')::double as reference_auroc,
    r.code_version
from runs r
order by r.run_id;
