"""Held-out predictions flow in; how good they are flows out, with intervals whose units are patients."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score, brier_score_loss, log_loss, roc_auc_score

from whenwhy.shards import Json

#: Bootstrap samples of patients behind every interval.
SAMPLES = 1000

#: Bins of equally many predictions in a calibration curve.
CALIBRATION_BINS = 10

#: A probability is kept this far from 0 and 1 where its log-odds are needed.
LEAST = 1e-9


class Discrimination:
    """AUROC and AUPRC of some predictions under any weights, quick to ask again: they are sorted once.

    Equal to scikit-learn's `roc_auc_score` and `average_precision_score` with `sample_weight`, which sort
    each time.

    Example:
        >>> told = Discrimination(np.array([0, 1, 1, 0]), np.array([0.1, 0.9, 0.4, 0.4]))
        >>> [round(figure, 3) for figure in told.under(np.ones(4))]
        [0.875, 0.833]
    """

    def __init__(self, positive: np.ndarray, probability: np.ndarray) -> None:
        self.order = np.argsort(-probability, kind="stable")
        self.positive = positive[self.order].astype(np.float64)
        self.ends = np.flatnonzero(np.diff(probability[self.order], append=np.nan))  # the last of equal ones

    def under(self, weight: np.ndarray) -> tuple[float, float]:
        """AUROC and AUPRC with a weight a prediction; NaN without both classes."""
        weight = weight[self.order]
        true = np.cumsum(weight * self.positive)[self.ends]  # weight of positives at or above each threshold
        all_above = np.cumsum(weight)[self.ends]
        false = all_above - true
        if true[-1] == 0 or false[-1] == 0:
            return np.nan, np.nan
        rise, run = np.diff(true, prepend=0), np.diff(false, prepend=0)
        auroc = float((run * (true - rise / 2)).sum() / (true[-1] * false[-1]))
        precision = np.divide(true, all_above, out=np.zeros_like(true), where=all_above > 0)
        return auroc, float((rise * precision).sum() / true[-1])


def discrimination(
    subject: np.ndarray, positive: np.ndarray, named: dict[str, np.ndarray], seed: int, classes: Sequence[str] = ()
) -> Json:
    """AUROC and AUPRC, each with a 95 % interval (`_low`, `_high`), of one or more models on the same predictions.

    Intervals are percentiles over bootstrap samples of patients, with all their predictions. The first
    two models' difference of AUROCs has an interval from the same samples, so it is paired.

    Of several classes each is told from all others, and the figures are the means over the classes, whatever
    their sizes (scikit-learn's "ovr" and "macro"); a class's own are in `by_class`.

    Args:
        subject: [prediction] whose each prediction is.
        positive: [prediction] bool; of several classes [prediction, class].
        named: a prefix, e.g. "logistic_regression_", -> probability, shaped as `positive`.
        classes: the names of several.

    Example:
        >>> told = discrimination(np.arange(4), np.array([0, 1, 1, 0]), {"": np.array([0.1, 0.9, 0.8, 0.3])}, seed=0)
        >>> told["auroc"], told["auroc_low"]
        (1.0, 1.0)
    """
    patients, whose = np.unique(subject, return_inverse=True)
    random = np.random.default_rng(seed)
    against = positive.reshape(len(subject), -1)  # [prediction, class]
    of_models = [probability.reshape(len(subject), -1) for probability in named.values()]
    models = [[Discrimination(*pair) for pair in zip(against.T, each.T, strict=True)] for each in of_models]
    drawn = np.empty((SAMPLES, len(models), against.shape[1], 2))
    for sample in range(SAMPLES):
        times = np.bincount(random.integers(0, len(patients), len(patients)), minlength=len(patients))
        weight = times[whose].astype(np.float64)
        drawn[sample] = [[of_class.under(weight) for of_class in model] for model in models]
    told: Json = {}
    for at, (prefix, each) in enumerate(zip(named, of_models, strict=True)):
        by_class: dict[str, Json] = {name: {} for name in classes}
        for kind, (figure, measured) in enumerate((("auroc", roc_auc_score), ("auprc", average_precision_score))):
            found = [measured(*pair) for pair in zip(against.T, each.T, strict=True)]
            told |= _with_interval(f"{prefix}{figure}", np.mean(found), drawn[:, at, :, kind].mean(1))
            for place, name in enumerate(classes):
                by_class[name] |= _with_interval(figure, found[place], drawn[:, at, place, kind])
        if classes:
            told[f"{prefix}by_class"] = by_class
    if len(named) > 1:
        first, second = list(named)[:2]
        difference = told[f"{first}auroc"] - told[f"{second}auroc"]
        told |= _with_interval(f"{first}auroc_difference", difference, (drawn[:, 0, :, 0] - drawn[:, 1, :, 0]).mean(1))
    return told


def calibration(positive: np.ndarray, probability: np.ndarray) -> Json:
    """Brier score, calibration slope and intercept, and the calibration curve.

    The slope is that of a logistic regression of the outcome on the log-odds, 1 if predictions are as
    spread as they should be; the intercept is what must be added to all log-odds so that their mean
    probability is the observed rate, 0 if it is so already (Van Calster et al. 2019, BMC Medicine 17:230).
    A bin of the curve has its mean prediction, the observed rate with its 95 % Wilson interval, and how
    many predictions `n` and positives it has.

    Example:
        >>> told = calibration(np.array([0, 1] * 50), np.full(100, 0.5))
        >>> told["brier"], abs(told["calibration_intercept"]) < 1e-6, told["calibration_curve"][0]["n"]
        (0.25, True, 10)
    """
    kept = np.clip(probability, LEAST, 1 - LEAST)
    odds = np.log(kept / (1 - kept))
    spread = float(odds.std())
    slope = None
    if spread > 0:
        fitted = LogisticRegression(C=np.inf, max_iter=1000).fit(odds[:, None] / spread, positive)
        slope = float(fitted.coef_[0, 0] / spread)
    excess = lambda shift: float((1 / (1 + np.exp(-(odds + shift)))).mean() - positive.mean())  # noqa: E731
    curve = []
    order = np.argsort(probability, kind="stable")
    for part in np.array_split(order, min(CALIBRATION_BINS, len(order))):
        n, n_positive = len(part), int(positive[part].sum())
        interval = binomtest(n_positive, n).proportion_ci(method="wilson")
        curve.append(
            {
                "mean_predicted": float(probability[part].mean()),
                "observed": n_positive / n,
                "observed_low": float(interval.low),
                "observed_high": float(interval.high),
                "n": n,
                "n_positive": n_positive,
            }
        )
    return {
        "brier": float(brier_score_loss(positive, probability)),
        "calibration_slope": slope,
        "calibration_intercept": float(brentq(excess, -50, 50)),
        "calibration_curve": curve,
    }


def calibration_of_classes(label: np.ndarray, probability: np.ndarray, classes: Sequence[str]) -> Json:
    """Brier score and log loss, and of each class told from all others what `calibration` says of it.

    The Brier score is the sum over the classes (Brier 1950, equation 2), from 0 to 2.

    Args:
        label: [prediction] the place of its class.
        probability: [prediction, class].

    Example:
        >>> told = calibration_of_classes(np.array([0, 1, 2] * 9), np.full((27, 3), 1 / 3), ("a", "b", "c"))
        >>> round(told["brier"], 3), round(told["log_loss"], 3), sorted(told["calibration_curve"])
        (0.667, 1.099, ['a', 'b', 'c'])
    """
    true = np.eye(len(classes))[label]
    each = {name: calibration(true[:, at] > 0, probability[:, at]) for at, name in enumerate(classes)}
    told = ("brier", "calibration_slope", "calibration_intercept")
    return {
        "brier": float(((probability - true) ** 2).sum(1).mean()),
        "log_loss": float(log_loss(label, probability, labels=range(len(classes)))),
        "by_class": {name: {key: found[key] for key in told} for name, found in each.items()},
        "calibration_curve": {name: found["calibration_curve"] for name, found in each.items()},
    }


def _with_interval(name: str, estimate: float, drawn: np.ndarray) -> Json:
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return {name: float(estimate), f"{name}_low": float(low), f"{name}_high": float(high)}
