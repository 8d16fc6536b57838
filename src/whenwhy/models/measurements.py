"""What training measured, read from a model's directory, and the sentence that tells people."""

from __future__ import annotations

import math

import numpy as np

from whenwhy.shards import Json, StageDirectory

#: What a summary calls the figures of the regression beside the model.
REGRESSION = "logistic_regression_"


def measured(model: StageDirectory) -> Json:
    """What training measured on held-out patients: per fold, means, and the paired difference of the AUROCs.

    Of several classes AUROC and AUPRC are means over them, each told from all others.

    Calibration curves stay with the model, since their bins count few patients; a model that was not
    measured has its folds alone.
    """
    summaries = [model.entry(name).summary for name in model.shards]
    folds = [{key: value for key, value in told.items() if not key.endswith("calibration_curve")} for told in summaries]
    if not all("auroc" in fold for fold in folds):
        return {"folds": folds}
    difference = np.array([fold["auroc"] - fold["logistic_regression_auroc"] for fold in folds])
    error = float(difference.std(ddof=1) / math.sqrt(len(folds))) if len(folds) > 1 else None
    return {
        "folds": folds,
        **{
            prefix + name: float(np.mean([fold[prefix + name] for fold in folds]))
            for prefix in ("", REGRESSION)
            for name in ("auroc", "auprc", "brier")
        },
        "difference": float(difference.mean()),
        "difference_standard_error": error,
    }


def measured_sentence(measurement: Json) -> str:
    """What `measured` found, in one or two sentences for people, without a full stop."""
    folds, error = measurement["folds"], measurement["difference_standard_error"]
    own, regression = measurement["auroc"], measurement["logistic_regression_auroc"]
    first = folds[0]
    several, of = "n_by_class" in first, ""
    counted = f"{first.get('n_positive', 0):,} positive of {first['n_held_out']:,}"
    if several:
        of, counted = ", a class beside all others, mean of the classes", f"{first['n_held_out']:,} predictions"
    shipped = f"{first['auroc']:.3f} ({first['auroc_low']:.3f} to {first['auroc_high']:.3f}; {counted})"
    if error is None:
        told = f"held-out AUROC{of} {shipped}; logistic regression on the same inputs {regression:.3f}"
    else:
        told = (
            f"held-out AUROC{of}, mean of {len(folds)} folds: {own:.3f}; logistic regression on the same inputs "
            f"{regression:.3f}; paired difference {measurement['difference']:+.4f} (standard error {error:.4f}); "
            f"the model that ships is fold 1's, {shipped} beside {first['logistic_regression_auroc']:.3f}"
        )
    n, n_of = first["n_logistic_regression_train"], first["n_logistic_regression_train_of"]
    learned = f". The regression learned from a sample of {n:,} of {n_of:,} predictions" if n < n_of else ""
    if several:
        each = ", ".join(
            f"{name} {found['auroc']:.3f} ({first['n_by_class'][name]:,})" for name, found in first["by_class"].items()
        )
        return (
            f"{told}. Its classes: {each}; log loss {first['log_loss']:.4f} beside "
            f"{first['logistic_regression_log_loss']:.4f}, Brier score {first['brier']:.4f}{learned}"
        )
    slope = "none" if first["calibration_slope"] is None else f"{first['calibration_slope']:.2f}"
    told += (
        f". Its AUPRC is {first['auprc']:.3f} ({first['auprc_low']:.3f} to {first['auprc_high']:.3f}), Brier score "
        f"{first['brier']:.4f}, calibration slope {slope} and intercept {first['calibration_intercept']:+.2f}"
    )
    return told + learned
