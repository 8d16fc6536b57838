"""A state flows in, how many patients are still under observation in each bin of time flows out: counts in a strip."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from bokeh.core.properties import value
from bokeh.models import CustomJS, FixedTicker
from bokeh.models.glyphs import Text, VBar
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import FADED, TYPEFACE, Columns, TimeFrame, draw, empty, grey_cells, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.feature import FeatureCells, asked_of
from whenwhy.server.labels import compact
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.view import Tables, Texts


@dataclass(frozen=True)
class Counts:
    """The rows of number_at_risk that have a bin, those of who is marked, and whether there is any time to stand under."""

    state: State
    scale: TimeScale
    rows: list[Mapping[str, Any]]
    marked: list[Mapping[str, Any]]
    is_timed: bool


class AtRisk:
    """The number of patients whose history reaches back to each bin."""

    name = "at_risk"

    def __init__(self, choices: Choices, frame: TimeFrame) -> None:
        self._choices = choices
        self.source = empty(*COLUMNS)
        self.source.name = "at_risk_counts"
        self.marked = empty("x", "share")
        self.hidden = empty("x", "y", "time")
        self._plot = frame.chart(58, min_border_top=2, min_border_bottom=2)
        self._plot.y_range.update(start=0, end=1)
        self._plot.xaxis.visible = False
        self._plot.grid.visible = False
        self._plot.yaxis.ticker = FixedTicker(ticks=[0.5])
        self._plot.yaxis.major_label_overrides = {0.5: "patients\nat risk"}
        self._plot.outline_line_color = None
        missing = grey_cells(self._plot, self.hidden)
        shares = draw(
            self._plot,
            self.source,
            VBar(x="x", top="share", bottom=0, width=0.96, line_color=None, fill_color="#c9d8e8", fill_alpha="alpha"),
        )
        draw(
            self._plot,
            self.marked,
            VBar(x="x", top="share", bottom=0, width=0.5, line_color=None, fill_color="#e08a3c"),
        )
        counts = Text(
            x="x",
            y=0.5,
            text="label",
            text_align="center",
            text_baseline="middle",
            text_font=value(TYPEFACE),
            text_font_size="11px",
            text_color="#1c2430",
        )
        draw(self._plot, self.source, counts)
        self._plot.add_tools(
            tooltip(
                [shares],
                [
                    ("time", "@time"),
                    ("patients at risk", "@n_patients{0,0}"),
                    ("predictions at risk", "@n_predictions{0,0}"),
                ],
            ),
            tooltip([missing], [("time", "@time"), ("", "fewer than 11 patients, or hidden to protect others")]),
        )
        # Counts stand upright where a bin is too narrow for four digits.
        turn = CustomJS(
            args={"plot": self._plot, "glyph": counts, "times": frame.range},
            code="""
            const width = plot.inner_width / Math.max(1, times.end - times.start)
            const angle = width < 33 ? Math.PI / 2 : 0
            if (width > 0 && glyph.angle.value !== angle) glyph.angle = {value: angle}
            """,
        )
        self._plot.js_on_change("inner_width", turn)
        frame.range.js_on_change("start", turn)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The strip."""
        return {"at_risk": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The counts of the cohort, and of who is marked in it; whether the feature has a time."""
        asked = {
            "counts": question("number_at_risk", **state.of()),
            "cells": asked_of(state)["cohort"],
        }
        if state.selected_cohort is not None:
            asked["marked"] = question("number_at_risk", **state.of(state.selected_cohort))
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return question("number_at_risk", **state.of())

    def read(self, state: State, tables: Tables) -> Counts:
        """The counts that have a bin."""
        scale = self._choices.offered[state.run].time
        is_timed = bool(FeatureCells.of(tables["cells"]).course)
        marked = _with_bin(tables["marked"]) if "marked" in tables else []
        return Counts(state, scale, _with_bin(tables["counts"]), marked, is_timed)

    def put(self, data: Counts) -> Texts:
        """No words; the counts follow."""
        self.source.data = columns(data)
        most = max((row["n_patients"] for row in data.rows), default=1)
        self.marked.data = {
            "x": [-row["time_bin"] - 0.5 for row in data.marked],
            "share": [min(1.0, row["n_patients"] / most) for row in data.marked],
        }
        there = {row["time_bin"] for row in data.rows}
        gone = [time_bin for time_bin in range(data.scale.n_bins) if time_bin not in there]
        self.hidden.data = {
            "x": [-b - 0.5 for b in gone],
            "y": [0.5 for _ in gone],
            "time": [data.scale.words(b) for b in gone],
        }
        self._plot.visible = data.is_timed
        return {}


def _with_bin(table: pa.Table) -> list[Mapping[str, Any]]:
    return [row for row in table.to_pylist() if row["time_bin"] is not None]


COLUMNS = ("x", "time_bin", "n_patients", "n_predictions", "share", "alpha", "label", "time")


def columns(data: Counts) -> Columns:
    """The counts at their places; a bar's height is the share of the fullest bin."""
    rows, selected = data.rows, data.state.selected
    most = max((row["n_patients"] for row in rows), default=1)
    return {
        "x": [-row["time_bin"] - 0.5 for row in rows],
        "time_bin": [row["time_bin"] for row in rows],
        "n_patients": [row["n_patients"] for row in rows],
        "n_predictions": [row["n_predictions"] for row in rows],
        "share": [row["n_patients"] / most for row in rows],
        "alpha": [
            1.0 if selected is None or selected.holds(data.state.feature, None, row["low_hours"]) else FADED
            for row in rows
        ],
        "label": [compact(row["n_patients"]) for row in rows],
        "time": [data.scale.words(row["time_bin"]) for row in rows],
    }
