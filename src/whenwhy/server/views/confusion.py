"""A state flows in, how often which class is predicted for which label flows out: a table whose cells narrow the cohort."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.labels import capitalised, counted, for_analysts, no_cells, percent
from whenwhy.server.markup import choice, heading, words
from whenwhy.server.outcomes import classes_of, of_marked, predicted_text, rows_of, totals, totals_told, who
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.over_time import of_whom

NOT_SHOWN = "fewer than 11 patients, none, or hidden to protect others"


@dataclass(frozen=True)
class Predicted:
    """The rows of confusion by label and predicted class, those of who is marked, and how many predictions each label has."""

    state: State
    classes: list[str]
    rows: Mapping[tuple[str, str], Mapping[str, Any]]
    marked: Mapping[tuple[str, str], Mapping[str, Any]]
    totals: Mapping[str, int]


class Confusion:
    """Counts and shares by row; a cell is a button."""

    name = "confusion"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None: the table is the picture."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The counts of all labels, and of who is marked."""
        cohort = state.cohort.whatever_outcome
        if cohort.stratum != "all" and not self._choices.has_rows:
            raise UserError(
                for_analysts("What is predicted within one stratum", "Choose the stratum everybody instead.")
            )
        asked = {"cohort": question("confusion", **of_whom(state.of(cohort))), **totals(self._choices, state)}
        marked = of_marked(state)
        if marked is not None:
            asked["marked"] = question("confusion", **of_whom(marked))
        return asked

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["cohort"]

    def read(self, state: State, tables: Tables) -> Predicted:
        """The cells."""
        rows, marked = (
            {(row["label"], row["predicted"]): row for row in rows_of(tables, name)} for name in ("cohort", "marked")
        )
        known = classes_of(self._choices, state.run)
        classes = known + sorted({name for pair in rows for name in pair} - set(known))
        return Predicted(state, classes, rows, marked, totals_told(tables))

    def put(self, data: Predicted) -> Texts:
        """The card's title and the table."""
        if not data.rows:
            none = words(capitalised(no_cells(data.state.min_patients)) + ".")
            return {"confusion_heading": "", "confusion_words": none, "confusion_table": ""}
        n = sum(row["n_predictions"] for row in data.rows.values())
        told = (
            f"{who(data.state)}. Shares are of the row; dark: many. Hatched: {NOT_SHOWN}. "
            "Choose a cell to look at its predictions on every page"
        )
        return {
            "confusion_heading": heading(f"What is predicted: {counted(n, 'prediction')} shown", told + "."),
            "confusion_words": "",
            "confusion_table": _table(data),
        }


def share_of(data: Predicted, pair: tuple[str, str]) -> float | None:
    """The share that a cell is of its label's predictions, where both may be shown."""
    row, total = data.rows.get(pair), data.totals.get(pair[0])
    return None if row is None or not total else row["n_predictions"] / total


def _cell(data: Predicted, pair: tuple[str, str]) -> str:
    label, predicted = pair
    row = data.rows.get(pair)
    if row is None:
        return f'<td class="n hidden-cell"><span class="visually-hidden">{NOT_SHOWN}</span></td>'
    cohort, share = data.state.cohort, share_of(data, pair)
    is_chosen = cohort.class_label == label and (
        cohort.stratum == f"predicted={predicted}"
        or any(c.text == predicted_text(predicted) for c in cohort.conditions)
    )
    button = choice("narrow", f"{row['n_predictions']:,}", **{"class": label, "predicted": predicted})
    told = counted(row["n_patients"], "patient") + ("" if share is None else f", {percent(share)}")
    if data.state.selected is not None:
        marked = data.marked.get(pair)
        told += ", marked: " + ("under 11 patients" if marked is None else f"{marked['n_predictions']:,}")
    style = f"--share:{0 if share is None else share:.3f}"
    kind = "n chosen-cell" if is_chosen else "n"
    return f'<td class="{kind}" style="{style}">{button}<br><span class="quiet">{told}</span></td>'


def _table(data: Predicted) -> str:
    head = "".join(f'<th scope="col" class="n">predicted {html.escape(name)}</th>' for name in data.classes)
    body = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th>'
        + "".join(_cell(data, (label, predicted)) for predicted in data.classes)
        + "</tr>"
        for label in data.classes
    )
    caption = "Predictions by label and predicted class, with the patients and the share of the label."
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}"><table class="confusion">'
        f'<caption>{caption}</caption><thead><tr><th scope="col">Label</th>{head}</tr></thead><tbody>{body}</tbody>'
        "</table></div>"
    )
