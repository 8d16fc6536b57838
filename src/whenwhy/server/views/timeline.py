"""A state flows in, when the feature mattered flows out: its mean contribution in each bin of time with intervals."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import CHOSEN, FADED, MARK, REFERENCE, Columns, TimeFrame, brushed
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import recorded_text
from whenwhy.server.course import CourseChart, TimedMean
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
        told = [
            ("of", "@who"),
            ("time", "@time"),
            ("mean per event", "@event_words"),
            ("95 % interval", "@event_interval"),
            ("mean per prediction at risk", "@prediction_words"),
            ("95 % interval", "@prediction_interval"),
            ("patients", "@n_patients{0,0} of @n_patients_at_risk at risk"),
            ("events", "@n_events{0,0}"),
        ]
        self._course = CourseChart("timeline", frame, 216, WORDS, told)
        self.source = self._course.source
        if mark is not None:
            brushed(self._course.plot, partial(self._brushed, mark), "width")

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The course."""
        return {"timeline": self._course.plot}

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
        run = self._choices.runs[data.state.run]
        means = timed_means(data)
        self._course.put(means, tooltip_words(data), f"{unit_of(run)} per event")
        if not means:
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


WORDS: Final = (
    *("who", "n_patients", "n_events", "n_patients_at_risk", "time"),
    *("event_words", "event_interval", "prediction_words", "prediction_interval"),
)

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


def timed_means(data: Course) -> list[TimedMean]:
    """The means per event of everybody whose course is drawn; pale beside what is marked."""
    return [
        TimedMean(
            row["time_bin"],
            row["mean_per_event"],
            row["mean_per_event_low"],
            row["mean_per_event_high"],
            COURSES[who],
            1.0 if is_marked else FADED,
        )
        for who, row, is_marked in _each(data)
    ]


def tooltip_words(data: Course) -> Columns:
    """What the tooltips say of each."""
    each = _each(data)
    rows = [row for _, row, _ in each]
    return {
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
