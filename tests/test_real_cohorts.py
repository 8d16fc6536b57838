"""Real cohorts go all the way by the command line: a large vocabulary, long records, hourly bins."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from conftest import Command
from source_inputs import real
from whenwhy.events.sequence_directory import TABLE, VOCABULARY
from whenwhy.shards import StageDirectory


def records(folder: Path) -> pa.Table:
    stage = StageDirectory.open(folder)
    return pa.concat_tables([stage.read(name, TABLE) for name in stage.shards])


def test_the_mimic_demonstration_end_to_end(tmp_path: Path, whenwhy: Command) -> None:
    """7,035 codes, one patient of 51,975 events, several predictions a patient, no splits of its own."""
    meds = real("mimic4_demo_meds") / "MEDS"
    seq, model, attr, store = (tmp_path / name for name in ("seq", "model", "attr", "store"))
    labels = meds / "labels" / "in_hospital_mortality_24h"
    status, said, told = whenwhy("validate", meds)
    assert status == 0, told
    assert re.search(r"82,516 rows that repeat .* \(work goes on\)", said)
    assert "is sound, 916,166 rows in 1 files" in said
    arguments = ("--labels", labels, "--strata", "gender,age_band", "--max-steps", 300, "--out", seq, "--inline")
    status, said, told = whenwhy("prepare", meds, *arguments)
    assert status == 0, told
    assert "244 predictions" in said
    assert "2 undated codes (GENDER//F, GENDER//M) may know the future" in said
    assert "beyond the most recent steps" in said
    status, said, told = whenwhy("train", seq, "--out", model, "--epochs", 1, "--hidden", 16, "--inline")
    assert status == 0, told
    status, said, told = whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline")
    assert status == 0, told
    assert "0 over it" in said
    status, _, told = whenwhy("aggregate", attr, "--out", store)
    assert status == 0, told
    status, said, told = whenwhy("query", store, "top_features", "top=3", "--format", "csv")
    assert status == 0, told
    assert len(said.splitlines()) == 4
    # The longest record: what is kept and what is left out are all of its known events.
    events = pq.read_table(meds / "data" / "0.parquet")
    assert max(Counter(events["subject_id"].to_pylist()).values()) == 51_975
    table = records(seq)
    assert pc.max(pc.list_value_length(table["step_minutes"])).as_py() == 300


def test_the_longest_record_is_whole_where_nothing_limits_it(tmp_path: Path, whenwhy: Command) -> None:
    meds = real("mimic4_demo_meds") / "MEDS"
    labels = meds / "labels" / "in_hospital_mortality_24h"
    status, said, told = whenwhy(
        "prepare",
        meds,
        "--labels",
        labels,
        "--max-steps",
        100_000,
        "--rare-below",
        1,
        "--out",
        tmp_path / "seq",
        "--inline",
    )
    assert status == 0, told
    events = pq.read_table(meds / "data" / "0.parquet").to_pandas()
    # A code that training patients recorded only without a number (or with one) has no feature value for the other.
    vocabulary = StageDirectory.open(tmp_path / "seq").read(VOCABULARY, VOCABULARY).to_pylist()
    features = {(row["code"], row["bin"] is not None) for row in vocabulary}
    rows = records(tmp_path / "seq").select(["subject_id", "prediction_time", "event_id"]).to_pylist()
    row = max(rows, key=lambda r: len(r["event_id"]))
    own = events[
        (events.subject_id == row["subject_id"]) & events.time.notna() & (events.time <= row["prediction_time"])
    ]
    known = [pair for pair in zip(own.code, own.numeric_value.notna(), strict=True) if pair in features]
    assert len(row["event_id"]) == len(known) > 20_000
    assert "left out" in said


def test_physionet_in_48_hourly_bins_with_values_carried_forward(tmp_path: Path, whenwhy: Command) -> None:
    source = real("physionet2012")
    assert whenwhy("import", "physionet2012", source, tmp_path / "meds")[0] == 0
    status, said, told = whenwhy(
        "prepare", tmp_path / "meds", "--labels", tmp_path / "meds" / "labels" / "in_hospital_death", "--steps", "1h",
        "--anchor", "admission", "--carry", "all", "--out", tmp_path / "seq", "--inline",
    )  # fmt: skip
    assert status == 0, told
    assert "4,000 predictions" in said
    table = records(tmp_path / "seq")
    assert pc.unique(pc.list_value_length(table["step_minutes"])).to_pylist() == [48]
    assert pc.unique(table["anchor_minutes"]).to_pylist() == [48 * 60]
    assert pc.sum(pc.equal(table["label"], "true")).as_py() == 554
    # One parameter of one stay, hour by hour, against the challenge's own table.
    features = (
        StageDirectory.open(tmp_path / "seq").read(VOCABULARY, VOCABULARY).to_pandas().set_index("feature_value_id")
    )
    raw = pq.read_table(source / "events.parquet").to_pandas()
    row = next(r for r in table.to_pylist() if r["subject_id"] == 132_539)
    heart_rate = raw[(raw.record_id == 132_539) & (raw.parameter == "HR")]
    last = heart_rate.sort_values("minute").groupby((heart_rate.minute // 60).clip(upper=47)).value.last()
    kinds: dict[int, set[str]] = {}
    for step, feature, value in zip(row["event_step"], row["event_id"], row["event_value"], strict=True):
        code = features.code[feature]
        if code in ("HR", "HR (carried forward)"):
            kinds.setdefault(step, set()).add(features.kind[feature])
            if code != "HR":
                assert value == last[last.index < step].iloc[-1]
    first = int(last.index.min())
    for step in range(first, 48):
        assert kinds[step] == ({"recorded"} if step in last.index else {"carried forward"})
