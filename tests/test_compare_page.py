"""The views of comparisons show what the queries of two cohorts answer, to either role."""

from __future__ import annotations

import html
import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from conftest import SmallRun
from test_server import Answering, put, session_of, settle, sources
from whenwhy.errors import UserError
from whenwhy.server.answers import Answers
from whenwhy.server.charts import FADED, TimeFrame
from whenwhy.server.choices import choices_of
from whenwhy.server.cohort import Cohort
from whenwhy.server.pages import pages
from whenwhy.server.state import State, default_state
from whenwhy.server.view import View
from whenwhy.server.views import AtRisk, CourseDifference, Differences, Pairing, Timeline
from whenwhy.server.views.heat_map import is_sure
from whenwhy.store import open_store


@pytest.fixture(scope="module", params=["viewer", "analyst"])
def answers(request: pytest.FixtureRequest) -> Answers:
    """What the small cohort's store answers either role."""
    told: Answers = request.getfixturevalue(request.param)
    return told


@pytest.fixture(scope="module")
def state(answers: Answers) -> State:
    """Both classes, side by side."""
    return replace(
        default_state(choices_of(answers, answers.store.role)), cohort=Cohort("true"), against=Cohort("false")
    )


def test_differences_are_what_the_store_answers(answers: Answers, state: State) -> None:
    """Bars, both levels and the table; what is no discovery is pale, and the axis holds every interval and zero."""
    view = Differences(choices_of(answers, answers.store.role), lambda code: None)
    texts = put(view, answers, state)
    rows = answers.store.ask("cohort_comparison", class_a="true", class_b="false", split=state.split).to_pylist()
    assert rows
    bars = view.source.data
    assert bars["code"] == [row["code"] for row in rows]
    assert bars["difference"] == [row["difference"] for row in rows]
    assert bars["first"] == [row["mean_a"] for row in rows]
    assert bars["second"] == [row["mean_b"] for row in rows]
    assert bars["alpha"] == [1.0 if row["is_discovery"] else FADED for row in rows]
    ends = [row[name] for row in rows for name in ("difference_low", "difference_high") if row[name] is not None]
    shown = view.charts["differences"].x_range
    assert shown.start <= min(0, *ends)
    assert shown.end >= max(0, *ends)
    for row in rows:
        assert html.escape(row["code"]) in texts["differences_table"]
        assert f"{row['n_patients_a']:,}</td>" in texts["differences_table"]
    assert "patients as units: somebody may be in both cohorts" in texts["differences_heading"] or (
        "some patients are in both cohorts" in texts["differences_heading"]
    )


def test_swapping_both_turns_every_difference(answers: Answers, state: State) -> None:
    """The first minus the second is minus the second minus the first."""
    view = Differences(choices_of(answers, answers.store.role), lambda code: None)
    put(view, answers, state)
    before = dict(zip(view.source.data["code"], view.source.data["difference"], strict=True))
    put(view, answers, replace(state, cohort=Cohort("false"), against=Cohort("true")))
    after = dict(zip(view.source.data["code"], view.source.data["difference"], strict=True))
    assert after == pytest.approx({code: -difference for code, difference in before.items()})


def test_the_course_of_a_difference_is_that_of_both_courses(answers: Answers, state: State) -> None:
    """Bin by bin; pale where the interval holds zero, and in words where there is no time."""
    choices = choices_of(answers, answers.store.role)
    frame = TimeFrame()
    both, view = Timeline(choices, frame, lambda condition: None), CourseDifference(choices, frame)
    n_bins = 0
    for feature in choices.offered[state.run].features:
        here = replace(state, feature=feature)
        put(both, answers, here)
        texts = put(view, answers, here)
        told = both.source.data
        mean = {
            (who, time_bin): mean
            for who, time_bin, mean in zip(told["who"], told["time_bin"], told["mean"], strict=True)
        }
        shown = view.source.data
        for time_bin, difference in zip(shown["time_bin"], shown["mean"], strict=True):
            levels = mean["the cohort", time_bin], mean["its reference", time_bin]
            assert difference == pytest.approx(levels[0] - levels[1])
        rows = answers.now(view.questions(here)["rows"]).to_pylist()
        sure = [is_sure(row["difference_low"], row["difference_high"]) for row in rows]
        assert shown["alpha"] == [1.0 if one else FADED for one in sure]
        assert len(view.bands.data["low"]) == sum(row["difference_low"] is not None for row in rows)
        assert view.charts["course_difference"].visible == bool(rows)
        assert bool(rows) == ("There is no course" not in texts.get("course_difference_words", ""))
        n_bins += len(rows)
    assert n_bins > 0


