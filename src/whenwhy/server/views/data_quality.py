"""A state flows in, what may be wrong with the records flows out: coverage beside training's, and findings in words."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.choices import Choices
from whenwhy.server.dumbbells import Dumbbells, legend
from whenwhy.server.feature_names import feature_name, feature_words
from whenwhy.server.labels import (
    capitalised,
    class_words,
    counted,
    no_cells,
    number,
    percent,
    split_words,
    stratum_words,
)
from whenwhy.server.markup import choice, heading, table, words
from whenwhy.server.state import State
from whenwhy.server.view import Choose, Tables, Texts

#: So many features are shown, those with findings first; all are looked at.
SHOWN: Final = 20
EVERY_FEATURE: Final = 10**9


@dataclass(frozen=True)
class Records:
    """The rows of data_quality that are shown, how many features there are, and how many of them have findings."""

    state: State
    rows: list[Mapping[str, Any]]
    n_features: int
    n_found: int


class DataQuality:
    """Which share of patients has a feature, beside training's, and what stands out about its records."""

    name = "data_quality"

    def __init__(self, choices: Choices, choose: Choose | None = None) -> None:
        self._choices = choices
        told = [
            ("feature", "name"),
            ("patients", "patients"),
            ("share of patients", "share"),
            ("share of training patients", "training"),
            ("findings", "findings"),
        ]
        self.coverage = Dumbbells("data_quality_coverage", told, choose)

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """The coverage."""
        return {"data_quality": self.coverage.plot}

    def questions(self, state: State) -> Mapping[str, Question]:
        """Every feature's records."""
        return {"rows": question("data_quality", **ready(state), top=EVERY_FEATURE)}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["rows"]

    def read(self, state: State, tables: Tables) -> Records:
        """The first rows, and counts of all."""
        told = tables["rows"]
        n_found = sum(bool(findings) for findings in told["findings"].to_pylist())
        return Records(state, told.slice(0, SHOWN).to_pylist(), told.num_rows, n_found)

    def put(self, data: Records) -> Texts:
        """The card's title, the legend and the table."""
        rows, state = data.rows, data.state
        self.coverage.put(
            [feature_name(row["code"], row["description"]) for row in rows],
            {
                "first": [_hundredths(row["share_of_patients"]) for row in rows],
                "second": [_hundredths(row["training_share"]) for row in rows],
                "code": [row["code"] for row in rows],
                "name": [feature_words(row["code"], row["description"]) for row in rows],
                "patients": [f"{row['n_patients']:,}" for row in rows],
                "share": [_share(row["share_of_patients"]) for row in rows],
                "training": [_share(row["training_share"]) for row in rows],
                "findings": [row["findings"] or "none" for row in rows],
            },
            "patients who have it (%)",
        )
        if not rows:
            none = words(capitalised(no_cells(state.min_patients)) + ".")
            return {"data_quality_heading": "", "data_quality_words": none, "data_quality_table": ""}
        title = f"Records: {data.n_found} of {counted(data.n_features, 'feature')} with findings"
        outcome = str(self._choices.runs[state.run]["outcome"])
        quiet = f"{whom(state, outcome)}; {'those' if data.n_features <= SHOWN else f'the first {SHOWN}, those'} with findings first"
        return {
            "data_quality_heading": heading(title, quiet),
            "data_quality_words": legend(split_words(state.split), "training patients"),
            "data_quality_table": _table(data),
        }


def ready(state: State) -> dict[str, Any]:
    """The arguments of queries about a cohort that know no conditions.

    Example:
        >>> sorted(ready(State("r", "held_out", "hdl")))
        ['class', 'min_patients', 'run', 'split', 'stratum']
    """
    return {name: value for name, value in state.of().items() if name != "cohort"}


def whom(state: State, outcome: str, of_strata: bool = True) -> str:
    """Of whom a card of this page tells; conditions, and strata where it compares them, are left out of it.

    Example:
        >>> whom(State("r", "held_out", "hdl"), "death")
        'held-out patients, all classes, everybody'
    """
    cohort = state.cohort
    told = [split_words(state.split), class_words(cohort.class_label, outcome)]
    told += [stratum_words(cohort.stratum)] if of_strata else []
    without = (
        ["its conditions"] * bool(cohort.conditions)
        + ["its fixed panel"] * (state.panel is not None)
        + ["its stratum"] * (not of_strata and cohort.stratum != "all")
    )
    return ", ".join(told) + (f" (the cohort without {' and '.join(without)})" if without else "")


def _hundredths(share: float | None) -> float | None:
    return None if share is None else 100 * share


def _share(share: float | None) -> str:
    return "not shown" if share is None else percent(share)


def _table(data: Records) -> str:
    rows = [
        [
            choice("choose", feature_words(row["code"], row["description"]), name="feature", value=row["code"]),
            html.escape(row["findings"] or "none"),
            f"{row['n_patients']:,}",
            _share(row["share_of_patients"]),
            _share(row["training_share"]),
            number(row["events_per_patient"], 3),
            _share(row["share_undated"]),
            _share(row["share_without_number"]) if row["n_values_known"] > 1 else "has no numbers",
            f"{'not shown' if row['n_values'] is None else row['n_values']} of {row['n_values_known']}",
            _share(row["share_of_commonest"]),
        ]
        for row in data.rows
    ]
    head = [
        *(
            "Feature",
            "Findings",
            "Patients",
            "Share of patients",
            "of training",
            "Events per patient",
            "Without a time",
        ),
        *("Without a number", "Values that occur", "Share of the commonest"),
    ]
    chosen = next((i for i, row in enumerate(data.rows) if row["code"] == data.state.feature), None)
    caption = "A finding: 10 points more or fewer patients than in training, mostly no number, some times missing, one value nearly always."
    return table(caption, head, rows, chosen=chosen)
