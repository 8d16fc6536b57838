"""A user's own tables: every row is kept, one table in many forms is one data set, bad rows get a sentence."""

from __future__ import annotations

import gzip
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from conftest import Command, one_sentence
from source_inputs import (
    MAPPING,
    contents,
    events_of,
    import_table,
    write_table,
)
from whenwhy.events.sources import import_source


@pytest.fixture
def made(tmp_path: Path) -> Path:
    """The small tables as MEDS."""
    import_table(write_table(tmp_path / "tables"), tmp_path / "made")
    return tmp_path / "made"


def test_a_table_keeps_every_row(made: Path, tmp_path: Path) -> None:
    rows = pd.read_csv(write_table(tmp_path) / "events.csv")
    rows["time"] = pd.to_datetime(rows.t, utc=True, format="ISO8601").dt.tz_localize(None)
    ids = pq.read_table(made / "metadata" / "subject_ids.parquet").to_pandas()
    assert ids.source_id.to_list() == sorted(rows.id.unique())
    assert ids.subject_id.to_list() == list(range(1, len(ids) + 1))
    numbered = rows.assign(subject_id=rows.id.map(ids.set_index("source_id").subject_id))
    events = events_of(made)
    own = events[events.code.isin(["HR", "DX", "BLOOD"])]

    def told(frame: pd.DataFrame, code: str, value: str) -> list[tuple[object, ...]]:
        number = frame[value].astype("float32").fillna(-1)
        return sorted(zip(frame.subject_id, frame.time.fillna(pd.Timestamp(0)), frame[code], number, strict=True))

    assert told(own, "code", "numeric_value") == told(numbered, "c", "v")
    people = pd.read_csv(tmp_path / "people.csv")
    assert (events.code == "MEDS_BIRTH").sum() == len(people)
    assert (events.code == "sex//F").sum() == (people.sex == "F").sum()
    assert sorted(events[events.code == "height"].numeric_value) == sorted(people.height)
    labels = pq.read_table(made / "labels" / "outcome")
    assert sum(labels["boolean_value"].to_pylist()) == 20
    units = pq.read_table(made / "metadata" / "codes.parquet").to_pandas().set_index("code").unit
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
    berlin = when.dt.tz_localize("UTC").dt.tz_convert("Europe/Berlin")
    rows.assign(t=berlin.map(lambda t: None if pd.isna(t) else t.isoformat())).to_csv(tmp_path / "iso.csv", index=False)
    forms["offsets"] = (tmp_path / "iso.csv", {})
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
    assert sentence.format(file=file) in one_sentence((told[0], told[1], said))
    assert [entry.name for entry in tmp_path.iterdir()] == ["in"]


def test_times_in_numbers_want_a_unit(tmp_path: Path, whenwhy: Command) -> None:
    pq.write_table(pa.table({"subject_id": [1], "time": [3.5], "code": ["A"]}), tmp_path / "e.parquet")
    said = one_sentence(whenwhy("import", "table", tmp_path / "e.parquet", tmp_path / "out"))
    assert "column 'time' holds numbers (DOUBLE): say --time-unit" in said
    (tmp_path / "bad.parquet").write_text("no parquet")
    assert "cannot be read as a table" in one_sentence(
        whenwhy("import", "table", tmp_path / "bad.parquet", tmp_path / "out")
    )
