"""A run of attributions flows in; how well its numbers add up, and the sentences that tell people, flow out."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from whenwhy.attribution.attribution_directory import FITTED, PREDICTION_ROWS, ROUNDING
from whenwhy.attribution.precision import precision_sentence
from whenwhy.attribution.registry import MEASURES, method_named
from whenwhy.attribution.targets import UNIT, target_named
from whenwhy.schema import HELD_OUT
from whenwhy.shards import Json, StageDirectory


def residuals(predictions: pa.Table) -> np.ndarray:
    """By how much each prediction's contributions miss the score difference, without sign [prediction that has one]."""
    return np.asarray(np.abs(pc.drop_null(predictions["completeness_residual"]).to_numpy()))


def residual_summary(attributions: StageDirectory) -> Json:
    """How well the attributions add up: over all predictions, the median and largest |residual|, and the tolerance.

    Of a method whose numbers are not meant to add up these are None.
    """
    predictions = pa.concat_tables(
        [attributions.read(name, PREDICTION_ROWS, ["completeness_residual"]) for name in attributions.shards]
    )
    residual, tolerance = residuals(predictions), attributions.settings["tolerance"]
    told: Json = {"n_predictions": predictions.num_rows, "tolerance": tolerance}
    if not method_named(attributions.settings["method"]).sums_to_score:
        return told | dict.fromkeys(("median", "maximum", "n_over_tolerance"))
    return told | {
        "median": float(np.median(residual)) if len(residual) else 0.0,
        "maximum": float(residual.max(initial=0.0)),
        "n_over_tolerance": int((residual > tolerance).sum()),
    }


def shard_residuals(predictions: pa.Table, tolerance: float) -> Json:
    """What a shard's manifest says of its residuals; sums and maxima, so that those of a run follow.

    Example:
        >>> shard_residuals(pa.table({"completeness_residual": [1e-5, -3e-5, None]}), 2e-5)
        {'n_residuals': 2, 'residual_sum': 4e-05, 'residual_maximum': 3e-05, 'n_over_tolerance': 1}
    """
    residual = residuals(predictions)
    return {
        "n_residuals": len(residual),
        "residual_sum": float(residual.sum()),
        "residual_maximum": float(residual.max(initial=0.0)),
        "n_over_tolerance": int((residual > tolerance).sum()),
    }


def residuals_told(attributions: StageDirectory) -> Json:
    """How well the attributions add up by the shards' manifests alone: mean and largest |residual|, and counts."""
    told = [attributions.entry(name).summary for name in attributions.shards]
    counts = ("n_predictions", "n_rows", "n_halved", "n_residuals", "n_over_tolerance")
    found: Json = {name: sum(one.get(name, 0) for one in told) for name in counts}
    found["tolerance"] = attributions.settings["tolerance"]
    if not method_named(attributions.settings["method"]).sums_to_score:
        return found | dict.fromkeys(("mean", "maximum", "n_residuals", "n_over_tolerance"))
    return found | {
        "mean": sum(one["residual_sum"] for one in told) / max(1, found["n_residuals"]),
        "maximum": max((one["residual_maximum"] for one in told), default=0.0),
    }


def residual_sentence(attributions: StageDirectory) -> str:
    """What `residuals_told` found, in one sentence for people."""
    told = residuals_told(attributions)
    if told["maximum"] is None:
        measures = method_named(attributions.settings["method"]).measures
        return f"{told['n_predictions']:,} predictions; a number tells {MEASURES[measures]}"
    if "completeness" not in method_named(attributions.settings["method"]).laws:
        return (
            f"{told['n_predictions']:,} predictions; this method's contributions need not add up: they differ from the "
            f"score difference by {told['mean']:.2g} on average, {told['maximum']:.2g} at most"
        )
    return (
        f"{told['n_predictions']:,} predictions; contributions miss the score difference by {told['maximum']:.1e} at most "
        f"({told['mean']:.1e} on average; tolerance {told['tolerance']:.0e}, {told['n_over_tolerance']:,} over it)"
    )


def measured_here(attributions: StageDirectory, classes: Sequence[str]) -> Json:
    """How well the predictions of a run tell its held-out labels, in the form of `training.measured`.

    What cannot be measured, for lack of held-out predictions of both classes, or since only one of several classes
    was explained, is missing.

    Args:
        classes: the model's.
    """
    target = target_named(attributions.settings["target"])
    # Of a named class, or a unit, the score is not the logit of the later class; the probability is that class's.
    told = "probability" if target.classes or target.kind == UNIT else "score"
    table = pa.concat_tables(
        [attributions.read(name, PREDICTION_ROWS, ["label", "split", told]) for name in attributions.shards]
    )
    held_out = np.asarray(table["split"].to_numpy()) == HELD_OUT
    positive = np.asarray(table["label"].to_numpy())[held_out] == (target.classes or tuple(classes[1:]))[0]
    score = table[told].to_numpy()[held_out]
    if len(classes) > 2 or len(np.unique(positive)) < 2:
        return {"folds": []}
    # Imported here alone: a finished run is resumed in half the time without.
    from sklearn.metrics import average_precision_score, roc_auc_score

    auroc, auprc = float(roc_auc_score(positive, score)), float(average_precision_score(positive, score))
    fold = {"n_held_out": len(positive), "n_positive": int(positive.sum()), "auroc": auroc, "auprc": auprc}
    return {"folds": [fold], "auroc": auroc}


def fitted_sentence(stage: StageDirectory) -> str:
    """What is told of the fit of a run's method, for people; empty where nothing was fitted."""
    if FITTED not in stage.needs:
        return ""
    told = ", ".join(f"{name} {value:.4g}" for name, value in sorted(stage.entry(FITTED).summary.items()))
    return f"{stage.settings['method']} was fitted on training predictions: {told}"


def rounding_sentence(stage: StageDirectory) -> str:
    """What a run in bfloat16 says of its distance from float32, for people; empty for others."""
    return precision_sentence(stage.entry(ROUNDING).summary) if ROUNDING in stage.needs else ""
