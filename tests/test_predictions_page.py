"""The page of predictions without a browser: its cards show what the queries answer, to either role, and nothing else."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from conftest import SmallRun
from test_server import Answering, put, session_of, settle
from whenwhy.errors import UserError
from whenwhy.server.answers import Answers, question
from whenwhy.server.charts import FADED
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.cohort import Cohort, condition_of
from whenwhy.server.outcomes import CLASS_COLORS
from whenwhy.server.state import State, default_state
from whenwhy.server.views import Calibration, Confusion, OverTime, ScoreDistribution
from whenwhy.server.views.calibration import stretched
from whenwhy.server.views.scores import BINS, ENOUGH


@pytest.fixture(scope="module")
def choices(analyst: Answers) -> Choices:
    """What analysts may choose."""
    return choices_of(analyst, analyst.store.role)


@pytest.fixture(scope="module")
def start(choices: Choices) -> State:
    """The training patients, of whom there are most."""
    return replace(default_state(choices), split="train")


COHORTS = [
    Cohort(),
    Cohort("true", "correct=no"),
    Cohort(stratum="sex=F", conditions=(condition_of("where:n_steps > 1"),)),
]


def nothing(text: str) -> None:
    """Marks nothing."""


@pytest.mark.parametrize("cohort", COHORTS, ids=["everybody", "outcome", "condition"])
def test_calibration_is_of_all_classes(analyst: Answers, choices: Choices, start: State, cohort: Cohort) -> None:
    """Points, whiskers and counts are the query's, whatever class is chosen: within one, each share would be 0 or 1."""
    view = Calibration(choices)
    state = replace(start, cohort=cohort)
    texts = put(view, analyst, state)
    told = analyst.now(question("calibration", **state.of(cohort.whatever_outcome))).to_pylist()
    assert len(told) > 2
    for name in ("mean_probability", "observed_share", "n_patients", "n_predictions"):
        # Sums of several threads differ in their last bits.
        assert view.source.data[name] == pytest.approx([row[name] for row in told])
    assert view.counts.data["n_predictions"] == [row["n_predictions"] for row in told]
    for row, low, y, high in zip(
        told, view.whiskers.data["low"], view.source.data["y"], view.whiskers.data["high"], strict=True
    ):
        assert low <= y <= high
        ends = (stretched(row["observed_share_low"]), stretched(row["observed_share_high"]))
        assert (low, high) == pytest.approx(ends)
    assert "95 % interval, patients as units" in texts["calibration_heading"]
    assert "the outcome: true" in texts["calibration_heading"]


def test_calibration_of_several_classes_needs_one_that_is_named(choices: Choices, start: State) -> None:
    """The target says which; without one nothing is asked, and the calendar tells no probability."""

    def explaining(target: str) -> Choices:
        offered = replace(choices.offered[start.run], classes=("all", "dead", "home", "nursing"))
        return Choices(
            {start.run: {**choices.runs[start.run], "target": target}}, {start.run: offered}, True, choices.ranges
        )

    for target in ("logit", "unit:3"):
        with pytest.raises(UserError, match="explain a target such as logit:CLASS"):
            Calibration(explaining(target)).questions(start)
        assert "calibration" not in OverTime(explaining(target), nothing).questions(start)
    assert Calibration(explaining("logit:dead")).questions(start)
    assert "calibration" in OverTime(explaining("logit:dead@-1"), nothing).questions(start)


