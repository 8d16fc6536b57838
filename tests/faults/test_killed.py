"""SIGKILL, really sent: what was published stays, nothing else is trusted, and the same command ends as if nothing had been."""

from __future__ import annotations

import json
import random
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from runs import (
    AT_WORK,
    CALLS,
    SLOW,
    Running,
    arguments,
    below,
    complete,
    completes,
    entries,
    prepared,
    require_strace,
    shard_calls,
    traced,
    trusted_is_whole,
    until,
)
from safetensors import SafetensorError, safe_open

from conftest import Command
from whenwhy.shards import StageDirectory

SEED = 20_261

#: Ray's agents of a machine hold no data and do no work; for a minute they try to tell the head that it is gone.
AGENTS = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")


def killed_at(number: int, kind: str, folder: Path) -> Path:
    """The directory of a run that was killed as it made its call of that number."""
    out = folder / "attr"
    told = traced(arguments(out), folder / "log", "-e", f"inject={CALLS[kind]}:signal=KILL:when={number}", kinds=[kind])
    assert told.status == -signal.SIGKILL, told
    assert told.printed == ""
    return out


def unreferenced(out: Path) -> set[str]:
    """The files that no entry names."""
    stage = StageDirectory.open(out)
    finished = [name for name in stage.needs if stage.has(name)]
    named = {told["file"] for name in finished for told in stage.entry(name).files.values()}
    return {file.name for file in (out / "data").iterdir()} - named


@pytest.mark.parametrize("percent", [10, 50, 90])
def test_a_driver_killed_between_data_and_manifest_goes_on(whenwhy: Command, tmp_path: Path, percent: int) -> None:
    """At the link that would have made a shard's entry appear, the shard's files are there already."""
    require_strace()
    before = round(len(prepared().shards) * percent / 100)
    out = killed_at(shard_calls("link")[before].number, "link", tmp_path)
    assert len(entries(out)) == before
    assert len(unreferenced(out)) == 2
    trusted_is_whole(out)
    done = {file: file.stat().st_mtime_ns for file in (out / "entries").glob("*.json")}
    completes(whenwhy, out)
    assert all(file.stat().st_mtime_ns == modified for file, modified in done.items())


@pytest.mark.parametrize(("kind", "turn"), [("write", 0), ("write", 1), ("rename", 2), ("fsync", 3), ("fsync", 4)])
def test_a_driver_killed_in_any_call_goes_on(whenwhy: Command, tmp_path: Path, kind: str, turn: int) -> None:
    require_strace()
    call = random.Random(f"{SEED} {turn}").choice(shard_calls(kind))
    print(f"seed {SEED} {turn}: {kind} {call.number}, {call.told}")
    out = killed_at(call.number, kind, tmp_path)
    assert len(entries(out)) < len(prepared().shards)
    trusted_is_whole(out)
    completes(whenwhy, out)


def killed_and_slow_to_start_again(driver: int, seconds: float) -> None:
    """Every worker of a driver is killed, and those that Ray starts in their place stand still for a while."""
    before, held = below(driver), {}
    agents = [process for name in AGENTS for process in below(driver, name)]
    for worker in below(driver, "ray::"):
        if worker not in agents:
            worker.kill()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for process in below(driver):
            if process not in before and process.pid not in held:
                held[process.pid] = process
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
        time.sleep(0.02)
    for process in held.values():
        with suppress(psutil.NoSuchProcess):
            process.resume()


def test_a_run_survives_its_only_actor_being_killed_in_a_shard(tmp_path: Path) -> None:
    """It takes some seconds until a new one can work."""
    out = tmp_path / "attr"
    running = Running(arguments(out, "--workers", "1", options=SLOW))
    until(lambda: entries(out) and below(running.pid, AT_WORK))
    done = len(entries(out))
    killed_and_slow_to_start_again(running.pid, 4)
    told = running.ended()
    assert told.status == 0, told
    assert done < len(prepared().shards)
    complete(out, SLOW)
    (told_of,) = json.loads((out / "run.json").read_text())["calls"][0]["passes"]
    assert sum(told_of["failed_attempts"].values()) == 1


def killed_with_ray(out: Path) -> tuple[list[psutil.Process], list[psutil.Process]]:
    """A driver is killed when half of its shards are done: the processes it had, and those that are agents."""
    running = Running(arguments(out, "--workers", "2", options=SLOW))
    half = len(prepared().shards) // 2
    until(lambda: len(entries(out)) >= half and below(running.pid, AT_WORK))
    everyone, agents = below(running.pid), [process for name in AGENTS for process in below(running.pid, name)]
    running.send(signal.SIGKILL)
    assert running.ended().status == -signal.SIGKILL
    return everyone, agents


def test_nobody_works_on_when_the_driver_was_killed(whenwhy: Command, tmp_path: Path) -> None:
    out = tmp_path / "attr"
    everyone, agents = killed_with_ray(out)
    _, left = psutil.wait_procs([process for process in everyone if process not in agents], timeout=30)
    assert left == []
    assert len(prepared().shards) // 2 <= len(entries(out)) < len(prepared().shards)
    trusted_is_whole(out)
    completes(whenwhy, out, SLOW)


#: So large that an epoch takes long enough to be killed in, and learned so slowly that what ships comes after the kills.
TRAINED = (
    "--hidden", "24", "--layers", "2", "--input-dropout", "0.2", "--members", "2",
    "--epochs", "30", "--patience", "30", "--learning-rate", "0.0001", "--inline",
)  # fmt: skip


def finished_epochs(state: Path) -> int:
    """As a training left it on disk: whatever moment one looks, the file is whole."""
    if not state.exists():
        return 0
    try:
        with safe_open(state, framework="pt") as file:
            return int(json.loads(file.metadata()["progress"])["epoch"])
    except FileNotFoundError:  # the fold was published between two looks
        return 0
    except SafetensorError as error:
        raise AssertionError(f"{state} was there in part") from error


def test_a_killed_training_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    def training(out: Path) -> Running:
        return Running(["train", str(prepared().sequences), "--out", str(out), *TRAINED])

    out, state = tmp_path / "killed", tmp_path / "killed" / "scratch" / "fold-1.safetensors"
    reached = []
    for at_least in (3, 8):  # killed twice, the second time after it had gone on
        running = training(out)
        until(lambda at_least=at_least, running=running: finished_epochs(state) >= at_least or running.over())
        running.send(signal.SIGKILL)
        told = running.ended()
        assert told.status == -signal.SIGKILL, told
        assert StageDirectory.open(out).missing() == ["fold-1"]
        reached.append(finished_epochs(state))
    assert 3 <= reached[0] < reached[1]
    (tmp_path / "killed" / "scratch" / "fold-1.0123abcd").write_bytes(b"half of a state")
    for folder in (out, tmp_path / "undisturbed"):
        assert training(folder).ended().status == 0
    killed, undisturbed = StageDirectory.open(out), StageDirectory.open(tmp_path / "undisturbed")
    assert killed.entry("fold-1").summary == undisturbed.entry("fold-1").summary
    assert reached[1] < killed.entry("fold-1").summary["best_epoch"]
    assert killed.content_sha256() == undisturbed.content_sha256()
    assert sorted(path.name for path in out.iterdir()) == ["data", "entries", "manifest.json", "run.json"]


@pytest.mark.full
def test_no_process_of_ray_outlives_a_killed_driver_for_long(tmp_path: Path) -> None:
    everyone, _ = killed_with_ray(tmp_path / "attr")
    _, left = psutil.wait_procs(everyone, timeout=120)
    assert left == []
