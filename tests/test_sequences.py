"""Sequences: every record equals a slow reading of the files, and never knows the future."""

from __future__ import annotations

import math
import shutil
from datetime import timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import EVENTS, write_cohort
from conftest import INLINE, SmallRun
from replicas.sequences import feature_value, read_cohort, record_of
from whenwhy.errors import UserError
from whenwhy.events.cohort import shard_of
from whenwhy.events.feature_values import Vocabulary
from whenwhy.events.quantiles import bin_edges
from whenwhy.events.sequence_batch import EVENTS as EVENT_STREAM
from whenwhy.events.sequence_batch import STATIC, Sequences
from whenwhy.events.sequences import TABLE, VOCABULARY, PrepareSettings, prepare
from whenwhy.events.strata import require_strata
from whenwhy.models.training import load_sequences
from whenwhy.shards import StageDirectory


def features_of(stage: StageDirectory) -> pd.DataFrame:
    return stage.read(VOCABULARY, VOCABULARY).to_pandas()


def rows_of(stage: StageDirectory) -> list[dict]:
    return [row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()]


def same(found: list, expected: list) -> bool:
    return len(found) == len(expected) and all(
        i == j and (v == w or (v is None and math.isnan(w))) for (i, v), (j, w) in zip(found, expected, strict=True)
    )


def test_every_record_equals_a_slow_reading(small_run: SmallRun) -> None:
    stage = StageDirectory.open(small_run.sequences)
    events, labels = read_cohort(small_run.meds)
    features = features_of(stage)
    rows = rows_of(stage)
    assert len(rows) == len(labels)
    expected_label = {(r.subject_id, r.prediction_time): str(r.boolean_value).lower() for r in labels.itertuples()}
    for row in rows:
        steps, static = record_of(events, features, row["subject_id"], row["prediction_time"])
        assert row["label"] == expected_label[row["subject_id"], row["prediction_time"]]
        assert row["step_minutes"] == [minutes for minutes, _ in steps]
        assert same(
            sorted(zip(row["static_id"], row["static_value"], strict=True), key=lambda x: (x[0], x[1] or 0)), static
        )
        for number, (_, values) in enumerate(steps):
            found = [
                (i, v)
                for s, i, v in zip(row["event_step"], row["event_id"], row["event_value"], strict=True)
                if s == number
            ]
            assert same(found, values), (row["subject_id"], number)


def test_strata_are_those_at_the_prediction(small_run: SmallRun) -> None:
    events, _ = read_cohort(small_run.meds)
    for row in rows_of(StageDirectory.open(small_run.sequences))[::7]:
        own = events[events.subject_id == row["subject_id"]]
        strata = dict(row["strata"])
        assert f"SEX//{strata['sex']}" in set(own.code)
        born = own[own.code == "MEDS_BIRTH"].time.iloc[0]
        age = (row["prediction_time"] - born).days // 365.25
        low = 90 if strata["age_band"] == "90+" else int(strata["age_band"].split("-")[0])
        assert low - 1 <= age <= (200 if low == 90 else low + 10)


@pytest.mark.parametrize("name", ["class", "Correct", "label", "a=b"])
def test_strata_are_not_called_as_cohorts_of_a_store_are(name: str) -> None:
    with pytest.raises(UserError, match=f"A stratum cannot be called '{name}'"):
        require_strata([name], [f"{name}//yes"], [], "the data")


