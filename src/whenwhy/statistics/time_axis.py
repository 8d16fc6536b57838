"""Time axes: bins of a width that people read easily, counted from the prediction, an anchor, or a code's first record."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from whenwhy.errors import UserError

#: Hours before the prediction.
BEFORE_PREDICTION = "before_prediction"

#: Hours after the anchor of a patient's record (an admission, a diagnosis): negative before it.
AFTER_ANCHOR = "after_anchor"

#: Begins the name of an axis of hours after a code's first record: since:CODE.
SINCE = "since:"

HOUR, DAY, YEAR = 1, 24, 8766  # a year is 365.25 days
WIDTHS = (1, 2, 3, 6, 12, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 180 * DAY, YEAR, 2 * YEAR, 5 * YEAR)
MOST_BINS = 24

#: The share of histories that begin within the bins' widths; the last bin is open and takes the rest.
SPANNED = 0.95


@dataclass(frozen=True)
class TimeAxis:
    """Bin i holds low_hours <= hours < high_hours; the last is open, and so is the first where it lies before 0."""

    name: str
    width_hours: int
    n_bins: int
    first_bin: int = 0

    @property
    def last_bin(self) -> int:
        return self.first_bin + self.n_bins - 1

    def bounds(self, time_bin: int) -> tuple[float, float]:
        """low_hours and high_hours of a bin.

        Example:
            >>> TimeAxis(BEFORE_PREDICTION, 24, 3).bounds(2)
            (48.0, inf)
            >>> TimeAxis(AFTER_ANCHOR, 24, 4, first_bin=-2).bounds(-2)
            (-inf, -24.0)
        """
        low, high = float(time_bin * self.width_hours), float((time_bin + 1) * self.width_hours)
        return (
            -math.inf if time_bin == self.first_bin < 0 else low,
            math.inf if time_bin == self.last_bin else high,
        )

    def bin_of(self, minutes: str) -> str:
        """The SQL of the bin of a column of minutes on this axis; null where the column is.

        Example:
            >>> TimeAxis(BEFORE_PREDICTION, 24, 3).bin_of("m")
            '(case when m is not null then least((greatest(m, 0) - 0) // 1440, 2) + 0 end)::smallint'
        """
        width, first = 60 * self.width_hours, self.first_bin
        # Counted from the first bin's edge, since whole division of negative numbers goes the other way.
        return (
            f"(case when {minutes} is not null then least((greatest({minutes}, {first * width}) - {first * width}) // "
            f"{width}, {self.n_bins - 1}) + {first} end)::smallint"
        )


def readable_axis(history_minutes: np.ndarray, width_hours: int | None = None) -> TimeAxis:
    """The axis before the prediction for these histories [prediction], minutes from first step to prediction.

    The narrowest readable width that spans 95 % of the histories in at most 24 bins, unless given.

    Example:
        >>> readable_axis(np.array([47 * 60, 30 * 60]))
        TimeAxis(name='before_prediction', width_hours=2, n_bins=24, first_bin=0)
    """
    span = _span(history_minutes)
    width = _width(span, width_hours)
    most = MOST_BINS if width_hours is None else math.inf
    return TimeAxis(BEFORE_PREDICTION, width, int(min(most, span // width + 1)))


def readable_two_sided_axis(
    name: str, before_minutes: np.ndarray, after_minutes: np.ndarray, width_hours: int | None = None
) -> TimeAxis:
    """An axis of hours after something, for records that reach so far before and after it [prediction].

    The narrowest readable width that spans 95 % of them on either side in at most 24 bins, unless given; the first
    bin is open, and takes what lies farther before.

    Example:
        >>> readable_two_sided_axis(AFTER_ANCHOR, np.array([0, 30]), np.array([2880, 1440]))
        TimeAxis(name='after_anchor', width_hours=3, n_bins=18, first_bin=-1)
    """
    before, after = _span(before_minutes), _span(after_minutes)
    some_before = int((before_minutes > 0).any())

    def bins(width: int) -> tuple[int, int]:
        return max(math.ceil(before / width), some_before), int(after // width) + 1

    fitting = [width for width in WIDTHS if sum(bins(width)) <= MOST_BINS]
    width = _width(0, width_hours) if width_hours is not None else fitting[0] if fitting else WIDTHS[-1]
    n_before, n_after = bins(width)
    if width_hours is None and not fitting:
        n_before, n_after = min(n_before, MOST_BINS // 2), min(n_after, MOST_BINS // 2)
    return TimeAxis(name, width, n_before + n_after, -n_before)


def _span(minutes: np.ndarray) -> float:
    """Hours within which 95 % lie."""
    return float(np.quantile(minutes, SPANNED, method="higher")) / 60 if len(minutes) else 0.0


def _width(span: float, given: int | None) -> int:
    if given is not None and given < 1:
        raise UserError("--time-bin-hours needs at least 1 hour.")
    fitting = [width for width in WIDTHS if span < width * MOST_BINS]
    return given or (fitting[0] if fitting else WIDTHS[-1])
