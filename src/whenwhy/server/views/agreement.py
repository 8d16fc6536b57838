"""A state flows in, how far the page's run agrees with the store's other runs flows out."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.dumbbells import Dumbbells, legend
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.labels import capitalised, no_cells, percent, run_words, signed, unit_of
from whenwhy.server.markup import choice, heading, in_details, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Choose, Tables, Texts
from whenwhy.server.views.data_quality import ready, whom

SHOWN: Final = 15


@dataclass(frozen=True)
class Agreements:
    """The row of method_agreement of each other run, and the rows of drift of one of them."""

    state: State
    other: str
    each: Mapping[str, Mapping[str, Any]]
    rows: list[Mapping[str, Any]]


class Agreement:
    """Whether other methods or models find the same: ranks and signs over all features, and where they part most."""

    name = "agreement"

    def __init__(self, choices: Choices, choose: Choose) -> None:
        self._choices = choices
        told = [
            ("feature", "name"),
            ("this run", "first_words"),
            ("the other run", "second_words"),
            ("difference", "difference_words"),
            ("ranks", "ranks"),
        ]
        self.drift = Dumbbells("agreement_drift", told, choose)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The features that part most."""
        return {"agreement": self.drift.plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The agreement with each other run, and the drift from one."""
        about = {name: value for name, value in ready(state).items() if name != "run"}
        other = self._other(state)
        asked = {run: question("method_agreement", run_a=state.run, run_b=run, **about) for run in self._others(state)}
        return {**asked, "drift": question("drift", run_a=state.run, run_b=other, **about, top=SHOWN)}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["drift"]

    def read(self, state: State, tables: Tables) -> Agreements:
        """The rows."""
        each = {run: tables[run].to_pylist()[0] for run in self._others(state)}
        return Agreements(state, self._other(state), each, tables["drift"].to_pylist())

    def put(self, data: Agreements) -> Texts:
        """The verdict on one other run, a table of all, and the features that part most."""
        state, rows, told = data.state, data.rows, data.each[data.other]
        runs = self._choices.runs
        units = [unit_of(runs[run]) for run in (state.run, data.other)]
        is_comparable = units[0] == units[1]
        self.drift.put(
            [feature_name(row["code"], row["description"]) for row in rows] if is_comparable else [],
            {
                "first": [row["mean_a"] for row in rows],
                "second": [row["mean_b"] for row in rows],
                "code": [row["code"] for row in rows],
                "name": [feature_words(row["code"], row["description"]) for row in rows],
                "first_words": [signed(row["mean_a"]) for row in rows],
                "second_words": [signed(row["mean_b"]) for row in rows],
                "difference_words": [signed(row["difference"]) for row in rows],
                "ranks": [f"{row['rank_a']} and {row['rank_b']}" for row in rows],
            }
            if is_comparable
            else {name: [] for name in self.drift.source.data if name != "y"},
            f"mean, {units[0]} per prediction",
        )
        if not rows:
            none = words(capitalised(no_cells(state.min_patients)) + " in both runs.")
            return {
                "agreement_heading": heading("Agreement of runs", ""),
                "agreement_words": none,
                "agreement_table": "",
            }
        title = f"Agreement of runs: rank correlation {_number(told['rank_correlation'])}"
        quiet = (
            f"{whom(state, str(runs[state.run]['outcome']))}; with {run_words(runs[data.other])}. Where methods disagree, "
            "what a single one says of a feature is the method's as much as the model's"
        )
        apart = (
            legend("this run", "the other run")
            if is_comparable
            else words(f"{capitalised(units[0])} and {units[1]} are no common scale: ranks and signs alone compare.")
        )
        return {
            "agreement_heading": heading(title, quiet),
            "agreement_words": self._each(data) + apart,
            "agreement_table": in_details("Where they part most as a table", _drift(rows, units)),
        }

    def _others(self, state: State) -> list[str]:
        return [run for run in self._choices.runs if run != state.run]

    def _other(self, state: State) -> str:
        others = self._others(state)
        if not others:
            raise UserError(
                "Agreement of runs: this store holds one, which nothing can be held against. Attribute once more by another method "
                "(whenwhy attribute SEQ --model MODEL --method gradient_times_input --out ATTR2), and publish both "
                "(whenwhy aggregate ATTR1 ATTR2 --out STORE)."
            )
        return state.other_run if state.other_run in others else others[0]

    def _each(self, data: Agreements) -> str:
        rows = [
            [
                choice("choose", run_words(self._choices.runs[run]), name="other_run", value=run),
                f"{row['n_features']:,}",
                _number(row["rank_correlation"]),
                _number(row["correlation"]),
                "" if row["same_sign"] is None else percent(row["same_sign"]),
                "" if row["shared_top"] is None else percent(row["shared_top"]),
            ]
            for run, row in data.each.items()
        ]
        head = [
            "Run",
            "Features of both",
            "Rank correlation",
            "Correlation of means",
            "Same sign",
            "Shared of the top 20",
        ]
        caption = "Rank correlation: Spearman's, of mean sizes per prediction; 1 is the same order, 0 none."
        chosen = list(data.each).index(data.other)
        return table(caption, head, rows, chosen=chosen)


def _number(correlation: float | None) -> str:
    return "not known" if correlation is None else f"{correlation:.2f}".replace("-", "−")


def _drift(rows: list[Mapping[str, Any]], units: list[str]) -> str:
    head = ["Feature", f"Mean, {units[0]}", f"of the other, {units[1]}", "Rank by size", "of the other"]
    return table(
        "Means per prediction, those that differ most first. No interval: both runs explain the same patients.",
        head,
        [
            [
                html.escape(feature_words(row["code"], row["description"])),
                signed(row["mean_a"]),
                signed(row["mean_b"]),
                f"{row['rank_a']}",
                f"{row['rank_b']}",
            ]
            for row in rows
        ],
    )
