"""A disk that is full or fails: one sentence, nothing half-written that is trusted, and the same bytes in the end."""

from __future__ import annotations

import random
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
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

from conftest import Command, SmallRun
from replicas.cells import remade
from whenwhy.errors import UserError
from whenwhy.events.out_of_core import connect, within
from whenwhy.store import open_store
from whenwhy.store.publish import current_version

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


def on_a_small_disk(place: Path, kilobytes: int, words: Sequence[str], kept: Path, before: Path | None = None) -> Ended:
    """A command that alone sees a file system of this size at a folder, which is copied to `kept` when it ends.

    Args:
        before: a folder whose contents are there already.
    """
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    mounted = f"mount -t tmpfs -o size={kilobytes}k tmpfs {place}"
    if shutil.which("unshare") is None or subprocess.run([*alone, "sh", "-c", mounted], check=False).returncode:
        pytest.skip("no file system may be mounted here")
    filled = f"cp -a {before}/. {place} || exit 98;" if before is not None else ""
    script = f'{mounted} || exit 99; {filled} "$@"; status=$?; cp -a {place} {kept}; exit $status'
    asked = [*alone, "sh", "-c", script, "sh", sys.executable, "-m", "whenwhy", *words]
    told = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=False)
    return Ended(
        told.returncode, told.stdout, re.sub(r"^(aggregate|publish) \d+/.*\n", "", told.stderr, flags=re.MULTILINE)
    )


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
    told_in_one_sentence(on_a_small_disk(out, 192, arguments(out), kept), out)
    assert 0 < len(entries(kept)) < len(prepared().shards)
    trusted_is_whole(kept)
    completes(whenwhy, kept)


# -- a store -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def another_run(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Attributions that the small store does not have."""
    return remade(small_run.attributions, tmp_path_factory.mktemp("another") / "attr", settings={"tolerance": 0.5})


@pytest.mark.parametrize(("room", "where"), [(400, "cells/[0-9a-f]+/data"), (6_000, "store")])
def test_a_store_that_does_not_fit_leaves_the_published_one(
    small_run: SmallRun, another_run: Path, whenwhy: Command, tmp_path: Path, room: int, where: str
) -> None:
    """Cells that do not fit, and a version: one sentence, nothing half-written, and with room the work goes on."""
    out, kept = tmp_path / "store", tmp_path / "kept"
    out.mkdir()
    files = [path for path in small_run.store.rglob("*") if path.is_file()]
    size = sum(-(-path.stat().st_size // 4096) * 4 for path in files) + 64
    words = ["aggregate", str(small_run.attributions), str(another_run), "--workers", "2", "--out"]
    told = on_a_small_disk(out, size + room, [*words, str(out)], kept, before=small_run.store)
    told_in_one_sentence(told, out)
    assert re.search(rf"/{where} cannot be written to", told.said)
    there = {path.relative_to(kept) for path in kept.rglob("*") if path.is_file()}
    assert {path.relative_to(small_run.store) for path in files} <= there
    half = [path for path in kept.rglob("*") if path.name.startswith((".", "scratch")) or path.suffix == ".wal"]
    assert half == []
    before, after = open_store(small_run.store), open_store(kept)
    assert after.version.name == before.version.name
    assert after.ask("top_features").equals(before.ask("top_features"))
    before.close()
    after.close()
    finished = set((kept / "cells").rglob("*.parquet"))
    assert whenwhy(*words, kept)[0] == 0
    assert current_version(kept).name != before.version.name
    assert finished <= set((kept / "cells").rglob("*.parquet"))
    after = open_store(kept)
    assert after.sql("select count(*) as n from runs")["n"].to_pylist() == [2]
    after.close()


def test_no_room_to_spill_is_told_apart_from_too_little_memory(tmp_path: Path) -> None:
    with connect("60MB", tmp_path) as db:
        db.execute("set max_temp_directory_size = '1MB'")
        with (
            pytest.raises(UserError, match=r"has no room .*--memory-limit 60MB") as told,
            within("60MB", tmp_path),
        ):
            db.execute("create table t as select range, md5(range::varchar) as code from range(3000000) order by code")
    assert str(tmp_path) in str(told.value)
    assert "\n" not in str(told.value)
