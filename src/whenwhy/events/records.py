"""A shard's events flow in, its predictions' records flow out: steps, feature values, static values.

Nothing after a prediction time is ever read into its record.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from whenwhy.events.derived_features import Layout, Values, derived
from whenwhy.events.event_scan import UNDATED
from whenwhy.events.sorted_numbers import changes, first_reaching
from whenwhy.events.steps import HOUR_US, MINUTE_US, NO_ANCHOR, StepRule, steps_of
from whenwhy.schema import EVERYTHING_ABSENT, SEQUENCES

#: What becomes of several values in one step.
ALL, ONCE, LAST = "all", "once", "last"
REPEATS = {
    ALL: "every recorded value counts",
    ONCE: "a feature value counts once a step, as in a 0/1 input",
    LAST: "a code's last value in a step counts",
}


@dataclass(frozen=True)
class RecordRules:
    """How events become records.

    Attributes:
        steps: the rule of steps; most_steps: the most recent ones that are kept.
        first_anchor: the first anchoring event of a record counts, not the last one.
        history: microseconds before the prediction beyond which events are left out.
        repeats: one of REPEATS.
    """

    steps: StepRule
    most_steps: int
    first_anchor: bool
    history: int
    repeats: str


@dataclass(frozen=True)
class PatientEvents:
    """The events of a shard's patients, by patient and time; undated ones first.

    Attributes:
        patient, time, number, anchor: [event]; time in microseconds, number NaN where there is none.
        id: [event] the feature value; -1 for what only anchors, `EVERYTHING_ABSENT` for what only makes steps.
        ages: [prediction] static id and number of the age, -1 and NaN where it is no feature.
    """

    patient: np.ndarray
    time: np.ndarray
    id: np.ndarray
    number: np.ndarray
    anchor: np.ndarray
    ages: tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Records:
    """The records of some predictions, and what was counted on the way.

    Attributes:
        table: of `schema.SEQUENCES`.
        counts: what was kept and left out, by name.
    """

    table: pa.Table
    counts: dict[str, int]


def records_of(
    predictions: pa.Table, patient: np.ndarray, events: PatientEvents, rules: RecordRules, layout: Layout
) -> Records:
    """The records of these predictions, in order.

    Args:
        predictions: the plain columns of `schema.SEQUENCES`, one row a prediction.
        patient: [prediction] whose it is.
    """
    count = predictions.num_rows
    prediction_time = predictions["prediction_time"].cast(pa.int64()).to_numpy()
    bounds = np.searchsorted(events.patient, np.arange(patient.max(initial=-1) + 2))
    undated = np.concatenate([[0], np.cumsum(events.time == UNDATED)])
    first = bounds[patient]  # [prediction] the first event of its patient
    dated = first + undated[bounds[patient + 1]] - undated[first]
    end = first_reaching(events.time, dated, bounds[patient + 1], prediction_time + 1)
    begin = first_reaching(events.time, dated, end, prediction_time - rules.history)
    anchor = _anchors(events, dated, end, rules.first_anchor)

    row, at = _ranges(begin, end)
    known = events.id[at] >= 0
    row, at = row[known], at[known]
    time = events.time[at]
    ahead = prediction_time[row] - time
    assert (ahead >= 0).all(), "an event after its prediction time was read"
    steps = steps_of(row, time, prediction_time, anchor, rules.steps, rules.most_steps)
    values = Values(row, steps.of_event, events.id[at], (ahead // MINUTE_US).astype(np.int32), events.number[at])
    if (values.id == EVERYTHING_ABSENT).any():
        values = values.at(np.flatnonzero(values.id != EVERYTHING_ABSENT))
    old = (begin - dated).sum()
    kept = _repeats(values, layout, rules.repeats)
    n_repeated = len(values.row) - len(kept)
    values = values.at(kept) if n_repeated else values
    extra = derived(values, steps, layout)
    inside = np.flatnonzero(values.step >= 0)
    truncated = np.bincount(values.row, minlength=count) - np.bincount(values.row[inside], minlength=count)
    values = _in_order(values.at(inside) if truncated.any() else values, extra)

    static_row, static_at = _ranges(first, dated)
    age_id, age = events.ages
    aged = np.flatnonzero(age_id >= 0)
    static_row = np.concatenate([static_row, aged])
    static_id = np.concatenate([events.id[static_at], age_id[aged]])
    static_number = np.concatenate([events.number[static_at], age[aged]])
    order = np.lexsort((static_number, static_id, static_row))
    order = order[static_id[order] >= 0]
    static_row, static_id, static_number = static_row[order], static_id[order], static_number[order]
    if layout.weighed:
        weighed = np.flatnonzero(layout.number[static_id] >= 0)
        static_row = np.concatenate([static_row, static_row[weighed]])
        static_number = np.concatenate([static_number, static_number[weighed]])
        static_id = np.concatenate([static_id, layout.number[static_id[weighed]]])
        order = np.lexsort((static_number, static_id, static_row))
        static_row, static_id, static_number = static_row[order], static_id[order], static_number[order]

    per_row = np.bincount(values.row, minlength=count)
    static_per_row = np.bincount(static_row, minlength=count)
    plain = {
        name: predictions[name] for name in ("subject_id", "prediction_time", "label", "split", "source", "strata")
    }
    table = pa.table(
        plain
        | {
            "anchor_minutes": pa.array(
                ((prediction_time - anchor) // MINUTE_US).clip(0, 2**31 - 1).astype(np.int32), mask=anchor == NO_ANCHOR
            ),
            "history_minutes": pa.array(steps.history, mask=steps.counts == 0),
            "step_minutes": _lists(steps.counts, steps.minutes),
            "event_step": _lists(per_row, values.step),
            "event_id": _lists(per_row, values.id),
            "event_minutes": _lists(per_row, values.minutes),
            "event_value": _lists(per_row, pa.array(values.number, from_pandas=True)),
            "event_weight": _weights(per_row, values.id, values.number, layout),
            "static_id": _lists(static_per_row, static_id),
            "static_value": _lists(static_per_row, pa.array(static_number, from_pandas=True)),
            "static_weight": _weights(static_per_row, static_id, static_number, layout),
        }
    )
    counts = {
        "n_predictions": count,
        "n_events": len(inside),
        "n_derived": len(extra.row),
        "n_static": len(static_row),
        "n_steps": int(steps.counts.sum()),
        "n_truncated": int(truncated.sum()),
        "n_truncated_predictions": int((truncated > 0).sum()),
        "n_too_old": int(old),
        "n_repeated": n_repeated,
        "n_without_anchor": int((anchor == NO_ANCHOR).sum()),
        "n_without_events": int((steps.counts == 0).sum()),
    }
    return Records(table.select(SEQUENCES.names).cast(SEQUENCES), counts)


def _anchors(events: PatientEvents, begin: np.ndarray, end: np.ndarray, first: bool) -> np.ndarray:
    """[prediction] the time of its first or last anchoring event; NO_ANCHOR without one."""
    places = np.flatnonzero(events.anchor)
    low, high = np.searchsorted(places, begin), np.searchsorted(places, end)
    time = np.full(len(begin), NO_ANCHOR, dtype=np.int64)
    has = np.flatnonzero(high > low)
    time[has] = events.time[places[low[has] if first else high[has] - 1]]
    return time


def _ranges(begin: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each range, repeated, and all positions in the ranges, one after another."""
    lengths = end - begin
    row = np.repeat(np.arange(len(begin)), lengths)
    return row, np.arange(lengths.sum()) - (np.cumsum(lengths) - lengths - begin)[row]


