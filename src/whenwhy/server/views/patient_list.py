"""A state flows in, the cohort's predictions flow out as a list to choose patients from: each with what carries it most."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import amount, quantity, signed, unit_of
from whenwhy.server.markup import choice, heading, table
from whenwhy.server.patient import FOR_ANALYSTS, ORDERS, PAGE, Chosen, Look
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts


@dataclass(frozen=True)
class Listed:
    """One page of the list, whether there is another behind it, and what was looked at."""

    state: State
    chosen: Chosen
    rows: list[Mapping[str, Any]]
    has_more: bool


class PatientList:
    """The predictions of the cohort, one by one, in the order that is asked for."""

    name = "patient_list"

    def __init__(self, choices: Choices, look: Look) -> None:
        self._choices, self._look = choices, look

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """A page of the list, and the first prediction of the next one.

        Raises:
            UserError: nobody may see single patients.
        """
        if not self._choices.has_rows:
            raise UserError(FOR_ANALYSTS)
        chosen = self._look()
        of = {"order_by": chosen.order, **state.of_rows()}
        return {
            "patients": question("patients", top=PAGE, skip=chosen.skip, **of),
            "next": question("patients", top=1, skip=chosen.skip + PAGE, **of),
        }

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["patients"]

    def read(self, state: State, tables: Tables) -> Listed:
        """The page of the list."""
        return Listed(state, self._look(), tables["patients"].to_pylist(), tables["next"].num_rows > 0)

    def put(self, data: Listed) -> Texts:
        """The list with its orders and pages, or words."""
        chosen = data.chosen
        if not data.rows:
            sentence = "Nobody is here: choose another class, stratum or split, or clear the filters."
            if chosen.skip:
                sentence = "The list ends before this page."
            pages = choice("list", "To its beginning", skip="0") if chosen.skip else ""
            return {
                "patient_list_heading": heading("Patients of the cohort", ""),
                "patient_list_words": f'<p class="words">{sentence} {pages}</p>',
                "patient_list_table": "",
            }
        first, last = chosen.skip + 1, chosen.skip + len(data.rows)
        orders = " · ".join(
            f"<b>{words}</b>" if name == chosen.order else choice("list", words, order=name)
            for name, words in ORDERS.items()
        )
        turns = [choice("list", "Previous", skip=str(max(0, chosen.skip - PAGE)))] * bool(chosen.skip)
        turns += [choice("list", "Next", skip=str(chosen.skip + PAGE))] * data.has_more
        return {
            "patient_list_heading": heading(
                f"Patients of the cohort: predictions {first:,} to {last:,}", "Choose one to see its record below."
            ),
            "patient_list_words": f'<p class="quiet">Ordered by {orders}</p>',
            "patient_list_table": self._table(data) + (f"<p>{' · '.join(turns)}</p>" if turns else ""),
        }

    def _table(self, data: Listed) -> str:
        run, features = self._choices.runs[data.state.run], self._choices.offered[data.state.run].features
        rows = []
        for row in data.rows:
            code = row["code"]
            carries = "nothing recorded"
            if code is not None:
                words = feature_words(code, features.get(code, {}).get("description"))
                carries = f"{html.escape(words)}: {signed(row['contribution'])}"
            rows.append(
                [
                    choice(
                        "patient", str(row["subject_id"]),
                        subject=str(row["subject_id"]), time=row["prediction_time"].isoformat(),
                    ),
                    f"{row['prediction_time']:%Y-%m-%d %H:%M}",
                    html.escape(str(row["label"])),
                    html.escape(str(row["predicted"])),
                    signed(row["score"]),
                    "" if row["probability"] is None else amount(row["probability"]),
                    f"{row['n_values']:,}",
                    carries,
                ]
            )  # fmt: skip
        seen = [(row["subject_id"], row["prediction_time"]) for row in data.rows]
        at = (data.chosen.subject_id, data.chosen.time)
        return table(
            f"Score in {unit_of(run)}; the code whose summed {quantity(run)} is largest in size.",
            ["Patient", "Prediction at", "Label", "Predicted", "Score", "Probability", "Values", "Carried most by"],
            rows,
            seen.index(at) if at in seen else None,
        )
