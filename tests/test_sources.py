"""Sources: what they write is MEDS, one import is like another, bad input gets a sentence."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Annotated

import meds
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import typer

from conftest import Command, one_sentence
from source_inputs import (
    DATA,
    SYNTHETIC,
    contents,
    import_table,
    write_challenge,
    write_table,
)
from whenwhy.engine import Workers
from whenwhy.errors import UserError
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.events.sources import import_source, registered_sources, registry, source
from whenwhy.events.sources.meds_writer import Code, MedsWriter, meds_rows


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
    assert "--ward" in one_sentence(whenwhy("import", user_source, tmp_path / "new"))
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
    assert "Name a source" in one_sentence(whenwhy("import"))


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from whenwhy.cli import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print([name for name in ('pyarrow', 'numpy', 'duckdb', 'whenwhy.events') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert told.stdout.splitlines()[-1] == "[]"


def test_the_same_import_is_found_and_another_one_sentence(tmp_path: Path, whenwhy: Command) -> None:
    table, out = write_table(tmp_path / "in") / "events.csv", tmp_path / "out"
    asked = ["import", "table", table, out, "--subject", "id", "--time", "t", "--code", "c"]
    assert "Wrote the MEDS data set" in whenwhy(*asked)[1]
    before = {file: file.stat().st_mtime_ns for file in out.rglob("*")}
    assert "Found the MEDS data set" in whenwhy(*asked, "--memory-limit", "2GB")[1]  # how, not what
    assert {file: file.stat().st_mtime_ns for file in out.rglob("*")} == before
    assert "of other settings (--value none)" in one_sentence(whenwhy(*asked, "--value", "v"))
    table.write_text(table.read_text() + "p1,2020-01-01,DX,,\n")
    assert "of other settings (other inputs)" in one_sentence(whenwhy(*asked))
    assert "made by whenwhy import table, not by whenwhy import synthetic" in one_sentence(
        whenwhy("import", "synthetic", out)
    )
    assert "is no MEDS data set" in one_sentence(whenwhy("import", "synthetic", tmp_path / "in"))
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
    assert "needs a place" in one_sentence(whenwhy("import", "synthetic"))
    assert "needs a place" in one_sentence(whenwhy("import", "table"))
    assert "unexpected extra argument" in one_sentence(whenwhy("import", "synthetic", "events.csv", "new"))
    with pytest.raises(UserError, match="reads no file"):
        import_source("synthetic", tmp_path / "new", tmp_path / "events.csv")
    assert "nothing.csv does not exist" in one_sentence(whenwhy("import", "table", "nothing.csv", "new"))
    assert "reads a file or folder" in one_sentence(whenwhy("import", "table", "--out", "new"))
    assert not (tmp_path / "new").exists()


def test_a_killed_import_leaves_nothing_half_written(tmp_path: Path) -> None:
    asked = ["import", "synthetic", "out", "--patients", "40000", "--patients-per-file", "2000", "--workers", "2"]
    running = subprocess.Popen(
        [sys.executable, "-m", "whenwhy", *asked], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    assert running.stderr is not None
    for number in (1, 2, 3):  # both workers have begun
        assert re.match(f"import {number}/20 ", running.stderr.readline())
    workers = subprocess.run(
        ["pgrep", "-P", str(running.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(workers) >= 2
    running.kill()
    running.wait()
    running.stderr.close()
    [left] = tmp_path.iterdir()  # hidden, beside, and never taken for a data set
    assert re.fullmatch(r"\.out-[0-9a-f]{32}", left.name)
    for _ in range(100):  # the workers end with their parent
        states = subprocess.run(
            ["ps", "-o", "stat=", "-p", ",".join(workers)], capture_output=True, text=True, check=False
        )
        if not [state for state in states.stdout.split() if not state.startswith("Z")]:
            break
        time.sleep(0.1)
    else:
        pytest.fail("a worker outlives its parent")
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
