"""The Projection page without a browser: the plane beside scikit-learn's, who stands where, and what a lasso selects."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest
from sklearn.decomposition import PCA

from conftest import SmallRun
from test_server import put, session_at, settle
from whenwhy.errors import UserError
from whenwhy.server.answers import Answers
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.cohort import Cohort, condition_of, members_sql
from whenwhy.server.outcomes import colors_of
from whenwhy.server.pages import pages
from whenwhy.server.projection import Plane, Profiles, fit_plane, inside, profiles_of
from whenwhy.server.state import State, default_state, state_from_address
from whenwhy.server.views.projection import Projection
from whenwhy.server.views.selected_differences import NOBODY, SelectedDifferences


@pytest.fixture(scope="module")
def choices(analyst: Answers) -> Choices:
    """What it offers them."""
    return choices_of(analyst, "analyst")


@pytest.fixture(scope="module")
def state(choices: Choices) -> State:
    """Where a page begins."""
    return default_state(choices)


@pytest.fixture(scope="module")
def everybody(analyst: Answers, state: State) -> Profiles:
    """The profiles of the held-out patients."""
    return profiles_of(analyst.store.ask("contribution_profiles"))


def shown(analyst: Answers, choices: Choices, state: State) -> Projection:
    view = Projection(choices, analyst, lambda members: None)
    put(view, analyst, state)
    return view


def test_profiles_are_the_rows(analyst: Answers, everybody: Profiles) -> None:
    """Every sum of a code in a prediction, and the code that carries most as the list of patients has it."""
    table = analyst.store.ask("contribution_profiles").to_pylist()
    at = {prediction: row for row, prediction in enumerate(everybody.predictions["prediction_id"].to_pylist())}
    dense = everybody.matrix.toarray()
    for row in table:
        if row["code"] is not None:
            assert dense[at[row["prediction_id"]], everybody.codes.index(row["code"])] == row["contribution"]
    assert (dense != 0).sum() <= sum(row["code"] is not None for row in table)
    told = {
        (row["subject_id"], row["prediction_time"]): (row["code"], row["contribution"])
        for row in analyst.store.ask("patients", top=10_000).to_pylist()
    }
    for about, carrier in zip(everybody.predictions.to_pylist(), everybody.carriers, strict=True):
        code, by = carrier or (None, None)
        expected = told[about["subject_id"], about["prediction_time"]]
        assert (code, by) == (expected[0], pytest.approx(expected[1]))


def test_a_prediction_without_records_stands_with_zeros() -> None:
    """It has a row in the matrix, no carrier, and the place of an empty profile."""
    about = {"subject_id": 1, "prediction_time": 0, "label": "true", "score": 0.5}
    given = [(7, "b", 1.0), (8, None, None), (9, "a", -2.0), (9, "b", 2.0)]
    table = pa.Table.from_pylist([{"prediction_id": i, "code": c, "contribution": by, **about} for i, c, by in given])
    found = profiles_of(table)
    assert found.matrix.toarray().tolist() == [[0, 1], [0, 0], [-2, 2]]
    assert found.carriers == [("b", 1.0), None, ("a", -2.0)]
    nobody = profiles_of(table.slice(1, 1))
    assert nobody.carriers == [None]


def test_plane_is_that_of_principal_components(everybody: Profiles) -> None:
    """Scikit-learn's of the dense matrix, but for signs, which are fixed."""
    plane = fit_plane(everybody)
    dense = everybody.matrix.toarray()
    reference = PCA(2).fit(dense)
    assert plane.shares == pytest.approx(reference.explained_variance_ratio_)
    places, expected = plane.places(everybody), reference.transform(dense)
    for axis in range(2):
        sign = np.sign(places[:, axis] @ expected[:, axis])
        np.testing.assert_allclose(places[:, axis], sign * expected[:, axis], atol=1e-8)
        assert plane.axes[axis, np.abs(plane.axes[axis]).argmax()] > 0
    again = fit_plane(everybody)
    assert np.array_equal(again.axes, plane.axes)
    flipped = fit_plane(replace(everybody, matrix=-everybody.matrix))
    np.testing.assert_allclose(flipped.axes, plane.axes, atol=1e-8)
    (code, by), *_ = plane.loading(0, 3)
    assert abs(by) == np.abs(plane.axes[0]).max()
    assert plane.axes[0, plane.codes.index(code)] == by


