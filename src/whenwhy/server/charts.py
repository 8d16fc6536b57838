"""The small Bokeh models that charts are made of: few of them, since each open page holds its own."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeVar

from bokeh.events import SelectionGeometry, Tap
from bokeh.model import Model
from bokeh.models import (
    AllIndices,
    BasicTicker,
    BasicTickFormatter,
    BoxSelectTool,
    CDSView,
    ColumnDataSource,
    FixedTicker,
    Grid,
    HoverTool,
    LinearAxis,
    LinearColorMapper,
    LinearScale,
    NoOverlap,
    Plot,
    Range1d,
    Tool,
    UnionRenderers,
)
from bokeh.models.annotations.legends import ColorBar
from bokeh.models.glyph import Glyph
from bokeh.models.glyphs import Rect
from bokeh.models.renderers import GlyphRenderer

from whenwhy.server.time_scale import TimeScale

#: What charts leave free at their sides for labels, in pixels.
LEFT, RIGHT = 104, 18

#: The colours of marks (3:1 against white at least): a cohort, its reference, and what is chosen or marked in it.
MARK, REFERENCE, CHOSEN = "#2c6496", "#8a5a00", "#b35806"
HIDDEN_FILL, HIDDEN_HATCH = "#eceff2", "#c9d0d8"
ZERO_LINE: Final = "#5b6777"

#: What is not sure, or not marked, fades to this.
FADED: Final = 0.3

#: What each system has: no typeface is fetched.
TYPEFACE = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"

Part = TypeVar("Part", bound=Model)

#: Columns of a source by name.
Columns = dict[str, list[Any]]


@contextmanager
def one_page() -> Iterator[None]:
    """Charts that are made meanwhile share the parts that have no state: a page's time and memory go by their number."""
    before = _PARTS.set({})
    try:
        yield
    finally:
        _PARTS.reset(before)


_PARTS: ContextVar[dict[type[Model], Any] | None] = ContextVar("parts", default=None)


def _shared(kind: type[Part], **values: Any) -> Part:
    """The page's only model of a kind; outside of one a new one, since no model may be part of two documents."""
    parts = _PARTS.get()
    if parts is None:
        return kind(**values)
    if kind not in parts:
        parts[kind] = kind(**values)
    part: Part = parts[kind]
    return part


_SIDES: Final[tuple[tuple[Literal[0, 1], str, Literal["below", "left"]], ...]] = ((0, "x", "below"), (1, "y", "left"))


def chart(
    height: int, left: int = LEFT, x_range: Range1d | None = None, y_range: Range1d | None = None, grid: str = "xy",
    **options: Any,
) -> Plot:  # fmt: skip
    """A plot without a toolbar that fills its card's width; `grid` names the axes from which lines are drawn."""
    plot = Plot(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        title=None,
        x_range=x_range or Range1d(start=0, end=1),
        y_range=y_range or Range1d(start=0, end=1),
        x_scale=_shared(LinearScale),
        y_scale=_shared(LinearScale),
        min_border_left=left,
        min_border_right=RIGHT,
        **options,
    )
    for dimension, name, place in _SIDES:
        axis = LinearAxis(
            # Views change its ticks and never the ticker: a new model makes Bokeh go through the whole document.
            ticker=FixedTicker(ticks=[]),  # type: ignore[arg-type]
            formatter=_shared(BasicTickFormatter),
            major_label_policy=_shared(NoOverlap, min_distance=6),
        )
        plot.add_layout(axis, place)
        if name in grid:
            plot.add_layout(Grid(dimension=dimension, axis=axis), "center")
    return plot


def draw(plot: Plot, source: ColumnDataSource, glyph: Glyph) -> GlyphRenderer[Any]:
    """The renderer of a glyph that looks the same whether or not it is selected: one model instead of four."""
    return plot.add_glyph(
        source,
        glyph,
        view=CDSView(filter=_shared(AllIndices)),
        selection_glyph=None,
        nonselection_glyph=None,
        hover_glyph=None,
        muted_glyph=None,
    )


def empty(*names: str) -> ColumnDataSource:
    """A source that has these columns and no rows."""
    return ColumnDataSource({name: [] for name in names}, selection_policy=_shared(UnionRenderers))


