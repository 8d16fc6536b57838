"""A slow, independent making of one record: steps of any kind, and what follows from recorded values.

Written from the words of the documentation with plain lists and datetimes; imports nothing of whenwhy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

import pandas as pd

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@dataclass(frozen=True)
class Rules:
    """What was asked for."""

    steps: str = "event"
    visit_gap: float = 24
    anchor: str = "prediction"
    history_hours: float | None = None
    max_steps: int = 1000
    repeats: str = "all"
    carry: tuple[str, ...] = ()
    carry_hours: float | None = None
    since_last: tuple[str, ...] = ()
    not_measured: tuple[tuple[str, float], ...] = ()
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Value:
    """One feature value of a record."""

    step: int
    id: int
    minutes: int
    number: float | None


def id_of(features: pd.DataFrame, code: str, number: float | None) -> int | None:
    """The feature value of a code that holds a number."""
    for row in features[features.code == code].itertuples():
        if pd.isna(row.low):
            if number is None:
                return int(row.feature_value_id)
        elif number is not None and row.low <= number < row.high:
            return int(row.feature_value_id)
    return None


def matches(code: str, name: str) -> bool:
    return code == name or code.startswith(name + "//")


def slow_record(
    events: list[tuple[datetime, str, float | None]], features: pd.DataFrame, end: datetime, rules: Rules
) -> tuple[list[int], list[Value], int | None, int | None]:
    """step_minutes, the values in order, anchor_minutes, history_minutes of one record.

    Args:
        events: of the patient, dated: time, code, number; in any order.
    """
    past = sorted((e for e in events if e[0] <= end), key=lambda e: e[0])
    anchor = None
    if rules.anchor != "prediction":
        name = "ADMISSION" if rules.anchor == "admission" else rules.anchor
        times = [time for time, code, _ in past if matches(code, name)]
        anchor = (times[-1] if rules.anchor == "admission" else times[0]) if times else None
    if rules.history_hours is not None:
        past = [e for e in past if e[0] >= end - rules.history_hours * HOUR]
    known = [(time, code, number, id_of(features, code, number)) for time, code, number in past]
    # At one time the higher feature value, then the higher number, counts as the later one.
    known = sorted((e for e in known if e[3] is not None), key=lambda e: (e[0], e[3], e[2] or 0))

    def ahead(time: datetime) -> int:
        return int((end - time) / MINUTE) if end >= time else 0

    # The steps: a list of (number, begin or None, time of the step).
    place: list[int] = []
    times_of: dict[int, datetime] = {}
    if rules.steps in ("event", "visit"):
        gap = timedelta(0) if rules.steps == "event" else rules.visit_gap * HOUR
        for at, (time, *_) in enumerate(known):
            if at == 0 or time - known[at - 1][0] > gap:
                place.append(place[-1] + 1 if place else 0)
            else:
                place.append(place[-1])
            times_of[place[-1]] = time
    else:
        width = float(rules.steps[:-1]) * (HOUR if rules.steps[-1] == "h" else 24 * HOUR)
        if anchor is not None:
            last = max(math.ceil((end - anchor) / width) - 1, 0)
            numbers = [min(math.floor((time - anchor) / width), last) for time, *_ in known]
            first = min([0, *numbers])
            ends = {n: anchor + (n + 1) * width for n in range(first, last + 1)} if known else {}
        else:
            numbers = [-math.floor((end - time) / width) - 1 for time, *_ in known]
            first = min(numbers, default=0)
            ends = {n: end + (n + 1) * width for n in range(first, 0)} if known else {}
        place = [n - first for n in numbers]
        times_of = {n - first: min(time, end) for n, time in ends.items()}
    count = len(times_of)
    dropped = max(0, count - rules.max_steps)
    step_minutes = [ahead(times_of[n]) for n in range(dropped, count)]
    history = None
    if count:
        if rules.steps in ("event", "visit"):
            history = ahead(next(time for (time, *_), n in zip(known, place, strict=True) if n == dropped))
        else:
            seen = min([time for time, *_ in known] + ([anchor] if anchor is not None else []))
            begin = (anchor if anchor is not None else end) + (first + dropped) * width
            history = ahead(max(seen, begin))

    # Repeats within a step.
    kept = []
    for at, (_time, code, _number, feature) in enumerate(known):
        later = [
            (other[1], other[3]) for other, n in zip(known[at + 1 :], place[at + 1 :], strict=True) if n == place[at]
        ]
        if rules.repeats == "once" and feature in [f for _, f in later]:
            continue
        if rules.repeats == "last" and code in [c for c, _ in later]:
            continue
        kept.append(at)
    values = [Value(place[at] - dropped, known[at][3], ahead(known[at][0]), known[at][2]) for at in kept]
    codes = [known[at][1] for at in kept]
    steps = count - dropped

    derived: list[Value] = []
    for code in rules.carry:
        for step in range(steps):
            here = [v for v, c in zip(values, codes, strict=True) if c == code and v.step == step]
            before = [v for v, c in zip(values, codes, strict=True) if c == code and v.step < step]
            if here or not before:
                continue
            newest = max(v.step for v in before)
            last_value = [v for v in before if v.step == newest][-1]
            if rules.carry_hours is not None and last_value.minutes - step_minutes[step] > 60 * rules.carry_hours:
                continue
            row = features[features.feature_value_id == last_value.id].iloc[0]
            twin = features[features.code == f"{code} (carried forward)"]
            twin = twin[twin.low.isna()] if pd.isna(row.low) else twin[twin.low == row.low]
            derived.append(Value(step, int(twin.feature_value_id.iloc[0]), step_minutes[step], last_value.number))
    for code in rules.since_last:
        own = [v for v, c in zip(values, codes, strict=True) if c == code]
        for before, after in pairwise(own):
            if after.minutes < before.minutes and after.step >= 0:
                hours = (before.minutes - after.minutes) / 60
                feature = id_of(features, f"{code} (hours since last)", hours)
                derived.append(Value(after.step, feature, after.minutes, hours))
    for code, hours in rules.not_measured:
        own = [v for v, c in zip(values, codes, strict=True) if c == code]
        marks = [(-1, history)] if history is not None else []
        marks += [(step, [v for v in own if v.step == step][-1].minutes) for step in {v.step for v in own}]
        marks.sort(key=lambda mark: mark[0])
        for at, (step, minutes) in enumerate(marks):
            until = marks[at + 1][0] if at + 1 < len(marks) else steps
            for candidate in range(max(step + 1, 0), until):
                if minutes - step_minutes[candidate] >= 60 * hours:
                    feature = id_of(features, f"{code} (not measured for {hours:g} h)", None)
                    derived.append(Value(candidate, feature, step_minutes[candidate], None))
                    break
    shown = [v for v in values if v.step >= 0] + derived
    for code in rules.numbers:
        for name in (code, f"{code} (carried forward)"):
            for value in list(shown):
                row = features[features.feature_value_id == value.id].iloc[0]
                if row.code == name and not pd.isna(row.low):
                    twin = int(features[features.code == f"{name} (number)"].feature_value_id.iloc[0])
                    shown.append(Value(value.step, twin, value.minutes, value.number))
    return step_minutes, shown, None if anchor is None else ahead(anchor), history
