"""The chosen patient and changes of the record flow in, the model's prediction before and after them flows out."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
from bokeh.models import BasicTicker, Range1d
from bokeh.models.annotations.geometry import Span
from bokeh.models.glyphs import Scatter, Step
from bokeh.models.ui.ui_element import UIElement

from whenwhy.attribution.what_if import Answer, Served, WhatIf
from whenwhy.errors import UserError
from whenwhy.events.changed_records import CHANGEABLE, Add, Change, Remove
from whenwhy.server.answers import Question
from whenwhy.server.charts import CHOSEN, MARK, ZERO_LINE, Columns, chart, draw, empty, label_axis, tooltip
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.labels import counted, number, signed, unit_of
from whenwhy.server.markup import choice, heading, in_details, table
from whenwhy.server.patient import Look, Record, RecordAxis, patient_question, range_words, record_of, value_words
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts

NOT_SERVED: Final = (
    "What the model says after each step, and what if a value were another, needs the model itself: serve the store with "
    "`whenwhy serve STORE --model MODEL --sequences SEQ`."
)
#: Values that can be changed at once, and those that can once they are asked for; codes that a form suggests.
FIRST, MOST, SUGGESTED = 12, 200, 300

#: Steps drawn of a course; of a longer one the latest.
MOST_STEPS: Final = 1_000


@dataclass(frozen=True)
class Asked:
    """A record, what the model says of it without and with the changes, and why it cannot say it with them.

    Attributes:
        places: rows of `changed_records.VALUES` that can be changed, with their contribution (None: not in the store),
            the largest first.
    """

    state: State
    record: Record
    axis: RecordAxis
    changes: tuple[Change, ...]
    told: WhatIf
    wrong: str
    places: list[Mapping[str, Any]]


class PatientWhatIf:
    """The model's prediction after each step of the record, and what it would be had the record been another."""

    name = "patient_what_if"

    def __init__(self, choices: Choices, look: Look, times: Range1d, served: Mapping[str, Served]) -> None:
        self._choices, self._look, self._served = choices, look, served
        self.before, self.after = empty(*COLUMNS), empty(*COLUMNS)
        self.before.name, self.after.name = "patient_course_before", "patient_course_after"
        self._plot = chart(260, left=72, grid="y", x_range=times, min_border_top=8, min_border_bottom=52)
        self._plot.yaxis.ticker = BasicTicker(desired_num_ticks=5)
        self._plot.add_layout(Span(location=0, dimension="height", line_color=ZERO_LINE, line_width=1))
        points = []
        for source, color, dash in ((self.before, MARK, "solid"), (self.after, CHOSEN, "dashed")):
            # What the model said holds until it reads more.
            line = Step(x="x", y="probability", mode="after", line_color=color, line_width=2, line_dash=dash)
            draw(self._plot, source, line)
            points.append(
                draw(
                    self._plot,
                    source,
                    Scatter(x="x", y="probability", size=7, line_color=color, fill_color="#ffffff", line_width=2),
                )
            )
        self._plot.add_tools(
            tooltip(
                points,
                [("record", "@which"), ("after the step", "@time"), ("score", "@words"), ("probability", "@shown")],
            )
        )

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The courses."""
        return {"patient_what_if": self._plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The patient's records; `UserError` without a patient, or where the run's model is not served along."""
        asked = patient_question(state, self._look())
        if state.run not in self._served:
            raise UserError(NOT_SERVED)
        return {"patient": asked}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["patient"]

    def read(self, state: State, tables: Tables) -> Asked:
        """What the model says: it is run here, away from the event loop.

        Raises:
            UserError: the sequences do not have the prediction.
        """
        chosen = self._look()
        record = record_of(tables["patient"], chosen)
        served, time = self._served[state.run], record.head["prediction_time"]
        wrong = ""
        try:
            told = served.prediction(record.subject_id, time, chosen.changes)
        except UserError as error:
            if not chosen.changes:
                raise
            # The changes stay, so that the one that is impossible can be undone.
            told, wrong = served.prediction(record.subject_id, time), str(error)
        return Asked(state, record, RecordAxis.of(record), chosen.changes, told, wrong, places_of(told.before, record))

    def put(self, data: Asked) -> Texts:
        """The card's title, the change of the prediction, its remarks, and the forms of changes."""
        run = self._choices.runs[data.state.run]
        is_changed = bool(data.changes) and not data.wrong
        told = data.told
        self.before.data = columns(told.before, data, "as it was")
        self.after.data = columns(told.after, data, "changed") if is_changed else {name: [] for name in COLUMNS}
        self._plot.visible = len(told.before.course.time) > 0
        shown = [*self.before.data["probability"], *self.after.data["probability"]]
        self._plot.y_range.update(**dict(zip(("start", "end"), ends_of(shown), strict=True)))
        self._plot.yaxis.axis_label = "predicted probability"
        start, end = data.axis.ends
        self._plot.x_range.update(start=start, end=end)
        ticks = {place: words for place, words in data.axis.ticks.items() if place >= -data.axis.span}
        label_axis(self._plot.xaxis, ticks, f"{data.axis.unit[0]} before the prediction")
        key = (
            f'<p><span class="key" style="--mark:{MARK}">the record as it was</span>'
            + (f'<span class="key" style="--mark:{CHOSEN}">the changed record</span>' if is_changed else "")
            + "</p>"
        )
        n_steps = len(told.before.course.time)
        steps = (
            f"what the model says of the record cut after each of its {counted(n_steps, 'step')}"
            if n_steps
            else "the record has no step, so there is no course over time"
        )
        return {
            "patient_what_if_heading": heading("The prediction over time, and what if", steps) + key,
            "patient_what_if_words": change_words(told, unit_of(run)) if is_changed else "",
            "patient_what_if_changes": self._changes(data),
            "patient_what_if_table": self._forms(data),
            "patient_what_if_course": _course_table(told, data, is_changed, unit_of(run)),
        }

    def _changes(self, data: Asked) -> str:
        """What was changed, each to be undone, and what there is to say of it."""
        if not data.changes:
            return ""
        known = {row["place"]: row for row in data.told.before.values.to_pylist()}
        chips = "".join(
            f"<li>{html.escape(words)}"
            f'<button type="button" data-act="undo" data-at="{at}" aria-label="Undo: {html.escape(words)}">×</button></li>'
            for at, words in enumerate(words_of(change, known, data) for change in data.changes)
        )
        wrong = f'<p class="warning" role="alert">{html.escape(data.wrong)}</p>' if data.wrong else ""
        remarks = "".join(f"<li>{html.escape(remark)}</li>" for remark in data.told.remarks)
        return (
            f'<ul class="chips marked"><li class="label">changed</li>{chips}</ul>'
            + (f'<ul class="quiet">{remarks}</ul>' if remarks else "")
            + wrong
            + f"<p>{choice('undo', 'Undo all changes')}</p>"
        )

    def _forms(self, data: Asked) -> str:
        """A row a value that can be changed, and the form of one more."""
        unit, hours = data.axis.unit
        time = data.record.head["prediction_time"].isoformat()
        rows = [_row(row, data) for row in data.places[:MOST]]
        left = len(data.places) - len(rows)
        head = ["Feature", "Value", "Time", "Contribution", "Another number", "Never recorded"]
        listed = ""
        if rows:
            listed = table("The values that the model reads, the ones that contribute most first.", head, rows[:FIRST])
        if rows[FIRST:]:
            more = f" {left:,} more contribute less." if left else ""
            listed += in_details(f"{len(rows) - FIRST:,} more values", table(f"The others.{more}", head, rows[FIRST:]))
        features = list(self._choices.offered[data.state.run].features.items())[:SUGGESTED]
        suggested = "".join(
            f'<option value="{html.escape(code)}">{html.escape(feature_name(code, feature["description"]))}</option>'
            for code, feature in features
        )
        add = (
            f'<form data-act="change" class="row"><input type="hidden" name="time" value="{time}">'
            f'<input type="hidden" name="hours" value="{hours}">'
            '<label>One more value: its code<input type="text" name="code" list="patient_codes" required '
            'autocomplete="off" spellcheck="false"></label>'
            f'<datalist id="patient_codes">{suggested}</datalist>'
            f'<label>{unit.capitalize()} before (empty: undated)<input type="number" name="before" min="0" step="any">'
            '</label><label>Number (empty: none)<input type="number" name="number" step="any"></label>'
            '<button class="button">Add</button></form>'
        )
        return f'<div class="forms">{listed}{add}</div>'


