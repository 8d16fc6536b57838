"""A MEDS data set is checked row by row: every finding is counted, and repaired only when that is asked for."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from itertools import chain, pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import write_cohort
from conftest import INLINE
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events import event_scan
from whenwhy.events.event_scan import Chunk, planned_chunks, repeated, whole_subjects
from whenwhy.events.parquet_files import parquet_files
from whenwhy.events.quantiles import EdgeFinder, bin_edges
from whenwhy.events.sequence_directory import TABLE, VOCABULARY
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.events.validation import validation_lines
from whenwhy.shards import StageDirectory

DATA, OTHER = "data/a/0.parquet", "data/b/1.parquet"
LABELS, SPLITS = "labels/outcome/0.parquet", "metadata/subject_splits.parquet"
ASKED = PrepareSettings("x", strata=("sex",), bins=3, shard_size=64)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cohort that keeps every rule, without repeated rows."""
    folder = tmp_path_factory.mktemp("clean") / "meds"
    write_cohort(folder, patients=80, seed=5)
    for name in (DATA, OTHER):
        table = pq.read_table(folder / name)
        pq.write_table(ordered(table.group_by(table.column_names).aggregate([])), folder / name)
    codes = pc.unique(pa.concat_tables([pq.read_table(folder / n) for n in (DATA, OTHER)])["code"])
    pq.write_table(pa.table({"code": codes}), folder / "metadata" / "codes.parquet")
    return folder


def ordered(table: pa.Table) -> pa.Table:
    keys = [("subject_id", "ascending", "at_end"), ("time", "ascending", "at_start")]
    return table.take(pc.sort_indices(table, sort_keys=keys))


@pytest.fixture
def meds(clean: Path, tmp_path: Path) -> Path:
    shutil.copytree(clean, tmp_path / "meds")
    return tmp_path / "meds"


