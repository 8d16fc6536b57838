"""A state flows in, which features contribute differently among subgroups flows out: a table of the surest pairs."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import capitalised, counted, no_cells, number, quantity_in_unit, signed, stratum_words
from whenwhy.server.markup import choice, heading, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.data_quality import ready, whom

SHOWN: Final = 10


@dataclass(frozen=True)
class Disagreements:
    """The rows of subgroup_disagreement of a kind of strata."""

    state: State
    kind: str
    rows: list[Mapping[str, Any]]


class Subgroups:
    """Features whose contributions differ among sexes, age bands, sites: the two subgroups that differ most surely."""

    name = "subgroups"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The features that differ."""
        kind = kind_of(state, self._choices)
        if kind is None:
            raise UserError(
                "Subgroups: this store has none that may be shown. Name kinds of them when the records are prepared "
                "(whenwhy prepare MEDS --labels LABELS --strata sex,age_band --out SEQ)."
            )
        about = {name: value for name, value in ready(state).items() if name != "stratum"}
        return {"rows": question("subgroup_disagreement", subgroups=kind, **about, top=SHOWN)}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["rows"]

    def read(self, state: State, tables: Tables) -> Disagreements:
        """The rows."""
        return Disagreements(state, kind_of(state, self._choices) or "", tables["rows"].to_pylist())

    def put(self, data: Disagreements) -> Texts:
        """The card's title, buttons of other kinds, and the table."""
        state, rows = data.state, data.rows
        run = self._choices.runs[state.run]
        others = [
            choice("choose", kind_words(kind), name="subgroups", value=kind)
            for kind in self._choices.offered[state.run].kinds
            if kind != data.kind
        ]
        buttons = f'<p class="offers"><b>By another kind:</b> {" ".join(others)}</p>' if others else ""
        kind = kind_words(data.kind)
        if not rows:
            none = words(capitalised(no_cells(state.min_patients)) + " in two subgroups.")
            return {
                "subgroups_heading": heading(f"Subgroups by {kind}", ""),
                "subgroups_words": none + buttons,
                "subgroups_table": "",
            }
        n_found, n_tested = sum(bool(row["is_discovery"]) for row in rows), rows[0]["n_tested"] or 0
        quiet = (
            f"{whom(state, str(run['outcome']), of_strata=False)}; of each feature the two subgroups that differ most "
            f"surely; found at a false discovery rate of 5 % among all {counted(n_tested, 'tested feature')}"
        )
        return {
            "subgroups_heading": heading(
                f"Subgroups by {kind}: {n_found} of {counted(len(rows), 'feature')} below surely differ", quiet
            ),
            "subgroups_words": buttons,
            "subgroups_table": _table(data, run),
        }


def kind_of(state: State, choices: Choices) -> str | None:
    """The kind of strata whose subgroups are compared; None: there is none."""
    kinds = choices.offered[state.run].kinds
    return state.subgroups if state.subgroups in kinds else next(iter(kinds), None)


def kind_words(kind: str) -> str:
    """How people call a kind of strata.

    Example:
        >>> kind_words("age_band")
        'age band'
    """
    return kind.replace("_", " ")


def rate(q_value: float | None) -> str:
    """A false discovery rate in words.

    Example:
        >>> rate(None), rate(1e-9), rate(0.041)
        ('not tested', 'under 0.001', '0.041')
    """
    if q_value is None:
        return "not tested"
    return "under 0.001" if q_value < 0.001 else number(q_value, 2)


def _table(data: Disagreements, run: Mapping[str, Any]) -> str:
    rows = [
        [
            choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
            html.escape(
                " and ".join(stratum_words(row[side]).partition(": ")[2] for side in ("stratum_a", "stratum_b"))
            ),
            f"{row['n_patients_a']:,} and {row['n_patients_b']:,}",
            signed(row["mean_a"]),
            signed(row["mean_b"]),
            f"<b>{signed(row['difference'])}</b>" if row["is_discovery"] else signed(row["difference"]),
            rate(row["q_value"]),
            "yes" if row["signs_differ"] else "no",
        ]
        for row in data.rows
    ]
    head = [
        *("Feature", "Subgroups", "Patients", "Mean of the first", "of the second", "Difference"),
        *("False discovery rate", "Surely of opposite signs"),
    ]
    caption = f"Mean per prediction: {quantity_in_unit(run)}; bold: found."
    return table(caption, head, rows)
