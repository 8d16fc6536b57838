"""Questions flow in, one line of JSON each flows out, behind all lines that are there."""

from __future__ import annotations

import json
import os
import pwd
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from whenwhy.errors import UserError

#: Where questions to a store are written down unless another place is given.
ACCESS_LOG_FILE = "access.jsonl"


class AccessLog:
    """A file to which every question and what became of it is added, and from which nothing is taken.

    A line is one write at the file's end, which the system does at once, so that the lines of threads and processes do
    not mix. A question that cannot be written down is not answered.

    Args:
        file: made for its owner alone if it is not there; its rights stay as they are if it is.

    Raises:
        UserError: it cannot be written to.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     log = AccessLog(Path(folder) / "access.jsonl")
        ...     with log.question(role="viewer", sql="select 1") as answer:
        ...         answer["rows"] = 1
        ...     json.loads((Path(folder) / "access.jsonl").read_text())["sql"]
        'select 1'
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        try:
            self._descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        self.close = weakref.finalize(self, os.close, self._descriptor)

    @contextmanager
    def question(self, **told: Any) -> Iterator[dict[str, Any]]:
        """A dictionary to be filled with what became of a question; written with `told` when the block ends, however it does."""
        answer: dict[str, Any] = {}
        asked, began = datetime.now(UTC), time.perf_counter()
        try:
            yield answer
        except BaseException as error:
            answer["error"] = str(error) if isinstance(error, UserError) else type(error).__name__
            raise
        finally:
            line = {"time": asked.isoformat(timespec="milliseconds"), "user": operating_system_user()} | told | answer
            line["seconds"] = round(time.perf_counter() - began, 6)
            self._add(line)

    def _add(self, line: dict[str, Any]) -> None:
        written = json.dumps(line, default=str).encode() + b"\n"
        try:
            whole = os.write(self._descriptor, written) == len(written)
        except OSError as error:
            raise self._unwritable(error.strerror) from None
        if not whole:
            raise self._unwritable("the disk is full")

    def _unwritable(self, why: str | None) -> UserError:
        return UserError(
            f"{self.file} cannot be written to ({why}), and questions are written down there: give another place by "
            "--access-log FILE (in Python access_log=...)."
        )


@cache
def operating_system_user() -> str:
    """The operating system's name of who asks, whatever the environment says."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # a container may have numbers alone
        return str(os.getuid())
