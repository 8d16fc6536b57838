"""What every page must do, whatever it shows: fit, be reached by keyboard, be read, be taken along, be reproduced."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import psutil
import pytest
import yaml
from dashboard import Opened, browser, opened, served, started
from PIL import Image
from playwright.sync_api import Browser, Download, Locator

from whenwhy.answers import as_text
from whenwhy.server.charts import CHOSEN, MARK, REFERENCE, ZERO_LINE
from whenwhy.server.labels import NOT_A_CAUSE, signed
from whenwhy.server.outcomes import CLASS_COLORS
from whenwhy.server.pages import pages
from whenwhy.server.session import WENT_WRONG
from whenwhy.server.views.patient_sum import LOWERS, RAISES
from whenwhy.shipped import shipped
from whenwhy.store import Store, open_store

pytestmark = pytest.mark.browser

#: Everything that an address can open is open, for one class beside the other.
SHOWN = "class=true&against_class=false&against_stratum=all&order=difference&opened=pairs&opened=partners&opened=spread&color=score"

#: A condition that takes about ten seconds, and fulfils itself.
SLOW = "where:(select count(*) from range(2000000000) t(i) where i % 7 = 1) > 0"

#: What a keyboard reaches of the page itself, in the order of reading; Bokeh's charts are beside it.
CONTROLS = """() => {
  window.controls = [...document.querySelectorAll("a[href], button, input, select, summary, [tabindex='0']")]
    .filter((one) => one.checkVisibility({visibilityProperty: true}) && !one.disabled && one.tabIndex >= 0)
  window.reached = []
  const outlined = (one) => {
    const style = getComputedStyle(one)
    return style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2
  }
  document.addEventListener("focusin", (event) => {
    const one = event.target
    reached.push([controls.indexOf(one), outlined(one) || outlined(one.closest(".chart") || one), one.outerHTML.slice(0, 120)])
  })
  const start = document.createElement("span")
  start.tabIndex = -1
  document.body.prepend(start)
  start.focus()
  reached.length = 0
  return controls.length
}"""

#: Every visible text's colour, and the colours behind it, from the nearest to the first that is opaque.
TEXTS = """() => {
  const found = {}, walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (walker.nextNode()) {
    const text = walker.currentNode.data.trim(), at = walker.currentNode.parentElement
    if (!text || ["SCRIPT", "STYLE"].includes(at.tagName) || !at.checkVisibility()) continue
    const behind = []
    for (let one = at; one; one = one.parentElement) {
      const color = getComputedStyle(one).backgroundColor
      if (color !== "rgba(0, 0, 0, 0)") behind.push(color)
      if (!color.includes("/") && !color.startsWith("rgba")) break
    }
    const pair = [getComputedStyle(at).color, behind]
    found[pair.join(" on ")] ??= [...pair, text.slice(0, 40)]
  }
  return Object.values(found)
}"""


@pytest.fixture(scope="module")
def store(demo_store: Path) -> Iterator[Store]:
    """What analysts may know."""
    opened_store = open_store(demo_store, "analyst")
    yield opened_store
    opened_store.close()


@pytest.fixture(scope="module")
def url(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for analysts, the model along, that has nothing to complain of."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with served(demo_folder / "store", log, "analyst", demo_folder / "model", demo_folder / "sequences") as address:
        yield address
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    yield from browser()


@pytest.fixture(scope="module", params=list(pages()))
def page(request: pytest.FixtureRequest, chromium: Browser, url: str) -> Iterator[Opened]:
    """Each page in turn, everything shown that it has; the tests of one share it."""
    with opened(chromium, url) as shown:
        shown.open(f"/{request.param}?{SHOWN}")
        if request.param == "patient":
            shown.page.locator("[data-text=patient_list_table] [data-act=patient]").first.click()
            shown.ready()
            shown.page.get_by_role("region", name="What if").wait_for()
        yield shown


def channels(color: str) -> np.ndarray:
    """Red, green, blue and opacity from 0 to 1 of #rrggbb, of rgb(...) or of color(srgb ...)."""
    if color.startswith("#"):
        return np.array([*(int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)), 1.0])
    told = [float(number) for number in re.findall(r"[\d.]+(?:e-?\d+)?", color)]
    shade = told[:3] if color.startswith("color(") else [number / 255 for number in told[:3]]
    return np.array([*shade, *(told[3:] or [1.0])])


