"""Whole journeys in a real browser: over all pages, in stores that have nearly nothing, and while a store changes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import get_args
from urllib.parse import parse_qs, urlencode, urlsplit

import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from dashboard import Opened, browser, opened, served
from playwright.sync_api import Browser

from conftest import INLINE, SmallRun
from source_inputs import real
from whenwhy.attribution.attribute_shards import AttributeSettings, attribute_shards
from whenwhy.events.sequences import PrepareSettings, prepare
from whenwhy.models.training import TrainSettings, train
from whenwhy.server.pages import pages
from whenwhy.server.session import WENT_WRONG
from whenwhy.server.users import add_user
from whenwhy.statistics import aggregate_cells
from whenwhy.store import open_store, publish_store
from whenwhy.store.open import Role

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery staple"

#: A blank canvas has one colour: the charts that are seen and have less than 50 pixels of another one.
BLANK = """() => Bokeh.documents[0].roots().filter((root) => {
  const view = Bokeh.index.get_by_id(root.id)
  if (!view || !view.export || !view.el.checkVisibility() || !view.el.getBoundingClientRect().height) return false
  const canvas = view.export("png", true).canvas
  const pixels = new Uint32Array(canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data.buffer)
  return pixels.filter((pixel) => pixel !== pixels[0]).length < 50
}).map((root) => root.name)"""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """One browser for all tests."""
    yield from browser()


def store_of(meds: Path, labels: Path, folder: Path, strata: tuple[str, ...], **settings: object) -> Path:
    """The store of a small model of these predictions, made inline."""
    sequences, model, attributions, store = (folder / name for name in ("sequences", "model", "attributions", "store"))
    prepare(meds, labels, sequences, PrepareSettings("the outcome", strata=strata, **settings), INLINE)
    train(sequences, model, TrainSettings(hidden=8, epochs=1), INLINE)
    attribute_shards(sequences, model, attributions, AttributeSettings(), INLINE)
    publish_store(store, aggregate_cells([attributions], store, time_bin_hours=24), [attributions])
    return store


@pytest.fixture(scope="module")
def lonely_store(small_run: SmallRun, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of one patient a split: its pages show one patient to analysts, and to viewers nobody."""
    labels = pq.read_table(small_run.labels / "0.parquet")
    of = labels.group_by("subject_id").aggregate([("boolean_value", "min"), ("boolean_value", "max")]).to_pylist()
    both = sorted(row["subject_id"] for row in of if row["boolean_value_min"] != row["boolean_value_max"])
    # Each split's patient has predictions of both classes: by write_cohort, the rest of the id by 6 says the split.
    chosen = [next(one for one in both if one % 6 in rest) for rest in ((0, 1, 2), (3,), (4, 5))]
    folder = tmp_path_factory.mktemp("lonely")
    (folder / "labels").mkdir()
    pq.write_table(labels.filter(pc.field("subject_id").isin(chosen)), folder / "labels" / "0.parquet")
    return store_of(small_run.meds, folder / "labels", folder, ("sex",), bins=4, rare_below=1)


def sound(page: Opened) -> None:
    """Nothing, where a page has words or numbers, no NaN, nothing that went wrong, and no blank canvas."""
    words = page.words()
    assert len(words) > 300
    assert not re.search(r"\b(NaN|nan|undefined|None|null|Infinity|inf)\b", words), words
    assert WENT_WRONG not in words, words
    assert page.page.evaluate(BLANK) == [], page.page.url


