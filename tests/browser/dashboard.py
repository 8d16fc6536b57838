"""A served store in a process of its own, and a browser that notes everything it asks for and receives."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, Response, Route, WebSocket, sync_playwright

from whenwhy.store.open import Role

SERVE = """
import json, sys
from pathlib import Path
from whenwhy.server import Entrance, serve
told = json.loads(sys.argv[1])
path = {name: Path(text) for name, text in told.items() if name != "role" and text}
entrance = Entrance(role=told["role"], users=path.get("users"))
serve(
    path["store"], port=0, entrance=entrance, model=path.get("model"), sequences=path.get("sequences"),
    on_ready=lambda url: print(url, flush=True),
)
"""

FLAGS = ("--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb")

#: What a browser says that is no fault of the page: drawing without a graphics card.
ALLOWED = re.compile(r"GPU stall due to ReadPixels|GL Driver Message")

#: All columns of all sources that the browser holds, by the source's name.
SOURCES = """() => {
  const found = {}
  for (const model of Bokeh.documents[0]._all_models.values())
    if (model.type === "ColumnDataSource" && model.name)
      found[model.name] = Object.fromEntries(
        [...(model.data instanceof Map ? model.data : Object.entries(model.data))].map(([k, v]) => [k, Array.from(v)]))
  return found
}"""


@contextmanager
def started(
    store: Path,
    log: Path,
    role: Role | None = None,
    model: Path | None = None,
    sequences: Path | None = None,
    users: Path | None = None,
    before: str = "",
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The address of a server of its own, that of an analyst with a token, and its process; `before` is Python to begin with."""
    told = {"store": store, "role": role, "model": model, "sequences": sequences, "users": users}
    with log.open("w") as errors:
        server = subprocess.Popen(
            [sys.executable, "-c", f"{before}\n{SERVE}", json.dumps(told, default=str)],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        try:
            assert server.stdout is not None
            url = server.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:"), log.read_text()
            yield url, server
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()


@contextmanager
def served(store: Path, log: Path, *given: Any, **named: Any) -> Iterator[str]:
    """The address of one that is `started`; it must end cleanly when told to."""
    with started(store, log, *given, **named) as (url, server):
        yield url
        server.terminate()
        assert server.wait(20) == 0, log.read_text()


def browser() -> Iterator[Browser]:
    """Debian's Chromium; without it the tests are skipped, but never in CI."""
    executable = shutil.which("chromium")
    if executable is None:
        if os.environ.get("CI") == "true":
            pytest.fail("There is no chromium: CI installs it.")
        pytest.skip("There is no chromium: install it to run the browser tests.")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=list(FLAGS))
        yield launched
        launched.close()


