"""A report opens from the disk in a real browser, draws its charts, and asks for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
from playwright.sync_api import Browser

from whenwhy.server.report import write_report

pytestmark = pytest.mark.browser

SCREENSHOTS = Path(__file__).parents[2] / "screenshots"


@pytest.mark.parametrize("width", [390, 1280])
def test_a_report_opens_without_a_server(chromium: Browser, demo_store: Path, tmp_path: Path, width: int) -> None:
    """Every chart has marks, names of features lead to their parts, and nothing is fetched."""
    file = tmp_path / "report.html"
    n = write_report(demo_store, file)
    context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True)
    page = context.new_page()
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", lambda message: faults.append(message.text) if message.type == "error" else None)
    page.goto(file.as_uri())
    page.wait_for_function("() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")
    charts = page.evaluate(
        """() => Bokeh.documents[0].roots().map((root) => {
          const view = Bokeh.index.get_by_id(root.id)
          return view.renderer_views ? [...view.renderer_views.values()].some((one) => one.glyph && one.glyph.data_size > 0) : true
        })"""
    )
    assert len(charts) >= n
    assert all(charts)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    page.locator("#ranking td a").first.click()
    assert page.url.endswith("#feature-0")
    assert page.locator("button").count() == 0, "there is no server to act on"
    SCREENSHOTS.mkdir(exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"report-{width}.png", full_page=True)
    assert asked == [file.as_uri()]
    assert faults == []
    context.close()
