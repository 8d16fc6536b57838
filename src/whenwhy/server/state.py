"""What a person looks at: one frozen value a session, read by every view and mirrored in the address."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal
from urllib.parse import urlencode

from whenwhy.errors import UserError, unknown_name
from whenwhy.schema import MIN_PATIENTS
from whenwhy.server.choices import Choices
from whenwhy.server.cohort import NEEDS_ROWS, Cohort, Condition
from whenwhy.server.labels import shortened

#: What an address may hold, and how messages name it.
WORDS: Final = {
    "feature": "feature",
    "class": "class",
    "split": "split",
    "stratum": "stratum",
    "where": "condition",
    "panel": "fixed panel",
    "against": "reference",
    "against_class": "class",
    "against_stratum": "stratum",
    "against_where": "condition",
    "selected": "condition",
    "other": "feature",
    "other_run": "run",
    "subgroups": "kind of strata",
    "within": "code group",
    "lag": "lag",
    "order": "order",
    "color": "colour",
    "opened": "part",
    "run": "run",
    "min_patients": "fewest patients",
}

#: How features may be ranked, and what each order is called.
ORDERS: Final = {
    "size": "mean absolute contribution",
    "mean": "mean contribution",
    "significance": "sure difference from zero",
    "difference": "difference of two groups",
    "variance": "variance",
    "entropy_over_time": "concentration in time",
    "entropy_over_values": "concentration in values",
}

#: What points may be coloured by.
COLORS: Final = ("label", "score")

#: Parts of pages that take long, and are asked for once they are opened.
PARTS: Final = frozenset({"pairs", "partners", "spread"})

#: How many steps before a feature its partner is recorded, and what that is called.
LAGS: Final = {"0": "at the same step", "1": "one step earlier"}


@dataclass(frozen=True)
class State:
    """The chosen run, feature and cohorts. There is never a patient in it, so an address can be passed on.

    `against` is the reference that the cohort is compared with; `selected` what a brush has marked within the cohort.
    `panel` is of everybody: predictions whose history reaches back that many hours, so that every bin until then counts the
    same patients. `other` is the feature that pairs are with, `lag` how many steps before; `other_run` the run that this one is held
    against, `subgroups` the kind of strata whose subgroups are compared, `within` the code groups that were entered, each
    within the one before, `color` what points are coloured by; `opened` holds the parts of pages that are asked for.
    """

    run: str
    split: str
    feature: str
    cohort: Cohort = field(default_factory=Cohort)
    against: Cohort | Literal["rest"] | None = None
    selected: Condition | None = None
    panel: float | None = None
    other: str | None = None
    other_run: str | None = None
    subgroups: str | None = None
    lag: str = "0"
    within: tuple[str, ...] = ()
    order: str = "size"
    color: str = "label"
    opened: frozenset[str] = frozenset()
    min_patients: int = MIN_PATIENTS

    def of(self, cohort: Cohort | None = None) -> dict[str, Any]:
        """The arguments that every named query about a cohort takes; without one, of the state's own.

        Example:
            >>> State("r", "held_out", "hdl", Cohort(stratum="sex=F")).of()["stratum"]
            'sex=F'
        """
        cohort = self.cohort if cohort is None else cohort
        told = {
            "run": self.run,
            "split": self.split,
            "class": cohort.class_label,
            "stratum": cohort.stratum,
            "min_patients": self.min_patients,
        }
        predicate = self._predicate(cohort)
        return told if predicate is None else {**told, "cohort": predicate}

    def _predicate(self, cohort: Cohort) -> str | None:
        """The conditions of a cohort, and of the panel."""
        panel = None if self.panel is None else f"(history_minutes >= {self.panel * 60!r})"
        return " and ".join(filter(None, (cohort.predicate, panel))) or None

    @property
    def is_ready(self) -> bool:
        """Whether the store has the cohort's cells ready.

        Example:
            >>> State("r", "held_out", "hdl").is_ready, State("r", "held_out", "hdl", panel=24.0).is_ready
            (True, False)
        """
        return self.cohort.is_ready and self.panel is None

    def of_rows(self, cohort: Cohort | None = None) -> dict[str, Any]:
        """The same of every named query about single predictions, which knows no fewest patients.

        Example:
            >>> "min_patients" in State("r", "held_out", "hdl").of_rows()
            False
        """
        return {name: value for name, value in self.of(cohort).items() if name != "min_patients"}

    def of_both(self) -> dict[str, Any]:
        """The arguments that every named query about two cohorts takes: the state's own, and its reference."""
        reference = self.reference
        assert reference is not None
        told: dict[str, Any] = {"run": self.run, "split": self.split, "min_patients": self.min_patients}
        for side, cohort in (("a", self.cohort), ("b", reference)):
            told |= {f"class_{side}": cohort.class_label, f"stratum_{side}": cohort.stratum}
            if not (self.is_ready and reference.is_ready):
                # One predicate alone would mean everybody else as the other.
                told[f"cohort_{side}"] = self._predicate(cohort) or "true"
        return told

    @property
    def reference(self) -> Cohort | None:
        """Whom the cohort is compared with; None: nobody. `rest` is everybody whom the cohort leaves out.

        Example:
            >>> State("r", "held_out", "hdl", Cohort("true"), "rest").reference.predicate
            "((label = 'true') is not true)"
        """
        if self.against != "rest":
            return self.against
        return Cohort(conditions=(Condition("rest", f"({self.cohort.whole_sql}) is not true", "everybody else"),))

    @property
    def selected_cohort(self) -> Cohort | None:
        """Who is marked within the cohort; None: nobody is, or only rows could tell."""
        if self.selected is None or not self.selected.sql:
            return None
        return self.cohort.with_condition(self.selected)

    @property
    def address(self) -> str:
        """The query string that reproduces this state.

        Example:
            >>> State("r", "held_out", "SEX//F", Cohort(stratum="sex=F")).address
            'feature=SEX%2F%2FF&class=all&split=held_out&stratum=sex%3DF&run=r'
        """
        told = [
            ("feature", self.feature),
            ("class", self.cohort.class_label),
            ("split", self.split),
            ("stratum", self.cohort.stratum),
            *(("where", condition.text) for condition in self.cohort.conditions),
            ("run", self.run),
        ]
        if self.against == "rest":
            told.append(("against", "rest"))
        elif self.against is not None:
            told += [("against_class", self.against.class_label), ("against_stratum", self.against.stratum)]
            told += [("against_where", condition.text) for condition in self.against.conditions]
        if self.selected is not None:
            told.append(("selected", self.selected.text))
        if self.panel is not None:
            told.append(("panel", f"{self.panel:.12g}"))
        if self.other is not None:
            told.append(("other", self.other))
        if self.other_run is not None:
            told.append(("other_run", self.other_run))
        if self.subgroups is not None:
            told.append(("subgroups", self.subgroups))
        if self.lag != "0":
            told.append(("lag", self.lag))
        told += [("within", group) for group in self.within]
        if self.order != "size":
            told.append(("order", self.order))
        if self.color != "label":
            told.append(("color", self.color))
        told += [("opened", part) for part in sorted(self.opened)]
        if self.min_patients != MIN_PATIENTS:
            told.append(("min_patients", str(self.min_patients)))
        return urlencode(told)

    def without_filters(self, choices: Choices) -> State:
        """The same feature of the same run in its default cohort."""
        return replace(default_state(choices, self.run), feature=self.feature)


