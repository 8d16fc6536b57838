"""The server without a browser: what views ask, how labels read, what addresses mean, who is refused."""

from __future__ import annotations

import asyncio
import html
import io
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.csv
import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource, UIElement
from bokeh.server.callbacks import NextTickCallback

from conftest import SmallRun
from whenwhy.attribution.what_if import Served
from whenwhy.errors import UserError
from whenwhy.server import serve
from whenwhy.server.answers import OVERHEAD, Answers, Question, question
from whenwhy.server.charts import FADED, TimeFrame, one_page
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.cohort import Cohort, condition_of, members_sql, recorded_text
from whenwhy.server.feature_names import TREATMENT_WORDS
from whenwhy.server.labels import interval, number, signed, value_labels, value_range
from whenwhy.server.listening import listen
from whenwhy.server.pages import pages
from whenwhy.server.published import Published
from whenwhy.server.saved_cohorts import SAVED_FILE, SavedCohorts
from whenwhy.server.session import Session
from whenwhy.server.state import ORDERS, State, default_state, state_from_address
from whenwhy.server.time_scale import TimeScale
from whenwhy.server.users import User
from whenwhy.server.view import Tables, Texts, View
from whenwhy.server.views import About, AtRisk, HeatMap, Pairs, Ranking, Sparklines, Timeline, ValueEffect
from whenwhy.server.views.ranking import MEASURES
from whenwhy.shipped import shipped
from whenwhy.store import Store
from whenwhy.store.open import Role

SERVE = """
import sys
from pathlib import Path
from whenwhy.server import serve
serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def choices(viewer: Answers) -> Choices:
    """What it offers."""
    return choices_of(viewer, "viewer")


def views(choices: Choices) -> list[View]:
    """Every view of the Overview."""
    frame = TimeFrame()
    return [
        About(choices, "version"),
        Ranking(choices, lambda feature: None),
        HeatMap(choices, frame, lambda condition: None, difference=True),
        AtRisk(choices, frame),
        Timeline(choices, frame, lambda condition: None),
        ValueEffect(choices, lambda condition: None),
    ]


def put(view: View, answers: Answers, state: State) -> Texts:
    """The texts of a view, which shows what is asked."""
    tables = {name: answers.now(asked) for name, asked in view.questions(state).items()}
    return view.put(view.read(state, tables))


def sources(view: View) -> list[ColumnDataSource]:
    return [
        model for chart in view.charts.values() for model in chart.references() if isinstance(model, ColumnDataSource)
    ]


# -- labels -------------------------------------------------------------------------------------------


def row(
    low: float | None, high: float | None, bin_number: int | None = 0, unit: str | None = "mg/dL"
) -> dict[str, Any]:
    return {"bin": bin_number, "low": low, "high": high, "unit": unit}


@pytest.mark.parametrize(
    ("bins", "labels"),
    [
        ([row(-math.inf, 35), row(35, 39), row(39, math.inf)], ["< 35 mg/dL", "35 to 39 mg/dL", "≥ 39 mg/dL"]),
        ([row(None, None, None)], ["recorded"]),
        ([row(-math.inf, math.inf, unit=None)], ["any value"]),
        ([row(None, 35, unit=""), row(35, None, unit="")], ["… to 35", "35 to …"]),
        ([row(-0.5, 0.25, unit=None)], ["−0.5 to 0.25"]),
        (
            [row(100.001, 100.002, unit=None), row(100.002, 100.003, unit=None)],
            ["100.001 to 100.002", "100.002 to 100.003"],
        ),
    ],
)
def test_value_labels(bins: list[dict[str, Any]], labels: list[str]) -> None:
    """Original units, edges with as many digits as tell them apart, a hidden edge as dots."""
    assert value_labels(bins) == labels


@pytest.mark.parametrize(
    ("width", "n_bins", "last", "first", "ticks"),
    [
        (8766, 3, "2 years or more before", "0 to 1 years before", {-3: "…", -2: "2", -1: "1", 0: "0"}),
        (17532, 2, "2 years or more before", "0 to 2 years before", {-2: "…", -1: "2", 0: "0"}),
        (24, 2, "1 days or more before", "0 to 1 days before", {-2: "…", -1: "1", 0: "0"}),
        (6, 2, "6 hours or more before", "0 to 6 hours before", {-2: "…", -1: "6", 0: "0"}),
    ],
)
def test_time_labels(width: float, n_bins: int, last: str, first: str, ticks: dict[int, str]) -> None:
    """The unit comes from the bins' width; the prediction is at the right, zero."""
    scale = TimeScale(n_bins, width)
    assert (scale.words(n_bins - 1), scale.words(0), scale.ticks) == (last, first, ticks)
    assert list(scale.ticks) == sorted(scale.ticks), "Bokeh leaves out labels that overlap in this order"


def test_time_scale_of_bins() -> None:
    """The open bin has no width of its own."""
    bins = [{"time_bin": i, "low_hours": 6.0 * i, "high_hours": 6.0 * (i + 1) if i < 3 else math.inf} for i in (0, 3)]
    assert TimeScale.of(bins) == TimeScale(4, 6.0)
    assert TimeScale.of([]) == TimeScale(0, 1.0)


def test_a_mean_without_an_interval_says_so() -> None:
    """Never NaN."""
    assert interval(None, None) == interval(math.nan, 1.0) == "no interval: fewer than 30 effective patients"
    assert signed(math.nan) == "not shown"