def seen(colors: list[str]) -> np.ndarray:
    """What shows of colours upon each other, the uppermost first."""
    shade = np.ones(3)
    for color in reversed(colors):
        *over, opacity = channels(color)
        shade = opacity * np.array(over) + (1 - opacity) * shade
    return shade


def contrast(first: np.ndarray, second: np.ndarray) -> float:
    """The contrast of WCAG 2.2: from 1 to 21."""

    def luminance(color: np.ndarray) -> float:
        linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
        return float(linear @ [0.2126, 0.7152, 0.0722])

    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


def in_the_dark(color: np.ndarray) -> np.ndarray:
    """A chart's colour after invert(.92) hue-rotate(180deg), as Filter Effects 1 defines them."""
    red, green, blue = 0.213, 0.715, 0.072
    turned = 2 * np.array([[red, green, blue]] * 3) - np.eye(3)
    return np.clip(turned @ (0.92 - 0.84 * color), 0, 1)


def taken(page: Opened, button: Locator) -> Download | str:
    """The file that a button gives, or the words that say why there is none."""
    files: list[Download] = []
    said = page.page.locator("[data-text=notice]")
    said.evaluate("(place) => { place.innerHTML = '' }")
    page.page.once("download", lambda file: files.append(file))
    button.click()
    for _ in range(200):
        page.page.wait_for_timeout(20)
        if files or said.inner_text():
            return files[0] if files else said.inner_text()
    pytest.fail(f"{button.get_attribute('aria-label')} neither gives a file nor says why")


def assert_same(one: list[str], other: list[str], name: str) -> None:
    """Nothing, where two CSV texts have the same cells; sums of floats may differ in their last digits."""
    assert len(one) == len(other), name
    for row, of in zip(csv.reader(one), csv.reader(other), strict=True):
        for cell, told in zip(row, of, strict=True):
            if cell != told:
                assert float(cell) == pytest.approx(float(told), rel=1e-9, abs=1e-12), name


def asked_of(line: str) -> tuple[str, dict[str, str]]:
    """The query and the arguments that the first line of a CSV file names."""
    name, told = re.fullmatch(r"# query: (\w+)\((.*)\)", line).groups()
    return name, dict(part.split("=", 1) for part in re.split(r", (?=\w+=)", told) if part)


def test_every_control_is_reached_by_tab_in_the_order_of_reading(page: Opened) -> None:
    """Once around the page: none is left out, none is a trap, each shows its focus."""
    n = page.page.evaluate(CONTROLS)
    for _ in range(2 * n + 20):
        page.page.keyboard.press("Tab")
        if page.page.evaluate("document.activeElement === document.body"):
            break
    reached = page.page.evaluate("reached")
    assert [html for _, is_outlined, html in reached if not is_outlined] == []
    missing = set(range(n)) - {at for at, _, _ in reached}
    assert page.page.evaluate("(all) => all.map((at) => controls[at].outerHTML.slice(0, 150))", sorted(missing)) == []
    order = [at for at, _, _ in reached if at >= 0]
    assert order == sorted(order)


def test_texts_are_readable_in_light_and_dark(page: Opened) -> None:
    """4.5:1 at least between each text of the page and what is behind it."""
    for mode in ("light", "dark"):
        page.page.evaluate("(mode) => { document.documentElement.dataset.mode = mode }", mode)
        pairs = page.page.evaluate(TEXTS)
        assert len(pairs) > 4
        faint = [pair for pair in pairs if contrast(seen([pair[0], *pair[1]]), seen(pair[1])) < 4.5]
        assert faint == [], mode
    page.page.evaluate("delete document.documentElement.dataset.mode")


