"""The Projection page in a real browser: places, colours, a lasso that every page then shows, and Esc."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard import Opened, opened, served
from playwright.sync_api import Browser

from conftest import SmallRun
from whenwhy.server.projection import fit_plane, profiles_of
from whenwhy.server.saved_cohorts import SAVED_FILE
from whenwhy.store import Store, open_store

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"


@pytest.fixture(scope="module")
def store(small_run: SmallRun) -> Iterator[Store]:
    """What analysts may know."""
    opened_store = open_store(small_run.store, "analyst")
    yield opened_store
    opened_store.close()


@pytest.fixture(scope="module")
def url(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for analysts; what is saved there is forgotten afterwards."""
    with served(small_run.store, tmp_path_factory.mktemp("server") / "log.txt", "analyst") as address:
        yield address
    (small_run.store / SAVED_FILE).unlink(missing_ok=True)


def around(page: Opened, left: float, right: float, bottom: float, top: float) -> None:
    """Nothing; a line was drawn around a rectangle, in units of the axes, with the mouse."""
    corners = page.page.evaluate(
        """([left, right, bottom, top]) => {
          const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("projection").id)
          view.el.scrollIntoView({block: "center"})
          const box = view.el.getBoundingClientRect(), {x_scale, y_scale} = view.frame
          return [[left, bottom], [right, bottom], [right, top], [left, top], [left, bottom]].map(
            ([x, y]) => [box.x + x_scale.compute(x), box.y + y_scale.compute(y)])
        }""",
        [left, right, bottom, top],
    )
    page.page.mouse.move(*corners[0])
    page.page.mouse.down()
    for corner in corners[1:]:
        page.page.mouse.move(*corner, steps=8)
    page.page.mouse.up()
    page.ready()


def test_a_lasso_is_selected_on_every_page(chromium: Browser, url: str, store: Store) -> None:
    """Places are those of the plane; who is surrounded is counted, compared, kept over pages, and cleared by Esc."""
    profiles = profiles_of(store.ask("contribution_profiles"))
    places = fit_plane(profiles).places(profiles)
    with opened(chromium, url) as page:
        page.open("/projection")
        points = page.sources()["projection_points"]
        assert points["x"] == pytest.approx(places[:, 0], abs=1e-4)
        assert points["y"] == pytest.approx(places[:, 1], abs=1e-4)
        assert points["score"] == profiles.predictions["score"].to_pylist()
        SCREENSHOTS.mkdir(exist_ok=True)
        page.page.screenshot(path=SCREENSHOTS / "projection.png", full_page=True)
        xs = sorted(points["x"])
        middle = (xs[len(xs) // 2] + xs[len(xs) // 2 - 1]) / 2
        low, high = min(points["y"]), max(points["y"])
        air = 0.02 * (high - low)
        around(page, xs[0] - 0.02 * (xs[-1] - xs[0]), middle, low - air, high + air)
        page.page.wait_for_function("() => new URLSearchParams(location.search).get('selected')")
        page.ready()
        n = sum(alpha == 1 for alpha in page.sources()["projection_points"]["alpha"])
        inside = [x < middle for x in points["x"]]
        # To the pixel that the mouse is at.
        assert abs(n - sum(inside)) <= 2
        assert page.page.get_by_text(f"{n:,} of them marked").is_visible()
        differences = page.page.get_by_role("region", name="What tells the marked from the others")
        assert differences.get_by_role("table").is_visible()
        page.page.screenshot(path=SCREENSHOTS / "projection_selected.png", full_page=True)
        page.page.get_by_role("link", name="Overview").click()
        page.ready()
        assert page.page.get_by_text(f"{n:,} predictions").first.is_visible()
        page.page.get_by_role("link", name="Projection").click()
        page.ready()
        assert sum(alpha == 1 for alpha in page.sources()["projection_points"]["alpha"]) == n
        page.page.keyboard.press("Escape")
        page.ready()
        assert page.page.get_by_text("Nobody is marked").is_visible()
        assert all(alpha == 1 for alpha in page.sources()["projection_points"]["alpha"])


def test_colours_cohorts_and_widths(chromium: Browser, url: str, store: Store) -> None:
    """Scores about zero; a class in front of the others; no sideways scroll; Tab reaches the choice of colours."""
    for width in (390, 1280):
        with opened(chromium, url, width=width) as page:
            page.open("/projection?class=true")
            page.page.get_by_role("button", name="score", exact=True).focus()
            page.page.keyboard.press("Enter")
            page.ready()
            assert page.attribute("projection_colors", "low") == -page.attribute("projection_colors", "high")
            sources = page.sources()
            assert set(sources["projection_points"]["label"]) == {"true"}
            every = len(set(store.ask("contribution_profiles")["prediction_id"].to_pylist()))
            assert len(sources["projection_points"]["x"]) + len(sources["projection_behind"]["x"]) == every
            assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.page.screenshot(path=SCREENSHOTS / f"projection_{width}.png", full_page=True)
            if width == 1280:
                page.open("/projection?where=where%3Afalse")
                assert page.page.get_by_text("No prediction is in this cohort").is_visible()