# -- state and address --------------------------------------------------------------------------------


def test_an_address_reproduces_its_state(choices: Choices) -> None:
    """Whatever is chosen, and nothing is told to be wrong."""
    run = next(iter(choices.runs))
    offered = choices.offered[run]
    for feature in offered.features:
        values = tuple(row["feature_value_id"] for row in choices.ranges(run, feature)[-2:])
        for stratum in offered.strata:
            state = State(
                run,
                offered.splits[0],
                feature,
                Cohort(offered.classes[-1], stratum),
                against=Cohort(offered.classes[0]),
                selected=choices.condition(recorded_text(feature, values, (0.0, 48.0)), run),
                other=feature,
                other_run=run,
                subgroups=offered.kinds[-1],
                lag="1",
                within=("MEASURED", "BLOOD"),
                order="variance",
                color="score",
                opened=frozenset({"pairs", "spread"}),
                min_patients=30,
            )
            assert state_from_address(parse_qs(state.address), choices, choices.condition) == (state, [])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("feature", "labb", "There is no feature 'labb': did you mean 'lab'? The page shows its default instead."),
        ("class", "maybe", "There is no class 'maybe'"),
        ("order", "alphabet", "There is no order 'alphabet'"),
        ("color", "age", "There is no colour 'age'"),
        ("lag", "2", "There is no lag '2'"),
        ("against_class", "maybe", "There is no class 'maybe'"),
        ("where", "where:score > 0", "Conditions of one's own: for analysts alone"),
        ("where", "recorded:lab", "Conditions of one's own: for analysts alone"),
        ("selected", "nonsense", "There is no condition 'nonsense'"),
        ("against", "rest", "There is no reference 'rest'"),
        ("run", "x", "There is no run 'x'"),
        ("min_patients", "10", "min_patients is a whole number from 11 on, not '10': showing 11."),
        ("min_patients", "nan", "min_patients is a whole number"),
        ("min_patients", "9" * 400, "min_patients is a whole number"),
        ("subject_id", "3", "There is no argument 'subject_id' in this address"),
    ],
)
def test_an_unknown_value_is_told_and_becomes_the_default(choices: Choices, name: str, text: str, said: str) -> None:
    """One sentence each."""
    state, wrong = state_from_address({name: [text]}, choices, choices.condition)
    assert state == default_state(choices)
    assert len(wrong) == 1
    assert wrong[0].startswith(said)
    assert len(wrong[0]) < 400


def test_treatments_are_marked_wherever_they_are_named(analyst: Answers) -> None:
    """In rankings, chips and titles, with words of what the mark means; nothing else is."""
    choices = choices_of(analyst, "analyst")
    state = default_state(choices)
    offered = choices.offered[state.run]
    assert {code for code in offered.features if "℞" in offered.words_of(code)} == {"drug"}
    assert choices.condition("recorded:drug", state.run).words.startswith("℞ ")
    about, ranking, *_ = views(choices)
    assert TREATMENT_WORDS in html.unescape(put(about, analyst, state)["unit"])
    texts = put(ranking, analyst, state)
    names = dict(zip(ranking.source.data["code"], ranking.source.data["name"], strict=True))
    assert [code for code, name in names.items() if "℞" in name] == ["drug"]
    assert texts["ranking_table"].count("℞") == 1
    pairs = replace(state, feature="lab", split="train", lag="1", opened=frozenset({"pairs"}))
    offered_partners = html.unescape(put(Pairs(choices), analyst, pairs)["pairs_partners"])
    assert offered_partners.count("℞") == 1


# -- views --------------------------------------------------------------------------------------------


def test_views_show_every_cohort_and_feature(viewer: Answers, choices: Choices) -> None:
    """What they put equals what the queries answer, holds no small count, and never fails, also in thin cohorts."""
    run = next(iter(choices.runs))
    made = views(choices)
    shown = 0
    cohorts = viewer.store.ask("cohorts").to_pylist()
    everybody = [cohort for cohort in cohorts if cohort["class"] == cohort["stratum"] == "all"]
    for at, cohort in enumerate([*everybody, *cohorts[::30]]):
        for feature in choices.offered[run].features:
            own = Cohort(cohort["class"], cohort["stratum"])
            against = Cohort() if at % 2 else None
            state = State(run, cohort["split"], feature, own, against=against)
            for view in made:
                put(view, viewer, state)
                for source in sources(view):
                    for name in ("n_patients", "n_predictions"):
                        assert all(n >= 11 for n in source.data.get(name, []))
            cells = viewer.store.ask("feature_heatmap", feature=feature, **state.of()).to_pydict()
            heat_map = next(view for view in made if isinstance(view, HeatMap)).panels["cohort"]
            assert heat_map.shown.data["mean"] == cells["mean_per_event"]
            assert heat_map.mapper.low == -heat_map.mapper.high
            n_bins = TimeScale.of(viewer.store.ask("time_bins").to_pylist()).n_bins
            n_values = viewer.store.ask("feature_bins", feature=feature).num_rows
            assert len(heat_map.shown.data["x"]) + len(heat_map.hidden.data["x"]) == n_bins * n_values
            shown += len(cells["time_bin"])
    assert shown > 0


