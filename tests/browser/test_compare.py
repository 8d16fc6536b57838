"""The Compare page in a real browser: two cohorts beside each other, as the store answers."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from dashboard import Opened, opened
from playwright.sync_api import Browser

from whenwhy.store import Store

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"
CHARTS = ("differences", "differences_levels", "heat_map_difference", "at_risk", "course_difference")


@pytest.fixture(scope="module")
def store(demo_for_viewers: Store) -> Store:
    """What viewers may know."""
    return demo_for_viewers


@pytest.fixture(scope="module")
def url(viewers_address: str) -> str:
    """A server for viewers."""
    return viewers_address


def timed(store: Store) -> str:
    """The feature with most bins in which both classes have cells."""
    codes = [row["code"] for row in store.ask("features").to_pylist() if row["n_values"] > 1]
    both = {"class_a": "true", "class_b": "false"}
    return max(codes, key=lambda code: (store.ask("feature_comparison", feature=code, **both).num_rows, code))


def at(**chosen: str) -> str:
    return f"/compare?{urlencode(chosen)}"


def agrees(page: Opened, store: Store, feature: str, first: str, second: str) -> None:
    """Every source in the browser equals the query behind it, for two classes."""
    sources, both = page.sources(), {"class_a": first, "class_b": second}
    rows = store.ask("cohort_comparison", **both).to_pylist()
    assert rows
    assert sources["differences_rows"]["code"] == [row["code"] for row in rows]
    assert sources["differences_rows"]["difference"] == [row["difference"] for row in rows]
    assert sources["differences_rows"]["second"] == [row["mean_b"] for row in rows]
    course = store.ask("feature_comparison", feature=feature, **both).to_pylist()
    assert sources["course_difference_means"]["mean"] == [row["difference"] for row in course]
    told = [store.ask("number_at_risk", **{"class": label}).to_pylist() for label in (first, second)]
    counts = [row["n_patients"] for rows in told for row in rows if row["time_bin"] is not None]
    assert sources["at_risk_counts"]["n_patients"] == counts


def test_a_pair_is_chosen_read_swapped_and_left(chromium: Browser, url: str, store: Store) -> None:
    """From nobody to both classes by a button, another feature by a row, both swapped, and back to nobody."""
    feature = timed(store)
    SCREENSHOTS.mkdir(exist_ok=True)
    with opened(chromium, url) as page:
        page.open(at(feature=feature))
        assert page.page.get_by_text("Nobody to compare with yet").is_visible()
        assert not page.page.get_by_role("region", name="Features that differ").is_visible()
        page.page.screenshot(path=SCREENSHOTS / "compare-nobody.png", full_page=True)
        page.page.get_by_role("button", name="true and false").first.click()
        page.follow("Class of patients", "true")
        agrees(page, store, feature, "true", "false")
        assert "patients as units: no patient is in both cohorts" in page.words()
        for name in ("cohort", "reference", "difference"):
            low, high = (page.attribute(f"heat_map_{name}_colors", end) for end in ("low", "high"))
            assert low == -high
        assert page.attribute("heat_map_cohort_colors", "high") == page.attribute("heat_map_reference_colors", "high")
        assert all(page.attribute(name, "visible") for name in CHARTS)
        page.page.screenshot(path=SCREENSHOTS / "compare.png", full_page=True)
        with page.page.expect_download() as taken:
            page.page.get_by_role("button", name="of the difference as PNG").click()
        assert taken.value.suggested_filename == "heat_map_difference.png"
        other = next(code for code in page.sources()["differences_rows"]["code"] if code != feature)
        table = page.page.get_by_role("region", name="Features that differ").get_by_role("table")
        table.locator(f'button[data-value="{other}"]').click()
        page.follow("Feature", other)
        agrees(page, store, other, "true", "false")
        page.page.get_by_role("button", name="Swap both").click()
        page.follow("Class of patients", "false")
        agrees(page, store, other, "false", "true")
        assert parse_qs(urlsplit(page.page.url).query)["against_class"] == ["true"]
        page.page.get_by_role("button", name="Compare with nobody").click()
        page.page.get_by_text("Nobody to compare with yet").wait_for()
        page.ready()
        assert "against_class" not in page.page.url


@pytest.mark.parametrize("width", [390, 1280])
def test_it_fits_and_holds_no_small_count(chromium: Browser, url: str, store: Store, width: int) -> None:
    """No sideways scroll; no viewer's browser holds a count below 11, and the controls are reached by Tab."""
    against = {"against_class": "all", "against_stratum": "sex=M"}
    with opened(chromium, url, width) as page:
        page.open(at(feature=timed(store), stratum="sex=F", **against))
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        seen = 0
        for columns in page.sources().values():
            for name in ("n_patients", "n_patients_a", "n_patients_b", "n_predictions"):
                seen += len(columns.get(name, []))
                assert all(n >= 11 for n in columns.get(name, []))
        assert seen > 20
        page.page.screenshot(path=SCREENSHOTS / f"compare-{width}.png", full_page=True)
        page.page.get_by_role("combobox", name="Compare with").focus()
        reached = []
        for _ in range(12):
            page.page.keyboard.press("Tab")
            reached.append(page.page.evaluate("document.activeElement.textContent.trim()"))
        assert "Swap both" in reached


def test_a_feature_without_time_is_told_in_words(chromium: Browser, url: str, store: Store) -> None:
    """Its course and its strips are words; what differs stays."""
    against = {"class": "true", "against_class": "false", "against_stratum": "all"}
    with opened(chromium, url) as page:
        page.open(at(feature="AGE", **against))
        assert "There is no course of the difference" in page.words()
        shown = {name: page.attribute(name, "visible") for name in CHARTS}
        assert shown == dict.fromkeys(CHARTS, False) | {"differences": True, "differences_levels": True}
