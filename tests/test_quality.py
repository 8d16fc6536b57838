"""Quality: scikit-learn's figures under any weights, patients as the units of intervals, calibration that is seen."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.metrics import average_precision_score, roc_auc_score

from whenwhy.models.quality import Discrimination, calibration, discrimination


@pytest.mark.parametrize("seed", range(5))
def test_discrimination_is_scikit_learns_under_any_weights(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = random.random(200) < 0.3
    probability = np.round(random.random(200) * 0.7 + 0.3 * positive, 1 if seed % 2 else 6)  # with and without ties
    weight = random.integers(0, 4, 200).astype(float)
    auroc, auprc = Discrimination(positive, probability).under(weight)
    assert auroc == pytest.approx(roc_auc_score(positive, probability, sample_weight=weight))
    assert auprc == pytest.approx(average_precision_score(positive, probability, sample_weight=weight))


def test_without_both_classes_there_is_no_figure() -> None:
    told = Discrimination(np.array([True, False]), np.array([0.2, 0.1]))
    assert np.isnan(told.under(np.array([1.0, 0.0]))).all()


def test_patients_are_the_units_of_intervals() -> None:
    """Each prediction said ten times over says no more, so the interval is as wide as before."""
    random = np.random.default_rng(0)
    positive = random.random(150) < 0.4
    probability = 1 / (1 + np.exp(-random.normal(size=150) - positive))
    once = discrimination(np.arange(150), positive, {"": probability}, seed=1)
    often = discrimination(*(np.repeat(a, 10) for a in (np.arange(150), positive)), {"": np.repeat(probability, 10)}, 1)
    naive = discrimination(np.arange(1500), np.repeat(positive, 10), {"": np.repeat(probability, 10)}, seed=1)
    width = [told["auroc_high"] - told["auroc_low"] for told in (once, often, naive)]
    assert width[1] == pytest.approx(width[0], rel=1e-9)
    assert width[2] < 0.5 * width[0]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """Normal scores one standard deviation apart have an AUROC of Phi(1 / sqrt 2)."""
    random, inside = np.random.default_rng(3), 0
    for _ in range(60):
        positive = random.random(120) < 0.4
        told = discrimination(np.arange(120), positive, {"": norm.cdf(random.normal(size=120) + positive)}, seed=0)
        inside += told["auroc_low"] <= norm.cdf(1 / np.sqrt(2)) <= told["auroc_high"]
    assert 51 <= inside <= 60  # of 57 expected; 50 or fewer has probability 0.002


def test_a_model_beside_itself_differs_by_nothing() -> None:
    random = np.random.default_rng(0)
    positive, probability = random.random(80) < 0.5, random.random(80)
    told = discrimination(np.arange(80), positive, {"": probability, "other_": probability}, seed=0)
    assert (told["auroc_difference_low"], told["auroc_difference"], told["auroc_difference_high"]) == (0, 0, 0)
    assert told["auroc_high"] == told["other_auroc_high"]


@pytest.mark.parametrize(("stretch", "shift"), [(1.0, 0.0), (2.0, 0.0), (1.0, 0.7), (0.5, -0.4)])
def test_calibration_finds_how_predictions_were_spoiled(stretch: float, shift: float) -> None:
    random = np.random.default_rng(0)
    odds = random.normal(size=40_000)
    positive = random.random(40_000) < 1 / (1 + np.exp(-odds))
    told = calibration(positive, 1 / (1 + np.exp(-(stretch * odds + shift))))
    assert told["calibration_slope"] == pytest.approx(1 / stretch, rel=0.05)
    if stretch == 1:
        assert told["calibration_intercept"] == pytest.approx(-shift, abs=0.03)
    inside = [
        part["observed_low"] <= part["mean_predicted"] <= part["observed_high"] for part in told["calibration_curve"]
    ]
    assert (sum(inside) >= 8) == (stretch == 1 and shift == 0)


def test_a_calibration_curve_counts_everybody_once() -> None:
    random = np.random.default_rng(1)
    probability = random.random(1003)
    positive = random.random(1003) < probability
    curve = calibration(positive, probability)["calibration_curve"]
    assert {part["n"] for part in curve} == {100, 101}
    assert sum(part["n"] for part in curve) == 1003
    assert sum(part["n_positive"] for part in curve) == positive.sum()
    means = [part["mean_predicted"] for part in curve]
    assert means == sorted(means)
    assert np.mean([part["mean_predicted"] * part["n"] for part in curve]) == pytest.approx(probability.sum() / 10)


@pytest.mark.parametrize("probability", [np.full(50, 0.3), np.r_[np.zeros(25), np.ones(25)]])
def test_predictions_that_say_nothing_or_everything_have_a_calibration(probability: np.ndarray) -> None:
    told = calibration(np.arange(50) >= 20, probability)
    assert told["calibration_slope"] is None or np.isfinite(told["calibration_slope"])
    assert np.isfinite(told["calibration_intercept"])