def grey_cells(plot: Plot, source: ColumnDataSource) -> GlyphRenderer[Any]:
    """The renderer of cells that have nothing to show, at the columns x and y: never the colour of zero."""
    return draw(
        plot,
        source,
        Rect(
            x="x",
            y="y",
            width=1,
            height=1,
            line_color="#ffffff",
            fill_color=HIDDEN_FILL,
            hatch_pattern="/",
            hatch_color=HIDDEN_HATCH,
            hatch_scale=7,
            hatch_weight=0.6,
        ),
    )


def color_bar(plot: Plot, mapper: LinearColorMapper) -> ColorBar:
    """The bar above a chart that says which number has which colour; its title is for whoever puts the numbers."""
    bar = ColorBar(
        color_mapper=mapper,
        ticker=BasicTicker(desired_num_ticks=5),
        orientation="horizontal",
        height=12,
        padding=4,
        margin=0,
        title_standoff=4,
        label_standoff=4,
    )
    plot.add_layout(bar, "above")
    return bar


def tooltip(renderers: Sequence[Any], rows: Sequence[tuple[str, str]]) -> Tool:
    """A tooltip of named rows, whose texts are columns and are shown as text."""
    lines = "".join(
        f'<tr><th style="text-align:left;padding:1px 10px 1px 0;font-weight:600;color:#384252">{html.escape(name)}</th>'
        f'<td style="padding:1px 0">{column}</td></tr>'
        for name, column in rows
    )
    style = f"font:13px/1.35 {TYPEFACE};color:#1c2430"
    # A list, since Bokeh's own check wants one and not a tuple.
    return HoverTool(
        renderers=list(renderers), tooltips=f'<table style="{html.escape(style)}">{lines}</table>', show_arrow=False
    )


def brushed(plot: Plot, brush: Callable[[float, float, float, float], None], dimensions: Any = "both") -> None:
    """Nothing; a rectangle drawn over the chart, or a click on one place, calls `brush(left, right, bottom, top)`."""
    tool = BoxSelectTool(dimensions=dimensions)
    plot.add_tools(tool)
    plot.toolbar.active_drag = tool

    def drawn(event: Any) -> None:
        if event.final and event.geometry.get("type") == "rect":
            told = event.geometry
            brush(*sorted((told["x0"], told["x1"])), *sorted((told["y0"], told["y1"])))

    def tapped(event: Any) -> None:
        if event.x is not None and event.y is not None:
            brush(event.x, event.x, event.y, event.y)

    plot.on_event(SelectionGeometry, drawn)
    plot.on_event(Tap, tapped)


def label_axis(axis: Any, ticks: Mapping[float, str], name: str) -> None:
    """Nothing; an axis of a `chart` has this name, and these labels at their places."""
    # In order: labels that stand too close are left out by their neighbours in the list.
    axis[0].ticker.update(ticks=sorted(ticks))
    axis.update(major_label_overrides=dict(ticks), axis_label=name)


class TimeFrame:
    """What charts of time above each other share: their range, and the borders that keep them aligned."""

    def __init__(self) -> None:
        self.range = Range1d(start=-1, end=0)
        self._plots: list[Plot] = []
        self._ticker = FixedTicker(ticks=[])

    def chart(self, height: int, **options: Any) -> Plot:
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


def around_zero(ends: Sequence[float | None]) -> tuple[float, float]:
    """Ends of an axis that holds zero and all of these, with some air.

    Example:
        >>> around_zero([1.0, None])
        (-0.08, 1.08)
    """
    known = [0.0, *(end for end in ends if end is not None)]
    air = 0.08 * (max(known) - min(known)) or 1.0
    return min(known) - air, max(known) + air


def room_for(labels: Sequence[str]) -> int:
    """The pixels at the left of a chart that its labels and the name of its axis need.

    Example:
        >>> room_for(["35 to 39"])
        108
    """
    return 44 + 8 * max(7, *map(len, labels), 0)


def show_values(plot: Plot, labels: Sequence[str], values: Sequence[Mapping[str, Any]], name: str) -> int:
    """The height of the chart's rows, one a range of values, the lowest at the bottom."""
    n = max(1, len(labels))
    plot.y_range.update(start=-0.5, end=n - 0.5)
    plot.yaxis[0].ticker.update(ticks=list(range(len(labels))))  # type: ignore[union-attr]
    plot.yaxis.major_label_overrides = dict(enumerate(labels))
    # A plain number has the unit 1, which says nothing.
    unit = next((v["unit"] for v in values if v["unit"] not in (None, "", "1")), None)
    plot.yaxis.axis_label = f"{name} ({unit})" if unit else (name if n > 2 else "")
    return 30 * n if n > 2 else 44 * n
