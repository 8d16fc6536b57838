"""The page of patterns, and what opens on the Overview, in a real browser: groups, partners, percentiles, pairs."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboard import Opened, opened
from playwright.sync_api import Browser

from whenwhy.store import Store

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"


@pytest.fixture(scope="module")
def store(demo_for_analysts: Store) -> Store:
    """What analysts may know."""
    return demo_for_analysts


@pytest.fixture(scope="module")
def url(analysts_address: str) -> str:
    """A server for analysts."""
    return analysts_address


def await_address(page: Opened, name: str, value: str | None) -> None:
    page.page.wait_for_function(
        "([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value]
    )
    page.ready()


def test_a_journey_through_groups_and_partners(chromium: Browser, url: str, store: Store) -> None:
    """Into a group and back, to a partner, one step earlier: each time the charts show what the store answers."""
    with opened(chromium, url) as page:
        page.open("/patterns?feature=hdl&opened=partners")
        groups = store.ask("group_rollup").to_pydict()
        assert page.sources()["groups_means"]["value"] == pytest.approx(groups["mean_per_prediction"])
        assert page.sources()["groups_shares"]["value"] == pytest.approx([100 * share for share in groups["share"]])
        pairs = store.ask("feature_pairs", feature="hdl", level="code").to_pydict()
        assert page.sources()["partners_joint"]["value"] == pytest.approx(pairs["mean_joint"][:15])
        assert page.sources()["partners_difference"]["key"] == pairs["other"][:15]
        assert "holds no activated periods" in page.words()
        SCREENSHOTS.mkdir(exist_ok=True)
        page.page.screenshot(path=SCREENSHOTS / "patterns.png", full_page=True)
        place = page.page.evaluate(
            """() => {
              const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("groups").id)
              view.el.scrollIntoView({block: "center"})
              const outer = view.el.getBoundingClientRect(), inner = view.frame.bbox
              return [outer.x + inner.x + 5, outer.y + inner.y + 6]
            }"""
        )
        page.page.mouse.click(*place)
        await_address(page, "within", groups["code"][0])
        parts = store.ask("group_rollup", within=groups["code"][0]).to_pydict()
        assert page.sources()["groups_means"]["value"] == pytest.approx(parts["mean_per_prediction"])
        page.page.get_by_role("button", name="All groups").click()
        await_address(page, "within", None)
        page.page.get_by_role("button", name="one step earlier").click()
        await_address(page, "lag", "1")
        earlier = store.ask("feature_pairs", feature="hdl", level="code", lags=1, top=1000).to_pylist()
        wanted = [row["other"] for row in earlier if row["lag"] == 1]
        assert page.sources()["partners_joint"]["key"] == wanted[:15]
        page.page.get_by_text("The partners as a table").click()
        page.page.get_by_role("table").filter(has_text="Partner").get_by_role("button").nth(1).click()
        await_address(page, "feature", wanted[1])
        page.choose("Feature", "AGE")
        assert "What has no time is in no pair" in page.words()
        assert page.attribute("partners", "visible") is False


def test_the_page_fits_and_is_reached_by_tab(chromium: Browser, url: str) -> None:
    """No sideways scroll; the choice of lag, tables and exports take the focus."""
    with opened(chromium, url, 390, 800) as page:
        page.open("/patterns?feature=hdl&opened=partners")
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.page.screenshot(path=SCREENSHOTS / "patterns-390.png", full_page=True)
        page.page.set_viewport_size({"width": 1280, "height": 900})
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        reached = set()
        for _ in range(50):
            page.page.keyboard.press("Tab")
            reached.add(page.page.evaluate("document.activeElement.textContent.trim()"))
        assert {"one step earlier", "The groups as a table", "The partners as a table", "CSV of partners"} <= reached


def test_percentiles_and_pairs_open_on_the_overview(chromium: Browser, url: str, store: Store) -> None:
    """Nothing is asked before; then bands and cells are the store's, the address keeps both open, and a class follows."""
    with opened(chromium, url) as page:
        page.open("/overview?feature=hdl")
        assert page.sources()["percentile_bands"]["p50"] == []
        assert page.attribute("pairs", "visible") is False
        page.page.get_by_text("percentiles over time").click()
        await_address(page, "opened", "spread")
        bands = store.ask("percentile_bands", feature="hdl").to_pydict()
        for name in ("time_bin", "p10", "p50", "p90", "n_events"):
            assert page.sources()["percentile_bands"][name] == bands[name]
        page.page.get_by_text("pairs of values").click()
        await_address(page, "opened", "pairs")
        assert "Choose a partner" in page.words()
        page.page.locator('[data-text="pairs_partners"] button[data-value="dyslipidemia"]').click()
        await_address(page, "other", "dyslipidemia")
        asked = {"feature": "hdl", "other": "dyslipidemia", "level": "value", "top": 1000}
        cells = store.ask("feature_pairs", **asked).to_pydict()
        assert page.sources()["pairs_cells"]["mean_joint"] == pytest.approx(cells["mean_joint"])
        assert page.attribute("pairs_colors", "low") == -page.attribute("pairs_colors", "high")
        for name in ("percentiles", "pairs"):
            height = page.page.evaluate(
                "(n) => Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name(n).id).el.getBoundingClientRect().height",
                name,
            )
            assert height > 150, f"{name} has room"
        page.page.screenshot(path=SCREENSHOTS / "overview-opened.png", full_page=True)
        page.choose("Class of patients", "true")
        bands = store.ask("percentile_bands", feature="hdl", **{"class": "true"}).to_pydict()
        assert page.sources()["percentile_bands"]["p50"] == bands["p50"]
        page.choose("Stratum", "sex=F")
        assert "choose the stratum everybody" in page.words()
        page.page.get_by_text("percentiles over time").click()
        await_address(page, "opened", "pairs")
        assert "choose the stratum everybody" not in page.words()
