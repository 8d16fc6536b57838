"""SIGTERM really sent: what is under way ends or is dropped, and the same command goes on to the same bytes."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import INLINE, SmallRun
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory

#: A stage of 20 shards a second each, in the folder that is named.
SLOW = """
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
    command = [sys.executable, "-c", SLOW, str(folder), str(seconds), workers]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def waited(folder: Path, pattern: str, number: int) -> None:
    """Returns when so many files are there."""
    for _ in range(6000):
        if len(list(folder.glob(pattern))) >= number:
            return
        time.sleep(0.01)
    raise AssertionError(f"there never were {number} of {pattern}")


@pytest.mark.parametrize("workers", ["inline", "ray"])
def test_shards_under_way_end_and_no_other_begins(tmp_path: Path, workers: str) -> None:
    with slow(tmp_path, 1, workers) as running:
        waited(tmp_path, "begun-*", 2)
        running.send_signal(signal.SIGTERM)
        told, _ = running.communicate(timeout=60)
    begun, done = (len(list(tmp_path.glob(f"{what}-*"))) for what in ("begun", "done"))
    assert begun == done < 10
    assert f"slow was stopped when {done} of 20 entries were finished: run the same command again" in told


@pytest.mark.parametrize("workers", ["inline", "ray"])
def test_a_second_signal_drops_what_is_under_way(tmp_path: Path, workers: str) -> None:
    with slow(tmp_path, 300, workers) as running:
        waited(tmp_path, "begun-*", 1)
        running.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        told, _ = running.communicate(timeout=60)
    assert "stopped when 0 of 20" in told
    assert not list(tmp_path.glob("done-*"))


@pytest.mark.parametrize("workers", [["--inline"], ["--workers", "2"]])
def test_a_stopped_attribution_goes_on_to_the_same_bytes(
    tmp_path: Path, small_run: SmallRun, workers: list[str]
) -> None:
    sequences = tmp_path / "sequences"
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=8)
    prepare(small_run.meds, small_run.labels, sequences, settings, INLINE)
    train(sequences, tmp_path / "model", TrainSettings(hidden=8, epochs=1), INLINE)
    asked = AttributeSettings("shapley", options={"samples": "64"})
    undisturbed = attribute_shards(sequences, tmp_path / "model", tmp_path / "undisturbed", asked, INLINE)
    command = [
        sys.executable, "-m", "whenwhy", "attribute", str(sequences), "--model", str(tmp_path / "model"),
        "--out", str(tmp_path / "attr"), "--method", "shapley", "--option", "samples=64", *workers,
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        waited(tmp_path / "attr" / "entries", "g0-*.json", 2)
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 143, told
    assert "run the same command again to continue" in told.splitlines()[-1]
    stage = StageDirectory.open(tmp_path / "attr")
    assert 0 < len(stage.missing()) < len(stage.shards)
    subprocess.run(command, capture_output=True, check=True)
    assert stage.content_sha256() == undisturbed.content_sha256()
