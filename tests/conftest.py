"""Fixtures: a small made-up cohort taken through every stage, and the real demonstration."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from filelock import FileLock

from cohort import write_cohort
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.cli import main
from whenwhy.engine import Workers
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.server.answers import Answers
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, open_store, publish_store
from whenwhy.store.open import Role

if TYPE_CHECKING:
    from playwright.sync_api import Browser

INLINE = Workers(inline=True)

#: Runs a command of the command line; gives exit status, standard output and standard error.
Command = Callable[..., tuple[int, str, str]]

# Workers are processes of their own: they find the tests' tasks by this path.
os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Tiny tensors are slower on many threads than on one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def whenwhy(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """Runs a command; gives exit status, standard output and standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["whenwhy", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capfd.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def one_sentence(told: tuple[int, str, str]) -> str:
    """The sentence of a refused command: one line behind any progress, no traceback, nothing on standard output."""
    status, printed, said = told
    assert status == 2, told
    assert printed == ""
    said = re.sub(r"^(scan|gather) \d+/\d+ .*\n", "", said, flags=re.MULTILINE)
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


@dataclass(frozen=True)
class SmallRun:
    """Every stage's directory of the small cohort."""

    meds: Path
    labels: Path
    sequences: Path
    model: Path
    attributions: Path
    store: Path


@pytest.fixture(scope="session")
def small_meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A made-up MEDS data set of 300 patients: several predictions a patient, static codes, parents, ties."""
    folder = tmp_path_factory.mktemp("small") / "meds"
    write_cohort(folder, patients=300, seed=7)
    return folder


@pytest.fixture(scope="session")
def small_run(small_meds: Path) -> SmallRun:
    """The small cohort taken through every stage, inline."""
    root = small_meds.parent
    labels = small_meds / "labels" / "outcome"
    run = SmallRun(small_meds, labels, root / "sequences", root / "model", root / "attributions", root / "store")
    settings = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=128)
    prepare(run.meds, run.labels, run.sequences, settings, INLINE)
    train(run.sequences, run.model, TrainSettings(hidden=8, epochs=2), INLINE)
    attribute_shards(run.sequences, run.model, run.attributions, AttributeSettings(), INLINE)
    cells = aggregate_cells([run.attributions], run.store, time_bin_hours=24)
    publish_store(run.store, cells, [run.attributions])
    return run


def _answers(store: Path, role: Role) -> Iterator[Answers]:
    opened = open_store(store, role)
    with ThreadPoolExecutor(2) as pool:
        yield Answers(opened, pool)
    opened.close()


@pytest.fixture(scope="session")
def viewer(small_run: SmallRun) -> Iterator[Answers]:
    """What the small cohort's store answers viewers."""
    yield from _answers(small_run.store, "viewer")


@pytest.fixture(scope="session")
def analyst(small_run: SmallRun) -> Iterator[Answers]:
    """What it answers analysts."""
    yield from _answers(small_run.store, "analyst")


@pytest.fixture(scope="session")
def demo_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real demonstration, by its command, with Ray actors. WHENWHY_TEST_DEMO names one made before."""
    made = os.environ.get("WHENWHY_TEST_DEMO")
    if made:
        return Path(made)
    # Of several workers the first makes it, the others wait.
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    folder = (tmp_path_factory.mktemp("demo") if alone else tmp_path_factory.getbasetemp().parent) / "demo"
    with FileLock(f"{folder}.lock"):
        if not (folder / "printed.txt").exists():
            told = subprocess.run(
                [sys.executable, "-m", "whenwhy", "demo", str(folder)],
                capture_output=True, text=True, timeout=500, check=False,
            )  # fmt: skip
            assert told.returncode == 0, told.stderr[-3000:]
            (folder / "printed.txt").write_text(told.stdout)
    return folder


@pytest.fixture(scope="session")
def demo_store(demo_folder: Path) -> Path:
    """The store that the demonstration published."""
    return demo_folder / "store"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for a file of tests: while it is there its event loop runs, and no other can in this process."""
    from dashboard import browser

    yield from browser()


@pytest.fixture(scope="session")
def demo_for_viewers(demo_store: Path) -> Iterator[Store]:
    """What a viewer of the demonstration may know."""
    store = open_store(demo_store, "viewer")
    yield store
    store.close()


@pytest.fixture(scope="session")
def demo_for_analysts(demo_store: Path) -> Iterator[Store]:
    """What an analyst of it may know."""
    store = open_store(demo_store, "analyst")
    yield store
    store.close()


@pytest.fixture(scope="session")
def viewers_address(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server of the demonstration's store, for viewers."""
    from dashboard import served

    with served(demo_store, tmp_path_factory.mktemp("server") / "log.txt") as address:
        yield address


@pytest.fixture(scope="session")
def analysts_address(demo_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One for analysts."""
    from dashboard import served

    with served(demo_store, tmp_path_factory.mktemp("server") / "log.txt", "analyst") as address:
        yield address