def changed(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def cast(name: str, kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(name), name, t[name].cast(kind))


def reversed_subject(table: pa.Table) -> pa.Table:
    """The rows of the subject with the most of them, last first."""
    frame = table.to_pandas()
    subject = frame.subject_id.value_counts().index[0]
    at = np.flatnonzero(frame.subject_id == subject)
    order = np.arange(len(frame))
    order[at] = at[::-1]
    return table.take(pa.array(order))


def torn_apart(table: pa.Table) -> pa.Table:
    """The first subject's dated rows at the file's end."""
    first = pc.equal(table["subject_id"], table["subject_id"][0])
    later = pc.and_(first, table["time"].is_valid())
    return pa.concat_tables([table.filter(pc.invert(later)), table.filter(later)])


def in_both_files(meds: Path) -> None:
    one, two = pq.read_table(meds / DATA), pq.read_table(meds / OTHER)
    mine = pc.equal(one["subject_id"], one["subject_id"][-1])
    dated = pc.and_(mine, one["time"].is_valid())
    pq.write_table(one.filter(pc.invert(dated)), meds / DATA)
    pq.write_table(pa.concat_tables([two, one.filter(dated)]), meds / OTHER)


def without_subject(table: pa.Table) -> pa.Table:
    row = table.slice(5, 1).to_pylist()[0]
    more = pa.Table.from_pylist([row | {"subject_id": None}, row | {"code": None}], schema=table.schema)
    return pa.concat_tables([table.slice(0, 9), more, table.slice(9)])


#: What is done to the data set; what `validate` must say; whether work goes on all the same.
HARMS: dict[str, tuple[Callable[[Path], None], str, bool]] = {
    "out of order": (lambda m: changed(m / DATA, reversed_subject), r"a/0\.parquet: [\d,]+ rows out of time order", False),
    "torn apart": (lambda m: changed(m / DATA, torn_apart), r"a/0\.parquet: 1 subjects whose rows are not", False),
    "in two files": (in_both_files, r"b/1\.parquet: 1 subjects that are in another file", False),
    "rows twice": (
        lambda m: changed(m / DATA, lambda t: ordered(pa.concat_tables([t, t.slice(10, 7)]))),
        r"a/0\.parquet: 7 rows that repeat .*left out.*work goes on", True,
    ),
    "no subject, no code": (lambda m: changed(m / DATA, without_subject), r"a/0\.parquet: 2 rows without", False),
    "time zone": (
        lambda m: changed(m / DATA, cast("time", pa.timestamp("us", "UTC"))),
        r"a/0\.parquet: column 'time' is timestamp\[us, tz=UTC\], not", False,
    ),
    "nanoseconds": (lambda m: changed(m / OTHER, cast("time", pa.timestamp("ns"))), r"b/1\.parquet: column 'time'", False),
    "doubles": (lambda m: changed(m / DATA, cast("numeric_value", pa.float64())), r"column 'numeric_value' is double", False),
    "small ids": (lambda m: changed(m / DATA, cast("subject_id", pa.int32())), r"column 'subject_id' is int32", False),
}  # fmt: skip


def records(stage: StageDirectory) -> list[dict]:
    rows = [row | {"source": ""} for name in stage.shards for row in stage.read(name, TABLE).to_pylist()]
    return sorted(rows, key=lambda r: (r["subject_id"], r["prediction_time"]))


@pytest.fixture(scope="module")
def undisturbed(clean: Path) -> StageDirectory:
    return prepare(clean, clean / "labels" / "outcome", clean.parent / "out", ASKED, INLINE)


@pytest.mark.parametrize("harm", HARMS)
def test_each_harm_is_told_and_repaired(meds: Path, undisturbed: StageDirectory, tmp_path: Path, harm: str) -> None:
    do, sentence, goes_on = HARMS[harm]
    do(meds)
    sound, lines = validation_lines(meds)
    assert sound == goes_on
    assert any(pd.Series([line]).str.contains(sentence).item() for line in lines), lines
    if not goes_on:
        with pytest.raises(UserError, match="add --repair"):
            prepare(meds, meds / "labels" / "outcome", tmp_path / "refused", ASKED, INLINE)
        assert not (tmp_path / "refused").exists()
    before = {file: file.read_bytes() for file in meds.rglob("*.parquet")}
    stage = prepare(meds, meds / "labels" / "outcome", tmp_path / "out", ASKED, INLINE, repair=True)
    assert records(stage) == records(undisturbed)
    assert stage.read(VOCABULARY, VOCABULARY).equals(undisturbed.read(VOCABULARY, VOCABULARY))
    assert {file: file.read_bytes() for file in meds.rglob("*.parquet")} == before  # the original is not touched
    assert not (tmp_path / "out" / "scratch").exists()


def test_a_clean_data_set_is_sound(clean: Path) -> None:
    sound, [line] = validation_lines(clean)
    assert sound
    rows = sum(pq.read_metadata(clean / name).num_rows for name in (DATA, OTHER))
    assert line == f"{clean} is sound, {rows:,} rows in 2 files."


def test_codes_without_a_description_and_numbers_that_are_none_are_counted(meds: Path) -> None:
    codes = pq.read_table(meds / "metadata" / "codes.parquet")
    changed(meds / "metadata" / "codes.parquet", lambda t: t.filter(pc.not_equal(t["code"], "lab")))
    assert codes.num_rows
    values = pq.read_table(meds / DATA)["numeric_value"].to_pylist()
    at = [i for i, v in enumerate(values) if v is not None][:3]
    for i, strange in zip(at, (float("nan"), float("inf"), float("-inf")), strict=True):
        values[i] = strange
    changed(meds / DATA, lambda t: t.set_column(3, "numeric_value", pa.array(values, pa.float32(), from_pandas=False)))
    sound, lines = validation_lines(meds)
    assert sound
    lab = [pc.sum(pc.equal(pq.read_table(meds / name)["code"], "lab")).as_py() for name in (DATA, OTHER)]
    text = "\n".join(lines)
    assert f"{DATA}: {lab[0]:,} rows with codes that codes.parquet does not describe" in text
    assert f"{OTHER}: {lab[1]:,} rows with codes that codes.parquet does not describe" in text
    assert f"{DATA}: 3 numbers that are NaN or infinite" in text


def test_a_zone_is_converted_to_utc(meds: Path, tmp_path: Path, undisturbed: StageDirectory) -> None:
    """The same instants told in another zone are the same record."""
    changed(
        meds / DATA,
        lambda t: t.set_column(1, "time", pc.assume_timezone(t["time"], "UTC").cast(pa.timestamp("us", "Asia/Tokyo"))),
    )
    stage = prepare(meds, meds / "labels" / "outcome", tmp_path / "out", ASKED, INLINE, repair=True)
    assert records(stage) == records(undisturbed)


def test_what_cannot_be_read_is_never_repaired(meds: Path, tmp_path: Path) -> None:
    changed(meds / DATA, cast("time", pa.string()))
    with pytest.raises(UserError, match=r"column 'time' is string"):
        prepare(meds, meds / "labels" / "outcome", tmp_path / "out", ASKED, INLINE, repair=True)
    assert not (tmp_path / "out").exists()


def prepared(meds: Path, out: Path, repair: bool = False) -> StageDirectory:
    return prepare(meds, meds / "labels" / "outcome", out, ASKED, INLINE, repair=repair)


def test_links_are_followed_and_hidden_names_left_aside(
    meds: Path, tmp_path: Path, undisturbed: StageDirectory
) -> None:
    (meds / "data" / "a").rename(tmp_path / "elsewhere")
    (meds / "data" / "a").symlink_to(tmp_path / "elsewhere")
    (meds / "labels" / "outcome").rename(tmp_path / "labels")
    (meds / "labels" / "outcome").mkdir()
    (meds / "labels" / "outcome" / "linked").symlink_to(tmp_path / "labels")
    checkpoints = meds / "data" / ".ipynb_checkpoints"
    checkpoints.mkdir()
    shutil.copy(meds / DATA, checkpoints / "0.parquet")
    (meds / "data" / "b" / "._1.parquet").write_bytes(b"resource fork")
    (meds / "labels" / "outcome" / ".0.parquet-abc.parquet").write_bytes(b"half-written")
    assert records(prepared(meds, tmp_path / "out")) == records(undisturbed)


def test_every_file_is_listed_once(tmp_path: Path) -> None:
    """Upper case, a folder that Spark wrote, a link in a circle, two links to one folder."""
    data = tmp_path / "data"
    for name in ("c/0.PARQUET", "x.parquet/part-0.parquet", "x.parquet/_SUCCESS", "c/.hidden/1.parquet"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).touch()
    (data / "c" / "circle").symlink_to(data)
    (data / "again").symlink_to(data / "c")
    assert [str(file.relative_to(data)) for file in parquet_files(data)] == [
        "again/0.PARQUET",
        "x.parquet/part-0.parquet",
    ]
    assert parquet_files(tmp_path / "nowhere") == []
    (data / "lost").symlink_to(tmp_path / "unmounted")
    with pytest.raises(UserError, match=r"lost is a link that leads nowhere \(.*unmounted\)"):
        parquet_files(data)


def test_columns_without_any_value_may_have_the_type_null(meds: Path, tmp_path: Path) -> None:
    def nothing(kind: pa.DataType) -> Callable[[pa.Table], pa.Table]:
        return lambda t: t.set_column(3, "numeric_value", pa.nulls(t.num_rows, kind))

    stages: dict[pa.DataType, list[StageDirectory]] = {}
    for kind in (pa.float32(), pa.null()):
        changed(meds / DATA, nothing(kind))
        assert validation_lines(meds)[0]
        stages[kind] = [prepared(meds, tmp_path / f"{kind}-{repair}", repair) for repair in (False, True)]
    for typed, stage in zip(*stages.values(), strict=True):
        assert records(stage) == records(typed)
        assert stage.read(VOCABULARY, VOCABULARY).equals(typed.read(VOCABULARY, VOCABULARY))


def test_a_file_of_undated_rows_may_have_times_of_the_type_null(meds: Path, tmp_path: Path) -> None:
    table = pq.read_table(meds / OTHER)
    undated = table.filter(table["time"].is_null())
    pq.write_table(undated, meds / OTHER)
    typed = prepared(meds, tmp_path / "typed")
    pq.write_table(undated.set_column(1, "time", pa.nulls(len(undated))), meds / OTHER)
    assert records(prepared(meds, tmp_path / "out")) == records(typed)


@pytest.mark.parametrize(
    ("file", "name", "kind", "value"),
    [
        (DATA, "subject_id", pa.uint64(), 2**63 + 5),
        (DATA, "time", pa.timestamp("s"), 2**45),
        (LABELS, "subject_id", pa.uint64(), 2**64 - 1),
        (LABELS, "prediction_time", pa.timestamp("ms"), -(2**60)),
        (SPLITS, "subject_id", pa.uint64(), 2**63),
    ],
)
def test_what_a_type_cannot_hold_is_never_wrapped_around(
    meds: Path, tmp_path: Path, file: str, name: str, kind: pa.DataType, value: int
) -> None:
    def beyond(table: pa.Table) -> pa.Table:
        column = pa.concat_arrays([pa.array([value], kind), table[name].cast(kind).combine_chunks().slice(1)])
        return table.set_column(table.column_names.index(name), name, column)

    changed(meds / file, beyond)
    with pytest.raises(UserError, match=rf"{Path(file).name}: column '{name}' is .* with values beyond"):
        prepared(meds, tmp_path / "out", repair=True)
    assert not (tmp_path / "out").exists()


def damaged(file: Path, column: str) -> None:
    """Every page of a column overwritten; what the file tells of itself stays."""
    told = pq.read_metadata(file).row_group(0)
    [chunk] = [c for c in map(told.column, range(told.num_columns)) if c.path_in_schema.split(".")[0] == column]
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    content = bytearray(file.read_bytes())
    content[begin : begin + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "column"),
    [
        (DATA, "subject_id"),
        (OTHER, "code"),
        (OTHER, "numeric_value"),
        (LABELS, "boolean_value"),
        ("metadata/codes.parquet", "code"),
        (SPLITS, "split"),
    ],
)
def test_a_damaged_page_gets_a_sentence(meds: Path, tmp_path: Path, file: str, column: str) -> None:
    damaged(meds / file, column)
    sentence = rf"{meds / file} is no readable Parquet file \(.*\): write it again"
    for repair in (False, True):
        with pytest.raises(UserError, match=sentence):
            prepared(meds, tmp_path / "out", repair)
        assert not (tmp_path / "out").exists()
    if file == LABELS:
        assert validation_lines(meds)[0]
    else:
        with pytest.raises(UserError, match=sentence):
            validation_lines(meds)


