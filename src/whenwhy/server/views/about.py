"""A state flows in, what was explained, how well it predicts and who is counted flow out as words."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import pyarrow as pa
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import Cohort
from whenwhy.server.feature_names import TREATMENT_WORDS, is_treatment
from whenwhy.server.labels import (
    baseline_words,
    capitalised,
    class_words,
    counted,
    is_complete,
    panel_words,
    percent,
    quantity_in_unit,
    split_words,
    stratum_words,
    unit_of,
)
from whenwhy.server.outcomes import classes_of
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts

#: What each question counts.
WHOM: Final = ("cohort", "reference", "selected", "everybody")


@dataclass(frozen=True)
class Counted:
    """The row of everybody in number_at_risk, for each of whom it was asked; None where it is not shown."""

    state: State
    counts: Mapping[str, Mapping[str, Any] | None]


class About:
    """The head of every page: outcome and run, and the cohort, its reference and what is marked, as chips."""

    name = "about"

    def __init__(self, choices: Choices, version: str) -> None:
        self._choices, self._version = choices, version

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The counts of the cohort, its reference, what is marked, and everybody of the split."""
        whom: dict[str, Cohort | None] = {
            "cohort": state.cohort,
            "reference": state.reference,
            "selected": state.selected_cohort,
            "everybody": Cohort(),
        }
        return {
            name: question("number_at_risk", **state.of(cohort)) for name, cohort in whom.items() if cohort is not None
        }

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return question("number_at_risk", **state.of())

    def read(self, state: State, tables: Tables) -> Counted:
        """The counts."""
        return Counted(state, {name: everybody(table) for name, table in tables.items()})

    def put(self, data: Counted) -> Texts:
        """The head and the chips."""
        state = data.state
        run = self._choices.runs[state.run]
        outcome = str(run["outcome"])
        measured = (
            [] if run["measures"] == "contribution" else [f"the numbers: <b>{html.escape(quantity_in_unit(run))}</b>"]
        )
        facts = [
            f"<b>{html.escape(str(run['method']).replace('_', ' '))}</b>, baseline: {html.escape(baseline_words(run))}",
            *measured,
            _auroc(run),
            _complete(run),
            f"version <b>{html.escape(self._version)}</b>",
        ]
        whole = data.counts["everybody"]
        chips = ['<li class="label">the cohort</li>']
        plain = replace(state, panel=None)
        chips += [_chip(words) for words in cohort_words(plain, replace(state.cohort, conditions=()), outcome)]
        chips += [_chip(c.words, "remove", condition=c.text) for c in state.cohort.conditions]
        if state.panel is not None:
            chips.append(_chip(panel_words(state.panel), "panel", hours=""))
        chips.append(f"<li><b>{html.escape(counts(data.counts['cohort'], whole))}</b></li>")
        reference, selected = state.reference, state.selected
        against = ""
        if reference is not None:
            told = cohort_words(plain, reference, outcome)[1:]
            against = (
                '<ul class="chips against"><li class="label">its reference</li>'
                + "".join(_chip(words) for words in told)
                + f"<li><b>{html.escape(counts(data.counts['reference'], whole))}</b>"
                + '<button type="button" data-act="compare" aria-label="Compare with nobody">×</button></li></ul>'
            )
        marked = ""
        if selected is not None:
            said = (
                "in these cells"
                if state.selected_cohort is None
                else counts(data.counts["selected"], data.counts["cohort"])
            )
            marked = (
                f'<ul class="chips marked"><li class="label">marked</li>{_chip(selected.words)}'
                f"<li><b>{html.escape(said)}</b></li></ul>"
            )
        title = html.escape(capitalised(outcome))
        treatments = TREATMENT_WORDS if any(map(is_treatment, self._choices.offered[state.run].features)) else ""
        return {
            "about": f'<h1>{title}</h1><ul class="chips facts">{"".join(f"<li>{fact}</li>" for fact in facts)}</ul>',
            "unit": html.escape(
                " · ".join(filter(None, [doubling(run, classes_of(self._choices, state.run)), treatments]))
            ),
            "cohort": f'<ul class="chips">{"".join(chips)}</ul>{against}{marked}',
        }


