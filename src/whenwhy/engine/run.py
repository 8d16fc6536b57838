"""Flows in: a task and the names of the shards it is still to do. Flows out: those shards, each published once.

The loop is the same whoever works: this process, or Ray actors. Workers receive shard *names*; a task
reads and publishes its own files, so nothing large crosses from process to process.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Protocol

from whenwhy.engine.memory import keep_freed_memory
from whenwhy.engine.progress import Progress, console
from whenwhy.engine.report import note_pass
from whenwhy.engine.stopping import TimeIsUp, stopping_on_signal
from whenwhy.errors import Stopped, UserError

#: How often a shard is tried before it is quarantined by name.
MAX_ATTEMPTS = 3


class Task(Protocol):
    """What a stage does to one shard. Travels to the workers, so it holds paths and settings alone."""

    def start(self) -> Callable[[str], int]:
        """Called once a worker: loads what all shards share, returns the function that does one shard.

        That function publishes the shard and returns how many units of work it was.
        """
        ...


@dataclass(frozen=True)
class Workers:
    """Who does the work: Ray actors (`count` of them; None: one a GPU, or one a core), or this process."""

    count: int | None = None
    inline: bool = False
    ray_address: str | None = None


class Pool(Protocol):
    """Workers that take one shard each, of one task after another.

    Attributes:
        name: who they are, for people; count: how many.
        here: whether the work is done in this very process.
    """

    here: bool

    @property
    def name(self) -> str: ...
    @property
    def count(self) -> int: ...
    def begin(self, task: Task) -> None: ...
    def idle(self) -> bool: ...
    def busy(self) -> bool: ...
    def submit(self, key: str) -> None: ...
    def next(self, late: Callable[[], bool] = ...) -> tuple[str, int | Exception]: ...
    def close(self) -> None: ...


class InlinePool:
    """This process as the only worker."""

    name, count, here = "this process", 1, True

    def __init__(self) -> None:
        keep_freed_memory()
        self.work: Callable[[str], int] | None = None
        self.key: str | None = None

    def begin(self, task: Task) -> None:
        self.work = task.start()

    def idle(self) -> bool:
        return self.key is None

    def busy(self) -> bool:
        return self.key is not None

    def submit(self, key: str) -> None:
        self.key = key

    def next(self, late: Callable[[], bool] = lambda: False) -> tuple[str, int | Exception]:
        assert self.key is not None
        assert self.work is not None
        key, self.key = self.key, None
        try:
            return key, self.work(key)
        except Exception as error:
            return key, error

    def close(self) -> None:
        pass


@contextmanager
def kept_pool(workers: Workers, at_most: int | None = None) -> Iterator[Pool]:
    """Workers for several runs, one after another: they start once.

    Args:
        at_most: no more of them than this; None: as many as `workers` says.

    Example:
        >>> class Double:
        ...     def start(self):
        ...         return lambda key: 2 * int(key)
        >>> with kept_pool(Workers(inline=True)) as pool:
        ...     run(Double(), ["1"], stage="first", unit="numbers", pool=pool)
        ...     run(Double(), ["2"], stage="second", unit="numbers", pool=pool)
    """
    pool: Pool
    if workers.inline:
        pool = InlinePool()
    else:
        # Imported here alone: attribution runs where Ray is not installed, and a finished run never starts it.
        from whenwhy.engine.ray_pool import RayPool

        pool = RayPool(workers, at_most)
    try:
        yield pool
    finally:
        pool.close()


def run(
    task: Task,
    keys: Sequence[str],
    *,
    stage: str,
    unit: str,
    workers: Workers | None = None,
    pool: Pool | None = None,
    finished: int = 0,
) -> None:
    """Every shard in `keys` done by `task`; `finished` others were done before.

    Who works is `workers`, started for this run, or a `pool` that is kept for several.

    A shard that fails is tried again, up to three times, possibly by another worker; then it is
    quarantined by name while the others go on. SIGTERM lets the shards under way end, and begins no other.

    Args:
        stage: what progress calls the work, e.g. "attribute".
        unit: what a shard's amount of work counts, e.g. "predictions".

    Raises:
        UserError: bad input found by a worker, or shards quarantined. What was published stays.
        Stopped: by SIGTERM, before every shard was done.

    Example:
        >>> class Double:
        ...     def start(self):
        ...         return lambda key: 2 * int(key)
        >>> run(Double(), ["1", "2"], stage="double", unit="numbers", workers=Workers(inline=True))
    """
    if not keys:
        return
    if pool is None:
        with kept_pool(workers or Workers(), len(keys)) as own:
            _pass(task, keys, Progress(stage, total=finished + len(keys), unit=unit, finished=finished), own)
        return
    asked = _pass(task, keys, Progress(stage, total=finished + len(keys), unit=unit, finished=finished), pool)
    if asked:  # after this pass, others may follow with the pool
        raise Stopped(f"{stage} was the last that ended before the stop: run the same command again to continue.")


def _pass(task: Task, keys: Sequence[str], progress: Progress, pool: Pool) -> bool:
    """The keys done by a pool; whether a stop was asked for when all had been done."""
    stage = progress.stage
    pool.begin(task)
    waiting = deque(keys)
    attempts: Counter[str] = Counter()
    quarantined: dict[str, Exception] = {}
    with (
        stopping_on_signal(pool.here) as stopping,
        suppress(TimeIsUp),
        _noted(progress, pool, attempts, quarantined),
        progress,
    ):
        while pool.busy() or (waiting and not stopping.asked):
            while waiting and pool.idle() and not stopping.asked:
                pool.submit(waiting.popleft())
            key, outcome = pool.next(lambda: stopping.late)
            if not isinstance(outcome, Exception):
                progress.advance(key, outcome)
            elif stopping.asked:  # its worker may have got the signal too
                continue
            elif isinstance(outcome, UserError) or os.environ.get("WHENWHY_DEBUG"):
                raise outcome
            else:
                attempts[key] += 1
                if attempts[key] < MAX_ATTEMPTS:
                    waiting.append(key)
                else:
                    quarantined[key] = outcome
                    console.print(f"{stage}: {key} is quarantined after {MAX_ATTEMPTS} attempts: {outcome!r}")
    if stopping.asked and progress.finished < progress.total:
        raise Stopped(
            f"{stage} was stopped when {progress.finished} of {progress.total} entries were finished: run the same command "
            "again to continue."
        )
    if quarantined:
        names = ", ".join(sorted(quarantined))
        first = next(iter(quarantined.values()))
        raise UserError(
            f"{stage}: {len(quarantined)} of {len(keys)} entries failed {MAX_ATTEMPTS} times ({names}; "
            f"{type(first).__name__}: {first}): the others are kept; mend the cause and run the same command again."
        )
    return stopping.asked


@contextmanager
def _noted(
    progress: Progress, pool: Pool, attempts: Mapping[str, int], quarantined: Mapping[str, Exception]
) -> Iterator[None]:
    """Whatever the end is, the pass is in the call's report."""
    begun = time.monotonic()
    try:
        yield
    finally:
        seconds = time.monotonic() - begun
        note_pass(
            {
                "pass": progress.stage,
                "seconds": round(seconds, 3),
                "workers": pool.name,
                "entries": progress.total,
                "finished_before": progress.skipped,
                "finished": progress.finished,
                progress.unit: progress.amount,
                f"{progress.unit}_per_second": round(progress.amount / max(seconds, 1e-9), 1),
                "failed_attempts": dict(attempts),
                # Not what errors say, which may quote data.
                "quarantined": {key: type(error).__name__ for key, error in quarantined.items()},
            }
        )
