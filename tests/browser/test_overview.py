"""The Overview page in a real browser shows exactly what the store answers, and nothing that it must not."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from dashboard import Opened, opened
from PIL import Image
from playwright.sync_api import Browser

from whenwhy.store import Store

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
SENTENCE = "contribution to this model's prediction, not a cause"


@pytest.fixture(scope="module")
def store(demo_for_viewers: Store) -> Store:
    """What viewers may know."""
    return demo_for_viewers


@pytest.fixture(scope="module")
def url(viewers_address: str) -> str:
    """A server for viewers."""
    return viewers_address


def timed(store: Store) -> str:
    """The feature with numbers that has most cells in value and time: its heat map is worth a look."""
    codes = [row["code"] for row in store.ask("features").to_pylist() if row["n_values"] > 1]
    return max(codes, key=lambda code: (store.ask("feature_heatmap", feature=code).num_rows, code))


def first_shown(store: Store) -> str:
    """The feature that a page without one in its address shows: the highest ranked that has a time."""
    ranked = store.ask("top_features", top=100).column("code").to_pylist()
    return next(code for code in ranked if store.ask("feature_timeline", feature=code).num_rows)


def static(store: Store) -> str:
    """A feature that has numbers and no time."""
    for row in store.ask("top_features", top=100).to_pylist():
        effect = store.ask("value_effect", feature=row["code"])
        if not store.ask("feature_timeline", feature=row["code"]).num_rows and effect.num_rows > 1:
            return str(row["code"])
    pytest.fail("The demonstration has no static feature with numbers.")


def at(**chosen: str) -> str:
    return f"/overview?{urlencode(chosen)}"


def agrees(page: Opened, store: Store, feature: str, **cohort: Any) -> None:
    """Every source in the browser equals the query behind it."""
    sources = page.sources()
    ranked = store.ask("top_features", **cohort).to_pydict()
    assert sources["ranking_bars"]["value"] == ranked["mean_abs_per_prediction"]
    for name in ("code", "n_patients"):
        assert sources["ranking_bars"][name] == ranked[name], name
    cells = store.ask("feature_heatmap", feature=feature, **cohort).to_pydict()
    assert sources["heat_map_cohort_cells"]["mean"] == cells["mean_per_event"]
    for name in ("feature_value_id", "time_bin", "n_patients", "n_events"):
        assert sources["heat_map_cohort_cells"][name] == cells[name], name
    risk = [row for row in store.ask("number_at_risk", **cohort).to_pylist() if row["time_bin"] is not None]
    assert sources["at_risk_counts"]["time_bin"] == [row["time_bin"] for row in risk]
    assert sources["at_risk_counts"]["n_patients"] == [row["n_patients"] for row in risk]
    course = store.ask("feature_timeline", feature=feature, **cohort).to_pydict()
    assert sources["timeline_means"]["time_bin"] == course["time_bin"]
    assert sources["timeline_means"]["mean"] == course["mean_per_event"]
    course_rows = store.ask("feature_timeline", feature=feature, **cohort).to_pylist()
    known = [row for row in course_rows if row["mean_per_event_low"] is not None]
    assert sources["timeline_bands"]["low"] == [row["mean_per_event_low"] for row in known]
    assert sources["timeline_bands"]["high"] == [row["mean_per_event_high"] for row in known]
    effect = store.ask("value_effect", feature=feature, **cohort).to_pydict()
    assert sources["value_effect_means"]["feature_value_id"] == effect["feature_value_id"]
    assert sources["value_effect_means"]["mean"] == effect["mean_per_event"]


def picture(page: Opened, name: str) -> np.ndarray:
    """The pixels [row, column, colour] of a named chart, its shades from 0 to 255."""
    box = page.page.evaluate(
        """(name) => {
          const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name(name).id)
          view.el.scrollIntoView({block: "center"})
          const outer = view.el.getBoundingClientRect(), inner = view.frame.bbox
          return {x: outer.x + inner.x, y: outer.y + inner.y, width: inner.width, height: inner.height}
        }""",
        name,
    )
    return np.asarray(Image.open(io.BytesIO(page.page.screenshot(clip=box))).convert("RGB")).astype(int)


def test_page_shows_what_the_store_answers(chromium: Browser, url: str, store: Store) -> None:
    """Ranking, heat map, numbers at risk, course and value effect, with a colour scale that has zero in the middle."""
    feature = timed(store)
    with opened(chromium, url) as page:
        page.open(at(feature=feature))
        assert page.page.get_by_text(re.compile(f"^{SENTENCE}$", re.IGNORECASE)).is_visible()
        agrees(page, store, feature)
        low, high = page.attribute("heat_map_cohort_colors", "low"), page.attribute("heat_map_cohort_colors", "high")
        means = page.sources()["heat_map_cohort_cells"]["mean"]
        assert low == -high
        assert high == max(map(abs, means))
        palette = page.attribute("heat_map_cohort_colors", "palette")
        assert len(palette) % 2 == 1
        blue, zero, red = (palette[i] for i in (0, len(palette) // 2, -1))
        shades = [[(c >> s) & 255 for s in (16, 8, 0)] for c in (int(str(c).lstrip("#")[:6], 16) for c in (blue, red))]
        assert shades[0][2] > shades[0][0], "low is blue"
        assert shades[1][0] > shades[1][2], "high is red"
        assert str(zero).lower().startswith("#f7f7f7")
        everybody = store.ask("number_at_risk").to_pylist()[-1]
        words = f"{everybody['n_patients']:,} patients, {everybody['n_predictions']:,} predictions"
        assert page.page.get_by_text(words).first.is_visible()
        auroc = store.ask("runs").to_pylist()[0]["auroc"]
        assert page.page.get_by_text(f"{auroc:.3f}").first.is_visible()
        SCREENSHOTS.mkdir(exist_ok=True)
        page.page.screenshot(path=SCREENSHOTS / "overview.png", full_page=True)


def test_heat_map_is_drawn_in_the_colours_of_its_numbers(chromium: Browser, url: str, store: Store) -> None:
    """Coloured cells stand where the cells are, grey ones where none may be shown, the prediction is at the right."""
    feature = timed(store)
    with opened(chromium, url) as page:
        page.open(at(feature=feature))
        sources = page.sources()
        shown, hidden = sources["heat_map_cohort_cells"], sources["heat_map_cohort_hidden"]
        pixels = picture(page, "heat_map")
        height, width, _ = pixels.shape
        columns = 1 + max(max(shown["time_bin"]), *(int(-x - 0.5) for x in hidden["x"] or [-0.5]))
        rows = 1 + int(max(shown["y"] + hidden["y"]))
        limit = page.attribute("heat_map_cohort_colors", "high")

        def middle(x: float, y: float) -> np.ndarray:
            right, up = width * (x + columns) / columns, height * (1 - (y + 0.5) / rows)
            return pixels[int(up) - 3 : int(up) + 4, int(right) - 3 : int(right) + 4].reshape(-1, 3).mean(0)

        for x, y, mean, alpha in zip(shown["x"], shown["y"], shown["mean"], shown["alpha"], strict=True):
            red, _, blue = middle(x, y)
            if abs(mean) > 0.1 * limit and alpha == 1:
                assert (red > blue) == (mean > 0), (x, y, mean)
        for x, y in zip(hidden["x"], hidden["y"], strict=True):
            shade = middle(x, y)
            assert np.ptp(shade) < 16, "grey"
            assert shade.mean() < 240, "not the colour of zero"
        saturation = np.ptp(pixels, axis=2)
        assert (saturation > 40).mean() > 0.05, "coloured cells"
        assert (pixels.min(2) > 253).mean() < 0.3, "no blank canvas"
        for name in ("ranking", "timeline", "value_effect", "at_risk"):
            assert (picture(page, name).min(2) < 200).mean() > 0.005, f"{name} is drawn"


def test_a_bar_a_row_and_a_control_choose_the_feature(chromium: Browser, url: str, store: Store) -> None:
    """Each redraws every view and changes the address; a reload shows the same pixels."""
    codes = store.ask("top_features").column("code").to_pylist()
    with opened(chromium, url) as page:
        page.open("/overview")
        assert page.sources()["ranking_bars"]["code"] == codes
        agrees(page, store, first_shown(store))
        place = page.page.evaluate(
            """(n) => {
              const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("ranking").id)
              view.el.scrollIntoView({block: "center"})
              const outer = view.el.getBoundingClientRect(), inner = view.frame.bbox
              return {x: outer.x + inner.x + 5, y: outer.y + inner.y + inner.height * 1.5 / n}
            }""",
            len(codes),
        )
        page.page.mouse.click(place["x"], place["y"])
        page.follow("Feature", codes[1])
        agrees(page, store, codes[1])
        page.page.get_by_role("table").filter(has_text="Mean absolute value").get_by_role("button").nth(0).click()
        page.follow("Feature", codes[0])
        agrees(page, store, codes[0])
        feature = timed(store)
        page.choose("Feature", feature)
        agrees(page, store, feature)
        page.choose("Class of patients", "true")
        agrees(page, store, feature, **{"class": "true"})
        address = page.page.url
        assert parse_qs(urlsplit(address).query)["class"] == ["true"]
        assert "subject" not in address
        page.page.evaluate("scrollTo(0, 0)")
        page.page.mouse.move(2, 400)
        # The address says everything: whoever opens it sees the same page. A stray mark of ten pixels, left at a
        # canvas's edge by its first layout on a busy machine, is no difference; a moved label or bar is thousands.
        page.page.reload()
        page.ready()
        assert page.page.url == address
        agrees(page, store, feature, **{"class": "true"})
        before = page.picture()
        page.page.reload()
        page.ready()
        same = (
            np.asarray(Image.open(io.BytesIO(before))),
            np.asarray(Image.open(io.BytesIO(page.picture()))),
        )
        assert same[0].shape == same[1].shape
        differing = np.argwhere((same[0] != same[1]).any(axis=2))
        assert len(differing) <= 40, f"{len(differing)} pixels differ, from {differing[0]} to {differing[-1]}"
        page.page.screenshot(path=SCREENSHOTS / "overview-class-true.png", full_page=True)
        page.page.get_by_role("button", name="Clear filters").click()
        page.follow("Class of patients", "all")
        agrees(page, store, feature)


def test_a_feature_without_time_is_told_in_words(chromium: Browser, url: str, store: Store) -> None:
    """The heat map's place says why it is not there, and the value effect is."""
    feature = static(store)
    with opened(chromium, url) as page:
        page.open(at(feature=feature))
        assert page.page.get_by_text("has no time here").is_visible()
        assert page.attribute("heat_map", "visible") is False
        assert page.attribute("value_effect", "visible") is True
        agrees(page, store, feature)
        page.page.screenshot(path=SCREENSHOTS / "overview-static.png", full_page=True)


