"""A changed record, and the model's answer to it, are those of a data set in which the same was changed."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch

from cohort import EVENTS, LABELS, START, write_cohort, write_cohort_of_three
from conftest import INLINE, SmallRun
from foreign_models import stranger
from test_records import write_meds
from whenwhy.attribution.targets import target_named
from whenwhy.attribution.what_if import PatientPrediction, Served
from whenwhy.errors import UserError
from whenwhy.events.changed_records import SAME, Add, Change, ChangeableRecords, Remove, SetNumber
from whenwhy.events.feature_values import AGE, FOREIGN_OFFSET
from whenwhy.events.sequence_batch import Sequences
from whenwhy.events.sequence_directory import TABLE, VOCABULARY, patient_records
from whenwhy.events.sequences import PrepareSettings, add_generation, prepare
from whenwhy.events.strata import years_at
from whenwhy.forget import forget
from whenwhy.models.checkpoint import SHIPPED, WEIGHTS, load_model, vocabulary_sha256
from whenwhy.models.foreign.adapter import adapted
from whenwhy.models.foreign.named import ForeignSource
from whenwhy.models.predictions import scored_shards
from whenwhy.models.recurrent import RecurrentClassifier
from whenwhy.models.retain import Retain
from whenwhy.models.sequence_model import logits_of
from whenwhy.models.training import TrainSettings, train
from whenwhy.schema import SEQUENCES
from whenwhy.shards import StageDirectory
from whenwhy.store import open_store

#: An event as MEDS has it: time (None: undated), code, number.
Event = tuple[datetime | None, str, float | None]

#: The ids of patients whose data were edited begin here.
EDITED = 500_000


@dataclass(frozen=True)
class Edit:
    """Changes of one prediction's record, and the patient's events with the same changes made."""

    subject: int
    time: datetime
    changes: tuple[Change, ...]
    events: list[Event]


def events_of(meds: Path) -> dict[int, list[Event]]:
    """Every patient's events."""
    found: dict[int, list[Event]] = {}
    for row in pq.read_table(meds / "data").to_pylist():
        found.setdefault(row["subject_id"], []).append((row["time"], row["code"], row["numeric_value"]))
    return found


def place_of(events: Sequence[Event], value: dict[str, Any]) -> int:
    """Which event the value is, by its code, its minute and its number."""
    wanted = (value["time"], value["code"], value["number"])
    return next(at for at, event in enumerate(events) if event == wanted)


def random_edit(
    random: np.random.Generator, records: ChangeableRecords, row: pa.Table, events: list[Event], kinds: Sequence[str]
) -> Edit:
    """One to three random changes of a record, each made in the events too."""
    end = row["prediction_time"][0].as_py()
    values = [v for v in records.values(row).to_pylist() if v["kind"] == "recorded"]
    random.shuffle(values)
    events, changes = list(events), []
    for kind in random.choice(kinds, int(random.integers(1, 4))):
        fresh = float(np.float32(random.normal(0, 2)))
        if kind == "add" or not values:
            code = str(random.choice(["lab", "count", "drug", "mixed", "tied", "never seen"]))
            number = None if code == "drug" or (code == "mixed" and fresh > 0) else fresh
            hours = int(random.integers(0, 270))
            time = START + timedelta(hours=hours, minutes=int(random.choice([0, 0, 20, 40])))
            dated = [v["time"] for v in values if v["time"] is not None]
            if dated and random.random() < 0.3:
                time = dated[0]
            time = min(time, end)
            changes.append(Add(code, time, number))
            events.append((time, code, number))
            continue
        value = values.pop()
        if value["code"] == AGE:
            born = datetime(1950, 1, 1) + timedelta(days=int(random.integers(0, 15000)))
            [years] = years_at(*(np.array([t], "M8[us]").astype(np.int64) for t in (born, end)))
            changes.append(SetNumber(value["place"], float(years)))
            [birth] = [at for at, event in enumerate(events) if event[1] == "MEDS_BIRTH"]
            events[birth] = (born, "MEDS_BIRTH", None)
            continue
        at = place_of(events, value)
        if kind == "set" and value["code"] not in ("drug", "SEX//F", "SEX//M"):
            changes.append(SetNumber(value["place"], fresh))
            events[at] = (value["time"], value["code"], fresh)
        else:
            changes.append(Remove(value["place"]))
            del events[at]
    return Edit(row["subject_id"][0].as_py(), end, tuple(changes), events)


