"""Events as no data set should have them: told, refused or repaired, and no prediction is lost on the way to its attributions."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from runs import QUICK, accounted, prepared, undisturbed_run

from conftest import INLINE, Command, one_sentence
from whenwhy.attribution.attribution_directory import PREDICTION_ROWS, ROWS
from whenwhy.models.training import TrainSettings, train
from whenwhy.shards import StageDirectory

DATA, OTHER = "data/a/0.parquet", "data/b/1.parquet"

KEYS = ["subject_id", "prediction_time"]


@pytest.fixture
def meds(tmp_path: Path) -> Path:
    """The cohort, to be harmed."""
    return Path(shutil.copytree(prepared().meds, tmp_path / "meds"))


def changed(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def with_column(name: str, change: Callable[[pa.ChunkedArray], pa.ChunkedArray]) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.set_column(table.column_names.index(name), name, change(table[name]))


def unsorted(meds: Path) -> None:
    changed(meds / DATA, lambda table: table.take(pa.array(range(table.num_rows - 1, -1, -1))))


def twice(meds: Path) -> None:
    """Every row of a file two times, each pair together."""
    changed(meds / DATA, lambda table: table.take(pa.array([at for at in range(table.num_rows) for _ in range(2)])))


def of_another_type(meds: Path) -> None:
    """One file alone says its numbers in double precision and its times in nanoseconds."""
    changed(meds / OTHER, with_column("numeric_value", lambda column: column.cast(pa.float64())))
    changed(meds / OTHER, with_column("time", lambda column: column.cast(pa.timestamp("ns"))))


def in_two_files(meds: Path) -> None:
    """The last patient of a file also in the other one, a part of the rows in each."""
    one, two = pq.read_table(meds / DATA), pq.read_table(meds / OTHER)
    mine = pc.and_(pc.equal(one["subject_id"], one["subject_id"][-1]), one["time"].is_valid())
    pq.write_table(one.filter(pc.invert(mine)), meds / DATA)
    pq.write_table(pa.concat_tables([two, one.filter(mine)]), meds / OTHER)


def strange_numbers(meds: Path) -> None:
    """NaN and both infinities, in a twentieth of the numbers each."""
    values = pq.read_table(meds / DATA)["numeric_value"].to_pylist()
    strange = [float("nan"), float("inf"), float("-inf")]
    at = [place for place, value in enumerate(values) if value is not None]
    for turn, place in enumerate(at[::7]):
        values[place] = strange[turn % 3]
    changed(
        meds / DATA,
        with_column("numeric_value", lambda _: pa.chunked_array([pa.array(values, pa.float32(), from_pandas=False)])),
    )


def without_numbers(meds: Path) -> None:
    """The same rows as `strange_numbers`, their values missing."""
    strange_numbers(meds)
    nothing = pa.scalar(None, pa.float32())
    changed(meds / DATA, with_column("numeric_value", lambda c: pc.if_else(pc.is_finite(c), c, nothing)))


def at_the_same_times(meds: Path) -> None:
    """All that happened to anybody on a day happened at its beginning."""
    changed(meds / DATA, with_column("time", lambda column: pc.floor_temporal(column, unit="day")))


def prepares(whenwhy: Command, meds: Path, out: Path, *besides: str) -> tuple[int, str, str]:
    """The command with which the sequences of these tests are made."""
    return whenwhy(
        "prepare", meds, "--labels", meds / "labels" / "outcome", "--outcome", "the outcome", "--strata", "age_band,sex",
        "--bins", 4, "--shard-size", 8, "--out", out, "--inline", *besides,
    )  # fmt: skip


def attributed(whenwhy: Command, meds: Path, sequences: Path, model: Path) -> StageDirectory:
    """The attributions of every prediction: as many as there are in the sequences, and labels in the input."""
    out = sequences.with_name(f"{sequences.name}-attributed")
    status, _, said = whenwhy("attribute", sequences, "--model", model, "--out", out, *QUICK, "--inline")
    assert status == 0, said
    accounted(out, sequences=sequences)
    stage, order = StageDirectory.open(out), [(key, "ascending") for key in KEYS]
    labels = pq.read_table(meds / "labels" / "outcome" / "0.parquet", columns=KEYS)
    found = pa.concat_tables([stage.read(name, PREDICTION_ROWS, KEYS) for name in stage.shards])
    assert found.sort_by(order).to_pylist() == labels.sort_by(order).to_pylist()
    return stage


#: What is done to the data, what is said of it, and whether work goes on without --repair.
MENDED: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "unsorted": (unsorted, "rows out of time order", False),
    "rows twice": (twice, "rows that repeat", True),
    "another type in one file": (of_another_type, "b/1.parquet: column", False),
    "a patient in two files": (in_two_files, "subjects that are in another file", False),
}


@pytest.mark.parametrize("harm", MENDED)
def test_what_is_repaired_is_attributed_as_if_it_had_been_right(
    whenwhy: Command, meds: Path, tmp_path: Path, harm: str
) -> None:
    do, told, goes_on = MENDED[harm]
    expected = undisturbed_run()
    do(meds)
    status, printed, said = prepares(whenwhy, meds, tmp_path / "as-it-is")
    if goes_on:
        assert status == 0, said
        assert told in printed + said
    else:
        sentence = one_sentence((status, printed, said))
        assert told in sentence
        assert "add --repair" in sentence
        assert not (tmp_path / "as-it-is").exists()
    status, printed, said = prepares(whenwhy, meds, tmp_path / "repaired", "--repair")
    assert status == 0, said
    assert told in printed + said
    found = attributed(whenwhy, meds, tmp_path / "repaired", prepared().model)
    for name in expected.shards:
        assert found.read(name, ROWS).equals(expected.read(name, ROWS))
        mine, others = (stage.read(name, PREDICTION_ROWS).drop_columns(["source"]) for stage in (found, expected))
        assert mine.equals(others)


def test_numbers_that_are_none_are_told_and_attributed_as_no_number(
    whenwhy: Command, meds: Path, tmp_path: Path
) -> None:
    """NaN and infinities give the bytes of a data set that lacks these numbers."""
    missing = Path(shutil.copytree(meds, tmp_path / "missing"))
    strange_numbers(meds)
    without_numbers(missing)
    status, printed, said = prepares(whenwhy, meds, tmp_path / "strange")
    assert status == 0, said
    assert "numbers that are NaN or infinite, read as no number" in printed + said
    status, printed, said = prepares(whenwhy, missing, tmp_path / "none")
    assert status == 0, said
    assert "NaN" not in printed + said
    train(tmp_path / "none", tmp_path / "model", TrainSettings(hidden=8, epochs=1), INLINE)
    strange, none = (attributed(whenwhy, meds, tmp_path / name, tmp_path / "model") for name in ("strange", "none"))
    assert strange.content_sha256() == none.content_sha256()
    for name in strange.shards:
        assert pc.all(pc.is_finite(strange.read(name, ROWS)["attribution"])).as_py() in (True, None)


@pytest.mark.parametrize("do", [twice, at_the_same_times])
def test_what_is_taken_as_it_is_loses_no_prediction(
    whenwhy: Command, meds: Path, tmp_path: Path, do: Callable[[Path], None]
) -> None:
    do(meds)
    status, _, said = prepares(whenwhy, meds, tmp_path / "taken")
    assert status == 0, said
    train(tmp_path / "taken", tmp_path / "model", TrainSettings(hidden=8, epochs=1), INLINE)
    attributed(whenwhy, meds, tmp_path / "taken", tmp_path / "model")
