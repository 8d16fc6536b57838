"""Attempts to log in flow in, the seconds until the next one is looked at flow out."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable

#: So many failures of a name, and of an address, which may be that of many people, cost nothing.
FREE = {"name": 5, "address": 20}

#: The longest wait: whoever guesses is slow enough, and whoever is locked out by others' guesses is not for long.
LONGEST_WAIT = 60.0

#: Failures are forgotten after so long without another one.
FORGOTTEN_AFTER = 3600.0

#: So many names and addresses are remembered, the latest.
REMEMBERED = 10_000


class Throttle:
    """Failed attempts by name and by address: after a few, each doubles the wait.

    Args:
        clock: seconds that only go forward.

    Example:
        >>> throttle = Throttle(clock=lambda: 0.0)
        >>> [throttle.attempt("alice", "192.0.2.1") for _ in range(7)]
        [0, 0, 0, 0, 0, 1, 1]
        >>> throttle.succeeded("alice", "192.0.2.1")
        >>> throttle.attempt("alice", "192.0.2.1")
        0
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._failures: OrderedDict[tuple[str, str], tuple[int, float]] = OrderedDict()

    def __len__(self) -> int:
        """How many names and addresses it remembers."""
        return len(self._failures)

    def attempt(self, name: str, address: str) -> int:
        """Whole seconds to wait, or 0: then the attempt counts as failed until `succeeded` tells otherwise.

        It counts beforehand, so that many attempts at once are many attempts.
        """
        keys = (("name", name), ("address", address))
        wait = max(self._wait(key) for key in keys)
        if wait > 0:
            return math.ceil(wait)
        now = self._clock()
        for key in keys:
            self._failures[key] = (self._count(key) + 1, now)
            self._failures.move_to_end(key)
        while len(self._failures) > REMEMBERED:
            self._failures.popitem(last=False)
        return 0

    def succeeded(self, name: str, address: str) -> None:
        """Nothing; the name's failures are forgotten, and the address has one less."""
        self._failures.pop(("name", name), None)
        key = ("address", address)
        if key in self._failures:
            count, last = self._failures[key]
            self._failures[key] = (max(0, count - 1), last)

    def _count(self, key: tuple[str, str]) -> int:
        count, last = self._failures.get(key, (0, 0.0))
        return count if self._clock() - last < FORGOTTEN_AFTER else 0

    def _wait(self, key: tuple[str, str]) -> float:
        over = self._count(key) - FREE[key[0]]
        if over < 0:
            return 0.0
        return self._failures[key][1] + min(2.0 ** min(over, 30), LONGEST_WAIT) - self._clock()