def test_edges_and_counts_come_from_training_patients_alone(small_run: SmallRun) -> None:
    stage = StageDirectory.open(small_run.sequences)
    events, labels = read_cohort(small_run.meds)
    splits = pd.read_parquet(small_run.meds / "metadata" / "subject_splits.parquet").set_index("subject_id").split
    latest = labels.groupby("subject_id").prediction_time.max()
    known = events[
        events.subject_id.map(splits).eq("train")
        & (events.time.isna() | (events.time <= events.subject_id.map(latest)))
        & ~events.code.isin(["MEDS_BIRTH", "MEDS_DEATH"])
    ]
    features = features_of(stage)
    for row in features[(features.feature_value_id > 0) & (features.code != "AGE")].itertuples():
        own = known[known.code == row.code]
        inside = (
            own[own.numeric_value.isna()]
            if pd.isna(row.bin)
            else own[(own.numeric_value >= row.low) & (own.numeric_value < row.high)]
        )
        assert (row.n_train, row.n_train_patients) == (len(inside), inside.subject_id.nunique()), row
    lab = known[known.code == "lab"].numeric_value.to_numpy()
    edges = features[(features.code == "lab") & (features.bin > 0)].low.to_numpy()
    assert len(edges) == 3
    assert np.allclose([(lab < edge).mean() for edge in edges], [0.25, 0.5, 0.75], atol=0.01)
    # Few distinct values get a bin each.
    assert features[features.code == "count"].low.to_list() == [-math.inf, 1, 2]


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 1000), hours=st.integers(1, 10_000))
def test_planted_future_events_change_nothing(tmp_path: Path, seed: int, hours: int) -> None:
    """Events after a patient's last prediction leave no trace: not in records, edges, counts or strata."""
    root = tmp_path / f"{seed}-{hours}"
    shutil.rmtree(root, ignore_errors=True)
    write_cohort(root / "meds", patients=40, seed=seed)
    asked = PrepareSettings("x", strata=("sex", "age_band"), bins=3, shard_size=32)
    prepare(root / "meds", root / "meds" / "labels" / "outcome", root / "before", asked, INLINE)
    _, labels = read_cohort(root / "meds")
    latest = labels.groupby("subject_id").prediction_time.max()
    for file in (root / "meds" / "data").rglob("*.parquet"):
        table = pq.read_table(file)
        planted = [
            {"subject_id": s, "time": t + timedelta(hours=hours), "code": code, "numeric_value": value}
            for s, t in latest[latest.index.isin(table["subject_id"].to_pylist())].items()
            for code, value in (("lab", 1e6), ("leak", None), ("MEDS_DEATH", None))
        ]
        both = pa.concat_tables([table, pa.Table.from_pylist(planted, schema=EVENTS)])
        keys = [("subject_id", "ascending", "at_end"), ("time", "ascending", "at_start")]
        pq.write_table(both.take(pc.sort_indices(both, sort_keys=keys)), file)
    prepare(root / "meds", root / "meds" / "labels" / "outcome", root / "after", asked, INLINE)
    before, after = (StageDirectory.open(root / name) for name in ("before", "after"))
    assert before.content_sha256() == after.content_sha256()
    assert before.run_id != after.run_id  # yet the inputs are known to differ


def test_the_order_of_rows_and_files_does_not_matter(tmp_path: Path) -> None:
    """Shuffled into one file, a data set breaks the rules of MEDS; repaired, it gives the same records."""
    write_cohort(tmp_path / "meds", patients=60, seed=3)
    asked = PrepareSettings("x", bins=3, shard_size=32)
    labels = tmp_path / "meds" / "labels" / "outcome"
    before = prepare(tmp_path / "meds", labels, tmp_path / "before", asked, INLINE, repair=True)
    files = sorted((tmp_path / "meds" / "data").rglob("*.parquet"))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    for file in files:
        file.unlink()
    pq.write_table(table.take(np.random.default_rng(0).permutation(table.num_rows)), files[0])
    with pytest.raises(UserError, match=r"rows out of time order within .* add --repair"):
        prepare(tmp_path / "meds", labels, tmp_path / "after", asked, INLINE)
    assert not (tmp_path / "after").exists()
    after = prepare(tmp_path / "meds", labels, tmp_path / "after", asked, INLINE, repair=True)
    assert [row | {"source": ""} for row in rows_of(before)] == [row | {"source": ""} for row in rows_of(after)]
    assert {row["source"] for row in rows_of(before)} == {"a/0", "b/1"}
    assert {row["source"] for row in rows_of(after)} == {"a/0"}
    assert features_of(before).equals(features_of(after))


def test_only_the_most_recent_steps_are_kept_and_counted(small_run: SmallRun, tmp_path: Path) -> None:
    asked = PrepareSettings("x", strata=("age_band", "sex"), bins=4, shard_size=128, max_steps=3)
    short = prepare(small_run.meds, small_run.labels, tmp_path / "short", asked, INLINE)
    whole = StageDirectory.open(small_run.sequences)
    left_out = 0
    for row, full in zip(rows_of(short), rows_of(whole), strict=True):
        assert row["step_minutes"] == full["step_minutes"][-3:]
        kept = [s >= len(full["step_minutes"]) - 3 for s in full["event_step"]]
        assert row["event_id"] == [i for i, k in zip(full["event_id"], kept, strict=True) if k]
        assert all(0 <= s < 3 for s in row["event_step"])
        left_out += kept.count(False)
    assert left_out == sum(short.entry(shard).summary["n_truncated"] for shard in short.shards) > 0


def test_codes_can_be_left_out(small_run: SmallRun, tmp_path: Path) -> None:
    asked = PrepareSettings("x", bins=4, without=("drug", "AGE"))
    stage = prepare(small_run.meds, small_run.labels, tmp_path / "out", asked, INLINE)
    codes = set(features_of(stage).code)
    assert not codes & {"drug", "AGE"}
    assert "lab" in codes
    with pytest.raises(UserError, match=r"no code 'drugs' .* did you mean 'drug'"):
        prepare(small_run.meds, small_run.labels, tmp_path / "other", PrepareSettings("x", without=("drugs",)), INLINE)
    assert not (tmp_path / "other").exists()