def test_codes_that_are_no_text_get_a_sentence(meds: Path, tmp_path: Path) -> None:
    """A flipped bit leaves a page readable; the text may be none."""

    def flipped(table: pa.Table) -> pa.Table:
        length, raw = len(table), pa.array([b"\xff\xfe"] * len(table))
        return table.set_column(2, "code", pa.Array.from_buffers(pa.string(), length, raw.buffers()))

    changed(meds / DATA, flipped)
    for repair in (False, True):
        with pytest.raises(UserError, match=r"a/0\.parquet is no readable Parquet file \(.*UTF8"):
            prepared(meds, tmp_path / "out", repair)


def test_a_column_name_that_is_no_text_gets_a_sentence(meds: Path) -> None:
    file = meds / "metadata" / "codes.parquet"
    pq.write_table(pq.read_table(file).append_column("remark", pa.array([""] * pq.read_metadata(file).num_rows)), file)
    file.write_bytes(file.read_bytes().replace(b"remark", b"rem\xb5rk"))
    with pytest.raises(UserError, match=r"codes\.parquet is no readable Parquet file"):
        validation_lines(meds)


@pytest.mark.parametrize("kind", [pa.int32(), pa.uint64(), pa.int16()])
def test_splits_of_any_integers_and_texts(
    meds: Path, tmp_path: Path, undisturbed: StageDirectory, kind: pa.DataType
) -> None:
    changed(meds / SPLITS, cast("subject_id", kind))
    changed(meds / SPLITS, cast("split", pa.dictionary(pa.int32(), pa.large_string())))
    assert records(prepared(meds, tmp_path / "out")) == records(undisturbed)