def test_everything_can_be_taken_along(page: Opened, store: Store) -> None:
    """Pictures are no blank sheets and say what they are; a file of numbers has the answer of the query that it names."""
    buttons = page.page.locator("[data-export]:visible, [data-act=csv]:visible")
    assert buttons.count() > 0
    for at in range(buttons.count()):
        button = buttons.nth(at)
        name = button.get_attribute("aria-label")
        kind = button.get_attribute("data-export") or "csv"
        given = taken(page, button)
        if isinstance(given, str):
            assert kind == "csv", f"{name}: {given}"
            assert given != WENT_WRONG, name
            continue
        content = Path(given.path()).read_bytes()
        if kind == "png":
            picture = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
            assert min(picture.shape[:2]) > 40, name
            # Without the line of words below the chart.
            assert len(np.unique(picture[:-24].reshape(-1, 3), axis=0)) > 8, name
        elif kind == "svg":
            told = ElementTree.fromstring(content)
            assert told.tag.endswith("svg")
            assert len(list(told.iter())) > 20, name
            assert NOT_A_CAUSE in "".join(told.itertext()), name
        else:
            lines = content.decode().splitlines()
            above = [line for line in lines if line.startswith("# ")]
            assert f"# {NOT_A_CAUSE}" in above
            query, arguments = asked_of(above[0])
            answer = store.ask(query, **arguments)
            assert f"# rows: {answer.num_rows}" in above
            assert_same(lines[len(above) :], as_text(answer, "csv").splitlines(), name)


def test_no_width_scrolls_sideways(page: Opened) -> None:
    """Neither the page nor a chart is wider than the window."""
    for width in (390, 768, 1920, 1280):
        page.page.set_viewport_size({"width": width, "height": 900})
        page.ready()
        wide = page.page.evaluate("""() => [document.documentElement, ...document.querySelectorAll(".chart")]
          .filter((one) => one.checkVisibility() && Math.max(one.scrollWidth, one.getBoundingClientRect().right) > innerWidth + 1)
          .map((one) => one.outerHTML.slice(0, 120))""")
        assert wide == [], width


@pytest.mark.full
def test_the_address_reproduces_the_page(page: Opened) -> None:
    """Whoever opens it sees the same pixels, but for a stray few at a canvas's edge; no patient is in it."""
    address = page.page.url
    pictures = []
    for _ in range(2):
        page.page.reload()
        page.ready()
        page.page.mouse.move(2, 400)
        assert page.page.url == address
        pictures.append(np.asarray(Image.open(io.BytesIO(page.picture())).convert("RGB")))
    assert pictures[0].shape == pictures[1].shape
    assert (pictures[0] != pictures[1]).any(axis=2).sum() <= 40
    assert not re.search(r"subject|patient_id|prediction_id", address)


def test_marks_and_labels_of_charts_stand_out_in_light_and_dark() -> None:
    """Marks by 3:1 at least from the paper, labels by 4.5:1."""
    attrs = yaml.safe_load((shipped("dashboards") / "theme.yaml").read_text())["attrs"]
    labels = [color for of in attrs.values() for name, color in of.items() if name.endswith("text_color")]
    assert len(labels) == 4
    for least, colors in ((3.0, (MARK, REFERENCE, CHOSEN, ZERO_LINE, RAISES, LOWERS, *CLASS_COLORS)), (4.5, labels)):
        for color in colors:
            shade, white = seen([color]), np.ones(3)
            assert contrast(shade, white) >= least, color
            assert contrast(in_the_dark(shade), in_the_dark(white)) >= least, f"{color} in the dark"


def cell_of(page: Opened, at: int) -> dict[str, float]:
    """Where a cell of the heat map is in the window, after scrolling there."""
    return page.page.evaluate(
        """(at) => {
          const of = (name) => Bokeh.documents[0].get_model_by_name(name)
          const view = Bokeh.index.get_by_id(of("heat_map").id), {x, y} = of("heat_map_cohort_cells").data instanceof Map
            ? Object.fromEntries(of("heat_map_cohort_cells").data) : of("heat_map_cohort_cells").data
          view.el.scrollIntoView({block: "center"})
          const box = view.el.getBoundingClientRect()
          return {x: box.x + view.frame.x_scale.compute(x[at]), y: box.y + view.frame.y_scale.compute(y[at])}
        }""",
        at,
    )


