"""A state flows in, how its run came to be flows out: versions, methods and hashes, each to be copied."""

from __future__ import annotations

import html
from collections.abc import Mapping
from typing import Any, Final

from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question, question
from whenwhy.server.markup import heading, table
from whenwhy.server.state import State
from whenwhy.server.view import Tables, Texts

#: The columns of a run that tell how it was made, and what people call them.
FACTS: Final = {
    "run_id": "run",
    "outcome": "outcome",
    "method": "method",
    "baseline": "baseline",
    "target": "target",
    "precision": "precision",
    "n_predictions": "predictions, of all splits",
    "code_version": "whenwhy",
    "format_version": "format of the store",
    "model_sha256": "model, SHA-256",
    "vocabulary_sha256": "vocabulary, SHA-256",
    "input_sha256": "sequences, SHA-256",
}


class Provenance:
    """How the store and the page's run were made."""

    name = "provenance"

    def __init__(self, version: str) -> None:
        self._version = version

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """None."""
        return {}

    def questions(self, state: State) -> Mapping[str, Question]:
        """The runs."""
        return {"runs": question("runs")}

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        return self.questions(state)["runs"]

    def read(self, state: State, tables: Tables) -> Mapping[str, Any]:
        """The page's own."""
        run: Mapping[str, Any] = next(row for row in tables["runs"].to_pylist() if row["run_id"] == state.run)
        return run

    def put(self, data: Mapping[str, Any]) -> Texts:
        """A row a fact."""
        facts = {"published version": self._version}
        facts |= {words: str(data[name]) for name, words in FACTS.items() if data[name] is not None}
        rows = [
            [html.escape(words), f"<code>{html.escape(fact)}</code>", _copy(words, fact)]
            for words, fact in facts.items()
        ]
        return {
            "provenance_heading": heading("How this was made", "the same input and version give the same numbers"),
            "provenance_table": table("What to write down beside a figure.", ["What", "Value", "Copy"], rows),
        }


def _copy(words: str, fact: str) -> str:
    return (
        f'<button type="button" class="link" data-copy="{html.escape(fact)}" '
        f'aria-label="Copy: {html.escape(words)}">copy</button>'
    )
