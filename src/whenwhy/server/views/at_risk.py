"""A state flows in, how many patients are still under observation in each bin of time flows out: counts in a strip."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pyarrow as pa
from bokeh.core.properties import value
from bokeh.models import CustomJS, FixedTicker
from bokeh.models.glyphs import Text, VBar
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import FADED, TYPEFACE, Columns, TimeFrame, draw, empty, grey_cells, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.feature import FeatureCells, asked_of
from whenwhy.server.labels import compact, counted, number, panel_words
from whenwhy.server.markup import choice
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.timeline import WHO

#: What strips of two cohorts are there for.
OTHERS: Final = (
    "A strip counts the patients whose history reaches back so far; its bars are shares of its fullest bin. Where the two "
    "fall off differently, earlier bins compare other patients than the last."
)

#: The colour of bars, and what the axis calls a strip.
FILLS: Final = {"cohort": "#c9d8e8", "reference": "#eadbbd"}
STRIPS: Final = {"cohort": "at risk:\nthe cohort", "reference": "its\nreference"}


@dataclass(frozen=True)
class Counts:
    """The rows of number_at_risk that have a bin, of the cohort and of a reference that has a strip of its own, those of
    who is marked, and whether there is any time to stand under.
    """

    state: State
    scale: TimeScale
    strips: Mapping[str, list[Mapping[str, Any]]]
    marked: list[Mapping[str, Any]]
    is_timed: bool

    def base(self, who: str) -> int:
        """Where a strip stands: the cohort's at the top."""
        return len(self.strips) - 1 - list(self.strips).index(who)


