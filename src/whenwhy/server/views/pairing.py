"""A state flows in, who is compared with whom flows out in words, with buttons for cohorts that are ready to compare."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.charts import MARK, REFERENCE
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import Cohort
from whenwhy.server.labels import capitalised
from whenwhy.server.markup import choice, heading, in_details, words
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts
from whenwhy.server.views.about import cohort_words

#: Of so many values every pair is offered; of more, neighbours and both ends.
EVERY_PAIR: Final = 4

EVERYBODY_ELSE: Final = "everybody else"


class Pairing:
    """The head of comparisons: both cohorts in their colours, or that a second one is missing."""

    name = "pairing"

    def __init__(self, choices: Choices) -> None:
        self._choices = choices

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """None."""
        return {}

    def csv(self, state: State) -> Question:
        """The cohorts that are ready."""
        return question("cohorts", run=state.run)

    def read(self, state: State, tables: Tables) -> State:
        """The state itself."""
        return state

    def put(self, data: State) -> Texts:
        """Who is compared, and the buttons."""
        outcome = str(self._choices.runs[data.run]["outcome"])
        offers = self._offers(data, outcome)
        if data.reference is None:
            said = "Choose two cohorts: this page shows where and when their contributions differ."
            return {
                "pairing_heading": heading("Nobody to compare with yet", "ready pairs below, or one of your own above"),
                "pairing_words": words(said) + offers,
            }
        keys = "".join(
            f'<span class="key" style="--mark:{color}">{who}: {html.escape(_whom(data, cohort, outcome))}</span>'
            for who, color, cohort in (
                ("the cohort", MARK, data.cohort),
                ("its reference", REFERENCE, data.reference),
            )
        )
        swap = "" if data.against == "rest" else choice("compare", "Swap both", **{"with": "swap"})
        title = heading(
            "The cohort beside its reference", "every difference on this page is the first minus the second"
        )
        return {
            "pairing_heading": f"{title}<p>{keys}{swap}</p>",
            "pairing_words": in_details("Other pairs", offers) if offers else "",
        }

    def _offers(self, state: State, outcome: str) -> str:
        """Buttons for pairs of classes and of each kind of strata, and for who is left."""
        offered = self._choices.offered[state.run]
        classes = [name for name in offered.classes if name != "all"]
        lines = [_line(outcome, [_pair("class", pair) for pair in pairs(classes)])]
        for kind in offered.kinds:
            names = [name for name in offered.strata if name.startswith(f"{kind}=")]
            lines.append(_line(kind.replace("_", " "), [_pair("stratum", pair) for pair in pairs(names)]))
        if state.cohort != Cohort():
            own = [choice("compare", "everybody", **{"with": "all"})]
            own += [choice("compare", EVERYBODY_ELSE, **{"with": "rest"})] if self._choices.has_rows else []
            lines.append(_line("The cohort above with", own))
        return "".join(lines)


def pairs(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs that are offered of several names: all, or neighbours and both ends where these would be many.

    Example:
        >>> pairs(["F", "M"]), len(pairs("abcd")), pairs("abcde")[-1]
        ([('F', 'M')], 6, ('a', 'e'))
    """
    if len(names) <= EVERY_PAIR:
        # The outcome that came to pass is the first.
        return [(b, a) if (a, b) == ("false", "true") else (a, b) for a, b in combinations(names, 2)]
    return [*pairwise(names), (names[0], names[-1])]


def _whom(state: State, cohort: Cohort, outcome: str) -> str:
    if state.against == "rest" and cohort == state.reference:
        return EVERYBODY_ELSE
    return ", ".join(cohort_words(state, cohort, outcome)[1:])


def _pair(name: str, pair: tuple[str, str]) -> str:
    """A button; a stratum's name without that of its kind."""
    first, second = (value.partition("=")[2] if name == "stratum" else value for value in pair)
    return choice("pair", f"{first} and {second}", name=name, first=pair[0], second=pair[1])


def _line(title: str, buttons: Sequence[str]) -> str:
    return f'<p class="offers"><b>{html.escape(capitalised(title))}:</b> {" ".join(buttons)}</p>' if buttons else ""
