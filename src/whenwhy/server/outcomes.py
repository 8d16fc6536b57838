"""A run and a cohort flow in, what views of predictions by class share flows out: colours, totals, who is counted."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any, Final

from whenwhy.errors import UserError
from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import Cohort, quoted
from whenwhy.server.labels import class_words, for_analysts, panel_words, split_words, stratum_words
from whenwhy.server.state import State
from whenwhy.server.view import Tables

#: The colours of classes, in turn: neighbours differ for colour-blind people too, each by 3:1 at least from white.
CLASS_COLORS: Final = ("#2c6496", "#b35806", "#8073ac", "#01665e", "#8c510a", "#5b6777")

#: What names the questions of totals.
TOTAL: Final = "total of "


def need_rows(choices: Choices, what: str) -> None:
    """Nothing, where rows may be read.

    Raises:
        UserError: they may not; it says of what.
    """
    if not choices.has_rows:
        raise UserError(for_analysts(what))


def classes_of(choices: Choices, run: str) -> list[str]:
    """The run's classes that have cells to show, in the order of their names."""
    return [name for name in choices.offered[run].classes if name != "all"]


def tells_one_class(choices: Choices, run: str) -> bool:
    """Whether predictions tell the probability of the same class, and not of whichever of several is predicted."""
    target = str(choices.runs[run]["target"])
    return len(classes_of(choices, run)) <= 2 or (":" in target and not target.startswith("unit:"))


def colors_of(classes: Sequence[str]) -> dict[str, str]:
    """The colour of each class.

    Example:
        >>> colors_of(["false", "true"])["false"]
        '#2c6496'
    """
    return {name: CLASS_COLORS[i % len(CLASS_COLORS)] for i, name in enumerate(classes)}


def key(classes: Sequence[str], outcome: str, chosen: str = "all") -> str:
    """The HTML of the legend of classes; the chosen one is bold.

    Example:
        >>> key(["true"], "death")
        '<span class="key" style="--mark:#2c6496">death: true</span>'
    """
    told = []
    for name, color in colors_of(classes).items():
        said = html.escape(class_words(name, outcome))
        told.append(f'<span class="key" style="--mark:{color}">{f"<b>{said}</b>" if name == chosen else said}</span>')
    return "".join(told)


def totals(choices: Choices, state: State) -> dict[str, Question]:
    """The questions of how many predictions each class has in the cohort, whatever its own class."""
    whole = state.cohort.whatever_outcome
    return {
        f"{TOTAL}{name}": question("number_at_risk", **{**state.of(whole), "class": name})
        for name in classes_of(choices, state.run)
    }


def totals_told(tables: Tables) -> dict[str, int]:
    """How many predictions each class has, where that may be shown."""
    told = {}
    for name, table in tables.items():
        if name.startswith(TOTAL):
            whole = [row for row in table.to_pylist() if row["time_bin"] is None]
            if whole:
                told[name.removeprefix(TOTAL)] = int(whole[0]["n_predictions"])
    return told


def predicted_text(name: str) -> str:
    """The text of the condition that a class is predicted.

    Example:
        >>> predicted_text("true")
        "where:predicted = 'true'"
    """
    return f"where:predicted = {quoted(name)}"


def who(state: State) -> str:
    """Of whom a card of all classes is: split, stratum, conditions and a fixed panel."""
    cohort: Cohort = state.cohort.whatever_outcome
    told = [split_words(state.split), stratum_words(cohort.stratum), *(c.words for c in cohort.conditions)]
    return ", ".join(told if state.panel is None else [*told, panel_words(state.panel)])


def of_marked(state: State) -> dict[str, Any] | None:
    """The arguments of questions about the marked predictions of all classes; None where nobody can be asked for."""
    if state.selected is None or not state.selected.sql:
        return None
    return state.of(state.cohort.whatever_outcome.with_condition(state.selected))


def rows_of(tables: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The rows of an answer; none where it was not asked for."""
    rows: list[dict[str, Any]] = tables[name].to_pylist() if name in tables else []
    return rows
