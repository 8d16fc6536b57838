"""How many threads a worker has, so that workers on one machine do not fight for its cores."""

from __future__ import annotations

_threads = 1


def set_worker_threads(count: int) -> None:
    """From now on a task in this process may use so many threads.

    Example:
        >>> set_worker_threads(1)
    """
    global _threads
    _threads = count


def worker_threads() -> int:
    """How many threads a task may use here: one, unless it was said otherwise.

    Example:
        >>> worker_threads()
        1
    """
    return _threads
