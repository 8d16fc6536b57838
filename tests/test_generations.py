"""New patients make a further generation, a patient who withdrew leaves everything; the others stay as they were."""

from __future__ import annotations

import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cohort import write_cohort
from conftest import INLINE, SmallRun
from test_cells import CELL_KEY, EXPOSURE_KEY, assert_same, keyed, replica_of
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.attribution.attribution_directory import PREDICTION_ROWS, ROWS
from whenwhy.attribution.population import POPULATION, RATES_TABLE, REFERENCES_TABLE
from whenwhy.errors import UserError
from whenwhy.events.sequence_directory import TABLE, VOCABULARY
from whenwhy.events.sequences import PrepareSettings, add_generation, prepare
from whenwhy.forget import forget
from whenwhy.models.training import TrainSettings, train
from whenwhy.server.cohort import members_sql
from whenwhy.server.saved_cohorts import SavedCohorts
from whenwhy.shards import StageDirectory
from whenwhy.statistics import aggregate_cells
from whenwhy.statistics.leaving import leave, leaving
from whenwhy.store import open_store, publish_store
from whenwhy.working_folder import alone

ASKED = PrepareSettings("the outcome", strata=("age_band", "sex"), bins=4, shard_size=128)


def modified(stage: StageDirectory) -> dict[str, int]:
    return {
        file.name: file.stat().st_mtime_ns for folder in ("data", "entries") for file in (stage.path / folder).iterdir()
    }


def moved(folder: Path, by: int) -> None:
    """The same cohort with other ids."""
    for file in folder.rglob("*.parquet"):
        table = pq.read_table(file)
        if "subject_id" in table.column_names:
            pq.write_table(table.set_column(0, "subject_id", pc.add(table["subject_id"], by)), file)


@pytest.fixture
def grown(small_run: SmallRun, tmp_path: Path) -> tuple[Path, Path, Path]:
    """Copies of the small run's sequences and attributions, and a data set of other patients."""
    for name in ("sequences", "attributions"):
        shutil.copytree(getattr(small_run, name), tmp_path / name)
    write_cohort(tmp_path / "meds", patients=60, seed=11)
    moved(tmp_path / "meds", 100_000)
    return tmp_path / "sequences", tmp_path / "attributions", tmp_path / "meds"


def test_a_generation_is_added_without_touching_the_old(small_run: SmallRun, grown: tuple[Path, Path, Path]) -> None:
    sequences, attributions, meds = grown
    before = StageDirectory.open(sequences)
    old_files, old_attributions = modified(before), modified(StageDirectory.open(attributions))
    stage = add_generation(meds, meds / "labels" / "outcome", sequences, INLINE)
    assert stage.run_id == before.run_id
    assert stage.shards[: len(before.shards)] == before.shards
    new = [name for name in stage.shards if name.startswith("g1-")]
    assert new
    now = modified(stage)
    assert all(now[name] == time for name, time in old_files.items())
    labelled = pq.read_table(meds / "labels")["subject_id"].to_pylist()
    found = [s for name in new for s in stage.read(name, TABLE)["subject_id"].to_pylist()]
    assert sorted(found) == sorted(labelled)
    assert (
        add_generation(meds, meds / "labels" / "outcome", sequences, INLINE).content_sha256() == stage.content_sha256()
    )
    # Attribution follows: old shards are not done again, and no id is given twice.
    more = attribute_shards(sequences, small_run.model, attributions, AttributeSettings(), INLINE)
    assert more.shards == stage.shards
    now = modified(more)
    assert all(now[name] == time for name, time in old_attributions.items())
    ids = pa.concat_tables([more.read(name, PREDICTION_ROWS, ["prediction_id"]) for name in more.shards])
    assert (
        pc.count_distinct(ids["prediction_id"]).as_py()
        == ids.num_rows
        == len(found) + sum(before.read(name, TABLE).num_rows for name in before.shards)
    )