def edited(edits: Sequence[Edit], folder: Path, sequences: Path) -> StageDirectory:
    """The sequences with one more patient an edit, prepared from a data set in which the edits were made."""
    for part in ("data", "metadata", "labels"):
        (folder / part).mkdir(parents=True)
    ids = range(EDITED, EDITED + len(edits))
    rows = [
        (subject, *event)
        for subject, edit in zip(ids, edits, strict=True)
        for event in sorted(edit.events, key=lambda event: (event[0] is not None, event[0] or START))
    ]
    labels = [(subject, edit.time, bool(subject % 2)) for subject, edit in zip(ids, edits, strict=True)]
    for name, of, schema in (("data", rows, EVENTS), ("labels", labels, LABELS)):
        table = pa.Table.from_pylist([dict(zip(schema.names, row, strict=True)) for row in of], schema=schema)
        pq.write_table(table, folder / name / "0.parquet")
    splits = pa.table({"subject_id": list(ids), "split": ["held_out"] * len(edits)})
    pq.write_table(splits, folder / "metadata" / "subject_splits.parquet")
    (folder / "metadata" / "dataset.json").write_text('{"dataset_name": "edited", "meds_version": "0.4.1"}')
    return add_generation(folder, folder / "labels", sequences, INLINE)


def some_edits(
    sequences: Path, meds: Path, number: int, seed: int, kinds: Sequence[str] = ("set", "remove", "add")
) -> list[Edit]:
    """Random edits of random predictions."""
    random, stage, events = np.random.default_rng(seed), StageDirectory.open(sequences), events_of(meds)
    records, edits = ChangeableRecords(stage), []
    for subject in random.choice(sorted(events), number):
        rows = patient_records(stage, int(subject))
        row = rows.slice(int(random.integers(rows.num_rows)), 1)
        edits.append(random_edit(random, records, row, events[int(subject)], kinds))
    return edits


EVERYTHING = {
    "carry": ("lab", "count"), "since_last": ("lab", "drug"), "not_measured": (("lab", 12.0), ("drug", 30.0)),
    "numbers": ("lab", "mixed", "size"),
}  # fmt: skip


@pytest.fixture(scope="module")
def few_meds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("few") / "meds"
    write_cohort(folder, patients=60, seed=3)
    return folder


@pytest.mark.parametrize(
    ("asked", "kinds"),
    [
        ({}, ("set", "remove", "add")),
        (EVERYTHING, ("set", "remove", "add")),
        (EVERYTHING | {"steps": "visit", "visit_gap_hours": 8.0}, ("set", "remove", "add")),
        (EVERYTHING | {"steps": "6h", "carry": ("all",), "carry_hours": 20.0}, ("set", "remove", "add")),
        (EVERYTHING | {"steps": "1d", "anchor": "drug"}, ("set", "remove", "add")),
        ({"steps": "1d", "anchor": "drug", "without": ("drug",), "history_hours": 90.0}, ("set", "remove", "add")),
        (EVERYTHING | {"steps": "6h", "max_steps": 20, "carry": ()}, ("set", "remove", "add")),
        ({"max_steps": 6}, ("set", "add")),
        ({"steps": "visit", "visit_gap_hours": 8.0, "repeats": "once"}, ("add",)),
        (EVERYTHING | {"steps": "visit", "visit_gap_hours": 30.0, "repeats": "last"}, ("add",)),
    ],
    ids=str,
)
def test_a_changed_record_is_the_one_of_changed_data(
    few_meds: Path, tmp_path: Path, asked: dict[str, Any], kinds: Sequence[str]
) -> None:
    settings = PrepareSettings("x", bins=4, shard_size=64, **asked)
    prepare(few_meds, few_meds / "labels" / "outcome", tmp_path / "sequences", settings, INLINE)
    edits = some_edits(tmp_path / "sequences", few_meds, 50, 5, kinds)
    stage = edited(edits, tmp_path / "edited", tmp_path / "sequences")
    records, differ, lost = ChangeableRecords(stage), 0, 0
    for number, edit in enumerate(edits):
        rows = patient_records(stage, edit.subject)
        row = rows.slice(rows["prediction_time"].to_pylist().index(edit.time), 1)
        try:
            changed = records.changed(row, edit.changes)
        except UserError:
            assert "max_steps" in asked
            lost += 1
            continue
        if any("is not kept" in remark for remark in changed.remarks):
            lost += 1
            continue
        expected = patient_records(stage, EDITED + number)
        for name in SAME if "max_steps" in asked else (*SAME, "history_minutes"):
            assert changed.table[name].to_pylist() == expected[name].to_pylist(), (name, edit, changed.remarks)
        differ += any(not changed.table[name].equals(row[name]) for name in SAME)
    assert lost < len(edits) * 0.8 if "max_steps" in asked or settings.repeats != "all" else not lost
    assert differ > (len(edits) - lost) / 2


