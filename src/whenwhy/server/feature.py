"""The answer of the query feature_cells flows in, what the charts of a feature draw flows out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from whenwhy.server.answers import Question, question
from whenwhy.server.cohort import Cohort
from whenwhy.server.state import State

Row = Mapping[str, Any]


@dataclass(frozen=True)
class FeatureCells:
    """The cells of one feature: by value and time, by time, by value, and all together (None where it is not shown)."""

    cells: list[Row]
    course: list[Row]
    effect: list[Row]
    summary: Row | None

    @classmethod
    def of(cls, table: pa.Table) -> FeatureCells:
        """The cells of an answer, each kind in the order of the query that asks for it alone.

        Example:
            >>> row = {"level": "code", "time_bin": None, "bin": None, "n_patients": 12}
            >>> FeatureCells.of(pa.Table.from_pylist([row])).summary["n_patients"]
            12
        """
        rows = table.to_pylist()
        values = [row for row in rows if row["level"] == "value"]
        codes = [row for row in rows if row["level"] == "code"]
        dated = [row for row in values if row["time_bin"] is not None]
        return cls(
            sorted(dated, key=lambda row: (-1 if row["bin"] is None else row["bin"], row["time_bin"])),
            [row for row in codes if row["time_bin"] is not None],
            [row for row in values if row["time_bin"] is None],
            next((row for row in codes if row["time_bin"] is None), None),
        )


def asked_of(state: State) -> dict[str, Question]:
    """The questions of the chosen feature: of the cohort, of its reference, and of who is marked."""
    whom: dict[str, Cohort | None] = {
        "cohort": state.cohort,
        "reference": state.reference,
        "marked": state.selected_cohort,
    }
    return {
        name: question("feature_cells", feature=state.feature, **state.of(cohort))
        for name, cohort in whom.items()
        if cohort is not None
    }