@pytest.mark.parametrize("order", [order for order in ORDERS if order != "difference"])
def test_features_stand_in_the_order_that_is_asked_for(viewer: Answers, choices: Choices, order: str) -> None:
    """The bars are the query's rows; what is not sure is pale."""
    state = replace(default_state(choices), order=order)
    ranking = Ranking(choices, lambda feature: None)
    texts = put(ranking, viewer, state)
    rows = viewer.now(ranking.questions(state)["rows"]).to_pylist()
    assert ranking.source.data["code"] == [row["code"] for row in rows]
    assert ranking.source.data["value"] == [row[MEASURES[order].value] for row in rows]
    assert all(html.escape(row["code"]) in texts["ranking_table"] for row in rows)
    for row, alpha in zip(rows, ranking.source.data["alpha"], strict=True):
        low, high = MEASURES[order].ends(row)
        is_measured = order in ("mean", "significance")
        assert (alpha == 1) == (not is_measured or (low is not None and high is not None and not low <= 0 <= high))


@pytest.mark.parametrize("is_first", [True, False])
def test_sparklines_are_the_courses_of_the_bars_beside_them(analyst: Answers, is_first: bool) -> None:
    """Of own cohorts too, whichever is answered first; none of another order or cohort stays."""
    choices = choices_of(analyst, "analyst")
    ranking = Ranking(choices, lambda feature: None)
    lines = Sparklines(ranking)
    start = default_state(choices)
    own = Cohort(conditions=(condition_of("where:n_steps > 1"),))
    for state in (
        start,
        replace(start, order="mean"),
        replace(start, order="significance"),
        replace(start, cohort=own),
    ):
        put(lines if is_first else ranking, analyst, state)
        assert is_first or not ranking.lines.data["xs"], "those of another question are gone"
        put(ranking if is_first else lines, analyst, state)
        told = analyst.now(question("sparklines", **state.of(), top=1000)).to_pylist()
        drawn = dict(
            zip(
                ranking.lines.data["code"],
                zip(ranking.lines.data["xs"], ranking.lines.data["ys"], strict=True),
                strict=True,
            )
        )
        assert drawn
        for code, y in zip(ranking.source.data["code"], ranking.source.data["y"], strict=True):
            course = [(row["time_bin"], row["mean_per_prediction"]) for row in told if row["code"] == code]
            if len(course) > 1:
                largest = max(abs(mean) for _, mean in course)
                xs, ys = drawn.pop(code)
                assert dict(zip(xs, ys, strict=True)) == pytest.approx(
                    {-time_bin - 0.5: y + 0.36 * mean / largest for time_bin, mean in course}
                )
        assert not drawn


def test_two_cohorts_share_a_scale_and_their_difference_has_its_own(analyst: Answers) -> None:
    """Differences stand under the first minus the second, zero in the middle of each scale."""
    choices = choices_of(analyst, "analyst")
    state = default_state(choices)
    state = replace(state, cohort=Cohort("true"), against="rest", order="difference")
    heat_map = HeatMap(choices, TimeFrame(), lambda condition: None, difference=True)
    ranking = Ranking(choices, lambda feature: None)
    for feature in choices.offered[state.run].features:
        state = replace(state, feature=feature)
        put(heat_map, analyst, state)
        panels = heat_map.panels
        assert panels["cohort"].mapper.high == panels["reference"].mapper.high
        assert all(panel.mapper.low == -panel.mapper.high for panel in panels.values())
        told = analyst.now(heat_map.questions(state)["difference"]).to_pylist()
        assert panels["difference"].shown.data["mean"] == [row["difference"] for row in told]
        for row, alpha in zip(told, panels["difference"].shown.data["alpha"], strict=True):
            assert (alpha == 1) == bool(row["is_different"])
        ready = analyst.now(question("feature_heatmap", feature=feature, **state.of(Cohort("false")))).to_pydict()
        assert panels["reference"].shown.data["mean"] == pytest.approx(ready["mean_per_event"])
    put(ranking, analyst, state)
    assert ranking.source.data["alpha"] == [
        1.0 if row["is_discovery"] else FADED for row in analyst.now(ranking.questions(state)["rows"]).to_pylist()
    ]


def test_what_is_marked_reaches_every_view(analyst: Answers) -> None:
    """Its cells are outlined, other bins and ranges fade, and who has it is counted and drawn beside the others."""
    choices = choices_of(analyst, "analyst")
    state = default_state(choices)
    cell = analyst.now(question("feature_heatmap", feature=state.feature)).to_pylist()[0]
    value, time_bin = cell["feature_value_id"], cell["time_bin"]
    scale = choices.offered[state.run].time
    text = recorded_text(state.feature, (value,), scale.hours(time_bin, time_bin))
    state = replace(state, selected=choices.condition(text, state.run))
    assert state.selected_cohort is not None
    about, ranking, heat_map, at_risk, timeline, effect = views(choices)
    texts = put(about, analyst, state)
    whole = analyst.now(question("number_at_risk", **state.of(state.selected_cohort))).to_pylist()[-1]
    assert f"{whole['n_patients']:,} patient" in texts["cohort"]
    for view in (ranking, heat_map, at_risk, timeline, effect):
        put(view, analyst, state)
    shown = heat_map.panels["cohort"].shown.data
    places = list(zip(shown["feature_value_id"], shown["time_bin"], strict=True))
    assert [place for place, line in zip(places, shown["line"], strict=True) if line != "#ffffff"] == [
        (value, time_bin)
    ]
    for name, data in (("at risk", at_risk.source.data), ("course", timeline.source.data)):
        assert {t for t, alpha in zip(data["time_bin"], data["alpha"], strict=True) if alpha == 1} == {time_bin}, name
        assert FADED in data["alpha"], name
    assert "marked patients" in timeline.source.data["who"]
    assert "marked patients" in effect.source.data["who"]
    assert {
        v for v, a in zip(effect.source.data["feature_value_id"], effect.source.data["alpha"], strict=True) if a == 1
    } == {value}
    assert sum(at_risk.marked.data["top"]) > 0
    assert ranking.marked.data["value"]
    everybody = dict(zip(ranking.source.data["code"], ranking.source.data["value"], strict=True))
    assert set(ranking.marked.data["y"]) <= set(ranking.source.data["y"])
    assert ranking.marked.data["value"] != [
        everybody[code] for code in list(everybody)[: len(ranking.marked.data["value"])]
    ]


