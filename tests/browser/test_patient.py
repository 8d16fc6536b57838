"""The Patient page in a real browser: a patient, a change of the record, and no trace of either in any address."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from dashboard import Opened, opened, served
from playwright.sync_api import Browser, Request

from conftest import SmallRun
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
    """A server for analysts, the model along."""
    log = tmp_path_factory.mktemp("server") / "log.txt"
    with served(small_run.store, log, "analyst", small_run.model, small_run.sequences) as address:
        yield address
    assert "patient" not in log.read_text()


def rows_of(page: Opened) -> list[str]:
    """The ids of the list."""
    told = page.page.locator("[data-text=patient_list_table] [data-act=patient]")
    return list(told.all_inner_texts())


def test_a_journey_from_the_cohort_to_what_if(chromium: Browser, url: str, store: Store) -> None:
    """List, order, cohort, record, change, undo, reload: what the store and the model answer, and no id in an address."""
    with opened(chromium, url) as page:
        asked: list[str] = []
        page.page.on("request", lambda request: asked.append(_url(request)))
        page.open("/patient")
        assert page.page.get_by_text("No patient is chosen").first.is_visible()
        assert not page.page.get_by_role("region", name="Timeline of the record").is_visible()
        page.page.get_by_role("button", name="most recorded values").click()
        page.ready()
        page.choose("Class of patients", "true")
        told = store.ask("patients", order_by="n_values", top=10, **{"class": "true"}).to_pylist()
        assert rows_of(page) == [str(row["subject_id"]) for row in told]
        first = told[0]
        page.page.get_by_role("button", name=str(first["subject_id"]), exact=True).first.click()
        page.ready()
        page.page.get_by_role("heading", name=f"Patient {first['subject_id']},").wait_for()
        record = [
            row
            for row in store.ask("patient", subject_id=first["subject_id"]).to_pylist()
            if row["prediction_time"] == first["prediction_time"]
        ]
        sources = page.sources()
        drawn = sources["patient_events_values"]["contribution"]
        assert sorted(drawn) == sorted(row["contribution"] for row in record)
        assert sources["patient_sum_parts"]["right"][-1] == pytest.approx(first["score"], abs=1e-4)
        before = sources["patient_course_before"]
        assert before["score"][-1] == pytest.approx(first["score"], abs=1e-5)
        assert page.attribute("patient_events_colors", "low") == -page.attribute("patient_events_colors", "high")
        page.page.mouse.move(2, 400)
        SCREENSHOTS.mkdir(exist_ok=True)
        page.page.screenshot(path=SCREENSHOTS / "patient.png", full_page=True)
        field = page.page.get_by_role("spinbutton", name=re.compile("^Another number for")).first
        field.fill("7.5")
        field.press("Enter")
        page.ready()
        after = page.sources()["patient_course_after"]
        assert len(after["score"]) == len(before["score"])
        assert after["score"][-1] != before["score"][-1]
        assert page.page.get_by_text("moves by").is_visible()
        page.page.get_by_role("button", name=re.compile("^Undo: ")).click()
        page.ready()
        assert page.sources()["patient_course_after"]["score"] == []
        someone = first["subject_id"]
        identity = re.compile(rf"(?<![\w.]){someone}(?![\w.])|subject")
        assert not [address for address in [*asked, page.page.url] if identity.search(address.partition("?")[2])]
        page.page.reload()
        page.ready()
        assert page.page.get_by_text("No patient is chosen").first.is_visible()
        page.page.get_by_role("textbox", name="Find a patient by id").fill("987654")
        page.page.get_by_role("button", name="Show").click()
        page.ready()
        assert page.page.get_by_text("This run has no patient 987654").first.is_visible()


def _url(request: Request) -> str:
    return request.url


def test_every_width_and_the_keyboard(chromium: Browser, url: str) -> None:
    """No sideways scroll; Tab reaches the list's buttons, and Enter chooses."""
    for width in (390, 1280):
        with opened(chromium, url, width=width) as page:
            page.open("/patient")
            page.page.get_by_role("textbox", name="Find a patient by id").focus()
            for _ in range(60):
                page.page.keyboard.press("Shift+Tab")
                if page.page.evaluate("document.activeElement.dataset.act === 'patient'"):
                    break
            else:
                pytest.fail("Tab does not reach the list.")
            page.page.keyboard.press("Enter")
            page.ready()
            page.page.get_by_role("region", name="What if").wait_for()
            assert page.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
            page.page.screenshot(path=SCREENSHOTS / f"patient_{width}.png", full_page=True)


def test_viewers_receive_words_and_no_patient(
    chromium: Browser, small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both pages of single predictions say who may see them; nothing else comes through."""
    log = tmp_path_factory.mktemp("viewer") / "log.txt"
    with served(small_run.store, log) as address, opened(chromium, address) as page:
        for name in ("patient", "projection"):
            page.open(f"/{name}")
            assert page.page.get_by_text("Single patients: for analysts alone").first.is_visible()
            assert not page.page.get_by_role("textbox", name="Find a patient by id").is_visible()
        assert not any('data-act=\\"patient\\"' in frame for frame in page.frames)
        assert not any(values for source in page.sources().values() for values in source.values())
