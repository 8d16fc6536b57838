"""Ascending pieces of numbers flow in, their quantiles flow out: edges of bins, a middle and a spread."""

from __future__ import annotations

import numpy as np


def bin_edges(values: np.ndarray, counts: np.ndarray, bins: int) -> np.ndarray:
    """Inner edges [bin - 1] as float32, ascending: an event falls into bin sum(value >= edge).

    With at most `bins` distinct values each gets a bin. Otherwise an edge is the first value at which the
    share of events below it reaches k / bins; tied edges are merged.

    Args:
        values: [distinct value] float32, ascending, without NaN.
        counts: [distinct value] how often each occurs.

    Example:
        >>> bin_edges(np.float32([1, 2, 3, 4]), np.array([5, 5, 5, 5]), bins=2)
        array([3.], dtype=float32)
        >>> bin_edges(np.float32([0, 1]), np.array([4139, 2869]), bins=10)
        array([1.], dtype=float32)
    """
    finder = EdgeFinder(len(values), int(counts.sum()), bins)
    finder.take(values.astype(np.float32), counts)
    return finder.edges()


class EdgeFinder:
    """Finds `bin_edges` of numbers that come in ascending pieces, holding no more than the edges.

    Args:
        n_distinct, n_events: of the whole code.
    """

    def __init__(self, n_distinct: int, n_events: int, bins: int) -> None:
        self.each_its_own = n_distinct <= bins
        self.n_events = n_events
        self.wanted = np.arange(1, bins) / bins - 1e-12  # shares of events below an edge
        self.below = self.seen = 0
        self.found: list[np.ndarray] = []

    def take(self, values: np.ndarray, counts: np.ndarray) -> None:
        """The next distinct values, ascending, and how often each occurs."""
        if self.each_its_own:
            self.found.append(values[1:] if self.seen == 0 else values)
        else:
            ends = np.cumsum(counts) + self.below
            first = np.searchsorted((ends - counts) / self.n_events, self.wanted, side="left")
            inside = first < len(values)
            # The code's very first value has nothing below it and cannot divide.
            self.found.append(values[first[inside & (first + self.seen > 0)]])
            self.wanted = self.wanted[~inside]
            self.below = int(ends[-1])
        self.seen += len(values)

    def edges(self) -> np.ndarray:
        """The edges [bin - 1], once everything was taken."""
        return np.unique(np.concatenate(self.found)) if self.found else np.array([], np.float32)


#: Shares of a normal distribution's events below its mean less, at, and plus its standard deviation.
NORMAL_SHARES = (0.158655, 0.5, 0.841345)


class SpreadFinder:
    """Finds the middle and the spread of numbers that come in ascending pieces, as `EdgeFinder` does.

    By quantiles, since one slip of a decimal point moves a standard deviation: the median, and half of the way
    between the quantiles that lie a standard deviation from the mean where numbers are normal.

    Args:
        n_events: of the whole code.

    Example:
        >>> finder = SpreadFinder(4)
        >>> finder.take(np.float32([1, 2, 3, 900]), np.array([1, 1, 1, 1]))
        >>> finder.centre_and_scale()
        (2.0, 449.5)
    """

    def __init__(self, n_events: int) -> None:
        self.n_events, self.seen = n_events, 0
        self.found = [np.nan] * len(NORMAL_SHARES)
        self.ends = (np.nan, np.nan)

    def take(self, values: np.ndarray, counts: np.ndarray) -> None:
        """The next distinct values, ascending, and how often each occurs."""
        ends = np.cumsum(counts) + self.seen
        for place, share in enumerate(NORMAL_SHARES):
            if np.isnan(self.found[place]) and ends[-1] >= share * self.n_events:
                self.found[place] = float(values[np.searchsorted(ends, share * self.n_events)])
        self.ends = (float(values[0]) if self.seen == 0 else self.ends[0], float(values[-1]))
        self.seen = int(ends[-1])

    def centre_and_scale(self) -> tuple[float, float]:
        """Both finite, the scale above 0, once everything was taken."""
        low, middle, high = self.found
        for scale in ((high - low) / 2, (self.ends[1] - self.ends[0]) / 2):
            if 0 < scale < np.inf:
                break
        else:
            scale = 1.0
        return (middle if np.isfinite(middle) else 0.0), scale
