"""A state flows in, how the contribution depends on the value flows out: means by range, with interval whiskers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bokeh.models import BasicTicker
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import HBar, Scatter, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import (
    FADED,
    HIDDEN_FILL,
    HIDDEN_HATCH,
    MARK,
    ZERO_LINE,
    Columns,
    around_zero,
    brushed,
    chart,
    draw,
    empty,
    room_for,
    show_values,
    tooltip,
)
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import recorded_text
from whenwhy.server.feature import FeatureCells, asked_of
from whenwhy.server.labels import (
    capitalised,
    found,
    interval,
    no_cells,
    quantity_in_unit,
    signed,
    unit_of,
    value_labels,
)
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Mark, Tables, Texts
from whenwhy.server.views.heat_map import BELOW
from whenwhy.server.views.timeline import COURSES, WHO, key

#: How far the cohort, its reference and the marked patients lie apart within a row.
OFFSETS: Final = {"cohort": 0.0, "reference": -0.25, "marked": 0.25}


@dataclass(frozen=True)
class Effect:
    """The rows of value_effect, of the cohort, its reference and who is marked, within all ranges of the feature."""

    state: State
    values: list[Mapping[str, Any]]
    rows: Mapping[str, list[Mapping[str, Any]]]
    summary: Mapping[str, Any] | None

    @property
    def each(self) -> list[tuple[str, Mapping[str, Any]]]:
        """Each row, and whose it is."""
        return [(who, row) for who in COURSES for row in self.rows.get(who, [])]


class ValueEffect:
    """The mean contribution per event of each range of values, all time together."""

    name = "value_effect"

    def __init__(self, choices: Choices, mark: Mark | None = None) -> None:
        self._choices = choices
        self._feature, self._values = "", [0]
        self.source, self.hidden = empty(*COLUMNS), empty("y", "left", "right", "value")
        self.whiskers = empty("y", "low", "high", "color", "alpha")
        self.source.name = "value_effect_means"
        self._plot = chart(360, min_border_top=8, min_border_bottom=BELOW)
        self._plot.xaxis.ticker = BasicTicker(desired_num_ticks=3)
        self._plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        # What all values have in common is that the feature was measured.
        self._measured = Span(location=0, dimension="height", line_color=MARK, line_width=1, line_dash="dashed")
        self._plot.add_layout(self._measured)
        missing = draw(
            self._plot,
            self.hidden,
            HBar(
                y="y",
                left="left",
                right="right",
                height=1,
                line_color="#ffffff",
                fill_color=HIDDEN_FILL,
                hatch_pattern="/",
                hatch_color=HIDDEN_HATCH,
                hatch_scale=7,
                hatch_weight=0.6,
            ),
        )
        whisker = Segment(x0="low", x1="high", y0="y", y1="y", line_color="color", line_width=2, line_alpha="alpha")
        draw(self._plot, self.whiskers, whisker)
        mean = Scatter(x="mean", y="y", size=8, line_color="color", fill_color="fill", line_width=2, line_alpha="alpha")
        points = draw(self._plot, self.source, mean)
        self._plot.add_tools(
            tooltip(
                [points],
                [
                    ("of", "@who"),
                    ("value", "@value"),
                    ("mean per event", "@event_words"),
                    ("95 % interval", "@interval"),
                    ("patients", "@n_patients{0,0}"),
                    ("events", "@n_events{0,0}"),
                ],
            ),
            tooltip(
                [missing], [("value", "@value"), ("", "fewer than 11 patients, none, or hidden to protect others")]
            ),
        )
        if mark is not None:
            brushed(self._plot, partial(self._brushed, mark), "height")

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The effect."""
        return {"value_effect": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The feature's effect by value."""
        return {**asked_of(state), "bins": question("feature_bins", feature=state.feature, run=state.run)}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return question("value_effect", feature=state.feature, **state.of())

    def read(self, state: State, tables: Tables) -> Effect:
        """The means."""
        cells = {name: FeatureCells.of(tables[name]) for name in COURSES if name in tables}
        rows = {name: found.effect for name, found in cells.items()}
        return Effect(state, tables["bins"].to_pylist(), rows, cells["cohort"].summary)

    def put(self, data: Effect) -> Texts:
        """The card's title, words where there is nothing, and the same as a table."""
        state = data.state
        self._feature, self._values = state.feature, [value["feature_value_id"] for value in data.values]
        run = self._choices.runs[state.run]
        labels = value_labels(data.values, with_unit=False)
        self.source.data, self.whiskers.data = columns(data), whisker_columns(data)
        ends = ("mean_per_event", "mean_per_event_low", "mean_per_event_high")
        low, high = around_zero([row[name] for _, row in data.each for name in ends])
        self._plot.x_range.update(start=low, end=high)
        there = {row["feature_value_id"] for row in data.rows["cohort"]}
        gone = [i for i, value in enumerate(data.values) if value["feature_value_id"] not in there]
        self.hidden.data = {
            "y": gone,
            "left": [low for _ in gone],
            "right": [high for _ in gone],
            "value": [labels[i] for i in gone],
        }
        self._plot.xaxis.axis_label = f"{unit_of(run)} per event"
        name = self._choices.offered[state.run].name_of(state.feature)
        self._plot.height = 8 + BELOW + show_values(self._plot, labels, data.values, name)
        self._plot.min_border_left = room_for(labels)
        has_numbers = data.summary is not None and len(data.values) > 1
        self._measured.update(
            location=data.summary["mean_per_event"] if has_numbers and data.summary else 0, visible=has_numbers
        )
        self._plot.visible = bool(data.rows["cohort"])
        if not data.rows["cohort"]:
            none = words(capitalised(no_cells(state.min_patients)) + ".")
            return {"value_effect_heading": "", "value_effect_words": none, "value_effect_table": ""}
        told = (
            "all time together; whiskers: 95 % interval, patients as units; hollow: fewer than 30 effective patients, "
            "no interval"
        )
        if has_numbers:
            told += "; dashed: the mean of all values, what being measured at all adds"
        return {
            "value_effect_heading": heading(f"Value effect{found(data.summary)}", told) + key(data.rows),
            "value_effect_words": "",
            "value_effect_table": _table(data, labels, run),
        }

    def _brushed(self, mark: Mark, left: float, right: float, bottom: float, top: float) -> None:
        """Marks the ranges that a stretch of values touches."""
        rows = [i for i in range(len(self._values)) if i + 0.5 > bottom and i - 0.5 <= top]
        if rows:
            mark(recorded_text(self._feature, tuple(self._values[i] for i in rows)))


COLUMNS = (
    *("y", "feature_value_id", "mean", "color", "fill", "alpha", "who", "n_patients", "n_events", "value"),
    *("event_words", "interval"),
)


def _places(data: Effect) -> dict[int, int]:
    return {value["feature_value_id"]: i for i, value in enumerate(data.values)}


def _alpha(data: Effect, row: Mapping[str, Any]) -> float:
    selected = data.state.selected
    is_marked = selected is None or selected.holds(data.state.feature, row["feature_value_id"], None)
    return 1.0 if is_marked else FADED


def columns(data: Effect) -> Columns:
    """The means at their places, with the words of their tooltips."""
    at, label = _places(data), value_labels(data.values)
    each = [(who, row) for who, row in data.each if row["feature_value_id"] in at]
    rows = [row for _, row in each]
    return {
        "y": [at[row["feature_value_id"]] + OFFSETS[who] for who, row in each],
        "feature_value_id": [row["feature_value_id"] for row in rows],
        "mean": [row["mean_per_event"] for row in rows],
        "color": [COURSES[who] for who, _ in each],
        "fill": ["#ffffff" if row["mean_per_event_low"] is None else COURSES[who] for who, row in each],
        "alpha": [_alpha(data, row) for row in rows],
        "who": [WHO[who] for who, _ in each],
        "n_patients": [row["n_patients"] for row in rows],
        "n_events": [row["n_events"] for row in rows],
        "value": [label[at[row["feature_value_id"]]] for row in rows],
        "event_words": [signed(row["mean_per_event"]) for row in rows],
        "interval": [interval(row["mean_per_event_low"], row["mean_per_event_high"]) for row in rows],
    }


def whisker_columns(data: Effect) -> Columns:
    """The intervals, where there are any."""
    at = _places(data)
    known = [
        (who, row) for who, row in data.each if row["mean_per_event_low"] is not None and row["feature_value_id"] in at
    ]
    return {
        "y": [at[row["feature_value_id"]] + OFFSETS[who] for who, row in known],
        "low": [row["mean_per_event_low"] for _, row in known],
        "high": [row["mean_per_event_high"] for _, row in known],
        "color": [COURSES[who] for who, _ in known],
        "alpha": [_alpha(data, row) for _, row in known],
    }


def _table(data: Effect, labels: list[str], run: Mapping[str, Any]) -> str:
    label = dict(zip(_places(data), labels, strict=True))
    several = len(data.rows) > 1
    rows = [
        [
            html.escape(label[row["feature_value_id"]]),
            *([WHO[who]] if several else []),
            f"{row['n_patients']:,}",
            f"{row['n_events']:,}",
            signed(row["mean_per_event"]),
            interval(row["mean_per_event_low"], row["mean_per_event_high"]),
        ]
        for who, row in data.each
    ]
    caption = f"Mean per event: {quantity_in_unit(run)}; intervals: 95 %, patients as units."
    head = ["Value", *(["Of"] if several else []), "Patients", "Events", "Mean per event", "95 % interval"]
    return in_details("The value effect as a table", table(caption, head, rows))
