"""SIGTERM really sent: what is under way ends or is dropped, and the same command goes on to the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from runs import SLOW, Running, arguments, complete, entries, prepared, until

#: A stage of 20 shards that take so long as is said, in the folder that is named.
STAGE = """
import os, sys, time
from dataclasses import dataclass
from pathlib import Path
from functools import partial

from whenwhy.engine import Workers, run
from whenwhy.errors import Stopped

loop = sys.modules["whenwhy.engine.run"]
loop.stopping_on_signal = partial(loop.stopping_on_signal, grace=3600)  # a second signal alone drops anything

@dataclass(frozen=True)
class Slow:
    folder: str
    seconds: float

    def start(self):
        def work(key):
            (Path(self.folder) / f"begun-{key}").touch()
            time.sleep(self.seconds)
            (Path(self.folder) / f"done-{key}").touch()
            return 1
        return work

workers = Workers(inline=True) if sys.argv[3] == "inline" else Workers(count=2)
try:
    run(Slow(sys.argv[1], float(sys.argv[2])), [f"{at:02d}" for at in range(20)], stage="slow", unit="keys", workers=workers)
except Stopped as stopped:
    print(stopped)
"""


def slow(folder: Path, seconds: int, workers: str) -> subprocess.Popen[str]:
    """The stage, under way."""
    command = [sys.executable, "-c", STAGE, str(folder), str(seconds), workers]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize("workers", ["inline", "ray"])
def test_shards_under_way_end_and_no_other_begins(tmp_path: Path, workers: str) -> None:
    with slow(tmp_path, 1, workers) as running:
        until(lambda: len(list(tmp_path.glob("begun-*"))) >= 2)
        running.send_signal(signal.SIGTERM)
        told, _ = running.communicate(timeout=60)
    begun, done = (len(list(tmp_path.glob(f"{what}-*"))) for what in ("begun", "done"))
    assert begun == done < 10
    assert f"slow was stopped when {done} of 20 entries were finished: run the same command again" in told


@pytest.mark.parametrize("workers", ["inline", "ray"])
def test_a_second_signal_drops_what_is_under_way(tmp_path: Path, workers: str) -> None:
    with slow(tmp_path, 300, workers) as running:
        until(lambda: any(tmp_path.glob("begun-*")))
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        told, _ = running.communicate(timeout=60)
    assert "stopped when 0 of 20" in told
    assert not list(tmp_path.glob("done-*"))


@pytest.mark.parametrize("workers", [("--inline",), ("--workers", "2")], ids=["inline", "ray"])
def test_a_stopped_attribution_goes_on_to_the_same_bytes(tmp_path: Path, workers: tuple[str, ...]) -> None:
    out = tmp_path / "attr"
    command = arguments(out, *workers, options=SLOW)
    running = Running(command)
    until(lambda: len(entries(out)) >= 2)
    running.send(signal.SIGTERM)
    told = running.ended()
    assert told.status == 143, told
    assert "run the same command again to continue" in told.said.splitlines()[-1]
    assert 0 < len(entries(out)) < len(prepared().shards)
    again = Running(command).ended()
    assert again.status == 0, again
    complete(out, SLOW)
