"""The loop over shards: the same inline and by Ray actors, whatever dies on the way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from whenwhy.engine import Workers, run
from whenwhy.errors import UserError

BOTH = [pytest.param(Workers(inline=True), id="inline"), pytest.param(Workers(count=2), id="ray")]


@dataclass(frozen=True)
class Note:
    """Writes down who did a key; `poison` fails, `deadly` kills its worker once, `wrong` is bad input."""

    folder: str
    poison: str = ""
    deadly: str = ""
    wrong: str = ""

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
    running = [
        subprocess.Popen(
            [sys.executable, "-c", program, address],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=stranger | mode,
        )
        for mode in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64})
    ]
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
