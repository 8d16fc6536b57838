"""Means in bins of time flow in, a chart of their course flows out: a line and a point a bin, and its 95 % interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from bokeh.models import BasicTicker
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import Quad, Scatter, Segment

from whenwhy.server.charts import ZERO_LINE, Columns, TimeFrame, around_zero, draw, empty, tooltip

PLACES: Final = ("x", "left", "right", "time_bin", "mean", "color", "fill", "alpha")


@dataclass(frozen=True)
class TimedMean:
    """A bin's mean and its interval, None where there is none; how it looks."""

    time_bin: int
    mean: float
    low: float | None
    high: float | None
    color: str
    alpha: float


class CourseChart:
    """The chart of `name`; bin 0 ends at the right.

    Args:
        name: of the sources: NAME_means and NAME_bands.
        frame: the charts of time that it belongs to.
        height: in pixels.
        words: names of the columns that its tooltip shows beside the places.
        told: the tooltip's rows: a name and the text of columns.
    """

    def __init__(
        self, name: str, frame: TimeFrame, height: int, words: Sequence[str], told: Sequence[tuple[str, str]]
    ) -> None:
        self.source, self.bands = empty(*PLACES, *words), empty("left", "right", "low", "high", "color", "alpha")
        self.source.name, self.bands.name = f"{name}_means", f"{name}_bands"
        self.plot = frame.chart(height, grid="y", min_border_top=8, min_border_bottom=52)
        self.plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self.plot.add_layout(Span(location=0, dimension="width", line_color=ZERO_LINE, line_width=1))
        band = Quad(
            left="left",
            right="right",
            bottom="low",
            top="high",
            fill_color="color",
            fill_alpha="alpha",
            line_color=None,
        )
        draw(self.plot, self.bands, band)
        line = Segment(
            x0="left", x1="right", y0="mean", y1="mean", line_color="color", line_width=2, line_alpha="alpha"
        )
        point = Scatter(
            x="x", y="mean", size=6, line_color="color", fill_color="fill", line_width=2, line_alpha="alpha"
        )
        self.plot.add_tools(tooltip([draw(self.plot, self.source, glyph) for glyph in (line, point)], told))

    def put(self, means: Sequence[TimedMean], words: Columns, axis: str) -> None:
        """Nothing; these means are shown, hollow where there is no interval, with the tooltip's words of each."""
        known = [one for one in means if one.low is not None]
        self.plot.visible = bool(means)
        self.source.data = {
            "x": [-one.time_bin - 0.5 for one in means],
            "left": [-one.time_bin - 1 for one in means],
            "right": [-one.time_bin for one in means],
            "time_bin": [one.time_bin for one in means],
            "mean": [one.mean for one in means],
            "color": [one.color for one in means],
            "fill": ["#ffffff" if one.low is None else one.color for one in means],
            "alpha": [one.alpha for one in means],
            **words,
        }
        self.bands.data = {
            "left": [-one.time_bin - 1 for one in known],
            "right": [-one.time_bin for one in known],
            "low": [one.low for one in known],
            "high": [one.high for one in known],
            "color": [one.color for one in known],
            "alpha": [0.3 * one.alpha for one in known],
        }
        low, high = around_zero([end for one in means for end in (one.mean, one.low, one.high)])
        self.plot.y_range.update(start=low, end=high)
        self.plot.yaxis.axis_label = axis
