"""A state flows in, how the explained score is distributed in each class flows out: a histogram to brush over."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import BasicTicker
from bokeh.models.glyphs import Quad
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import (
    FADED,
    HIDDEN_FILL,
    HIDDEN_HATCH,
    Columns,
    brushed,
    chart,
    draw,
    empty,
    tooltip,
)
from whenwhy.server.choices import Choices
from whenwhy.server.labels import capitalised, counted, no_cells, number, target_unit
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.outcomes import classes_of, colors_of, key, need_rows, of_marked, rows_of, totals, totals_told, who
from whenwhy.server.state import State
from whenwhy.server.view import Mark, Tables, Texts

#: The finest of these histograms is drawn that shows so much of each class.
BINS: Final = (24, 12, 6)
ENOUGH: Final = 0.8
#: The height of what is drawn for a bin that is not shown, as a share of the chart's.
STUMP: Final = 0.025
HIDDEN: Final = '<span class="quiet"><span class="swatch"></span>fewer than 11 patients of the class, or none</span>'


@dataclass(frozen=True)
class Scores:
    """The rows of score_distribution, the classes in their order, and how many predictions each has."""

    state: State
    classes: list[str]
    n_bins: int
    rows: list[dict[str, Any]]
    totals: Mapping[str, int]

    @property
    def width(self) -> float:
        """How wide a bin is."""
        return float(max((row["high"] - row["low"] for row in self.rows), default=0.0))

    @property
    def lowest(self) -> float:
        """Where the first bin begins."""
        return float(self.rows[0]["low"] - self.rows[0]["bin"] * self.width) if self.rows else 0.0


class ScoreDistribution:
    """The share of each class's predictions in bins of the score."""

    name = "scores"

    def __init__(self, choices: Choices, mark: Mark) -> None:
        self._choices, self._mark = choices, mark
        self._lowest, self._width, self._n_bins = 0.0, 0.0, 0
        self._asked = f"{BINS[0]} bins"
        self.source, self.marked = empty(*COLUMNS), empty("left", "right", "top")
        self.hidden = empty("left", "right", "top", "label", "range")
        self.source.name, self.hidden.name = "scores_bins", "scores_hidden"
        self._plot = chart(300, left=70, grid="y", min_border_top=8)
        for axis in self._plot.axis:
            axis.ticker = BasicTicker(desired_num_ticks=6)
        missing = draw(
            self._plot,
            self.hidden,
            Quad(
                left="left",
                right="right",
                bottom=0,
                top="top",
                line_color=HIDDEN_HATCH,
                fill_color=HIDDEN_FILL,
                hatch_pattern="/",
                hatch_color=HIDDEN_HATCH,
                hatch_scale=7,
                hatch_weight=0.6,
            ),
        )
        bar = Quad(
            left="left",
            right="right",
            bottom=0,
            top="share",
            line_color="#ffffff",
            fill_color="color",
            fill_alpha="alpha",
        )
        bars = draw(self._plot, self.source, bar)
        part = Quad(left="left", right="right", bottom=0, top="top", line_color=None, fill_color="#1c2430")
        draw(self._plot, self.marked, part)
        self._plot.add_tools(
            tooltip(
                [bars],
                [
                    ("class", "@label"),
                    ("score", "@range"),
                    ("share of the class", "@words"),
                    ("predictions", "@n_predictions{0,0}"),
                    ("patients", "@n_patients{0,0}"),
                    ("marked", "@marked"),
                ],
            ),
            tooltip([missing], [("class", "@label"), ("score", "@range"), ("", "fewer than 11 patients, or none")]),
        )
        brushed(self._plot, self._brushed, "width")

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The histogram."""
        return {"scores": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The scores of all classes, how many of them are marked, and how many predictions each class has."""
        need_rows(self._choices, "The distribution of scores")
        whole, marked = state.of(state.cohort.whatever_outcome), of_marked(state)
        if marked is not None:
            whole["marked"] = marked["cohort"]
        asked = {f"{n} bins": question("score_distribution", **whole, n_bins=n) for n in BINS}
        return asked | totals(self._choices, state)

    def csv(self, state: State) -> Question:
        """The question whose answer is shown."""
        return self.questions(state)[self._asked]

    def read(self, state: State, tables: Tables) -> Scores:
        """The bins: as fine as most of each class can be shown."""
        found = totals_told(tables)
        for n_bins in BINS:
            rows = rows_of(tables, f"{n_bins} bins")
            shown = {label: sum(row["n_predictions"] for row in rows if row["label"] == label) for label in found}
            if found and all(shown[label] >= ENOUGH * n for label, n in found.items()):
                break
        known = classes_of(self._choices, state.run)
        classes = known + sorted({row["label"] for row in rows} - set(known))
        return Scores(state, classes, n_bins, rows, found)

    def put(self, data: Scores) -> Texts:
        """The card's title with the legend of classes, and the same as a table."""
        self._lowest, self._width, self._n_bins = data.lowest, data.width, data.n_bins
        self._asked = f"{data.n_bins} bins"
        self.source.data = columns(data)
        self._plot.visible = bool(self.source.data["share"])
        if not self._plot.visible:
            self.hidden.data = {name: [] for name in self.hidden.data}
            none = words(capitalised(no_cells(data.state.min_patients)) + ".")
            return {"scores_heading": "", "scores_words": none, "scores_table": ""}
        top = max(self.source.data["share"]) * 1.06
        self.hidden.data = hidden_columns(data, STUMP * top)
        self.marked.data = marked_columns(self.source.data)
        self._plot.y_range.update(start=0, end=top)
        margin = 0.02 * data.n_bins * data.width
        self._plot.x_range.update(start=data.lowest - margin, end=data.lowest + data.n_bins * data.width + margin)
        self._plot.xaxis.axis_label = f"score ({target_unit(str(self._choices.runs[data.state.run]['target']))})"
        self._plot.yaxis.axis_label = "% of the class's predictions"
        known = ", ".join(f"{name} {counted(n, 'prediction')}" for name, n in data.totals.items())
        title = f"How the classes are told apart: {counted(sum(data.totals.values()), 'prediction')}"
        told = (
            f"{who(data.state)}; {known}. Each class to its own whole. "
            "Draw over a stretch of scores, or click on a bar, to mark it; dark: marked"
        )
        outcome, chosen = str(self._choices.runs[data.state.run]["outcome"]), data.state.cohort.class_label
        return {
            "scores_heading": heading(title, told + ".") + f"<p>{key(data.classes, outcome, chosen)}{HIDDEN}</p>",
            "scores_words": "",
            "scores_table": _table(data),
        }

    def _brushed(self, left: float, right: float, bottom: float, top: float) -> None:
        """Marks the bins that a stretch of scores touches."""
        if self._width <= 0:
            return
        first, last = (math.floor((end - self._lowest) / self._width) for end in (left, right))
        if last < 0 or first >= self._n_bins:
            return
        # Ends stay open, since the highest score is no lower than itself.
        low = f"{self._lowest + first * self._width!r}" if first > 0 else ""
        high = f"{self._lowest + (last + 1) * self._width!r}" if last < self._n_bins - 1 else ""
        self._mark(f"range:score@{low}..{high}" if low or high else f"range:score@{self._lowest - self._width!r}..")


