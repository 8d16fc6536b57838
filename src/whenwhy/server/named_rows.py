"""Names with estimates flow in, a chart of them flows out: a bar and a 95 % whisker a row, which may be chosen."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from bokeh.models import BasicTicker, FixedTicker, TapTool
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import HBar, Segment

from whenwhy.server.charts import CHOSEN, FADED, MARK, ZERO_LINE, around_zero, chart, draw, empty, tooltip
from whenwhy.server.labels import interval, number, shortened

BAR_HEIGHT: Final = 24
LABEL_WIDTH: Final = 148
COLUMNS: Final = (
    "y",
    "key",
    "name",
    "value",
    "low",
    "high",
    "color",
    "alpha",
    "words",
    "interval",
    "counts",
    "n_patients",
)


@dataclass(frozen=True)
class NamedRow:
    """A row: what choosing it tells, its short and its whole name, its number and interval, and what it rests on."""

    key: str
    label: str
    name: str
    value: float
    low: float | None
    high: float | None
    counts: str
    n_patients: int
    is_chosen: bool = False


class NamedRows:
    """The chart; the first row stands at the top."""

    def __init__(self, name: str, what: str, choose: Callable[[str], None], has_interval: bool = True) -> None:
        self._has_interval = has_interval
        self.source = empty(*COLUMNS)
        self.source.name = name
        self.plot = chart(200, left=LABEL_WIDTH, grid="x")
        self.plot.yaxis.ticker = self._rows = FixedTicker(ticks=[])
        self.plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)
        self.plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        bar = HBar(y="y", left=0, right="value", height=0.72, line_color=None, fill_color="color", fill_alpha="alpha")
        bars = draw(self.plot, self.source, bar)
        rows = [("", "@name"), (what, "@words"), ("rests on", "@counts")]
        if has_interval:
            whisker = Segment(x0="low", x1="high", y0="y", y1="y", line_color="#1c2430", line_width=1.5)
            draw(self.plot, self.source, whisker)
            rows.insert(2, ("95 % interval", "@interval"))
        self.plot.add_tools(tooltip([bars], rows), TapTool(renderers=[bars]))

        def tapped(attribute: str, old: list[int], new: list[int]) -> None:
            if new:
                choose(self.source.data["key"][new[0]])

        self.source.selected.on_change("indices", tapped)

    def put(self, rows: Sequence[NamedRow], axis: str) -> None:
        """Nothing; these rows are shown, pale where the interval holds zero or there is none."""
        self.plot.visible = bool(rows)
        self.source.selected.indices = []
        n = len(rows)
        self.source.data = {
            "y": [-i for i in range(n)],
            "key": [row.key for row in rows],
            "name": [row.name for row in rows],
            "value": [row.value for row in rows],
            "low": [math.nan if row.low is None else row.low for row in rows],
            "high": [math.nan if row.high is None else row.high for row in rows],
            "color": [CHOSEN if row.is_chosen else MARK for row in rows],
            "alpha": [FADED if self._has_interval and not _is_sure(row) else 1.0 for row in rows],
            "words": [number(row.value, 3) for row in rows],
            "interval": [interval(row.low, row.high) for row in rows],
            "counts": [row.counts for row in rows],
            "n_patients": [row.n_patients for row in rows],
        }
        low, high = around_zero([end for row in rows for end in (row.value, row.low, row.high)])
        # Nothing lies beyond zero where no row does.
        self.plot.x_range.update(
            start=low if any((row.low or 0) < 0 or row.value < 0 for row in rows) else 0.0,
            end=high if any((row.high or 0) > 0 or row.value > 0 for row in rows) else 0.0,
        )
        self.plot.y_range.update(start=-n + 0.5, end=0.5)
        self.plot.height = BAR_HEIGHT * n + 62
        # From below: Bokeh leaves out labels that overlap in this order.
        self._rows.ticks = sorted(self.source.data["y"])
        self.plot.yaxis.major_label_overrides = {-i: shortened(row.label, 22) for i, row in enumerate(rows)}
        self.plot.xaxis.axis_label = axis


def _is_sure(row: NamedRow) -> bool:
    return row.low is not None and row.high is not None and not row.low <= 0 <= row.high