# -- the model's answers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Grown:
    """The small run's sequences with edited patients beside them."""

    sequences: Path
    edits: list[Edit]

    def run_of(self, model: Path, target: str = "logit") -> dict[str, Any]:
        """What a store would say of a run of this model."""
        weights = StageDirectory.open(model).entry(SHIPPED).files[WEIGHTS]["sha256"]
        return self.facts(weights, target)

    def facts(self, model_sha256: str, target: str = "logit") -> dict[str, Any]:
        vocabulary = vocabulary_sha256(StageDirectory.open(self.sequences))
        return {"run_id": "r", "model_sha256": model_sha256, "vocabulary_sha256": vocabulary, "target": target}

    def require_answers(self, served: Served) -> None:
        """Every answer is what the model says of the data that were changed, and of the data as they were."""
        stage = StageDirectory.open(self.sequences)
        logits: dict[tuple[int, datetime], np.ndarray] = {}
        for shard in scored_shards(served.model, stage):
            told = zip(shard.column("subject_id"), shard.column("prediction_time"), shard.logits, strict=True)
            logits |= {(int(s), t.astype("M8[us]").astype(datetime)): of for s, t, of in told}
        moved = 0
        for number, edit in enumerate(self.edits):
            found = served.prediction(edit.subject, edit.time, edit.changes)
            for answer, wanted in (
                (found.before, logits[edit.subject, edit.time]),
                (found.after, logits[EDITED + number, edit.time]),
            ):
                probabilities = torch.tensor(wanted).softmax(0)
                assert list(answer.probabilities.values()) == pytest.approx(probabilities.tolist(), abs=1e-5)
                assert answer.score == pytest.approx(wanted[1] - wanted[0], abs=1e-4)
                if len(answer.course.score):
                    assert answer.course.score[-1] == pytest.approx(answer.score, abs=1e-4)
                    assert answer.course.probability[-1] == pytest.approx(answer.probability, abs=1e-5)
            anew = served.prediction(EDITED + number, edit.time).before.course
            for name in ("score", "probability"):
                np.testing.assert_allclose(getattr(found.after.course, name), getattr(anew, name), atol=1e-4)
            assert found.after.course.time.tolist() == anew.time.tolist()
            moved += abs(found.after.score - found.before.score) > 1e-5
        assert moved > len(self.edits) / 2