def test_a_column_of_codes_twice_gets_a_sentence(meds: Path) -> None:
    codes = pq.read_table(meds / "metadata" / "codes.parquet")
    for name in ("code", "description", "parent_codes"):
        column = codes["code"]
        named = {"code": "code"} if name == "code" else {"code": "code", "other": name}
        twice = pa.table([column] * (len(named) + 1), [*named.values(), name])
        pq.write_table(twice, meds / "metadata" / "codes.parquet")
        with pytest.raises(UserError, match=rf"codes\.parquet has the column '{name}' 2 times: keep one"):
            validation_lines(meds)


def test_labels_of_wrong_types_are_told_without_naming_a_data_set(meds: Path, tmp_path: Path) -> None:
    changed(meds / LABELS, cast("subject_id", pa.int32()))
    with pytest.raises(UserError, match=r"0\.parquet: column 'subject_id' is int32, not int64.*--repair") as told:
        prepared(meds, tmp_path / "out")
    assert "whenwhy validate" not in str(told.value)


def test_a_data_set_may_have_a_column_of_the_name_that_mended_copies_use(
    meds: Path, tmp_path: Path, undisturbed: StageDirectory
) -> None:
    for name in (DATA, OTHER):
        changed(meds / name, lambda t: t.append_column(event_scan.SOURCE, pa.array(range(t.num_rows))))
    for repair in (False, True):
        stage = prepared(meds, tmp_path / f"out-{repair}", repair)
        for shard in undisturbed.shards:
            assert stage.read(shard, TABLE).equals(undisturbed.read(shard, TABLE))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12),
    group=st.integers(1, 7),
    at_once=st.integers(1, 9),
    chunk=st.integers(1, 20),
)
def test_chunks_hold_whole_runs_and_every_row_once(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], group: int, at_once: int, chunk: int
) -> None:
    """However row groups, batches and chunks are cut, a subject's run is in one table, and no row is lost."""
    file = tmp_path_factory.mktemp("chunks") / "0.parquet"
    subject = np.repeat(np.arange(len(lengths)), lengths)
    table = pa.table(
        {
            "subject_id": subject,
            "time": pa.array(np.arange(len(subject)), pa.timestamp("us")),
            "code": pa.array([f"c{i % 3}" for i in range(len(subject))]),
            "numeric_value": pa.array(np.arange(len(subject)), pa.float32()),
        }
    )
    pq.write_table(table, file, row_group_size=group)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_scan, "ROWS_AT_ONCE", at_once)
        patch.setattr(event_scan, "ROWS_A_CHUNK", chunk)
        chunks = planned_chunks([file])
        assert chunks[-1].end == pq.read_metadata(file).num_row_groups
        tables = [part for one in chunks for part in whole_subjects(file, one)]
    runs = [pc.unique(part["subject_id"]).to_pylist() for part in tables]
    assert list(chain.from_iterable(runs)) == list(range(len(lengths)))
    assert np.concatenate([part["numeric_value"].to_numpy() for part in tables]).tolist() == list(range(len(subject)))


