"""A shard that fails each time: quarantined by name while the others go on, and done once its cause is mended."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import psutil
from runs import (
    Running,
    accounted,
    arguments,
    below,
    besides_progress,
    complete,
    entries,
    prepared,
    undisturbed,
    until,
)

from conftest import Command
from whenwhy.events.sequence_directory import TABLE
from whenwhy.shards import StageDirectory


def data_of(sequences: Path, shard: str) -> Path:
    """The file of a shard's sequences."""
    return sequences / "data" / str(StageDirectory.open(sequences).entry(shard).files[TABLE]["file"])


def with_a_table_that_cannot_be_read(sequences: Path, shard: str) -> None:
    """Half of a shard's file overwritten, and published as if that had been written: its checksum is right."""
    stage = StageDirectory.open(sequences)
    content = bytearray(data_of(sequences, shard).read_bytes())
    content[4 : len(content) // 2] = bytes(len(content) // 2 - 4)
    summary = stage.entry(shard).summary
    (sequences / "entries" / f"{shard}.json").unlink()
    assert stage.publish(shard, {TABLE: bytes(content)}, summary)


def quarantined_in(out: Path) -> list[str]:
    """What run.json tells of the last call."""
    [told] = json.loads((out / "run.json").read_text())["calls"][-1]["passes"]
    return sorted(told["quarantined"])


def refused_by_name(status: int, said: str, shard: str) -> None:
    """Exit status 2, and a last line that names the one shard, and says that the others are kept."""
    assert status == 2, said
    assert "Traceback" not in said
    last = besides_progress(said).splitlines()[-1]
    assert shard in last
    assert not [name for name in prepared().shards if name != shard and name in last]
    assert "the others are kept" in last
    assert "run the same command again" in last


def test_a_table_that_verifies_but_cannot_be_read_is_quarantined(whenwhy: Command, tmp_path: Path) -> None:
    sequences, out, poison = tmp_path / "sequences", tmp_path / "attr", prepared().shards[7]
    shutil.copytree(prepared().sequences, sequences)
    with_a_table_that_cannot_be_read(sequences, poison)
    status, _, said = whenwhy(*arguments(out, sequences=sequences))
    refused_by_name(status, said, poison)
    assert quarantined_in(out) == [poison]
    accounted(out, [poison], sequences)
    before = {file: file.read_bytes() for file in (out / "entries").iterdir()}

    status, _, said = whenwhy(*arguments(out, sequences=sequences))
    refused_by_name(status, said, poison)
    assert {file: file.read_bytes() for file in (out / "entries").iterdir()} == before

    shutil.rmtree(sequences)
    shutil.copytree(prepared().sequences, sequences)  # other bytes are another run
    status, _, said = whenwhy(*arguments(out, sequences=sequences))
    assert status == 2
    assert "made from other sequences" in said
    assert whenwhy(*arguments(tmp_path / "mended", sequences=sequences))[0] == 0
    mended = StageDirectory.open(tmp_path / "mended")
    assert mended.content_sha256() == undisturbed()
    accounted(mended.path)
    kept = StageDirectory.open(out)
    assert all(kept.entry(name).files == mended.entry(name).files for name in entries(out))


def killed_at(pipe: Path, pid: int) -> int | None:
    """The process below another that had opened a pipe and is killed now, if one had: it read nothing, no end either."""
    try:
        writing = os.open(pipe, os.O_WRONLY | os.O_NONBLOCK)
    except OSError:  # nobody reads
        return None
    found: list[psutil.Process] = []

    def opened() -> bool:
        for child in below(pid):
            for descriptor in Path(f"/proc/{child.pid}/fd").glob("*"):
                with suppress(OSError):
                    if os.readlink(descriptor) == str(pipe):
                        found.append(child)
        return bool(found)

    until(opened)
    found[0].kill()
    with suppress(psutil.TimeoutExpired):
        found[0].wait(60)
    os.close(writing)
    return found[0].pid


def test_a_shard_whose_worker_is_killed_each_time_is_quarantined(whenwhy: Command, tmp_path: Path) -> None:
    """The shard's file is a pipe: who opens it waits there, and is killed."""
    sequences, out, poison = tmp_path / "sequences", tmp_path / "attr", prepared().shards[9]
    shutil.copytree(prepared().sequences, sequences)
    file = data_of(sequences, poison)
    content = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    running = Running(arguments(out, "--workers", "2", sequences=sequences))
    killed: list[int] = []

    def one_more_killed() -> bool:
        if running.over():
            return True
        with suppress(psutil.NoSuchProcess):
            reader = killed_at(file, running.pid)
            if reader is not None and reader not in killed:
                killed.append(reader)
        return False

    until(one_more_killed, 180)
    told = running.ended()
    refused_by_name(told.status, told.said, poison)
    assert len(killed) == 3
    assert quarantined_in(out) == [poison]
    accounted(out, [poison])
    file.unlink()
    file.write_bytes(content)
    assert whenwhy(*arguments(out, sequences=sequences))[0] == 0
    complete(out)
