"""The true logits of made-up patients once more: one patient, one effect, one event at a time, from truth.json."""

from __future__ import annotations

from datetime import datetime
from typing import Any

Event = tuple[datetime | None, str, float | None]


def completed_years(birth: datetime, at: datetime) -> int:
    """A person's age in whole years."""
    years = at.year - birth.year
    return years - 1 if (at.month, at.day) < (birth.month, birth.day) else years


def true_contribution(effect: dict[str, Any], events: list[Event], prediction: datetime) -> float:
    """What one effect adds to the logit; events after the prediction are never looked at."""
    known = [(time, code, value) for time, code, value in events if time is not None and time <= prediction]

    def days_ago(time: datetime) -> float:
        return (prediction - time).total_seconds() / 86_400

    def within(value: float | None) -> bool:
        if effect["low"] is None and effect["high"] is None:
            return True
        if value is None:
            return False
        return (effect["low"] is None or value >= effect["low"]) and (effect["high"] is None or value < effect["high"])

    def present(wanted: str) -> bool:
        return any(code == wanted and days_ago(time) <= effect["days"] and within(value) for time, code, value in known)

    if effect["code"] == "AGE":
        born = next(time for time, code, _ in known if code == "MEDS_BIRTH")
        return effect["coefficient"] if within(completed_years(born, prediction)) else 0.0
    if effect["form"] == "decay":
        ago = [days_ago(time) for time, code, _ in known if code == effect["code"]]
        return effect["coefficient"] * 2 ** (-min(ago) / effect["half_life_days"]) if ago else 0.0
    if effect["form"] == "both":
        return effect["coefficient"] if present(effect["code"]) and present(effect["other_code"]) else 0.0
    assert effect["form"] == "any"
    return effect["coefficient"] if present(effect["code"]) else 0.0


def true_logit(truth: dict[str, Any], events: list[Event], prediction: datetime) -> float:
    """The intercept plus every effect."""
    return truth["intercept"] + sum(true_contribution(effect, events, prediction) for effect in truth["effects"])
