"""The store keeps its contract: its tables, one SELECT and nothing else, versions that never change."""

from __future__ import annotations

import contextlib
import hashlib
import random
import shutil
import threading
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.compute as pc
import pytest

import whenwhy.store.open as opening
import whenwhy.store.publish as publishing
from conftest import SmallRun
from whenwhy.errors import UserError
from whenwhy.schema import STORE_FORMAT
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.store import Store, open_store, publish_store
from whenwhy.store.publish import KEPT_VERSIONS, MADE_FROM_FILE, ROWS_FILE, current_version
from whenwhy.store.shareable import SHAREABLE_FILE

#: The contract of the design. Its column s_sN of cells is s_s_N, since names in SQL do not tell N from n.
CONTRACT = {
    "attributions": {
        "run_id": "VARCHAR",
        "subject_id": "BIGINT",
        "prediction_time": "TIMESTAMP",
        "target": "VARCHAR",
        "step": "INTEGER",
        "time": "TIMESTAMP",
        "hours_before": "DOUBLE",
        "feature_value_id": "INTEGER",
        "numeric_value": "FLOAT",
        "attribution": "FLOAT",
        "spread": "FLOAT",
    },
    "predictions": {
        "run_id": "VARCHAR",
        "subject_id": "BIGINT",
        "prediction_time": "TIMESTAMP",
        "target": "VARCHAR",
        "label": "VARCHAR",
        "predicted": "VARCHAR",
        "split": "VARCHAR",
        "score": "DOUBLE",
        "baseline_score": "DOUBLE",
        "probability": "DOUBLE",
        "completeness_residual": "DOUBLE",
        "notes": "MAP(VARCHAR, DOUBLE)",
        "n_steps": "INTEGER",
        "n_values": "INTEGER",
        "sex": "VARCHAR",
        "age_band": "VARCHAR",
    },
    "feature_values": {
        "run_id": "VARCHAR",
        "feature_value_id": "INTEGER",
        "code": "VARCHAR",
        "description": "VARCHAR",
        "unit": "VARCHAR",
        "bin": "INTEGER",
        "low": "DOUBLE",
        "high": "DOUBLE",
        "n_train": "BIGINT",
        **dict.fromkeys(("parents", "groups"), "VARCHAR[]"),
    },
    "code_groups": dict.fromkeys(("run_id", "code", "parent", "description"), "VARCHAR"),
    "cells": {
        **dict.fromkeys(("run_id", "target", "split", "class", "stratum", "level", "code", "time_axis"), "VARCHAR"),
        **dict.fromkeys(("feature_value_id", "time_bin"), "INTEGER"),
        **dict.fromkeys(("n_events", "n_patients"), "BIGINT"),
        **dict.fromkeys(("low_hours", "high_hours", "sum", "sum_abs", "sum_sq"), "DOUBLE"),
        **dict.fromkeys(
            ("s_ss", "s_sn", "s_nn", "s_s_N", "s_sss", "s_ssn", "s_snn", "s_nnn", "sum_gradient"), "DOUBLE"
        ),
        "histogram": "MAP(SMALLINT, BIGINT)",
    },
    "exposure": {
        **dict.fromkeys(("run_id", "target", "split", "class", "stratum", "time_axis"), "VARCHAR"),
        "time_bin": "INTEGER",
        **dict.fromkeys(("n_predictions", "n_patients"), "BIGINT"),
        "s_NN": "DOUBLE",
        "sum_gradient_vector": "DOUBLE[]",
    },
    "runs": {
        **dict.fromkeys(("run_id", "method", "measures", "baseline", "target", "precision"), "VARCHAR"),
        **dict.fromkeys(("model_sha256", "vocabulary_sha256", "input_sha256", "code_version", "quality"), "VARCHAR"),
        "format_version": "INTEGER",
        **dict.fromkeys(("tolerance", "residual_median", "residual_maximum"), "DOUBLE"),
    },
}
#: What holds a row of a patient.
PRIVATE = {"rows", "rows_by_prediction", "prediction_codes", "predictions", "attributions"}


@pytest.fixture(scope="module")
def store(small_run: SmallRun) -> Iterator[Store]:
    """The small run's store, as an analyst."""
    opened = open_store(small_run.store)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def viewer(small_run: SmallRun) -> Iterator[Store]:
    """The small run's store, as a viewer."""
    opened = open_store(small_run.store, "viewer")
    yield opened
    opened.close()


