"""An answer flows in, the file that a person takes along flows out: CSV that says what it holds."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from whenwhy.answers import as_text
from whenwhy.server.answers import Question
from whenwhy.server.cohort import without_ids
from whenwhy.server.labels import NOT_A_CAUSE


def csv_of(answer: pa.Table, asked: Question, about: Mapping[str, str]) -> str:
    """The answer as CSV, below lines with # that say which question, of whom, of which version, and how many rows.

    Example:
        >>> print(csv_of(pa.table({"n_patients": [12]}), Question("cohorts", (("run", "r"),)), {"version": "0a1b"}))
        # query: cohorts(run=r)
        # version: 0a1b
        # rows: 1
        # contribution to this model's prediction, not a cause
        "n_patients"
        12
    """
    # No id of a patient lies above numbers of many: a file is passed on.
    arguments = ", ".join(f"{name}={without_ids(str(value))}" for name, value in asked.arguments)
    told = {"query": f"{asked.query}({arguments})", **about, "rows": f"{answer.num_rows}"}
    lines = [f"# {name}: {' '.join(text.split())}" for name, text in told.items()]
    return "\n".join([*lines, f"# {NOT_A_CAUSE}", as_text(answer, "csv")])
