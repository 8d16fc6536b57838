"""People log in and out in a real browser: by the keyboard alone, without scripts, in the dark and on small screens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import pytest
from dashboard import opened, served
from playwright.sync_api import Browser, Page

from conftest import SmallRun
from whenwhy.server.passwords import WRONG
from whenwhy.server.users import add_user, remove_user

pytestmark = pytest.mark.browser

PASSWORD = "correct horse battery"

#: Text and its ground: the smallest contrast of all words that are shown, by WCAG's formula.
CONTRAST = """() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[0-9.]+/g).map((v) => v / 255).map(
      (v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b
  }
  const ground = (node) => {
    const colour = getComputedStyle(node).backgroundColor
    return colour === "rgba(0, 0, 0, 0)" ? ground(node.parentElement) : colour
  }
  return Math.min(...[...document.querySelectorAll("p, h1, label, input:not([type=hidden]), button, a")].map((node) => {
    const [low, high] = [light(getComputedStyle(node).color), light(ground(node))].sort((a, b) => a - b)
    return (high + 0.05) / (low + 0.05)
  }))
}"""


@pytest.fixture(scope="module")
def users(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of one user."""
    file = tmp_path_factory.mktemp("users") / "users.json"
    add_user(file, "alice", "viewer", PASSWORD)
    return file


@pytest.fixture(scope="module")
def url(small_run: SmallRun, users: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server where people log in."""
    with served(small_run.store, tmp_path_factory.mktemp("server") / "log.txt", users=users) as address:
        yield address


def path(page: Page) -> str:
    return urlsplit(page.url).path


def fill(page: Page, name: str, password: str) -> None:
    """Nothing; the form has been filled in and sent by the keyboard, from where the page has put the focus."""
    if page.locator(":focus").get_attribute("name") == "name":
        page.keyboard.type(name)
        page.keyboard.press("Tab")
    page.keyboard.type(password)
    page.keyboard.press("Enter")


def test_people_log_in_and_out_by_the_keyboard(chromium: Browser, url: str) -> None:
    """A wrong password is told; the page that was asked for comes, with its state; a logout ends it.

    An address that was passed on opens from another site too, where the browser leaves the cookie at home at first.
    """
    with opened(chromium, url) as watched:
        page = watched.page
        page.goto(url + "overview?feature=lab")
        assert path(page) == "/login"
        assert watched.faults == []
        fill(page, "alice", "a password that is wrong")
        page.get_by_role("alert").get_by_text(WRONG).wait_for()
        assert page.get_by_label("Name").input_value() == "alice"
        assert page.get_by_label("Password").input_value() == ""
        # What the browser says about a refusal is no fault here.
        told, watched.faults[:] = list(watched.faults), []
        assert len(told) == 2
        assert all("403" in fault for fault in told)
        fill(page, "alice", PASSWORD)
        watched.ready()
        assert path(page) == "/overview"
        assert "feature=lab" in page.url
        page.goto(f"data:text/html,<a href='{page.url.replace('&', '&amp;')}'>passed on</a>")
        page.get_by_text("passed on").click()
        watched.ready()
        assert "feature=lab" in page.url
        link = page.get_by_role("link", name="alice · log out")
        for _ in range(20):
            page.keyboard.press("Tab")
            if link.evaluate("node => node === document.activeElement"):
                break
        page.keyboard.press("Enter")
        page.get_by_text("You are logged in as alice (viewer).").wait_for()
        button = page.get_by_role("button", name="Log out")
        page.keyboard.press("Tab")
        assert (
            button.evaluate("node => node === document.activeElement && getComputedStyle(node).outlineStyle") == "solid"
        )
        page.keyboard.press("Enter")
        page.wait_for_url(re.compile("/login$"))
        page.goto(url + "overview")
        assert path(page) == "/login"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_login_needs_no_script_and_is_legible(
    chromium: Browser, url: str, scheme: Literal["light", "dark"]
) -> None:
    """At 390 pixels too, without a sideways scroll; then it logs in."""
    context = chromium.new_context(
        java_script_enabled=False, color_scheme=scheme, viewport={"width": 390, "height": 700}
    )
    page = context.new_page()
    page.goto(url)
    page.get_by_label("Name").fill("alice")
    page.get_by_label("Password").fill("a password that is wrong")
    page.get_by_role("button").click()
    page.get_by_role("alert").wait_for()
    assert page.evaluate(CONTRAST) >= 4.5
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", ground))) < 200) == (scheme == "dark")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button").click()
    page.wait_for_url(re.compile("/overview$"))
    context.close()


def test_a_removed_user_is_led_to_the_login(chromium: Browser, url: str, users: Path) -> None:
    """By the next page that is opened; the others stay as they are."""
    add_user(users, "bob", "viewer", PASSWORD)
    with opened(chromium, url) as watched:
        watched.page.goto(url)
        fill(watched.page, "bob", PASSWORD)
        watched.ready()
        remove_user(users, "bob")
        watched.page.goto(url + "overview")
        assert path(watched.page) == "/login"
