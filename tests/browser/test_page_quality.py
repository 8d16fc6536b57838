"""The Quality page in a real browser: what to know before believing any other page."""

from __future__ import annotations

from pathlib import Path

import pytest
from dashboard import opened
from playwright.sync_api import Browser

from whenwhy.store import Store

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"


@pytest.fixture(scope="module")
def store(demo_for_viewers: Store) -> Store:
    """What viewers may know."""
    return demo_for_viewers


@pytest.fixture(scope="module")
def url(viewers_address: str) -> str:
    """A server for viewers."""
    return viewers_address


def test_the_badge_leads_to_what_the_store_answers(chromium: Browser, url: str, store: Store) -> None:
    """From the Overview's badge to verdicts, records and subgroups; what lacks is told with how to make it."""
    [run] = store.ask("runs").to_pylist()
    SCREENSHOTS.mkdir(exist_ok=True)
    with opened(chromium, url) as page:
        page.open("/overview")
        page.page.get_by_role("link", name="contributions add up").click()
        page.page.wait_for_url("**/quality?*")
        page.ready()
        words = page.words()
        assert "Complete: contributions add up to what they explain" in words
        assert f"AUROC {run['auroc']:.3f} on held-out patients" in words
        assert "whenwhy aggregate ATTR1 ATTR2" in words
        assert "Deletion curves and the check against randomised weights are not part of this store." in words
        assert run["model_sha256"] in words
        rows = store.ask("data_quality").to_pylist()
        shown = page.sources()["data_quality_coverage"]
        assert shown["code"] == [row["code"] for row in rows[:20]]
        assert shown["first"] == [100 * row["share_of_patients"] for row in rows[:20]]
        assert page.attribute("data_quality", "visible")
        assert not page.attribute("agreement", "visible")
        page.page.get_by_role("button", name="age band", exact=True).click()
        page.page.wait_for_function("() => location.search.includes('subgroups=age_band')")
        page.ready()
        assert "Subgroups by age band" in page.words()
        page.choose("Class of patients", "true")
        told = store.ask("data_quality", **{"class": "true"}).to_pylist()
        assert page.sources()["data_quality_coverage"]["code"] == [row["code"] for row in told[:20]]
        page.page.screenshot(path=SCREENSHOTS / "quality.png", full_page=True)


def test_facts_are_copied(chromium: Browser, url: str, store: Store) -> None:
    """A button of its own for each, reached by Tab."""
    [run] = store.ask("runs").to_pylist()
    with opened(chromium, url) as page:
        page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        page.open("/quality")
        button = page.page.get_by_role("button", name="Copy: model, SHA-256")
        button.focus()
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("(one) => one.textContent === 'copied'", arg=button.element_handle())
        assert page.page.evaluate("navigator.clipboard.readText()") == run["model_sha256"]
        page.page.keyboard.press("Tab")
        assert page.page.evaluate("document.activeElement.getAttribute('aria-label')") == "Copy: vocabulary, SHA-256"


def test_it_fits_narrow_screens_and_empty_cohorts(chromium: Browser, url: str) -> None:
    """No sideways scroll with numbers; words where there are none."""
    with opened(chromium, url, 390) as page:
        page.open("/quality")
        assert page.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.page.screenshot(path=SCREENSHOTS / "quality-390.png", full_page=True)
        page.open("/quality?min_patients=100000000")
        words = page.words()
        assert "No cells of 100,000,000 or more patients here" in words
        assert "nan" not in words.lower().split()
        assert not page.attribute("data_quality", "visible")
