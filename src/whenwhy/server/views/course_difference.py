"""A state flows in, when a feature contributes differently in two cohorts flows out: a course with its interval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models import BasicTicker
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import Quad, Scatter, Segment
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import FADED, ZERO_LINE, Columns, TimeFrame, around_zero, draw, empty, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.labels import NO_INTERVAL, interval, no_cells, quantity_in_unit, signed, unit_of
from whenwhy.server.markup import heading, in_details, table, words
from whenwhy.server.state import State
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.differences import compared, interval_words
from whenwhy.server.views.heat_map import is_sure

#: A difference belongs to neither cohort, so it has the colour of none.
DIFFERENCE = "#5b4a8a"


@dataclass(frozen=True)
class Course:
    """The rows of feature_comparison, a bin of time each."""

    state: State
    scale: TimeScale
    rows: list[Mapping[str, Any]]


class CourseDifference:
    """The mean contribution per event of the cohort minus that of its reference, in each bin of time."""

    name = "course_difference"

    def __init__(self, choices: Choices, frame: TimeFrame) -> None:
        self._choices = choices
        self.source, self.bands = empty(*COLUMNS), empty("left", "right", "low", "high", "alpha")
        self.source.name, self.bands.name = "course_difference_means", "course_difference_bands"
        self._plot = frame.chart(190, min_border_top=8, min_border_bottom=52)
        self._plot.yaxis.ticker = BasicTicker(desired_num_ticks=4)
        self._plot.xgrid.visible = False
        self._plot.add_layout(Span(location=0, dimension="width", line_color=ZERO_LINE, line_width=1))
        band = Quad(
            left="left",
            right="right",
            bottom="low",
            top="high",
            fill_color=DIFFERENCE,
            fill_alpha="alpha",
            line_color=None,
        )
        draw(self._plot, self.bands, band)
        line = Segment(
            x0="left", x1="right", y0="difference", y1="difference", line_color=DIFFERENCE, line_width=2,
            line_alpha="alpha",
        )  # fmt: skip
        point = Scatter(
            x="x", y="difference", size=6, line_color=DIFFERENCE, fill_color="fill", line_width=2, line_alpha="alpha"
        )
        self._plot.add_tools(
            tooltip(
                [draw(self._plot, self.source, line), draw(self._plot, self.source, point)],
                [
                    ("time", "@time"),
                    ("difference per event", "@difference_words"),
                    ("95 % interval", "@interval"),
                    ("means", "@means"),
                    ("patients", "@patients"),
                    ("events", "@events"),
                ],
            )
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The course."""
        return {"course_difference": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The feature's difference in each bin."""
        compared(state)
        return {"rows": question("feature_comparison", feature=state.feature, level="code", **state.of_both())}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["rows"]

    def read(self, state: State, tables: Tables) -> Course:
        """The bins."""
        return Course(state, self._choices.offered[state.run].time, tables["rows"].to_pylist())

    def put(self, data: Course) -> Texts:
        """The card's title, and the course as a table."""
        self.source.data, self.bands.data = columns(data), band_columns(data)
        run, rows = self._choices.runs[data.state.run], data.rows
        self._plot.visible = bool(rows)
        ends = ("difference", "difference_low", "difference_high")
        low, high = around_zero([row[name] for row in rows for name in ends])
        self._plot.y_range.update(start=low, end=high)
        self._plot.yaxis.axis_label = f"difference, {unit_of(run)}"
        if not rows:
            none = (
                f"There is no course of the difference: {no_cells(data.state.min_patients)} in both cohorts, "
                "or the feature has no time."
            )
            return {
                "course_difference_heading": "",
                "course_difference_words": words(none),
                "course_difference_table": "",
            }
        n_sure = sum(is_sure(row["difference_low"], row["difference_high"]) for row in rows)
        told = (
            f"the cohort minus its reference, per event; band: 95 % interval, patients as units: {interval_words(rows)}; "
            f"pale: it holds zero; hollow: {NO_INTERVAL.removeprefix('no interval: ')}, no interval. "
            "One bin in 20 excludes zero where nothing differs"
        )
        title = f"How they differ over time: {n_sure} of {len(rows)} bins exclude zero"
        return {"course_difference_heading": heading(title, told), "course_difference_table": _table(data, run)}


COLUMNS = (
    *("x", "left", "right", "time_bin", "difference", "fill", "alpha", "time", "difference_words", "interval"),
    *("means", "patients", "events", "n_patients_a", "n_patients_b"),
)


def _alphas(data: Course) -> list[float]:
    return [1.0 if is_sure(row["difference_low"], row["difference_high"]) else FADED for row in data.rows]


def columns(data: Course) -> Columns:
    """The differences at their places, with the words of their tooltips; pale where the sign is not sure."""
    rows = data.rows
    return {
        "x": [-row["time_bin"] - 0.5 for row in rows],
        "left": [-row["time_bin"] - 1 for row in rows],
        "right": [-row["time_bin"] for row in rows],
        "time_bin": [row["time_bin"] for row in rows],
        "difference": [row["difference"] for row in rows],
        "fill": ["#ffffff" if row["difference_low"] is None else DIFFERENCE for row in rows],
        "alpha": _alphas(data),
        "time": [data.scale.words(row["time_bin"]) for row in rows],
        "difference_words": [signed(row["difference"]) for row in rows],
        "interval": [interval(row["difference_low"], row["difference_high"]) for row in rows],
        "means": [f"{signed(row['mean_a'])} and {signed(row['mean_b'])}" for row in rows],
        "patients": [f"{row['n_patients_a']:,} and {row['n_patients_b']:,}" for row in rows],
        "events": [f"{row['n_events_a']:,} and {row['n_events_b']:,}" for row in rows],
        "n_patients_a": [row["n_patients_a"] for row in rows],
        "n_patients_b": [row["n_patients_b"] for row in rows],
    }


def band_columns(data: Course) -> Columns:
    """The intervals, where there are any."""
    known = [
        (row, alpha) for row, alpha in zip(data.rows, _alphas(data), strict=True) if row["difference_low"] is not None
    ]
    return {
        "left": [-row["time_bin"] - 1 for row, _ in known],
        "right": [-row["time_bin"] for row, _ in known],
        "low": [row["difference_low"] for row, _ in known],
        "high": [row["difference_high"] for row, _ in known],
        "alpha": [0.35 * alpha for _, alpha in known],
    }


def _table(data: Course, run: Mapping[str, Any]) -> str:
    rows = [
        [
            data.scale.words(row["time_bin"]),
            f"{row['n_patients_a']:,}",
            f"{row['n_patients_b']:,}",
            signed(row["mean_a"]),
            signed(row["mean_b"]),
            signed(row["difference"]),
            interval(row["difference_low"], row["difference_high"]),
        ]
        for row in data.rows
    ]
    head = [
        *("Time", "Patients of the cohort", "of its reference", "Mean of the cohort", "of its reference"),
        *("Difference", "95 % interval"),
    ]
    caption = (
        f"Mean per event: {quantity_in_unit(run)}; intervals: 95 %, patients as units: {interval_words(data.rows)}."
    )
    return in_details("The difference over time as a table", table(caption, head, rows))
