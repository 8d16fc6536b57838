"""A disk that is full or fails: one sentence, nothing half-written that is trusted, and the same bytes in the end."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from runs import (
    CALLS,
    Ended,
    arguments,
    besides_progress,
    calls_of_a_run,
    completes,
    entries,
    injected,
    prepared,
    require_strace,
    shard_calls,
    traced,
    trusted_is_whole,
)

from conftest import Command

SEED = 20_260


def place(kind: str, seed: object) -> int:
    """The number of one of the calls of a kind with which shards are written."""
    chosen = random.Random(f"{SEED} {kind} {seed}").choice(shard_calls(kind))
    print(f"seed {SEED} {kind} {seed}: call {chosen.number}, {chosen.told}")
    return chosen.number


def told_in_one_sentence(told: Ended, out: Path) -> None:
    """Exit status 2 with a line that names the directory or a file in it, what is wrong, and what to do."""
    said = besides_progress(told.said)
    assert told.status == 2, told
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    assert str(out) in said
    assert "No space left on device" in said or "Input/output error" in said
    assert "again" in said
    assert "Wrote" not in told.printed


@pytest.mark.parametrize(
    ("kind", "error"), [("link", "ENOSPC"), ("rename", "EIO"), ("fsync", "ENOSPC"), ("fsync", "EIO")]
)
def test_a_disk_that_fails_from_some_call_on_is_told_once(
    whenwhy: Command, tmp_path: Path, kind: str, error: str
) -> None:
    require_strace()
    out, log = tmp_path / "attr", tmp_path / "log"
    told = traced(arguments(out), log, "-e", f"inject={CALLS[kind]}:error={error}:when={place(kind, error)}+")
    assert injected(log)
    assert all(str(out) in line for line in injected(log))
    told_in_one_sentence(told, out)
    trusted_is_whole(out)
    completes(whenwhy, out)


@pytest.mark.parametrize(
    ("kind", "error", "seed"),
    [("write", "ENOSPC", 0), ("write", "EIO", 1), ("fsync", "EIO", 2), ("rename", "ENOSPC", 3), ("link", "EIO", 4)],
)
def test_one_call_that_fails_is_done_again_or_told(
    whenwhy: Command, tmp_path: Path, kind: str, error: str, seed: int
) -> None:
    require_strace()
    out, log = tmp_path / "attr", tmp_path / "log"
    told = traced(arguments(out), log, "-e", f"inject={CALLS[kind]}:error={error}:when={place(kind, seed)}")
    [line] = injected(log)
    assert str(out) in line
    if told.status:
        told_in_one_sentence(told, out)
    else:
        assert besides_progress(told.said) == ""
    trusted_is_whole(out)
    completes(whenwhy, out)


def test_a_run_that_cannot_begin_leaves_nothing_that_stops_the_next(whenwhy: Command, tmp_path: Path) -> None:
    """The directory's own manifest does not reach the disk."""
    require_strace()
    first = next(call for call in calls_of_a_run() if call.kind == "link")
    out, log = tmp_path / "attr", tmp_path / "log"
    told = traced(arguments(out), log, "-e", f"inject={CALLS['link']}:error=ENOSPC:when={first.number}+")
    assert injected(log)
    told_in_one_sentence(told, out)
    assert not (out / "manifest.json").exists()
    completes(whenwhy, out)


def test_a_disk_that_is_really_full_is_told_once(whenwhy: Command, tmp_path: Path) -> None:
    """A file system of some pages that only this run sees: there is room for a few shards."""
    out, kept = tmp_path / "attr", tmp_path / "kept"
    out.mkdir()
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    mounted = f"mount -t tmpfs -o size=192k tmpfs {out}"
    if shutil.which("unshare") is None or subprocess.run([*alone, "sh", "-c", mounted], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    script = f'{mounted} || exit 99; "$@"; status=$?; cp -a {out} {kept}; exit $status'
    asked = [*alone, "sh", "-c", script, "sh", sys.executable, "-m", "whenwhy", *arguments(out)]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    told_in_one_sentence(Ended(told.returncode, told.stdout, told.stderr), out)
    assert 0 < len(entries(kept)) < len(prepared().shards)
    trusted_is_whole(kept)
    completes(whenwhy, kept)
