"""DuckDB for what may not fit in memory: an explicit limit, a folder to spill to, and nothing fetched."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb

from whenwhy.errors import UserError

#: With less, DuckDB cannot even begin.
LEAST_MEGABYTES = 50

#: How the system says that a file cannot be written; DuckDB repeats it.
UNWRITABLE = tuple(os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EFBIG))

#: DuckDB's setting that ends spilling, nine tenths of the room that there was.
SPILLED_TOO_MUCH = "max_temp_directory_size"


def connect(memory_limit: str, scratch: Path, threads: int | None = None) -> duckdb.DuckDBPyConnection:
    """A DuckDB in memory that spills to `scratch` and never fetches an extension.

    Args:
        memory_limit: such as "2GB".
        threads: None: one a core.

    Raises:
        UserError: the limit is not understood, or is too small for anything.
    """
    told = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([MGT])i?B", memory_limit, re.IGNORECASE)
    if told is None or float(told[1]) * {"M": 1, "G": 1e3, "T": 1e6}[told[2].upper()] < LEAST_MEGABYTES:
        raise UserError(
            f"--memory-limit '{memory_limit}' is not understood: write at least {LEAST_MEGABYTES}MB, such as 2GB."
        )
    config: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": memory_limit,
        "temp_directory": str(scratch),
        "autoinstall_known_extensions": "false",
    }
    if threads is not None:
        config["threads"] = threads
    return duckdb.connect(config=config)


def literal(text: str) -> str:
    """A SQL string literal.

    Example:
        >>> literal("it's")
        "'it''s'"
    """
    return "'" + text.replace("'", "''") + "'"


@contextmanager
def within(memory_limit: str, folder: Path) -> Iterator[None]:
    """Work of DuckDB; too little memory for it, or room on the disk, is said in one sentence.

    Args:
        folder: below which it writes, and spills what memory does not hold.

    Raises:
        UserError: the limit does not do, or the folder cannot be written to.
    """
    try:
        yield
    except duckdb.Error as error:
        # What DuckDB was doing decides which error it is: a write, a commit, or anything after one that failed.
        told = next((said for said in UNWRITABLE if said in str(error)), None)
        if told is not None:
            raise UserError(
                f"{folder} cannot be written to ({told}): mend that, then run the same command again to continue."
            ) from error
        if not isinstance(error, duckdb.OutOfMemoryException):
            raise
        if SPILLED_TOO_MUCH in str(error):
            raise UserError(
                f"{folder} has no room for what does not fit into --memory-limit {memory_limit}: make room there or give "
                "more memory, then run the same command again to continue."
            ) from error
        raise UserError(f"--memory-limit {memory_limit} is too little for this data: give more, such as 2GB.") from None
