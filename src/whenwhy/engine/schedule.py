"""Which shard is given out next: those that wait, those that failed again, at last those whose worker is slow."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from statistics import median

#: How often a shard is tried before it is quarantined by name.
MAX_ATTEMPTS = 3

#: When workers died so often, or thrice each, and no shard was finished between, something is wrong that is no shard's
#: fault.
MOST_DEATHS_IN_A_ROW = 30

#: A shard is slow when it takes so many times as long as the others did, and so many seconds more.
SLOW_TIMES, SLOW_SECONDS = 3.0, 10.0


class Schedule:
    """The keys of a pass, each until it is done, quarantined or dropped.

    Args:
        doubles: a slow key may be given to a second worker: the task publishes once.
        clock: seconds.

    Example:
        >>> schedule = Schedule(["a", "b"])
        >>> schedule.next(), schedule.next(), schedule.next()
        ('a', 'b', None)
        >>> schedule.failed("a", ValueError()), schedule.next(), schedule.done("a"), schedule.done("b"), schedule.open
        (False, 'a', True, True, False)
    """

    def __init__(
        self, keys: Sequence[str], *, doubles: bool = False, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.total, self.doubles, self.clock = len(keys), doubles, clock
        self.waiting = deque(keys)
        self.under_way: Counter[str] = Counter()
        self.begun: dict[str, float] = {}
        self.seconds: list[float] = []
        self.attempts: Counter[str] = Counter()
        self.doubled: set[str] = set()
        self.given_twice: set[str] = set()
        self.quarantined: dict[str, Exception] = {}
        self.settled: set[str] = set()

    @property
    def open(self) -> bool:
        """Whether a key is neither done nor quarantined nor dropped."""
        return len(self.settled) < self.total

    def next(self) -> str | None:
        """The key that an idle worker should do, which is under way from now on; None: there is none for now."""
        key = self.waiting.popleft() if self.waiting else self._slow()
        if key is not None:
            self.begun.setdefault(key, self.clock())
            self.under_way[key] += 1
        return key

    def _slow(self) -> str | None:
        if not self.doubles or not self.seconds:
            return None
        now, allowed = self.clock(), SLOW_TIMES * median(self.seconds) + SLOW_SECONDS
        late = [key for key, begun in self.begun.items() if key not in self.doubled and now - begun > allowed]
        if not late:
            return None
        key = min(late, key=self.begun.__getitem__)
        self.doubled.add(key)
        self.given_twice.add(key)
        return key

    def done(self, key: str) -> bool:
        """True if a key is done now, False if it had been settled before."""
        if key in self.begun:
            self.seconds.append(self.clock() - self.begun[key])
        return self._settled(key)

    def failed(self, key: str, error: Exception) -> bool:
        """True if a key is quarantined now, after so many attempts; else it waits again, unless another worker has it."""
        self.attempts[key] += 1
        if key in self.settled:
            self.under_way[key] -= 1
            return False
        if self.attempts[key] >= MAX_ATTEMPTS:
            self.quarantined[key] = error
            return self._settled(key)
        if self.under_way[key] > 1:  # the other worker may be the one that hangs
            self.under_way[key] -= 1
            self.doubled.discard(key)
            return False
        self.doubled.discard(key)
        del self.under_way[key], self.begun[key]
        self.waiting.append(key)
        return False

    def dropped(self, key: str) -> None:
        """A key will not be done in this pass."""
        self._settled(key)

    def _settled(self, key: str) -> bool:
        first = key not in self.settled
        self.settled.add(key)
        self.under_way[key] -= 1
        self.begun.pop(key, None)
        return first
