"""The Patient page without a browser: what is listed, shown and asked of the model, and that no address has a patient."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pyarrow as pa
import pytest
from bokeh.models import Range1d

from conftest import SmallRun
from test_server import put, session_at, settle
from whenwhy.attribution.what_if import Served
from whenwhy.errors import UserError
from whenwhy.events.changed_records import Add, Remove, SetNumber
from whenwhy.schema import CARRIED
from whenwhy.server.answers import Answers
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.cohort import Cohort, condition_of
from whenwhy.server.pages import pages
from whenwhy.server.patient import CHOOSE, PAGE, Chosen, RecordAxis, record_of
from whenwhy.server.served import served_of
from whenwhy.server.state import State, default_state
from whenwhy.server.views.patient_events import ROWS, PatientEvents
from whenwhy.server.views.patient_head import PatientHead
from whenwhy.server.views.patient_list import PatientList
from whenwhy.server.views.patient_sum import PatientSum, parts_of
from whenwhy.server.views.patient_what_if import NOT_SERVED, PatientWhatIf, places_of


@pytest.fixture(scope="module")
def choices(analyst: Answers) -> Choices:
    """What it offers them."""
    return choices_of(analyst, "analyst")


@pytest.fixture(scope="module")
def state(choices: Choices) -> State:
    """Where a page begins."""
    return default_state(choices)


@pytest.fixture(scope="module")
def served(small_run: SmallRun, analyst: Answers) -> dict[str, Served]:
    """The small cohort's model."""
    return dict(served_of(small_run.model, small_run.sequences, analyst.store.runs()))


@pytest.fixture(scope="module")
def chosen(analyst: Answers) -> Chosen:
    """Somebody with many values."""
    first = analyst.store.ask("patients", order_by="n_values", top=1).to_pylist()[0]
    return Chosen(first["subject_id"], first["prediction_time"])


def test_list_is_the_cohort_in_its_order(analyst: Answers, choices: Choices, state: State) -> None:
    """Each page and order shows what the query answers of the cohort, and nobody else."""
    where = condition_of("where:n_values > 12")
    some = replace(state, cohort=Cohort("true", conditions=(where,)))
    last = (analyst.store.ask("patients", top=10_000).num_rows - 1) // PAGE * PAGE
    for of, order, skip in (
        (state, "score", 0),
        (state, "time", PAGE),
        (state, "time", last),
        (some, "lowest score", 0),
    ):
        looks = Chosen(order=order, skip=skip)
        texts = put(PatientList(choices, lambda looks=looks: looks), analyst, of)
        found = re.findall(r'data-subject="(-?\d+)" data-time="([^"]+)"', texts["patient_list_table"])
        asked = {"class": of.cohort.class_label, "order_by": order, "skip": skip, "top": PAGE}
        told = analyst.store.ask("patients", cohort=of.cohort.predicate, **asked).to_pylist()
        assert told
        assert found == [(str(row["subject_id"]), row["prediction_time"].isoformat()) for row in told]
        assert ("Previous" in texts["patient_list_table"]) == bool(skip)
        is_more = (
            analyst.store.ask("patients", cohort=of.cohort.predicate, **{**asked, "skip": skip + PAGE}).num_rows > 0
        )
        assert ("Next" in texts["patient_list_table"]) == is_more
    nobody = put(
        PatientList(choices, Chosen), analyst, replace(state, cohort=Cohort(conditions=(condition_of("where:false"),)))
    )
    assert "Nobody is here" in nobody["patient_list_words"]
    assert "<table" not in nobody["patient_list_table"]


def test_viewers_see_one_sentence(small_run: SmallRun) -> None:
    """Their list says who may see patients, and no action shows one."""
    with session_at(small_run.store, "viewer", small_run.store) as session:
        session.begin(pages()["patient"].views(session))
        told = settle(session)
        assert "for analysts alone" in told["texts"]["patient_list_words"]
        session.act("patient", {"subject": "1"})
        assert session.chosen == Chosen()
        assert "for analysts alone" in session.told.tags[0]["texts"]["notice"]


def test_head_adds_up(analyst: Answers, choices: Choices, state: State, chosen: Chosen) -> None:
    """Score, baseline and contributions are the store's, and what they leave is within the tolerance."""
    told = analyst.store.sql(
        "select score, baseline_score, (select sum(attribution) from attributions a where a.subject_id = p.subject_id "
        "and a.prediction_time = p.prediction_time) as sum from predictions p "
        f"where subject_id = {chosen.subject_id} and prediction_time = '{chosen.time}'"
    ).to_pylist()[0]
    view = PatientHead(choices, lambda: chosen)
    tables = {name: analyst.now(asked) for name, asked in view.questions(state).items()}
    record = view.read(state, tables).record
    assert record.residual == pytest.approx(told["sum"] + told["baseline_score"] - told["score"], abs=1e-6)
    assert abs(record.residual) <= choices.runs[state.run]["tolerance"]
    assert "✓ complete" in view.put(view.read(state, tables))["patient_head_table"]
    leaking = replace(record, values=record.values[1:])
    assert abs(leaking.residual) == pytest.approx(abs(record.values[0]["contribution"]), abs=1e-4)
    every = analyst.store.sql(f"from predictions where subject_id = {chosen.subject_id}").num_rows
    assert len(record.predictions) == every