def test_a_cell_tells_its_numbers(chromium: Browser, url: str, store: Store) -> None:
    """Its limits, its mean with the interval, and whom it rests on, as the store answers."""
    feature = max(
        store.ask("features")["code"].to_pylist(), key=lambda code: store.ask("feature_heatmap", feature=code).num_rows
    )
    with opened(chromium, url) as page:
        page.open(f"/overview?feature={feature}")
        rows = store.ask("feature_heatmap", feature=feature).to_pylist()
        at = next(i for i, row in enumerate(rows) if row["mean_per_event_low"] is not None)
        place = cell_of(page, at)
        page.page.mouse.move(place["x"], place["y"])
        tooltip = page.page.locator(".bk-Tooltip table").filter(has_text="mean per event")
        tooltip.wait_for()
        told = tooltip.inner_text()
        row = rows[at]
        for name in ("value", "time", "mean per event", "95 % interval", "patients", "events"):
            assert name in told, told
        limits = [f"{row[name]:g}" for name in ("low", "high") if math.isfinite(row[name])]
        assert limits
        for number in (*limits, f"{row['n_patients']:,}", f"{row['n_events']:,}"):
            assert number in told, (number, told)
        for name in ("mean_per_event", "mean_per_event_low", "mean_per_event_high"):
            assert signed(row[name]) in told, told


def test_a_slow_question_is_told_and_stopped_by_the_next(chromium: Browser, demo_store: Path, tmp_path: Path) -> None:
    """It turns from 300 ms on, controls work meanwhile, and once nobody waits the server rests."""
    with started(demo_store, tmp_path / "log.txt", "analyst") as (url, server), opened(chromium, url) as page:
        page.open("/overview")
        turning = "getComputedStyle(document.querySelector('.status'), '::after').opacity"
        assert page.page.evaluate(turning) in ("", "1"), "there is no turning circle"
        page.page.evaluate("(told) => whenwhy.act('add', {condition: told})", SLOW)
        page.page.wait_for_function("document.documentElement.dataset.status === 'loading'")
        page.page.wait_for_timeout(600)
        assert page.page.evaluate("document.documentElement.dataset.status") == "loading"
        assert page.page.evaluate(turning) == "1"
        assert page.page.locator(".status").inner_text() == "loading …"
        at_work = seconds_of_work(page, server.pid)
        page.page.evaluate("(told) => whenwhy.act('remove', {condition: told})", SLOW)
        page.ready()
        assert "where=" not in page.page.url
        page.choose("Class of patients", "true")
        page.page.wait_for_timeout(300)
        assert seconds_of_work(page, server.pid) < at_work / 4, "nobody waits any more"


def seconds_of_work(page: Opened, pid: int) -> float:
    """Seconds of all cores together that a process works within the next second."""
    process = psutil.Process(pid)
    before = process.cpu_times()
    page.page.wait_for_timeout(1000)
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system


FAULT = """
from whenwhy.server.views import Timeline
def read(self, state, tables):
    raise RuntimeError("made to fail")
Timeline.read = read
"""


def test_a_failure_is_told_in_words_and_logged(chromium: Browser, demo_store: Path, tmp_path: Path) -> None:
    """Its card says so, the others show their numbers, and the log has what happened."""
    log = tmp_path / "log.txt"
    with served(demo_store, log, before=FAULT) as url, opened(chromium, url) as page:
        page.page.goto(f"{url.rstrip('/')}/overview")
        page.page.wait_for_function("document.documentElement.dataset.status === 'failed'")
        assert page.page.locator("[data-text=timeline_words]").inner_text() == WENT_WRONG
        assert "made to fail" not in page.words()
        assert page.attribute("ranking", "visible") is True
        assert page.attribute("timeline", "visible") is False
        page.page.evaluate("whenwhy.act('compare', {})")
        page.page.get_by_text(WENT_WRONG).nth(1).wait_for()
    told = log.read_text()
    assert "RuntimeError: made to fail" in told
    assert "KeyError: 'with'" in told


def test_a_lost_connection_is_told_in_words(chromium: Browser, demo_store: Path, tmp_path: Path) -> None:
    """What was shown stays, and the page says that nothing can be chosen."""
    with started(demo_store, tmp_path / "log.txt") as (url, server), opened(chromium, url) as page:
        page.open("/overview")
        assert not page.page.locator("#lost").is_visible()
        server.kill()
        page.page.get_by_text("The connection to the server is lost").wait_for()
        assert page.page.locator(".status").inner_text() == "no connection"
        assert "Client connection" not in page.words()
        assert page.attribute("ranking", "visible") is True
        page.faults.clear()  # the browser tells of it too
