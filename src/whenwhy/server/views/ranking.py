"""A state flows in, the features that carry the predictions flow out: bars, and the same as a table."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from bokeh.models import BasicTicker, ColumnDataSource, FixedTicker, TapTool
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Asks
from whenwhy.server.choices import Choices
from whenwhy.server.labels import (
    amount,
    capitalised,
    counted,
    feature_words,
    interval,
    no_cells,
    quantity,
    quantity_in_unit,
    ranking_title,
    shortened,
    signed,
    unit_of,
)
from whenwhy.server.state import State
from whenwhy.server.view import CHOSEN, MARK, Choose, Columns, chart, heading, table, text, tooltip, words

TOP = 20
BAR_HEIGHT = 24
LABEL_WIDTH = 148


@dataclass(frozen=True)
class Ranked:
    """The rows of top_features."""

    state: State
    rows: list[Mapping[str, Any]]


class Ranking:
    """Mean absolute contribution per prediction; a bar or a row chooses its feature."""

    def __init__(self, choices: Choices, choose: Choose) -> None:
        self._choices = choices
        self._heading, self._table = text(), text("", "ranking-table")
        self.source = ColumnDataSource(_columns([], ""), name="ranking_bars")
        self._plot = chart(300, left=LABEL_WIDTH)
        self._plot.min_border_right = 26
        self._plot.yaxis.ticker = self._rows = FixedTicker(ticks=[])
        self._plot.xaxis.ticker = BasicTicker(desired_num_ticks=3)
        bars = self._plot.hbar(y="y", left=0, right="length", height=0.72, color="color", source=self.source)
        bars.nonselection_glyph = bars.glyph
        bars.selection_glyph = bars.glyph
        self._plot.add_tools(
            tooltip(
                [bars],
                [
                    ("feature", "@name"),
                    ("mean size per prediction", "@mean_words"),
                    ("mean per event", "@event_words"),
                    ("95 % interval", "@interval_words"),
                    ("patients", "@n_patients{0,0}"),
                    ("events", "@n_events{0,0}"),
                ],
            ),
            TapTool(renderers=[bars]),
        )
        self._plot.ygrid.visible = False

        def tapped(attribute: str, old: list[int], new: list[int]) -> None:
            if new:
                choose(self.source.data["code"][new[0]])

        self.source.selected.on_change("indices", tapped)

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The card's title, the bars and the table."""
        return {"ranking_heading": self._heading, "ranking": self._plot, "ranking_table": self._table}

    def query(self, store: Asks, state: State) -> Ranked:
        """The first features of the ranking."""
        return Ranked(state, store.ask("top_features", **state.cohort, top=TOP).to_pylist())

    def put(self, data: Ranked) -> None:
        """Nothing; bars and table follow."""
        run = self._choices.runs[data.state.run]
        unit = unit_of(run)
        n = len(data.rows)
        none = capitalised(no_cells(data.state.min_patients)) + "."
        shown = f"the {n} with most" if n == TOP else counted(n, "feature")
        ranked = f"by mean absolute {quantity(run)} per prediction; choose a bar"
        if any(row["mean_abs_per_prediction"] is None for row in data.rows):
            ranked = "without a rank: how many predictions there are may not be shown for this cohort"
        self._heading.text = heading(ranking_title(run), f"{shown} {ranked}") if n else words(none)
        self._plot.visible = n > 0
        self.source.selected.indices = []
        self.source.data = _columns(data.rows, data.state.feature)
        largest = max(self.source.data["length"], default=0.0) or 1.0
        self._plot.x_range.update(start=0, end=largest * 1.04)
        self._plot.y_range.update(start=-n - 0.5, end=-0.5)
        self._plot.height = BAR_HEIGHT * n + 62
        self._rows.ticks = sorted(self.source.data["y"])
        self._plot.yaxis.major_label_overrides = {
            -row["rank"]: shortened(str(row["description"] or row["code"]), 22) for row in data.rows
        }
        self._plot.xaxis.axis_label = f"{unit} per prediction"
        self._table.text = _table(data, run) if n else words(none)


def _columns(rows: list[Mapping[str, Any]], chosen: str) -> Columns:
    return {
        "y": [-row["rank"] for row in rows],
        "code": [row["code"] for row in rows],
        "name": [feature_words(row["code"], row["description"]) for row in rows],
        "color": [CHOSEN if row["code"] == chosen else MARK for row in rows],
        "length": [row["mean_abs_per_prediction"] or 0.0 for row in rows],
        "mean_abs_per_prediction": [row["mean_abs_per_prediction"] for row in rows],
        "mean_words": [amount(row["mean_abs_per_prediction"]) for row in rows],
        "event_words": [signed(row["mean_per_event"]) for row in rows],
        "interval_words": [interval(row["mean_per_event_low"], row["mean_per_event_high"]) for row in rows],
        "n_patients": [row["n_patients"] for row in rows],
        "n_events": [row["n_events"] for row in rows],
    }


def _table(data: Ranked, run: Mapping[str, Any]) -> str:
    """The rows as HTML; a feature's name is a link to the page with that feature."""
    rows = []
    for row in data.rows:
        address = html.escape(replace(data.state, feature=row["code"]).address)
        name = html.escape(feature_words(row["code"], row["description"]))
        current = ' aria-current="true"' if row["code"] == data.state.feature else ""
        rows.append(
            [
                f'<a href="?{address}" data-feature="{html.escape(row["code"])}"{current}>{name}</a>',
                f"{row['n_patients']:,}",
                f"{row['n_events']:,}",
                amount(row["mean_abs_per_prediction"]),
                signed(row["mean_per_event"]),
                interval(row["mean_per_event_low"], row["mean_per_event_high"]),
            ]
        )
    return table(
        f"Features ranked by their mean absolute {quantity_in_unit(run)}, per prediction; intervals: 95 %, patients as units.",
        ["Feature", "Patients", "Events", f"Mean |{quantity(run)}| per prediction", "Mean per event", "95 % interval"],
        rows,
        chosen=next((i for i, row in enumerate(data.rows) if row["code"] == data.state.feature), None),
    )