def cohort_words(state: State, cohort: Cohort, outcome: str) -> list[str]:
    """Split, class, stratum, conditions and a fixed panel in words.

    Example:
        >>> cohort_words(State("r", "held_out", "hdl"), Cohort("true"), "death")
        ['held-out patients', 'death: true', 'everybody']
    """
    told = [split_words(state.split), class_words(cohort.class_label, outcome), stratum_words(cohort.stratum)]
    told += [condition.words for condition in cohort.conditions]
    return told if state.panel is None else [*told, panel_words(state.panel)]


def asked_of(asked: Question, state: State, outcome: str) -> str:
    """Whom an answer is of, in words: of the state's cohort what the question asks for, as some know no conditions.

    Example:
        >>> asked_of(question("leak_finder", split="held_out"), State("r", "held_out", "hdl", Cohort("true")), "death")
        'held-out patients, all classes, everybody'
    """
    names = {name for name, _ in asked.arguments}
    of_rows = bool(names & {"cohort", "cohort_a"})
    cohort = Cohort(
        state.cohort.class_label if names & {"class", "class_a"} else "all",
        state.cohort.stratum if names & {"stratum", "stratum_a"} else "all",
        state.cohort.conditions if of_rows else (),
    )
    if "split" not in names:
        return "the whole run"
    return ", ".join(cohort_words(state if of_rows else replace(state, panel=None), cohort, outcome))


def counts(row: Mapping[str, Any] | None, whole: Mapping[str, Any] | None) -> str:
    """How many patients and predictions a cohort has, and its share of the whole.

    Example:
        >>> counts({"n_patients": 143, "n_predictions": 143}, {"n_patients": 2104})
        '143 patients, 143 predictions (7 %)'
    """
    if row is None:
        return "fewer than 11 patients, or not shown"
    told = f"{counted(row['n_patients'], 'patient')}, {counted(row['n_predictions'], 'prediction')}"
    if whole is None or row["n_patients"] >= whole["n_patients"]:
        return told
    return f"{told} ({percent(row['n_patients'] / whole['n_patients'])})"


def everybody(table: pa.Table) -> Mapping[str, Any] | None:
    """The last row, which has no bin, if it is there."""
    rows = table.slice(max(0, table.num_rows - 1)).to_pylist()
    return rows[0] if rows and rows[0]["time_bin"] is None else None


def _chip(words: str, action: str = "", **told: str) -> str:
    data = "".join(f' data-{name}="{html.escape(value)}"' for name, value in told.items())
    button = (
        f'<button type="button" data-act="{action}"{data} aria-label="Remove: {html.escape(words)}">×</button>'
        if action
        else ""
    )
    return f"<li>{html.escape(words)}{button}</li>"


def _auroc(run: Mapping[str, Any]) -> str:
    if run["auroc"] is None:
        return "held-out AUROC not measured"
    said = f"held-out AUROC <b>{run['auroc']:.3f}</b>"
    return said if run["reference_auroc"] is None else f"{said} (logistic regression {run['reference_auroc']:.3f})"


def doubling(run: Mapping[str, Any], classes: Sequence[str]) -> str:
    """What a step of the unit means, and of which class, where the unit is log-odds.

    Example:
        >>> doubling({"measures": "contribution", "target": "logit", "outcome": "death"}, ["false", "true"])
        'log-odds of death: true; +0.69 doubles the odds, −0.69 halves them'
        >>> doubling({"measures": "share", "target": "logit", "outcome": "death"}, ["false", "true"])
        ''
    """
    unit = unit_of(run)
    if not unit.startswith("log-odds"):
        return ""
    of = f" of {class_words(classes[-1], str(run['outcome']))}" if unit == "log-odds" and len(classes) == 2 else ""
    return f"{unit}{of}; +0.69 doubles the odds, −0.69 halves them"


def _complete(run: Mapping[str, Any]) -> str:
    """The badge: whether contributions add up to what they explain."""
    complete, over = is_complete(run), run["n_over_tolerance"]
    if complete is None:
        return '<a href="/quality" data-page="quality">completeness not measured</a>'
    # How many are incomplete is told to analysts alone.
    said = (
        "contributions add up"
        if complete
        else f"{'some' if over is None else format(over, ',')} predictions incomplete"
    )
    return f'<a href="/quality" data-page="quality">{"✓" if complete else "!"} {said}</a>'