@pytest.mark.parametrize("cohort", COHORTS, ids=["everybody", "outcome", "condition"])
def test_scores_of_each_class_are_parts_of_its_whole(
    analyst: Answers, choices: Choices, start: State, cohort: Cohort
) -> None:
    """The finest histogram that shows most of each class; every bin of every class has a bar or says that it has none."""
    view = ScoreDistribution(choices, nothing)
    state = replace(start, cohort=cohort)
    put(view, analyst, state)
    whole = state.of(cohort.whatever_outcome)
    n = {
        name: analyst.now(question("number_at_risk", **{**whole, "class": name})).to_pylist()[-1]["n_predictions"]
        for name in ("false", "true")
    }

    def histogram(n_bins: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = analyst.now(question("score_distribution", **whole, n_bins=n_bins)).to_pylist()
        return found

    def suffices(n_bins: int) -> bool:
        return all(
            sum(row["n_predictions"] for row in histogram(n_bins) if row["label"] == name) >= ENOUGH * n[name]
            for name in n
        )

    finest = next((n_bins for n_bins in BINS if suffices(n_bins)), BINS[-1])
    told, shown = histogram(finest), view.source.data
    assert view.csv(state) == view.questions(state)[f"{finest} bins"]
    assert shown["n_predictions"] == [row["n_predictions"] for row in told]
    assert shown["share"] == pytest.approx([100 * row["n_predictions"] / n[row["label"]] for row in told])
    assert len(shown["share"]) + len(view.hidden.data["label"]) == 2 * finest
    assert min(shown["n_patients"]) >= 11
    chosen = cohort.class_label
    assert {a for name, a in zip(shown["label"], shown["alpha"], strict=True) if chosen in ("all", name)} == {1.0}
    assert {a for name, a in zip(shown["label"], shown["alpha"], strict=True) if chosen not in ("all", name)} <= {FADED}


def test_a_brush_over_scores_marks_whole_bins(analyst: Answers, choices: Choices, start: State) -> None:
    """All of the bins that it touches are marked, none of the others, on every card; all predictions by the widest one."""
    marks: list[str] = []
    view = ScoreDistribution(choices, marks.append)
    put(view, analyst, start)
    data = dict(view.source.data)
    n_bins, width, lowest = int(view._asked.split()[0]), view._width, view._lowest
    for first, last in ((0, 1), (2, 3), (n_bins - 2, n_bins - 1), (0, n_bins - 1)):
        view._brushed(lowest + (first + 0.3) * width, lowest + (last + 0.6) * width, 0, 1)
        state = replace(start, selected=choices.condition(marks[-1], start.run))
        assert state.selected_cohort is not None
        put(view, analyst, state)
        for at, n, marked in zip(
            data["bin"], data["n_predictions"], view.source.data["n_marked_predictions"], strict=True
        ):
            assert marked == (n if first <= at <= last else None)
        assert len(view.marked.data["top"]) == sum(first <= at <= last for at in data["bin"])
    whole = analyst.now(question("number_at_risk", **start.of())).to_pylist()[-1]
    assert analyst.now(question("number_at_risk", **state.of(state.selected_cohort))).to_pylist()[-1] == whole
    marked = analyst.now(question("calibration", **state.of(state.selected_cohort))).to_pylist()
    calibration, confusion = Calibration(choices), Confusion(choices)
    put(calibration, analyst, state)
    assert calibration.source.data["who"].count("marked predictions") == len(marked) > 2
    assert "marked: " in put(confusion, analyst, state)["confusion_table"]
    view._brushed(lowest - 3 * width, lowest - 2 * width, 0, 1)
    assert len(marks) == 4, "nothing lies there"


def periods(*rows: tuple[datetime, str, int, float, float]) -> pa.Table:
    """An answer of predictions_over_time."""
    names = ("time", "label", "n_predictions", "n_patients", "mean_probability", "observed_share")
    told = [(time, label, n, n, probability, share) for time, label, n, probability, share in rows]
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in told])


