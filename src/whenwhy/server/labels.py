"""Numbers and names of a store flow in, the words that a person reads flow out."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from whenwhy.schema import HELD_OUT, TRAIN, TUNING

#: What every page and export says.
NOT_A_CAUSE = "contribution to this model's prediction, not a cause"

#: What stands where an interval would promise too much.
NO_INTERVAL = "no interval: fewer than 30 effective patients"

#: The units of time by their hours, the widest first. A year is 365.25 days.
TIME_UNITS = (("years", 8766), ("days", 24), ("hours", 1))

SPLIT_WORDS = {HELD_OUT: "held-out patients", TUNING: "tuning patients", TRAIN: "training patients"}
#: What a run measures, in words, and which of it has the unit of the target.
QUANTITIES = {
    "contribution": "contribution",
    "step_contribution": "contribution to the step's own prediction",
    "steepness": "steepness",
    "share": "share needed",
    "attention": "attention weight",
}
IN_UNITS = ("contribution", "step_contribution", "steepness")

#: What records are compared with, in words.
BASELINES = {
    "empty": "nothing recorded",
    "rates": "what training patients record on average",
    "carried_forward": "what was recorded before",
    "reference": "training patients",
}

TARGET_UNITS = {"logit": "log-odds", "log_odds": "log-odds", "probability": "probability"}


def number(value: float, digits: int = 4) -> str:
    """A number as people write it.

    Example:
        >>> [number(x) for x in (35.0, 22.237190, -3.5, 12345.6)]
        ['35', '22.24', '−3.5', '12,346']
    """
    text = f"{value:,.0f}" if abs(value) >= 10 ** max(3, digits - 1) else f"{value:.{digits}g}"
    return text.replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """A contribution with its sign.

    Example:
        >>> signed(0.12345), signed(-2.0), signed(None)
        ('+0.123', '−2.00', 'not shown')
    """
    if value is None or not math.isfinite(value):
        return "not shown"
    # Trailing zeros stay: they tell how exact the number is, and columns of numbers line up.
    return f"{value:+#.{digits}g}".removesuffix(".").replace("-", "−")


def amount(value: float | None, digits: int = 3) -> str:
    """A contribution without its sign.

    Example:
        >>> amount(0.74), amount(None)
        ('0.740', 'not shown')
    """
    return signed(value) if value is None else signed(abs(value), digits)[1:]


def interval(low: float | None, high: float | None) -> str:
    """A 95 % interval, or why there is none.

    Example:
        >>> interval(-0.2, 0.1)
        '−0.200 to +0.100'
    """
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        return NO_INTERVAL
    return f"{signed(low)} to {signed(high)}"


def counted(n: int, one: str, many: str | None = None) -> str:
    """How many of what.

    Example:
        >>> counted(1, "patient"), counted(2104, "patient")
        ('1 patient', '2,104 patients')
    """
    return f"{n:,} {one if n == 1 else many or one + 's'}"


def compact(n: int) -> str:
    """A count in at most five characters, for narrow places.

    Example:
        >>> compact(1744), compact(12345), compact(1234567)
        ('1744', '12k', '1.2M')
    """
    if n < 10_000:
        return str(n)
    if n < 999_500:
        return f"{n / 1e3:.0f}k"
    return f"{n / 1e6:.1f}M"


def value_range(low: float | None, high: float | None, unit: str | None = None, digits: int = 4) -> str:
    """A range low <= value < high in original units. A missing edge may not be shown.

    Example:
        >>> value_range(35.0, 39.0, "mg/dL"), value_range(-math.inf, 35.0), value_range(72.0, math.inf)
        ('35 to 39 mg/dL', '< 35', '≥ 72')
    """
    if low is not None and low == -math.inf and high is not None:
        if high == math.inf:
            return "any value"
        text = f"< {number(high, digits)}"
    elif high is not None and high == math.inf and low is not None:
        text = f"≥ {number(low, digits)}"
    else:
        text = f"{_edge(low, digits)} to {_edge(high, digits)}"
    return f"{text} {unit}" if unit else text


def _edge(value: float | None, digits: int) -> str:
    return "…" if value is None or not math.isfinite(value) else number(value, digits)


def value_labels(bins: Sequence[Mapping[str, Any]], with_unit: bool = True) -> list[str]:
    """The label of each range of a feature; as many digits as it takes to tell them apart.

    Args:
        bins: rows with bin (None: recorded without a number), low, high and unit.

    Example:
        >>> value_labels([{"bin": None, "low": None, "high": None, "unit": None}])
        ['recorded']
    """
    labels: list[str] = []
    for digits in range(4, 10):
        labels = [
            "recorded" if b["bin"] is None else value_range(b["low"], b["high"], b["unit"] if with_unit else "", digits)
            for b in bins
        ]
        if len(set(labels)) == len(labels):
            break
    return labels


def time_unit(width_hours: float) -> tuple[str, int]:
    """The unit for bins of this width, and its hours.

    Example:
        >>> time_unit(8766), time_unit(6)
        (('years', 8766), ('hours', 1))
    """
    return next(((name, hours) for name, hours in TIME_UNITS if width_hours >= hours), TIME_UNITS[-1])


def time_range(low_hours: float, high_hours: float, unit: tuple[str, int]) -> str:
    """A bin of time in words.

    Example:
        >>> time_range(0, 8766, ("years", 8766)), time_range(48, math.inf, ("days", 24))
        ('0 to 1 years before', '2 days or more before')
    """
    name, hours = unit
    if not math.isfinite(high_hours):
        return f"{number(low_hours / hours)} {name} or more before"
    return f"{number(low_hours / hours)} to {number(high_hours / hours)} {name} before"


def split_words(split: str) -> str:
    """Who a split holds.

    Example:
        >>> split_words("held_out")
        'held-out patients'
    """
    return SPLIT_WORDS.get(split, split)


def class_words(label: str, outcome: str) -> str:
    """What a class of patients has in common.

    Example:
        >>> class_words("true", "death within five years"), class_words("all", "death")
        ('death within five years: true', 'all classes')
    """
    return "all classes" if label == "all" else f"{outcome}: {label}"


def stratum_words(stratum: str) -> str:
    """What a stratum's patients have in common.

    Example:
        >>> stratum_words("age_band=20-29"), stratum_words("all")
        ('age band: 20-29', 'everybody')
    """
    if stratum == "all":
        return "everybody"
    name, equals, value = stratum.partition("=")
    return f"{name.replace('_', ' ')}: {value}" if equals else stratum


def panel_words(hours: float) -> str:
    """Whom a fixed panel is of.

    Example:
        >>> panel_words(48)
        'those whose history reaches back 2 days'
    """
    unit, width = time_unit(hours)
    return f"those whose history reaches back {number(hours / width)} {unit}"


def percent(share: float) -> str:
    """A share in words.

    Example:
        >>> percent(0.07), percent(0.001)
        ('7 %', 'under 1 %')
    """
    return f"{'under 1' if 0 < share < 0.005 else format(100 * share, '.0f')} %"


def run_words(run: Mapping[str, Any]) -> str:
    """How a list calls a run.

    Example:
        >>> run_words({"run_id": "0a1b2c3d4e", "method": "integrated_gradients", "target": "logit", "baseline": "empty"})
        'integrated gradients of logit, baseline empty (0a1b2c3d)'
    """
    method = str(run["method"]).replace("_", " ")
    return f"{method} of {run['target']}, baseline {run['baseline']} ({run['run_id'][:8]})"


def baseline_words(run: Mapping[str, Any]) -> str:
    """What a run compares records with.

    Example:
        >>> baseline_words({"baseline": "empty"}), baseline_words({"baseline": "mine"})
        ('nothing recorded', 'mine')
    """
    return BASELINES.get(str(run["baseline"]), str(run["baseline"]))


def quantity(run: Mapping[str, Any]) -> str:
    """What the numbers of a run are, by its row of the query `runs`.

    Example:
        >>> quantity({"measures": "contribution"}), quantity({"measures": "attention"})
        ('contribution', 'attention weight')
    """
    return QUANTITIES[run["measures"]]


def unit_of(run: Mapping[str, Any]) -> str:
    """The unit of a run's numbers, or what they are where they have none.

    Example:
        >>> unit_of({"measures": "contribution", "target": "logit"}), unit_of({"measures": "share", "target": "logit"})
        ('log-odds', 'share needed')
    """
    return target_unit(str(run["target"])) if run["measures"] in IN_UNITS else quantity(run)


def quantity_in_unit(run: Mapping[str, Any]) -> str:
    """What the numbers of a run are, for captions; of those that are no contributions it says so.

    Example:
        >>> quantity_in_unit({"measures": "contribution", "target": "logit"})
        'contribution, in log-odds'
        >>> quantity_in_unit({"measures": "attention", "target": "logit"})
        'attention weight, not a contribution'
    """
    told = f"{quantity(run)}, in {unit_of(run)}" if run["measures"] in IN_UNITS else quantity(run)
    return told if "contribution" in told else f"{told}, not a contribution"


def is_complete(run: Mapping[str, Any]) -> bool | None:
    """Whether a run's contributions add up to what they explain; None: its numbers are not meant to.

    Example:
        >>> is_complete({"measures": "contribution", "residual_maximum": 1e-6, "tolerance": 1e-4})
        True
    """
    if run["measures"] != "contribution" or run["residual_maximum"] is None:
        return None
    return bool(run["residual_maximum"] <= run["tolerance"])


def not_a_cause(run: Mapping[str, Any]) -> str:
    """What a caption says a run's numbers are not, a sentence; empty of those that are no contributions anyway.

    Example:
        >>> not_a_cause({"measures": "contribution"}), not_a_cause({"measures": "attention"})
        ("Contribution to this model's prediction, not a cause.", '')
    """
    return f"{NOT_A_CAUSE.capitalize()}." if "contribution" in run["measures"] else ""


def ranking_title(run: Mapping[str, Any]) -> str:
    """The title of the ranked features.

    Example:
        >>> ranking_title({"measures": "contribution"}), ranking_title({"measures": "attention"})
        ('What carries the predictions', 'Where the attention weight is largest')
    """
    if "contribution" in run["measures"]:
        return "What carries the predictions"
    return f"Where the {quantity(run)} is largest"


def target_unit(target: str) -> str:
    """The unit of a target.

    Example:
        >>> target_unit("logit"), target_unit("log_odds:dead:home"), target_unit("probability:dead@-1")
        ('log-odds', 'log-odds of dead against home', 'probability of dead, step -1')
    """
    what, at, step = target.partition("@")
    kind, *classes = what.split(":")
    if kind not in TARGET_UNITS or (kind == "log_odds" and len(classes) != 2):
        return target
    unit = TARGET_UNITS[kind] if kind != "logit" or not classes else "logit"
    named = f" of {' against '.join(classes)}" if classes else ""
    return unit + named + (f", step {step}" if at else "")


def found(summary: Mapping[str, Any] | None) -> str:
    """How many patients and events a title rests on.

    Example:
        >>> found({"n_patients": 920, "n_events": 1407})
        ': 920 patients, 1,407 events'
    """
    if summary is None:
        return ""
    return f": {counted(summary['n_patients'], 'patient')}, {counted(summary['n_events'], 'event')}"


def no_cells(min_patients: int) -> str:
    """What stands where nothing may be shown.

    Example:
        >>> no_cells(11)
        'no cells of 11 or more patients here'
    """
    return f"no cells of {min_patients:,} or more patients here"


def for_analysts(what: str, instead: str = "") -> str:
    """Why viewers do not get something, and what they may choose instead.

    Example:
        >>> for_analysts("Calibration")
        'Calibration: for analysts alone, who may read the rows of single patients (whenwhy serve --role analyst).'
    """
    told = f"{what}: for analysts alone, who may read the rows of single patients (whenwhy serve --role analyst)."
    return f"{told} {instead}".strip()


def capitalised(text: str) -> str:
    """A text as a title or a sentence begins.

    Example:
        >>> capitalised("age at the prediction"), capitalised("HDL cholesterol")
        ('Age at the prediction', 'HDL cholesterol')
    """
    return text[:1].upper() + text[1:]


def shortened(text: str, most: int) -> str:
    """A text of at most so many characters.

    Example:
        >>> shortened("non-alcoholic fatty liver disease", 20)
        'non-alcoholic fatty…'
    """
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"