def test_codes_that_the_plane_does_not_know_move_nothing(everybody: Profiles) -> None:
    """A cohort may have others than the sample of everybody, and fewer, in another order."""
    plane = fit_plane(everybody)
    table = [("new", 5.0), (plane.codes[1], 0.5)]
    about = {"prediction_id": 1, "subject_id": 1, "prediction_time": 0, "label": "true", "score": 0.5}
    other = profiles_of(pa.Table.from_pylist([{"code": code, "contribution": by, **about} for code, by in table]))
    np.testing.assert_allclose(plane.places(other)[0], 0.5 * plane.axes[:, 1] - plane.mean @ plane.axes.T)


@pytest.mark.parametrize(
    ("matrix", "said"), [(np.ones((5, 2)), "5 and 2"), (np.ones((2, 5)), "2 and 5"), (np.ones((5, 4)), "alike")]
)
def test_no_plane(everybody: Profiles, matrix: np.ndarray, said: str) -> None:
    """Too few, or all alike: a sentence."""
    with pytest.raises(UserError, match=said):
        fit_plane(replace(everybody, matrix=type(everybody.matrix)(matrix)))


def test_inside_agrees_with_a_circle() -> None:
    """Points nearer to the middle than the line are inside."""
    random = np.random.default_rng(3)
    places, turns = random.uniform(-2, 2, (400, 2)), np.linspace(0, 2 * np.pi, 300)
    distance = np.hypot(*places.T)
    sure = np.abs(distance - 1) > 0.01
    found = inside(places, np.cos(turns).tolist(), np.sin(turns).tolist())
    assert np.array_equal(found[sure], (distance < 1)[sure])


def test_cohort_stands_where_it_stood_among_everybody(analyst: Answers, choices: Choices, state: State) -> None:
    """Choosing a class moves nobody; the others are behind, and nobody is drawn twice."""
    whole = shown(analyst, choices, state)
    some = shown(analyst, choices, replace(state, cohort=Cohort("true")))
    everywhere = set(zip(whole.source.data["x"].tolist(), whole.source.data["y"].tolist(), strict=True))
    front = list(zip(some.source.data["x"].tolist(), some.source.data["y"].tolist(), strict=True))
    behind = list(zip(some.behind.data["x"].tolist(), some.behind.data["y"].tolist(), strict=True))
    assert front
    assert set(front) <= everywhere
    assert len(whole.source.data["x"]) == len(front) + len(behind)
    assert len(whole.behind.data["x"]) == 0
    assert set(some.source.data["label"]) == {"true"}
    asked = analyst.store.ask("contribution_profiles", **{"class": "true"})
    assert len(front) == len(set(asked["prediction_id"].to_pylist()))


def test_lines_join_each_patient_in_time(analyst: Answers, choices: Choices, state: State) -> None:
    """One a patient who has several predictions, through all of them, the earliest first."""
    view = shown(analyst, choices, state)
    told = analyst.store.ask("patients", order_by="subject_id", top=10_000).to_pylist()
    times: dict[int, list[int]] = {}
    for row in told:
        times.setdefault(row["subject_id"], []).append(row["prediction_time"])
    several = [len(of) for _, of in sorted(times.items()) if len(of) > 1]
    assert several
    assert [len(line) for line in view.lines.data["xs"]] == several
    shown_data = view._shown
    assert shown_data is not None
    for line in shown_data.lines:
        of = shown_data.profiles.predictions.take(pa.array(line))
        assert len(set(of["subject_id"].to_pylist())) == 1
        assert of["prediction_time"].to_pylist() == sorted(of["prediction_time"].to_pylist())


