"""Records of every kind of step equal a slow making of each, event by event."""

from __future__ import annotations

import json
import math
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cohort import EVENTS, LABELS
from conftest import INLINE
from replicas.records import Rules, slow_record
from whenwhy.errors import UserError
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_directory import TABLE, VOCABULARY
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.events.sorted_numbers import rows_with
from whenwhy.shards import StageDirectory

START = datetime(2021, 3, 1)
Event = tuple[datetime, str, float | None]


def write_meds(folder: Path, patients: dict[int, list[Event]], ends: dict[int, list[datetime]]) -> None:
    """A MEDS data set of these patients and their predictions; labels take turns."""
    for part in ("data", "metadata", "labels"):
        (folder / part).mkdir(parents=True)
    rows = [
        {"subject_id": s, "time": time, "code": code, "numeric_value": number}
        for s, events in patients.items()
        for time, code, number in sorted(events, key=lambda e: (e[0] is not None, e[0] or START))
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=EVENTS), folder / "data" / "0.parquet")
    labels = [(s, end) for s, times in ends.items() for end in times]
    pq.write_table(
        pa.Table.from_pylist(
            [
                {"subject_id": s, "prediction_time": end, "boolean_value": at % 2 == 0}
                for at, (s, end) in enumerate(labels)
            ],
            schema=LABELS,
        ),
        folder / "labels" / "0.parquet",
    )
    splits = pa.table({"subject_id": list(patients), "split": ["train"] * len(patients)})
    pq.write_table(splits, folder / "metadata" / "subject_splits.parquet")
    (folder / "metadata" / "dataset.json").write_text(json.dumps({"dataset_name": "made up"}))


events_of_a_patient = st.lists(
    st.tuples(
        st.integers(0, 60 * 24 * 6).map(lambda m: START + timedelta(minutes=m // 7 * 7, seconds=m % 3)),
        st.sampled_from(["lab", "drug", "mixed", "ADMISSION//ED", "ADMISSION//WARD", "index"]),
        st.sampled_from([None, 0.5, 1.0, 1.5, 2.0]),
    ).map(lambda e: (e[0], e[1], {"lab": e[2] or 3.0, "mixed": e[2]}.get(e[1]))),
    max_size=25,
)
rules = st.builds(
    Rules,
    steps=st.sampled_from(["event", "visit", "6h", "1d", "1.5h"]),
    visit_gap=st.sampled_from([0.5, 12.0]),
    anchor=st.sampled_from(["prediction", "admission", "index"]),
    history_hours=st.sampled_from([None, 50.0]),
    max_steps=st.sampled_from([3, 1000]),
    repeats=st.sampled_from(["all", "once", "last"]),
    carry=st.sampled_from([(), ("lab",), ("lab", "mixed")]),
    carry_hours=st.sampled_from([None, 20.0]),
    since_last=st.sampled_from([(), ("lab", "drug")]),
    not_measured=st.sampled_from([(), (("lab", 12.0), ("drug", 30.0))]),
    numbers=st.sampled_from([(), ("lab",), ("lab", "mixed")]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    patients=st.lists(events_of_a_patient, min_size=2, max_size=4),
    hours=st.lists(st.integers(20, 200), min_size=4, max_size=4),
    asked=rules,
)
def test_every_record_equals_the_slow_one(
    tmp_path_factory: pytest.TempPathFactory, patients: list[list[Event]], hours: list[int], asked: Rules
) -> None:
    folder = tmp_path_factory.mktemp("records")
    # One patient has everything, so that each code is known to the vocabulary.
    whole = [(START, code, 1.0) for code in ("lab", "mixed")]
    whole += [(START, c, None) for c in ("drug", "mixed", "index", "ADMISSION//ED", "ADMISSION//WARD")]
    of = dict(enumerate([whole, *patients], start=1))
    ends = {s: [START + timedelta(hours=hours[s % 4])] for s in of}
    ends[2] = sorted({START + timedelta(hours=h) for h in (hours[0], hours[1] + 1)})
    write_meds(folder / "meds", of, ends)
    stage = prepare(
        folder / "meds",
        folder / "meds" / "labels",
        folder / "out",
        PrepareSettings(
            "x", bins=3, rare_below=1, steps=asked.steps, visit_gap_hours=asked.visit_gap, anchor=asked.anchor,
            history_hours=asked.history_hours, max_steps=asked.max_steps, repeats=asked.repeats, carry=asked.carry,
            carry_hours=asked.carry_hours if asked.carry else None, since_last=asked.since_last,
            not_measured=asked.not_measured, numbers=asked.numbers, shard_size=2,
        ),
        INLINE,
    )  # fmt: skip
    features = stage.read(VOCABULARY, VOCABULARY).to_pandas()
    rows = [row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()]
    assert sorted((r["subject_id"], r["prediction_time"]) for r in rows) == [(s, e) for s in ends for e in ends[s]]
    for row in rows:
        steps, values, anchor, history = slow_record(of[row["subject_id"]], features, row["prediction_time"], asked)
        assert row["step_minutes"] == steps
        assert (row["anchor_minutes"], row["history_minutes"]) == (anchor, history)
        columns = (row[name] for name in ("event_step", "event_id", "event_minutes", "event_value"))
        found = [(s, i, m, None if v is None else round(v, 3)) for s, i, m, v in zip(*columns, strict=True)]
        expected = [(v.step, v.id, v.minutes, None if v.number is None else round(v.number, 3)) for v in values]
        assert Counter(found) == Counter(expected)
        assert [f[:2] for f in found] == sorted(f[:2] for f in found)


def test_filled_values_are_marked_and_never_look_recorded(tmp_path: Path) -> None:
    of = {s: [(START + timedelta(hours=h), "lab", 1.0 + h) for h in range(0, 20, 5)] for s in range(1, 9)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=24)] for s in of})
    settings_ = PrepareSettings("x", rare_below=1, steps="1h", carry=("all",))
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", settings_, INLINE)
    features = stage.read(VOCABULARY, VOCABULARY).to_pandas().set_index("feature_value_id")
    for row in (row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()):
        kinds = [features.kind[i] for i in row["event_id"]]
        assert kinds.count("recorded") == 4
        assert kinds.count("carried forward") == len(row["step_minutes"]) - 4 == 21
        filled = [i for i in row["event_id"] if features.kind[i] == "carried forward"]
        assert {features.code[i] for i in filled} == {"lab (carried forward)"}
    assert stage.entry(stage.shards[0]).summary["n_derived"] > 0