@pytest.fixture
def copied(small_run: SmallRun, tmp_path: Path) -> Path:
    """A store of its own to be damaged."""
    shutil.copytree(small_run.store, tmp_path / "store")
    return tmp_path / "store"


def files_of(folder: Path) -> dict[str, str]:
    """Every file below a folder and the hash of its bytes."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


# -- the contract -------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", sorted(CONTRACT))
def test_a_table_has_the_columns_of_the_contract(store: Store, table: str) -> None:
    """Names and types, in letters as written."""
    described = {row["column_name"]: row["column_type"] for row in store.sql(f"describe {table}").to_pylist()}
    assert {name: described.get(name) for name in CONTRACT[table]} == CONTRACT[table]


def test_the_run_is_named_in_every_table(store: Store) -> None:
    """run_id is everywhere, never null, and always a run of `runs`."""
    tables = [row["name"] for row in store.sql("show tables").to_pylist()]
    assert set(tables) == {
        *CONTRACT,
        "rows",
        "rows_by_prediction",
        "prediction_codes",
        "codes",
        "axes",
        "feature_names",
        "partitions",
        "privacy",
        "estimates",
    }
    for table in set(tables) - {"codes", "axes", "privacy"}:  # the same for all runs
        wrong = store.sql(
            f"select count(*) as n from {table} where run_id is null or run_id not in (select run_id from runs)"
        )
        assert wrong["n"].to_pylist() == [0], table


def test_no_two_columns_differ_by_case_alone(store: Store) -> None:
    """SQL does not tell s_sN from s_sn: the contract's exception s_s_N is why."""
    for table in CONTRACT:
        names = [row["column_name"].casefold() for row in store.sql(f"describe {table}").to_pylist()]
        assert len(set(names)) == len(names)
    columns = store.sql("describe cells")["column_name"].to_pylist()
    assert "s_s_N" in columns
    assert "s_sN" not in columns


def test_the_run_says_how_its_numbers_came_to_be(store: Store, small_run: SmallRun) -> None:
    """Runs holds the hashes of what was read, the tolerance, and residuals within it."""
    (run,) = store.sql("select * from runs").to_pylist()
    attributions = StageDirectory.open(small_run.attributions)
    assert run["run_id"] == attributions.run_id
    assert run["format_version"] == STORE_FORMAT
    assert run["input_sha256"] == StageDirectory.open(small_run.sequences).content_sha256()
    assert len(run["model_sha256"]) == len(run["vocabulary_sha256"]) == 64
    residual = np.abs(store.sql("select completeness_residual as r from predictions")["r"].to_numpy())
    assert run["n_predictions"] == len(residual)
    assert run["residual_median"] == np.median(residual)
    assert run["residual_maximum"] == residual.max() <= run["tolerance"]


def test_the_rows_of_a_prediction_sum_to_its_score(store: Store) -> None:
    """sum(attribution), static rows included, = score - baseline_score within the tolerance, for every prediction."""
    answer = store.sql(
        """select p.score - p.baseline_score as difference, coalesce(sum(a.attribution::double), 0) as total,
            count(a.attribution) as n, any_value(p.n_values) as n_values, any_value(p.completeness_residual) as residual
        from predictions p left join attributions a using (run_id, subject_id, prediction_time, target)
        group by p.run_id, p.subject_id, p.prediction_time, p.target, p.score, p.baseline_score"""
    ).to_pandas()
    tolerance = store.sql("select tolerance from runs")["tolerance"][0].as_py()
    assert len(answer) == store.sql("select count(*) as n from predictions")["n"][0].as_py()
    assert (np.abs(answer.total - answer.difference) <= tolerance).all()
    assert np.allclose(answer.total - answer.difference, answer.residual, rtol=0, atol=1e-12)
    assert (answer.n == answer.n_values).all()
    assert np.abs(answer.difference).max() > 100 * tolerance, "the law is about something"