@pytest.fixture(scope="module")
def grown(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    folder = tmp_path_factory.mktemp("grown")
    shutil.copytree(small_run.sequences, folder / "sequences")
    edits = some_edits(folder / "sequences", small_run.meds, 25, 9)
    edited(edits, folder / "edited", folder / "sequences")
    return Grown(folder / "sequences", edits)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(
    "asked",
    [
        {"architecture": "gru_attention", "members": 3},
        {"architecture": "lstm", "bidirectional": True},
        {"architecture": "retain", "members": 2},
    ],
    ids=str,
)
def test_answers_are_the_models_of_changed_data(
    small_run: SmallRun, grown: Grown, tmp_path: Path, asked: dict[str, Any]
) -> None:
    train(small_run.sequences, tmp_path / "model", TrainSettings(hidden=4, epochs=1, **asked), INLINE)
    grown.require_answers(Served.open(tmp_path / "model", grown.sequences, grown.run_of(tmp_path / "model")))


@pytest.mark.usefixtures("one_thread")
def test_answers_of_a_strangers_network(grown: Grown, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parent)
    size = StageDirectory.open(grown.sequences).read(VOCABULARY, VOCABULARY).num_rows - FOREIGN_OFFSET
    torch.manual_seed(3)
    torch.save(stranger.make(size, hidden=6).state_dict(), tmp_path / "best.pt")
    source = ForeignSource(
        "foreign_models.stranger:make", tmp_path / "best.pt", f'{{"n_codes": {size}, "hidden": 6}}', output="logit"
    )
    grown.require_answers(Served.open(source, grown.sequences, grown.facts(source.weights_sha256())))
    with pytest.raises(UserError, match="has other weights than the model that run r of the store explains"):
        Served.open(source, grown.sequences, grown.facts("0" * 64))


def test_without_changes_the_answer_is_the_stores(small_run: SmallRun) -> None:
    store = open_store(small_run.store)
    [run] = store.sql("from runs").to_pylist()
    rows = store.sql("from predictions order by hash(prediction_id) limit 40").to_pylist()
    store.close()
    served = Served.open(small_run.model, small_run.sequences, run)
    for row in rows:
        found = served.prediction(row["subject_id"], row["prediction_time"])
        assert found.after is found.before
        assert (found.before.score, found.before.probability) == pytest.approx(
            (row["score"], row["probability"]), abs=1e-5
        )
        assert len(found.before.course.time) == row["n_steps"]
        assert found.before.values.num_rows == row["n_values"]


@pytest.mark.parametrize(
    ("kind", "target"),
    [
        *(("gru", target) for target in ("logit", "probability:false", "log_odds:false:true", "unit:2", "logit@2")),
        *(("retain", target) for target in ("logit", "probability:false")),
        ("stranger", "unit:2"),
    ],
)
def test_the_course_is_what_the_model_says_of_the_record_cut_after_each_step(
    small_run: SmallRun, kind: str, target: str
) -> None:
    stage, model = StageDirectory.open(small_run.sequences), load_model(small_run.model)
    torch.manual_seed(1)
    if kind == "retain":
        model = Retain(model.vocabulary_size, hidden=4).eval()
    if kind == "stranger":
        size = model.vocabulary_size - FOREIGN_OFFSET
        model, _ = adapted(
            stranger.make(size, hidden=6), size, Sequences(stage.read(stage.shards[0], TABLE)), output="logit"
        )
    served = Served(stage, model, target)
    longest = max(stage.read(stage.shards[0], TABLE).to_pylist(), key=lambda row: len(row["step_minutes"]))
    found = served.prediction(longest["subject_id"], longest["prediction_time"]).before
    n_steps = len(longest["step_minutes"])
    assert n_steps > 10
    for step in range(n_steps):
        kept = [at for at, of in enumerate(longest["event_step"]) if of <= step]
        cut = longest | {"step_minutes": longest["step_minutes"][: step + 1]}
        cut |= {name: [longest[name][at] for at in kept] for name in ("event_step", "event_id", "event_minutes")}
        cut |= {"event_value": [longest["event_value"][at] for at in kept], "strata": []}
        batch = Sequences(pa.Table.from_pylist([cut], schema=SEQUENCES)).batch(np.array([0]))
        with torch.no_grad():
            embedded = model.embed(batch)
            whole = replace(target_named(target), step=None)
            assert found.course.score[step] == pytest.approx(
                float(whole.score(model, embedded, batch.lengths)), abs=1e-5
            )
            probability = logits_of(model, embedded, batch.lengths).softmax(1)[0, 0 if "false" in target else 1]
        assert found.course.probability[step] == pytest.approx(float(probability), abs=1e-5)
        time = longest["prediction_time"] - timedelta(minutes=longest["step_minutes"][step])
        assert found.course.time[step].astype(datetime) == time
    at = 2 if target.endswith("@2") else -1
    assert found.score == pytest.approx(found.course.score[at], abs=1e-5)


def test_a_patient_is_told_as_the_data_have_it(small_run: SmallRun) -> None:
    served = Served(StageDirectory.open(small_run.sequences), load_model(small_run.model))
    labels = pq.read_table(small_run.labels).to_pylist()
    for subject in (3, 17, 250):
        recorded = events_of(small_run.meds)[subject]
        predictions = served.patient(subject)
        assert [(p.prediction_time, p.label == "true") for p in predictions] == [
            (row["prediction_time"], row["boolean_value"]) for row in labels if row["subject_id"] == subject
        ]
        for prediction in predictions:
            values = prediction.values.to_pylist()
            told = [(v["time"], v["code"], v["number"]) for v in values if v["code"] != AGE]
            known = [
                e for e in recorded if e[1] != "MEDS_BIRTH" and (e[0] is None or e[0] <= prediction.prediction_time)
            ]
            key = lambda e: (e[0] or START, e[1], e[2] or 0.0)  # noqa: E731
            assert sorted(told, key=key) == sorted(known, key=key)
            assert [v["place"] for v in values] == list(range(len(values)))
            assert all(v["low"] <= v["number"] < v["high"] for v in values if v["low"] is not None)
            assert {v["unit"] for v in values if v["code"] == "lab"} <= {"mg/dL"}


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("target", ["logit:dead", "log_odds:home:nursing", "unit:1"])
def test_several_classes_have_a_probability_each(tmp_path: Path, target: str) -> None:
    write_cohort_of_three(tmp_path / "meds", patients=30, seed=2)
    labels = tmp_path / "meds" / "labels" / "outcome"
    stage = prepare(tmp_path / "meds", labels, tmp_path / "out", PrepareSettings("x", rare_below=1), INLINE)
    torch.manual_seed(4)
    size, classes = stage.read(VOCABULARY, VOCABULARY).num_rows, ("dead", "home", "nursing")
    model = RecurrentClassifier(size, hidden=4, classes=classes).eval()
    row = max((r for n in stage.shards for r in stage.read(n, TABLE).to_pylist()), key=lambda r: len(r["event_id"]))
    found = Served(stage, model, target).prediction(row["subject_id"], row["prediction_time"], [Remove(0)])
    batch = Sequences(patient_records(stage, row["subject_id"])).batch(np.array([0]))
    with torch.no_grad():
        probabilities = model.logits(model.embed(batch), batch.lengths).double().softmax(1)[0]
    assert list(found.before.probabilities) == list(classes)
    assert list(found.before.probabilities.values()) == pytest.approx(probabilities.tolist(), abs=1e-6)
    shown = {"logit:dead": 0, "log_odds:home:nursing": 1, "unit:1": int(probabilities.argmax())}[target]
    assert found.before.probability == pytest.approx(float(probabilities[shown]), abs=1e-6)
    for answer in (found.before, found.after):
        assert answer.course.score[-1] == pytest.approx(answer.score, abs=1e-6)
        assert answer.course.probability[-1] == pytest.approx(answer.probability, abs=1e-6)
    assert found.after.score != found.before.score


# -- what is said ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def served(small_run: SmallRun) -> Served:
    return Served(StageDirectory.open(small_run.sequences), load_model(small_run.model))


@pytest.fixture(scope="module")
def asked(served: Served) -> PatientPrediction:
    """A prediction with values of every code."""
    return next(
        p
        for subject in range(3, 300)
        for p in served.patient(subject)
        if {"lab", "count", "drug", "size"} <= set(p.values["code"].to_pylist())
    )


@pytest.fixture(scope="module")
def whose(served: Served, asked: PatientPrediction) -> int:
    return next(s for s in range(3, 300) if any(p.values.equals(asked.values) for p in served.patient(s)))


def place(asked: PatientPrediction, code: str) -> int:
    return asked.values["code"].to_pylist().index(code)


def test_what_the_model_cannot_know_is_said(served: Served, asked: PatientPrediction, whose: int) -> None:
    def remarks(*changes: Change) -> str:
        return " ".join(served.prediction(whose, asked.prediction_time, changes).remarks)

    assert remarks(SetNumber(place(asked, "lab"), 0.1)) == ""
    assert "'lab' with the number 1e+06 lies outside the numbers that the model was trained on, -" in remarks(
        SetNumber(place(asked, "lab"), 1e6)
    )
    assert "lies outside the numbers that the model was trained on, 0 to 2." in remarks(Add("count", START, 3.0))
    assert "does not know the code 'heart'" in remarks(Add("heart", START, 3.0))
    assert "No training patient has 'drug' undated" in remarks(Add("drug"))
    found = served.prediction(whose, asked.prediction_time, [Add("heart", START, 3.0)])
    assert found.after.score == found.before.score


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda p: SetNumber(place(p, "lab"), float("nan")), "The number of 'lab' is nan: give a finite one"),
        (lambda p: SetNumber(place(p, "lab"), 1e300), "give a finite one"),
        (lambda p: Add("lab", START, float("inf")), "The number of 'lab' is inf"),
        (lambda p: Add("lab", START), "'lab' is always recorded with a number: give one"),
        (lambda p: Add("drug", START, 1.0), "'drug' has no numbers, and 1 is given: leave the number out"),
        (lambda p: SetNumber(place(p, "drug"), 1.0), "'drug' has no numbers"),
        (lambda p: Add("lab", p.prediction_time + timedelta(microseconds=1), 1.0), "after the prediction at"),
        (lambda p: Add("lab", START.replace(tzinfo=UTC), 1.0), "has a time zone"),
        (lambda p: Add("AGE", None, 50.0), "is known once of a patient: change the number of 'AGE'"),
        (lambda p: Remove(p.values.num_rows), "and none"),
        (lambda p: Remove(-1), "and none -1: name one of them"),
    ],
)
def test_impossible_changes_are_answered_in_one_sentence(
    served: Served, asked: PatientPrediction, whose: int, change: Callable[[PatientPrediction], Change], sentence: str
) -> None:
    with pytest.raises(UserError, match=re.escape(sentence)) as told:
        served.prediction(whose, asked.prediction_time, [change(asked)])
    assert "\n" not in str(told.value)


