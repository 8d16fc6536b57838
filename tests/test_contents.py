"""What `whenwhy info STORE` says: true numbers, 80 columns, and a question that the store answers."""

from __future__ import annotations

import re
import shlex
import shutil
from collections import defaultdict
from pathlib import Path

import pytest

from conftest import Command, SmallRun
from replicas.cells import RunReplica
from whenwhy.store import open_store
from whenwhy.store.publish import ROWS_FILE, current_version
from whenwhy.store.shareable import SHAREABLE_FILE


@pytest.fixture
def handed_on(small_run: SmallRun, tmp_path: Path) -> Path:
    """A store of which somebody has the shareable file alone."""
    shutil.copytree(small_run.store, tmp_path / "store")
    (current_version(tmp_path / "store") / ROWS_FILE).unlink()
    return tmp_path / "store"


def told(whenwhy: Command, store: Path) -> str:
    status, said, _ = whenwhy("info", store)
    assert status == 0
    assert all(len(line) <= 80 or str(store) in line for line in said.splitlines())
    return said


def table_of(said: str) -> dict[tuple[str, str], tuple[int, int]]:
    """Split and class -> patients and predictions, as they are shown."""
    rows = re.findall(r"^  (\w+) +(\w+) +([\d,]+) +([\d,]+)$", said, re.MULTILINE)
    return {(split, label): (int(n.replace(",", "")), int(m.replace(",", ""))) for split, label, n, m in rows}


def test_an_analyst_is_told_what_is_there(small_run: SmallRun, whenwhy: Command) -> None:
    """Counts are those of the attributions that the store was made from."""
    said = told(whenwhy, small_run.store)
    run = RunReplica(small_run.attributions)
    patients: dict[tuple[str, str], set[int]] = defaultdict(set)
    predictions: dict[tuple[str, str], int] = defaultdict(int)
    for row in run.predictions.values():
        for key in (("all", "all"), (row["split"], "all"), (row["split"], row["label"])):
            patients[key].add(row["subject_id"])
            predictions[key] += 1
    assert table_of(said) == {key: (len(patients[key]), predictions[key]) for key in predictions}
    words = [word for number, word in run.vocabulary.items() if number]
    groups = {group for word in words for group in word["groups"]}
    codes = {word["code"] for word in words}
    assert f"  {len(words):,} feature values of {len(codes):,} codes in {len(groups):,} groups\n" in said
    assert f"  {len(run.rows):,} contributions\n" in said
    every, shown = (
        open_store(small_run.store, role).sql("select count(*) as n from cells")["n"][0].as_py()
        for role in ("analyst", "viewer")
    )
    assert f"  {every:,} cells, of which viewers see {shown:,} ({shown / every:.0%})\n" in said
    version = current_version(small_run.store)
    for file in (ROWS_FILE, SHAREABLE_FILE):
        size = (version / file).stat().st_size
        assert re.search(rf"{file} +{size / 1e6:.1f} MB", said)
    assert f"version {version.name}\n" in said
    about = "integrated_gradients of 'the outcome' (logit), against the empty baseline; largest residual"
    assert about in " ".join(said.split())
    assert "before_prediction: " in said
    assert " bins of 1 day, from 0 to " in said
    assert "  sex: F, M\n" in said


def test_a_viewer_is_told_less(handed_on: Path, small_run: SmallRun, whenwhy: Command) -> None:
    """No count that is hidden, of no file that is not there."""
    said = told(whenwhy, handed_on)
    assert ROWS_FILE not in said
    assert "contributions" not in said.partition("Tables")[0]
    assert " cells that may be shown" in said
    shown = open_store(small_run.store, "viewer").sql(
        "select split, class, n_patients, n_predictions from exposure where stratum = 'all' and time_bin is null"
    )
    assert table_of(said) == {tuple(row.values())[:2]: tuple(row.values())[2:] for row in shown.to_pylist()}


@pytest.mark.parametrize("which", ["analyst", "viewer"])
def test_the_questions_that_are_suggested_are_answered(
    which: str, small_run: SmallRun, handed_on: Path, whenwhy: Command
) -> None:
    said = told(whenwhy, small_run.store if which == "analyst" else handed_on)
    asked = [line.strip() for line in said.partition("\nAsk\n")[2].splitlines()]
    assert len(asked) == 3
    for line in asked:
        words = shlex.split(line, comments=True)
        assert words[0] == "whenwhy"
        status, answer, _ = whenwhy(*words[1:])
        assert status == 0
        assert len(answer.splitlines()) > 3, line