def test_without_a_patient_or_with_an_unknown_one_there_are_words(
    analyst: Answers, choices: Choices, state: State
) -> None:
    """No query is asked before somebody is chosen; an id that nobody has is said."""
    for view in (PatientHead(choices, Chosen), PatientEvents(choices, Chosen, Range1d()), PatientSum(choices, Chosen)):
        with pytest.raises(UserError, match=re.escape(CHOOSE)):
            view.questions(state)
    with pytest.raises(UserError, match="no patient 987654"):
        put(PatientHead(choices, lambda: Chosen(987654)), analyst, state)


def test_timeline_shows_every_value_once(analyst: Answers, choices: Choices, state: State, chosen: Chosen) -> None:
    """Each value at its time with its contribution, undated ones in the strip, zero in the middle of the colours."""
    view = PatientEvents(choices, lambda: chosen, Range1d())
    put(view, analyst, state)
    record = record_of(analyst.now(view.questions(state)["patient"]), chosen)
    axis, drawn = RecordAxis.of(record), view.source.data
    told = sorted((axis.place(row["hours_before"]), row["contribution"]) for row in record.values)
    assert sorted(zip(drawn["x"], drawn["contribution"], strict=True)) == told
    assert view.mapper.low == -view.mapper.high
    assert view.mapper.high == max(abs(one) for one in drawn["contribution"])
    undated = [x for x, time in zip(drawn["x"], drawn["time"], strict=True) if time == "undated"]
    assert undated
    assert all(axis.ends[0] < x < axis.strip for x in undated)
    assert all(x > axis.strip for x, time in zip(drawn["x"], drawn["time"], strict=True) if time != "undated")
    sizes = sorted(zip(map(abs, drawn["contribution"]), drawn["size"], strict=True))
    assert [size for _, size in sizes] == sorted(drawn["size"])


def test_bars_lead_from_the_baseline_to_the_score(
    analyst: Answers, choices: Choices, state: State, chosen: Chosen
) -> None:
    """Each begins where the one above ends; codes beyond the largest are one bar, so that nothing is left out."""
    view = PatientSum(choices, lambda: chosen)
    put(view, analyst, state)
    drawn = view.source.data
    record = record_of(analyst.now(view.questions(state)["patient"]), chosen)
    assert drawn["left"][0] == record.head["baseline_score"]
    assert drawn["left"][1:] == drawn["right"][:-1]
    assert drawn["right"][-1] == pytest.approx(record.head["score"], abs=choices.runs[state.run]["tolerance"])
    assert sum(drawn["n_values"]) == len(record.values)
    row = record.values[0]
    many = [{**row, "code": f"c{i:02}", "contribution": math.pow(-1.5, -i)} for i in range(40)]
    parts = parts_of(replace(record, values=many))
    assert len(parts) == ROWS + 1
    assert parts[-1].words == "28 other features"
    assert parts[-1].sum == pytest.approx(sum(math.pow(-1.5, -i) for i in range(12, 40)))


def what_if(choices: Choices, served: dict[str, Served], chosen: Chosen) -> PatientWhatIf:
    return PatientWhatIf(choices, lambda: chosen, Range1d(), served)


def test_course_ends_at_the_stored_prediction(
    analyst: Answers, choices: Choices, state: State, chosen: Chosen, served: dict[str, Served]
) -> None:
    """The model's last answer is what the store has; every value that may be changed has its contribution."""
    view = what_if(choices, served, chosen)
    texts = put(view, analyst, state)
    record = record_of(analyst.now(view.questions(state)["patient"]), chosen)
    assert view.before.data["score"][-1] == pytest.approx(record.head["score"], abs=1e-5)
    assert view.before.data["probability"][-1] == pytest.approx(record.head["probability"], abs=1e-5)
    assert view.before.data["x"] == sorted(view.before.data["x"])
    assert not view.after.data["x"]
    tables = {name: analyst.now(asked) for name, asked in view.questions(state).items()}
    places = view.read(state, tables).places
    assert places
    assert sorted(row["contribution"] for row in places) == sorted(
        row["contribution"] for row in record.values if row["code"] in {place["code"] for place in places}
    )
    assert texts["patient_what_if_table"].count('data-act="change" data-place') == len(places)
    # What follows from recorded values is no place of a change.
    answer = view.read(state, tables).told.before
    values = answer.values.to_pylist()
    values[0]["kind"] = CARRIED
    carried = replace(answer, values=pa.Table.from_pylist(values, schema=answer.values.schema))
    assert [row["place"] for row in places_of(carried, record)].count(0) == 0
    assert len(places_of(carried, record)) == len(places) - 1