def test_from_the_cohort_to_what_if_and_back(chromium: Browser, demo_folder: Path, tmp_path: Path) -> None:
    """A marked part of a comparison gets a name, travels over the pages to a patient and back; Back undoes a choice."""
    store = tmp_path / "store"
    shutil.copytree(demo_folder / "store", store)  # what is saved there is gone with it
    log = tmp_path / "log.txt"
    with (
        served(store, log, "analyst", demo_folder / "model", demo_folder / "sequences") as url,
        opened(chromium, url) as page,
    ):
        asked: list[str] = []
        page.page.on("request", lambda request: asked.append(request.url))
        page.open("/overview")
        with closing(open_store(store, "analyst")) as rows:
            codes = [row["code"] for row in rows.ask("features").to_pylist() if row["n_values"] > 1]
            feature = max(codes, key=lambda code: (rows.ask("feature_heatmap", feature=code).num_rows, code))
        page.choose("Feature", feature)
        page.page.get_by_role("combobox", name="Compare with").select_option("classes")
        page.page.wait_for_function("() => location.search.includes('against_class=false')")
        page.ready()
        assert page.attribute("heat_map_reference", "visible") is True
        compared = page.page.url
        box = page.page.evaluate(
            """() => {
              const view = Bokeh.index.get_by_id(Bokeh.documents[0].get_model_by_name("heat_map").id)
              view.el.scrollIntoView({block: "center"})
              const outer = view.el.getBoundingClientRect(), inner = view.frame.bbox
              return {x: outer.x + inner.x, y: outer.y + inner.y, width: inner.width, height: inner.height}
            }"""
        )
        page.page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 3)
        page.page.mouse.down()
        page.page.mouse.move(box["x"] + box["width"] * 0.97, box["y"] + box["height"] - 3, steps=5)
        page.page.mouse.up()
        page.page.wait_for_function("() => new URLSearchParams(location.search).get('selected')")
        page.ready()
        marked = page.page.url
        page.page.get_by_role("button", name="Only the marked").click()
        page.page.wait_for_function("() => new URLSearchParams(location.search).get('where')")
        page.ready()
        page.page.get_by_text("Conditions and saved cohorts").click()
        page.page.get_by_label("Save this cohort under a name").fill("worth a look")
        page.page.get_by_role("button", name="Save", exact=True).click()
        page.page.wait_for_function("() => new URLSearchParams(location.search).get('where') === 'saved:worth a look'")
        page.ready()
        chosen = parse_qs(urlsplit(page.page.url).query)
        assert chosen["class"] == ["true"]
        with closing(open_store(store, "analyst")) as rows:
            saved = json.loads((store / "cohorts.json").read_text())["worth a look"]
            n = rows.ask("number_at_risk", cohort=saved["sql"], **{"class": "true"}).to_pylist()[-1]["n_patients"]
        for name in ("Compare", "Patient"):
            page.page.get_by_role("link", name=name, exact=True).click()
            page.page.wait_for_url(f"**/{name.lower()}?*")
            page.ready()
            assert parse_qs(urlsplit(page.page.url).query) == chosen
            assert f"{n:,} patients" in page.words(), name
            sound(page)
        first = page.page.locator("[data-text=patient_list_table] [data-act=patient]").first
        patient = first.inner_text()
        first.click()
        page.ready()
        page.page.get_by_role("heading", name=f"Patient {patient},").wait_for()
        field = page.page.get_by_role("spinbutton", name=re.compile("^Another number for")).first
        field.fill("61")
        field.press("Enter")
        page.page.get_by_text("moves by").wait_for()
        page.ready()
        sound(page)
        page.page.get_by_role("link", name="Overview").click()
        page.page.wait_for_url("**/overview?*")
        page.ready()
        assert parse_qs(urlsplit(page.page.url).query) == chosen
        assert f"{n:,} patients" in page.words()
        identity = re.compile(rf"(?<![\w.]){patient}(?![\w.])|subject")
        assert [one for one in [*asked, page.page.url] if identity.search(one.partition("?")[2])] == []
        assert not re.search(identity, " ".join(page.page.locator("a").evaluate_all("(all) => all.map((a) => a.href)")))
        page.page.get_by_role("combobox", name="Class of patients").select_option("false")
        page.follow("Class of patients", "false")
        page.page.go_back()
        page.follow("Class of patients", "true")
        assert parse_qs(urlsplit(page.page.url).query) == chosen
        assert marked != compared
    assert "Traceback" not in log.read_text()


@pytest.mark.parametrize("role", get_args(Role))
def test_a_store_of_one_patient_shows_words_or_numbers(
    chromium: Browser, lonely_store: Path, tmp_path: Path, role: Role
) -> None:
    """Every page, with the patient chosen where there is one; viewers see nobody, and are told why."""
    log = tmp_path / "log.txt"
    with served(lonely_store, log, None if role == "viewer" else role) as url, opened(chromium, url) as page:
        for name in pages():
            if role == "viewer":
                page.page.goto(f"{page.url.rstrip('/')}/{name}")
                assert "no cell that may be shown" in page.words()
                continue
            page.open(f"/{name}?opened=pairs&opened=partners&opened=spread&min_patients=11")
            sound(page)
            page.open(f"/{name}?class=true&against_class=false&against_stratum=all&order=difference")
            sound(page)
        if role == "analyst":
            page.open("/patient")
            page.page.locator("[data-text=patient_list_table] [data-act=patient]").first.click()
            page.ready()
            sound(page)
    assert "Traceback" not in log.read_text()