def test_one_place_is_changed_once_and_what_follows_not_at_all(
    served: Served, asked: PatientPrediction, whose: int, small_run: SmallRun, tmp_path: Path
) -> None:
    at = place(asked, "lab")
    with pytest.raises(UserError, match="is changed twice"):
        served.prediction(whose, asked.prediction_time, [Remove(at), SetNumber(at, 1.0)])
    settings = PrepareSettings("x", bins=4, carry=("lab",), shard_size=1024)
    prepare(small_run.meds, small_run.labels, tmp_path / "carried", settings, INLINE)
    stage = StageDirectory.open(tmp_path / "carried")
    records, row = ChangeableRecords(stage), patient_records(stage, whose).slice(0, 1)
    carried = next(v for v in records.values(row).to_pylist() if v["kind"] == "carried forward")
    with pytest.raises(UserError, match=r"'lab \(carried forward\)' at place \d+ follows from what is recorded"):
        records.changed(row, [Remove(carried["place"])])


def test_numbers_that_a_given_vocabulary_lacks_are_not_seen(few_meds: Path, tmp_path: Path) -> None:
    (tmp_path / "v.csv").write_text("index,code,low,high\n0,lab,-1,0\n1,lab,0,2\n2,drug,,\n3,count,,\n")
    labels = few_meds / "labels" / "outcome"
    prepare(few_meds, labels, tmp_path / "out", PrepareSettings("x"), INLINE, vocabulary=tmp_path / "v.csv")
    records, recorded = ChangeableRecords(StageDirectory.open(tmp_path / "out")), events_of(few_meds)
    rows = [patient_records(StageDirectory.open(tmp_path / "out"), s).slice(0, 1) for s in range(3, 61)]
    row = next(r for r in rows if {"lab", "drug"} <= set(records.values(r)["code"].to_pylist()))
    subject, time = row["subject_id"][0].as_py(), row["prediction_time"][0].as_py()
    lab = next(v for v in records.values(row).to_pylist() if v["code"] == "lab")
    edits, remarks = [], []
    for number in (1.5, 5.0):
        events = list(recorded[subject])
        events[place_of(events, lab)] = (lab["time"], "lab", number)
        changes = (SetNumber(lab["place"], number), Add("count", time, 7.0))
        edits.append(Edit(subject, time, changes, [*events, (time, "count", 7.0)]))
    stage = edited(edits, tmp_path / "edited", tmp_path / "out")
    for number, edit in enumerate(edits):
        changed, expected = records.changed(row, edit.changes), patient_records(stage, EDITED + number)
        assert [changed.table[name].to_pylist() for name in SAME] == [expected[name].to_pylist() for name in SAME]
        remarks.append(changed.remarks)
    unknown = "Which numbers of 'count' the model was trained on is not known."
    assert remarks[0] == (unknown,)
    assert remarks[1] == (
        "'lab' with the number 5 lies outside the numbers that the model was trained on, -1 to 2.",
        "'lab' with the number 5 has no feature value, so it is not seen.",
        unknown,
    )