def test_cells_follow_a_generation_without_being_made_anew(
    small_run: SmallRun, grown: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The old ones stay, the new patients' are added to them; so it is if both are aggregated at once."""
    sequences, attributions, meds = grown
    store = tmp_path / "store"
    before = aggregate_cells([attributions], store, time_bin_hours=24, since=["lab"])
    publish_store(store, before, [attributions])
    [[first]] = before.parts.values()
    files = modified(first)
    add_generation(meds, meds / "labels" / "outcome", sequences, INLINE)
    attribute_shards(sequences, small_run.model, attributions, AttributeSettings(), INLINE)
    after = aggregate_cells([attributions], store)
    [[same, new]] = after.parts.values()
    assert same.path == first.path
    assert modified(first) == files
    assert new.path != first.path
    assert after.axes == before.axes
    slow = replica_of(attributions, after.axes)
    for name, key, expected in (("cells", CELL_KEY, slow.cells()), ("exposure", EXPOSURE_KEY, slow.exposure())):
        assert_same(keyed(after.table(name).to_pylist(), key), expected)
    version = publish_store(store, after, [attributions])
    other = tmp_path / "other"
    at_once = aggregate_cells([attributions], other, time_bin_hours=24, since=["lab"], workers=1)
    if at_once.axes == after.axes:
        assert publish_store(other, at_once, [attributions]).name == version.name


def test_cells_without_a_patient_are_those_of_the_others(everything: dict[str, Path], tmp_path: Path) -> None:
    """What the patient adds up to is taken away: nobody else's rows are read, and every cell is as if made anew."""
    subject, store, attributions = 17, everything["store"], everything["attributions"]
    run = StageDirectory.open(attributions)
    holding = [n for n in run.shards if subject in run.read(n, PREDICTION_ROWS)["subject_id"].to_pylist()]
    assert len(holding) == 1
    gone = leaving(store, run, holding, pa.array([subject]))
    forget({subject}, [everything["sequences"], attributions])
    others = [
        attributions / "data" / told["file"]
        for name in set(run.shards) - set(holding)
        for told in run.entry(name).files.values()
    ]
    for file in others:
        file.rename(file.with_suffix(".away"))
    leave(store, gone)
    for file in others:
        file.with_suffix(".away").rename(file)
    made = aggregate_cells([attributions], store)
    [[part]] = made.parts.values()
    assert part.path != gone[0].before.path
    assert part.shards == gone[0].before.shards
    anew = aggregate_cells([attributions], tmp_path / "anew", time_bin_hours=24)
    assert anew.axes == made.axes
    for name, key in (("cells", CELL_KEY), ("exposure", EXPOSURE_KEY)):
        assert keyed(made.table(name).to_pylist(), key) == keyed(anew.table(name).to_pylist(), key)


def test_the_new_records_are_those_of_a_whole_run_by_the_same_feature_values(
    small_run: SmallRun, grown: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The patients of the first generation, given again under other ids, get the very same records."""
    sequences, _, _ = grown
    shutil.copytree(small_run.meds, tmp_path / "again")
    moved(tmp_path / "again", 500_000)
    stage = add_generation(tmp_path / "again", tmp_path / "again" / "labels" / "outcome", sequences, INLINE)

    def records(generation: str, by: int) -> dict[tuple, dict]:
        rows = [r for name in stage.shards if name.startswith(generation) for r in stage.read(name, TABLE).to_pylist()]
        return {(r["subject_id"] - by, r["prediction_time"]): r | {"subject_id": r["subject_id"] - by} for r in rows}

    assert records("g0", 0) == records("g1", 500_000)


def test_a_patient_lives_in_one_generation(small_run: SmallRun, grown: tuple[Path, Path, Path]) -> None:
    sequences, _, _ = grown
    shards = StageDirectory.open(sequences).shards
    with pytest.raises(UserError, match=r"of these patients already \(subject \d+\).*whenwhy forget"):
        add_generation(small_run.meds, small_run.labels, sequences, INLINE)  # the same patients again
    assert StageDirectory.open(sequences).shards == shards


@pytest.fixture
def everything(small_run: SmallRun, tmp_path: Path) -> dict[str, Path]:
    """A whole run of its own: data set, sequences, model, attributions, store."""
    paths = {name: tmp_path / name for name in ("meds", "sequences", "model", "attributions", "store")}
    shutil.copytree(small_run.meds, paths["meds"])
    prepare(paths["meds"], paths["meds"] / "labels" / "outcome", paths["sequences"], ASKED, INLINE)
    train(paths["sequences"], paths["model"], TrainSettings(hidden=4, epochs=1), INLINE)
    attribute_shards(paths["sequences"], paths["model"], paths["attributions"], AttributeSettings(), INLINE)
    cells = aggregate_cells([paths["attributions"]], paths["store"], time_bin_hours=24)
    publish_store(paths["store"], cells, [paths["attributions"]])
    return paths


def holds(path: Path, subject: int) -> bool:
    """Whether any Parquet file below a folder has a row of the patient, or of one of the patient's predictions."""
    for file in path.rglob("*.parquet"):
        table = pq.read_table(file)
        if "subject_id" in table.column_names and subject in table["subject_id"].to_pylist():
            return True
    return False


def test_a_patient_is_removed_from_everything(everything: dict[str, Path]) -> None:
    sequences = StageDirectory.open(everything["sequences"])
    held_out = StageDirectory.open(everything["model"]).read("fold-1", "predictions")["subject_id"].to_pylist()
    subject = next(s for s in held_out if s > 2)  # with events, and in the model's predictions
    store = open_store(everything["store"])
    mine = store.sql(f"select count(*) as n from attributions where subject_id = {subject}")["n"].to_pylist()[0]
    rows = store.sql("select count(*) as n from attributions")["n"].to_pylist()[0]
    others = store.sql(f"select * from predictions where subject_id <> {subject} order by prediction_id").to_pylist()
    store.close()
    assert mine > 0
    assert all(holds(everything[name], subject) for name in ("meds", "sequences", "model", "attributions"))
    vocabulary = sequences.entry(VOCABULARY).files[VOCABULARY]["sha256"]
    drawn = {(subject, 60), (subject, -5), (subject + 10**6, 60)}
    SavedCohorts(everything["store"]).draw("drawn", members_sql(drawn), "somebody")
    SavedCohorts(everything["store"]).draw("alone", f"score > 0 and {members_sql({(subject, 60)})}", "somebody")
    lines = forget({subject}, list(everything.values()))
    assert len(lines) == 7
    assert f"{everything['store']}: removed from 2 saved cohorts" in lines
    saved = SavedCohorts(everything["store"])
    assert saved.condition("drawn").sql == members_sql({(subject + 10**6, 60)})
    assert saved.condition("alone").sql == "score > 0 and false"
    # Also where nothing else of the patient is left, as after a call that was killed.
    saved.draw("again", members_sql({(subject, 60)}), "somebody")
    assert any("1 saved cohort" in line for line in forget({subject}, list(everything.values())))
    assert saved.condition("again").sql == "false"
    assert "train again" in lines[-1]
    assert not any(holds(path, subject) for path in everything.values())
    store = open_store(everything["store"])
    assert store.sql("select count(*) as n from attributions")["n"].to_pylist() == [rows - mine]
    left = store.sql("select * from predictions order by prediction_id").to_pylist()
    assert left == others
    [cells] = store.sql(
        "select sum(n_events) as n from cells where level = 'code' and time_bin is null "
        "and class = 'all' and stratum = 'all'"
    )["n"].to_pylist()
    assert cells == rows - mine
    store.close()
    assert len(list((everything["store"] / "versions").iterdir())) == 1
    assert len(list((everything["store"] / "cells").iterdir())) == 1
    # Directories go on: nothing is another run now, and nothing has to be done again.
    assert StageDirectory.open(everything["sequences"]).entry(VOCABULARY).files[VOCABULARY]["sha256"] == vocabulary
    before = modified(StageDirectory.open(everything["attributions"]))
    attribute_shards(
        everything["sequences"], everything["model"], everything["attributions"], AttributeSettings(), INLINE
    )
    assert modified(StageDirectory.open(everything["attributions"])) == before
    # The rows that are left are those that were there.
    for name in StageDirectory.open(everything["attributions"]).shards:
        stage = StageDirectory.open(everything["attributions"])
        known = set(stage.read(name, PREDICTION_ROWS)["prediction_id"].to_pylist())
        assert set(stage.read(name, ROWS)["prediction_id"].to_pylist()) <= known


def test_nobody_is_forgotten_by_a_wrong_id_or_half_a_list(everything: dict[str, Path], tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(UserError, match="No subject 999999999 is in"):
        forget({999_999_999}, list(everything.values()))
    with pytest.raises(UserError, match="name it too, so that the patient leaves it first"):
        forget({7}, [everything["sequences"], everything["store"]])
    with pytest.raises(UserError, match="is no MEDS data set, no directory of a stage and no store"):
        forget({7}, [tmp_path / "nowhere"])
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


def test_the_records_that_others_are_compared_with_are_forgotten_too(
    everything: dict[str, Path], tmp_path: Path
) -> None:
    asked = AttributeSettings(method="gradient_times_input", baseline="reference")
    stage = attribute_shards(everything["sequences"], everything["model"], tmp_path / "referring", asked, INLINE)
    known = stage.read(POPULATION, REFERENCES_TABLE)["subject_id"].to_pylist()
    rates = stage.read(POPULATION, RATES_TABLE)
    subject = known[3]
    forget({subject}, [*everything.values(), stage.path])
    again = StageDirectory.open(stage.path)
    left = again.read(POPULATION, REFERENCES_TABLE)["subject_id"].to_pylist()
    assert left == [other for other in known if other != subject]
    assert again.read(POPULATION, RATES_TABLE).equals(rates)
    again.require_complete()
    assert not holds(stage.path, subject)


@pytest.mark.parametrize("ended_at", ["_forget_in_stage", "_rebuilt", "publish_store"])
def test_forgetting_that_was_killed_is_finished_by_the_same_call(
    everything: dict[str, Path], monkeypatch: pytest.MonkeyPatch, ended_at: str
) -> None:
    """Half the directories are clean and the rest hold the patient: the call goes on, and leftovers go."""
    subject = 17
    monkeypatch.setattr(f"whenwhy.forget.{ended_at}", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        forget({subject}, list(everything.values()))
    monkeypatch.undo()
    for name in ("sequences", "attributions"):
        (everything[name] / "data" / f".tmp-{'0' * 32}").write_bytes(b"half")
        (everything[name] / f".tmp-{'1' * 32}").write_bytes(b"half")
    beside = everything["meds"] / "data" / "a" / f".0.parquet-{'2' * 32}"
    beside.write_bytes((everything["meds"] / "data" / "a" / "0.parquet").read_bytes())
    (everything["store"] / ".building-killed").mkdir()
    forget({subject}, list(everything.values()))
    assert not any(holds(path, subject) for path in everything.values())
    assert not [
        file
        for path in everything.values()
        for file in path.rglob("*")
        if file.name.startswith((".tmp", ".0", ".b", ".lock"))
    ]
    for file in everything["store"].rglob("rows.duckdb"):
        with duckdb.connect(str(file), read_only=True) as db:
            assert db.execute(f"select count(*) from predictions where subject_id = {subject}").fetchall() == [(0,)]


def test_a_link_and_its_rights_stay_as_they_are(everything: dict[str, Path], tmp_path: Path) -> None:
    file = everything["meds"] / "data" / "a" / "0.parquet"
    target = tmp_path / "elsewhere.parquet"
    file.rename(target)
    file.symlink_to(target)
    target.chmod(0o600)
    forget({17}, [everything["meds"]])
    assert file.is_symlink()
    assert not holds(tmp_path, 17) or 17 not in pq.read_table(target)["subject_id"].to_pylist()
    assert target.stat().st_mode & 0o777 == 0o600


def test_only_one_process_works_in_a_directory(
    small_run: SmallRun, everything: dict[str, Path], tmp_path: Path
) -> None:
    with alone(everything["sequences"]), pytest.raises(UserError, match="Another process is at work in"):
        forget({17}, [everything["sequences"]])
    with alone(tmp_path / "out"), pytest.raises(UserError, match="Another process is at work in"):
        prepare(small_run.meds, small_run.labels, tmp_path / "out", ASKED, INLINE)


def test_more_patients_in_other_units_are_refused(small_run: SmallRun, grown: tuple[Path, Path, Path]) -> None:
    sequences, _, meds = grown
    file = meds / "metadata" / "codes.parquet"
    codes = pq.read_table(file)
    unit = pa.array(["mmol/L" if c == "lab" else None for c in codes["code"].to_pylist()])
    pq.write_table(codes.set_column(codes.column_names.index("unit"), "unit", unit), file)
    with pytest.raises(UserError, match=r"tells 'lab' in mmol/L, and .* in mg/dL"):
        add_generation(meds, meds / "labels" / "outcome", sequences, INLINE)
