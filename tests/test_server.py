"""The server without a browser: what views ask, how labels read, what addresses mean, who is refused."""

from __future__ import annotations

import asyncio
import html
import math
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit
from urllib.request import urlopen

import pytest
from bokeh.document import Document
from bokeh.models import ColumnDataSource, UIElement

from conftest import SmallRun
from whenwhy.errors import UserError
from whenwhy.server import serve
from whenwhy.server.answers import Asks
from whenwhy.server.choices import Choices, choices_of
from whenwhy.server.labels import interval, signed, value_labels
from whenwhy.server.loopback import listen
from whenwhy.server.pages import pages
from whenwhy.server.published import Published
from whenwhy.server.session import Session
from whenwhy.server.state import State, default_state, state_from_address
from whenwhy.server.time_scale import TimeFrame, TimeScale
from whenwhy.server.view import View
from whenwhy.server.views import About, AtRisk, HeatMap, Ranking, Timeline, ValueEffect
from whenwhy.shipped import shipped
from whenwhy.store import Store, open_store

SERVE = """
import sys
from pathlib import Path
from whenwhy.server import serve
serve(Path(sys.argv[1]), port=0, on_ready=lambda url: print(url, flush=True))
"""


@pytest.fixture(scope="module")
def store(small_run: SmallRun) -> Iterator[Store]:
    """The small cohort as a viewer sees it."""
    opened = open_store(small_run.store, "viewer")
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def choices(store: Store) -> Choices:
    """What it offers."""
    return choices_of(store)


def views(choices: Choices) -> list[View]:
    """Every view of the Overview that needs no session."""
    frame = TimeFrame()
    return [
        About("version"),
        Ranking(choices, lambda feature: None),
        HeatMap(choices, frame),
        AtRisk(frame),
        Timeline(choices, frame),
        ValueEffect(choices),
    ]


def sources(view: View) -> list[ColumnDataSource]:
    return [one for one in vars(view).values() if isinstance(one, ColumnDataSource)]


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
        for stratum in offered.strata:
            state = State(run, offered.splits[0], offered.classes[-1], stratum, feature, 30)
            assert state_from_address(dict(parse_qsl(state.address)), choices) == (state, [])


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("feature", "labb", "There is no feature 'labb': did you mean 'lab'? The page shows its default instead."),
        ("class", "maybe", "There is no class 'maybe'"),
        ("run", "x", "There is no run 'x'"),
        ("min_patients", "10", "min_patients is a whole number from 11 on, not '10': showing 11."),
        ("min_patients", "nan", "min_patients is a whole number"),
        ("min_patients", "9" * 400, "min_patients is a whole number"),
        ("subject_id", "3", "There is no argument 'subject_id' in this address"),
    ],
)
def test_an_unknown_value_is_told_and_becomes_the_default(choices: Choices, name: str, text: str, said: str) -> None:
    """One sentence each."""
    state, wrong = state_from_address({name: text}, choices)
    assert state == default_state(choices)
    assert len(wrong) == 1
    assert wrong[0].startswith(said)
    assert len(wrong[0]) < 400


# -- views --------------------------------------------------------------------------------------------


def test_views_show_every_cohort_and_feature(store: Store, choices: Choices) -> None:
    """What they put equals what the queries answer, holds no small count, and never fails, also in thin cohorts."""
    run = next(iter(choices.runs))
    made = views(choices)
    shown = 0
    cohorts = store.ask("cohorts").to_pylist()
    everybody = [cohort for cohort in cohorts if cohort["class"] == cohort["stratum"] == "all"]
    for cohort in [*everybody, *cohorts[::9]]:
        for feature in choices.offered[run].features:
            state = State(run, cohort["split"], cohort["class"], cohort["stratum"], feature)
            for view in made:
                view.put(view.query(store, state))
                for source in sources(view):
                    for name in ("n_patients", "n_predictions"):
                        assert all(n >= 11 for n in source.data.get(name, []))
            cells = store.ask("feature_heatmap", feature=feature, **state.cohort).to_pydict()
            heat_map = next(view for view in made if isinstance(view, HeatMap))
            assert heat_map.shown.data["mean_per_event"] == cells["mean_per_event"]
            assert heat_map.mapper.low == -heat_map.mapper.high
            n_bins = TimeScale.of(store.ask("time_bins").to_pylist()).n_bins
            n_values = store.ask("feature_bins", feature=feature).num_rows
            assert len(heat_map.shown.data["x"]) + len(heat_map.hidden.data["x"]) == n_bins * n_values
            shown += len(cells["time_bin"])
    assert shown > 0


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


