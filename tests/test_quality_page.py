"""The views of quality say what a reader must know first, in the numbers that the queries answer."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from conftest import INLINE, SmallRun
from test_server import put, session_at, settle, sources
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.errors import UserError
from whenwhy.schema import TRAIN
from whenwhy.server.answers import Answers
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.cohort import Cohort, members_sql, recorded_text
from whenwhy.server.labels import is_complete, percent
from whenwhy.server.pages import pages
from whenwhy.server.state import State, default_state
from whenwhy.server.view import Texts
from whenwhy.server.views import About, Agreement, Completeness, DataQuality, Leaks, Provenance, Subgroups
from whenwhy.server.views.leaks import suspicions
from whenwhy.server.views.subgroups import Disagreements
from whenwhy.statistics.aggregate import aggregate_cells
from whenwhy.store import open_store
from whenwhy.store.publish import publish_store


@pytest.fixture(scope="module")
def two_methods(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of the small run, and of one more by a method that does not promise to add up."""
    folder = tmp_path_factory.mktemp("two_methods")
    attribute_shards(
        small_run.sequences, small_run.model, folder / "more", AttributeSettings("gradient_times_input"), INLINE
    )
    both = [small_run.attributions, folder / "more"]
    publish_store(folder / "store", aggregate_cells(both, folder / "store", time_bin_hours=24), both)
    return folder / "store"


@pytest.fixture(scope="module", params=["viewer", "analyst"])
def answers(two_methods: Path, request: pytest.FixtureRequest) -> Iterator[Answers]:
    """What it answers either role."""
    opened = open_store(two_methods, request.param)
    with ThreadPoolExecutor(2) as pool:
        yield Answers(opened, pool)
    opened.close()


@pytest.fixture(scope="module")
def choices(answers: Answers) -> Choices:
    """What it offers."""
    return choices_of(answers, answers.store.role)


def of_method(choices: Choices, method: str) -> State:
    """The default of the run of a method."""
    return default_state(choices, next(run for run, row in choices.runs.items() if row["method"] == method))


def cells(text: str) -> list[str]:
    """The words of every cell of tables."""
    return [html.unescape(re.sub("<[^>]*>", "", cell)) for cell in re.findall(r"<td[^>]*>(.*?)</td>", text)]


def test_another_run_is_of_the_same_patients(two_methods: Path, tmp_path: Path) -> None:
    """The panel, the conditions and the fewest patients stay; what the other run does not know is refused in words."""
    with session_at(two_methods, "analyst", tmp_path) as session:
        session.begin([])
        other = next(run for run in session.version.choices.runs if run != session.state.run)
        value = session.version.choices.ranges(session.state.run, "lab")[1]["feature_value_id"]
        session.act("add", {"condition": recorded_text("lab", (value,), (0.0, 1e4))})
        session.act("panel", {"hours": "24"})
        before = session.state
        session.act("choose", {"name": "run", "value": other})
        after = session.state
        assert after.run == other
        assert (after.panel, after.cohort, after.min_patients) == (24.0, before.cohort, before.min_patients)


def test_a_file_says_whom_it_is_of_and_no_more(two_methods: Path, tmp_path: Path) -> None:
    """Conditions and a fixed panel where the question has them; nobody's id."""
    with session_at(two_methods, "analyst", tmp_path) as session:
        views = pages()["quality"].views(session) + pages()["overview"].views(session)
        session.begin(views)
        session.saved.draw("drawn in the plane 0", members_sql({(7, 0), (8, 0)}), "somebody")
        for condition in ("where:n_steps > 1", "saved:drawn in the plane 0"):
            session.act("add", {"condition": condition})
        session.act("panel", {"hours": "48"})
        for name, has_conditions in (("data_quality", False), ("leaks", False), ("timeline", True), ("at_risk", True)):
            session.act("csv", {"view": name})
            told = settle(session)["csv"]["content"].splitlines()
            [who] = [line for line in told if line.startswith("# cohort: ")]
            assert ("n_steps > 1" in who) == has_conditions, name
            assert ("history reaches back 2 days" in who) == has_conditions, name
            assert "unnest" not in "".join(told[:4])
            assert ("one of 2 predictions that a line was drawn around" in told[0]) == has_conditions