def test_a_file_without_rows_is_no_chunk_of_anything(tmp_path: Path) -> None:
    empty = pa.table({"subject_id": pa.array([], pa.int64()), "code": pa.array([], pa.string())})
    pq.write_table(empty, tmp_path / "0.parquet")
    assert [
        t.num_rows for c in planned_chunks([tmp_path / "0.parquet"]) for t in whole_subjects(tmp_path / "0.parquet", c)
    ] in ([], [0])
    assert Chunk(0, 0, 1) == Chunk(0, 0, 1)


def test_the_layout_of_files_and_the_number_of_workers_do_not_matter(
    clean: Path, undisturbed: StageDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One file or many, row groups of any size, chunks of a few rows, Ray or inline: the same records."""
    meds = tmp_path / "meds"
    shutil.copytree(clean, meds)
    table = pa.concat_tables([pq.read_table(meds / name) for name in (DATA, OTHER)])
    for name in (DATA, OTHER):
        (meds / name).unlink()
    pq.write_table(table, meds / "data" / "all.parquet", row_group_size=101)
    monkeypatch.setattr(event_scan, "ROWS_A_CHUNK", 300)
    monkeypatch.setattr(event_scan, "ROWS_AT_ONCE", 150)
    stage = prepare(meds, meds / "labels" / "outcome", tmp_path / "out", ASKED, INLINE)
    assert records(stage) == records(undisturbed)
    assert stage.read(VOCABULARY, VOCABULARY).equals(undisturbed.read(VOCABULARY, VOCABULARY))
    by_ray = prepare(clean, clean / "labels" / "outcome", tmp_path / "ray", ASKED, Workers(count=2))
    assert by_ray.content_sha256() == undisturbed.content_sha256()


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.sampled_from([0.0, 1.0, np.nan])))
)
def test_repeated_rows_are_counted_exactly(rows: list[tuple[int, int, int, float]]) -> None:
    run, time, code = (np.array([r[i] for r in rows], dtype=np.int64) for i in range(3))
    value = np.array([r[3] for r in rows], dtype=np.float32)
    distinct = {(*r[:3], str(r[3])) for r in rows}
    assert repeated(run, time, code, value) == len(rows) - len(distinct)


def test_repeated_rows_are_found_among_many() -> None:
    """So many rows that most meet another one's place by chance in the first round."""
    random = np.random.default_rng(0)
    rows = np.arange(1_500_000)
    rows[random.choice(len(rows), 1000, replace=False)] = 7
    run, time, code = rows // 10_000, rows % 10_000 // 100, rows % 100
    twice = len(rows) - len(np.unique(rows))
    assert twice >= 999
    assert repeated(run, time, code, np.full(len(rows), np.nan, np.float32)) == twice


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=200),
    st.integers(2, 12),
    st.lists(st.integers(1, 20), min_size=1, max_size=5),
)
def test_edges_found_in_pieces_are_those_of_the_whole(numbers: list[float], bins: int, cuts: list[int]) -> None:
    values, counts = np.unique(np.float32(numbers), return_counts=True)
    finder = EdgeFinder(len(values), int(counts.sum()), bins)
    begin, turn = 0, 0
    while begin < len(values):
        end = begin + cuts[turn % len(cuts)]
        finder.take(values[begin:end], counts[begin:end])
        begin, turn = end, turn + 1
    assert finder.edges().tolist() == bin_edges(values, counts, bins).tolist()