def test_numbers_enter_as_weights_beside_their_bins(tmp_path: Path) -> None:
    """A middle half is the median, a spread half of the way between the quantiles of a standard deviation."""
    numbers = {s: [float(s), float(10 * s)] for s in range(1, 41)}
    numbers[1][1] = 1e6
    of = {
        s: [(None, "height", 100.0 + s)] + [(START + timedelta(hours=h), "lab", n) for h, n in enumerate(own)]
        for s, own in numbers.items()
    }
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=5)] for s in of})
    settings_ = PrepareSettings("x", rare_below=1, steps="1h", carry=("lab",), numbers=("lab", "height"))
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", settings_, INLINE)
    features = stage.read(VOCABULARY, VOCABULARY).to_pandas().set_index("feature_value_id")
    rows = [row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()]
    training = {row["subject_id"] for row in rows if row["split"] == "train"}
    of_training = {
        "lab": sorted(n for s in training for n in numbers[s]),
        "height": sorted(100.0 + s for s in training),
    }
    spread = {}
    for code, own in of_training.items():
        low, middle, high = (own[math.ceil(share * len(own)) - 1] for share in (0.158655, 0.5, 0.841345))
        spread[code] = (middle, (high - low) / 2)
    seen = Counter()
    for row in rows:
        for name in ("event", "static"):
            for at, value, weight in zip(row[f"{name}_id"], row[f"{name}_value"], row[f"{name}_weight"], strict=True):
                if features.kind[at] != "number":
                    assert weight == 1
                    continue
                seen[features.code[at]] += 1
                middle, scale = spread[features.code[at].split(" ")[0]]
                assert weight == pytest.approx(min(max((value - middle) / scale, -4), 4), rel=1e-6)
    assert set(seen) == {"lab (number)", "lab (carried forward) (number)", "height (number)"}
    sequences = Sequences(stage.read(stage.shards[0], TABLE))
    batch = sequences.batch(np.arange(len(sequences)))
    assert (batch.streams["events"].weights.numpy() == sequences.event_weight[batch.streams["events"].at]).all()
    assert len(np.unique(batch.keys)) == len(sequences)