def test_a_version_published_later_is_seen_by_new_sessions(small_run: SmallRun, tmp_path: Path) -> None:
    """And the same one stays open otherwise."""
    copy = tmp_path / "store"
    shutil.copytree(small_run.store, copy)
    published = Published(copy, "viewer")
    first = published.now()
    assert published.now() is first
    other = copy / "versions" / "another"
    shutil.copytree(first.store.version, other)
    (copy / "CURRENT").write_text("versions/another\n")
    assert published.now().store.version == other
    assert first.store.ask("runs").num_rows == 1, "a session that has begun keeps its version"


# -- sessions -----------------------------------------------------------------------------------------


class Answering:
    """A view that answers with its state's feature, or cannot."""

    roots: ClassVar[dict[str, UIElement]] = {}

    def __init__(self, fault: Exception | None = None) -> None:
        self.fault, self.shown = fault, list[str]()

    def query(self, store: Asks, state: State) -> str:
        if self.fault:
            raise self.fault
        return state.feature

    def put(self, data: str) -> None:
        self.shown.append(data)


def session_of(small_run: SmallRun, pool: ThreadPoolExecutor, view: Answering) -> Session:
    session = Session(Document(), Published(small_run.store, "viewer").now(), pool, {})
    session.begin([view])
    return session


def turn(session: Session) -> None:
    """The next tick of a session, as the server would give it."""
    for callback in session.document.session_callbacks:
        done = callback.callback()
        if asyncio.iscoroutine(done):
            asyncio.run(done)


@pytest.mark.parametrize(
    ("fault", "said"), [(ValueError("secret"), "the server's log says why"), (UserError("Do this."), "Do this.")]
)
def test_a_failure_shows_words(
    small_run: SmallRun, caplog: pytest.LogCaptureFixture, fault: Exception, said: str
) -> None:
    """The page says that it failed; the log has the trace, and the page does not."""
    with ThreadPoolExecutor(1) as pool:
        session = session_of(small_run, pool, Answering(fault))
        turn(session)
        turn(session)
    assert session.status.text == "failed"
    assert said in html.unescape(session.notice.text)
    assert session.notice.visible
    assert "secret" not in session.notice.text
    assert ("secret" in caplog.text) == isinstance(fault, ValueError)


def test_a_stale_answer_is_dropped(small_run: SmallRun) -> None:
    """Only what was chosen last is shown, and its address is told."""
    view = Answering()
    with ThreadPoolExecutor(1) as pool:
        session = session_of(small_run, pool, view)
        other = max(set(session.version.choices.offered[session.state.run].features) - {session.state.feature})
        session.choose(feature=other)
        assert session.status.text == "loading …"
        turn(session)
        turn(session)
    assert view.shown == [other]
    assert session.status.text == "ready"
    assert session.status.tags == [session.state.address]


# -- who is served ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", "example.org", "", "localhost.example.org"])
def test_an_address_that_others_reach_is_refused(small_run: SmallRun, address: str) -> None:
    """There is no authentication yet, and the sentence says so."""
    with pytest.raises(UserError, match="no authentication yet"):
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


def test_origins_are_exact() -> None:
    """This machine by its names, with the port."""
    listening = listen("127.0.0.1", 0)
    for one in listening.sockets:
        one.close()
    assert set(listening.origins) == {f"127.0.0.1:{listening.port}", f"localhost:{listening.port}"}


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
