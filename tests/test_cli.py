"""The command line: each stage alone, one sentence and exit status 2 for bad input, nothing half-written."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from conftest import Command, SmallRun, one_sentence
from whenwhy import __version__
from whenwhy.attribution import registered_methods
from whenwhy.cli import app
from whenwhy.events.sources import registered_sources
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store
from whenwhy.store.queries import named_queries


def test_every_stage_alone(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    seq, model, attr, store = (tmp_path / name for name in ("seq", "model", "attr", "store"))
    status, said, _ = whenwhy(
        "prepare", small_run.meds, "--labels", small_run.labels, "--strata", "sex,age_band", "--out", seq, "--inline"
    )
    assert status == 0
    assert re.search(r"^Wrote .* \(run [0-9a-f]{16}\): [\d,]+ predictions", said, re.MULTILINE)
    status, said, _ = whenwhy("train", seq, "--out", model, "--epochs", 1, "--folds", 2, "--inline")
    assert status == 0
    assert "held-out AUROC, mean of 2 folds" in said
    assert "logistic regression" in said
    status, said, _ = whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline")
    assert status == 0
    assert "miss the score difference by" in said
    status, said, _ = whenwhy("aggregate", attr, "--out", store)
    assert status == 0
    assert "Published version" in said
    status, said, _ = whenwhy("query", store, "feature_timeline", "feature=lab", "--format", "json")
    assert status == 0
    assert json.loads(said.splitlines()[0])["n_patients"] >= 11
    status, said, _ = whenwhy("sql", store, "select count(*) as n from predictions", "--format", "csv")
    assert (status, said) == (0, f'"n"\n{len(pq.read_table(small_run.labels))}\n')
    for directory in (small_run.meds, seq, model, attr, store):
        status, said, _ = whenwhy("info", directory)
        assert status == 0
        assert str(directory) in said
    assert whenwhy("attribute", seq, "--model", model, "--out", attr, "--inline")[2] == ""  # nothing is done twice


def test_the_run_id_is_carried_everywhere(small_run: SmallRun, whenwhy: Command) -> None:
    _, told, _ = whenwhy("info", small_run.attributions)
    run_id = re.search(r"run id: ([0-9a-f]{16})", told)
    assert run_id
    for table in ("attributions", "predictions", "feature_values", "cells", "exposure", "runs"):
        _, said, _ = whenwhy("sql", small_run.store, f"select distinct run_id from {table}", "--format", "csv")
        assert said.splitlines()[1:] == [f'"{run_id[1]}"'], table


@pytest.mark.parametrize("command", [command.name for command in app.registered_commands])
def test_every_command_helps(whenwhy: Command, command: str) -> None:
    status, said, _ = whenwhy(command, "--help")
    assert status == 0
    assert "Usage:" in said


def test_registers_are_listed_a_line_each(whenwhy: Command) -> None:
    for what, names in (
        ("methods", registered_methods()),
        ("queries", named_queries()),
        ("sources", registered_sources()),
    ):
        status, said, _ = whenwhy("info", what)
        assert status == 0
        assert [re.split(r"[:(]", line)[0] for line in said.splitlines()] == sorted(names)


def test_the_readme_names_every_command_method_query_and_source() -> None:
    readme = (Path(__file__).parents[1] / "README.md").read_text()
    commands = [f"whenwhy {command.name}" for command in app.registered_commands]
    missing = [
        name
        for name in [*commands, *registered_methods(), *named_queries(), *registered_sources()]
        if name not in readme
    ]
    assert not missing


def test_version(whenwhy: Command) -> None:
    assert whenwhy("--version") == (0, f"whenwhy {__version__}\n", "")


def rewritten(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    pq.write_table(change(pq.read_table(file)), file)


def renamed(table: pa.Table, old: str, new: str) -> pa.Table:
    return table.rename_columns([new if name == old else name for name in table.column_names])


def recast(table: pa.Table, name: str, kind: pa.DataType) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, table[name].cast(kind))


def damaged(file: Path) -> None:
    """The pages of the first column overwritten; what the file tells of itself stays."""
    chunk = pq.read_metadata(file).row_group(0).column(0)
    content = bytearray(file.read_bytes())
    content[4 : 4 + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    file.write_bytes(content)


def one_class(table: pa.Table) -> pa.Table:
    return table.filter(table["boolean_value"])


def other_outcome(kind: str, values: pa.Array) -> Callable[[pa.Table], pa.Table]:
    return lambda table: table.drop_columns(["boolean_value"]).append_column(kind, values[: table.num_rows])


DATA, LABELS, SPLITS = "data/a/0.parquet", "labels/outcome/0.parquet", "metadata/subject_splits.parquet"
CODES = "metadata/codes.parquet"

#: What is done to a good data set, and what must be said about it.
BROKEN = {
    "no such folder": (None, "does not exist"),
    "no data": (lambda m: shutil.rmtree(m / "data"), r"no Parquet file below"),
    "column missing": (
        lambda m: rewritten(m / DATA, lambda t: renamed(t, "code", "kode")),
        r"0\.parquet has no column 'code'",
    ),
    "time as text": (
        lambda m: rewritten(m / DATA, lambda t: recast(t, "time", pa.string())),
        r"0\.parquet: column 'time' is string, not timestamp\[us\]",
    ),
    "time with a zone": (
        lambda m: rewritten(m / DATA, lambda t: recast(t, "time", pa.timestamp("us", "UTC"))),
        r"column 'time' is timestamp\[us, tz=UTC\]",
    ),
    "value as double": (
        lambda m: rewritten(m / DATA, lambda t: recast(t, "numeric_value", pa.float64())),
        r"column 'numeric_value' is double, not float",
    ),
    "no Parquet": (lambda m: (m / DATA).write_text("subject_id,time\n1,2\n"), r"no readable Parquet file"),
    "empty file": (lambda m: (m / DATA).write_bytes(b""), r"no readable Parquet file"),
    "damaged events": (lambda m: damaged(m / DATA), r"0\.parquet is no readable Parquet file"),
    "damaged labels": (lambda m: damaged(m / LABELS), r"0\.parquet is no readable Parquet file"),
    "damaged splits": (lambda m: damaged(m / SPLITS), r"subject_splits\.parquet is no readable Parquet file"),
    "damaged codes": (lambda m: damaged(m / CODES), r"codes\.parquet is no readable Parquet file"),
    "link to nowhere": (
        lambda m: (m / "data" / "c").symlink_to(m / "unmounted"),
        r"data/c is a link that leads nowhere",
    ),
    "codes with a column twice": (
        lambda m: rewritten(m / CODES, lambda t: t.append_column("description", t["code"])),
        r"codes\.parquet has the column 'description' 2 times: keep one",
    ),
    "ids beyond int64": (
        lambda m: rewritten(
            m / SPLITS, lambda t: t.set_column(0, "subject_id", pa.array([2**63] * t.num_rows, pa.uint64()))
        ),
        r"subject_splits\.parquet: column 'subject_id' is uint64 with values beyond int64",
    ),
    "ids of labels as text": (
        lambda m: rewritten(m / LABELS, lambda t: recast(t, "subject_id", pa.string())),
        r"0\.parquet: column 'subject_id' is string, not int64",
    ),
    "no labels": (lambda m: shutil.rmtree(m / "labels"), r"has no labels"),
    "labels empty": (lambda m: rewritten(m / LABELS, lambda t: t.slice(0, 0)), "is empty"),
    "labels of one class": (lambda m: rewritten(m / LABELS, one_class), r"one class only \(all true\)"),
    "labels twice": (
        lambda m: rewritten(m / LABELS, lambda t: pa.concat_tables([t, t.slice(0, 3)])),
        "3 predictions twice",
    ),
    "labels without time": (
        lambda m: rewritten(m / LABELS, lambda t: t.drop_columns(["prediction_time"])),
        "no column 'prediction_time'",
    ),
    "continuous outcome": (
        lambda m: rewritten(m / LABELS, other_outcome("float_value", pa.array([1.5] * 2000, pa.float32()))),
        r"continuous or survival outcome is not supported yet",
    ),
    "integer outcome of one class": (
        lambda m: rewritten(m / LABELS, other_outcome("integer_value", pa.array([1] * 2000))),
        r"one class only \(all 1\)",
    ),
    "a count": (
        lambda m: rewritten(m / LABELS, other_outcome("integer_value", pa.array(range(2000)))),
        r"different labels in integer_value, more than 100 classes",
    ),
    "a class with the name of all": (
        lambda m: rewritten(m / LABELS, other_outcome("categorical_value", pa.array(["a", "all"] * 1000))),
        r"a class named 'all'",
    ),
    "labels of strangers": (
        lambda m: rewritten(m / LABELS, lambda t: t.set_column(0, "subject_id", pc.add(t["subject_id"], 10_000_000))),
        r"does not name each labelled patient once",
    ),
    "unknown split": (
        lambda m: rewritten(m / SPLITS, lambda t: t.set_column(1, "split", pa.array(["test"] * t.num_rows))),
        r"has the split 'test'",
    ),
    "patients without a split": (
        lambda m: rewritten(m / SPLITS, lambda t: t.slice(5)),
        "does not name each labelled patient once",
    ),
    "no training patient": (
        lambda m: rewritten(m / SPLITS, lambda t: t.set_column(1, "split", pa.array(["tuning"] * t.num_rows))),
        "no event of a training patient",
    ),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_bad_data_gets_a_sentence(small_meds: Path, tmp_path: Path, whenwhy: Command, broken: str) -> None:
    harm, sentence = BROKEN[broken]
    meds = tmp_path / "meds"
    if harm is not None:
        shutil.copytree(small_meds, meds)
        harm(meds)
    said = one_sentence(
        whenwhy("prepare", meds, "--labels", meds / "labels" / "outcome", "--out", tmp_path / "seq", "--inline")
    )
    assert re.search(sentence, said), said
    assert str(tmp_path) in said  # it names the file or folder
    assert not (tmp_path / "seq").exists()


def test_an_empty_cohort_gets_a_sentence(small_meds: Path, tmp_path: Path, whenwhy: Command) -> None:
    meds = tmp_path / "meds"
    shutil.copytree(small_meds, meds)
    (meds / SPLITS).unlink()  # splits follow by a hash, so strangers are no error of the splits
    rewritten(meds / LABELS, lambda t: t.set_column(0, "subject_id", pc.add(t["subject_id"], 10_000_000)))
    said = one_sentence(whenwhy("prepare", meds, "--labels", meds / "labels", "--out", tmp_path / "seq", "--inline"))
    assert "the cohort is empty" in said
    assert not (tmp_path / "seq").exists()


def test_bad_names_get_the_nearest(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    run, new = small_run, tmp_path / "new"
    cases = [
        (("import", "nafl", new), "did you mean 'nafld'"),
        (("prepare", run.meds, "--labels", run.labels, "--strata", "sx", "--out", new), "did you mean 'sex'"),
        (("train", run.sequences, "--out", new, "--architecture", "gruu"), "did you mean 'gru'"),
        (("train", run.meds, "--out", new), "`whenwhy prepare` wrote"),
        (("train", run.model, "--out", new), "was written by `whenwhy train`"),
        (
            ("attribute", run.sequences, "--model", run.model, "--method", "integrated", "--out", new),
            "'integrated_gradients'",
        ),
        (
            ("attribute", run.sequences, "--model", run.model, "--baseline", "rate", "--out", new),
            "no baseline 'rate': did you mean 'rates'",
        ),
        (("attribute", run.sequences, "--model", run.sequences, "--out", new), "written by `whenwhy prepare`"),
        (("attribute", run.sequences, "--model", run.model, "--tolerance", "-1", "--out", new), "tolerance above 0"),
        (("attribute", tmp_path / "none", "--model", run.model, "--out", new), "there is no"),
        (("aggregate", run.sequences, "--out", new), "written by `whenwhy prepare`"),
        (("aggregate", run.attributions, "--memory-limit", "much", "--out", new), "--memory-limit"),
        (("query", run.store, "feature_timelines", "feature=lab"), "did you mean 'feature_timeline'"),
        (("query", run.store, "feature_timeline", "feature=labb"), "did you mean 'lab'"),
        (("query", run.store, "feature_timeline", "featur=lab"), "did you mean 'feature'"),
        (("query", run.store, "feature_timeline"), "needs feature"),
        (("query", run.store, "top_features", "class=yes"), "no class 'yes'"),
        (("query", run.store, "top_features", "top"), "write name=value"),
        (("query", run.store, "top_features", "--format", "xml"), "table, csv, json"),
        (("sql", run.store, "select nothing from cells"), "nothing"),
        (("sql", run.store, "drop table cells"), "one SELECT"),
        (("sql", run.store, "select 1; select 2"), "one SELECT"),
        (("sql", run.meds, "select 1"), "is no store"),
        (("serve", run.meds), "is no store"),
        (("serve", run.store, "--model", run.model), "--model and --sequences go together"),
        (("serve", run.store, "--model", run.sequences, "--sequences", run.sequences), "that `whenwhy train` wrote"),
        (("info", tmp_path / "none"), "does not exist"),
        (("frobnicate",), "frobnicate"),
        (("train", run.sequences), "--out"),
    ]
    for arguments, sentence in cases:
        said = one_sentence(whenwhy(*arguments))
        assert sentence in said, (arguments, said)
        assert not new.exists(), arguments


def test_labels_of_one_class_in_a_split_are_refused(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    """Nothing can be measured on held-out patients who all have the same outcome."""
    meds = tmp_path / "meds"
    shutil.copytree(small_run.meds, meds)
    splits = pq.read_table(meds / SPLITS).to_pandas().set_index("subject_id").split
    rewritten(
        meds / LABELS,
        lambda t: t.filter(
            pa.array(
                [
                    v or splits[s] != "held_out"
                    for s, v in zip(*(t[c].to_pylist() for c in ("subject_id", "boolean_value")), strict=True)
                ]
            )
        ),
    )
    assert whenwhy("prepare", meds, "--labels", meds / "labels", "--out", tmp_path / "seq", "--inline")[0] == 0
    said = one_sentence(whenwhy("train", tmp_path / "seq", "--out", tmp_path / "model", "--inline"))
    assert "split 'held_out' has the label 'false'" in said


def test_a_full_disk_gets_a_sentence_and_nothing_is_published(small_run: SmallRun, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: the system really refuses the write."""
    program = (
        "import resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from whenwhy.cli import main; main()"
    )
    asked = ["attribute", small_run.sequences, "--model", small_run.model, "--out", tmp_path / "attr", "--inline"]
    told = subprocess.run(
        [sys.executable, "-c", program, *map(str, asked)], capture_output=True, text=True, check=False
    )
    assert told.returncode == 2
    assert "File too large" in told.stderr
    assert "Traceback" not in told.stderr
    assert not list((tmp_path / "attr" / "entries").glob("g0-*.json"))
    assert not list((tmp_path / "attr").rglob(".tmp-*"))