def test_asked_in_vain(tmp_path: Path) -> None:
    of: dict[int, list[Event]] = {s: [(START, "lab", float(s))] for s in range(1, 9)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=24)] for s in of})
    for asked, sentence in (
        ({"steps": "monthly"}, "--steps is 'monthly'"),
        ({"steps": "visit", "visit_gap_hours": 0.0}, "--visit-gap"),
        ({"repeats": "twice"}, "no way with repeated values 'twice'"),
        ({"anchor": "labs"}, "did you mean 'lab'"),
        ({"anchor": "admission"}, "no code that admits"),
        ({"carry": ("labb",)}, "did you mean 'lab'"),
        ({"carry": ("all",)}, "--steps of a fixed"),
        ({"carry_hours": 3.0}, "name their codes by --carry"),
        ({"not_measured": (("lab", -1.0),)}, "give a number above 0"),
        ({"since_last": ("lba",)}, "did you mean 'lab'"),
        ({"history_hours": 0.0}, "--history-hours is 0"),
        ({"cut_offs": {"lag": [1.0]}}, "did you mean 'lab'"),
        ({"bins": 1}, "at least 2 bins"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare(
                tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", PrepareSettings("x", **asked), INLINE
            )
        assert not (tmp_path / "out").exists(), asked


def test_too_many_carried_values_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    of = {s: [(START, "lab", 1.0)] for s in range(1, 5)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=24)] for s in of})
    monkeypatch.setattr("whenwhy.events.derived_features.MOST_CARRIED", 10)
    asked = PrepareSettings("x", rare_below=1, steps="1h", carry=("lab",))
    with pytest.raises(UserError, match="Carrying values forward would make"):
        prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", asked, INLINE)


def test_the_empty_hours_of_a_stay_are_steps(tmp_path: Path) -> None:
    """48 hourly bins from admission, whatever was recorded in them; what is exactly at the end is in the last."""
    of = {1: [(START, "ADMISSION", None), (START + timedelta(hours=48), "lab", 1.0)], 2: [(START, "ADMISSION", None)]}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=48)] for s in of})
    asked = PrepareSettings("x", rare_below=1, steps="1h", anchor="admission")
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", asked, INLINE)
    [one, two] = sorted(
        (row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()), key=lambda r: r["subject_id"]
    )
    assert one["step_minutes"] == two["step_minutes"] == [60 * h for h in range(47, -1, -1)]
    assert one["event_step"] == [0, 47]
    assert one["history_minutes"] == one["anchor_minutes"] == 48 * 60


def features_of(stage: StageDirectory) -> pd.DataFrame:
    return stage.read(VOCABULARY, VOCABULARY).to_pandas()


def test_equal_numbers_share_a_bin_though_cut_offs_have_one_decimal(tmp_path: Path) -> None:
    """A number that equals a cut-off lies above it: as float64 the edge 0.7 would lie above the float32 0.7."""
    cuts = [round(n / 10, 1) for n in range(1, 40)]
    of = {s: [(START, "lab", float(np.float32(c)))] for s, c in enumerate(cuts, start=1)}
    misplaced = [c for c in cuts if float(np.float32(c)) < c]
    assert len(misplaced) > 10  # the trap is real
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=1)] for s in of})
    asked = PrepareSettings("x", rare_below=1, cut_offs={"lab": cuts})
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", asked, INLINE)
    features = features_of(stage)
    low = features[features.code == "lab"].set_index("feature_value_id").low
    for row in (row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()):
        assert low[row["event_id"][0]] == np.float32(cuts[row["subject_id"] - 1])
    assert features[features.code == "lab"].n_train.tolist() == [0, *[1] * 39]


