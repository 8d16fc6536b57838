"""Questions that nobody waits for any more flow in, an interrupt of each flows out, and of no other on its connection."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar

import duckdb

from whenwhy.errors import Stopped

#: DuckDB forgets an interrupt that comes before the question has begun, so it is repeated after so many seconds.
AGAIN_AFTER = 0.01


class Stop:
    """Calls off the questions that are asked within `watching()`: those under way and all later ones raise `Stopped`.

    Any thread may stop, at any time, any number of times; it does not wait for the questions to end.

    Example:
        >>> stop = Stop()
        >>> stop.stop()
        >>> with duckdb.connect() as db, stop.watching(), limited(db, seconds=None):
        ...     db.execute("select 1")
        Traceback (most recent call last):
        whenwhy.errors.Stopped: Nobody waits for this answer any more.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._under_way: set[_Question] = set()
        self._stopped = False

    def stop(self) -> None:
        """Every question under way is interrupted, and no later one is asked."""
        with self._lock:
            self._stopped = True
            for question in self._under_way:
                threading.Thread(target=question.call_off, daemon=True).start()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Questions that this thread asks here can be stopped."""
        before = _watched.set(self)
        try:
            yield
        finally:
            _watched.reset(before)

    @contextmanager
    def _watch(self, question: _Question) -> Iterator[None]:
        with self._lock:
            if self._stopped:
                raise Stopped("Nobody waits for this answer any more.")
            self._under_way.add(question)
        try:
            yield
        except duckdb.InterruptException:
            if self._stopped:
                raise Stopped("Nobody waits for this answer any more.") from None
            raise
        finally:
            with self._lock:
                self._under_way.remove(question)


_watched: ContextVar[Stop | None] = ContextVar("watched", default=None)


class _Question:
    """What is being asked on a connection."""

    def __init__(self, connection: duckdb.DuckDBPyConnection) -> None:
        self._connection, self._ended, self._lock = connection, threading.Event(), threading.Lock()

    def call_off(self) -> None:
        """It has ended: of itself, or since it was interrupted."""
        while not self._ended.is_set():
            with self._lock:  # so that it does not end, and another begin, in between
                if not self._ended.is_set():
                    self._connection.interrupt()
            self._ended.wait(AGAIN_AFTER)

    def end(self) -> None:
        """Nothing interrupts the connection for this question from now on."""
        with self._lock:
            self._ended.set()


@contextmanager
def limited(connection: duckdb.DuckDBPyConnection, seconds: float | None) -> Iterator[None]:
    """One question on a connection, interrupted after so many seconds (None: never), or when its `Stop` says so.

    Raises:
        Stopped: the `Stop` that watches did.
        duckdb.InterruptException: it took too long.
    """
    question, watched = _Question(connection), _watched.get()
    timer = threading.Timer(seconds, question.call_off) if seconds is not None else None
    with watched._watch(question) if watched is not None else nullcontext():
        if timer is not None:
            timer.start()
        try:
            yield
        finally:
            question.end()
            if timer is not None:
                timer.cancel()