def test_rare_codes_are_told_apart(tmp_path: Path) -> None:
    events = {
        s: [(START + timedelta(hours=1), "LAB//common", float(s)), (START + timedelta(hours=2), "LAB//seldom", 1.0)][
            : 1 + (s == 1)
        ]
        for s in range(1, 13)
    }
    write_meds(tmp_path / "meds", events, {s: [START + timedelta(hours=9)] for s in events})
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", PrepareSettings("x"), INLINE)
    records = ChangeableRecords(stage)
    rows = [patient_records(stage, s) for s in (1, 2)]
    [rare] = [v["place"] for v in records.values(rows[0]).to_pylist() if v["kind"] == "rare"]
    changed = records.changed(rows[0], [SetNumber(rare, 7.0)])
    assert changed.remarks == ("'LAB (rare)' stands for rare codes, whose numbers the model does not see.",)
    changed = records.changed(rows[1], [Add("LAB//seldom", START + timedelta(hours=2), 1.0)])
    assert changed.remarks == ("'LAB//seldom' is rare, so the model sees 'LAB (rare)', whatever the number.",)
    assert changed.table["event_id"].to_pylist()[0][-1] == rows[0]["event_id"].to_pylist()[0][-1]


def test_steps_within_a_minute_stay_apart(tmp_path: Path) -> None:
    second = timedelta(seconds=1)
    events = {s: [(START + n * second, "lab", float(n)) for n in range(5)] for s in range(1, 13)}
    write_meds(tmp_path / "meds", events, {s: [START + timedelta(hours=9)] for s in events})
    stage = prepare(tmp_path / "meds", tmp_path / "meds" / "labels", tmp_path / "out", PrepareSettings("x"), INLINE)
    row = patient_records(stage, 4)
    assert row["event_step"].to_pylist() == [[0, 1, 2, 3, 4]]
    within = ChangeableRecords(stage).changed(row, [Add("lab", START + 30 * second, 2.5)]).table
    assert within["event_step"].to_pylist() == [[0, 1, 2, 3, 4, 4]]
    changed = ChangeableRecords(stage).changed(row, [Remove(1)]).table
    assert changed["event_value"].to_pylist() == [[0.0, 2.0, 3.0, 4.0]]
    assert changed["event_step"].to_pylist() == [[0, 1, 2, 3]]