def test_rare_codes_and_bins_are_folded_and_said(tmp_path: Path) -> None:
    of: dict[int, list[Event]] = {}
    for s in range(1, 41):
        of[s] = [(START, "LAB//common", float(s % 4)), (START, "plain", None)]
    of[1] += [(START, "LAB//seldom", 1.0), (START, "odd", None)]
    of[2] += [(START, "LAB//never again", 2.0), (START, "LAB//common", 9.0)]
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=1)] for s in of})
    asked = PrepareSettings("x", rare_below=5)
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", asked, INLINE)
    features = features_of(stage)
    assert features.code.tolist()[1:] == [*["LAB (rare)"], *["LAB//common"] * 4, "other codes (rare)", "plain"]
    assert features.kind[1] == "rare"
    common = features[features.code == "LAB//common"]
    assert common.low.tolist() == [-math.inf, 1, 2, 3]  # the bin of 9, one patient, joined that of 3
    assert common.n_train_patients.tolist() == [10, 10, 10, 11]
    assert common.n_train.tolist() == [10, 10, 10, 11]
    assert features[features.code == "LAB (rare)"].n_train.item() == 2
    report = stage.entry("report").summary["notes"]
    assert report["rare_codes"] == {
        "LAB//seldom": "LAB (rare)",
        "LAB//never again": "LAB (rare)",
        "odd": "other codes (rare)",
    }
    assert report["rare_bins"] == 1


def stays(tmp_path: Path, more: dict[int, list[Event]], **asked: object) -> StageDirectory:
    """Eight patients with an admission of their own kind, and more events of some."""
    of = {
        s: [(START, "ADMISSION//ED", None), (START + timedelta(hours=s), "lab", float(s)), *more.get(s, [])]
        for s in range(1, 9)
    }
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=24)] for s in of})
    settings_ = PrepareSettings("x", rare_below=1, **asked)  # type: ignore[arg-type]
    return prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", settings_, INLINE)


def test_admissions_of_the_future_do_not_decide_which_admissions_count(tmp_path: Path) -> None:
    before = stays(tmp_path / "a", {}, anchor="admission", steps="6h")
    later = (START + timedelta(hours=90), "HOSPITAL_ADMISSION//x", None)
    after = stays(tmp_path / "b", {s: [later] for s in range(1, 9)}, anchor="admission", steps="6h")
    assert before.content_sha256() == after.content_sha256()


def test_codes_that_are_left_out_still_anchor_and_tell_cohorts_apart(tmp_path: Path) -> None:
    more: dict[int, list[Event]] = {s: [(None, f"SEX//{'FM'[s % 2]}", None)] for s in range(1, 9)}  # type: ignore[list-item]
    of = {s: [*more[s], (START, "ADMISSION", None), (START + timedelta(hours=s), "lab", 1.0)] for s in range(1, 9)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=24)] for s in of})
    asked = PrepareSettings(
        "x", rare_below=1, strata=("sex",), without=("SEX//F", "SEX//M", "ADMISSION"), anchor="admission", steps="6h"
    )
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", asked, INLINE)
    assert set(features_of(stage).code) == {"(everything absent)", "lab"}
    rows = [row for shard in stage.shards for row in stage.read(shard, TABLE).to_pylist()]
    assert {(r["subject_id"], *dict(r["strata"]).values()) for r in rows} == {(s, "FM"[s % 2]) for s in range(1, 9)}
    assert all(row["anchor_minutes"] == 24 * 60 and row["static_id"] == [] for row in rows)
    assert stage.entry("report").summary["unknown"] == {}


def test_a_code_that_takes_the_name_of_the_age_is_refused(tmp_path: Path) -> None:
    of: dict[int, list[Event]] = {
        s: [(START - timedelta(days=9000), "MEDS_BIRTH", None), (START, "AGE", 1.0), (START, "lab", 1.0)]
        for s in range(1, 5)
    }
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=24)] for s in of})
    with pytest.raises(UserError, match="the code 'AGE', which is the name of the age"):
        prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", PrepareSettings("x"), INLINE)
    assert not (tmp_path / "out").exists()


def test_what_lies_further_back_than_minutes_can_tell_is_left_out_and_counted(tmp_path: Path) -> None:
    of: dict[int, list[Event]] = {s: [(START, "lab", 1.0), (START, "drug", None)] for s in range(1, 5)}
    ends = {s: [START + timedelta(hours=1)] for s in of} | {4: [datetime(9999, 12, 31)]}
    write_meds(tmp_path / "meds", of, ends)
    asked = PrepareSettings("x", rare_below=1)
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", asked, INLINE)
    rows = {r["subject_id"]: r for shard in stage.shards for r in stage.read(shard, TABLE).to_pylist()}
    assert rows[4]["event_id"] == [] != rows[1]["event_id"]
    assert sum(stage.entry(shard).summary["n_too_old"] for shard in stage.shards) == 2