def default_state(choices: Choices, run: str | None = None) -> State:
    """The first run's held-out patients of every class and stratum, and the feature that carries most.

    Raises:
        UserError: the store has no cell that may be shown.
    """
    if not choices.runs:
        raise UserError(
            "The store has no cell that may be shown (cells of 1 to 10 patients never are): "
            "aggregate the attributions of more patients."
        )
    chosen = run or next(iter(choices.runs))
    offered = choices.offered[chosen]
    return State(chosen, offered.default_split, offered.default_feature)


def state_from_address(
    given: Mapping[str, Sequence[str]], choices: Choices, read: Callable[[str, str], Condition]
) -> tuple[State, list[str]]:
    """The state that an address asks for, and one sentence for each of its values that cannot be had.

    Args:
        given: the address's arguments by name; unknown names are told too.
        choices: what the store offers.
        read: makes a condition of its text and the run, or raises `UserError`.
    """
    wrong: list[str] = []
    last = {name: texts[-1] for name, texts in given.items() if texts}
    run = last.get("run")
    if run is not None and run not in choices.runs:
        wrong.append(_not_there("run", run, choices.runs))
        run = None
    state = default_state(choices, run)
    offered = choices.offered[state.run]
    known = {
        "split": offered.splits,
        "class": offered.classes,
        "stratum": offered.strata,
        "feature": tuple(offered.features),
        "other": tuple(offered.features),
        "other_run": tuple(choices.runs),
        "subgroups": offered.kinds,
        "order": tuple(ORDERS),
        "color": COLORS,
        "lag": tuple(LAGS),
    }

    def chosen(name: str, default: str) -> str:
        text, of = last.get(name, default), known[name.removeprefix("against_")]
        if text not in of:
            wrong.append(_not_there(WORDS[name], text, of))
            return default
        return text

    def conditions(name: str) -> tuple[Condition, ...]:
        found = []
        for text in given.get(name, ()):
            try:
                condition = read(text, state.run)
                if name != "selected" and not condition.sql:
                    raise UserError(NEEDS_ROWS)
                found.append(condition)
            except UserError as error:
                wrong.append(str(error))
        return tuple(dict.fromkeys(found))

    def cohort(prefix: str = "") -> Cohort:
        return Cohort(chosen(f"{prefix}class", "all"), chosen(f"{prefix}stratum", "all"), conditions(f"{prefix}where"))

    def reference() -> Cohort | Literal["rest"] | None:
        if last.get("against") == "rest" and choices.has_rows:
            return "rest"
        if "against" in last:
            wrong.append(_not_there("reference", last["against"], ("rest",)))
        if not any(name.startswith("against_") for name in given):
            return None
        before = len(wrong)
        found = cohort("against_")
        return found if len(wrong) == before else None

    wrong += [
        str(unknown_name("argument", shortened(name, 60), WORDS, "this address"))
        for name in given
        if name not in WORDS and not name.startswith("bokeh-")
    ]
    state = replace(
        state,
        split=chosen("split", state.split),
        feature=chosen("feature", state.feature),
        cohort=cohort(),
        against=reference(),
        selected=next(iter(conditions("selected")), None),
        other=chosen("other", state.feature) if "other" in last else None,
        other_run=chosen("other_run", state.run) if "other_run" in last else None,
        subgroups=chosen("subgroups", offered.kinds[0]) if "subgroups" in last and offered.kinds else None,
        lag=chosen("lag", state.lag),
        within=tuple(given.get("within", ())),
        order=chosen("order", state.order),
        color=chosen("color", state.color),
        opened=frozenset(given.get("opened", ())) & PARTS,
    )
    if "panel" in last:
        try:
            if not choices.has_rows:
                raise UserError(NEEDS_ROWS)
            state = replace(state, panel=hours_of_panel(last["panel"]))
        except UserError as error:
            wrong.append(str(error))
    if "min_patients" in last:
        try:
            state = replace(state, min_patients=fewest_patients(last["min_patients"]))
        except UserError as error:
            wrong.append(str(error))
    return state, wrong


def fewest_patients(text: str) -> int:
    """The fewest patients that a shown number may rest on.

    Example:
        >>> fewest_patients("30")
        30
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= MIN_PATIENTS):
        raise UserError(
            f"min_patients is a whole number from {MIN_PATIENTS} on, not '{shortened(text, 60)}': showing {MIN_PATIENTS}."
        )
    return int(text)


def hours_of_panel(text: str) -> float:
    """How far back every bin counts the same patients, in hours.

    Example:
        >>> hours_of_panel("48")
        48.0
    """
    try:
        hours = float(text)
    except ValueError:
        hours = math.nan
    if not (hours > 0 and 60 * hours < math.inf):
        raise UserError(f"The fixed panel reaches back a number of hours, not '{shortened(text, 60)}'.")
    return hours


def _not_there(kind: str, text: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    return f"{unknown_name(kind, shortened(text, 60), known)} The page shows its default instead."