def change_words(told: WhatIf, unit: str) -> str:
    """How the prediction moves, as HTML."""
    score, probability = told.after.score - told.before.score, told.after.probability - told.before.probability
    return (
        f'<p class="moved">Score <b>{signed(told.before.score)}</b> → <b>{signed(told.after.score)}</b> '
        f"{html.escape(unit)} (moves by {signed(score)}); probability <b>{number(told.before.probability, 3)}</b> → "
        f"<b>{number(told.after.probability, 3)}</b> (moves by {signed(probability)}). This is what the model would say; "
        "it is not what would happen to the patient.</p>"
    )


def words_of(change: Change, known: Mapping[int, Mapping[str, Any]], data: Asked) -> str:
    """A change in words."""
    if isinstance(change, Add):
        when = "undated" if change.time is None else data.axis.words(hours_before(change.time, data.record))
        told = "" if change.number is None else f" = {number(change.number)}"
        return f"added: {change.code}{told}, {when}"
    row = known.get(change.place)
    if row is None:
        return f"place {change.place}"
    named = f"{feature_words(row['code'], row['description'])}, {_when(row, data)}"
    if isinstance(change, Remove):
        return f"removed: {named}"
    unit = f" {row['unit']}" if row["unit"] else ""
    return f"{named}: {value_words(_as_recorded(row))} → {number(change.number)}{unit}"


