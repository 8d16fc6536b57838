"""What a view is, and the small models that every view is made of."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from bokeh.models import ColumnDataSource, FixedTicker, HoverTool, InlineStyleSheet, NoOverlap, Range1d, Tool
from bokeh.models.ui.ui_element import UIElement
from bokeh.models.widgets.markups import Div
from bokeh.plotting import figure

from whenwhy.server.answers import Asks
from whenwhy.server.state import State

#: Text inside Bokeh's own trees, which the page's style sheet does not reach.
TEXT_STYLE = """
:host { font: inherit; color: inherit; width: 100%; margin: 0; }
.bk-clearfix { width: 100%; }
a { color: #14568c; } a:focus-visible { outline: 3px solid #14568c; outline-offset: 2px; border-radius: 2px; }
.head { display: flex; flex-wrap: wrap; gap: 6px 20px; align-items: center; justify-content: space-between; }
h1 { font-size: 24px; line-height: 1.25; margin: 0; font-weight: 650; }
h2 { font-size: 15px; line-height: 1.3; margin: 0; font-weight: 650; }
p { margin: 2px 0 0; } .quiet { color: #4a5565; font-size: 13px; }
.chips { display: flex; flex-wrap: wrap; gap: 6px; margin: 0; padding: 0; list-style: none; }
.chips li { border: 1px solid #c5ccd6; border-radius: 999px; padding: 2px 10px; font-size: 13px; background: #fff; }
.chips b { font-weight: 600; }
.words { border: 1px dashed #8b95a3; border-radius: 6px; padding: 16px; margin: 8px 0; background: #f6f7f9; }
.warning { border: 1px solid #b58500; border-left-width: 5px; border-radius: 6px; background: #fff8e5; padding: 8px 12px;
  margin: 0; color: #4a3800; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } .scroll:focus-visible { outline: 3px solid #14568c; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
caption { text-align: left; color: #4a5565; padding: 0 0 6px; }
th { font-weight: 600; color: #384252; text-align: left; vertical-align: bottom; border-bottom: 1px solid #8b95a3; }
th, td { padding: 5px 10px 5px 0; } td:first-child { min-width: 150px; } td { border-bottom: 1px solid #e3e7ec; }
th.n, td.n { text-align: right; } td.n { white-space: nowrap; }
tr.chosen td { background: #e8f1f9; } tr.chosen td:first-child { box-shadow: inset 3px 0 #14568c; }
td:first-child, th:first-child { padding-left: 8px; }
details { margin-top: 8px; font-size: 13px; } summary { cursor: pointer; color: #14568c; padding: 2px 0; }
summary:focus-visible { outline: 3px solid #14568c; outline-offset: 2px; }
.swatch { display: inline-block; width: 12px; height: 12px; margin-right: 5px; vertical-align: -1px;
  border: 1px solid #8b95a3; background: repeating-linear-gradient(45deg, #e2e6ea 0 3px, #b9c1cb 3px 4px); }
"""

#: A chart takes the focus, but only a person at the keyboard needs to see where it is: shell.html tells.
CHART_STYLE = ":host(:focus-within) { outline: var(--keyboard-outline, none); }"

#: Charts that stand above each other share these, so that their times stay aligned.
LEFT, RIGHT = 104, 18

#: The colours of marks (3:1 against white at least).
MARK, CHOSEN = "#46688a", "#b35806"
HIDDEN_FILL, HIDDEN_HATCH = "#e2e6ea", "#b9c1cb"

#: What each system has: no typeface is fetched.
TYPEFACE = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', 'DejaVu Sans', sans-serif"

#: Bokeh hands out events on these.
Columns = dict[str, list[Any]]


class View(Protocol):
    """A part of a page: what it asks the store, and how it shows the answer."""

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """Its models by the names that the page's template uses."""
        ...

    def query(self, store: Asks, state: State) -> Any:
        """What it shows of a state: named queries alone, on any thread, touching no model."""
        ...

    def put(self, data: Any) -> None:
        """Nothing; its models show the data."""
        ...


def text(content: str = "", css_class: str = "", visible: bool = True) -> Div:
    """A piece of text in the page's typography."""
    return Div(
        text=content,
        stylesheets=[InlineStyleSheet(css=TEXT_STYLE)],
        css_classes=[css_class] if css_class else [],
        sizing_mode="stretch_width",
        disable_math=True,
        visible=visible,
    )


def chart(height: int, left: int = LEFT, **options: Any) -> figure:
    """A figure without a toolbar that fills its card's width."""
    plot = figure(
        height=height,
        sizing_mode="stretch_width",
        toolbar_location=None,
        tools="",
        x_range=options.pop("x_range", None) or Range1d(start=0, end=1),
        y_range=options.pop("y_range", None) or Range1d(start=0, end=1),
        min_border_left=left,
        min_border_right=RIGHT,
        stylesheets=[InlineStyleSheet(css=CHART_STYLE)],
        **options,
    )
    for axis in plot.axis:
        # Views change its ticks and never the ticker: a new model makes Bokeh go through the whole document.
        axis.ticker, axis.major_label_policy = FixedTicker(ticks=[]), NoOverlap(min_distance=6)
    return plot


def grey_cells(plot: figure, source: ColumnDataSource) -> Any:
    """The renderer of cells that have nothing to show, at the columns x and y: never the colour of zero."""
    return plot.rect(
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
        source=source,
    )


def tooltip(renderers: Sequence[Any], rows: Sequence[tuple[str, str]]) -> Tool:
    """A tooltip of named rows, whose texts are columns and are shown as text."""
    lines = "".join(
        f'<tr><th style="text-align:left;padding:1px 10px 1px 0;font-weight:600;color:#384252">{html.escape(name)}</th>'
        f'<td style="padding:1px 0">{column}</td></tr>'
        for name, column in rows
    )
    style = "font:13px/1.35 system-ui,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#1c2430"
    # A list, since Bokeh's own check wants one and not a tuple.
    return HoverTool(renderers=list(renderers), tooltips=f'<table style="{style}">{lines}</table>', show_arrow=False)


def table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]], chosen: int | None = None) -> str:
    """The HTML of a table; cells are HTML already, columns after the first hold numbers, one row may be chosen."""
    kind = ['class="n"' if i else "" for i in range(len(head))]
    top = "".join(f'<th scope="col" {k}>{html.escape(name)}</th>' for k, name in zip(kind, head, strict=True))
    body = "".join(
        ('<tr class="chosen">' if i == chosen else "<tr>")
        + "".join(f"<td {k}>{cell}</td>" for k, cell in zip(kind, row, strict=True))
        + "</tr>"
        for i, row in enumerate(rows)
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}"><table>'
        f"<caption>{html.escape(caption)}</caption><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def in_details(summary: str, content: str) -> str:
    """HTML that opens when asked for."""
    return f"<details><summary>{html.escape(summary)}</summary>{content}</details>"


def words(sentence: str) -> str:
    """The HTML that stands where a chart has nothing to draw."""
    return f'<div class="words">{html.escape(sentence)}</div>'


def heading(title: str, quiet: str) -> str:
    """The HTML of a card's title, and the counts it rests on."""
    return f'<h2>{html.escape(title)}</h2><p class="quiet">{html.escape(quiet)}</p>'


#: Chooses a feature by its code.
Choose = Callable[[str], None]