def test_undated_codes_are_listed_with_what_they_know(meds: Path, tmp_path: Path) -> None:
    """An undated code that follows from the outcome is told, with how often the outcome was positive."""
    labels = pq.read_table(meds / "labels" / "outcome").to_pandas()
    dead = set(labels[labels.boolean_value].subject_id)
    for name in (DATA, OTHER):
        table = pq.read_table(meds / name)
        mine = sorted(dead & set(table["subject_id"].to_pylist()))
        row = {"time": None, "code": "DIED_IN_HOSPITAL", "numeric_value": None}
        more = pa.Table.from_pylist([row | {"subject_id": s} for s in mine], schema=table.schema)
        pq.write_table(ordered(pa.concat_tables([table, more])), meds / name)
    stage = prepare(meds, meds / "labels" / "outcome", tmp_path / "out", ASKED, INLINE)
    told = {row["code"]: row for row in stage.entry("report").summary["undated"]}
    assert {"DIED_IN_HOSPITAL", "SEX//F", "SEX//M"} <= set(told)
    leak = told["DIED_IN_HOSPITAL"]
    splits = pd.read_parquet(meds / "metadata" / "subject_splits.parquet").set_index("subject_id").split
    train = labels[labels.subject_id.map(splits) == "train"]
    last = train.loc[train.groupby("subject_id").prediction_time.idxmax()]
    assert leak["n_train"] == int(last.subject_id.isin(dead).sum())
    assert leak["n_train_positive"] == int((last.subject_id.isin(dead) & last.boolean_value).sum())


