"""The loop over shards: the same inline and by Ray actors, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from whenwhy.engine import Progress, Workers, kept_pool, reported, run
from whenwhy.engine.schedule import SLOW_SECONDS, SLOW_TIMES, Schedule
from whenwhy.errors import UserError

BOTH = [pytest.param(Workers(inline=True), id="inline"), pytest.param(Workers(count=2), id="ray")]


@dataclass(frozen=True)
class Note:
    """Writes down who did a key; `poison` fails, `deadly` kills its worker once, `killers` each time, `wrong` is bad input.

    The first worker that gets `slow` never ends.
    """

    folder: str
    poison: str = ""
    deadly: str = ""
    wrong: str = ""
    killers: tuple[str, ...] = ()
    slow: str = ""

    def start(self) -> Callable[[str], int]:
        folder = Path(self.folder)
        (folder / f"started-{os.getpid()}").touch()

        def work(key: str) -> int:
            if key == self.poison:
                raise ValueError("impossible data")
            if key == self.wrong:
                raise UserError("the file is missing: give another.")
            if key == self.deadly and not (folder / "died").exists():
                (folder / "died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
            if key in self.killers:
                os.kill(os.getpid(), signal.SIGKILL)
            if key == self.slow and not (folder / "slow").exists():
                (folder / "slow").touch()
                time.sleep(3600)
            with (folder / f"done-{key}").open("a") as file:
                file.write(f"{os.getpid()}\n")
            return 1

        return work


def done(folder: Path) -> list[str]:
    return sorted(path.name.removeprefix("done-") for path in folder.glob("done-*"))


@pytest.mark.parametrize("workers", BOTH)
def test_every_key_is_done_once(tmp_path: Path, workers: Workers) -> None:
    keys = [f"{i:02d}" for i in range(12)]
    run(Note(str(tmp_path)), keys, stage="note", unit="notes", workers=workers)
    assert done(tmp_path) == keys
    assert all(len((tmp_path / f"done-{key}").read_text().split()) == 1 for key in keys)
    started = len(list(tmp_path.glob("started-*")))
    assert started == 1 if workers.inline else 1 <= started <= 2


@pytest.mark.parametrize("workers", BOTH)
def test_poison_is_quarantined_by_name_and_the_others_go_on(tmp_path: Path, workers: Workers) -> None:
    keys = ["a", "b", "c", "d"]
    with pytest.raises(UserError, match=r"1 of 4 entries failed 3 times \(b; ValueError: impossible data"):
        run(Note(str(tmp_path), poison="b"), keys, stage="note", unit="notes", workers=workers)
    assert done(tmp_path) == ["a", "c", "d"]


@pytest.mark.parametrize("workers", BOTH)
def test_bad_input_stops_at_once_with_its_own_sentence(tmp_path: Path, workers: Workers) -> None:
    with pytest.raises(UserError, match="the file is missing: give another"):
        run(Note(str(tmp_path), wrong="a"), ["a", "b"], stage="note", unit="notes", workers=workers)


def test_a_killed_worker_is_replaced(tmp_path: Path) -> None:
    keys = [f"{i:02d}" for i in range(8)]
    run(Note(str(tmp_path), deadly="03"), keys, stage="note", unit="notes", workers=Workers(count=2))
    assert (tmp_path / "died").exists()
    assert done(tmp_path) == keys


@pytest.mark.parametrize("count", [pytest.param(1, marks=pytest.mark.full), 2])
def test_shards_that_kill_their_workers_are_quarantined(tmp_path: Path, count: int) -> None:
    keys = [f"{i:02d}" for i in range(6)]
    killers = ("00", "03", "05")
    with pytest.raises(UserError, match=r"3 of 6 entries failed 3 times \(00, 03, 05; "):
        run(Note(str(tmp_path), killers=killers), keys, stage="note", unit="notes", workers=Workers(count=count))
    assert done(tmp_path) == ["01", "02", "04"]


def test_workers_that_only_die_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["whenwhy.engine.run"], "MOST_DEATHS_IN_A_ROW", 3)
    keys = [f"{i:02d}" for i in range(6)]
    with pytest.raises(UserError, match="workers died 4 times without a shard finished between"):
        run(Note(str(tmp_path), killers=tuple(keys)), keys, stage="note", unit="notes", workers=Workers(count=1))


def test_a_slow_worker_does_not_hold_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shard is given to an idle one, once the others are done; then the pool goes on with new workers."""
    monkeypatch.setattr("whenwhy.engine.schedule.SLOW_SECONDS", 0.5)
    keys = [f"{i:02d}" for i in range(6)]
    with kept_pool(Workers(count=2)) as pool, reported(tmp_path) as report:
        run(Note(str(tmp_path), slow="01"), keys, stage="note", unit="notes", pool=pool, publishes=True)
        run(Note(str(tmp_path)), ["x", "y"], stage="note", unit="notes", pool=pool)
    assert done(tmp_path) == [*keys, "x", "y"]
    assert (tmp_path / "slow").exists()
    assert report.passes[0]["given_twice"] == ["01"]
    sleeper = {file.name.removeprefix("started-") for file in tmp_path.glob("started-*")} - {
        (tmp_path / f"done-{key}").read_text().strip() for key in keys if key != "01"
    }
    assert all((tmp_path / f"done-{key}").read_text().strip() not in sleeper for key in ("x", "y"))


