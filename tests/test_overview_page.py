"""Parts of the Overview that are asked for once they are opened: percentiles over time, and pairs of values."""

from __future__ import annotations

import html
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from conftest import SmallRun
from test_server import Answering, put, session_of, settle
from whenwhy.errors import UserError
from whenwhy.server.answers import Answers, question
from whenwhy.server.charts import FADED, TimeFrame
from whenwhy.server.choices import choices_of
from whenwhy.server.cohort import Cohort, condition_of
from whenwhy.server.state import State, default_state
from whenwhy.server.views import Pairs, Percentiles
from whenwhy.server.views.percentiles import PERCENTILES
from whenwhy.store import open_store


def of(answers: Answers, *opened: str, feature: str = "lab") -> State:
    """The training patients, of whom there are most."""
    state = default_state(choices_of(answers, answers.store.role))
    return replace(state, split="train", feature=feature, lag="1", opened=frozenset(opened))


def test_what_is_closed_asks_nothing(analyst: Answers) -> None:
    """And shows nothing, also after it was open."""
    choices = choices_of(analyst, analyst.store.role)
    for part, view in (("spread", Percentiles(choices, TimeFrame())), ("pairs", Pairs(choices))):
        texts = put(view, analyst, replace(of(analyst, part), other="count"))
        assert texts[f"{view.name}_table"]
        closed = replace(of(analyst), other="count")
        assert view.questions(closed) == {}
        assert set(put(view, analyst, closed).values()) == {""}
        assert not any(chart.visible for chart in view.charts.values())


def test_percentiles_are_bands_around_the_median(analyst: Answers) -> None:
    """As the query answers them, each within the next."""
    view = Percentiles(choices_of(analyst, analyst.store.role), TimeFrame())
    for cohort in (Cohort(), Cohort("true")):
        state = replace(of(analyst, "spread"), cohort=cohort)
        texts = put(view, analyst, state)
        asked = {"feature": "lab", "split": "train", "class": cohort.class_label}
        told = analyst.now(question("percentile_bands", **asked)).to_pydict()
        assert len(told["time_bin"]) > 2
        for name in ("time_bin", *PERCENTILES, "n_patients", "n_events"):
            assert view.source.data[name] == told[name]
        for each in zip(*(view.source.data[name] for name in PERCENTILES), strict=True):
            assert list(each) == sorted(each)
        assert "no interval of a mean" in texts["percentiles_heading"]
    empty = put(view, analyst, of(analyst, "spread", feature="AGE"))
    assert "that have a time" in empty["percentiles_words"]


def test_percentiles_are_ready_for_classes_alone(analyst: Answers, small_run: SmallRun) -> None:
    """Strata and conditions are told in words, and so are viewers."""
    view = Percentiles(choices_of(analyst, analyst.store.role), TimeFrame())
    state = of(analyst, "spread")
    for cohort in (Cohort(stratum="sex=F"), Cohort(conditions=(condition_of("where:score > 0"),))):
        with pytest.raises(UserError, match="choose the stratum everybody"):
            view.questions(replace(state, cohort=cohort))
    viewer = open_store(small_run.store, "viewer")
    with ThreadPoolExecutor(1) as pool:
        choices = choices_of(Answers(viewer, pool), "viewer")
        for view in (Percentiles(choices, TimeFrame()), Pairs(choices)):
            with pytest.raises(UserError, match="for analysts alone"):
                view.questions(replace(state, opened=frozenset({"spread", "pairs"})))
    viewer.close()


def test_pairs_of_values_have_zero_in_the_middle_of_their_colours(analyst: Answers) -> None:
    """Each place of the matrix is a cell of the query or grey; what is not sure is pale."""
    view = Pairs(choices_of(analyst, analyst.store.role))
    state = replace(of(analyst, "pairs"), other="count")
    texts = put(view, analyst, state)
    asked = {"feature": "lab", "level": "value", "other": "count", "top": 1000}
    told = [
        row
        for row in analyst.now(question("feature_pairs", **asked, lags=1, **state.of())).to_pylist()
        if row["lag"] == 1
    ]
    assert len(told) > 3
    shown = view.source.data
    # Sums of several threads differ in their last bits.
    assert shown["mean_joint"] == pytest.approx([row["mean_joint"] for row in told])
    assert shown["n_patients"] == [row["n_patients"] for row in told]
    assert view.mapper.low == -view.mapper.high == -max(map(abs, shown["mean_joint"]))
    for row, alpha in zip(told, shown["alpha"], strict=True):
        low, high = row["mean_joint_low"], row["mean_joint_high"]
        assert alpha == (1.0 if low is not None and not low <= 0 <= high else FADED)
    ids = [
        analyst.now(question("feature_bins", feature=code, run=state.run))["feature_value_id"].to_pylist()
        for code in ("lab", "count")
    ]
    for row, y, x in zip(told, shown["y"], shown["x"], strict=True):
        assert (ids[0][y], ids[1][x]) == (row["feature_value_id"], row["other_feature_value_id"])
    places = [
        *zip(shown["x"], shown["y"], strict=True),
        *zip(view.hidden.data["x"], view.hidden.data["y"], strict=True),
    ]
    assert sorted(places) == [(x, y) for x in range(len(ids[1])) for y in range(len(ids[0]))]
    assert "<b>a small count (count)</b>" in texts["pairs_partners"]
    assert 'data-name="other" data-value="drug"' in texts["pairs_partners"]


def test_a_partner_is_chosen_first(analyst: Answers, small_run: SmallRun) -> None:
    """Without one there is a list; another feature forgets it; what has no partner says so."""
    view = Pairs(choices_of(analyst, analyst.store.role))
    texts = put(view, analyst, of(analyst, "pairs"))
    assert "Choose a partner" in texts["pairs_words"]
    assert 'data-value="count"' in texts["pairs_partners"]
    alone = put(view, analyst, of(analyst, "pairs", feature="AGE"))
    assert "one partner one step earlier" in html.unescape(alone["pairs_words"])
    assert "Together with" not in alone["pairs_partners"]
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        session.act("open", {"part": "spread", "is_open": True})
        session.act("choose", {"name": "other", "value": "count"})
        assert (session.state.other, session.state.opened) == ("count", frozenset({"spread"}))
        session.act("choose", {"name": "feature", "value": "drug"})
        assert session.state.other is None
