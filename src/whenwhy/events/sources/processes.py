"""Keys flow in, each key's result flows out as it is done: by processes of this machine, or by this one.

Sources use this and not `engine.run`: a source of many files is done in seconds, and Ray takes longer than that to
start; its results go back to the parent, and it is all or nothing, so there is no shard to publish or to retry.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

from whenwhy.errors import UserError

Result = TypeVar("Result")

#: Processes take a second to start: fewer keys than these are done sooner without them.
FEW = 8


def in_processes(work: Callable[[int], Result], keys: Sequence[int], workers: int | None) -> Iterator[Result]:
    """`work(key)` for each key, in the order in which they finish.

    Args:
        work: can be pickled; one key a call.
        workers: processes; None: one a core, if there are more than a few keys. One works here, in this process.

    Raises:
        UserError: a process ended before its time.

    Example:
        >>> sorted(in_processes(abs, [-1, 2], workers=1))
        [1, 2]
    """
    count = min(workers or (cores() if len(keys) >= FEW else 1), len(keys))
    if count <= 1:
        yield from map(work, keys)
        return
    # Not forked: a copy of threads that hold locks (Arrow's, Rich's) can hang.
    pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _live_no_longer_than_the_parent)
    waiting = list(reversed(keys))
    pending: set[Future[Result]] = set()
    try:
        while waiting or pending:
            while waiting and len(pending) < 2 * count:  # results are not kept, however many keys there are
                pending.add(pool.submit(work, waiting.pop()))
            done, pending = wait(pending, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "A worker process ended before its time: in a script, call this below `if __name__ == '__main__':`; "
            "otherwise there was too little memory, so give fewer --workers."
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _live_no_longer_than_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    parent = multiprocessing.parent_process()

    def follow() -> None:
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