def test_static_rows_carry_a_part_of_the_score(store: Store) -> None:
    """Without them predictions would miss the score: they have no step, no time and no hours."""
    answer = store.sql(
        """select step is null as static, count(*) as n, sum(abs(attribution)) as a, count(time) as n_time,
            count(hours_before) as n_hours, count(step) as n_step from attributions group by 1 order by 1"""
    ).to_pylist()
    dated, static = answer
    assert static["n_time"] == static["n_hours"] == static["n_step"] == 0
    assert static["a"] > 0
    assert dated["n_time"] == dated["n_hours"] == dated["n_step"] == dated["n"]


def test_times_steps_and_hours_agree(store: Store) -> None:
    """Time + hours_before = prediction_time, not after it; later steps are nearer; within the history."""
    rows = store.sql(
        """select a.*, p.n_steps, p.history_minutes from attributions a
        join predictions p using (run_id, subject_id, prediction_time, target) where step is not null"""
    ).to_pandas()
    before = (rows.prediction_time - rows.time) / pd.Timedelta(hours=1)
    assert np.allclose(before, rows.hours_before, rtol=0, atol=1e-9)
    assert (rows.hours_before >= 0).all()
    assert (rows.hours_before * 60 <= rows.history_minutes + 1e-6).all()
    assert ((rows.step >= 0) & (rows.step < rows.n_steps)).all()
    of_steps = rows.groupby(["subject_id", "prediction_time", "step"]).hours_before
    assert (of_steps.nunique() == 1).all()
    differences = of_steps.first().groupby(level=[0, 1]).diff().dropna()
    assert (differences < 0).all()


def test_values_lie_within_their_edges(store: Store) -> None:
    """Low <= numeric_value < high where the feature value has a bin; no number where it has none."""
    wrong = store.sql(
        """select count(*) filter (f.bin is not null and not (a.numeric_value >= f.low and a.numeric_value < f.high)) as w,
            count(*) filter (f.bin is not null and a.numeric_value is null) as missing, count(f.bin) as n
        from attributions a join feature_values f using (run_id, feature_value_id)"""
    ).to_pylist()
    assert wrong[0]["n"] > 0
    assert (wrong[0]["w"], wrong[0]["missing"]) == (0, 0)


def test_a_single_patient_has_no_variance(store: Store) -> None:
    """Estimates says null, which averages and comparisons pass over, where a variance cannot be had."""
    columns = ("variance_per_event", "variance_per_prediction")
    for name in columns:
        wrong = store.sql(f"select count(*) as n from estimates where not isfinite({name})")
        assert wrong["n"].to_pylist() == [0], name


# -- one SELECT and nothing else ----------------------------------------------------------------------

REFUSED = [
    "",
    "-- nothing",
    "select 1; select 2",
    "select 1; drop table runs",
    "copy runs to '{folder}/x.csv'",
    "copy (select 1) to '{folder}/x.parquet'",
    "export database '{folder}/x'",
    "attach '{folder}/x.duckdb'",
    "attach ':memory:' as x",
    "detach rows",
    "use memory",
    "insert into runs select * from runs",
    "delete from runs",
    "update runs set method = 'x'",
    "merge into runs using runs r on true when matched then delete",
    "create table x as select 1",
    "create temp table x as select 1",
    "create view x as select 1",
    "create macro x() as 1",
    "drop table runs",
    "alter table runs add column x integer",
    "pragma database_list",
    "set threads = 1",
    "reset threads",
    "set enable_external_access = true",
    "load httpfs",
    "install httpfs",
    "call pragma_version()",
    "prepare x as select 1",
    "begin",
    "vacuum",
    "checkpoint",
    "with x as (insert into runs select * from runs returning *) select * from x",
    "select * from query('copy runs to ''{folder}/x.csv''')",
]
OUTSIDE = [
    "select * from read_csv('/etc/passwd')",
    "select * from read_text('/etc/passwd')",
    "select * from read_blob('/etc/passwd')",
    "select * from read_json('/etc/passwd')",
    "select * from sniff_csv('/etc/passwd')",
    "select * from '/etc/passwd'",
    "select * from query_table('/etc/passwd')",
    "select * from glob('/etc/*')",
    "select * from read_parquet('{folder}/*.parquet')",
    "select * from '{folder}/outside.parquet'",
    "select * from parquet_metadata('{folder}/outside.parquet')",
    "select * from read_duckdb('{folder}/outside.duckdb')",
    "select getenv('HOME')",
    "select * from enable_logging(storage = 'file')",
    "select * from duckdb_secrets()",
]
MISTAKES = [
    "selec 1",
    "select no_such_column from cells",
    "select * from cels",
    "select sum(split) from cells",
    "select cast('x' as integer)",
    "select $missing",
    "select * from top_features(clas := 'true')",
]