def test_nonsense_in_the_address_is_told_in_words(chromium: Browser, url: str, store: Store) -> None:
    """What the store does not know is named, and the default is shown."""
    with opened(chromium, url) as page:
        page.open(at(feature="no such thing", stratum="<b>x</b>", min_patients="3", patient="7"))
        words = page.words()
        for told in ("There is no feature 'no such thing'", "<b>x</b>", "min_patients", "no argument 'patient'"):
            assert told in words
        agrees(page, store, first_shown(store))


def test_an_empty_cohort_shows_words_and_a_way_back(chromium: Browser, url: str, store: Store) -> None:
    """No NaN, no blank canvas."""
    with opened(chromium, url) as page:
        page.open(at(min_patients="100000000"))
        text = page.words()
        assert "no cells of 100,000,000 or more patients here" in text.lower()
        assert "nan" not in text.lower().split()
        for name in ("ranking", "heat_map", "timeline", "value_effect", "at_risk"):
            assert page.attribute(name, "visible") is False
        picture = page.page.get_by_role("button", name="Value effect as PNG")
        assert not picture.is_visible(), "there is nothing to take along"
        page.page.screenshot(path=SCREENSHOTS / "overview-empty.png", full_page=True)
        page.page.get_by_role("button", name="Clear filters").click()
        page.page.wait_for_function("() => Bokeh.documents[0].get_model_by_name('ranking').visible")
        page.ready()
        assert picture.is_visible()
        agrees(page, store, first_shown(store))


