"""Bins of time flow in, the places that they have on an axis of time flow out: the prediction at the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from whenwhy.server.labels import number, time_range, time_unit


@dataclass(frozen=True)
class TimeScale:
    """Bin i lies between x = -i - 1 and x = -i; bins are equally wide, the last is open."""

    n_bins: int
    width_hours: float

    @classmethod
    def of(cls, bins: Sequence[Mapping[str, Any]]) -> TimeScale:
        """The scale of the query `time_bins`.

        Example:
            >>> TimeScale.of([{"time_bin": 3, "low_hours": 72.0, "high_hours": float("inf")}])
            TimeScale(n_bins=4, width_hours=24.0)
        """
        if not bins:
            return cls(0, 1.0)
        for row in bins:
            if math.isfinite(row["high_hours"]):
                return cls(1 + max(b["time_bin"] for b in bins), float(row["high_hours"] - row["low_hours"]))
        open_bin = bins[-1]
        return cls(open_bin["time_bin"] + 1, float(open_bin["low_hours"] / max(1, open_bin["time_bin"]) or 1.0))

    @property
    def unit(self) -> tuple[str, int]:
        """The unit that people read, and its hours."""
        return time_unit(self.width_hours)

    def words(self, time_bin: int) -> str:
        """A bin in words.

        Example:
            >>> TimeScale(3, 24).words(2)
            '2 days or more before'
        """
        low = time_bin * self.width_hours
        high = math.inf if time_bin == self.n_bins - 1 else low + self.width_hours
        return time_range(low, high, self.unit)

    def hours(self, first: int, last: int) -> tuple[float, float]:
        """Where the bins from the first to the last lie, in hours before the prediction.

        Example:
            >>> TimeScale(3, 24.0).hours(1, 2)
            (24.0, inf)
        """
        return first * self.width_hours, math.inf if last >= self.n_bins - 1 else (last + 1) * self.width_hours

    def between(self, left: float, right: float) -> tuple[int, int]:
        """The first and the last bin that a stretch of the axis touches.

        Example:
            >>> TimeScale(5, 24).between(-2.5, -0.5), TimeScale(5, 24).between(-1.0, -1.0)
            ((0, 2), (1, 1))
        """
        first, last = math.floor(-right), max(math.floor(-right), math.ceil(-left) - 1)
        return max(0, min(self.n_bins - 1, first)), max(0, min(self.n_bins - 1, last))

    @property
    def ticks(self) -> dict[int, str]:
        """The label of each edge from left to right; the far side of the open bin has no number.

        Example:
            >>> TimeScale(3, 12).ticks
            {-3: '…', -2: '24', -1: '12', 0: '0'}
        """
        _, hours = self.unit
        edges = {-edge: number(edge * self.width_hours / hours) for edge in reversed(range(max(1, self.n_bins)))}
        return {-self.n_bins: "…", **edges} if self.n_bins else edges
