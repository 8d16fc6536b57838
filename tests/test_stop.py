"""A question that nobody waits for any more is stopped, and no other question of its connection is."""

from __future__ import annotations

import json
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import duckdb
import pytest

from conftest import SmallRun
from whenwhy.errors import Stopped, UserError
from whenwhy.store import Stop, Store, open_store
from whenwhy.store.stop import limited

#: Takes hours.
ENDLESS = "select count(*) from range(1000000000) a(x), range(100000) b(y) where a.x * b.y % 7 = 3"
ANSWER = "select sum(i) as total from range(1000) r(i)"


@pytest.fixture(scope="module")
def store(small_run: SmallRun) -> Store:
    return Store(small_run.store, seconds=30)  # so that a test that fails ends


def asked(store: Store, sql: str, stop: Stop) -> int:
    """The answer of a question that `stop` watches."""
    with stop.watching():
        return store.sql(sql).column(0)[0].as_py()


def test_endless_questions_are_stopped_and_their_connection_answers_the_next(store: Store) -> None:
    """Many times, at whatever moment: before DuckDB has begun, while it plans, while it works."""
    delays = random.Random(3)
    with ThreadPoolExecutor(1) as thread:  # of one connection
        assert thread.submit(asked, store, ANSWER, Stop()).result() == 499500
        for delay in (delays.choice([0, 0.0003, 0.002, 0.02]) for _ in range(100)):
            stop = Stop()
            answer = thread.submit(asked, store, ENDLESS, stop)
            time.sleep(delay)
            began = time.perf_counter()
            stop.stop()
            with pytest.raises(Stopped, match="Nobody waits for this answer any more"):
                answer.result()
            assert time.perf_counter() - began < 5
            assert thread.submit(store.sql, ANSWER).result()["total"][0].as_py() == 499500
            assert thread.submit(asked, store, ANSWER, Stop()).result() == 499500


def test_a_stop_as_a_question_ends_never_hits_the_next(store: Store) -> None:
    """Short questions, stopped about when they end: each is answered or stopped, and the next is answered."""
    delays, stopped = random.Random(5), 0
    with ThreadPoolExecutor(1) as thread:
        for _ in range(300):
            stop = Stop()
            answers = [thread.submit(asked, store, ANSWER, stop), thread.submit(store.sql, ANSWER)]
            time.sleep(delays.random() * 0.002)
            stop.stop()
            assert answers[1].result()["total"][0].as_py() == 499500
            try:
                assert answers[0].result() == 499500
            except Stopped:
                stopped += 1
    assert 0 < stopped < 300, "stops came before and after the end"


def test_one_of_several_questions_is_stopped(store: Store) -> None:
    """Two sessions ask at once; the one that leaves does not take the other's answer along."""
    leaves, stays = Stop(), Stop()
    long = "select count(*) from range(30000000) r(i) where i % 7 = 3"
    with ThreadPoolExecutor(2) as threads:
        mine, others = threads.submit(asked, store, ENDLESS, leaves), threads.submit(asked, store, long, stays)
        time.sleep(0.01)
        leaves.stop()
        with pytest.raises(Stopped):
            mine.result()
        assert others.result() == 4285714


def test_what_is_asked_later_is_refused_at_once(small_run: SmallRun, tmp_path: Path) -> None:
    """Named queries and predicates too; the log of questions says so."""
    store = open_store(small_run.store, seconds=5, access_log=tmp_path / "log.jsonl")
    stop = Stop()
    with stop.watching():
        assert store.ask("features").num_rows > 3
    stop.stop()
    stop.stop()
    with stop.watching():
        for question in (
            lambda: store.sql(ENDLESS), lambda: store.ask("features"), lambda: store.ask("top_features", cohort="true"),
        ):  # fmt: skip
            with pytest.raises(Stopped):
                question()
    assert store.ask("features").num_rows > 3
    store.close()
    told = [json.loads(line).get("error") for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert told == [None, "Stopped", "Stopped", "Stopped", None]


def test_an_interrupt_before_the_question_begins_is_not_lost() -> None:
    stop = Stop()

    def late() -> None:
        with duckdb.connect() as db, stop.watching(), limited(db, seconds=20):
            stop.stop()
            time.sleep(0.05)
            db.execute(ENDLESS).fetchall()

    began = time.perf_counter()
    with pytest.raises(Stopped):
        late()
    assert time.perf_counter() - began < 10


class Interrupted:
    """A connection that counts."""

    def __init__(self) -> None:
        self.times = 0

    def interrupt(self) -> None:
        self.times += 1


@pytest.mark.parametrize("by", ["time", "stop"])
def test_nothing_is_interrupted_once_a_question_has_ended(by: str) -> None:
    connection, stop = Interrupted(), Stop()
    with stop.watching(), limited(connection, seconds=0.01 if by == "time" else None):  # type: ignore[arg-type]
        if by == "stop":
            threading.Thread(target=stop.stop).start()
        time.sleep(0.1)
    times = connection.times
    assert times > 2
    time.sleep(0.1)
    assert connection.times == times


def test_the_time_limit_holds_for_what_is_watched(small_run: SmallRun) -> None:
    store = Store(small_run.store, seconds=0.1)
    with pytest.raises(UserError, match=r"did not answer within 0\.1 seconds"):
        asked(store, ENDLESS, Stop())
    assert asked(store, ANSWER, Stop()) == 499500
    store.close()