@pytest.fixture(scope="module")
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that no query may read, and into which none may write."""
    folder = tmp_path_factory.mktemp("outside")
    pd.DataFrame({"a": [1]}).to_parquet(folder / "outside.parquet")
    duckdb.connect(str(folder / "outside.duckdb")).close()
    return folder


def states_of(*folders: Path) -> list[tuple[str, int, int]]:
    """Every file below the folders with its size and time of change."""
    files = [path for folder in folders for path in sorted(folder.rglob("*"))]
    return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]


@pytest.mark.parametrize("text", REFUSED + OUTSIDE + MISTAKES)
def test_anything_but_one_select_of_the_store_is_refused(store: Store, viewer: Store, outside: Path, text: str) -> None:
    """One sentence each; nothing is written, nothing outside is read, the store answers on."""
    before = states_of(outside, store.version)
    for opened in (store, viewer):
        with pytest.raises(UserError) as told:
            opened.sql(text.format(folder=outside))
        assert "\n" not in str(told.value)
        if text in REFUSED[:-2]:
            assert "one SELECT" in str(told.value)
        assert opened.sql("select count(*) as n from runs")["n"].to_pylist() == [1]
    assert states_of(outside, store.version) == before


def test_variables_of_the_process_are_out_of_reach(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A name in a query never means a data frame that happens to be in scope, not even where the query is run."""
    frame = pd.DataFrame({"a": [1]})
    monkeypatch.setattr(opening, "frame_beside", frame, raising=False)
    for text in ("select * from frame", "from frame", "select * from frame_beside", "from (from frame_beside)"):
        with pytest.raises(UserError, match="does not exist"):
            store.sql(text)
    assert len(frame) == 1


@pytest.mark.parametrize(
    "text",
    [
        "from runs select count(*)",
        "values (1)",
        "with x as (select 1 as a) select a from x",
        "select 1 -- and no more;",
        "select 1;",
    ],
)
def test_a_single_select_in_any_form_is_answered(store: Store, text: str) -> None:
    assert store.sql(text).num_rows == 1


def test_arguments_are_values_never_text(store: Store) -> None:
    """What looks like SQL in an argument is looked up as a name."""
    with pytest.raises(UserError, match="There is no feature"):
        store.ask("feature_timeline", feature="lab'); drop table runs; --")
    answer = store.sql("select count(*) as n from cells where code = $code", {"code": "lab' or '1' = '1"})
    assert answer["n"].to_pylist() == [0]


def test_a_large_answer_leaves_the_version_as_it_is(copied: Path) -> None:
    """Nothing is ever written into a published version, also not what does not fit into memory."""
    version = current_version(copied)
    before = files_of(version).keys()
    opened = Store(copied, memory_limit="60MB")
    with contextlib.suppress(UserError):  # refusing is as good
        opened.sql(
            """select count(*) as n from (select a.*, b.x from rows a, (select unnest(range(300)) as x) b
            order by hash(a.attribution, b.x), b.x limit 3000000 offset 5)"""
        )
    assert {path.name for path in version.iterdir()} == set(before)
    opened.close()


# -- named queries: what is unknown -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "arguments", "said"),
    [
        ("top_featurs", {}, "no query 'top_featurs': did you mean 'top_features'?"),
        ("zzz", {}, "no query 'zzz': choose one of absence, calibration, class_comparison, "),
        ("top_features", {"clas": "true"}, "no argument 'clas' in query top_features: did you mean 'class'?"),
        ("feature_timeline", {}, "feature_timeline needs feature: add feature="),
        ("feature_timeline", {"feature": "labb"}, "no feature 'labb' .*did you mean 'lab'?"),
        ("value_effect", {"feature": "Counts"}, "no feature 'Counts' .*did you mean 'count'?"),
        ("feature_timeline", {"feature": "lab", "class": "tru"}, "no class 'tru' .*did you mean 'true'?"),
        ("top_features", {"stratum": "sex=X"}, "no stratum 'sex=X' .*did you mean 'sex="),
        ("top_features", {"split": "heldout"}, "no split 'heldout' .*did you mean 'held_out'?"),
        ("top_features", {"level": "vlue"}, "no level 'vlue' .*did you mean 'value'?"),
        ("number_at_risk", {"run": "0000"}, "no run '0000'"),
        ("top_features", {"top": "many"}, "top is .many.: give a whole number"),
    ],
)
def test_an_unknown_name_is_answered_by_the_nearest(store: Store, query: str, arguments: dict, said: str) -> None:
    with pytest.raises(UserError, match=said.replace("?", r"\?")) as told:
        store.ask(query, **arguments)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("argument", ["class_a", "class_b"])