def test_colours(analyst: Answers, choices: Choices, state: State) -> None:
    """Each label the colour that it has on other pages; scores about zero, equally far to both sides."""
    view = shown(analyst, choices, state)
    data = view.source.data
    pairs = set(zip(data["label"], data["color"], strict=True))
    assert pairs == set(colors_of(["false", "true"]).items())
    view = shown(analyst, choices, replace(state, color="score"))
    data, palette = view.source.data, view.mapper.palette
    assert view.mapper.low == -view.mapper.high
    assert view.mapper.high == max(abs(data["score"]))
    for score, color in zip(data["score"], data["color"], strict=True):
        assert (palette.index(color) > len(palette) // 2) >= (score > 0.01 * view.mapper.high)
        assert (palette.index(color) < len(palette) // 2) >= (score < -0.01 * view.mapper.high)
    assert "subject_id" not in data


def test_a_lasso_selects_whom_it_surrounds(small_run: SmallRun, tmp_path: Path) -> None:
    """Its predictions become a saved cohort that the address names, they are shown as selected, and Esc clears."""
    with session_at(small_run.store, "analyst", tmp_path) as session:
        views = pages()["projection"].views(session)
        view = next(view for view in views if isinstance(view, Projection))
        session.begin(views)
        assert NOBODY.partition(":")[0] in settle(session)["texts"]["selected_differences_words"]
        shown_data = view._shown
        assert shown_data is not None
        middle = float(np.median(shown_data.places[:, 0]))
        far = [middle, 1e3, 1e3, middle], [-1e3, -1e3, 1e3, 1e3]
        view._drawn(SimpleNamespace(final=True, geometry={"type": "poly", "x": far[0], "y": far[1]}))
        told = settle(session)
        expected = shown_data.places[:, 0] > middle
        assert told["status"] == "ready"
        assert session.state.selected is not None
        assert session.state.selected.text.startswith("saved:drawn in the plane ")
        assert ((view.source.data["alpha"] == 1.0) == expected).all()
        assert f"{expected.sum():,} of them marked" in told["texts"]["projection_heading"]
        counted = session.version.store.ask(
            "number_at_risk", **session.state.of(session.state.selected_cohort)
        ).to_pylist()
        assert counted[-1]["n_predictions"] == expected.sum()
        again, wrong = state_from_address(
            {"selected": [session.state.selected.text]}, session.version.choices, session.condition
        )
        assert again.selected == session.state.selected
        assert not wrong
        assert "unnest" not in session.state.address
        name = session.state.selected.text
        view._drawn(SimpleNamespace(final=True, geometry={"type": "poly", "x": far[0], "y": far[1]}))
        assert session.state.selected.text == name
        assert session.saved.names == [], "it has no name that somebody gave"
        session.act("select", {"condition": None})
        settle(session)
        assert (view.source.data["alpha"] == 1.0).all()
        view._drawn(SimpleNamespace(final=True, geometry={"type": "poly", "x": [9e3] * 3, "y": [9e3, 9e4, 9e5]}))
        assert session.state.selected is None


def test_differences_are_of_the_selected_and_the_rest_of_the_cohort(
    analyst: Answers, choices: Choices, state: State
) -> None:
    """The comparison of both, each within the cohort, as the query answers it."""
    middle = np.median(analyst.store.ask("patients", stratum="sex=F", top=10_000)["score"].to_numpy())
    half = condition_of(f"where:score > {middle}")
    of = replace(state, cohort=Cohort("all", "sex=F"), selected=half)
    view = SelectedDifferences(choices)
    found = view.read(of, {name: analyst.now(asked) for name, asked in view.questions(of).items()}).rows
    told = analyst.store.ask(
        "cohort_comparison",
        cohort_a=f"score > {middle} and sex = 'F'",
        cohort_b=f"score <= {middle} and sex = 'F'",
        top=15,
    ).to_pylist()
    assert told
    assert [row["code"] for row in found] == [row["code"] for row in told]
    for name in ("difference", "difference_low", "n_patients_a", "n_patients_b"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in told], nan_ok=True), name
    few = replace(state, selected=condition_of("where:score > 1e9"))
    assert "Nothing to compare" in put(view, analyst, few)["selected_differences_words"]


def test_viewers_see_no_prediction(small_run: SmallRun) -> None:
    """One sentence instead of the plane, and no name for single predictions."""
    with session_at(small_run.store, "viewer", small_run.store) as session:
        session.begin(pages()["projection"].views(session))
        assert "for analysts alone" in settle(session)["texts"]["projection_words"]
        session.act("lasso", {"members": [(1, 2)]})
        assert session.state.selected is None
        assert session.saved.names == []


def test_members_are_who_is_meant(analyst: Answers) -> None:
    """The predicate of some predictions holds for these alone, before 1970 and of negative ids too."""
    told = analyst.store.sql("select subject_id, epoch_us(prediction_time) as at from predictions limit 40").to_pylist()
    members = [(row["subject_id"], row["at"]) for row in told]
    found = analyst.store.sql(f"select count(*) as n from predictions where {members_sql([*members, (-5, -7)])}")
    assert found.to_pylist() == [{"n": 40}]


def test_plane_is_fitted_once(
    analyst: Answers, choices: Choices, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another cohort of the same split asks for no other plane; another split does."""
    fitted: list[Plane] = []

    def fit(profiles: Profiles) -> Plane:
        fitted.append(fit_plane(profiles))
        return fitted[-1]

    monkeypatch.setattr("whenwhy.server.views.projection.fit_plane", fit)
    answers = Answers(analyst.store, analyst._pool)
    for cohort in (Cohort(), Cohort("true"), Cohort("all", "sex=F")):
        shown(answers, choices, replace(state, cohort=cohort))
    assert len(fitted) == 1
    shown(answers, choices, replace(state, split="train"))
    assert len(fitted) == 2