# -- who is there ------------------------------------------------------------------------------------


def test_patients_are_found_in_any_generation_until_they_withdraw(
    grown: Grown, small_run: SmallRun, tmp_path: Path
) -> None:
    shutil.copytree(grown.sequences, tmp_path / "sequences")
    stage = StageDirectory.open(tmp_path / "sequences")
    everybody = {s: n for n in stage.shards for s in stage.read(n, TABLE)["subject_id"].to_pylist()}
    for subject, name in everybody.items():
        table = stage.read(name, TABLE)
        assert patient_records(stage, subject).equals(
            table.filter(pc.equal(table["subject_id"], subject)).cast(SEQUENCES)
        )
    served = Served(stage, load_model(small_run.model))
    assert served.patient(EDITED)
    forget({EDITED}, [tmp_path / "sequences"])
    for subject in (EDITED, 10**6, 2**70):
        with pytest.raises(UserError, match=f"has no patient {subject}: check the id"):
            served.patient(subject)
    with pytest.raises(
        UserError, match=r"has no prediction of patient 5 at 1999-01-01 00:00:00: choose one of 2020-01"
    ):
        served.prediction(5, datetime(1999, 1, 1))


def test_an_answer_follows_the_patients_shard(grown: Grown, small_run: SmallRun, tmp_path: Path) -> None:
    shutil.copytree(grown.sequences, tmp_path / "sequences")
    stage = StageDirectory.open(tmp_path / "sequences")
    served, rows = Served(stage, load_model(small_run.model)), stage.read(stage.shards[0], TABLE).to_pylist()
    subject, time = rows[0]["subject_id"], rows[0]["prediction_time"]
    before = served.prediction(subject, time).before
    assert before.values["step"].null_count > 0
    undone = pa.Table.from_pylist([row | {"static_id": [], "static_value": []} for row in rows], schema=SEQUENCES)
    stage.replace(stage.shards[0], {TABLE: undone}, {})
    now = served.prediction(subject, time).before
    assert now.values["step"].null_count == 0
    assert now.score != before.score


def test_what_the_store_does_not_explain_is_refused(small_run: SmallRun, grown: Grown, tmp_path: Path) -> None:
    run = grown.run_of(small_run.model)
    train(small_run.sequences, tmp_path / "model", TrainSettings(hidden=3, epochs=1), INLINE)
    with pytest.raises(
        UserError, match="has other weights than the model that run r of the store explains: give --model"
    ):
        Served.open(tmp_path / "model", grown.sequences, run)
    with pytest.raises(
        UserError, match="has other feature values than run r of the store was made with: give --sequences"
    ):
        Served.open(small_run.model, grown.sequences, run | {"vocabulary_sha256": "0" * 64})
