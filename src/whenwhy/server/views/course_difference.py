"""A state flows in, when a feature contributes differently in two cohorts flows out: a course with its interval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import FADED, Columns, TimeFrame
from whenwhy.server.choices import Choices
from whenwhy.server.course import CourseChart, TimedMean
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
        told = [
            ("time", "@time"),
            ("difference per event", "@difference_words"),
            ("95 % interval", "@interval"),
            ("means", "@means"),
            ("patients", "@patients"),
            ("events", "@events"),
        ]
        self._course = CourseChart(self.name, frame, 190, WORDS, told)
        self.source, self.bands = self._course.source, self._course.bands

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The course."""
        return {"course_difference": self._course.plot}

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
        run, rows = self._choices.runs[data.state.run], data.rows
        self._course.put(timed_means(rows), tooltip_words(data), f"difference, {unit_of(run)}")
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


WORDS: Final = (
    *("time", "difference_words", "interval", "means", "patients", "events", "n_patients_a", "n_patients_b"),
)


def timed_means(rows: Sequence[Mapping[str, Any]]) -> list[TimedMean]:
    """The differences; pale where the sign is not sure."""
    return [
        TimedMean(row["time_bin"], row["difference"], low, high, DIFFERENCE, 1.0 if is_sure(low, high) else FADED)
        for row in rows
        for low, high in [(row["difference_low"], row["difference_high"])]
    ]


def tooltip_words(data: Course) -> Columns:
    """What the tooltips say of each."""
    rows = data.rows
    return {
        "time": [data.scale.words(row["time_bin"]) for row in rows],
        "difference_words": [signed(row["difference"]) for row in rows],
        "interval": [interval(row["difference_low"], row["difference_high"]) for row in rows],
        "means": [f"{signed(row['mean_a'])} and {signed(row['mean_b'])}" for row in rows],
        "patients": [f"{row['n_patients_a']:,} and {row['n_patients_b']:,}" for row in rows],
        "events": [f"{row['n_events_a']:,} and {row['n_events_b']:,}" for row in rows],
        "n_patients_a": [row["n_patients_a"] for row in rows],
        "n_patients_b": [row["n_patients_b"] for row in rows],
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
