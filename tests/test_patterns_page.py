"""The page of patterns without a browser: groups of codes to go into, and features that contribute together."""

from __future__ import annotations

import html
from dataclasses import replace

import pyarrow as pa
import pytest

from conftest import SmallRun
from test_server import Answering, put, session_of, settle, sources
from whenwhy.errors import UserError
from whenwhy.server.answers import Answers, question
from whenwhy.server.charts import CHOSEN, FADED
from whenwhy.server.choices import choices_of
from whenwhy.server.cohort import Cohort, condition_of
from whenwhy.server.named_rows import NamedRow, NamedRows
from whenwhy.server.state import State, default_state
from whenwhy.server.views import Groups, Partners
from whenwhy.server.views.partners import at_lag


def of(answers: Answers, feature: str = "lab") -> State:
    """The training patients, of whom there are most."""
    return replace(
        default_state(choices_of(answers, answers.store.role)),
        split="train",
        feature=feature,
        opened=frozenset({"partners"}),
    )


def nothing(code: str) -> None:
    """Chooses nothing."""


@pytest.mark.parametrize("role", ["analyst", "viewer"])
@pytest.mark.parametrize("within", [(), ("MEASURED",)])
def test_groups_show_their_parts(request: pytest.FixtureRequest, role: str, within: tuple[str, ...]) -> None:
    """Shares, means and intervals are the query's, the largest first; each part is a button to go on with."""
    answers: Answers = request.getfixturevalue(role)
    choices = choices_of(answers, answers.store.role)
    for cohort in (Cohort(), Cohort("true", "sex=F")):
        state = replace(of(answers), within=within, cohort=cohort)
        view = Groups(choices, nothing, nothing)
        texts = put(view, answers, state)
        asked = {"within": within[-1]} if within else {}
        told = answers.now(question("group_rollup", **asked, **state.of())).to_pylist()
        assert told or cohort != Cohort()
        shares = [100 * row["share"] for row in told if row["share"] is not None]
        # Sums of several threads differ in their last bits.
        assert view.shares.source.data["value"] == pytest.approx(shares)
        means = view.means.source.data
        known = [row for row in told if row["mean_per_prediction"] is not None]
        assert means["value"] == pytest.approx([row["mean_per_prediction"] for row in known])
        for row, alpha in zip(known, means["alpha"], strict=True):
            low, high = row["mean_per_prediction_low"], row["mean_per_prediction_high"]
            assert (alpha == 1) == (low is not None and not low <= 0 <= high)
        for row in told:
            is_group = row["level"] == "group"
            button = f'data-act="enter" data-group="{row["code"]}"' if is_group else f'data-value="{row["code"]}"'
            assert button in texts["groups_table"]
        assert ("All groups" in texts["groups_path"]) == bool(within)
        assert all(n >= 11 for source in sources(view) for n in source.data["n_patients"])


def test_a_person_goes_into_groups_and_back(small_run: SmallRun) -> None:
    """The way is in the state, each group once; a bar of a code chooses it, one of a group goes into it."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        view = Groups(session.version.choices, session.choose_feature, session.enter_group)
        put(view, session.version.answers, session.state)
        keys = view.shares.source.data["key"]
        at = next(i for i, key in enumerate(keys) if key.startswith("group:"))
        first = keys[at]
        view.shares.source.selected.indices = [at]
        assert session.state.within == (first.partition(":")[2],)
        put(view, session.version.answers, session.state)
        code = view.means.source.data["key"][0].partition(":")[2]
        view.means.source.selected.indices = [0]
        assert session.state.feature == code
        session.act("enter", {"group": "BLOOD"})
        session.act("enter", {"group": session.state.within[0]})
        assert session.state.within == (first.partition(":")[2],)
        session.act("leave", {})
        assert session.state.within == ()


def test_a_group_that_is_not_there_is_told(viewer: Answers) -> None:
    """By the names of those that are."""
    state = replace(of(viewer), within=("BLOODY",))
    with pytest.raises(UserError, match="BLOOD"):
        put(Groups(choices_of(viewer, viewer.store.role), nothing, nothing), viewer, state)


def test_partners_are_those_that_carry_most_together(analyst: Answers) -> None:
    """Of the chosen lag alone, in the query's order; a partner is a button that chooses it."""
    chosen: list[str] = []
    view = Partners(choices_of(analyst, analyst.store.role), chosen.append)
    state = replace(of(analyst), lag="1")
    texts = put(view, analyst, state)
    told = [
        row
        for row in analyst.now(
            question("feature_pairs", feature="lab", level="code", lags=1, top=1000, **state.of())
        ).to_pylist()
        if row["lag"] == 1
    ]
    assert len(told) > 2
    assert view.joint.source.data["key"] == [row["other"] for row in told]
    for rows, column in ((view.joint, "mean_joint"), (view.difference, "difference")):
        for name, suffix in (("value", ""), ("low", "_low"), ("high", "_high")):
            assert rows.source.data[name] == pytest.approx(
                [float("nan") if row[column + suffix] is None else row[column + suffix] for row in told], nan_ok=True
            )
    assert all(f'data-value="{row["other"]}"' in texts["partners_table"] for row in told)
    assert 'data-name="lag" data-value="0"' in texts["partners_lags"]
    view.joint.source.selected.indices = [1]
    assert chosen == [told[1]["other"]]
    # Each event of these patients is a step of its own.
    alone = put(view, analyst, replace(state, lag="0"))
    assert "one partner at the same step" in alone["partners_words"]
    assert 'data-name="lag" data-value="1"' in alone["partners_lags"]