@dataclass
class Opened:
    """An open page, with what it did that it should not, and the words that came through its websocket."""

    page: Page
    url: str
    outside: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    frames: list[str] = field(default_factory=list)

    def open(self, address: str) -> None:
        """Nothing; the page of this address is there and ready."""
        self.page.goto(self.url.rstrip("/") + address)
        self.ready()

    def ready(self) -> None:
        """Nothing; the page says that it is ready and Bokeh has drawn everything."""
        self.page.wait_for_timeout(
            50
        )  # what is drawn over a chart needs a moment until the page says that it is loading
        self.page.wait_for_function(
            "() => { const {status, asked, heard} = document.documentElement.dataset;"
            " return status === 'ready' && (asked ?? heard) === heard }",
            timeout=20_000,
        )
        self.page.wait_for_function("() => window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle")

    def picture(self) -> bytes:
        """The whole page as PNG once it has settled: two pictures in a row are the same, to the pixel."""
        last = self.page.screenshot(full_page=True)
        for _ in range(50):
            self.page.wait_for_timeout(100)
            now = self.page.screenshot(full_page=True)
            if now == last:
                return now
            last = now
        raise AssertionError("the page does not come to rest")

    def choose(self, label: str, value: str) -> None:
        """Nothing; a control has been changed and the page has followed."""
        if label == "Feature":
            self.search(value)
        else:
            self.page.get_by_role("combobox", name=label, exact=True).select_option(value)
        self.follow(label, value)

    def search(self, code: str) -> None:
        """Nothing; a feature has been looked for by its code, and taken."""
        field = self.page.get_by_role("combobox", name="Feature", exact=True)
        field.fill(code)
        self.page.wait_for_function(
            "(code) => [...document.querySelectorAll('#features option')].some((one) => one.value === code || one.value.endsWith(`(${code})`))",
            arg=code,
        )
        told = self.page.locator("#features option").evaluate_all("(all) => all.map((one) => one.value)")
        field.fill(next(words for words in told if words == code or words.endswith(f"({code})")))
        field.press("Enter")

    def follow(self, label: str, value: str) -> None:
        """Nothing; the page's address shows a choice and its views are put."""
        name = {"Feature": "feature", "Class of patients": "class", "Split": "split", "Stratum": "stratum"}[label]
        self.page.wait_for_function(
            "([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value]
        )
        self.ready()

    def words(self) -> str:
        """All words of the page, also those inside Bokeh's own trees, that are not hidden."""
        told: str = self.page.evaluate(
            """() => {
              const words = (node) => node.nodeType === 3 ? node.data
                : node.nodeType === 1 && ["STYLE", "SCRIPT"].includes(node.tagName) ? ""
                : node.nodeType === 1 && getComputedStyle(node).display === "none" ? ""
                : [...(node.shadowRoot || node).childNodes].map(words).join(" ")
              return words(document.body).replace(/\\s+/g, " ")
            }"""
        )
        return told

    def sources(self) -> dict[str, dict[str, list[Any]]]:
        """Every column that the browser holds."""
        found: dict[str, dict[str, list[Any]]] = self.page.evaluate(SOURCES)
        return found

    def attribute(self, model: str, name: str) -> Any:
        """An attribute of a named model in the browser."""
        return self.page.evaluate(
            "([model, name]) => Bokeh.documents[0].get_model_by_name(model)[name]", arg=[model, name]
        )


@contextmanager
def opened(launched: Browser, url: str, width: int = 1280, height: int = 900) -> Iterator[Opened]:
    """A page in a fresh context. Afterwards: no fault, and nothing asked of any other machine."""
    context = launched.new_context(
        viewport={"width": width, "height": height}, reduced_motion="reduce", timezone_id="UTC", locale="en-GB"
    )
    page = context.new_page()
    if "token=" in url:  # it leads in once, and the cookie stays
        context.request.get(url)
        url = url.partition("/enter")[0]
    watched = Opened(page, url)
    here = urlsplit(url).netloc

    def is_here(address: str) -> bool:
        return urlsplit(address).netloc == here or address.startswith(("data:", "blob:"))

    def route(asked: Route, request: Request) -> None:
        if is_here(request.url):
            asked.continue_()
        else:
            watched.outside.append(request.url)
            asked.abort()

    def said(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not ALLOWED.search(message.text):
            watched.faults.append(f"console {message.type}: {message.text}")

    def answered(response: Response) -> None:
        if response.status >= 400:
            watched.faults.append(f"{response.status} {response.url}")

    def talked(socket: WebSocket) -> None:
        if not is_here(socket.url):
            watched.outside.append(socket.url)
        socket.on("framereceived", lambda frame: watched.frames.append(frame if isinstance(frame, str) else ""))

    page.route("**/*", route)
    page.on("console", said)
    page.on("pageerror", lambda error: watched.faults.append(f"page error: {error}"))
    page.on("requestfailed", lambda request: watched.faults.append(f"failed: {request.url}"))
    page.on("response", answered)
    page.on("websocket", talked)
    yield watched
    # A reload may break off a request of the page before.
    faults = [fault for fault in watched.faults if not fault.startswith("failed: blob:")]
    assert watched.outside == []
    assert faults == []
    context.close()