class AtRisk:
    """The number of patients whose history reaches back to each bin; with a reference, of both, one above the other."""

    name = "at_risk"

    def __init__(self, choices: Choices, frame: TimeFrame, with_reference: bool = False) -> None:
        self._choices, self._with_reference = choices, with_reference
        self.source = empty(*COLUMNS)
        self.source.name = "at_risk_counts"
        self.marked = empty("x", "top", "bottom")
        self.hidden = empty("x", "y", "time")
        self._plot = frame.chart(58, grid="", min_border_top=2, min_border_bottom=2)
        self._plot.y_range.update(start=0, end=1)
        self._plot.xaxis.visible = False
        self._plot.yaxis.ticker = self._ticker = FixedTicker(ticks=[0.5])
        self._plot.outline_line_color = None
        missing = grey_cells(self._plot, self.hidden)
        shares = draw(
            self._plot,
            self.source,
            VBar(x="x", top="top", bottom="bottom", width=0.96, line_color=None, fill_color="fill", fill_alpha="alpha"),
        )
        draw(
            self._plot,
            self.marked,
            VBar(x="x", top="top", bottom="bottom", width=0.5, line_color=None, fill_color="#e08a3c"),
        )
        counts = Text(
            x="x",
            y="middle",
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
                    ("of", "@who"),
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
        """The counts of the cohort, its reference and who is marked; whether the feature has a time."""
        asked = {
            "counts": question("number_at_risk", **state.of()),
            "cells": asked_of(state)["cohort"],
        }
        if self._with_reference and state.reference is not None:
            asked["reference"] = question("number_at_risk", **state.of(state.reference))
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
        strips = {
            who: _with_bin(tables[name])
            for who, name in (("cohort", "counts"), ("reference", "reference"))
            if name in tables
        }
        marked = _with_bin(tables["marked"]) if "marked" in tables else []
        return Counts(state, scale, strips, marked, is_timed)

    def put(self, data: Counts) -> Texts:
        """The counts follow; of two strips, what it means that they fall off."""
        self.source.data = columns(data)
        most, base = fullest(data.strips["cohort"]), data.base("cohort")
        self.marked.data = {
            "x": [-row["time_bin"] - 0.5 for row in data.marked],
            "top": [base + min(1.0, row["n_patients"] / most) for row in data.marked],
            "bottom": [base for _ in data.marked],
        }
        there = {(who, row["time_bin"]) for who, rows in data.strips.items() for row in rows}
        gone = [
            (data.base(who), time_bin)
            for who in data.strips
            for time_bin in range(data.scale.n_bins)
            if (who, time_bin) not in there
        ]
        self.hidden.data = {
            "x": [-time_bin - 0.5 for _, time_bin in gone],
            "y": [base + 0.5 for base, _ in gone],
            "time": [data.scale.words(time_bin) for _, time_bin in gone],
        }
        n = len(data.strips)
        self._plot.y_range.update(end=n)
        self._plot.height = 12 + 46 * n
        self._ticker.ticks = [i + 0.5 for i in range(n)]
        self._plot.yaxis.major_label_overrides = (
            {0.5: "patients\nat risk"} if n == 1 else {data.base(who) + 0.5: STRIPS[who] for who in data.strips}
        )
        self._plot.visible = data.is_timed
        told = f'<p class="quiet">{OTHERS}</p>' if n > 1 else ""
        if self._choices.has_rows:
            told += panels(data.state, data.scale, data.strips["cohort"])
        return {"at_risk_words": told if data.is_timed else ""}


COLUMNS = (
    *("x", "time_bin", "n_patients", "n_predictions", "top", "bottom", "middle", "fill", "alpha", "label", "time"),
    "who",
)


#: A panel is offered for the farthest bin that still counts such a share of the patients.
SHARES: Final = (0.9, 0.75, 0.5, 0.25)


def panels(state: State, scale: TimeScale, rows: Sequence[Mapping[str, Any]]) -> str:
    """The HTML that offers the same patients in every bin, or everybody again where they are chosen.

    Example:
        >>> rows = [{"time_bin": i, "n_patients": n} for i, n in enumerate([100, 90, 40])]
        >>> panels(State("r", "held_out", "hdl"), TimeScale(3, 24.0), rows).count("<button")
        2
    """
    if state.panel is not None:
        again = choice("panel", "Everybody again", hours="")
        return f'<p class="offers">Bins count {html.escape(panel_words(state.panel))}, the same until then. {again}</p>'
    n, most = {row["time_bin"]: row["n_patients"] for row in rows}, fullest(rows)
    ends = {max((b for b in n if n[b] >= share * most), default=0) for share in SHARES}
    offers = [
        choice(
            "panel",
            f"{number(b * scale.width_hours / scale.unit[1])} {scale.unit[0]} ({counted(n[b], 'patient')})",
            hours=f"{b * scale.width_hours:.12g}",
        )
        for b in sorted(ends)
        if b > 0 and n[b] < most
    ]
    if not offers:
        return ""
    return f'<p class="offers"><b>Earlier bins count fewer patients. The same in every bin back to:</b> {" ".join(offers)}</p>'


def fullest(rows: Sequence[Mapping[str, Any]]) -> int:
    """The patients of the fullest bin; 1 where there is none.

    Example:
        >>> fullest([{"n_patients": 30}, {"n_patients": 20}]), fullest([])
        (30, 1)
    """
    return max((row["n_patients"] for row in rows), default=1)


def _with_bin(table: pa.Table) -> list[Mapping[str, Any]]:
    return [row for row in table.to_pylist() if row["time_bin"] is not None]


def columns(data: Counts) -> Columns:
    """The counts at their places; a bar's height is the share of its strip's fullest bin."""
    selected = data.state.selected
    each = [(who, row, data.base(who)) for who, rows in data.strips.items() for row in rows]
    rows = [row for _, row, _ in each]
    return {
        "x": [-row["time_bin"] - 0.5 for row in rows],
        "time_bin": [row["time_bin"] for row in rows],
        "n_patients": [row["n_patients"] for row in rows],
        "n_predictions": [row["n_predictions"] for row in rows],
        "top": [base + row["n_patients"] / fullest(data.strips[who]) for who, row, base in each],
        "bottom": [base for _, _, base in each],
        "middle": [base + 0.5 for _, _, base in each],
        "fill": [FILLS[who] for who, _, _ in each],
        "alpha": [
            1.0 if selected is None or selected.holds(data.state.feature, None, row["low_hours"]) else FADED
            for row in rows
        ],
        "label": [compact(row["n_patients"]) for row in rows],
        "time": [data.scale.words(row["time_bin"]) for row in rows],
        "who": [WHO[who] for who, _, _ in each],
    }