def test_pairs_of_another_lag_are_left_out(analyst: Answers) -> None:
    """A question up to a lag answers with those of shorter ones too."""
    pairs = pa.table({"lag": [1, 0, 1], "other": ["a", "b", "c"]})
    assert at_lag(pairs, replace(of(analyst), lag="1"))["other"].to_pylist() == ["a", "c"]


def test_what_has_no_partner_is_told_in_words(analyst: Answers) -> None:
    """A feature without a time, and nobody at all."""
    view = Partners(choices_of(analyst, analyst.store.role), nothing)
    empty = Cohort(conditions=(condition_of("where:score > 1e9"),))
    for state in (of(analyst, "AGE"), replace(of(analyst), cohort=empty)):
        texts = put(view, analyst, state)
        assert "What has no time is in no pair" in texts["partners_words"]
        assert not any(chart.visible for chart in view.charts.values())
    groups = Groups(choices_of(analyst, analyst.store.role), nothing, nothing)
    assert "parent_codes" in put(groups, analyst, state)["groups_words"]
    assert not any(chart.visible for chart in groups.charts.values())


def test_viewers_are_told_that_analysts_alone_see_pairs(viewer: Answers) -> None:
    """Nothing is asked of rows."""
    with pytest.raises(UserError, match="for analysts alone"):
        Partners(choices_of(viewer, viewer.store.role), nothing).questions(of(viewer))


def test_lags_are_chosen_by_name(small_run: SmallRun) -> None:
    """Another one is told in words."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        session.act("choose", {"name": "lag", "value": "1"})
        assert session.state.lag == "1"
        session.act("choose", {"name": "lag", "value": "7"})
        assert "There is no lag '7'" in html.unescape(session.told.tags[0]["texts"]["notice"])


def test_rows_stand_from_the_top_on_an_axis_with_zero() -> None:
    """What is not sure is pale, what is chosen has its colour, and an axis has no side that no row needs."""
    rows = NamedRows("name", "mean", nothing)
    rows.put(
        [
            NamedRow("a", "a", "a", -2.0, -3.0, -1.0, "12 patients", 12),
            NamedRow("b", "b", "b", -1.0, -3.0, 1.0, "12 patients", 12, is_chosen=True),
            NamedRow("c", "c", "c", -0.5, None, None, "12 patients", 12),
        ],
        "axis",
    )
    assert rows.source.data["alpha"] == [1.0, FADED, FADED]
    assert rows.source.data["color"].index(CHOSEN) == 1
    assert rows.source.data["y"] == [0, -1, -2]
    assert rows.plot.x_range.start < -3
    assert rows.plot.x_range.end > 1
    rows.put([NamedRow("a", "a", "a", -2.0, -3.0, -1.0, "12 patients", 12)], "axis")
    assert rows.plot.x_range.end == 0
    rows.put([], "axis")
    assert rows.plot.visible is False