@pytest.mark.parametrize("role", ["viewer", "analyst"])
def test_marked_ranges_are_named_neighbours_as_one(role: Role, request: pytest.FixtureRequest) -> None:
    """By the limits that the role may know; a range of another feature is refused."""
    answers: Answers = request.getfixturevalue(role)
    choices = choices_of(answers, role)
    run = next(iter(choices.runs))
    bins = [row for row in answers.now(question("feature_bins", feature="lab")).to_pylist() if row["bin"] is not None]
    ids = [row["feature_value_id"] for row in bins]

    def edge(value: float | None) -> str:
        return "…" if value is None else number(value)

    def words(*values: int) -> str:
        told: str = choices.condition(recorded_text("lab", values), run).words
        return told.removeprefix(choices.offered[run].name_of("lab"))

    unit = f" {bins[0]['unit']}" if bins[0]["unit"] else ""
    low, middle, high = bins[:3]
    assert words(ids[1]) == f" {edge(middle['low'])} to {edge(middle['high'])}{unit} recorded"
    assert words(ids[1], ids[0]) == f" {value_range(low['low'], middle['high'])}{unit} recorded"
    assert words(ids[0], ids[2]) == (
        f" {value_range(low['low'], low['high'])}{unit} or {edge(high['low'])} to {edge(high['high'])}{unit} recorded"
    )
    assert words(*ids) == f" {value_range(low['low'], bins[-1]['high'], bins[0]['unit'])} recorded"
    assert words() == " recorded"
    with pytest.raises(UserError, match="no range 99999 of lab"):
        words(99999)


def test_a_viewers_mark_says_where_and_not_who(viewer: Answers, choices: Choices) -> None:
    """No rows are asked for it."""
    state = default_state(choices)
    marked = replace(state, selected=choices.condition(recorded_text(state.feature, (), (0.0, 1e9)), state.run))
    assert marked.selected_cohort is None
    for view in views(choices):
        assert view.questions(marked).keys() == view.questions(state).keys()
        put(view, viewer, marked)


def test_views_hold_no_sql() -> None:
    """Pages and views ask named queries alone."""
    here = Path(sys.modules["whenwhy.server"].__file__ or "").parent
    for file in (*here.rglob("*.py"), *shipped("dashboards").glob("*.py")):
        assert ".sql(" not in file.read_text(), file


def test_every_page_has_a_title_and_a_layout() -> None:
    """A page is a function of its file's name."""
    assert {"overview"} <= set(pages())
    for page in pages().values():
        assert page.title
        assert (shipped("dashboards") / f"{page.name}.html").exists()


def is_open(version: Path) -> bool:
    """Whether this process has a file of the version open."""
    opened = (os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.is_symlink())
    return any(Path(file).is_relative_to(version) for file in opened)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="Linux tells which files are open.")
def test_a_version_published_later_is_seen_by_new_sessions(small_run: SmallRun, tmp_path: Path) -> None:
    """And the same one stays open otherwise."""
    copy = tmp_path / "store"
    shutil.copytree(small_run.store, copy)
    published, viewer = Published(copy, ThreadPoolExecutor(1)), User("somebody", "viewer")
    first, second = published.begin(viewer, "overview"), published.begin(viewer, "overview")
    assert second.store is first.store
    assert not published.newer_than(first)
    other = copy / "versions" / "another"
    shutil.copytree(first.store.version, other)
    (copy / "CURRENT").write_text("versions/another\n")
    assert published.newer_than(first)
    last = published.begin(viewer, "overview")
    assert last.store.version == other
    assert not published.newer_than(last)
    for ended in (first, second):
        assert ended.answers.now(question("runs")).num_rows == 1, "a session that has begun keeps its version"
        assert is_open(first.store.version)
        published.end(ended)
    assert not is_open(first.store.version), "nobody looks at it any more, and nobody will"
    published.end(last)
    assert is_open(other), "the next session sees it"