def test_both_strips_count_who_is_at_risk(answers: Answers, state: State) -> None:
    """Selection by length is seen: each cohort's own counts, as shares of its fullest bin, under the same bins."""
    choices = choices_of(answers, answers.store.role)
    feature = next(code for code, told in choices.offered[state.run].features.items() if told["has_time"])
    view = AtRisk(choices, TimeFrame(), with_reference=True)
    texts = put(view, answers, replace(state, feature=feature))
    shown = view.source.data
    for who, label, base in (("the cohort", "true", 1), ("its reference", "false", 0)):
        counts = answers.store.ask("number_at_risk", split=state.split, **{"class": label}).to_pylist()
        counts = [row["n_patients"] for row in counts if row["time_bin"] is not None]
        own = [i for i, one in enumerate(shown["who"]) if one == who]
        assert [shown["n_patients"][i] for i in own] == counts
        assert [shown["top"][i] - base for i in own] == pytest.approx([n / max(counts) for n in counts])
    n_bins = choices.offered[state.run].time.n_bins
    assert len(shown["x"]) + len(view.hidden.data["x"]) == 2 * n_bins
    assert "other patients" in texts["at_risk_words"]
    assert "other patients" not in put(view, answers, replace(state, feature=feature, against=None))["at_risk_words"]
    assert set(view.source.data["who"]) == {"the cohort"}


def test_no_small_count_is_put_for_viewers(small_run: SmallRun) -> None:
    """In no pair of strata, however thin."""
    store = open_store(small_run.store, "viewer")
    with ThreadPoolExecutor(2) as pool:
        answers = Answers(store, pool)
        choices = choices_of(answers, answers.store.role)
        frame = TimeFrame()
        views: list[View] = [
            Differences(choices, lambda code: None),
            CourseDifference(choices, frame),
            AtRisk(choices, frame, with_reference=True),
        ]
        seen, start = 0, default_state(choices)
        strata = choices.offered[start.run].strata
        for first, second in itertools.pairwise(strata):
            state = replace(start, cohort=Cohort("true", first), against=Cohort("false", second))
            for view in views:
                put(view, answers, state)
                for source in sources(view):
                    for name in ("n_patients", "n_patients_a", "n_patients_b"):
                        counts = source.data.get(name, [])
                        seen += len(counts)
                        assert all(n >= 11 for n in counts)
        assert seen > 20
    store.close()


def test_without_a_reference_the_page_says_so_and_offers_pairs(answers: Answers, state: State) -> None:
    """In words, with buttons; views that need two cohorts refuse in a sentence."""
    choices = choices_of(answers, answers.store.role)
    alone = replace(state, against=None)
    texts = Pairing(choices).put(alone)
    assert "Nobody to compare with yet" in texts["pairing_heading"]
    buttons = texts["pairing_words"]
    assert 'data-first="true" data-second="false"' in buttons
    assert 'data-first="sex=F" data-second="sex=M"' in buttons
    assert ("everybody else" in buttons) == choices.has_rows
    for view in (
        Differences(choices, lambda code: None),
        CourseDifference(choices, TimeFrame()),
    ):
        with pytest.raises(UserError, match="nobody to compare with"):
            view.questions(alone)
    told = Pairing(choices).put(state)["pairing_heading"]
    assert "the outcome: true, everybody" in told
    assert "the outcome: false, everybody" in told
    assert 'data-with="swap"' in told
    rest = Pairing(choices).put(replace(state, against="rest"))["pairing_heading"]
    assert "its reference: everybody else<" in rest
    assert 'data-with="swap"' not in rest, "the rest has no name that a cohort could have"


def test_no_two_models_of_a_page_have_one_name(small_run: SmallRun) -> None:
    """What is exported is found by its name."""
    for page in pages().values():
        with session_of(small_run.store, Answering()) as session:
            views = page.views(session)
            roots = [name for view in views for name in view.charts]
            models = {model for view in views for chart in view.charts.values() for model in chart.references()}
            names = [*roots, *(model.name for model in models if model.name)]
            assert len(names) == len(set(names)), page.name


def test_an_empty_comparison_shows_words(answers: Answers, state: State) -> None:
    """No chart without a number."""
    nobody = replace(state, min_patients=10**8)
    choices = choices_of(answers, answers.store.role)
    view = Differences(choices, lambda code: None)
    texts = put(view, answers, nobody)
    assert "No cells of 100,000,000 or more patients here" in texts["differences_words"]
    assert not any(chart.visible for chart in view.charts.values())


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"name": "colour", "first": "a", "second": "b"}, "There is no choice 'colour'"),
        ({"name": "stratum", "first": "sex=F", "second": "sex=X"}, "There is no stratum 'sex=X'"),
    ],
)
def test_a_pair_that_is_not_there_is_told_in_words(small_run: SmallRun, told: dict[str, Any], said: str) -> None:
    """The state stays as it was."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        before = session.state
        session.act("pair", told)
        assert said in html.unescape(session.told.tags[0]["texts"]["notice"])
        assert session.state == before


def test_a_pair_keeps_what_else_was_chosen(small_run: SmallRun) -> None:
    """A pair of strata within a class."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        session.act("choose", {"name": "class", "value": "true"})
        session.act("pair", {"name": "stratum", "first": "sex=F", "second": "sex=M"})
        assert (session.state.cohort, session.state.against) == (Cohort("true", "sex=F"), Cohort("true", "sex=M"))
