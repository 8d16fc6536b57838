"""Batches that do not fit in memory are taken in halves."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import numpy as np
import torch

from whenwhy.errors import UserError

Found = TypeVar("Found")

#: What torch's allocator on the processor says, and a GPU's libraries; they have no error of their own.
_NO_MEMORY = ("can't allocate memory", "not enough memory", "STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an error is for lack of memory, the processor's or a GPU's.

    Example:
        >>> out_of_memory(MemoryError()), out_of_memory(RuntimeError("shapes differ"))
        (True, False)
    """
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(told in str(error) for told in _NO_MEMORY)


def in_halves(rows: np.ndarray, work: Callable[[np.ndarray], Found], halved: Callable[[], None]) -> Iterator[Found]:
    """What the work finds of these rows, all at once or, where memory is too small for it, of halves of them.

    Args:
        halved: told each time that rows were divided.

    Raises:
        UserError: a single row does not fit.

    Example:
        >>> def most_two(rows):
        ...     if len(rows) > 2:
        ...         raise MemoryError
        ...     return rows.tolist()
        >>> list(in_halves(np.arange(5), most_two, lambda: None))
        [[0, 1], [2], [3, 4]]
    """
    try:
        found = work(rows)
    except Exception as error:
        if not out_of_memory(error):
            raise
        if len(rows) < 2:
            raise UserError(
                f"One record does not fit in memory ({str(error).splitlines()[0][:200] or type(error).__name__}): prepare "
                "with fewer --max-steps, or take a machine with more."
            ) from error
    else:
        yield found
        return
    # Only here, when the error and the frames that it held are gone, is their memory free.
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    halved()
    for half in np.array_split(rows, 2):
        yield from in_halves(half, work, halved)