@pytest.mark.parametrize("role", ["viewer", "analyst"])
def test_the_models_of_every_page_fit_together(
    small_run: SmallRun, role: Role, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Bokeh finds nothing to complain of, before the answers and with them; the server leaves this check out."""
    for page in pages().values():
        with session_at(small_run.store, role, tmp_path) as session:
            with one_page():
                views = page.views(session)
            for roots in (session.roots, *(view.charts for view in views)):
                for root in roots.values():
                    session.document.add_root(root)
            session.document.validate()
            session.begin(views)
            assert settle(session)["status"] == "ready", page.name
            session.document.validate()
    assert [record.getMessage() for record in caplog.records if record.name.startswith("bokeh")] == []


# -- answers ------------------------------------------------------------------------------------------


class Slow:
    """A store whose answers wait until they are let go, and that counts its questions."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.go = threading.Event()

    def ask(self, query: str, **arguments: Any) -> pa.Table:
        self.asked.append(query)
        assert self.go.wait(10)
        return pa.table({"query": [query]})


def test_sessions_that_ask_the_same_wait_for_one_answer() -> None:
    """And later ones have it at once."""
    slow: Any = Slow()

    async def ask() -> None:
        with ThreadPoolExecutor(4) as pool:
            answers = Answers(slow, pool)
            tasks = [asyncio.create_task(answers.answer(question("runs"))) for _ in range(5)]
            await asyncio.sleep(0.05)
            slow.go.set()
            assert {(await task)["query"][0].as_py() for task in tasks} == {"runs"}
            await answers.answer(question("runs"))
        assert slow.asked == ["runs"]

    asyncio.run(ask())


def test_a_question_goes_on_while_anybody_waits_and_is_stopped_when_nobody_does(small_run: SmallRun) -> None:
    """The store is interrupted in the midst of it; another who asks the same is answered."""
    store = Store(small_run.store, "analyst")
    # So slow that it never ends of itself.
    slow = {"cohort": "(select sum(a.range * b.range) from range(10000000) a, range(10000000) b) is null", "top": 3}

    async def ask() -> None:
        with ThreadPoolExecutor(2) as pool:
            answers = Answers(store, pool)
            answers.now(question("runs"))
            first, second = (asyncio.create_task(answers.answer(question("top_features", **slow))) for _ in range(2))
            await asyncio.sleep(0.2)
            first.cancel()
            await asyncio.sleep(0.2)
            assert not second.done(), "the other still waits"
            second.cancel()
            begin = time.monotonic()
            for _ in range(2):  # as many as there are threads: none is held up
                assert (await asyncio.wait_for(answers.answer(question("top_features", top=2)), 20)).num_rows == 2
            assert time.monotonic() - begin < 20

    asyncio.run(ask())
    store.close()


def test_no_more_is_kept_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch, viewer: Answers) -> None:
    """The answers that were not asked for longest go first."""
    monkeypatch.setattr("whenwhy.server.answers.KEPT_BYTES", 12_000)

    async def ask() -> None:
        with ThreadPoolExecutor(1) as pool:
            answers = Answers(viewer.store, pool)
            for top in range(1, 20):
                await answers.answer(question("top_features", top=top))
            assert 0 < answers._bytes <= 12_000
            assert answers._bytes == sum(table.nbytes + OVERHEAD for table in answers._kept.values())
            assert question("top_features", top=19) in answers._kept
            assert question("top_features", top=1) not in answers._kept

    asyncio.run(ask())


# -- sessions -----------------------------------------------------------------------------------------


class Answering:
    """A view that answers with its state's feature, or cannot."""

    name = "answering"
    charts: ClassVar[dict[str, UIElement]] = {}

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.shown = fault, list[str]()

    def questions(self, state: State) -> dict[str, Question]:
        return {"runs": question("runs")}

    def csv(self, state: State) -> Question:
        return question("runs")

    def read(self, state: State, tables: Tables) -> str:
        if self.fault:
            raise self.fault
        return state.feature

    def put(self, data: str) -> Texts:
        self.shown.append(data)
        return {"answering_heading": data}


@contextmanager
def session_at(
    store: Path, role: Role = "viewer", saved: Path | None = None, served: Mapping[str, Served] | None = None
) -> Iterator[Session]:
    """A session of somebody in a role, who has not begun."""
    with ThreadPoolExecutor(2) as pool:
        published = Published(store, pool)
        version = published.begin(User("somebody", role), "overview")
        newer = partial(published.newer_than, version)
        yield Session(Document(), version, pool, {}, SavedCohorts(saved or store), "somebody", newer, served)


@contextmanager
def session_of(store: Path, view: Any, role: Role = "viewer") -> Iterator[Session]:
    """A session of one view."""
    with session_at(store, role) as session:
        session.begin([view])
        yield session


def ticks(session: Session) -> list[Any]:
    return [one for one in session.document.session_callbacks if isinstance(one, NextTickCallback)]


def settle(session: Session) -> dict[str, Any]:
    """What the page has been told once the session has nothing left to do."""

    async def turn() -> None:
        while True:
            for callback in ticks(session):
                done = callback.callback()
                if asyncio.iscoroutine(done):
                    await done
            await asyncio.gather(*session._tasks, return_exceptions=True)
            if not ticks(session):
                break

    asyncio.run(turn())
    return dict(session.told.tags[0])


@pytest.mark.parametrize(
    ("fault", "said", "status"),
    [
        (ValueError("secret"), "the server's log says why", "failed"),
        (UserError("Do <this>."), "Do <this>.", "ready"),
    ],
)
def test_a_failure_shows_words(
    small_run: SmallRun, caplog: pytest.LogCaptureFixture, fault: Exception, said: str, status: str
) -> None:
    """The page says that it failed; the log has the trace, and the page does not."""
    with session_of(small_run.store, Answering(fault)) as session:
        told = settle(session)
    assert told["status"] == status
    assert html.escape(said, quote=True) in told["texts"]["answering_words"]
    assert "secret" not in str(told)
    assert ("secret" in caplog.text) == isinstance(fault, ValueError)


