"""The chosen patient flows in, one prediction's facts flow out as chips, with the patient's other predictions."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question
from whenwhy.server.choices import Choices
from whenwhy.server.labels import amount, class_words, counted, number, quantity, signed, split_words, unit_of
from whenwhy.server.markup import choice, in_details
from whenwhy.server.patient import Look, Record, patient_question, record_of
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts


@dataclass(frozen=True)
class Head:
    """A record, and the state that it was asked in."""

    state: State
    record: Record


class PatientHead:
    """What was predicted, what came to pass, and whether the contributions add up."""

    name = "patient_head"

    def __init__(self, choices: Choices, look: Look) -> None:
        self._choices, self._look = choices, look

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The patient's records; `UserError` without a patient."""
        return {"patient": patient_question(state, self._look())}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["patient"]

    def read(self, state: State, tables: Tables) -> Head:
        """The chosen prediction's record."""
        return Head(state, record_of(tables["patient"], self._look()))

    def put(self, data: Head) -> Texts:
        """The facts of the prediction, and the others to choose from."""
        record, head, run = data.record, data.record.head, self._choices.runs[data.state.run]
        unit, outcome = unit_of(run), str(run["outcome"])
        facts = [
            html.escape(split_words(head["split"])),
            f"{html.escape(class_words(str(head['label']), outcome))}",
            f"predicted <b>{html.escape(str(head['predicted']))}</b>",
            f"score <b>{signed(head['score'])}</b> {html.escape(unit)}",
            *([] if head["probability"] is None else [f"probability <b>{amount(head['probability'])}</b>"]),
            f"score of the baseline <b>{signed(head['baseline_score'])}</b>",
            f"<b>{counted(len(record.values), 'value')}</b> of the record",
            completeness_words(record, run),
        ]
        chips = "".join(f"<li>{fact}</li>" for fact in facts)
        title = f"Patient {record.subject_id}, prediction of {head['prediction_time']:%Y-%m-%d %H:%M}"
        return {
            "patient_head_heading": f'<h2 class="patient-chosen">{title}</h2>',
            "patient_head_table": f'<ul class="chips">{chips}</ul>{others(record, unit)}',
        }


def completeness_words(record: Record, run: Mapping[str, Any]) -> str:
    """What contributions and baseline leave of the score, beside the run's tolerance.

    Example:
        >>> one = Record(1, {"score": 2.0, "baseline_score": 0.5}, [{"contribution": 1.5}], [])
        >>> completeness_words(one, {"measures": "contribution", "tolerance": 1e-4})
        '✓ complete: contributions + baseline − score = 0 (tolerance 0.0001)'
        >>> completeness_words(one, {"measures": "attention", "tolerance": 1e-4})
        'attention weights do not add up to a score'
    """
    if run["measures"] != "contribution":
        return html.escape(f"{quantity(run)}s do not add up to a score")
    left = record.residual
    said = f"contributions + baseline − score = {number(left, 2)}"
    if run["tolerance"] is None:
        return said
    kept = abs(left) <= run["tolerance"]
    return f"{'✓ complete' if kept else '! incomplete'}: {said} (tolerance {number(run['tolerance'])})"


def others(record: Record, unit: str) -> str:
    """The patient's predictions to choose from, where there are several."""
    if len(record.predictions) < 2:
        return '<p class="quiet">The run has no other prediction of this patient.</p>'
    told = []
    for row in record.predictions:
        words = f"{row['prediction_time']:%Y-%m-%d %H:%M} (score {signed(row['score'])}, label {row['label']})"
        is_this = row["prediction_time"] == record.head["prediction_time"]
        time = row["prediction_time"].isoformat()
        button = choice("patient", words, subject=str(record.subject_id), time=time)
        told.append(f"<b>{html.escape(words)}</b>" if is_this else button)
    listed = f"<p>{' · '.join(told)}</p>"
    title = f"{len(told)} predictions of this patient, scores in {unit}"
    return f'<p class="quiet">{html.escape(title)}</p>{listed}' if len(told) <= 8 else in_details(title, listed)
