"""A state flows in, with which other features the chosen one contributes together flows out: bars with intervals."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.labels import (
    capitalised,
    counted,
    found,
    interval,
    no_cells,
    not_a_cause,
    quantity_in_unit,
    signed,
    unit_of,
)
from whenwhy.server.markup import choice, heading, in_details, table, words
from whenwhy.server.named_rows import NamedRow, NamedRows
from whenwhy.server.outcomes import need_rows
from whenwhy.server.state import LAGS, State
from whenwhy.server.view import Choose, Tables, Texts
from whenwhy.server.views.about import cohort_words

TOP: Final = 15
TEXTS: Final = ("partners_heading", "partners_lags", "partners_joint_title", "partners_change_title", "partners_table")
PART: Final = "partners"
#: More pairs than a feature has.
ALL: Final = 10**9


@dataclass(frozen=True)
class Together:
    """The first rows of feature_pairs at the chosen lag, and how many there are."""

    state: State
    rows: list[dict[str, Any]]
    n: int
    summary: Mapping[str, Any] | None


class Partners:
    """What the feature and each partner contribute together, and how the partner changes what the feature contributes."""

    name = "partners"

    def __init__(self, choices: Choices, choose: Choose) -> None:
        self._choices = choices
        self.joint = NamedRows("partners_joint", "both together, per pair", choose)
        self.difference = NamedRows("partners_difference", "difference per event", choose)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """What both contribute, and the difference that the partner makes."""
        return {"partners": self.joint.plot, "partners_change": self.difference.plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The pairs of codes up to the chosen lag, once they are opened."""
        if PART not in state.opened:
            return {}
        need_rows(self._choices, "What features contribute together")
        summary = question("feature_summary", feature=state.feature, **state.of())
        return {"pairs": pairs_of(state), "summary": summary}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(replace(state, opened=state.opened | {PART}))["pairs"]

    def read(self, state: State, tables: Tables) -> Together | None:
        """The pairs at the chosen lag that carry most in sum; None while nobody asks for them."""
        if "pairs" not in tables:
            return None
        there = at_lag(tables["pairs"], state)
        return Together(
            state, there.slice(0, TOP).to_pylist(), there.num_rows, next(iter(tables["summary"].to_pylist()), None)
        )

    def put(self, data: Together | None) -> Texts:
        """The card's title, the choice of the lag, and the same as a table."""
        if data is None:
            for rows in (self.joint, self.difference):
                rows.put([], "")
            return dict.fromkeys((*TEXTS, "partners_words"), "")
        state, run = data.state, self._choices.runs[data.state.run]
        offered = self._choices.offered[state.run]
        unit, name = unit_of(run), offered.name_of(state.feature)
        for rows, column, axis in (
            (self.joint, "mean_joint", f"{unit} per pair, both together"),
            (self.difference, "difference", f"difference in {unit} per event"),
        ):
            rows.put([self._row(data, row, column) for row in data.rows if row[column] is not None], axis)
        lags = lags_of(state)
        if not data.rows:
            said = (
                f"{capitalised(name)}: {no_cells(state.min_patients)}, a cell being one partner {LAGS[state.lag]}. What has no "
                "time is in no pair."
            )
            return dict.fromkeys(TEXTS, "") | {"partners_lags": lags, "partners_words": words(said)}
        outcome = str(run["outcome"])
        who = ", ".join(cohort_words(state, state.cohort, outcome))
        told = (
            f"{who}. {f'The first {TOP} of {data.n}' if data.n > TOP else counted(data.n, 'partner')}, those that carry most "
            f"in sum first. Together: what both contribute, per pair; difference: what {name} contributes where the partner is "
            "there, minus where it is not; whiskers: 95 % interval, patients as units; pale: it holds zero, or there is none. Choose "
            "a partner to look at it"
        )
        return {
            "partners_heading": heading(
                f"{capitalised(name)} with others {LAGS[state.lag]}{found(data.summary)}", told + "."
            ),
            "partners_lags": lags,
            "partners_words": "",
            "partners_joint_title": "<h3>Together</h3>",
            "partners_change_title": "<h3>Difference that the partner makes</h3>",
            "partners_table": self._table(data, run, name),
        }

    def _name(self, state: State, code: str) -> str:
        return self._choices.offered[state.run].words_of(code)

    def _row(self, data: Together, row: Mapping[str, Any], column: str) -> NamedRow:
        return NamedRow(
            row["other"],
            self._choices.offered[data.state.run].name_of(row["other"]),
            self._name(data.state, row["other"]),
            row[column],
            row[f"{column}_low"],
            row[f"{column}_high"],
            f"{counted(row['n_patients'], 'patient')}, {counted(row['n_pairs'], 'pair')}",
            row["n_patients"],
        )

    def _table(self, data: Together, run: Mapping[str, Any], name: str) -> str:
        rows = [
            [
                choice("choose", self._name(data.state, row["other"]), name="feature", value=row["other"]),
                f"{row['n_patients']:,}",
                f"{row['n_pairs']:,}",
                signed(row["mean_joint"]),
                interval(row["mean_joint_low"], row["mean_joint_high"]),
                signed(row["mean_with"]),
                signed(row["mean_without"]),
                signed(row["difference"]),
                interval(row["difference_low"], row["difference_high"]),
            ]
            for row in data.rows
        ]
        caption = f"{capitalised(quantity_in_unit(run))}; intervals: 95 %, patients as units. {not_a_cause(run)}"
        head = ["Partner", "Patients", "Pairs", "Both, per pair", "95 % interval", f"{capitalised(name)} with it"]
        head += ["Without it", "Difference", "95 % interval"]
        return in_details("The partners as a table", table(caption, head, rows))


def pairs_of(state: State) -> Question:
    """The question for the partners of the chosen feature, up to the chosen lag."""
    return question("feature_pairs", feature=state.feature, level="code", lags=int(state.lag), **state.of(), top=ALL)


def at_lag(pairs: pa.Table, state: State) -> pa.Table:
    """The pairs of the chosen lag alone."""
    return pairs.filter(pc.equal(pairs["lag"], int(state.lag)))


def lags_of(state: State) -> str:
    """The HTML of the choice when the partner is recorded."""
    told = [
        f"<b>{html.escape(said)}</b>" if lag == state.lag else choice("choose", said, name="lag", value=lag)
        for lag, said in LAGS.items()
    ]
    return f"<p>The partner is recorded: {' · '.join(told)}</p>"
