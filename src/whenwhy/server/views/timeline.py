"""A state flows in, when the feature mattered flows out: its mean contribution in each bin of time with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bokeh.models import BasicTicker
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import Quad, Scatter, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import (
    CHOSEN,
    FADED,
    MARK,
    REFERENCE,
    ZERO_LINE,
    Columns,
    TimeFrame,
    around_zero,
    brushed,
    draw,
    empty,
    tooltip,
)
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import recorded_text
from whenwhy.server.feature import FeatureCells, asked_of
from whenwhy.server.labels import found, interval, quantity_in_unit, signed, unit_of
from whenwhy.server.markup import heading, in_details, table
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.view import Mark, Tables, Texts

#: Whose courses are drawn over each other, and in which colour.
COURSES: Final = {"cohort": MARK, "reference": REFERENCE, "marked": CHOSEN}


@dataclass(frozen=True)
class Course:
    """The rows of feature_timeline of the cohort, of its reference, and of who is marked."""

    state: State
    scale: TimeScale
    rows: Mapping[str, list[Mapping[str, Any]]]
    summary: Mapping[str, Any] | None


class Timeline:
    """The mean contribution per event; the mean per prediction at risk stands in the tooltip and the table."""

    name = "timeline"

    def __init__(self, choices: Choices, frame: TimeFrame, mark: Mark | None = None) -> None:
        self._choices = choices
        self._feature, self._scale = "", TimeScale(0, 1.0)
        self.source, self.bands = empty(*COLUMNS), empty(*BANDS)
        self.source.name, self.bands.name = "timeline_means", "timeline_bands"
        self._plot = frame.chart(216, min_border_top=8, min_border_bottom=52)
        self._plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self._plot.xgrid.visible = False
        self._plot.add_layout(Span(location=0, dimension="width", line_color=ZERO_LINE, line_width=1))
        band = Quad(
            left="left",
            right="right",
            bottom="low",
            top="high",
            fill_color="color",
            fill_alpha="alpha",
            line_color=None,
        )
        draw(self._plot, self.bands, band)
        lines = Segment(
            x0="left", x1="right", y0="mean", y1="mean", line_color="color", line_width=2, line_alpha="alpha"
        )
        points = Scatter(
            x="x", y="mean", size=6, line_color="color", fill_color="fill", line_width=2, line_alpha="alpha"
        )
        self._plot.add_tools(
            tooltip(
                [draw(self._plot, self.source, lines), draw(self._plot, self.source, points)],
                [
                    ("of", "@who"),
                    ("time", "@time"),
                    ("mean per event", "@event_words"),
                    ("95 % interval", "@event_interval"),
                    ("mean per prediction at risk", "@prediction_words"),
                    ("95 % interval", "@prediction_interval"),
                    ("patients", "@n_patients{0,0} of @n_patients_at_risk at risk"),
                    ("events", "@n_events{0,0}"),
                ],
            )
        )
        if mark is not None:
            brushed(self._plot, partial(self._brushed, mark), "width")

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The course."""
        return {"timeline": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The feature's courses."""
        return asked_of(state)

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return question("feature_timeline", feature=state.feature, **state.of())

    def read(self, state: State, tables: Tables) -> Course:
        """The courses."""
        cells = {name: FeatureCells.of(table) for name, table in tables.items()}
        rows = {name: found.course for name, found in cells.items()}
        return Course(state, self._choices.offered[state.run].time, rows, cells["cohort"].summary)

    def put(self, data: Course) -> Texts:
        """The card's title, and the course as a table."""
        self._feature, self._scale = data.state.feature, data.scale
        everything = [row for rows in data.rows.values() for row in rows]
        self._plot.visible = bool(everything)
        self.source.data, self.bands.data = columns(data), band_columns(data)
        run = self._choices.runs[data.state.run]
        ends = ("mean_per_event", "mean_per_event_low", "mean_per_event_high")
        low, high = around_zero([row[name] for row in everything for name in ends])
        self._plot.y_range.update(start=low, end=high)
        self._plot.yaxis.axis_label = f"{unit_of(run)} per event"
        if not everything:
            return {"timeline_heading": "", "timeline_table": ""}
        told = heading(
            f"When it mattered{found(data.summary)}",
            "band: 95 % interval, patients as units; hollow: fewer than 30 effective patients, no interval",
        )
        return {"timeline_heading": told + key(data.rows), "timeline_table": _table(data, run)}

    def _brushed(self, mark: Mark, left: float, right: float, bottom: float, top: float) -> None:
        """Marks the bins that a stretch of time touches."""
        if self._scale.n_bins:
            first, last = self._scale.between(left, right)
            mark(recorded_text(self._feature, (), self._scale.hours(first, last)))


COLUMNS = (
    *("x", "left", "right", "time_bin", "mean", "color", "fill", "alpha", "who", "n_patients", "n_events"),
    *("n_patients_at_risk", "time", "event_words", "event_interval", "prediction_words", "prediction_interval"),
)
BANDS = ("left", "right", "low", "high", "color", "alpha")

WHO: Final = {"cohort": "the cohort", "reference": "its reference", "marked": "marked patients"}


def key(shown: Collection[str]) -> str:
    """The HTML of the legend of whose means are drawn; empty of the cohort's alone.

    Example:
        >>> key(["cohort"])
        ''
    """
    if len(shown) < 2:
        return ""
    told = "".join(
        f'<span class="key" style="--mark:{COURSES[who]}">{said}</span>' for who, said in WHO.items() if who in shown
    )
    return f"<p>{told}</p>"


def _each(data: Course) -> list[tuple[str, Mapping[str, Any], bool]]:
    """Each row, whose it is, and whether it lies in what is marked."""
    selected, feature = data.state.selected, data.state.feature
    return [
        (who, row, selected is None or selected.holds(feature, None, row["low_hours"]))
        for who in COURSES
        for row in data.rows.get(who, [])
    ]


def columns(data: Course) -> Columns:
    """The means at their places, with the words of their tooltips."""
    each = _each(data)
    rows = [row for _, row, _ in each]
    return {
        "x": [-row["time_bin"] - 0.5 for row in rows],
        "left": [-row["time_bin"] - 1 for row in rows],
        "right": [-row["time_bin"] for row in rows],
        "time_bin": [row["time_bin"] for row in rows],
        "mean": [row["mean_per_event"] for row in rows],
        "color": [COURSES[who] for who, _, _ in each],
        "fill": ["#ffffff" if row["mean_per_event_low"] is None else COURSES[who] for who, row, _ in each],
        "alpha": [1.0 if is_marked else FADED for _, _, is_marked in each],
        "who": [WHO[who] for who, _, _ in each],
        "n_patients": [row["n_patients"] for row in rows],
        "n_events": [row["n_events"] for row in rows],
        "n_patients_at_risk": [at_risk(row) for row in rows],
        "time": [data.scale.words(row["time_bin"]) for row in rows],
        "event_words": [signed(row["mean_per_event"]) for row in rows],
        "event_interval": [interval(row["mean_per_event_low"], row["mean_per_event_high"]) for row in rows],
        "prediction_words": [signed(row["mean_per_prediction"]) for row in rows],
        "prediction_interval": [
            interval(row["mean_per_prediction_low"], row["mean_per_prediction_high"]) for row in rows
        ],
    }


def at_risk(row: Mapping[str, Any]) -> str:
    """How many patients were under observation, where that may be shown."""
    return "" if row["n_patients_at_risk"] is None else f"{row['n_patients_at_risk']:,}"


def band_columns(data: Course) -> Columns:
    """The intervals, where there are any."""
    known = [(who, row, is_marked) for who, row, is_marked in _each(data) if row["mean_per_event_low"] is not None]
    return {
        "left": [-row["time_bin"] - 1 for _, row, _ in known],
        "right": [-row["time_bin"] for _, row, _ in known],
        "low": [row["mean_per_event_low"] for _, row, _ in known],
        "high": [row["mean_per_event_high"] for _, row, _ in known],
        "color": [COURSES[who] for who, _, _ in known],
        "alpha": [0.3 if is_marked else 0.3 * FADED for _, _, is_marked in known],
    }


def _table(data: Course, run: Mapping[str, Any]) -> str:
    several = len(data.rows) > 1
    rows = [
        [
            data.scale.words(row["time_bin"]),
            *([WHO[who]] if several else []),
            at_risk(row),
            f"{row['n_patients']:,}",
            f"{row['n_events']:,}",
            signed(row["mean_per_event"]),
            interval(row["mean_per_event_low"], row["mean_per_event_high"]),
            signed(row["mean_per_prediction"]),
            interval(row["mean_per_prediction_low"], row["mean_per_prediction_high"]),
        ]
        for who, row, _ in _each(data)
    ]
    head = ["Time", *(["Of"] if several else []), "Patients at risk", "Patients", "Events", "Mean per event"]
    return in_details(
        "The course as a table",
        table(
            f"Mean {quantity_in_unit(run)}; intervals: 95 %, patients as units.",
            [*head, "95 % interval", "Mean per prediction at risk", "95 % interval"],
            rows,
        ),
    )
