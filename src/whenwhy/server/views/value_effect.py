"""A state flows in, how the contribution depends on the value flows out: means by range, with interval whiskers."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models import BasicTicker, ColumnDataSource
from bokeh.models.annotations.geometry import Span
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Asks
from whenwhy.server.choices import Choices
from whenwhy.server.labels import capitalised, interval, no_cells, quantity_in_unit, signed, unit_of, value_labels
from whenwhy.server.state import State
from whenwhy.server.view import (
    HIDDEN_FILL,
    HIDDEN_HATCH,
    MARK,
    Columns,
    chart,
    heading,
    in_details,
    table,
    text,
    tooltip,
    words,
)
from whenwhy.server.views.heat_map import BELOW, found, room_for, show_values
from whenwhy.server.views.timeline import around_zero, fills


@dataclass(frozen=True)
class Effect:
    """The rows of value_effect within all ranges of the feature."""

    state: State
    values: list[Mapping[str, Any]]
    rows: list[Mapping[str, Any]]
    summary: Mapping[str, Any] | None


class ValueEffect:
    """The mean contribution per event of each range of values, all time together."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self._heading, self._words, self._table = text(), text(visible=False), text()
        self.source = ColumnDataSource(columns(None), name="value_effect_means")
        self.whiskers = ColumnDataSource({"y": [], "low": [], "high": []}, name="value_effect_whiskers")
        self.hidden = ColumnDataSource({"y": [], "left": [], "right": [], "value": []}, name="value_effect_hidden")
        self._plot = chart(360, min_border_top=8, min_border_bottom=BELOW)
        self._plot.xaxis.ticker = BasicTicker(desired_num_ticks=3)
        self._plot.add_layout(Span(location=0, dimension="height", line_color="#5b6777", line_width=1))
        missing = self._plot.hbar(
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
            source=self.hidden,
        )
        self._plot.segment(x0="low", x1="high", y0="y", y1="y", color=MARK, line_width=2, source=self.whiskers)
        for end in ("low", "high"):
            self._plot.scatter(
                x=end, y="y", marker="dash", angle=1.5707963, size=10, color=MARK, line_width=2, source=self.whiskers
            )
        points = self._plot.scatter(
            x="mean", y="y", size=8, line_color=MARK, fill_color="fill", line_width=2, source=self.source
        )
        self._plot.add_tools(
            tooltip(
                [points],
                [
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

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The card's title, words where there is nothing, the effect, and the same as a table."""
        return {
            "value_effect_heading": self._heading,
            "value_effect_words": self._words,
            "value_effect": self._plot,
            "value_effect_table": self._table,
        }

    def query(self, store: Asks, state: State) -> Effect:
        """The feature's effect by value."""
        return Effect(
            state,
            store.ask("feature_bins", feature=state.feature, run=state.run).to_pylist(),
            store.ask("value_effect", feature=state.feature, **state.cohort).to_pylist(),
            next(iter(store.ask("feature_summary", feature=state.feature, **state.cohort).to_pylist()), None),
        )

    def put(self, data: Effect) -> None:
        """Nothing; points and whiskers follow."""
        run = self._choices.runs[data.state.run]
        unit = unit_of(run)
        labels = value_labels(data.values, with_unit=False)
        self.source.data = columns(data)
        known = [row for row in data.rows if row["mean_per_event_low"] is not None]
        at = _places(data)
        self.whiskers.data = {
            "y": [at[row["feature_value_id"]] for row in known],
            "low": [row["mean_per_event_low"] for row in known],
            "high": [row["mean_per_event_high"] for row in known],
        }
        low, high = around_zero(data.rows)
        self._plot.x_range.update(start=low, end=high)
        there = {row["feature_value_id"] for row in data.rows}
        gone = [i for i, value in enumerate(data.values) if value["feature_value_id"] not in there]
        self.hidden.data = {
            "y": gone,
            "left": [low for _ in gone],
            "right": [high for _ in gone],
            "value": [labels[i] for i in gone],
        }
        self._plot.xaxis.axis_label = f"{unit} per event"
        name = self._choices.offered[data.state.run].name_of(data.state.feature)
        self._plot.height = 8 + BELOW + show_values(self._plot, labels, data.values, name)
        self._plot.min_border_left = room_for(labels)
        self._plot.visible = bool(data.rows)
        self._words.visible = not data.rows
        self._words.text = "" if data.rows else words(capitalised(no_cells(data.state.min_patients)) + ".")
        self._heading.text = heading(
            f"Value effect{found(data.summary)}",
            "all time together; whiskers: 95 % interval, patients as units; hollow: fewer than 30 effective patients, "
            "no interval",
        )
        self._table.text = _table(data, labels, run) if data.rows else ""


def _places(data: Effect) -> dict[int, int]:
    return {value["feature_value_id"]: i for i, value in enumerate(data.values)}


def columns(data: Effect | None) -> Columns:
    """The means at their places, with the words of their tooltips."""
    at, label = (_places(data), value_labels(data.values)) if data else ({}, [])
    rows = [row for row in data.rows if row["feature_value_id"] in at] if data else []
    return {
        "y": [at[row["feature_value_id"]] for row in rows],
        "feature_value_id": [row["feature_value_id"] for row in rows],
        "mean": [row["mean_per_event"] for row in rows],
        "fill": fills(rows),
        "n_patients": [row["n_patients"] for row in rows],
        "n_events": [row["n_events"] for row in rows],
        "value": [label[at[row["feature_value_id"]]] for row in rows],
        "event_words": [signed(row["mean_per_event"]) for row in rows],
        "interval": [interval(row["mean_per_event_low"], row["mean_per_event_high"]) for row in rows],
    }


def _table(data: Effect, labels: list[str], run: Mapping[str, Any]) -> str:
    label = dict(zip(_places(data), labels, strict=True))
    rows = [
        [
            html.escape(label[row["feature_value_id"]]),
            f"{row['n_patients']:,}",
            f"{row['n_events']:,}",
            signed(row["mean_per_event"]),
            interval(row["mean_per_event_low"], row["mean_per_event_high"]),
        ]
        for row in data.rows
    ]
    caption = f"Mean per event: {quantity_in_unit(run)}; intervals: 95 %, patients as units."
    head = ["Value", "Patients", "Events", "Mean per event", "95 % interval"]
    return in_details("The value effect as a table", table(caption, head, rows))