def test_a_patient_lives_in_one_shard(small_run: SmallRun) -> None:
    stage = StageDirectory.open(small_run.sequences)
    for number, shard in enumerate(stage.shards):
        for subject in stage.read(shard, TABLE, ["subject_id"])["subject_id"].to_pylist():
            assert shard_of(np.array([subject]), len(stage.shards)).tolist() == [number]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=200),
    st.integers(2, 12),
)
def test_bins_hold_like_shares_and_equal_values_share_one(numbers: list[float], bins: int) -> None:
    values, counts = np.unique(np.float32(numbers), return_counts=True)
    edges = bin_edges(values, counts, bins)
    assert len(edges) < bins
    assert np.all(np.diff(edges) > 0)
    assert np.isin(edges, values).all()
    inside = np.searchsorted(edges, values, side="right")
    assert len(np.unique(inside)) == len(edges) + 1  # no bin is empty
    if len(values) <= bins:
        assert len(edges) == len(values) - 1
    else:
        # A bin holds more than its share only by the count of its largest tie.
        for number in range(len(edges) + 1):
            held = counts[inside == number]
            assert held.sum() - held.max() <= counts.sum() / bins + 1e-9 or len(held) == 1


def test_ids_equal_a_search_by_hand(small_run: SmallRun) -> None:
    table = StageDirectory.open(small_run.sequences).read(VOCABULARY, VOCABULARY)
    vocabulary, features = Vocabulary(table), table.to_pandas()
    random = np.random.default_rng(1)
    code = random.choice([*vocabulary.codes.to_pylist(), "never seen"], 500)
    edges = features.low[np.isfinite(features.low)].to_numpy()
    value = np.where(random.random(500) < 0.3, np.nan, random.choice([*edges, -9.0, 0.5], 500)).astype(np.float32)
    expected = [feature_value(features, c, float(v)) for c, v in zip(code, value, strict=True)]
    assert vocabulary.ids(pa.array(code), value).tolist() == [-1 if i is None else i for i in expected]


def test_records_without_any_number_or_event_have_ids(small_run: SmallRun) -> None:
    vocabulary = Vocabulary(StageDirectory.open(small_run.sequences).read(VOCABULARY, VOCABULARY))
    drug = vocabulary.table["code"].to_pylist().index("drug")
    assert vocabulary.ids(pa.array(["drug", "SEX//X"]), np.float32([np.nan, np.nan])).tolist() == [drug, -1]
    assert vocabulary.ids(pa.array([], pa.string()), np.float32([])).tolist() == []


def test_shards_may_be_as_small_as_a_patient(tmp_path: Path) -> None:
    meds = tmp_path / "meds"
    write_cohort(meds, patients=50, seed=7)
    small, large = (
        prepare(
            meds,
            meds / "labels" / "outcome",
            tmp_path / str(size),
            PrepareSettings("x", strata=("age_band", "sex"), bins=4, shard_size=size),
            INLINE,
        )
        for size in (1, 128)
    )
    assert len(small.shards) == sum(1 for _ in rows_of(large)) > len(large.shards)
    by_key = [{(r["subject_id"], r["prediction_time"]): r for r in rows_of(s)} for s in (small, large)]
    assert by_key[0] == by_key[1]


def test_batches_hold_the_table(small_run: SmallRun) -> None:
    sequences = load_sequences(StageDirectory.open(small_run.sequences))
    rows = sequences.table.to_pylist()
    buckets = sequences.buckets(np.arange(len(sequences)), patients=32, steps=256)
    assert sorted(np.concatenate(buckets).tolist()) == list(range(len(sequences)))
    for bucket in buckets:
        batch = sequences.batch(bucket)
        assert len(batch) <= 32
        assert len(batch) == 1 or len(batch) * batch.n_steps <= 256
        for name, step, ids in ((EVENT_STREAM, "event_step", "event_id"), (STATIC, None, "static_id")):
            bags = batch.streams[name]
            ends = [*bags.offsets.tolist()[1:], len(bags.ids)]
            found = [bags.ids[b:e].tolist() for b, e in zip(bags.offsets.tolist(), ends, strict=True)]
            expected = []
            for at in bucket:
                if step is None:
                    expected.append(rows[at][ids])
                else:
                    expected += [
                        [i for s, i in zip(rows[at][step], rows[at][ids], strict=True) if s == number]
                        for number in range(batch.n_steps)
                    ]
            assert found == expected


def test_an_empty_table_makes_no_batch() -> None:
    from whenwhy.schema import SEQUENCES

    sequences = Sequences(SEQUENCES.empty_table())
    assert sequences.buckets(np.arange(0), patients=4, steps=4) == []
