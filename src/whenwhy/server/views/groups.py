"""A state flows in, what the parts of a code group carry flows out: bars to go further down, and the way back up."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.labels import (
    capitalised,
    counted,
    interval,
    no_cells,
    not_a_cause,
    percent,
    quantity,
    quantity_in_unit,
    signed,
    unit_of,
)
from whenwhy.server.markup import choice, heading, in_details, table, words
from whenwhy.server.named_rows import NamedRow, NamedRows
from whenwhy.server.state import State
from whenwhy.server.view import Choose, Tables, Texts
from whenwhy.server.views.about import cohort_words, counts, everybody

TOP: Final = 20
TEXTS: Final = ("groups_heading", "groups_path", "groups_share_title", "groups_mean_title", "groups_table")


@dataclass(frozen=True)
class Parts:
    """The rows of group_rollup, and how many patients and predictions there are."""

    state: State
    rows: list[dict[str, Any]]
    everybody: Mapping[str, Any] | None


class Groups:
    """The share that each part of a group carries, and its signed mean."""

    name = "groups"

    def __init__(self, choices: Choices, choose: Choose, enter: Choose) -> None:
        self._choices = choices

        def follow(key: str) -> None:
            level, _, code = key.partition(":")
            (enter if level == "group" else choose)(code)

        self.shares = NamedRows("groups_shares", "share", follow, has_interval=False)
        self.means = NamedRows("groups_means", "mean per prediction", follow)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The shares and the means."""
        return {"groups": self.shares.plot, "groups_mean": self.means.plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The parts of the group that was entered last, or the topmost groups."""
        within = {"within": state.within[-1]} if state.within else {}
        return {
            "parts": question("group_rollup", **within, **state.of(), top=TOP),
            "everybody": question("number_at_risk", **state.of()),
        }

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["parts"]

    def read(self, state: State, tables: Tables) -> Parts:
        """The parts."""
        return Parts(state, tables["parts"].to_pylist(), everybody(tables["everybody"]))

    def put(self, data: Parts) -> Texts:
        """The way back up, the card's title, and the same as a table."""
        state, run = data.state, self._choices.runs[data.state.run]
        self.shares.put([_row(data, row, "share") for row in data.rows if row["share"] is not None], "% of the whole")
        self.means.put(
            [_row(data, row, "mean_per_prediction") for row in data.rows if row["mean_per_prediction"] is not None],
            f"{unit_of(run)} per prediction",
        )
        path = path_of(state)
        if not data.rows:
            said = capitalised(no_cells(state.min_patients)) + "."
            if not state.within:
                said += " Codes lie in groups where the column parent_codes of the data set's metadata/codes.parquet names them."
            return dict.fromkeys(TEXTS, "") | {"groups_path": path, "groups_words": words(said)}
        whole = f"all that {state.within[-1]} carries" if state.within else "all that codes carry"
        who = ", ".join(cohort_words(state, state.cohort, str(run["outcome"])))
        n = f"{counted(len(data.rows), 'part')}{' that carry most' if len(data.rows) == TOP else ''}"
        told = (
            f"{who}; {n}. Shares are of {whole} in absolute terms; whiskers: 95 % interval, patients as units; pale: it "
            "holds zero, or there is none. Choose a group to go into it, a code to look at it. A code that lies in two groups "
            "counts in both"
        )
        title = f"What {state.within[-1]} consists of" if state.within else "What groups of codes carry"
        return {
            "groups_heading": heading(f"{title}: {counts(data.everybody, None)}", told + "."),
            "groups_path": path,
            "groups_words": "",
            "groups_share_title": "<h3>Share of the whole</h3>" if self.shares.plot.visible else "",
            "groups_mean_title": "<h3>Signed mean</h3>" if self.means.plot.visible else "",
            "groups_table": _table(data, run),
        }


def path_of(state: State) -> str:
    """The HTML of the groups above, each a way back to it.

    Example:
        >>> "All groups" in path_of(State("r", "held_out", "hdl", within=("LIPIDS",)))
        True
    """
    if not state.within:
        return ""
    above = [choice("leave", "All groups")] + [choice("enter", group, group=group) for group in state.within[:-1]]
    return f'<nav aria-label="Code groups" class="path">{" › ".join([*above, html.escape(state.within[-1])])}</nav>'


def _row(data: Parts, row: Mapping[str, Any], column: str) -> NamedRow:
    is_share = column == "share"
    codes = f", {counted(row['n_codes'], 'code')}" if row["level"] == "group" else ""
    return NamedRow(
        f"{row['level']}:{row['code']}",
        feature_name(row["code"], row["description"]),
        feature_words(row["code"], row["description"]),
        100 * row["share"] if is_share else row[column],
        None if is_share else row[f"{column}_low"],
        None if is_share else row[f"{column}_high"],
        f"{counted(row['n_patients'], 'patient')}, {counted(row['n_events'], 'event')}{codes}",
        row["n_patients"],
        row["level"] == "code" and row["code"] == data.state.feature,
    )


def _table(data: Parts, run: Mapping[str, Any]) -> str:
    rows = [
        [
            choice("enter", feature_words(row["code"], row["description"]), group=row["code"])
            if row["level"] == "group"
            else choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
            f"{row['n_codes']:,}",
            f"{row['n_patients']:,}",
            f"{row['n_events']:,}",
            "not shown" if row["share"] is None else percent(row["share"]),
            signed(row["mean_per_prediction"]),
            interval(row["mean_per_prediction_low"], row["mean_per_prediction_high"]),
            html.escape(row["leading_code"] or ""),
        ]
        for row in data.rows
    ]
    head = [
        "Part",
        "Codes",
        "Patients",
        "Events",
        f"Share of |{quantity(run)}|",
        "Mean per prediction",
        "95 % interval",
    ]
    caption = f"Mean {quantity_in_unit(run)}; intervals: 95 %, patients as units. {not_a_cause(run)}"
    return in_details("The groups as a table", table(caption, [*head, "Carries most"], rows))
