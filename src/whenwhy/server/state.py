"""What a person looks at: one frozen value a session, read by every view and mirrored in the address."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlencode

from whenwhy.errors import UserError, unknown_name
from whenwhy.schema import MIN_PATIENTS
from whenwhy.server.choices import Choices

#: The fields of a state by the words that an address uses, and how messages name them.
WORDS = {
    "feature": "feature",
    "class": "class",
    "split": "split",
    "stratum": "stratum",
    "run": "run",
    "min_patients": "fewest patients",
}


@dataclass(frozen=True)
class State:
    """The chosen cohort and feature. There is never a patient in it, so an address can be passed on."""

    run: str
    split: str
    class_label: str
    stratum: str
    feature: str
    min_patients: int = MIN_PATIENTS

    @property
    def cohort(self) -> dict[str, Any]:
        """The arguments that every named query about a cohort takes.

        Example:
            >>> State("r", "held_out", "all", "sex=F", "hdl").cohort["stratum"]
            'sex=F'
        """
        return {
            "run": self.run,
            "split": self.split,
            "class": self.class_label,
            "stratum": self.stratum,
            "min_patients": self.min_patients,
        }

    @property
    def address(self) -> str:
        """The query string that reproduces this state.

        Example:
            >>> State("r", "held_out", "all", "sex=F", "SEX//F").address
            'feature=SEX%2F%2FF&class=all&split=held_out&stratum=sex%3DF&run=r'
        """
        values = {
            "feature": self.feature,
            "class": self.class_label,
            "split": self.split,
            "stratum": self.stratum,
            "run": self.run,
        }
        if self.min_patients != MIN_PATIENTS:
            values["min_patients"] = str(self.min_patients)
        return urlencode(values)

    def without_filters(self, choices: Choices) -> State:
        """The same feature of the same run in its default cohort."""
        default = default_state(choices, self.run)
        return replace(default, feature=self.feature)


def default_state(choices: Choices, run: str | None = None) -> State:
    """The first run's held-out patients of every class and stratum, and the feature that carries most."""
    chosen = run or next(iter(choices.runs))
    offered = choices.offered[chosen]
    return State(chosen, offered.default_split, "all", "all", offered.default_feature)


def state_from_address(given: Mapping[str, str], choices: Choices) -> tuple[State, list[str]]:
    """The state that an address asks for, and one sentence for each of its values that the store does not know.

    Args:
        given: the address's arguments by name; unknown names are told too.
        choices: what the store offers.
    """
    wrong: list[str] = []
    run = given.get("run")
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
    }
    for name, text in given.items():
        if name in known:
            if text in known[name]:
                field: dict[str, Any] = {"class_label" if name == "class" else name: text}
                state = replace(state, **field)
            else:
                wrong.append(_not_there(WORDS[name], text, known[name]))
        elif name == "min_patients":
            try:
                state = replace(state, min_patients=fewest_patients(text))
            except UserError as error:
                wrong.append(str(error))
        elif name != "run" and not name.startswith("bokeh-"):
            wrong.append(f"{unknown_name('argument', _short(name), WORDS, 'this address')}")
    return state, wrong


def fewest_patients(text: str) -> int:
    """The fewest patients that a shown number may rest on.

    Example:
        >>> fewest_patients("30")
        30
    """
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and int(text) >= MIN_PATIENTS):
        raise UserError(
            f"min_patients is a whole number from {MIN_PATIENTS} on, not '{_short(text)}': showing {MIN_PATIENTS}."
        )
    return int(text)


def _not_there(kind: str, text: str, known: Mapping[str, Any] | tuple[str, ...]) -> str:
    return f"{unknown_name(kind, _short(text), known)} The page shows its default instead."


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
