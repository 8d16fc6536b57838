"""The page of predictions in a real browser: an analyst's journey over it, and what a viewer sees of it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from dashboard import Opened, opened, served
from playwright.sync_api import Browser

from whenwhy.store import Store

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"

#: Where a share of a chart's inner width and height lies on the screen.
PLACE = """([name, right, up]) => {
  const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name(name).id)
  view.el.scrollIntoView({block: "center"})
  const outer = view.el.getBoundingClientRect(), inner = view.frame.bbox
  return [outer.x + inner.x + right * inner.width, outer.y + inner.y + (1 - up) * inner.height]
}"""


@pytest.fixture(scope="module")
def store(demo_for_analysts: Store) -> Store:
    """What analysts may know."""
    return demo_for_analysts


@pytest.fixture(scope="module")
def url(analysts_address: str) -> str:
    """A server for analysts."""
    return analysts_address


def chosen(page: Opened, name: str) -> list[str]:
    """What the page's address holds under a name."""
    return parse_qs(urlsplit(page.page.url).query).get(name, [])


def await_address(page: Opened, name: str, is_there: bool = True) -> None:
    page.page.wait_for_function(
        "([name, there]) => new URLSearchParams(location.search).has(name) === there", arg=[name, is_there]
    )
    page.ready()


def test_an_analyst_marks_keeps_and_narrows(chromium: Browser, url: str, store: Store) -> None:
    """Cards show what the store answers; a brush over scores marks them on every card, and a cell is a cohort."""
    with opened(chromium, url) as page:
        page.open("/predictions")
        sources = page.sources()
        bins = store.ask("calibration").to_pydict()
        for name in ("observed_share", "mean_probability", "n_predictions"):
            assert sources["calibration_bins"][name] == pytest.approx(bins[name]), name
        counts = store.ask("score_distribution", n_bins=24).to_pydict()["n_predictions"]
        finer = store.ask("score_distribution", n_bins=12).to_pydict()["n_predictions"]
        coarse = store.ask("score_distribution", n_bins=6).to_pydict()["n_predictions"]
        assert sources["scores_bins"]["n_predictions"] in (counts, finer, coarse)
        for row in store.ask("confusion").to_pylist():
            assert page.page.get_by_role("button", name=f"{row['n_predictions']:,}", exact=True).is_visible()
        assert "so there is no course over time" in page.words(), "all predictions of the demonstration have one date"
        assert page.attribute("over_time", "visible") is False
        SCREENSHOTS.mkdir(exist_ok=True)
        page.page.screenshot(path=SCREENSHOTS / "predictions.png", full_page=True)
        start, end = (page.page.evaluate(PLACE, ["scores", right, 0.5]) for right in (0.6, 0.97))
        page.page.mouse.move(*start)
        page.page.mouse.down()
        page.page.mouse.move(*end, steps=4)
        page.page.mouse.up()
        await_address(page, "selected")
        (mark,) = chosen(page, "selected")
        low = float(mark.removeprefix("range:score@").removesuffix(".."))
        told = store.ask("number_at_risk", cohort=f"score >= {low!r}").to_pylist()[-1]
        assert f"{told['n_patients']:,} patients" in page.page.locator(".chips.marked").inner_text()
        marked = [n for n in page.sources()["scores_bins"]["n_marked_predictions"] if n is not None]
        assert 0 < sum(marked) <= told["n_predictions"]
        page.page.screenshot(path=SCREENSHOTS / "predictions-marked.png", full_page=True)
        page.page.get_by_role("button", name="Only the marked").click()
        await_address(page, "where")
        assert chosen(page, "where") == [mark]
        within = store.ask("confusion", cohort=f"score >= {low!r}").to_pylist()[-1]
        page.page.get_by_role("button", name=f"{within['n_predictions']:,}", exact=True).first.click()
        page.follow("Class of patients", within["label"])
        assert chosen(page, "stratum") == [f"predicted={within['predicted']}"]
        page.page.get_by_role("link", name="Overview").click()
        page.ready()
        assert "class" in page.page.url, "the cohort comes along"
        assert "score from" in page.words()


def test_the_page_fits_and_is_reached_by_tab(chromium: Browser, url: str) -> None:
    """No sideways scroll; cells, tables and exports take the focus."""
    with opened(chromium, url, 390, 800) as page:
        page.open("/predictions")
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.page.screenshot(path=SCREENSHOTS / "predictions-390.png", full_page=True)
        page.page.set_viewport_size({"width": 1280, "height": 900})
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        reached = set()
        for _ in range(60):
            page.page.keyboard.press("Tab")
            reached.add(
                page.page.evaluate("document.activeElement.dataset.act || document.activeElement.textContent.trim()")
            )
        assert {"narrow", "csv", "The scores as a table", "The calibration as a table"} <= reached


def test_a_viewer_sees_what_is_predicted_and_words(
    chromium: Browser, demo_store: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """No row, no small count; a cell narrows the cohort all the same."""
    with (
        served(demo_store, tmp_path_factory.mktemp("viewer") / "log.txt") as url,
        opened(chromium, url) as page,
    ):
        page.open("/predictions")
        assert page.words().count("for analysts alone") == 3
        for name in ("scores", "calibration", "over_time"):
            assert page.attribute(name, "visible") is False
        assert not page.page.get_by_role("button", name="CSV of scores").is_visible()
        first = page.page.locator(".confusion button").first
        label, predicted = first.get_attribute("data-class"), first.get_attribute("data-predicted")
        first.click()
        page.follow("Stratum", f"predicted={predicted}")
        assert chosen(page, "class") == [label]
        assert page.page.locator(".chosen-cell").count() == 1
        for frame in page.frames:
            assert "subject_id" not in frame
            for found in re.findall(r'"n_p(?:atients|redictions)",\s*(\[[^\]]*\])', frame):
                assert all(n >= 11 for n in json.loads(found))
        counts = [int(n.replace(",", "")) for n in page.page.locator(".confusion button").all_inner_texts()]
        assert counts
        assert min(counts) >= 11
        page.page.screenshot(path=SCREENSHOTS / "predictions-viewer.png", full_page=True)
