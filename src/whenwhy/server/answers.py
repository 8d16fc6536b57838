"""Named queries flow in, their answers flow out, the recent ones without asking the store again."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Protocol

import pyarrow as pa

from whenwhy.store import Store

#: So many answers are kept; the largest is a feature's heat map, a few hundred rows.
KEPT = 2000


class Asks(Protocol):
    """Whatever answers a named query."""

    def ask(self, query: str, **arguments: Any) -> pa.Table:
        """The answer of a named query."""
        ...


class Answers:
    """A store that is asked each question once: a published version never changes, nor does its role."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._answer = lru_cache(KEPT)(self._ask)

    def ask(self, query: str, **arguments: Any) -> pa.Table:
        """The answer of a named query. Tables cannot be changed, so all sessions may share one."""
        return self._answer(query, tuple(sorted(arguments.items())))

    def _ask(self, query: str, arguments: tuple[tuple[str, Any], ...]) -> pa.Table:
        return self.store.ask(query, **dict(arguments))