def test_an_unknown_class_of_a_comparison_is_answered_by_the_nearest(store: Store, argument: str) -> None:
    with pytest.raises(UserError, match=rf"no {argument} 'tru' .*did you mean 'true'"):
        store.ask("class_comparison", **{argument: "tru"})


def test_unknown_columns_are_named(store: Store) -> None:
    with pytest.raises(UserError, match="no_such_column"):
        store.sql("select no_such_column from cells")


# -- threads ------------------------------------------------------------------------------------------


def test_eight_threads_are_answered_as_one(store: Store) -> None:
    """Fifty queries each at once, every answer that of a thread alone."""
    asked = [
        (query, {"feature": feature, "class": label, "split": split})
        for query in ("feature_timeline", "value_effect", "feature_heatmap")
        for feature in ("lab", "count", "mixed")
        for label in ("all", "true", "false")
        for split in ("train", "held_out")
    ]
    asked += [
        ("top_features", {"level": level, "split": split})
        for level in ("code", "value")
        for split in ("train", "tuning")
    ]
    alone = [store.ask(query, **arguments) for query, arguments in asked]
    assert len({table.to_pandas().to_json() for table in alone}) > len(alone) // 2
    wrong: list[object] = []
    start = threading.Barrier(8)

    def ask(seed: int) -> None:
        try:
            start.wait()
            for at in random.Random(seed).choices(range(len(asked)), k=50):
                query, arguments = asked[at]
                if not store.ask(query, **arguments).equals(alone[at]):
                    wrong.append(asked[at])
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# -- versions -----------------------------------------------------------------------------------------


def test_publishing_again_leaves_the_first_version_and_its_readers(small_run: SmallRun, tmp_path: Path) -> None:
    """A published version's bytes stay while a reader has it open; CURRENT moves; beyond two the oldest goes."""
    out = tmp_path / "store"

    def published(width: int) -> Path:
        cells = aggregate_cells([small_run.attributions], out, time_bin_hours=width)
        return publish_store(out, cells, [small_run.attributions])

    first = published(240)
    assert current_version(out) == first
    before = files_of(first)
    assert set(before) == {ROWS_FILE, SHAREABLE_FILE, MADE_FROM_FILE}
    reader = open_store(out)
    bins = "select count(distinct time_bin) as n from exposure"
    told = reader.sql(bins)

    second = published(120)
    assert second != first
    assert current_version(out) == second
    assert files_of(first) == before
    assert reader.sql(bins).equals(told), "the reader stays with the version it opened"
    assert reader.version == first
    newer = open_store(out)
    assert newer.version == second
    assert newer.sql(bins)["n"][0].as_py() > told["n"][0].as_py()

    assert published(240) == first, "the same attributions and settings are the same version"
    assert files_of(first) == before
    assert current_version(out) == first

    third = published(72)
    kept = {path.name for path in (out / "versions").iterdir()}
    assert len(kept) == KEPT_VERSIONS == 2
    assert kept == {first.name, third.name}, "the published one, and the one published before it"
    assert newer.sql(bins).num_rows == 1, "a reader of a collected version reads on"
    assert {path.name for path in out.iterdir()} == {"CURRENT", "access.jsonl", "cells", "time_axes.json", "versions"}
    reader.close()
    newer.close()