def test_a_stale_answer_is_dropped(small_run: SmallRun) -> None:
    """Only what was chosen last is shown, and its address is told."""
    view = Answering()
    with session_of(small_run.store, view) as session:
        other = max(set(session.version.choices.offered[session.state.run].features) - {session.state.feature})
        session.act("choose", {"name": "feature", "value": other})
        assert session.told.tags[0]["status"] == "loading"
        told = settle(session)
    assert view.shown == [other]
    assert told["status"] == "ready"
    assert told["state"]["address"] == session.state.address


def test_what_is_told_before_the_page_is_open_is_one_message(small_run: SmallRun) -> None:
    """A page that opens late misses nothing; later messages hold only what is new."""
    with session_of(small_run.store, Answering()) as session:
        told = settle(session)
        assert told["texts"]["answering_heading"] == session.state.feature
        session._opened()
        session.act("search", {"text": ""})
        assert session.told.tags[0]["texts"] == {}


@pytest.mark.parametrize(
    ("action", "told", "said"),
    [
        ("fly", {}, "There is no action 'fly'"),
        ("choose", {"name": "feature", "value": "x" * 200}, "There is no feature"),
        ("choose", {"name": "min_patients", "value": "1"}, "There is no choice 'min_patients'"),
        ("choose", {}, "could not be answered"),
        ("add", {"condition": "where:score > 0"}, "analysts alone"),
        ("compare", {"with": "rest"}, "Nobody is left beside everybody"),
        ("compare", {"with": "class:maybe"}, "There is no cohort 'class:maybe'"),
        ("keep", {}, "Nothing is marked"),
        ("load", {"name": "nobody"}, "There is no saved cohort 'nobody'"),
        ("save", {"name": "../x"}, "cannot be a cohort's name"),
        ("open", {"part": "door", "is_open": True}, "There is no part 'door'"),
        ("select", {"condition": "where:score > 0"}, "analysts alone"),
    ],
)
def test_an_action_that_cannot_be_is_told_in_words(
    small_run: SmallRun, action: str, told: dict[str, Any], said: str
) -> None:
    """The state stays as it was."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        before = session.state
        session.act(action, told)
        assert said in html.unescape(session.told.tags[0]["texts"]["notice"])
        assert session.state == before


def test_an_analyst_builds_a_cohort_and_compares_it(small_run: SmallRun, tmp_path: Path) -> None:
    """Conditions add up, go again, get a name, and are compared with who is left."""
    copy = tmp_path / "store"
    shutil.copytree(small_run.store, copy)
    with session_of(copy, Answering(), "analyst") as session:
        for text in ("where:score > 0", "range:n_steps@2.."):
            session.act("add", {"condition": text})
        assert session.state.cohort.predicate == "(score > 0) and (n_steps >= 2.0)"
        session.act("remove", {"condition": "where:score > 0"})
        session.act("save", {"name": "two steps"})
        assert session.state.cohort.predicate == "((n_steps >= 2.0))"
        assert "where=saved%3Atwo+steps" in session.state.address
        session.act("compare", {"with": "rest"})
        counts = [
            session.version.store.ask("number_at_risk", **session.state.of(cohort)).to_pylist()[-1]["n_predictions"]
            for cohort in (session.state.cohort, session.state.reference, Cohort())
        ]
        assert counts[0] + counts[1] == counts[2]
        found, wrong = state_from_address(parse_qs(session.state.address), session.version.choices, session.condition)
        assert (found, wrong) == (session.state, [])
        session.act("add", {"condition": "where:subject_id = 3"})
        assert "names single patients" in session.told.tags[0]["texts"]["notice"]
        before = session.state
        session.act("add", {"condition": "where:height > 3"})
        assert "there is no column height" in session.told.tags[0]["texts"]["notice"]
        assert session.state == before
        mistyped = parse_qs(f"{session.state.address}&where=where:height")
        found, wrong = state_from_address(mistyped, session.version.choices, session.condition)
        assert found == before
        assert "there is no column height" in wrong[0]
        session.act("clear", {})
        assert session.state == default_state(session.version.choices)
        assert [saved.names for saved in (session.saved, SavedCohorts(copy))] == [["two steps"]] * 2
        with session_of(copy, Answering()) as viewers:
            assert settle(viewers)["state"]["saved"] == [], "a name may say whom it means"
        session.act("forget", {"name": "two steps"})
        assert session.saved.names == []
        session.act("save", {"name": "everybody"})
        assert session.told.tags[0]["state"]["saved"] == ["everybody"], (
            "the list has it although the cohort is the same"
        )


def test_viewers_forget_what_they_saved_themselves(small_run: SmallRun, tmp_path: Path) -> None:
    """Not what others did, and the page offers nothing else."""
    with session_at(small_run.store, "viewer", tmp_path) as session:
        session.begin([])
        SavedCohorts(tmp_path).save("of an analyst", Cohort("true"), "somebody else")
        session.act("save", {"name": "mine"})
        told = session.told.tags[0]["state"]
        assert (told["saved"], told["forgettable"]) == (["mine", "of an analyst"], ["mine"])
        session.act("forget", {"name": "of an analyst"})
        assert "Somebody else saved" in html.unescape(session.told.tags[0]["texts"]["notice"])
        session.act("forget", {"name": "mine"})
        assert session.saved.names == ["of an analyst"]
        session.act("forget", {"name": "nobody's"})
        assert "no saved cohort" in html.unescape(session.told.tags[0]["texts"]["notice"])
    with session_at(small_run.store, "analyst", tmp_path) as session:
        session.begin([])
        session.act("forget", {"name": "of an analyst"})
        assert session.saved.names == []


def test_viewers_hear_no_name_of_what_they_may_not_see(small_run: SmallRun, tmp_path: Path) -> None:
    """Not in hints, and not by asking; an analyst's link opens without what is not theirs."""
    SavedCohorts(tmp_path).save("frail women", Cohort(conditions=(condition_of("where:score > 0"),)), "somebody else")
    SavedCohorts(tmp_path).draw("drawn in the plane 1", members_sql({(7, 0)}), "somebody else")
    with session_at(small_run.store, "viewer", tmp_path) as session:
        session.begin([])
        for name in ("frail woman", "frail women", "drawn in the plane 1"):
            for action, told in (
                ("load", {"name": name}),
                ("forget", {"name": name}),
                ("compare", {"with": f"saved:{name}"}),
                ("select", {"condition": f"saved:{name}"}),
            ):
                session.act(action, told)
                said = html.unescape(session.told.tags[0]["texts"]["notice"])
                assert said
                assert "frail women" not in said.replace(f"'{name}'", "")
            found, wrong = state_from_address(
                {"selected": [f"saved:{name}"]}, session.version.choices, session.condition
            )
            assert found.selected is None
            assert len(wrong) == 1
        assert session.state == default_state(session.version.choices)