def test_years_are_stacked_and_marked_whole(choices: Choices, start: State) -> None:
    """Bars of classes stand on each other, gaps stay gaps, and a mean of what is not all shown is not told."""
    marks: list[str] = []
    view = OverTime(choices, marks.append)
    years = periods(
        (datetime(2001, 1, 1), "false", 60, 0.2, 0.75),
        (datetime(2001, 1, 1), "true", 20, 0.6, 0.25),
        (datetime(2002, 1, 1), "false", 90, 0.1, 0.9),
        (datetime(2004, 1, 1), "false", 50, 0.3, 0.5),
        (datetime(2004, 1, 1), "true", 50, 0.5, 0.5),
    )
    tables = {"year": years, "month": periods(), "calibration": pa.table({"label": ["true"]})}
    texts = view.put(view.read(start, tables))
    shown = view.source.data
    assert list(zip(shown["x"], shown["label"], shown["bottom"], shown["top"], strict=True)) == [
        (0, "false", 0, 60),
        (1, "false", 0, 90),
        (3, "false", 0, 50),
        (0, "true", 60, 80),
        (3, "true", 50, 100),
    ]
    assert view.shares.data["predicted"] == pytest.approx([30, np.nan, np.nan, 40], nan_ok=True)
    assert view.shares.data["observed"] == pytest.approx([25, np.nan, np.nan, 50], nan_ok=True)
    assert "nan" not in "".join(texts.values()).lower()
    assert "Dates that were shifted" in texts["over_time_heading"]
    view._brushed(0.9, 2.2, 0, 1)
    view._brushed(3, 3, 0, 1)
    assert marks == ["range:prediction_time@2002-01-01..2004-01-01", "range:prediction_time@2004-01-01..2005-01-01"]
    state = replace(start, selected=condition_of(marks[1]))
    half = periods((datetime(2004, 1, 1), "true", 30, 0.5, 1.0))
    view.put(view.read(state, {**tables, "marked year": half, "marked month": periods()}))
    assert view.marked.data == {"x": [3], "bottom": [50], "top": [80]}


def test_few_years_are_told_by_month(choices: Choices, start: State) -> None:
    """A brush marks months then, over the turn of the year too."""
    marks: list[str] = []
    view = OverTime(choices, marks.append)
    year = periods((datetime(2001, 1, 1), "false", 60, 0.2, 1.0), (datetime(2002, 1, 1), "false", 30, 0.2, 1.0))
    months = periods((datetime(2001, 11, 1), "false", 60, 0.2, 1.0), (datetime(2002, 2, 1), "false", 30, 0.2, 1.0))
    view.put(view.read(start, {"year": year, "month": months}))
    assert view._unit == "month"
    assert view.source.data["time"] == ["2001-11", "2002-02"]
    view._brushed(0.6, 1.4, 0, 1)
    assert marks == ["range:prediction_time@2001-12-01..2002-01-01"]


def test_one_month_is_no_course(analyst: Answers, choices: Choices, start: State) -> None:
    """Words say where all predictions lie, and no chart is drawn."""
    view = OverTime(choices, nothing)
    assert "All these predictions lie in 2020-01" in put(view, analyst, start)["over_time_words"]
    assert not any(chart.visible for chart in view.charts.values())
    asked = view.questions(replace(start, cohort=Cohort("true", "correct=yes")))
    assert asked == view.questions(start), "of all classes, whichever is chosen"


def cells(text: str) -> list[str]:
    return re.findall(r"<td.*?</td>", text)


@pytest.mark.parametrize("role", ["analyst", "viewer"])
def test_confusion_shows_each_pair_or_hatches_it(
    request: pytest.FixtureRequest, role: str, choices: Choices, start: State
) -> None:
    """Counts and shares of the row as the query answers them; a cell that may not be shown has no number."""
    answers: Answers = request.getfixturevalue(role)
    view = Confusion(choices_of(answers, answers.store.role))
    state = replace(start, cohort=Cohort("true", "predicted=false"))
    table = put(view, answers, state)["confusion_table"]
    told = {
        (row["label"], row["predicted"]): row for row in answers.now(question("confusion", split="train")).to_pylist()
    }
    assert 0 < len(told) < 4
    for pair, cell in zip(itertools.product(("false", "true"), repeat=2), cells(table), strict=True):
        if pair in told:
            assert f">{told[pair]['n_predictions']:,}</button>" in cell
            assert f"{told[pair]['n_patients']:,} patients" in cell
            whole = sum(row["n_predictions"] for (label, _), row in told.items() if label == pair[0])
            assert f"{100 * told[pair]['n_predictions'] / whole:.0f} %" in cell
        else:
            assert "hidden-cell" in cell
            assert not re.search(r"\d", re.sub("fewer than 11 patients", "", cell))
        assert ("chosen-cell" in cell) == (pair == ("true", "false"))


