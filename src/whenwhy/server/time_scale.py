"""Bins of time flow in, the horizontal axis that all charts of time share flows out: the prediction at the right."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bokeh.models import FixedTicker, Range1d
from bokeh.plotting import figure

from whenwhy.server.labels import number, time_range, time_unit
from whenwhy.server.view import RIGHT, chart


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


class TimeFrame:
    """What charts of time above each other share: their range, and the borders that keep them aligned."""

    def __init__(self) -> None:
        self.range = Range1d(start=-1, end=0)
        self._plots: list[figure] = []
        self._ticker = FixedTicker(ticks=[])

    def chart(self, height: int, **options: Any) -> figure:
        """A chart that takes part."""
        plot = chart(height, x_range=self.range, **options)
        plot.xaxis.ticker = self._ticker
        self._plots.append(plot)
        return plot

    def put(self, scale: TimeScale, left: int) -> None:
        """Nothing; every chart shows this scale, with this much room for labels at its left."""
        self.range.update(start=-max(1, scale.n_bins), end=0)
        ticks = scale.ticks
        self._ticker.ticks = list(ticks)
        for plot in self._plots:
            plot.min_border_left, plot.min_border_right = left, RIGHT
            for axis in plot.xaxis:
                axis.update(major_label_overrides=ticks)
                axis.axis_label = f"{scale.unit[0]} before the prediction (at the right)"