@pytest.mark.parametrize(
    "tags",
    [[[]], [[1]], ["x"], [[1, "csv", {"view": "no such view"}]], [[1, "lasso", {"members": [[float("inf"), 0]]}]],
     [[1, "panel", {"hours": "1e308"}]], [[1, "choose", None]], [[1, None, {}]]],
)  # fmt: skip
def test_whatever_a_page_says_is_answered_in_words(small_run: SmallRun, tmp_path: Path, tags: list[Any]) -> None:
    """A page's connection may be anybody's program."""
    with session_at(small_run.store, "analyst", tmp_path) as session:
        session.begin([])
        before = session.state
        session.said.tags = tags
        assert session.told.tags[0]["texts"]["notice"]
        assert session.state == before


def test_the_controls_follow_before_the_charts(small_run: SmallRun) -> None:
    """A slow question does not keep the address of what was chosen before."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        session.act("choose", {"name": "class", "value": "true"})
        told = session.told.tags[0]
        assert told["status"] == "loading"
        assert told["state"]["address"] == session.state.address
        assert "class=true" in session.state.address


def test_the_latest_drawn_cohorts_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And every one that has a name which somebody gave."""
    monkeypatch.setattr("whenwhy.server.saved_cohorts.DRAWN_KEPT", 2)
    saved = SavedCohorts(tmp_path)
    saved.save("named", Cohort("true"), "somebody")
    for at in range(4):
        monkeypatch.setattr("whenwhy.server.saved_cohorts.datetime", Clock(at))
        saved.draw(f"drawn {at}", members_sql({(at, at)}), "somebody")
    assert saved.names == ["named"]
    assert saved.condition("drawn 3").sql == members_sql({(3, 3)})
    assert list(json.loads((tmp_path / SAVED_FILE).read_text())) == ["drawn 2", "drawn 3", "named"]
    # Who draws the same line again keeps it.
    for at, second in ((2, 5), (9, 6)):
        monkeypatch.setattr("whenwhy.server.saved_cohorts.datetime", Clock(second))
        saved.draw(f"drawn {at}", members_sql({(at, at)}), "somebody")
    assert list(json.loads((tmp_path / SAVED_FILE).read_text())) == ["drawn 2", "drawn 9", "named"]
    with pytest.raises(UserError, match="not kept any more"):
        saved.condition("drawn in the plane 3")


@dataclass(frozen=True)
class Clock:
    """Stands still at a second."""

    second: int

    def now(self, zone: tzinfo) -> datetime:
        """That second."""
        return datetime(2026, 1, 1, second=self.second, tzinfo=zone)