def test_a_cell_narrows_the_cohort(small_run: SmallRun) -> None:
    """To its class and what is predicted; within a stratum what is predicted becomes a condition, for analysts."""
    told = {"class": "true", "predicted": "false"}
    for role in ("viewer", "analyst"):
        with session_of(small_run.store, Answering(), role) as session:
            settle(session)
            session.act("narrow", told)
            assert session.state.cohort == Cohort("true", "predicted=false")
            session.act("narrow", {"class": "false", "predicted": "false"})
            assert session.state.cohort == Cohort("false", "predicted=false")
            session.act("choose", {"name": "stratum", "value": "sex=F"})
            session.act("narrow", told)
            notice = session.told.tags[0]["texts"].get("notice", "")
            if role == "viewer":
                assert "analysts alone" in notice
                assert session.state.cohort == Cohort("false", "sex=F")
            else:
                assert session.state.cohort.whole_sql == "label = 'true' and \"sex\" = 'F' and (predicted = 'false')"
            session.act("narrow", {"class": "maybe", "predicted": "false"})
            assert "There is no class 'maybe'" in session.told.tags[0]["texts"]["notice"].replace("&#x27;", "'")


def test_viewers_are_told_that_analysts_alone_see_rows(viewer: Answers) -> None:
    """Nothing is asked of rows; what is predicted is shown of everybody, and of a stratum in words."""
    choices = choices_of(viewer, viewer.store.role)
    state = replace(default_state(choices), split="train")
    for view in (Calibration(choices), ScoreDistribution(choices, nothing), OverTime(choices, nothing)):
        with pytest.raises(UserError, match="for analysts alone"):
            view.questions(state)
    confusion = Confusion(choices)
    with pytest.raises(UserError, match="Choose the stratum everybody"):
        confusion.questions(replace(state, cohort=Cohort(stratum="sex=F")))
    assert "confusion_table" in put(confusion, viewer, replace(state, cohort=Cohort(stratum="correct=no")))


def test_an_empty_cohort_is_told_in_words(analyst: Answers, choices: Choices, start: State) -> None:
    """No NaN, and no chart."""
    state = replace(start, cohort=Cohort(conditions=(condition_of("where:score > 1e9"),)))
    for view in (
        Calibration(choices),
        ScoreDistribution(choices, nothing),
        OverTime(choices, nothing),
        Confusion(choices),
    ):
        texts = put(view, analyst, state)
        assert "No cells of 11 or more patients here" in texts[f"{view.name}_words"]
        assert texts[f"{view.name}_table"] == ""
        assert "nan" not in "".join(texts.values()).lower()
        assert not any(chart.visible for chart in view.charts.values())


#: Deuteranopia in linear sRGB, after Machado, Oliveira and Fernandes (2009), severity 1.
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def linear(color: str) -> np.ndarray:
    parts = np.array([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)])  # [red, green, blue]
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def lab(parts: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear sRGB."""
    x, y, z = np.cbrt(TO_XYZ @ np.clip(parts, 0, 1) / np.array([0.9505, 1.0, 1.089]))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_neighbouring_classes_differ_for_colour_blind_people() -> None:
    """By a difference of 10 at least under deuteranopia, each 3:1 from white."""
    for one, other in itertools.pairwise(CLASS_COLORS):
        assert np.linalg.norm(lab(DEUTERANOPIA @ linear(one)) - lab(DEUTERANOPIA @ linear(other))) >= 10, (one, other)
    for color in CLASS_COLORS:
        assert 1.05 / (TO_XYZ[1] @ linear(color) + 0.05) >= 3, color