def test_a_foreign_vocabulary_gives_its_own_ids_and_counts_what_it_lacks(clean: Path, tmp_path: Path) -> None:
    vocabulary = {"lab": 0, "drug": 1, "never recorded": 2, "SEX//F": 3}
    (tmp_path / "vocabulary.json").write_text(json.dumps(vocabulary))
    asked = PrepareSettings("x", shard_size=64, repeats="once")
    stage = prepare(
        clean, clean / "labels" / "outcome", tmp_path / "out", asked, INLINE, vocabulary=tmp_path / "vocabulary.json"
    )
    features = stage.read(VOCABULARY, VOCABULARY).to_pandas()
    assert features.code.tolist()[1:] == list(vocabulary)
    found = {i for row in records(stage) for i in row["event_id"] + row["static_id"]}
    assert found == {1, 2, 4}
    events = pd.concat([pd.read_parquet(clean / name) for name in (DATA, OTHER)])
    labels = pq.read_table(clean / "labels" / "outcome").to_pandas()
    latest = labels.groupby("subject_id").prediction_time.max()
    known = events[events.time.isna() | (events.time <= events.subject_id.map(latest))]
    lacking = known[~known.code.isin([*vocabulary, "MEDS_BIRTH"]) & known.subject_id.isin(latest.index)]
    assert stage.entry("report").summary["unknown"] == lacking.code.value_counts().to_dict()


def test_more_than_one_prediction_sees_its_own_past_alone(clean: Path, undisturbed: StageDirectory) -> None:
    rows = records(undisturbed)
    by_subject: dict[int, list[dict]] = {}
    for row in rows:
        by_subject.setdefault(row["subject_id"], []).append(row)
    assert any(len(of) > 1 for of in by_subject.values())
    for of in by_subject.values():
        for before, after in pairwise(of):
            passed = after["prediction_time"] - before["prediction_time"]
            assert passed > timedelta(0)
            assert len(after["event_id"]) >= len(before["event_id"])


@pytest.mark.parametrize("at", ["pathlib.Path.touch", "pathlib.Path.rename", "shutil.rmtree"])
def test_a_scratch_folder_that_was_half_made_or_half_removed_stops_nobody(
    clean: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The instants at which the folder of a killed call could be taken for somebody else's."""
    asked = PrepareSettings("outcome", shard_size=64)
    where = (clean, clean / "labels" / "outcome")
    out = tmp_path / "out"

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(at, killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(*where, out, asked, INLINE)
    assert list(out.iterdir())
    stage = prepare(*where, out, asked, INLINE)
    assert stage.content_sha256() == prepare(*where, tmp_path / "undisturbed", asked, INLINE).content_sha256()
    assert {item.name for item in out.iterdir()} == {item.name for item in (tmp_path / "undisturbed").iterdir()}


@pytest.mark.parametrize("finished", [0, 1, 6])
def test_killed_anywhere_it_continues_to_the_same_bytes(clean: Path, tmp_path: Path, finished: int) -> None:
    """SIGKILL once the scan has begun, or some shards are written: the next call ends as if nothing had been."""
    command = [
        sys.executable, "-m", "whenwhy", "prepare", str(clean), "--labels", str(clean / "labels" / "outcome"),
        "--shard-size", "4", "--strata", "sex", "--out", str(tmp_path / "out"), "--inline",
    ]  # fmt: skip
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(20_000):
        entries = len(list((tmp_path / "out" / "entries").glob("g0-*.json")))
        if entries >= finished and (tmp_path / "out" / "scratch").exists():
            break
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    done = {file: file.stat().st_mtime_ns for file in (tmp_path / "out").glob("entries/g0-*.json")}
    asked = PrepareSettings("outcome", strata=("sex",), shard_size=4)
    undisturbed = prepare(clean, clean / "labels" / "outcome", tmp_path / "undisturbed", asked, INLINE)
    assert len(done) < len(undisturbed.shards)
    subprocess.run(command, check=True, capture_output=True)
    stage = StageDirectory.open(tmp_path / "out")
    assert stage.run_id == undisturbed.run_id
    assert stage.content_sha256() == undisturbed.content_sha256()
    assert all(file.stat().st_mtime_ns == modified for file, modified in done.items())
    assert not (tmp_path / "out" / "scratch").exists()
