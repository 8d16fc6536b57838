"""Time axes: equal bins of a width that people read easily, the last one open."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from whenwhy.errors import UserError

#: Hours before the prediction.
BEFORE_PREDICTION = "before_prediction"

HOUR, DAY, YEAR = 1, 24, 8766  # a year is 365.25 days
WIDTHS = (1, 2, 3, 6, 12, DAY, 2 * DAY, 7 * DAY, 14 * DAY, 30 * DAY, 90 * DAY, 180 * DAY, YEAR, 2 * YEAR, 5 * YEAR)
MOST_BINS = 24

#: The share of histories that begin within the bins' widths; the last bin is open and takes the rest.
SPANNED = 0.95


@dataclass(frozen=True)
class TimeAxis:
    """Bin i holds low_hours <= hours < high_hours; the last holds everything beyond."""

    name: str
    width_hours: int
    n_bins: int

    def bounds(self, time_bin: int) -> tuple[float, float]:
        """low_hours and high_hours of a bin.

        Example:
            >>> TimeAxis(BEFORE_PREDICTION, 24, 3).bounds(2)
            (48.0, inf)
        """
        low = float(time_bin * self.width_hours)
        return low, math.inf if time_bin == self.n_bins - 1 else low + self.width_hours


def readable_axis(history_minutes: np.ndarray, width_hours: int | None = None) -> TimeAxis:
    """The axis before the prediction for these histories [prediction], minutes from first step to prediction.

    The narrowest readable width that spans 95 % of the histories in at most 24 bins, unless given.

    Example:
        >>> readable_axis(np.array([47 * 60, 30 * 60]))
        TimeAxis(name='before_prediction', width_hours=2, n_bins=24)
    """
    if width_hours is not None and width_hours < 1:
        raise UserError("--time-bin-hours needs at least 1 hour.")
    span = float(np.quantile(history_minutes, SPANNED, method="higher")) / 60 if len(history_minutes) else 0.0
    fitting = [width for width in WIDTHS if span < width * MOST_BINS]
    width = width_hours or (fitting[0] if fitting else WIDTHS[-1])
    return TimeAxis(
        BEFORE_PREDICTION,
        width,
        min(MOST_BINS, math.floor(span / width) + 1) if width_hours is None else math.floor(span / width) + 1,
    )
