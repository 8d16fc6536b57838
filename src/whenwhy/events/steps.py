"""Dated events flow in, steps flow out: by event, by visit, or by fixed bins of hours or days."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from whenwhy.errors import UserError
from whenwhy.events.sorted_numbers import changes

MINUTE_US = 60_000_000
HOUR_US = 60 * MINUTE_US
DAY_US = 24 * HOUR_US

MOST_WIDTH = 36525 * DAY_US

EVENT, VISIT, BINS = "event", "visit", "bins"

#: An anchor that a record lacks.
NO_ANCHOR = np.iinfo(np.int64).min


@dataclass(frozen=True)
class StepRule:
    """How events become steps.

    Attributes:
        kind: EVENT: one a distinct time; VISIT: events no further apart than `width`; BINS: equal widths.
        width: microseconds: of a bin, or the longest gap within a visit.
    """

    kind: str
    width: int = 0


@dataclass(frozen=True)
class Steps:
    """The steps of some records.

    Attributes:
        of_event: [event] the event's step in its record, from 0.
        counts: [record] how many steps.
        minutes: [step] whole minutes from the step to the prediction, all records' steps one after another.
        history: [record] whole minutes that the steps look back: to the first event, or the anchor if that
            is earlier, but no further than the first step.
    """

    of_event: np.ndarray
    counts: np.ndarray
    minutes: np.ndarray
    history: np.ndarray

    @property
    def first(self) -> np.ndarray:
        """[record] where each record's steps begin in `minutes`."""
        return np.concatenate([[0], np.cumsum(self.counts)])[:-1]


def step_rule(text: str, visit_gap_hours: float) -> StepRule:
    """The rule that "event", "visit", "6h" or "1d" names.

    Raises:
        UserError: it names none.

    Example:
        >>> step_rule("6h", 24).width // HOUR_US
        6
    """
    if text == EVENT:
        return StepRule(EVENT)
    if text == VISIT:
        return StepRule(VISIT, round(visit_gap_hours * HOUR_US))
    told = re.fullmatch(r"(\d+(?:\.\d+)?)(h|d)", text)
    width = round(float(told[1]) * (HOUR_US if told[2] == "h" else DAY_US)) if told else 0
    if not MINUTE_US <= width <= MOST_WIDTH:
        raise UserError(
            f"--steps is '{text}': write event, visit, or a width of a minute to 100 years such as 6h or 1d."
        )
    return StepRule(BINS, width)


def steps_of(
    row: np.ndarray, time: np.ndarray, prediction_time: np.ndarray, anchor: np.ndarray, rule: StepRule, most: int
) -> Steps:
    """The steps of these records, at most the `most` recent ones of each.

    An event of an older step has a negative step. Bins are closed at their begin and align with the
    anchor; the last one ends with the prediction and holds it. A record without an anchor has bins that
    count back from the prediction. Bins without events are steps too, from the first event (or the anchor,
    if that is earlier) to the prediction.

    Args:
        row: [event] the record of each event, ascending.
        time: [event] microseconds, ascending within a record.
        prediction_time, anchor: [record] microseconds; NO_ANCHOR: none.

    Example:
        >>> day = np.array([0, 1, 9, 10]) * DAY_US
        >>> end, none = np.array([10 * DAY_US]), np.array([NO_ANCHOR])
        >>> steps_of(np.zeros(4, int), day, end, none, step_rule("visit", 48), 100).of_event.tolist()
        [0, 0, 1, 1]
        >>> steps_of(np.zeros(4, int), day, end, none, step_rule("5d", 0), 100).minutes.tolist()
        [14400, 7200, 0]
    """
    count = len(prediction_time)
    if rule.kind == BINS:
        step, counts, ends = _bins(row, time, prediction_time, anchor, rule.width)
    else:
        step, counts = _runs(row, time, prediction_time, rule)
    kept = np.minimum(counts, most)
    left_out = counts - kept  # [record]
    step = step - left_out[row]
    # The steps' own times: of the last event in it, or the bin's end.
    if rule.kind == BINS:
        record = np.repeat(np.arange(count), kept)
        number = np.arange(kept.sum()) - np.repeat(np.concatenate([[0], np.cumsum(kept)])[:-1], kept)
        end = ends[record] + (number + left_out[record]) * rule.width
        ahead = np.maximum(prediction_time[record] - end, 0)
        seen = np.where((anchor != NO_ANCHOR) & (kept > 0), np.minimum(anchor, prediction_time), prediction_time)
        np.minimum.at(seen, row, time)
        history = prediction_time - np.where(kept > 0, np.maximum(seen, ends + (left_out - 1) * rule.width), seen)
    else:
        last = np.flatnonzero((step >= 0) & _changes(row, step))
        ahead = prediction_time[row[last]] - time[last]
        first = np.flatnonzero((step == 0) & _changes(row, step, before=True))
        history = np.zeros(count, dtype=np.int64)
        history[row[first]] = prediction_time[row[first]] - time[first]
    return Steps(step.astype(np.int32), kept, (ahead // MINUTE_US).astype(np.int32), _minutes(history))


def _changes(row: np.ndarray, step: np.ndarray, before: bool = False) -> np.ndarray:
    """[event] whether the next (or the previous) event belongs to another step."""
    new = changes(row) | changes(step)
    return new if before else np.append(new[1:], True)


def _runs(
    row: np.ndarray, time: np.ndarray, prediction_time: np.ndarray, rule: StepRule
) -> tuple[np.ndarray, np.ndarray]:
    """The step of each event [event], and how many there are [record]."""
    new = changes(row)
    new[1:] |= time[1:] - time[:-1] > (rule.width if rule.kind == VISIT else 0)
    number = np.cumsum(new) - 1
    counts = np.bincount(row[new], minlength=len(prediction_time))
    first = np.concatenate([[0], np.cumsum(counts)])[:-1]
    return number - first[row], counts


def _bins(
    row: np.ndarray, time: np.ndarray, prediction_time: np.ndarray, anchor: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The step of each event [event], how many there are, and the end of the first one [record]."""
    count = len(prediction_time)
    anchored = anchor != NO_ANCHOR
    # Counted from the anchor; without one, bins end at the prediction, and an event exactly there is in the last.
    zero = np.where(anchored, anchor, prediction_time)
    last = np.where(anchored, np.maximum(-((zero - prediction_time) // width) - 1, 0), -1)
    number = np.where(anchored[row], (time - zero[row]) // width, -((prediction_time[row] - time) // width) - 1)
    number = np.minimum(number, last[row])
    first = np.where(anchored, np.minimum(0, last), last)
    np.minimum.at(first, row, number)
    has = np.bincount(row, minlength=count) > 0
    counts = np.where(has, last - first + 1, 0)
    ends = zero + (first + 1) * width  # of the first bin
    return number - first[row], counts, ends


def _minutes(microseconds: np.ndarray) -> np.ndarray:
    return (microseconds // MINUTE_US).astype(np.int32)