COLUMNS: Final = (
    *("left", "right", "share", "color", "alpha", "label", "bin", "n_predictions", "n_patients", "range", "words"),
    *("n_marked_predictions", "marked"),
)


def _place(data: Scores, label: str, at: int) -> tuple[float, float]:
    """Where a class's bar stands: side by side within the bin, with some air around."""
    each = 0.92 * data.width / len(data.classes)
    left = data.lowest + (at + 0.04) * data.width + data.classes.index(label) * each
    return left, left + each


def _percent(data: Scores, row: Mapping[str, Any], n: float) -> float:
    return 100 * n / data.totals[row["label"]]


def _range(data: Scores, at: int) -> str:
    return f"{number(data.lowest + at * data.width, 3)} to {number(data.lowest + (at + 1) * data.width, 3)}"


def columns(data: Scores) -> Columns:
    """The bars at their places, with the words of their tooltips; a class that is not chosen is pale."""
    rows = [row for row in data.rows if row["label"] in data.totals]
    places = [_place(data, row["label"], row["bin"]) for row in rows]
    colors, chosen = colors_of(data.classes), data.state.cohort.class_label
    is_marking = data.state.selected is not None
    return {
        "left": [left for left, _ in places],
        "right": [right for _, right in places],
        "share": [_percent(data, row, row["n_predictions"]) for row in rows],
        "color": [colors[row["label"]] for row in rows],
        "alpha": [1.0 if chosen in ("all", row["label"]) and not is_marking else FADED for row in rows],
        **{name: [row[name] for row in rows] for name in ("label", "bin", "n_predictions", "n_patients")},
        "range": [_range(data, row["bin"]) for row in rows],
        "words": [f"{number(_percent(data, row, row['n_predictions']), 3)} %" for row in rows],
        "n_marked_predictions": [row["n_marked_predictions"] for row in rows],
        "marked": [_marked(data, row) for row in rows],
    }


def _marked(data: Scores, row: Mapping[str, Any]) -> str:
    if data.state.selected is None:
        return "nothing is"
    if row["n_marked_predictions"] is None:
        return "fewer than 11 patients, or none"
    return counted(row["n_marked_predictions"], "prediction")


def marked_columns(shown: Columns) -> Columns:
    """The part of each bar that is marked, half as wide."""
    told = zip(
        *(shown[name] for name in ("left", "right", "share", "n_predictions", "n_marked_predictions")), strict=True
    )
    known = [(left, right, share * part / n) for left, right, share, n, part in told if part is not None]
    return {
        "left": [left + 0.25 * (right - left) for left, right, _ in known],
        "right": [right - 0.25 * (right - left) for left, right, _ in known],
        "top": [top for *_, top in known],
    }


def hidden_columns(data: Scores, height: float) -> Columns:
    """The places of bins that have no bar, of each class."""
    there = {(row["label"], row["bin"]) for row in data.rows if row["label"] in data.totals}
    gone = [(label, at) for label in data.classes for at in range(data.n_bins) if (label, at) not in there]
    places = [_place(data, label, at) for label, at in gone]
    return {
        "left": [left for left, _ in places],
        "right": [right for _, right in places],
        "top": [height for _ in gone],
        "label": [label for label, _ in gone],
        "range": [_range(data, at) for _, at in gone],
    }


def _table(data: Scores) -> str:
    n = {(row["label"], row["bin"]): row["n_predictions"] for row in data.rows}
    bins = sorted({row["bin"] for row in data.rows})
    rows = [
        [_range(data, at), *(f"{n[label, at]:,}" if (label, at) in n else "" for label in data.classes)] for at in bins
    ]
    caption = "Predictions by score and class; empty: fewer than 11 patients, or none."
    cells = [[html.escape(cell) for cell in row] for row in rows]
    return in_details("The scores as a table", table(caption, ["Score", *data.classes], cells))
