"""run.json beside a stage's entries: what its calls did, how fast, and by which versions. No part of its content."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from whenwhy.engine.memory import peak_bytes
from whenwhy.engine.progress import console
from whenwhy.errors import UserError
from whenwhy.locations import is_remote, read, replace

REPORT_FILE = "run.json"

#: Whose versions a result may depend on.
PACKAGES = ("whenwhy", "torch", "numpy", "pyarrow", "duckdb", "ray")

#: The most calls that are kept, the last ones.
MOST_CALLS = 100


@dataclass
class Report:
    """What one call of a stage does.

    Attributes:
        passes: of the engine's loop, each as `run` told it.
        summary: what the stage says of its results.
    """

    passes: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)


_current: ContextVar[Report | None] = ContextVar("report", default=None)


def note_pass(told: Mapping[str, Any]) -> None:
    """Takes down a pass of the engine's loop in the report of the call that it belongs to, if there is one."""
    report = _current.get()
    if report is not None:
        report.passes.append(dict(told))


@contextmanager
def reported(path: Path) -> Iterator[Report]:
    """A report that is written to `path`/run.json in the end, whatever the end is, once a run has begun there.

    Example:
        >>> with reported(Path("attr")) as report:
        ...     report.summary["n_predictions"] = 10
    """
    report, began, clock = Report(), datetime.now(UTC), time.monotonic()
    token, ended = _current.set(report), "finished"
    try:
        yield report
    except BaseException as error:
        ended = type(error).__name__
        raise
    finally:
        _current.reset(token)
        if report.passes:
            call = {
                "began": began.isoformat(timespec="seconds"),
                "seconds": round(time.monotonic() - clock, 3),
                "ended": ended,
                "driver_peak_bytes": peak_bytes(),
                "passes": report.passes,
            }
            try:
                _write(path, call, report.summary)
            except (OSError, UserError) as error:
                if ended == "finished":  # else what the run itself ended with is what matters
                    console.print(f"{path / REPORT_FILE} could not be written: {error}", soft_wrap=True)


def _write(path: Path, call: Mapping[str, Any], summary: Mapping[str, Any]) -> None:
    try:
        manifest = json.loads(read(path / "manifest.json"))
    except FileNotFoundError:
        return
    file = path / REPORT_FILE
    with _in_turn(path):
        try:
            before = json.loads(read(file))
        except (FileNotFoundError, ValueError):
            before = None
        before = before if isinstance(before, dict) else {}
        told = {
            "stage": manifest["stage"],
            "run_id": manifest["run_id"],
            "versions": {"python": platform.python_version()} | _versions(),
            "machine": {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()},
            "summary": dict(summary) or before.get("summary", {}),
            "calls": [*before.get("calls", []), call][-MOST_CALLS:],
        }
        replace(file, (json.dumps(told, indent=2) + "\n").encode())


@contextmanager
def _in_turn(path: Path) -> Iterator[None]:
    """Parts of a run that end at once write one after another, where the file system can lock a folder."""
    if is_remote(path):  # of calls that end in one moment, the last one's account may be all that stays
        yield
        return
    folder = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