def test_changes_move_the_prediction_and_can_be_undone(
    analyst: Answers, choices: Choices, state: State, chosen: Chosen, served: dict[str, Served]
) -> None:
    """What is shown is what the engine answers; an impossible change is said beside the button that undoes it."""
    assert chosen.subject_id is not None
    assert chosen.time is not None
    view = what_if(choices, served, chosen)
    tables = {name: analyst.now(asked) for name, asked in view.questions(state).items()}
    lab = next(row for row in view.read(state, tables).places if row["code"] == "lab")
    changes = (SetNumber(lab["place"], 3.0), Add("drug", chosen.time - timedelta(hours=5)))
    told = served[state.run].prediction(chosen.subject_id, chosen.time, changes)
    assert told.after.score != told.before.score
    changed = what_if(choices, served, replace(chosen, changes=changes))
    texts = put(changed, analyst, state)
    assert changed.before.data["score"][-1] == told.before.score
    assert changed.after.data["score"][-1] == told.after.score
    assert f"{abs(told.after.score):.3g}"[:4] in texts["patient_what_if_words"]
    assert texts["patient_what_if_changes"].count('data-act="undo" data-at=') == 2
    impossible = what_if(choices, served, replace(chosen, changes=(*changes, Remove(10_000))))
    texts = put(impossible, analyst, state)
    assert "none 10000" in texts["patient_what_if_changes"]
    assert texts["patient_what_if_changes"].count('data-act="undo" data-at=') == 3
    assert not impossible.after.data["x"]
    with pytest.raises(UserError, match=re.escape(NOT_SERVED)):
        what_if(choices, {}, chosen).questions(state)


def test_a_model_of_another_run_is_refused(small_run: SmallRun, analyst: Answers) -> None:
    """One sentence says which directory is meant; of several runs those of the model are served."""
    run = analyst.store.runs()[0]
    with pytest.raises(UserError, match="other weights"):
        served_of(small_run.model, small_run.sequences, [{**run, "model_sha256": "0"}])
    found = served_of(small_run.model, small_run.sequences, [{**run, "run_id": "other", "model_sha256": "0"}, run])
    assert list(found) == [run["run_id"]]


def test_no_address_has_the_patient(
    small_run: SmallRun, chosen: Chosen, served: dict[str, Served], tmp_path: Path
) -> None:
    """A journey: a patient, a change, another cohort, an undo; the address tells of the cohort alone."""
    with session_at(small_run.store, "analyst", tmp_path, served=served) as session:
        session.begin(pages()["patient"].views(session))
        assert CHOOSE in settle(session)["texts"]["patient_head_words"]
        address = session.state.address
        session.act("patient", {"subject": str(chosen.subject_id), "time": chosen.time.isoformat()})
        told = settle(session)
        assert told["status"] == "ready"
        assert f"Patient {chosen.subject_id}," in told["texts"]["patient_head_heading"]
        assert told["state"]["address"] == address
        assert not re.search(rf"\b{chosen.subject_id}\b", address)
        session.act("change", {"place": "0"})
        assert session.chosen.changes == (Remove(0),)
        session.act("change", {"place": "0", "number": "1.5"})
        assert session.chosen.changes == (SetNumber(0, 1.5),)
        session.act("list", {"skip": "10"})
        session.act("choose", {"name": "class", "value": "true"})
        assert session.chosen == replace(chosen, changes=(SetNumber(0, 1.5),))
        session.act("undo", {"at": "0"})
        assert session.chosen == chosen
        for action, told, said in (
            ("patient", {"subject": "1; drop"}, "no patient&#x27;s id"),
            ("change", {"place": "0", "number": "much"}, "give a number"),
            ("change", {"code": "lab", "before": "-3", "hours": "24", "time": chosen.time.isoformat()}, "0 or more"),
            ("list", {"order": "age"}, "lowest score"),
            ("list", {"skip": "far"}, "could not be answered"),
            ("patient", {"subject": "1", "time": "noon"}, "could not be answered"),
        ):
            session.act(action, told)
            assert said in session.told.tags[0]["texts"]["notice"]
        assert session.chosen == chosen
        settle(session)