def test_a_version_published_meanwhile_is_told(chromium: Browser, small_run: SmallRun, tmp_path: Path) -> None:
    """The page that is open keeps its numbers; its link shows the newer ones."""
    store = tmp_path / "store"
    shutil.copytree(small_run.store, store)
    with served(store, tmp_path / "log.txt") as url, opened(chromium, url) as page:
        page.open("/overview")
        before = page.sources()["ranking_bars"]["value"]
        cells = aggregate_cells([small_run.attributions], store, time_bin_hours=48)
        publish_store(store, cells, [small_run.attributions])
        link = page.page.get_by_role("link", name="Show the newer one")
        link.wait_for(timeout=10_000)
        page.page.get_by_role("combobox", name="Class of patients").select_option("true")
        page.follow("Class of patients", "true")
        first = page.sources()["timeline_means"]
        page.page.get_by_role("combobox", name="Class of patients").select_option("all")
        page.follow("Class of patients", "all")
        assert page.sources()["ranking_bars"]["value"] == before
        page.choose("Class of patients", "true")
        link.click()
        page.page.wait_for_function("() => document.getElementById('newer').hidden")
        page.ready()
        now = page.sources()["timeline_means"]
        with closing(open_store(store, "viewer")) as newer:
            [feature] = parse_qs(urlsplit(page.page.url).query)["feature"]
            told = newer.ask("feature_timeline", feature=feature, **{"class": "true"})
        assert now["mean"] == told["mean_per_event"].to_pylist()
        assert len(now["mean"]) < len(first["mean"]), "wider bins"


def test_two_roles_never_share_an_answer(chromium: Browser, small_run: SmallRun, tmp_path: Path) -> None:
    """The same address of an analyst first, of a viewer then: each sees what the store answers the role."""
    users = tmp_path / "users.json"
    for role in get_args(Role):
        add_user(users, role, role, PASSWORD)
    shown = {}
    with (
        closing(open_store(small_run.store, "viewer")) as viewer,
        closing(open_store(small_run.store, "analyst")) as analyst,
    ):
        cohorts = ({"class": row["class"], "stratum": row["stratum"]} for row in viewer.ask("cohorts").to_pylist())
        cohort = next(
            one
            for one in cohorts
            if 0
            < viewer.ask("feature_heatmap", feature="lab", **one).num_rows
            < analyst.ask("feature_heatmap", feature="lab", **one).num_rows
        )
    with served(small_run.store, tmp_path / "log.txt", users=users) as url:
        for role in ("analyst", "viewer"):
            with opened(chromium, url) as page:
                page.page.goto(f"{url.rstrip('/')}/login")
                page.page.get_by_label("Name").fill(role)
                page.page.get_by_label("Password").fill(PASSWORD)
                page.page.get_by_role("button", name="Log in").click()
                page.ready()
                page.open(f"/overview?{urlencode({'feature': 'lab', **cohort})}")
                shown[role] = page.sources()["heat_map_cohort_cells"]["n_patients"]
                with closing(open_store(small_run.store, role)) as store:
                    told = store.ask("feature_heatmap", feature="lab", **cohort)
                assert shown[role] == told["n_patients"].to_pylist()
                page.open("/patient")
                assert ("Single patients: for analysts alone" in page.words()) == (role == "viewer")
                assert any("subject" in frame for frame in page.frames) == (role == "analyst")
    assert len(shown["analyst"]) > len(shown["viewer"]), "some cells are for analysts alone"


@pytest.mark.full
def test_intensive_care_on_every_page(chromium: Browser, tmp_path: Path) -> None:
    """The demonstration of MIMIC-IV, whose vocabulary is large: every page for both roles."""
    meds = real("mimic4_demo_meds") / "MEDS"
    labels = meds / "labels" / "in_hospital_mortality_24h"
    store = store_of(meds, labels, tmp_path, ("gender", "age_band"), max_steps=300)
    for role in get_args(Role):
        log = tmp_path / f"{role}.txt"
        with served(store, log, None if role == "viewer" else role) as url, opened(chromium, url) as page:
            for name in pages():
                page.open(f"/{name}?opened=pairs&opened=partners&opened=spread")
                sound(page)
        assert "Traceback" not in log.read_text()