class Steps:
    """A clock that is set by hand."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@given(st.data())
def test_every_key_of_a_schedule_is_settled_once(data: st.DataObject) -> None:
    """Whatever fails, is slow or comes late: each key is done, or quarantined after three failures, never both."""
    keys = [str(at) for at in range(data.draw(st.integers(1, 5)))]
    workers = data.draw(st.integers(1, 3))
    clock = Steps()
    schedule = Schedule(keys, doubles=data.draw(st.booleans()), clock=clock)
    under_way: list[str] = []
    finished: Counter[str] = Counter()
    quarantined: Counter[str] = Counter()
    while schedule.open:
        while len(under_way) < workers and (key := schedule.next()) is not None:
            under_way.append(key)
        assert under_way
        assert max(Counter(under_way).values()) <= 2
        clock.now += data.draw(st.sampled_from([1.0, 100.0]))
        key = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
        if data.draw(st.booleans()):
            finished[key] += schedule.done(key)
        else:
            quarantined[key] += schedule.failed(key, ValueError())
    assert all(finished[key] + quarantined[key] == 1 for key in keys)
    assert set(schedule.quarantined) == {key for key in keys if quarantined[key]}
    assert all(schedule.attempts[key] >= 3 for key in schedule.quarantined)


def test_only_a_slow_key_is_given_twice_and_only_if_it_may_be() -> None:
    for doubles, expected in ((True, "b"), (False, None)):
        clock = Steps()
        schedule = Schedule(["a", "b"], doubles=doubles, clock=clock)
        assert (schedule.next(), schedule.next()) == ("a", "b")
        assert schedule.next() is None
        clock.now = 2
        schedule.done("a")
        clock.now = SLOW_TIMES * 2 + SLOW_SECONDS
        assert schedule.next() is None
        clock.now += 0.1
        assert schedule.next() == expected
        assert schedule.next() is None


@given(
    st.lists(st.tuples(st.integers(1, 64), st.integers(0, 8)), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(1, 64)),
    st.one_of(st.none(), st.sampled_from([0.1, 0.25, 0.5, 1.0])),
    st.integers(1, 8),
)
def test_workers_fit_on_the_devices_that_there_are(
    nodes: list[tuple[int, int]], count: int | None, part: float | None, threads: int
) -> None:
    """Each GPU holds whole workers, and all of them together hold the workers that are started."""
    from whenwhy.engine.ray_pool import shares

    resources = [{"CPU": float(cpu), "GPU": float(gpu)} for cpu, gpu in nodes]
    gpus = sum(gpu for _, gpu in nodes)
    asked = Workers(count, gpus_per_worker=part, threads=threads)
    if part is not None and (not gpus or (count or 0) > gpus * int(1 / part + 1e-6)):
        with pytest.raises(UserError, match="--gpus-per-worker"):
            shares(asked, resources, 1000)
        return
    made, cpu, gpu = shares(asked, resources, 1000)
    assert made == count or count is None
    assert made >= 1
    free = [[cores, *([1.0] * devices)] for cores, devices in nodes]
    for _ in range(made):  # each finds a machine with so many cores, and so much of one of its GPUs
        place = next(
            (
                (at, device)
                for at, of in enumerate(free)
                for device in (range(1, len(of)) if gpu else (0,))
                if of[0] >= cpu - 1e-6 and (not gpu or of[device] >= gpu - 1e-6)
            ),
            None,
        )
        assert place is not None, free
        free[place[0]][0] -= cpu
        if gpu:
            free[place[0]][place[1]] -= gpu
    if count is None and not gpus:
        assert cpu == threads or made == 1


def test_nothing_to_do_starts_nothing(tmp_path: Path) -> None:
    run(Note(str(tmp_path)), [], stage="note", unit="notes")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("arguments", "expected"), [(["--inline"], "False"), ([], "True")])
def test_inline_never_imports_ray(tmp_path: Path, small_run, arguments: list[str], expected: str) -> None:
    program = (
        "import sys; from whenwhy.cli import app\napp(sys.argv[1:], standalone_mode=False)\nprint('ray' in sys.modules)"
    )
    asked = ["attribute", str(small_run.sequences), "--model", str(small_run.model), "--out", str(tmp_path / "attr")]
    told = subprocess.run(
        [sys.executable, "-c", program, *asked, *arguments], capture_output=True, text=True, timeout=300, check=True
    )
    assert told.stdout.splitlines()[-1] == expected


def test_a_local_ray_answers_nobody_without_its_token(tmp_path: Path) -> None:
    """Ray listens on every interface of the machine, so another process must be turned away."""
    run(Note(str(tmp_path)), ["a"], stage="note", unit="notes", workers=Workers(count=1))
    import ray

    address = ray.get_runtime_context().gcs_address
    program = "import ray, sys; ray.init(address=sys.argv[1], log_to_driver=False); print('let in')"
    stranger = {k: v for k, v in os.environ.items() if not k.startswith("RAY_AUTH")} | {"HOME": str(tmp_path)}
    own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": os.environ["RAY_AUTH_TOKEN"]}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=stranger | mode,
        )
        for mode in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}, own)
    ]
    assert "let in" in running.pop().communicate(timeout=120)[0]
    for process in running:
        said, _ = process.communicate(timeout=120)
        assert process.returncode != 0
        assert "let in" not in said


def test_a_worker_keeps_the_memory_of_freed_arrays() -> None:
    """Eight arrays of 3 MB, again and again: the system clears their pages once, not each time."""
    program = """
import resource
import numpy as np
from whenwhy.engine.memory import keep_freed_memory

def pages(turns):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(turns):
        for array in [np.empty(3 << 17) for _ in range(8)]:
            array[::64] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

before = pages(20)
kept = keep_freed_memory()
pages(2)
print(before, pages(20) if kept else "other C library")
"""
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    if told[1:] == ["other", "C", "library"]:
        pytest.skip("this C library is not GNU's: it has no such setting")
    without, with_it = map(int, told)
    assert without > 2_000
    assert with_it < without / 10


def test_progress_tells_how_much_gpu_memory_workers_held(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("attribute", total=3, unit="values") as progress:
        progress.advance("a", 10)
        progress.advance("b", 10, 3 * 10**9)
        progress.advance("c", 10, 2 * 10**9)
    first, *others = capfd.readouterr().err.splitlines()
    assert "GPU" not in first
    assert all("3.0 GB on a GPU" in line for line in others)
    assert progress.device_bytes == 3 * 10**9