@pytest.mark.parametrize("place", ["precious", "meds itself", "inside meds", "around meds"])
def test_other_peoples_folders_are_never_taken(tmp_path: Path, place: str) -> None:
    of: dict[int, list[Event]] = {s: [(START, "lab", 1.0)] for s in range(1, 5)}
    meds = tmp_path / "around" / "meds"
    write_meds(meds, of, {s: [START + timedelta(hours=1)] for s in of})
    (tmp_path / "mine" / "scratch").mkdir(parents=True)
    (tmp_path / "mine" / "scratch" / "precious.txt").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    out = {
        "precious": tmp_path / "mine",
        "meds itself": meds,
        "inside meds": meds / "data" / "seq",
        "around meds": tmp_path / "around",
    }
    with pytest.raises(UserError, match=r"is not empty|lie one in the other"):
        prepare(meds, meds / "labels", out[place], PrepareSettings("x", rare_below=1), INLINE)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_directory_whose_beginning_was_killed_is_continued(tmp_path: Path) -> None:
    """Killed while the manifest was being published, only a half-written file is there."""
    of: dict[int, list[Event]] = {s: [(START, "lab", 1.0)] for s in range(1, 5)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=1)] for s in of})
    out = tmp_path / "out"
    for folder in ("data", "entries", "scratch"):
        (out / folder).mkdir(parents=True)
    (out / "scratch" / ".whenwhy").touch()
    (out / f".tmp-{'a' * 32}").write_text("{")
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", out, PrepareSettings("x", rare_below=1), INLINE)
    assert not stage.missing()
    assert {path.name for path in out.iterdir()} == {"data", "entries", "manifest.json", "run.json"}
    # Killed at the very end, only the scratch folder is left: the next call removes it.
    (out / "scratch").mkdir()
    (out / "scratch" / ".whenwhy").touch()
    prepare(tmp_path / "meds", tmp_path / "meds" / "labels", out, PrepareSettings("x", rare_below=1), INLINE)
    assert not (out / "scratch").exists()


@pytest.mark.parametrize(
    "asked",
    [{"history_hours": math.nan}, {"visit_gap_hours": math.inf, "steps": "visit"}, {"steps": "99999999999999h"},
     {"not_measured": (("lab", 1e300),)}, {"carry": ("lab",), "carry_hours": math.inf}],
)  # fmt: skip
def test_impossible_hours_are_refused_before_any_work(tmp_path: Path, asked: dict) -> None:
    of: dict[int, list[Event]] = {s: [(START, "lab", 1.0)] for s in range(1, 5)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=1)] for s in of})
    with pytest.raises(UserError, match=r"give a number above 0|write event, visit, or a width"):
        prepare(
            tmp_path / "meds",
            tmp_path / "meds" / "labels",
            tmp_path / "deep" / "out",
            PrepareSettings("x", **asked),
            INLINE,
        )
    assert not (tmp_path / "deep").exists()


@pytest.mark.parametrize("limit", ["much", "-5GB", "1KB", "10MB"])
def test_impossible_memory_limits_are_refused_before_any_work(tmp_path: Path, limit: str) -> None:
    of: dict[int, list[Event]] = {s: [(START, "lab", 1.0)] for s in range(1, 5)}
    write_meds(tmp_path / "meds", of, {s: [START + timedelta(hours=1)] for s in of})
    with pytest.raises(UserError, match=r"--memory-limit .* is not understood"):
        prepare(
            tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "deep" / "out", PrepareSettings("x"), INLINE,
            memory_limit=limit,
        )  # fmt: skip
    assert not (tmp_path / "deep").exists()


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), max_size=40), st.booleans())
def test_rows_with_a_thing_are_counted_once_each(pairs: list[tuple[int, int]], many: bool) -> None:
    """By a table of all pairs where it is small, by sorting where it is not."""
    rows, size = (4, 100_000) if many else (4, 6)
    row, what = (np.array([pair[at] for pair in pairs], dtype=np.int64) for at in (0, 1))
    counted = rows_with(row, what, rows, size)
    assert counted.tolist()[:6] == [len({r for r, w in pairs if w == thing}) for thing in range(6)]
    assert counted[6:].sum() == 0
    assert len(counted) == size