def _repeats(values: Values, layout: Layout, repeats: str) -> np.ndarray:
    """Positions of the values that stay, in order."""
    if repeats == ALL:
        return np.arange(len(values.row))
    # A code without an own number (a rare one) is told apart by its id.
    code = layout.code[values.id]
    what = values.id if repeats == ONCE else np.where(code >= 0, code, len(layout.code) + values.id)
    order = np.lexsort((what, values.step, values.row))  # stable: by time within
    new = (np.diff(values.row[order]) != 0) | (np.diff(values.step[order]) != 0) | (np.diff(what[order]) != 0)
    return np.sort(order[np.append(new, True)]) if len(order) else order


def _in_order(values: Values, extra: Values) -> Values:
    """All values by record, step and feature value; within one, by time and number."""
    if len(extra.row):
        both = Values(*(np.concatenate(c) for c in zip(values.__dict__.values(), extra.__dict__.values(), strict=True)))
        return both.at(np.lexsort((both.number, -both.minutes, both.id, both.step, both.row)))
    key = values.row.astype(np.int64) << 32 | values.step
    key = np.cumsum(changes(key)) << 32 | values.id
    if (key[1:] >= key[:-1]).all():
        return values
    return values.at(np.argsort(key, kind="stable"))


def _lists(lengths: np.ndarray, flat: np.ndarray | pa.Array) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(offsets, pa.array(flat))


def _weights(lengths: np.ndarray, ids: np.ndarray, number: np.ndarray, layout: Layout) -> pa.Array:
    if not layout.weighed:
        return pa.nulls(len(lengths), pa.list_(pa.float32()))
    return _lists(lengths, layout.weights(ids, number))


def history_limit(hours: float | None) -> int:
    """Hours as microseconds; at most, and without a limit, what whole minutes of 32 bits can tell: 4,083 years."""
    most = (2**31 - 1) * MINUTE_US
    return most if hours is None else min(round(hours * HOUR_US), most)
