"""A state flows in, the features in which who is selected differs most from the rest of the cohort flow out as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import Condition
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import interval, no_cells, quantity_in_unit, signed
from whenwhy.server.markup import choice, heading, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts

TOP: Final = 15
NOBODY: Final = "Nobody is marked: draw a line around predictions, and the features in which they differ from the others stand here."


@dataclass(frozen=True)
class Differences:
    """The rows of the comparison."""

    state: State
    rows: list[Mapping[str, Any]]


class SelectedDifferences:
    """The features whose mean contribution differs most between who is selected and the rest of the cohort."""

    name = "selected_differences"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The comparison; `UserError` where nobody is selected."""
        selected = state.selected_cohort
        if selected is None or state.selected is None:
            raise UserError(NOBODY)
        others = Condition("others", f"({state.selected.sql}) is not true", "the others")
        both = replace(state, cohort=selected, against=state.cohort.with_condition(others))
        return {"comparison": question("cohort_comparison", top=TOP, **both.of_both())}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["comparison"]

    def read(self, state: State, tables: Tables) -> Differences:
        """The rows."""
        return Differences(state, tables["comparison"].to_pylist())

    def put(self, data: Differences) -> Texts:
        """The table, or words."""
        run = self._choices.runs[data.state.run]
        rows = [
            [
                choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
                signed(row["mean_a"]),
                signed(row["mean_b"]),
                signed(row["difference"]),
                "none" if row["difference_low"] is None else interval(row["difference_low"], row["difference_high"]),
                f"{row['n_patients_a']:,} and {row['n_patients_b']:,}",
            ]
            for row in data.rows
        ]
        title = heading(
            "What tells the marked from the others", "of the cohort; patients, not predictions, are counted"
        )
        if not rows:
            sentence = f"Nothing to compare: {no_cells(data.state.min_patients)}, marked and not. Mark more, or fewer."
            return {
                "selected_differences_heading": title,
                "selected_differences_words": words(sentence),
                "selected_differences_table": "",
            }
        caption = f"Mean {quantity_in_unit(run)}, per prediction; intervals: 95 %, patients as units; none: fewer than 30 effective patients."
        head = ["Feature", "Marked", "Others", "Difference", "95 % interval", "Patients"]
        return {"selected_differences_heading": title, "selected_differences_table": table(caption, head, rows)}
