"""The known mechanism behind a made-up outcome: events before the prediction flow in, contributions flow out.

A prediction's logit is the intercept plus the sum of its effects' contributions; the outcome is drawn from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import meds
import numpy as np

from whenwhy.events.sources.synthetic_codes import (
    ANTICOAGULANT,
    CARDIAC_ARREST,
    CREATININE,
    FUROSEMIDE,
    HEART_FAILURE,
    KIDNEY_DISEASE,
    LACTATE,
    NSAID,
    PALLIATIVE_CARE,
    PRESSURE,
    SODIUM,
)

TASK = "death_within_90_days"
AGE = "AGE"
MINUTES_A_DAY = 1440

ANY, DECAY, BOTH = "any", "decay", "both"
FORMS = {
    ANY: "coefficient, if there is an event of `code` with low <= value < high at most `days` before the prediction",
    DECAY: "coefficient * 2^(-d / half_life_days), d: days from the last event of `code` to the prediction; else 0",
    BOTH: "coefficient, if there are events of `code` and of `other_code`, each at most `days` before the prediction",
}

#: The logarithm of the odds is counted on this grid for the best possible AUROC.
GRID, WIDEST = 1e-4, 16.0
GRID_SIZE = round(2 * WIDEST / GRID) + 1


@dataclass(frozen=True)
class Effect:
    """One term of the logit. What its numbers mean depends on its form, see `FORMS`; None: no bound."""

    name: str
    form: str
    code: str
    coefficient: float
    low: float | None = None
    high: float | None = None
    days: float | None = None
    half_life_days: float | None = None
    other_code: str | None = None


EFFECTS = (
    Effect("lactate_high_this_week", ANY, LACTATE, 1.6, low=3.0, days=7),
    Effect("creatinine_high", ANY, CREATININE, 1.0, low=2.0, days=90),
    Effect("pressure_low_lately", ANY, PRESSURE, 1.2, high=100.0, days=3),
    Effect("sodium_low", ANY, SODIUM, 0.6, high=132.0, days=30),
    Effect("heart_failure_fading", DECAY, HEART_FAILURE, 1.8, half_life_days=120),
    Effect("anticoagulant_protects", ANY, ANTICOAGULANT, -0.9, days=60),
    Effect("nsaid_with_kidney_disease", BOTH, NSAID, 1.5, days=365, other_code=KIDNEY_DISEASE),
    Effect("old_age", ANY, AGE, 0.8, low=75.0),
)


@dataclass(frozen=True)
class Distractor:
    """A code that is recorded with a cause, `probability` times of one, and has no effect of its own."""

    code: str
    follows: str
    probability: float


@dataclass(frozen=True)
class Consequence:
    """A code that the outcome causes to be recorded, between two moments in days after the prediction (before: < 0).

    A share of those with the outcome, and of those without it, has it.
    """

    code: str
    from_days: int
    to_days: int
    share_of_positive: float
    share_of_negative: float = 0.0


DISTRACTOR = Distractor(FUROSEMIDE, HEART_FAILURE, 0.7)
LEAK = Consequence(PALLIATIVE_CARE, -3, 0, 0.7, 0.01)
AFTER = (Consequence(CARDIAC_ARREST, 0, 2, 0.6), Consequence(meds.death_code, 60, 90, 1.0))


def mattering() -> set[str]:
    """The codes of events that the mechanism reads, or that come with them.

    Example:
        >>> "RX//NSAID" in mattering(), "RX//STATIN" in mattering()
        (True, False)
    """
    read = {effect.code for effect in EFFECTS} | {effect.other_code for effect in EFFECTS if effect.other_code}
    return read - {AGE} | {DISTRACTOR.code, LEAK.code, *(after.code for after in AFTER)}


def contributions(
    number: Mapping[str, int],
    patient: np.ndarray,
    ago: np.ndarray,
    code: np.ndarray,
    value: np.ndarray,
    age: np.ndarray,
) -> np.ndarray:
    """Each effect's contribution to each patient's logit, [patient, effect].

    Args:
        number: the codes' numbers.
        patient, ago, code, value: the events up to the prediction, [event]: patient from 0, minutes before the
            prediction, code number and number.
        age: in whole years, [patient].
    """
    found = np.zeros((len(age), len(EFFECTS)))
    for column, effect in enumerate(EFFECTS):
        if effect.code == AGE:
            found[:, column] = effect.coefficient * _within(age, effect)
            continue
        rows = np.flatnonzero(code == number[effect.code])
        if effect.form == DECAY:
            last = np.full(len(age), np.inf)
            np.minimum.at(last, patient[rows], ago[rows])
            assert effect.half_life_days is not None
            found[:, column] = effect.coefficient * np.exp2(-(last / MINUTES_A_DAY) / effect.half_life_days)
            continue
        here = _anyone(rows, patient, ago, value, effect, len(age))
        if effect.form == BOTH:
            assert effect.other_code is not None
            other = np.flatnonzero(code == number[effect.other_code])
            here &= _anyone(other, patient, ago, value, effect, len(age))
        found[:, column] = effect.coefficient * here
    return found


def _anyone(
    rows: np.ndarray, patient: np.ndarray, ago: np.ndarray, value: np.ndarray, effect: Effect, count: int
) -> np.ndarray:
    assert effect.days is not None
    rows = rows[ago[rows] <= effect.days * MINUTES_A_DAY]
    if effect.low is not None or effect.high is not None:
        rows = rows[_within(value[rows], effect)]
    here = np.zeros(count, dtype=bool)
    here[patient[rows]] = True
    return here


def _within(value: np.ndarray, effect: Effect) -> np.ndarray:
    low = -np.inf if effect.low is None else effect.low
    high = np.inf if effect.high is None else effect.high
    return (value >= low) & (value < high)


def intercept_for(prevalence: float, logit: np.ndarray) -> float:
    """The intercept, to four decimals, that makes the mean probability of these logits the prevalence.

    Example:
        >>> intercept_for(0.5, np.zeros(3))
        0.0
    """
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if (1 / (1 + np.exp(-logit - middle))).mean() < prevalence else (low, middle)
    return round(low, 4) + 0.0  # no minus zero


def placed(logit: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Where each prediction is counted, [prediction]: its logit on the grid, positives behind all negatives."""
    place: np.ndarray = np.rint((np.clip(logit, -WIDEST, WIDEST) + WIDEST) / GRID).astype(np.int32)
    place[label] += GRID_SIZE
    return place


def auroc(counts: np.ndarray) -> float | None:
    """The probability that a positive's logit is above a negative's, ties counting half; None without one of either.

    Args:
        counts: negative and positive predictions at each place of the grid, [2, grid].
    """
    negative, positive = counts.astype(float)
    pairs = negative.sum() * positive.sum()
    below = np.cumsum(negative) - negative
    return float(((below + negative / 2) * positive).sum() / pairs) if pairs else None


def described(intercept: float, counts: np.ndarray) -> dict[str, Any]:
    """The whole truth, as truth.json has it."""
    n_negative, n_positive = counts.sum(axis=1).tolist()
    best = auroc(counts)
    return {
        "task": TASK,
        "logit": "intercept + the sum of the effects; probability = 1 / (1 + exp(-logit))",
        "intercept": intercept,
        "forms": FORMS,
        "effects": [asdict(effect) for effect in EFFECTS],
        "distractors": [asdict(DISTRACTOR)],
        "leaks": [asdict(LEAK)],
        "after_the_prediction": [asdict(after) for after in AFTER],
        "n_predictions": n_negative + n_positive,
        "n_positive": n_positive,
        "prevalence": n_positive / (n_negative + n_positive),
        "bayes_auroc": None if best is None else round(best, 4),
    }