def test_the_name_of_a_version_is_that_of_its_contents(small_run: SmallRun, tmp_path: Path) -> None:
    """Made elsewhere from the same attributions, by another number of workers: the same name and the same tables."""
    cells = aggregate_cells([small_run.attributions], tmp_path, time_bin_hours=24, workers=1, memory_limit="300MB")
    version = publish_store(tmp_path, cells, [small_run.attributions])
    assert version.name == current_version(small_run.store).name
    for role in ("analyst", "viewer"):
        here, there = open_store(tmp_path, role), open_store(small_run.store, role)
        tables = {row["name"] for row in here.sql("show tables").to_pylist()} - {"estimates"}
        for table in tables:
            query = f"select * from {table} order by all"
            assert here.sql(query).equals(there.sql(query)), table
        here.close()
        there.close()


def test_a_damaged_shard_stops_publishing_and_changes_nothing(small_run: SmallRun, tmp_path: Path) -> None:
    """A flipped byte of an attribution file: one sentence, CURRENT and its version as before, nothing half-written."""
    out, attributions = tmp_path / "store", tmp_path / "attributions"
    shutil.copytree(small_run.attributions, attributions)
    publish_store(out, aggregate_cells([attributions], out, time_bin_hours=240), [attributions])
    cells = aggregate_cells([attributions], out, time_bin_hours=120)
    run = StageDirectory.open(attributions)
    file = attributions / "data" / run.entry(run.shards[-1]).files["attributions"]["file"]
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 1
    file.write_bytes(content)
    before = files_of(out)
    with pytest.raises(UserError, match=f"{file.name} is damaged"):
        publish_store(out, cells, [attributions])
    assert files_of(out) == before
    assert {path.name for path in out.iterdir()} == {"CURRENT", "cells", "time_axes.json", "versions"}
    assert len(list((out / "versions").iterdir())) == 1


