"""How soon a choice is painted on the dashboard, alone and beside 20 who choose too; a first paint; a session's memory."""

from __future__ import annotations

import asyncio
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.attributions import write_attributions
from benchmarks.sessions import Person
from whenwhy.statistics import aggregate_cells
from whenwhy.store import open_store, publish_store

SERVE = """
import sys
from pathlib import Path
from whenwhy.server import serve
from whenwhy.server.entrance import Entrance
serve(Path(sys.argv[1]), port=0, entrance=Entrance(role="analyst"), on_ready=lambda url: print(url, flush=True))
"""

#: Bokeh forgets a session some seconds after its page is gone.
FORGOTTEN = 40

FLAGS = ("--no-sandbox", "--disable-dev-shm-usage")

#: From an action until the page says that everything is put, and two frames were painted after it.
PAINTED = """
([action, told]) => new Promise((resolve, reject) => {
  setTimeout(() => reject(new Error("not painted within a minute")), 60_000)
  const root = document.documentElement, begin = performance.now()
  const watch = new MutationObserver(() => {
    if (root.dataset.status !== "ready") return
    watch.disconnect()
    requestAnimationFrame(() => requestAnimationFrame(() => resolve(performance.now() - begin)))
  })
  whenwhy.act(action, told)
  root.dataset.status = "loading"
  watch.observe(root, {attributes: true, attributeFilter: ["data-status"]})
})
"""

#: Everything is put when a page is there; and painted two frames later.
OPENED = """
() => document.documentElement.dataset.status === "ready"
  && new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(() => resolve(true))))
"""


def measure(small: bool, folder: Path | None) -> dict[str, float | None]:
    """Milliseconds from a choice to its paint, of a cold first paint; megabytes a session."""
    rows = 200_000 if small else 100_000_000
    with tempfile.TemporaryDirectory() as scratch:
        store = _store(folder or Path(scratch), rows)
        return asyncio.run(_measured(store, small))


def _store(folder: Path, rows: int) -> Path:
    """The store of so many made-up rows."""
    store = folder / f"store-{rows}"
    if not (store / "CURRENT").exists():
        attributions = write_attributions(folder / f"attributions-{rows}", rows).path
        publish_store(store, aggregate_cells([attributions], store, workers=2), [attributions])
    return store


