"""A state flows in, which features may be leaks or shortcuts flows out in words: what is suspicious about each."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.choices import SITE, Choices
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import capitalised, counted, no_cells, number, percent
from whenwhy.server.markup import choice, heading, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.data_quality import EVERY_FEATURE, ready, whom
from whenwhy.server.views.subgroups import kind_words, rate

SHOWN: Final = 10
NO_PROOF: Final = "a suspicion is no proof: ask of each how its record comes about"


@dataclass(frozen=True)
class Suspected:
    """The rows of leak_finder that are shown, and of how many features, how many are under suspicion."""

    state: State
    kind: str | None
    rows: list[Mapping[str, Any]]
    n_features: int
    n_suspected: int


class Leaks:
    """Which features spike before the prediction, count for being measured, or differ between subgroups."""

    name = "leaks"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """Every feature's signs."""
        about = {name: value for name, value in ready(state).items() if name != "stratum"}
        kind = self._kind(state)
        by_kind = {} if kind is None else {"subgroups": kind}
        return {"rows": question("leak_finder", **about, **by_kind, top=EVERY_FEATURE)}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["rows"]

    def read(self, state: State, tables: Tables) -> Suspected:
        """The first rows, and counts of all."""
        rows = tables["rows"].to_pylist()
        kind = self._kind(state)
        return Suspected(state, kind, rows[:SHOWN], len(rows), sum(bool(suspicions(row, kind)) for row in rows))

    def put(self, data: Suspected) -> Texts:
        """The card's title, and the table."""
        state = data.state
        if not data.rows:
            none = words(capitalised(no_cells(state.min_patients)) + ".")
            return {"leaks_heading": "", "leaks_words": none, "leaks_table": ""}
        outcome = str(self._choices.runs[state.run]["outcome"])
        title = f"Leaks and shortcuts: {data.n_suspected} of {counted(data.n_features, 'feature')} under suspicion"
        return {
            "leaks_heading": heading(title, f"{NO_PROOF}; {whom(state, outcome, of_strata=False)}"),
            "leaks_table": _table(data),
        }

    def _kind(self, state: State) -> str | None:
        """Sites, or what was chosen: other subgroups may differ for good reasons, and nobody asked for them."""
        return state.subgroups or (SITE if SITE in self._choices.offered[state.run].kinds else None)


def suspicions(row: Mapping[str, Any], kind: str | None) -> list[str]:
    """What is suspicious about a feature.

    Example:
        >>> suspicions({"spikes": True, "counts_for_being_measured": False, "differs_by_subgroup": None}, None)
        ['spikes before the prediction']
    """
    told = {
        "spikes before the prediction": row["spikes"],
        "counts for being measured": row["counts_for_being_measured"],
        f"differs by {kind_words(kind or '')}": row["differs_by_subgroup"],
    }
    return [said for said, is_so in told.items() if is_so]


def _table(data: Suspected) -> str:
    rows = [
        [
            choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
            html.escape(", ".join(suspicions(row, data.kind)) or "none"),
            f"{row['n_patients']:,}",
            "not shown" if row["share_of_total"] is None else percent(row["share_of_total"]),
            _spike(row["spike"]),
            "" if row["measured_share"] is None else percent(row["measured_share"]),
            *([] if data.kind is None else [rate(row["subgroup_q"])]),
        ]
        for row in data.rows
    ]
    head = ["Feature", "Suspicions", "Patients", "Share of all, in absolute terms", "Spike", "Due to being measured"]
    head += [] if data.kind is None else [f"False discovery rate by {kind_words(data.kind)}"]
    caption = (
        "Spike: mean size of an event in the last bin over earlier ones, relative to all features (suspicious from 3 "
        "on). Due to being measured: the part of its effect that all its ranges share (suspicious from 90 % on)."
    )
    if data.kind is None:
        caption += " Differences between subgroups are looked at once a kind of them is chosen below."
    return table(caption, head, rows)


def _spike(spike: float | None) -> str:
    if spike is None:
        return "no course to compare"
    return "never recorded earlier" if math.isinf(spike) else f"{number(spike, 3)} ×"