def hours_before(time: datetime, record: Record) -> float:
    """How long before the prediction a time is."""
    return float((record.head["prediction_time"] - time).total_seconds() / 3600)


def places_of(answer: Answer, record: Record) -> list[Mapping[str, Any]]:
    """The places of a record that can be changed, each with what its value contributes in the store, the largest first."""
    contributions: dict[tuple[int, datetime | None], list[float]] = {}
    for row in record.values:
        time = row["time"] if row["hours_before"] is not None else None
        contributions.setdefault((row["feature_value_id"], time), []).append(row["contribution"])
    places = []
    for row in answer.values.to_pylist():
        if row["kind"] in CHANGEABLE:
            found = contributions.get((row["feature_value_id"], row["time"]))
            # Alike in value and time, they contribute alike too, or their order alone tells them apart.
            places.append({**row, "contribution": found.pop(0) if found else None})
    return sorted(places, key=lambda row: -abs(row["contribution"] or 0.0))


def columns(answer: Answer, data: Asked, which: str) -> Columns:
    """A course at its places, with the words of its tooltips."""
    course, end = answer.course, np.datetime64(data.record.head["prediction_time"], "us")
    hours = np.asarray((end - course.time[-MOST_STEPS:]) / np.timedelta64(1, "h")).tolist()
    return {
        "x": [data.axis.place(hour) for hour in hours],
        "probability": course.probability[-MOST_STEPS:].tolist(),
        "score": course.score[-MOST_STEPS:].tolist(),
        "time": [data.axis.words(hour) for hour in hours],
        "words": [signed(score) for score in course.score[-MOST_STEPS:].tolist()],
        "shown": [number(shown, 3) for shown in course.probability[-MOST_STEPS:].tolist()],
        "which": [which for _ in hours],
    }


COLUMNS = ("x", "probability", "score", "time", "words", "shown", "which")


def ends_of(probabilities: list[float]) -> tuple[float, float]:
    """Ends of an axis of probabilities: around these, at least a tenth apart, within 0 and 1 but for some air.

    Example:
        >>> ends_of([0.5]), ends_of([])
        ((0.45, 0.55), (0.0, 1.0))
    """
    if not probabilities:
        return 0.0, 1.0
    low, high = min(probabilities), max(probabilities)
    air = max(0.08 * (high - low), 0.05 - (high - low) / 2)
    return max(low - air, -0.02), min(high + air, 1.02)


def _when(row: Mapping[str, Any], data: Asked) -> str:
    return data.axis.words(None if row["time"] is None else hours_before(row["time"], data.record))


def _as_recorded(row: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**row, "numeric_value": row["number"]}


def _row(row: Mapping[str, Any], data: Asked) -> list[str]:
    name = feature_words(row["code"], row["description"])
    said = html.escape(f"{name}, {_when(row, data)}")
    place = f'<input type="hidden" name="place" value="{row["place"]}">'
    another = (
        ""
        if row["number"] is None
        else f'<form data-act="change" class="inline">{place}<input type="number" step="any" name="number" required '
        f'aria-label="Another number for {said}" placeholder="{row["number"]:.6g}"><button class="button">Set</button></form>'
    )
    remove = (
        f'<button type="button" class="link" data-act="change" data-place="{row["place"]}" aria-label="Remove {said}">'
        "Remove</button>"
    )
    return [
        html.escape(name),
        f'<span title="{html.escape(range_words(row))}">{html.escape(value_words(_as_recorded(row)))}</span>',
        _when(row, data),
        signed(row["contribution"]),
        another,
        remove,
    ]


def _course_table(told: WhatIf, data: Asked, is_changed: bool, unit: str) -> str:
    courses = [("as it was", told.before), *([("changed", told.after)] if is_changed else [])]
    rows = [
        [time, which, score, shown]
        for which, answer in courses
        for of in [columns(answer, data, which)]
        for time, score, shown in zip(of["time"], of["words"], of["shown"], strict=True)
    ]
    if not rows:
        return ""
    caption = f"The model's answer to the record cut after each step; scores in {unit}."
    return in_details(
        "The course as a table", table(caption, ["After the step", "Record", "Score", "Probability"], rows)
    )
