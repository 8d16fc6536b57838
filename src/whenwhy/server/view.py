"""What a view is: a part of a page, the named queries that it asks, and how it shows their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import pyarrow as pa
from bokeh.models.ui.ui_element import UIElement

from whenwhy.server.answers import Question
from whenwhy.server.state import State

#: The answers to a view's questions by the names that it gave them.
Tables = Mapping[str, pa.Table]

#: Marks what the text of a condition means.
Mark = Callable[[str], None]

#: Chooses a feature by its code.
Choose = Callable[[str], None]

#: The HTML of a page's places by their names. A view NAME has NAME_heading, NAME_words (where there is nothing to draw),
#: NAME_table, and what else its page has a place for.
Texts = dict[str, str]


class View(Protocol):
    """A part of a page."""

    #: Its name, the first word of all its places.
    name: str

    @property
    def charts(self) -> Mapping[str, UIElement]:
        """Its Bokeh models by the names that the page's template uses."""
        ...

    def questions(self, state: State) -> Mapping[str, Question]:
        """What it asks of a state: named queries alone."""
        ...

    def csv(self, state: State) -> Question:
        """The question whose answer people take along."""
        ...

    def read(self, state: State, tables: Tables) -> Any:
        """What it shows, from the answers: on any thread, touching no model."""
        ...

    def put(self, data: Any) -> Texts:
        """The texts of its places; its models show the data."""
        ...