def test_a_fixed_panel_counts_the_same_patients_in_every_bin(small_run: SmallRun, tmp_path: Path) -> None:
    """As many as the farthest bin counts without it; of the reference and of who is marked too, and the address has it."""
    with session_at(small_run.store, "analyst", tmp_path) as session:
        session.begin(pages()["overview"].views(session))
        session.act("compare", {"with": "classes"})
        offers = settle(session)["texts"]["at_risk_words"]
        offered = [float(hours) for hours in re.findall(r'data-act="panel" data-hours="([\d.]+)"', offers)]
        assert offered == sorted(set(offered))
        assert offered
        ask = session.version.store.ask
        before = {side: by_bin(ask("number_at_risk", **session.state.of(one))) for side, one in cohorts(session.state)}
        session.act("panel", {"hours": f"{offered[0]:g}"})
        told = settle(session)
        assert told["status"] == "ready"
        width = session.version.choices.offered[session.state.run].time.width_hours
        last = round(offered[0] / width)
        for side, one in cohorts(session.state):
            after = by_bin(ask("number_at_risk", **session.state.of(one)))
            assert {after[time_bin] for time_bin in range(last + 1)} == {before[side][last]}, side
            assert all(after[time_bin] == before[side][time_bin] for time_bin in after if time_bin > last)
        both = session.state.of_both()
        assert both["cohort_a"] == both["cohort_b"] == f"(history_minutes >= {offered[0] * 60})"
        assert "Everybody again" in told["texts"]["at_risk_words"]
        assert "whose history reaches back" in told["texts"]["cohort"]
        found, wrong = state_from_address(parse_qs(session.state.address), session.version.choices, session.condition)
        assert (found, wrong) == (session.state, [])
        for hours, said in (("-3", "a number of hours"), ("soon", "a number of hours")):
            session.act("panel", {"hours": hours})
            assert said in session.told.tags[0]["texts"]["notice"]
        session.act("panel", {"hours": ""})
        assert session.state.panel is None
    with session_at(small_run.store, "viewer", tmp_path) as session:
        session.begin([])
        session.act("panel", {"hours": "24"})
        assert "for analysts alone" in html.unescape(session.told.tags[0]["texts"]["notice"])
        _, wrong = state_from_address({"panel": ["24"]}, session.version.choices, session.condition)
        assert "for analysts alone" in wrong[0]


def cohorts(state: State) -> list[tuple[str, Cohort]]:
    """The cohort and its reference."""
    assert state.reference is not None
    return [("cohort", state.cohort), ("reference", state.reference)]


def by_bin(counts: pa.Table) -> dict[int, int]:
    """The patients of each bin of number_at_risk."""
    return {row["time_bin"]: row["n_patients"] for row in counts.to_pylist() if row["time_bin"] is not None}


def test_csv_is_what_the_store_answers(small_run: SmallRun) -> None:
    """Below lines that say what it is, and with nothing that a viewer may not see."""
    with session_of(small_run.store, Answering()) as session:
        settle(session)
        frame = TimeFrame()
        view = HeatMap(session.version.choices, frame, session.mark)
        session._views = [view]
        session.act("csv", {"view": "heat_map"})
        content = settle(session)["csv"]["content"]
        lines = content.splitlines()
        comments = [line for line in lines if line.startswith("#")]
        assert any(session.version.name in line for line in comments)
        assert any("held-out patients" in line for line in comments)
        assert "# contribution to this model's prediction, not a cause" in comments
        asked = session.version.store.ask("feature_heatmap", feature=session.state.feature, **session.state.of())
        told = pyarrow.csv.read_csv(io.BytesIO("\n".join(lines[len(comments) :]).encode()))
        assert told["n_patients"].to_pylist() == asked["n_patients"].to_pylist()
        assert told["mean_per_event"].to_pylist() == pytest.approx(asked["mean_per_event"].to_pylist())
        assert f"# rows: {asked.num_rows}" in comments


# -- who is served ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "example.org", "", "localhost.example.org"])
def test_an_address_that_others_reach_is_refused(small_run: SmallRun, address: str) -> None:
    """Unless somebody asks who they are."""
    with pytest.raises(UserError, match="nobody asks who they are"):
        serve(small_run.store, port=0, address=address, on_ready=print)


def test_a_port_in_use_is_told_in_a_sentence(small_run: SmallRun) -> None:
    """No traceback."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UserError, match=rf"Port {taken.getsockname()[1]} is in use: choose another one"):
            serve(small_run.store, port=taken.getsockname()[1], on_ready=print)
    with pytest.raises(UserError, match="no port 70000"):
        listen("127.0.0.1", 70000)


def test_no_store_is_told_in_a_sentence(tmp_path: Path) -> None:
    """Before any port is taken."""
    with pytest.raises(UserError, match="is no store"):
        serve(tmp_path, port=0, on_ready=print)


def test_hosts_are_exact() -> None:
    """This machine by its names, with the port."""
    listening = listen("127.0.0.1", 0)
    for one in listening.sockets:
        one.close()
    assert listening.hosts == {f"127.0.0.1:{listening.port}", f"localhost:{listening.port}"}


def handshake(here: str, origin: str) -> int:
    """The status of a websocket's beginning from a page of that origin."""
    connection = HTTPConnection(here, timeout=20)
    headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13", "Origin": origin}
    # The key is RFC 6455's own example.
    connection.request("GET", "/overview/ws", headers={**headers, "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="})
    status = connection.getresponse().status
    connection.close()
    return status


@pytest.mark.parametrize("signal_name", ["SIGTERM", "SIGINT"])
def test_the_server_ends_cleanly_and_guards_its_websocket(small_run: SmallRun, signal_name: str) -> None:
    """Pages come, other origins are turned away, and both signals end it with status 0."""
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(small_run.store)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        url = server.stdout.readline().strip()
        with urlopen(url, timeout=20) as answer:
            assert urlsplit(answer.url).path == "/overview"
            page = answer.read().decode()
        assert "not a cause" in page
        assert "http://" not in page.replace(url, "")
        assert "https://" not in page
        assert "mathjax" not in page
        assert handshake(urlsplit(url).netloc, "http://example.org") == 403
        server.send_signal(getattr(signal, signal_name))
        assert server.wait(20) == 0
    finally:
        server.kill()
        _, errors = server.communicate()
    assert "Traceback" not in errors
