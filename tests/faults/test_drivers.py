"""Several drivers, late and changed ones, in one directory: each shard is committed once, and nothing is mixed in."""

from __future__ import annotations

import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from runs import (
    CALLS,
    Running,
    arguments,
    complete,
    completes,
    entries,
    in_many_shards,
    prepared,
    readable,
    require_strace,
    until,
)

from conftest import Command
from whenwhy.shards import StageDirectory

SEED = 20_263

#: A link that made an entry appear, in a trace.
COMMITTED = re.compile(r"^\d+ +link(?:at)?\(.*entries/(g\d+-\d+)\.json\".*\) = 0$", re.MULTILINE)

#: Publishes an entry of a directory again, with other content, from a process that comes late.
LATE = """
import sys
from pathlib import Path
import pyarrow as pa
from whenwhy.shards import StageDirectory

out, name = sys.argv[1:]
stage = StageDirectory.open(Path(out))
files = {file: stage.read(name, file).slice(0, 1) for file in stage.entry(name).files}
print(stage.publish(name, files, {"n_predictions": -1}))
"""


def contents(out: Path) -> dict[Path, bytes]:
    """Every file of a directory, but for what its calls tell of themselves."""
    return {file: file.read_bytes() for file in out.rglob("*") if file.is_file() and file.name != "run.json"}


def test_two_drivers_at_once_commit_each_shard_once(tmp_path: Path) -> None:
    require_strace()
    out, logs = tmp_path / "attr", [tmp_path / "first", tmp_path / "second"]
    drivers = [Running(arguments(out), traced=True) for _ in logs]
    traces = [
        subprocess.Popen(
            ["strace", "-f", "-o", str(log), "-e", f"trace={CALLS['link']}", "-p", str(driver.pid)],
            stderr=subprocess.DEVNULL,
        )
        for log, driver in zip(logs, drivers, strict=True)
    ]
    told = [driver.ended() for driver in drivers]
    for trace in traces:
        trace.wait(60)
    assert [one.status for one in told] == [0, 0], told
    committed = Counter(name for log in logs for name in COMMITTED.findall(log.read_text()))
    assert committed == dict.fromkeys(prepared().shards, 1)
    complete(out)


def test_a_late_duplicate_does_not_overwrite(whenwhy: Command, tmp_path: Path) -> None:
    out, name = tmp_path / "attr", prepared().shards[4]
    completes(whenwhy, out)
    before = contents(out)
    told = subprocess.run(
        [sys.executable, "-c", LATE, str(out), name], capture_output=True, text=True, check=True, timeout=60
    )
    assert told.stdout == "False\n"
    after = contents(out)
    assert {file: after[file] for file in before} == before
    assert {file.parent.name for file in after.keys() - before.keys()} <= {"data"}
    complete(out)
    completes(whenwhy, out)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        (["--method", "integrated_gradients"], "method"),
        (["--method", "gradient_times_input", "--baseline", "rates"], "baseline"),
        (["--method", "gradient_times_input", "--seed", "1"], "seed"),
        (["--method", "gradient_times_input", "--precision", "float64"], "precision"),
    ],
)
def test_changed_settings_are_refused_and_leave_all_as_it_was(
    whenwhy: Command, tmp_path: Path, changed: list[str], named: str
) -> None:
    """Into a directory that is half done."""
    out = tmp_path / "attr"
    completes(whenwhy, out)
    for name in prepared().shards[::2]:
        (out / "entries" / f"{name}.json").unlink()
    before = contents(out), (out / "run.json").read_bytes()
    status, printed, said = whenwhy(*arguments(out, options=changed))
    assert status == 2
    assert printed == ""
    assert said.count("\n") == 1
    assert str(out) in said
    assert f"with {named} = " in said
    assert (contents(out), (out / "run.json").read_bytes()) == before
    completes(whenwhy, out)


@pytest.mark.parametrize("kills", [12, pytest.param(50, marks=pytest.mark.full)])
def test_kills_of_two_drivers_change_nothing(whenwhy: Command, tmp_path: Path, kills: int) -> None:
    """One of them killed at a time, at a random moment, and started again at once, until their run is finished."""
    sequences, some = in_many_shards(), random.Random(SEED)
    shards = len(StageDirectory.open(sequences).shards)
    print(f"seed {SEED}")
    killed, runs = 0, 0
    while killed < kills:
        out, runs = tmp_path / f"attr-{runs}", runs + 1
        asked = arguments(out, sequences=sequences)
        drivers = [Running(asked), Running(asked)]
        while len(entries(out)) < shards and killed < kills:
            at, done = some.randrange(2), len(entries(out))
            moment = some.choice(["as it starts", "in a shard", "in a shard", "at any time"])
            if moment == "in a shard":
                until(lambda out=out, done=done, one=drivers[at]: len(entries(out)) > done or one.over())
            time.sleep(some.uniform(0, {"as it starts": 0, "in a shard": 0.05, "at any time": 0.5}[moment]))
            if len(entries(out)) < shards:  # one that has nothing left to do is killed to no purpose
                drivers[at].send(signal.SIGKILL)
            status = drivers[at].ended().status
            killed += status == -signal.SIGKILL
            assert status in (0, -signal.SIGKILL)
            if killed % 8 == 0 and (out / "manifest.json").exists():
                readable(out)
            drivers[at] = Running(asked)
        assert [driver.ended().status for driver in drivers] == [0, 0]
        completes(whenwhy, out, sequences=sequences)
    print(f"{killed} kills in {runs} runs")