def test_completeness_is_told_with_what_it_means(answers: Answers, choices: Choices) -> None:
    """By either role; how many predictions miss is for analysts alone, also in the badge of every page."""
    is_analyst = answers.store.role == "analyst"
    whole, partial = of_method(choices, "integrated_gradients"), of_method(choices, "gradient_times_input")
    assert (is_complete(choices.runs[whole.run]), is_complete(choices.runs[partial.run])) == (True, False)
    texts = put(Completeness(), answers, whole)
    assert "Complete: contributions add up" in texts["completeness_heading"]
    assert "contributions add up</a>" in put(About(choices, "v"), answers, whole)["about"]
    told = put(Completeness(), answers, partial)
    n_over, n = (choices.runs[partial.run][name] for name in ("n_over_tolerance", "n_predictions"))
    assert "Not complete" in told["completeness_heading"]
    assert "as a ranking and not as parts" in told["completeness_heading"]
    badge = put(About(choices, "v"), answers, partial)["about"]
    if is_analyst:
        assert f"for {n_over:,} of {n:,} predictions ({percent(n_over / n)})" in told["completeness_heading"]
        assert f"! {n_over:,} predictions incomplete" in badge
    else:
        assert "for some predictions" in told["completeness_heading"]
        assert "for analysts alone" in told["completeness_table"]
        assert "! some predictions incomplete" in badge


def test_the_model_stands_beside_a_logistic_regression(answers: Answers, choices: Choices) -> None:
    """The numbers of the query, to three places."""
    state = default_state(choices)
    run = choices.runs[state.run]
    texts = put(Completeness(), answers, state)
    assert f"AUROC {run['auroc']:.3f}" in texts["model_heading"]
    assert {f"{run['auroc']:.3f}", f"{run['reference_auroc']:.3f}"} <= set(cells(texts["model_table"]))
    unmeasured = Completeness().put(Completeness().read(state, {"runs": _without_auroc(answers)}))
    assert "no AUROC was measured" in unmeasured["model_heading"]
    assert "not measured" in cells(unmeasured["model_table"])


def _without_auroc(answers: Answers) -> pa.Table:
    table = answers.store.ask("runs")
    for name in ("auroc", "reference_auroc"):
        at = table.column_names.index(name)
        table = table.set_column(at, table.field(at), pa.nulls(table.num_rows, pa.float64()))
    return table


def test_provenance_can_be_copied(answers: Answers, choices: Choices, small_run: SmallRun) -> None:
    """Run, model and inputs by their hashes; counts for analysts alone."""
    state = of_method(choices, "integrated_gradients")
    text = put(Provenance("abcd"), answers, state)["provenance_table"]
    run = answers.store.sql("select * from runs where run_id = '" + state.run + "'").to_pylist()[0]
    copied = re.findall('data-copy="([^"]*)"', text)
    assert copied[0] == "abcd"
    assert {run[name] for name in ("run_id", "method", "model_sha256", "vocabulary_sha256", "input_sha256")} <= set(
        copied
    )
    n_predictions = answers.store.ask("runs").to_pylist()[0]["n_predictions"]
    assert (str(n_predictions) in copied) == (answers.store.role == "analyst")


def test_records_are_what_the_store_answers(answers: Answers, choices: Choices) -> None:
    """Coverage beside training's in both chart and table, those with findings first, all of them counted."""
    state = default_state(choices)
    view = DataQuality(choices, lambda code: None)
    texts = put(view, answers, state)
    rows = answers.store.ask("data_quality", run=state.run, split=state.split).to_pylist()
    n_found = sum(bool(row["findings"]) for row in rows)
    assert f"{n_found} of {len(rows)} features with findings" in texts["data_quality_heading"]
    shown = view.coverage.source.data
    assert shown["code"] == [row["code"] for row in rows[:20]]
    assert shown["first"] == pytest.approx([100 * row["share_of_patients"] for row in rows[:20]])
    told = [None if row["training_share"] is None else 100 * row["training_share"] for row in rows[:20]]
    assert [None if x != x else x for x in shown["second"]] == pytest.approx(told)
    found = [row["findings"] for row in rows[:20] if row["findings"]]
    assert [text for text in cells(texts["data_quality_table"]) if text in found] == found
    training = put(view, answers, replace(state, split=TRAIN))
    assert "training patients, all classes" in training["data_quality_heading"]


def test_suspicions_are_what_the_store_answers(answers: Answers, choices: Choices) -> None:
    """With the caveat; subgroups are looked at once a kind is chosen."""
    state = default_state(choices)
    view = Leaks(choices)
    for kind in (None, "sex"):
        texts = put(view, answers, replace(state, subgroups=kind))
        by_kind = {} if kind is None else {"subgroups": kind}
        rows = answers.store.ask("leak_finder", run=state.run, split=state.split, **by_kind).to_pylist()
        n_suspected = sum(bool(suspicions(row, kind)) for row in rows)
        assert f"{n_suspected} of {len(rows)} features under suspicion" in texts["leaks_heading"]
        assert "a suspicion is no proof" in texts["leaks_heading"]
        assert ("False discovery rate by sex" in texts["leaks_table"]) == (kind == "sex")
        assert ("chosen below" in texts["leaks_table"]) == (kind is None)
        said = [", ".join(suspicions(row, kind)) or "none" for row in rows[:10]]
        width = 6 + (kind is not None)
        assert cells(texts["leaks_table"])[1::width] == said