@pytest.mark.parametrize("step", ["_build_rows", "_verify", "build_shareable"])
def test_a_failure_while_building_changes_nothing(
    small_run: SmallRun, copied: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whatever fails, the published version stays and no folder of the attempt is left."""
    cells = aggregate_cells([small_run.attributions], copied, time_bin_hours=96)
    before = files_of(copied)

    def fails(*_: object) -> None:
        raise RuntimeError("the machine went away")

    monkeypatch.setattr(publishing, step, fails)
    with pytest.raises(RuntimeError):
        publish_store(copied, cells, [small_run.attributions])
    assert files_of(copied) == before
    assert not list(copied.glob(".*"))


def test_cells_that_do_not_hold_their_rows_are_not_published(small_run: SmallRun, copied: Path) -> None:
    """A version is verified against its attributions before it appears."""
    cells = aggregate_cells([small_run.attributions], copied, time_bin_hours=96)
    [[part]] = cells.parts.values()
    name = max(
        (name for name in part.shards if name.startswith("code-")),
        key=lambda name: part.entry(name).files["cells"]["rows"],
    )
    tables = {table: part.read(name, table) for table in part.entry(name).files}
    (part.path / "entries" / f"{name}.json").unlink()
    tables["cells"] = tables["cells"].filter(pc.not_equal(tables["cells"]["level"], "code"))
    part.publish(name, tables)
    before = files_of(copied)
    with pytest.raises(UserError, match="does not agree with"):
        publish_store(copied, cells, [small_run.attributions])
    assert files_of(copied) == before
    assert not list(copied.glob(".*"))


# -- what cannot be opened ----------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"vers", b"versions/", b"versions/abc", b"versions/nowhere\n", b"\0\0\0\0"])
def test_a_half_written_current_is_one_sentence(copied: Path, content: bytes) -> None:
    """It says that the version is not there and what to run."""
    (copied / "CURRENT").write_bytes(content)
    with pytest.raises(UserError, match=r"is not there: run `whenwhy aggregate` again\.$"):
        open_store(copied)


def test_what_is_no_store_is_one_sentence(tmp_path: Path, copied: Path) -> None:
    """No folder, a folder without CURRENT, a file, a version that was removed, a version that is damaged."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    for path in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "file"):
        with pytest.raises(UserError, match=r"is no store .*whenwhy aggregate"):
            open_store(path)
    version = current_version(copied)
    (version / ROWS_FILE).write_bytes((version / ROWS_FILE).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"rows\.duckdb cannot be read .*whenwhy aggregate"):
        open_store(copied)
    shutil.rmtree(version)
    with pytest.raises(UserError, match=f"{version.name}, which is not there"):
        open_store(copied)


def test_a_viewer_needs_the_shareable_file_alone(copied: Path) -> None:
    """Where the rows were taken away viewers are answered, so is who says nothing, and analysts are told."""
    (current_version(copied) / ROWS_FILE).unlink()
    with pytest.raises(UserError, match=r"rows\.duckdb cannot be read"):
        open_store(copied, "analyst")
    for role in ("viewer", None):
        viewer = open_store(copied, role)
        assert viewer.role == "viewer"
        assert viewer.ask("top_features").num_rows > 0
        viewer.close()


def test_a_store_of_a_newer_format_is_one_sentence(copied: Path) -> None:
    for name in (ROWS_FILE, SHAREABLE_FILE):
        with duckdb.connect(str(current_version(copied) / name)) as db:
            db.execute(f"update runs set format_version = {STORE_FORMAT + 1}")
    for role in ("analyst", "viewer"):
        with pytest.raises(UserError, match=rf"newer whenwhy \(store format {STORE_FORMAT + 1}\): upgrade whenwhy\.$"):
            open_store(copied, role)


@pytest.mark.parametrize("table", sorted(CONTRACT))
def test_polars_reads_every_table(store: Store, table: str) -> None:
    """Every value as Arrow has it, maps, lists, times and nulls too; a map is a dictionary there."""
    answer = store.sql(f"select * from {table}")
    frame = polars.from_arrow(answer)
    assert isinstance(frame, polars.DataFrame)
    assert frame.columns == answer.column_names
    for field in answer.schema:
        expected = answer[field.name].to_pylist()
        if pa.types.is_map(field.type):
            expected = [None if pairs is None else dict(pairs) for pairs in expected]
        assert frame[field.name].to_list() == expected, field.name


def test_polars_reads_what_a_select_makes(store: Store) -> None:
    """Decimals to the last digit, and null ones; an interval is seconds by epoch()."""
    said = """select 12345678901234567890.125::decimal(30, 3) as d, null::decimal(5, 2) as nothing,
        epoch(time - prediction_time) as seconds from attributions where time is not null order by time limit 3"""
    answer = store.sql(said)
    frame = polars.from_arrow(answer)
    assert isinstance(frame, polars.DataFrame)
    assert frame.to_dicts() == answer.to_pylist()
    assert frame["d"].to_list() == [Decimal("12345678901234567890.125")] * 3
    assert frame["seconds"].max() < 0


# -- viewers ------------------------------------------------------------------------------------------


def test_a_viewer_has_no_table_of_patients(viewer: Store) -> None:
    """Neither rows nor predictions nor attributions, by no name, nor a subject's id in any column."""
    tables = {row["name"] for row in viewer.sql("show tables").to_pylist()}
    assert tables == {
        "axes", "code_groups", "feature_names", "partitions", "privacy", "cells", "exposure", "feature_values", "runs", "estimates",
    }  # fmt: skip
    for table in PRIVATE:
        for name in (table, f"rows.main.{table}"):
            with pytest.raises(UserError, match="does not exist"):
                viewer.sql(f"select * from {name}")
    columns = viewer.sql("select distinct lower(column_name) as c from information_schema.columns")["c"].to_pylist()
    assert not {"subject_id", "prediction_id", "prediction_time", "numeric_value", "attribution"} & set(columns)
    attached = viewer.sql("select path from duckdb_databases() where path is not null")["path"].to_pylist()
    assert [Path(path).name for path in attached] == [SHAREABLE_FILE]


def test_the_shareable_file_shows_cells_as_they_are_or_not_at_all(viewer: Store, store: Store) -> None:
    """Each shown cell and exposure row equals the analyst's, without the histogram; some are hidden."""
    for table, drop in (("cells", "histogram"), ("exposure", "sum_gradient_vector")):
        shown = viewer.sql(f"select * exclude ({drop}) from {table}").to_pylist()
        true = {tuple(row.values()) for row in store.sql(f"select * exclude ({drop}) from {table}").to_pylist()}
        assert 0 < len(shown) < len(true)
        assert {tuple(row.values()) for row in shown} <= true
    assert viewer.sql("select count(histogram) as n from cells")["n"].to_pylist() == [0]