def test_no_small_cell_reaches_the_browser(chromium: Browser, url: str, store: Store) -> None:
    """Neither in what the page holds nor in any message, over every class, stratum and kind of feature."""
    counts = re.compile(r'"n_patients",\s*(\[[^\]]*\])')
    seen = 0
    with opened(chromium, url) as page:
        for cohort in store.ask("cohorts").to_pylist()[::45]:
            chosen = {name: cohort[name] for name in ("split", "class", "stratum")}
            for feature in (timed(store), static(store)):
                page.open(at(feature=feature, **chosen))
                for name, columns in page.sources().items():
                    for column in ("n_patients", "n_predictions"):
                        assert all(n >= 11 for n in columns.get(column, [])), (name, column)
        for frame in page.frames:
            for found in counts.findall(frame):
                numbers = json.loads(found)
                seen += len(numbers)
                assert all(n >= 11 for n in numbers)
        assert not any("subject_id" in frame for frame in page.frames)
    assert seen > 100, "the messages were read"


def test_every_control_is_reached_by_tab_with_a_visible_focus(chromium: Browser, url: str) -> None:
    """In the order of reading, each with an outline."""
    with opened(chromium, url) as page:
        page.open(at(min_patients="12"))
        page.page.locator("body").click(position={"x": 1, "y": 300})
        reached = []
        for _ in range(80):
            page.page.keyboard.press("Tab")
            name, outline, at_the_end = page.page.evaluate(
                """() => {
                  const outlined = (one) => {
                    const style = getComputedStyle(one)
                    return style.outlineStyle === "solid" && parseFloat(style.outlineWidth) >= 2
                  }
                  let node = document.activeElement
                  let seen = outlined(node) || outlined(node.closest(".chart") || node)
                  while (node.shadowRoot && node.shadowRoot.activeElement) {
                    node = node.shadowRoot.activeElement
                    seen = seen || outlined(node)
                  }
                  const named = node.closest("label"), words = named ? named.firstChild.textContent : node.textContent
                  return [words.trim(), seen, node === document.body]
                }"""
            )
            if at_the_end:
                break
            reached.append(name)
            assert outline, f"{name} shows its focus"
        wanted = [
            "Feature",
            "Class of patients",
            "Stratum",
            "Split",
            "Compare with",
            "Order features by",
            "Clear filters",
        ]
        assert [name for name in reached if name in wanted] == wanted
        assert "The heat map as a table" in reached or "The value effect as a table" in reached
