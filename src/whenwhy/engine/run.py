"""Flows in: a task and the names of the shards it is still to do. Flows out: those shards, each published once.

The loop is the same whoever works: this process, or Ray actors. Workers receive shard *names*; a task
reads and publishes its own files, so nothing large crosses from process to process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from whenwhy.engine.memory import device_peak_bytes, keep_freed_memory
from whenwhy.engine.progress import Progress, console
from whenwhy.engine.report import note_pass
from whenwhy.engine.schedule import MAX_ATTEMPTS, MOST_DEATHS_IN_A_ROW, Schedule
from whenwhy.engine.stopping import stopping_on_signal
from whenwhy.engine.threads import set_worker_threads
from whenwhy.errors import Stopped, StorageError, TimeIsUp, UserError


class Task(Protocol):
    """What a stage does to one shard. Travels to the workers, so it holds paths and settings alone."""

    def start(self) -> Callable[[str], int]:
        """Called once a worker: loads what all shards share, returns the function that does one shard.

        That function publishes the shard and returns how many units of work it was.
        """
        ...


@dataclass(frozen=True)
class Workers:
    """Who does the work: Ray actors, or this process.

    Attributes:
        count: how many actors; None: as many as there are GPUs for, or else cores.
        inline: this process alone, without Ray.
        ray_address: of a cluster that is joined; None: Ray is started on this machine, and stopped.
        gpus_per_worker: what part of a GPU an actor has, up to 1; None: one each, or equal shares where there are
            more actors than GPUs.
        threads: of each worker. Sums of small batches may differ in their last bits with another number.
    """

    count: int | None = None
    inline: bool = False
    ray_address: str | None = None
    gpus_per_worker: float | None = None
    threads: int = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a shard that a worker was given.

    Attributes:
        amount: units of work.
        error: why it failed; died: its worker's process went with it.
        device_bytes: the most GPU memory that its worker ever held.
    """

    key: str
    amount: int = 0
    error: Exception | None = None
    device_bytes: int = 0
    died: bool = False


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

    def next(self) -> Outcome | None:
        """What ended next; None: nothing did for a moment."""
        ...

    def measure(self, progress: Progress, outcome: Outcome) -> None:
        """Tells whoever watches from outside."""
        ...

    def abandon(self, ending: bool) -> None:
        """Lets go of what is still under way; `ending`: for good, and soon."""
        ...

    def close(self) -> None: ...


class InlinePool:
    """This process as the only worker."""

    name, count, here = "this process", 1, True

    def __init__(self, threads: int = 1) -> None:
        keep_freed_memory()
        set_worker_threads(threads)
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

    def next(self) -> Outcome:
        assert self.key is not None
        assert self.work is not None
        key, self.key = self.key, None
        try:
            return Outcome(key, self.work(key), None, device_peak_bytes())
        except Exception as error:
            return Outcome(key, error=error)

    def measure(self, progress: Progress, outcome: Outcome) -> None:
        pass

    def abandon(self, ending: bool) -> None:
        self.key = None

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
        pool = InlinePool(workers.threads)
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
    publishes: bool = False,
) -> None:
    """Every shard in `keys` done by `task`; `finished` others were done before.

    Who works is `workers`, started for this run, or a `pool` that is kept for several.

    A shard that fails is tried again, up to three times, possibly by another worker; then it is
    quarantined by name while the others go on. A shard whose worker is slow is given to an idle one too. SIGTERM
    lets the shards under way end, and begins no other.

    Args:
        stage: what progress calls the work, e.g. "attribute".
        unit: what a shard's amount of work counts, e.g. "predictions".
        publishes: the task publishes each shard once, so that two workers may do the same shard at a time.

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
    progress = Progress(stage, total=finished + len(keys), unit=unit, finished=finished)
    schedule = Schedule(keys, doubles=publishes)
    if pool is None:
        with kept_pool(workers or Workers(), len(keys)) as own:
            _pass(task, schedule, progress, own)
        return
    asked = _pass(task, schedule, progress, pool)
    if asked:  # after this pass, others may follow with the pool
        raise Stopped(f"{stage} was the last that ended before the stop: run the same command again to continue.")


def _pass(task: Task, schedule: Schedule, progress: Progress, pool: Pool) -> bool:
    """The keys done by a pool; whether a stop was asked for when all had been done."""
    stage, deaths = progress.stage, 0
    pool.begin(task)
    with stopping_on_signal(pool.here) as stopping, _noted(progress, pool, schedule), progress:
        try:
            while schedule.open and not stopping.late and (pool.busy() or not stopping.asked):
                while pool.idle() and not stopping.asked and (key := schedule.next()) is not None:
                    pool.submit(key)
                outcome = pool.next()
                if outcome is None:
                    continue
                if outcome.error is None and schedule.done(outcome.key):
                    progress.advance(outcome.key, outcome.amount, outcome.device_bytes)
                pool.measure(progress, outcome)
                deaths = deaths + 1 if outcome.died else 0
                if outcome.error is None:
                    continue
                if deaths > max(MOST_DEATHS_IN_A_ROW, 3 * pool.count) and not stopping.asked:
                    raise UserError(
                        f"workers died {deaths} times without a shard finished between ({_short(outcome.error)}): look for a "
                        "lack of memory, then run the same command again to continue."
                    )
                if stopping.asked:  # its worker may have got the signal too
                    schedule.dropped(outcome.key)
                elif isinstance(outcome.error, UserError) or os.environ.get("WHENWHY_DEBUG"):
                    raise outcome.error
                elif schedule.failed(outcome.key, outcome.error):
                    if isinstance(outcome.error, StorageError):  # no fault of the shard's
                        raise outcome.error
                    console.print(
                        f"{stage}: {outcome.key} is quarantined after {MAX_ATTEMPTS} attempts: {_short(outcome.error)}",
                        soft_wrap=True,
                    )
        except TimeIsUp:
            pass
        finally:
            pool.abandon(stopping.asked)
    if stopping.asked and progress.finished < progress.total:
        raise Stopped(
            f"{stage} was stopped when {progress.finished} of {progress.total} entries were finished: run the same command "
            "again to continue."
        )
    if schedule.quarantined:
        names = ", ".join(sorted(schedule.quarantined))
        first = next(iter(schedule.quarantined.values()))
        raise UserError(
            f"{stage}: {len(schedule.quarantined)} of {schedule.total} entries failed {MAX_ATTEMPTS} times ({names}; "
            f"{_short(first)}): the others are kept; mend the cause and run the same command again."
        )
    return stopping.asked


def _short(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


@contextmanager
def _noted(progress: Progress, pool: Pool, schedule: Schedule) -> Iterator[None]:
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
                "device_peak_bytes": progress.device_bytes,
                "failed_attempts": dict(schedule.attempts),
                "given_twice": sorted(schedule.given_twice),
                # Not what errors say, which may quote data.
                "quarantined": {key: type(error).__name__ for key, error in schedule.quarantined.items()},
            }
        )
