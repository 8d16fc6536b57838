"""Two numbers a row flow in, a chart of both joined by a line flows out: their levels and their difference at once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from bokeh.models import BasicTicker, Plot, TapTool
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import Scatter, Segment

from whenwhy.server.charts import MARK, REFERENCE, ZERO_LINE, Columns, around_zero, chart, draw, empty, tooltip
from whenwhy.server.labels import shortened

LABEL_WIDTH: Final = 176
LABEL_LENGTH: Final = 24
ROW_HEIGHT: Final = 24
#: What the axis of numbers takes below the rows.
BELOW: Final = 62

LEGEND: Final = (
    '<p><span class="key" style="--mark:{first_color}">{first}: round</span>'
    '<span class="key" style="--mark:{second_color}">{second}: square</span></p>'
)


class Dumbbells:
    """A row a feature: a round point for the first number, a square one for the second, and a line between.

    Args:
        name: of its source.
        words: the rows of its tooltip: a name, and the column that has the words.
        choose: is told the column `code` of a point that is clicked on.
        more: columns that another chart of the same rows draws.
    """

    def __init__(
        self,
        name: str,
        words: Sequence[tuple[str, str]],
        choose: Callable[[str], None] | None,
        more: Sequence[str] = (),
    ) -> None:
        self.source = empty("y", "first", "second", "code", *(column for _, column in words), *more)
        self.source.name = name
        self.plot = chart(300, left=LABEL_WIDTH, grid="x")
        self.plot.xaxis.ticker = BasicTicker(desired_num_ticks=4)
        self.plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        draw(
            self.plot,
            self.source,
            Segment(x0="first", x1="second", y0="y", y1="y", line_color="#98a2ae", line_width=3),
        )
        square = Scatter(x="second", y="y", size=9, marker="square", line_color=None, fill_color=REFERENCE)
        round_one = Scatter(x="first", y="y", size=9, line_color=None, fill_color=MARK)
        points: list[Any] = [draw(self.plot, self.source, square), draw(self.plot, self.source, round_one)]
        self.plot.add_tools(tooltip(points, [(name, f"@{column}") for name, column in words]))
        self.plot.add_tools(TapTool(renderers=points))

        def tapped(attribute: str, old: list[int], new: list[int]) -> None:
            if new and choose is not None:
                choose(self.source.data["code"][new[0]])

        if choose is not None:
            self.source.selected.on_change("indices", tapped)

    def put(self, labels: Sequence[str], columns: Columns, axis: str) -> None:
        """Nothing; the first row stands at the top. Where a number is missing, its point is."""
        n = len(labels)
        self.source.selected.indices = []
        known = {name: [math.nan if x is None else x for x in columns[name]] for name in ("first", "second")}
        self.source.data = {"y": [-i - 1 for i in range(n)], **columns, **known}
        put_rows(self.plot, labels)
        low, high = around_zero([*columns["first"], *columns["second"]])
        self.plot.x_range.update(start=low, end=high)
        self.plot.xaxis.axis_label = axis


def put_rows(plot: Plot, labels: Sequence[str]) -> None:
    """Nothing; a chart has a row a label, the first at the top; without any it is not seen."""
    n = len(labels)
    plot.visible = n > 0
    plot.y_range.update(start=-n - 0.5, end=-0.5)
    plot.height = ROW_HEIGHT * n + BELOW
    # From below, since Bokeh leaves out labels that overlap in this order.
    at: dict[Any, Any] = {i - n: shortened(label, LABEL_LENGTH) for i, label in enumerate(reversed(labels))}
    plot.yaxis[0].ticker.update(ticks=list(at))  # type: ignore[union-attr]
    plot.yaxis.major_label_overrides = at


def legend(first: str, second: str) -> str:
    """The HTML that says which point is which.

    Example:
        >>> "held out: round" in legend("held out", "training")
        True
    """
    return LEGEND.format(first=first, second=second, first_color=MARK, second_color=REFERENCE)