def test_a_tolerance_that_is_not_reached_is_told(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    ask = ("attribute", small_run.sequences, "--model", small_run.model, "--inline", "--tolerance", 1e-12)
    status, said, _ = whenwhy(*ask, "--out", tmp_path / "attr")
    assert status == 0
    over = re.search(r"([\d,]+) predictions; .*tolerance 1e-12, ([\d,]+) over it", said)
    assert over
    stage = StageDirectory.open(tmp_path / "attr")
    told = [stage.read(shard, "predictions", ["completeness_residual"]) for shard in stage.shards]
    residual = pa.concat_tables(told)["completeness_residual"].to_numpy()
    assert int(over[1].replace(",", "")) == len(residual)
    assert int(over[2].replace(",", "")) == (abs(residual) > 1e-12).sum() > 0


def test_debug_shows_the_traceback(small_run: SmallRun) -> None:
    told = subprocess.run(
        [sys.executable, "-m", "whenwhy", "info", "nowhere", "--debug"], capture_output=True, text=True, check=False
    )
    assert told.returncode != 0
    assert "Traceback" in told.stderr


def test_an_input_is_no_place_for_a_store(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    attributions = tmp_path / "attributions"
    shutil.copytree(small_run.attributions, attributions)
    said = one_sentence(whenwhy("aggregate", attributions, "--out", attributions))
    assert "is no store" in said
    assert not (attributions / "CURRENT").exists()


def test_paths_are_printed_as_they_are(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    out = tmp_path / "it's [bold] data"
    status, said, _ = whenwhy("attribute", small_run.sequences, "--model", small_run.model, "--out", out, "--inline")
    assert status == 0
    assert f"Wrote {out} (run" in said


@pytest.mark.parametrize("top", ["0", "-1", "many"])
def test_counts_are_whole_numbers(small_run: SmallRun, whenwhy: Command, top: str) -> None:
    said = one_sentence(whenwhy("query", small_run.store, "top_features", f"top={top}"))
    assert "whole number" in said


def test_an_interrupt_says_how_to_continue(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    sequences = tmp_path / "sequences"
    asked = ["--strata", "age_band,sex", "--bins", "4", "--shard-size", "4", "--out", sequences, "--inline"]
    assert whenwhy("prepare", small_run.meds, "--labels", small_run.labels, *asked)[0] == 0
    command = [sys.executable, "-m", "whenwhy", "attribute", str(sequences), "--model", str(small_run.model)]
    running = subprocess.Popen(
        [*command, "--out", str(tmp_path / "attr"), "--inline"],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background ignores interrupts
    )
    assert running.stderr is not None
    said = running.stderr.readline()  # the first shard is done, more than a hundred are not
    running.send_signal(signal.SIGINT)
    said += running.stderr.read()
    assert running.wait() == 130
    assert said.splitlines()[-1].startswith("Stopped; what was finished is kept")


@pytest.mark.parametrize("form", ["parquet", "arrow", "csv", "json"])
def test_an_answer_goes_into_a_file(small_run: SmallRun, whenwhy: Command, tmp_path: Path, form: str) -> None:
    """In the format that the file's name ends with; the same rows as printed."""
    file = tmp_path / f"answer.{form}"
    status, said, _ = whenwhy("query", small_run.store, "value_effect", "feature=lab", "--out", file)
    expected = open_store(small_run.store).ask("value_effect", feature="lab")
    assert (status, said) == (0, f"Wrote {expected.num_rows} rows to {file}.\n")
    if form == "parquet":
        assert pq.read_table(file).equals(expected)
    elif form == "arrow":
        assert pa.ipc.open_file(file).read_all().equals(expected)
    else:
        printed = whenwhy("query", small_run.store, "value_effect", "feature=lab", "--format", form)[1]
        assert file.read_text() == printed


def test_a_question_is_given_up_after_its_time(small_run: SmallRun, whenwhy: Command) -> None:
    endless = "select sum(a.range * b.range) from range(1000000) a, range(1000000) b"
    status, printed, said = whenwhy("sql", small_run.store, endless, "--time-limit", "0.5")
    assert (status, printed) == (2, "")
    assert "did not answer within 0.5 seconds" in said
    assert said.count("\n") == 1
    assert whenwhy("sql", small_run.store, "select 1 as n", "--format", "csv", "--time-limit", "60")[0] == 0


def test_an_answer_has_a_place_before_it_is_asked_for(small_run: SmallRun, whenwhy: Command, tmp_path: Path) -> None:
    status, printed, said = whenwhy("sql", small_run.store, "select 1", "--out", tmp_path / "nowhere" / "a.csv")
    assert (status, printed) == (2, "")
    assert "nowhere is no folder" in said
