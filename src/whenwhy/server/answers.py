"""Questions of many sessions flow in, their answers flow out: each asked once, off the event loop, while anybody waits."""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import pyarrow as pa

from whenwhy.store import Store
from whenwhy.store.stop import Stop

Found = TypeVar("Found")

#: So many bytes of recent answers are kept; the largest is some hundred kilobytes.
KEPT_BYTES: Final = 256 * 2**20

#: What an answer takes beside its columns.
OVERHEAD: Final = 2_000


@dataclass(frozen=True)
class Question:
    """A named query and its arguments."""

    query: str
    arguments: tuple[tuple[str, Any], ...]


def question(query: str, **arguments: Any) -> Question:
    """The question of a named query.

    Example:
        >>> question("feature_bins", feature="hdl")
        Question(query='feature_bins', arguments=(('feature', 'hdl'),))
    """
    return Question(query, tuple(sorted(arguments.items())))


@dataclass
class _Asked:
    answer: asyncio.Future[pa.Table]
    stop: Stop = field(default_factory=Stop)
    waiting: int = 0


class Answers:
    """The answers of one published version to one role. Neither ever changes, so all sessions share them.

    Tables cannot be changed, so several may hold one. All but `now` and `once` belongs to the event loop's thread.
    """

    def __init__(self, store: Store, pool: Executor) -> None:
        self.store, self._pool = store, pool
        self._kept: OrderedDict[Question, pa.Table] = OrderedDict()
        self._bytes = 0
        self._once: dict[Question, Any] = {}
        self._once_lock = threading.Lock()
        self._asked: dict[Question, _Asked] = {}

    def now(self, asked: Question) -> pa.Table:
        """The answer, waited for by the thread that calls."""
        return self.store.ask(asked.query, **dict(asked.arguments))

    def once(self, asked: Question, follow: Callable[[], Found]) -> Found:
        """What follows from an answer, made by the first thread that wants it and kept for all sessions.

        Others wait meanwhile, so it is for what is small and takes about a second. A fault is not kept.
        """
        with self._once_lock:
            if asked not in self._once:
                self._once[asked] = follow()
            found: Found = self._once[asked]
            return found

    async def answer(self, asked: Question) -> pa.Table:
        """The answer. Once nobody waits for it any more, the store is interrupted."""
        if asked in self._kept:
            self._kept.move_to_end(asked)
            return self._kept[asked]
        under_way = self._asked.get(asked) or self._ask(asked)
        under_way.waiting += 1
        try:
            return await asyncio.shield(under_way.answer)
        finally:
            under_way.waiting -= 1
            if not under_way.waiting and not under_way.answer.done():
                self._asked.pop(asked, None)
                under_way.stop.stop()

    def _ask(self, asked: Question) -> _Asked:
        stop = Stop()

        def ask() -> pa.Table:
            with stop.watching():
                return self.now(asked)

        under_way = _Asked(asyncio.ensure_future(asyncio.get_running_loop().run_in_executor(self._pool, ask)), stop)
        self._asked[asked] = under_way

        def answered(answer: asyncio.Future[pa.Table]) -> None:
            if self._asked.get(asked) is under_way:
                del self._asked[asked]
            # Looking at the exception also keeps Python from complaining that nobody did.
            if not answer.cancelled() and answer.exception() is None:
                self._keep(asked, answer.result())

        under_way.answer.add_done_callback(answered)
        return under_way

    def _keep(self, asked: Question, answer: pa.Table) -> None:
        if asked in self._kept:
            return
        self._kept[asked] = answer
        self._bytes += answer.nbytes + OVERHEAD
        while self._bytes > KEPT_BYTES:
            _, forgotten = self._kept.popitem(last=False)
            self._bytes -= forgotten.nbytes + OVERHEAD