def test_subgroups_are_what_the_store_answers(answers: Answers, choices: Choices) -> None:
    """Of the kind that is chosen, with buttons for the others; a store without strata says how to have them."""
    state = default_state(choices)
    view = Subgroups(choices)
    for kind in ("sex", "age_band"):
        texts = put(view, answers, replace(state, subgroups=kind))
        rows = answers.store.ask(
            "subgroup_disagreement", run=state.run, split=state.split, subgroups=kind, top=10
        ).to_pylist()
        assert rows
        told = cells(texts["subgroups_table"])
        assert told[2::8] == [f"{row['n_patients_a']:,} and {row['n_patients_b']:,}" for row in rows]
        assert told[7::8] == ["yes" if row["signs_differ"] else "no" for row in rows]
        assert f'data-value="{kind}"' not in texts["subgroups_words"]
        assert texts["subgroups_words"].count('data-name="subgroups"') == len(choices.offered[state.run].kinds) - 1
    # The small run has no opposite signs and no discovery.
    turned = [row | {"signs_differ": True} for row in rows]
    texts = view.put(Disagreements(state, "age_band", turned))
    assert set(cells(texts["subgroups_table"])[7::8]) == {"yes"}
    assert "<b>" not in texts["subgroups_table"]
    texts = view.put(Disagreements(state, "age_band", [row | {"is_discovery": True} for row in rows]))
    assert f": {len(rows)} of {len(rows)} feature" in texts["subgroups_heading"]
    assert texts["subgroups_table"].count("<b>") == len(rows)
    plain = {run: replace(offered, strata=("all",)) for run, offered in choices.offered.items()}
    with pytest.raises(UserError, match="--strata sex,age_band"):
        Subgroups(replace(choices, offered=plain)).questions(state)


def test_runs_are_held_against_each_other(answers: Answers, choices: Choices) -> None:
    """Ranks and signs as the query answers, the features that part most in both levels; alone, how to make another."""
    state = of_method(choices, "integrated_gradients")
    other = of_method(choices, "gradient_times_input").run
    view = Agreement(choices, lambda code: None)
    texts = put(view, answers, state)
    [told] = answers.store.ask("method_agreement", run_a=state.run, run_b=other, split=state.split).to_pylist()
    drift = answers.store.ask("drift", run_a=state.run, run_b=other, split=state.split, top=15).to_pylist()
    assert f"rank correlation {told['rank_correlation']:.2f}" in texts["agreement_heading"]
    assert percent(told["same_sign"]) in cells(texts["agreement_words"])
    shown = view.drift.source.data
    assert shown["code"] == [row["code"] for row in drift]
    assert shown["first"] == pytest.approx([row["mean_a"] for row in drift])
    assert shown["second"] == pytest.approx([row["mean_b"] for row in drift])
    assert shown["first"] != shown["second"]
    alone = replace(choices, runs={state.run: choices.runs[state.run]})
    with pytest.raises(UserError, match="whenwhy aggregate ATTR1 ATTR2"):
        Agreement(alone, lambda code: None).questions(state)


def test_runs_of_different_units_are_not_drawn_on_one_scale(answers: Answers, choices: Choices) -> None:
    """Ranks and signs alone compare."""
    state = of_method(choices, "integrated_gradients")
    runs = {run: {**row, "target": "logit" if run == state.run else "probability"} for run, row in choices.runs.items()}
    view = Agreement(replace(choices, runs=runs), lambda code: None)
    texts = put(view, answers, state)
    assert "Log-odds and probability are no common scale" in texts["agreement_words"]
    assert not view.drift.plot.visible
    assert not view.drift.source.data["first"]


def test_empty_and_thin_cohorts_show_words_and_no_small_count(answers: Answers, choices: Choices) -> None:
    """Every card says why it is empty; a viewer's tables and charts hold no count below 11."""
    state = default_state(choices)
    views = [DataQuality(choices, print), Leaks(choices), Subgroups(choices), Agreement(choices, print)]
    for view in views:
        texts: Texts = put(view, answers, replace(state, min_patients=10**8))
        assert "o cells of 100,000,000 or more patients here" in texts[f"{view.name}_words"]
        assert not texts[f"{view.name}_table"]
        assert not any(chart.visible for chart in view.charts.values())
    n_seen = 0
    for stratum in choices.offered[state.run].strata:
        for view in views[:3]:
            texts = put(view, answers, replace(state, cohort=Cohort("true", stratum)))
            at = [
                i
                for i, head in enumerate(re.findall(r"<th[^>]*>(.*?)</th>", texts[f"{view.name}_table"]))
                if head == "Patients"
            ]
            width = texts[f"{view.name}_table"].count("<th ")
            for cell in cells(texts[f"{view.name}_table"])[at[0] :: width] if at else []:
                n_seen += 1
                assert all(int(n.replace(",", "")) >= 11 for n in cell.split(" and "))
        assert all("n_patients" not in source.data for view in views for source in sources(view))
    assert n_seen > 20