class Server:
    """A server of its own process, and who may enter it."""

    def __init__(self, store: Path) -> None:
        self._process = subprocess.Popen([sys.executable, "-c", SERVE, str(store)], stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.entrance = self._process.stdout.readline().strip()
        told = urlsplit(self.entrance)
        self.url = f"{told.scheme}://{told.netloc}"

    def memory(self) -> float:
        """What it holds that is its own, in megabytes."""
        told = psutil.Process(self._process.pid).memory_full_info()
        return float(told.uss) / 1e6

    def end(self) -> None:
        """Nothing; it has ended."""
        self._process.terminate()
        self._process.wait(20)


async def _measured(store: Path, small: bool) -> dict[str, float | None]:
    codes = [row["code"] for row in open_store(store).ask("top_features", top=2000).to_pylist()]
    strata = [row["stratum"] for row in open_store(store, "viewer").ask("cohorts").to_pylist() if row["class"] == "all"]
    with _served(store) as server:
        # First, on a server that has no memory to give back yet.
        memory = await _memory(server, 10 if small else 40, 20 if small else 200)
    with _served(store) as server:
        async with async_playwright() as playwright:
            launched = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
            figures = {
                "first_paint_ms": await _first_paint(launched, server, 3 if small else 15),
                **await _alone(launched, server, codes, 20 if small else 120),
                **await _together(launched, server, codes, strata, 3 if small else 20, 10 if small else 300),
            }
            await launched.close()
    return {**figures, **memory}


@contextmanager
def _served(store: Path) -> Iterator[Server]:
    server = Server(store)
    try:
        yield server
    finally:
        server.end()


class Painted:
    """One who looks at pages in a browser that has no cache yet: what counts is what is painted."""

    def __init__(self, page: Page, server: Server) -> None:
        self.page, self._url = page, server.url

    async def open(self, address: str) -> float:
        """Milliseconds from the address until everything is painted."""
        begin = time.perf_counter()
        await self.page.goto(self._url + address, wait_until="commit")
        await self.page.wait_for_function(OPENED, timeout=60_000)
        return 1000 * (time.perf_counter() - begin)

    async def choose(self, name: str, value: str) -> float:
        """Milliseconds from another choice until everything is painted."""
        took: float = await self.page.evaluate(PAINTED, ["choose", {"name": name, "value": value}])
        return took


@asynccontextmanager
async def _browsing(launched: Browser, server: Server) -> AsyncIterator[Painted]:
    context = await launched.new_context(viewport={"width": 1280, "height": 900})
    page = await context.new_page()
    await page.request.get(server.entrance)
    yield Painted(page, server)
    await context.close()


async def _first_paint(launched: Browser, server: Server, times: int) -> float:
    """The median of fresh browsers' first pages: nothing of it is in any cache of theirs."""
    told = []
    for _ in range(times):
        async with _browsing(launched, server) as somebody:
            told.append(await somebody.open("/overview"))
    return statistics.median(told)


async def _alone(launched: Browser, server: Server, codes: list[str], times: int) -> dict[str, float]:
    """One person chooses features that nobody has chosen before."""
    async with _browsing(launched, server) as somebody:
        await somebody.open("/overview")
        told = []
        for code in random.Random(1).sample(codes, min(times + 5, len(codes))):
            told.append(await somebody.choose("feature", code))
            await asyncio.sleep(0.15)
        told = sorted(told[5:])  # the first few warm the pages of memory that all later ones use
    return {"select_ms_median": statistics.median(told), "select_ms_p95": _p95(told)}


#: Where people go.
PAGES = ("/overview", "/compare", "/predictions", "/patterns", "/quality")


async def _together(
    launched: Browser, server: Server, codes: list[str], strata: list[str], people: int, seconds: float
) -> dict[str, float]:
    """People who choose every five seconds: half features, a quarter cohorts, a quarter pages.

    One of them looks through a browser, which takes most of a core: each has a machine of their own for it, and the
    server has none of theirs. The others do all that the server notices of a browser.
    """

    async def choosing(number: int, somebody: Painted | Person) -> dict[str, list[float]]:
        chance, told = random.Random(number), {"feature": [], "cohort": [], "page": []}  # type: ignore[var-annotated]
        await asyncio.sleep(5 * number / people)
        end, stratum, feature = time.monotonic() + seconds, "all", ""
        while time.monotonic() < end:
            begin = time.monotonic()
            kind = chance.choice(["feature", "feature", "cohort", "page"])
            # Another one each time: what is chosen already changes nothing.
            if kind == "cohort":
                stratum = chance.choice([name for name in strata if name != stratum])
                took = await somebody.choose("stratum", stratum)
            else:
                feature = chance.choice([code for code in codes if code != feature])
                if kind == "feature":
                    took = await somebody.choose("feature", feature)
                else:
                    took = await somebody.open(f"{chance.choice(PAGES)}?{urlencode({'feature': feature})}")
                    stratum = "all"
            told[kind].append(took)
            await asyncio.sleep(max(0.0, 5 - (time.monotonic() - begin)))
        return told

    others = [Person(server.entrance) for _ in range(people - 1)]
    async with _browsing(launched, server) as somebody:
        everybody = [somebody, *others]
        for one in everybody:
            await one.open("/overview")
        seen, *answered = await asyncio.gather(*(choosing(i, one) for i, one in enumerate(everybody)))
    for one in others:
        one.close()
    put = {kind: [took for told in answered for took in told[kind]] for kind in seen}
    return {
        "select_ms_p95_20_sessions": _p95([took for told in seen.values() for took in told]),
        "select_ms_median_20_sessions": statistics.median(took for told in seen.values() for took in told),
        "put_ms_p95_20_sessions": _p95([took for told in put.values() for took in told]),
        **{f"put_{kind}_ms_p95_20_sessions": _p95(told) for kind, told in put.items() if told},
    }


def _p95(told: list[float]) -> float:
    return sorted(told)[int(0.95 * len(told))]


async def _memory(server: Server, held: int, times: int) -> dict[str, float]:
    """What sessions take that are open together; and what is left of many that were opened and closed."""
    people = [Person(server.entrance) for _ in range(held)]
    for one in people[:5]:
        await one.open("/overview")
    before = server.memory()
    for one in people[5:]:
        await one.open("/overview")
    each = (server.memory() - before) / (held - 5)
    after = []
    for _ in range(2):
        for i in range(times):
            await people[i % held].open("/overview")
        for one in people:
            one.close()
        await asyncio.sleep(FORGOTTEN)
        after.append(server.memory())
    return {
        "memory_mb_per_session": each,
        # The first so many take the room in which the second find theirs.
        "memory_mb_left_per_closed_session": (after[1] - after[0]) / times,
    }
