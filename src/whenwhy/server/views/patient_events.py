"""The chosen patient flows in, the record flows out as a timeline: what was recorded when, and what it contributed."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models import LinearColorMapper, Range1d
from bokeh.models.annotations.geometry import BoxAnnotation, Span
from bokeh.models.glyphs import Scatter
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question
from whenwhy.server.charts import ZERO_LINE, Columns, chart, color_bar, draw, empty, label_axis, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import counted, quantity, quantity_in_unit, shortened, signed, unit_of
from whenwhy.server.markup import heading, in_details, table
from whenwhy.server.patient import Look, Record, RecordAxis, patient_question, range_words, record_of, value_words
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.heat_map import PALETTE

#: Rows of the timeline beside the one of all other features; values drawn; rows of the table.
ROWS: Final = 12
MOST_DRAWN: Final = 2_000
MOST_TOLD: Final = 100

#: The diameters of markers, in pixels: of nothing, and what the largest contribution adds.
SMALLEST, LARGER = 7.0, 14.0

ABOVE, BELOW, ROW_HEIGHT = 64, 52, 28

#: The pixels at the left of the page's charts, for names of at most 22 characters.
LABELS: Final = 164


@dataclass(frozen=True)
class Events:
    """A record, its axis, and the codes that have a row of their own, the one that contributes most first."""

    state: State
    record: Record
    axis: RecordAxis
    codes: list[str]

    @property
    def limit(self) -> float:
        """The end of the colour scale on either side of zero."""
        return max((abs(row["contribution"]) for row in self.record.values), default=0.0) or 1.0


def events_of(state: State, record: Record) -> Events:
    """The record with its rows."""
    size: dict[str, float] = {}
    for row in record.values:
        size[row["code"]] = size.get(row["code"], 0.0) + abs(row["contribution"])
    ranked = sorted(size, key=lambda code: (-size[code], code))
    # A row that would hold one feature says its name.
    return Events(state, record, RecordAxis.of(record), ranked if len(ranked) <= ROWS + 1 else ranked[:ROWS])


class PatientEvents:
    """Each recorded value of a prediction at its time, coloured by its contribution."""

    name = "patient_events"

    def __init__(self, choices: Choices, look: Look, times: Range1d) -> None:
        self._choices, self._look = choices, look
        self.source = empty(*COLUMNS)
        self.source.name = "patient_events_values"
        self.mapper = LinearColorMapper(palette=PALETTE, low=-1.0, high=1.0, name="patient_events_colors")
        self._plot = chart(300, left=LABELS, grid="y", x_range=times, min_border_top=ABOVE, min_border_bottom=BELOW)
        self._strip = BoxAnnotation(right=0, fill_color="#eef1f4", fill_alpha=1.0, line_color=None, level="underlay")
        self._plot.add_layout(self._strip)
        self._plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        markers = Scatter(
            x="x",
            y="y",
            size="size",
            line_color="#5b6777",
            line_width=1,
            fill_color={"field": "contribution", "transform": self.mapper},
        )
        self._plot.add_tools(
            tooltip(
                [draw(self._plot, self.source, markers)],
                [
                    ("feature", "@feature"),
                    ("value", "@value"),
                    ("counts as", "@range"),
                    ("time", "@time"),
                    ("contribution", "@words"),
                ],
            )
        )
        self.bar = color_bar(self._plot, self.mapper)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The timeline."""
        return {"patient_events": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The patient's records; `UserError` without a patient."""
        return {"patient": patient_question(state, self._look())}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["patient"]

    def read(self, state: State, tables: Tables) -> Events:
        """The chosen prediction's values with their rows."""
        return events_of(state, record_of(tables["patient"], self._look()))

    def put(self, data: Events) -> Texts:
        """The card's title and its table, or words for an empty record."""
        run = self._choices.runs[data.state.run]
        self._plot.visible = bool(data.record.values)
        if not data.record.values:
            return {
                "patient_events_heading": heading("What was recorded", ""),
                "patient_events_words": '<p class="words">Nothing was recorded before this prediction.</p>',
                "patient_events_table": "",
            }
        self.source.data = columns(data)
        self.mapper.update(low=-data.limit, high=data.limit)
        self.bar.title = f"{unit_of(run)} per value"
        self._put_axes(data)
        n_undated = sum(row["hours_before"] is None for row in data.record.values)
        said = f"{counted(len(data.record.values), 'value')}, {n_undated:,} of them undated"
        drawn = f" The {MOST_DRAWN:,} that contribute most are drawn." if len(data.record.values) > MOST_DRAWN else ""
        return {
            "patient_events_heading": heading(f"What was recorded when: {said}", "one patient, one prediction"),
            "patient_events_words": LEGEND.format(drawn=drawn),
            "patient_events_table": _table(data, run),
        }

    def _put_axes(self, data: Events) -> None:
        features = {row["code"]: feature_words(row["code"], row["description"]) for row in data.record.values}
        labels = [shortened(features[code], 22) for code in data.codes]
        labels += [f"{len(features) - len(labels):,} other features"] * (len(features) > len(labels))
        start, end = data.axis.ends
        self._plot.x_range.update(start=start, end=end)
        self._strip.update(right=data.axis.strip, visible=data.axis.has_undated)
        label_axis(self._plot.xaxis, data.axis.ticks, f"{data.axis.unit[0]} before the prediction")
        self._plot.y_range.update(start=0.5 - len(labels), end=0.5)
        label_axis(self._plot.yaxis, {-row: label for row, label in enumerate(labels)}, "feature")
        self._plot.height = ABOVE + BELOW + ROW_HEIGHT * len(labels)


LEGEND: Final = (
    '<p class="quiet">Red raises the prediction, blue lowers it; the larger the marker, the more.{drawn} In the shaded '
    "strip: what describes the patient and not a moment.</p>"
)
COLUMNS = ("x", "y", "size", "contribution", "feature", "value", "range", "time", "words")


def columns(data: Events) -> Columns:
    """The values at their places, the ones that contribute most on top, with the words of their tooltips."""
    place = {code: -row for row, code in enumerate(data.codes)}
    rows = sorted(data.record.values, key=lambda row: abs(row["contribution"]))[-MOST_DRAWN:]

    def y(at: int, code: str) -> float:
        # The last row holds many features: spread, so that values of one moment do not hide each other.
        return place[code] if code in place else -len(data.codes) + 0.7 * (at * 0.618034 % 1 - 0.5)

    return {
        "x": [data.axis.place(row["hours_before"]) for row in rows],
        "y": [y(at, row["code"]) for at, row in enumerate(rows)],
        "size": [SMALLEST + LARGER * math.sqrt(abs(row["contribution"]) / data.limit) for row in rows],
        "contribution": [row["contribution"] for row in rows],
        "feature": [feature_words(row["code"], row["description"]) for row in rows],
        "value": [value_words(row) for row in rows],
        "range": [range_words(row) for row in rows],
        "time": [data.axis.words(row["hours_before"]) for row in rows],
        "words": [signed(row["contribution"]) for row in rows],
    }


def _table(data: Events, run: Mapping[str, Any]) -> str:
    ranked = sorted(data.record.values, key=lambda row: -abs(row["contribution"]))
    left = len(ranked) - MOST_TOLD
    rows = [
        [
            html.escape(feature_words(row["code"], row["description"])),
            html.escape(value_words(row)),
            html.escape(range_words(row)),
            data.axis.words(row["hours_before"]),
            signed(row["contribution"]),
        ]
        for row in ranked[:MOST_TOLD]
    ]
    more = f" The {left:,} smallest are in the CSV alone." if left > 0 else ""
    return in_details(
        "The values as a table",
        table(
            f"Each value's {quantity_in_unit(run)}, the largest first.{more}",
            ["Feature", "Value", "Counts as", "Time", quantity(run).capitalize()],
            rows,
        ),
    )
