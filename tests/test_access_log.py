"""Every question to a store is a line of its log: whole, in order of arrival, whoever else writes, and never taken back."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import stat
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from conftest import Command, SmallRun, one_sentence
from whenwhy.errors import UserError
from whenwhy.statistics import aggregate_cells
from whenwhy.store import open_store, publish_store
from whenwhy.store.access_log import AccessLog


@pytest.fixture
def store(small_run: SmallRun, tmp_path: Path) -> Path:
    """A copy of the small store that nobody has asked yet."""
    copied = shutil.copytree(small_run.store, tmp_path / "store")
    (copied / "access.jsonl").unlink(missing_ok=True)
    return copied


def lines_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_answered_and_refused_questions_are_written_down(store: Path) -> None:
    """Who asked what, when, as whom, of which version, and what became of it: one line a question, no more."""
    opened = open_store(store)
    assert opened.ask("feature_timeline", feature="lab", min_patients=1).num_rows > 0
    opened.sql("select $n as n", {"n": 3})
    with pytest.raises(UserError):
        opened.ask("feature_timeline", feature="labb")
    with pytest.raises(UserError):
        opened.sql("drop table cells")
    opened.close()
    viewer = open_store(store, "viewer")
    viewer.sql("select 1 where false")
    viewer.close()
    lines = lines_of(store / "access.jsonl")
    answered = open_store(store, access_log=store / "elsewhere").ask("feature_timeline", feature="lab", min_patients=1)
    told = [{key: line.get(key) for key in ("query", "arguments", "sql", "rows", "role")} for line in lines]
    asked = {"query": "feature_timeline", "arguments": {"feature": "lab", "min_patients": 1}, "sql": None}
    assert told == [
        asked | {"rows": answered.num_rows, "role": "analyst"},
        {"query": None, "arguments": {"n": 3}, "sql": "select $n as n", "rows": 1, "role": "analyst"},
        asked | {"arguments": {"feature": "labb"}, "rows": None, "role": "analyst"},
        {"query": None, "arguments": None, "sql": "drop table cells", "rows": None, "role": "analyst"},
        {"query": None, "arguments": None, "sql": "select 1 where false", "rows": 0, "role": "viewer"},
    ]
    assert "did you mean 'lab'" in lines[2]["error"]
    assert "write one SELECT" in lines[3]["error"]
    for line in lines:
        assert line["user"] == pwd.getpwuid(os.getuid()).pw_name
        assert line["version"] == opened.version.name
        assert abs(datetime.fromisoformat(line["time"]) - datetime.now(UTC)) < timedelta(minutes=5)
        assert 0 <= line["seconds"] < 60
        assert ("error" in line) != ("rows" in line)
    assert stat.S_IMODE((store / "access.jsonl").stat().st_mode) == 0o600
    assert len(lines_of(store / "elsewhere")) == 1


def test_the_command_line_writes_where_it_is_told(store: Path, tmp_path: Path, whenwhy: Command) -> None:
    """`query` and `sql` add their line to the store's log or to another file; `info` asks for itself."""
    assert whenwhy("info", store)[0] == 0
    assert not (store / "access.jsonl").exists()
    assert whenwhy("sql", store, "select 'né' as x\n-- a second line")[0] == 0
    assert whenwhy("query", store, "features", "--access-log", tmp_path / "other.jsonl")[0] == 0
    one_sentence(whenwhy("query", store, "no_such_query"))
    assert [line.get("sql") for line in lines_of(store / "access.jsonl")] == [
        "select 'né' as x\n-- a second line", None
    ]  # fmt: skip
    assert [line["query"] for line in lines_of(tmp_path / "other.jsonl")] == ["features"]


def test_a_log_that_cannot_be_written_to_is_one_sentence(store: Path, tmp_path: Path, whenwhy: Command) -> None:
    """Nothing is answered that cannot be written down, and the sentence says what to do."""
    (store / "access.jsonl").mkdir()  # for the superuser nothing else refuses to be written to
    said = one_sentence(whenwhy("sql", store, "select 1"))
    assert f"{store / 'access.jsonl'} cannot be written to" in said
    assert "--access-log FILE" in said
    assert whenwhy("sql", store, "select 1", "--access-log", tmp_path / "log.jsonl")[0] == 0
    opened = open_store(store, access_log=Path("/dev/full"))
    with pytest.raises(UserError, match=r"/dev/full cannot be written to \(No space left"):
        opened.sql("select 1")
    opened.close()


def test_nowhere_is_a_log_begun_where_no_store_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is no store"):
        open_store(tmp_path)
    assert not list(tmp_path.iterdir())


#: A process whose threads ask a store: its path, their number, the questions of each.
ASKS = """
import sys, threading
from pathlib import Path
from whenwhy.store import open_store
path, name, threads, questions = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
store = open_store(path)
def ask(thread):
    for number in range(questions):
        store.sql(f"select 1 -- {name} {thread} {number} " + "x" * (1000 * thread))
every = [threading.Thread(target=ask, args=(thread,)) for thread in range(threads)]
[one.start() for one in every]
[one.join() for one in every]
"""


def test_processes_and_threads_do_not_mix_their_lines(store: Path) -> None:
    """Three processes of three threads each: every question is there once, whole, and in each thread's order."""
    names, threads, questions = ("one", "two", "three"), 3, 20
    file = store / "access.jsonl"
    file.write_text('{"query": "before"}\n')
    running = [
        subprocess.Popen([sys.executable, "-c", ASKS, str(store), name, str(threads), str(questions)]) for name in names
    ]
    assert [one.wait(timeout=120) for one in running] == [0, 0, 0]
    first, *lines = lines_of(file)
    assert first == {"query": "before"}
    found = [tuple(line["sql"].split()[3:6]) for line in lines]
    for name in names:
        for thread in range(threads):
            own = [int(number) for of, at, number in found if (of, at) == (name, str(thread))]
            assert own == list(range(questions)), (name, thread)
    assert len(found) == len(names) * threads * questions


def test_long_lines_of_many_threads_stay_whole(tmp_path: Path) -> None:
    """Lines far longer than a page are written at once too; a line costs far less than a millisecond."""
    logs = [AccessLog(tmp_path / "log.jsonl") for _ in range(4)]

    def write(number: int) -> None:
        for at in range(50):
            with logs[number].question(sql=f"{number} {at} " + "é" * 30_000):
                pass

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    found = [tuple(map(int, line["sql"].split()[:2])) for line in lines_of(tmp_path / "log.jsonl")]
    assert sorted(found) == [(number, at) for number in range(4) for at in range(50)]
    began = time.perf_counter()
    for _ in range(1000):
        with logs[0].question(role="viewer", query="runs", arguments={}) as answer:
            answer["rows"] = 1
    assert (time.perf_counter() - began) / 1000 < 0.0005


def test_publishing_leaves_the_log_alone(small_run: SmallRun, store: Path) -> None:
    """Another version, and versions that go, take nothing from it; a store with a log is still one to publish in."""
    open_store(store).sql("select 1")
    before = (store / "access.jsonl").read_bytes()
    for hours in (48, 96):
        cells = aggregate_cells([small_run.attributions], store, time_bin_hours=hours)
        publish_store(store, cells, [small_run.attributions])
    assert (store / "access.jsonl").read_bytes() == before
    assert len(list((store / "versions").iterdir())) == 2
