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
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlencode, urlsplit

import psutil
from playwright.async_api import Browser, Page, async_playwright

from benchmarks.attributions import write_attributions
from whenwhy.statistics import aggregate_cells
from whenwhy.store import open_store, publish_store

SERVE = """
import sys
from pathlib import Path
from whenwhy.server import serve
from whenwhy.server.entrance import Entrance
serve(Path(sys.argv[1]), port=0, entrance=Entrance(role="analyst"), on_ready=lambda url: print(url, flush=True))
"""

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
    server = Server(store)
    try:
        async with async_playwright() as playwright:
            launched = await playwright.chromium.launch(executable_path=shutil.which("chromium"), args=list(FLAGS))
            figures = {
                "first_paint_ms": await _first_paint(launched, server, 3 if small else 15),
                **await _alone(launched, server, codes, 20 if small else 120),
                **await _together(launched, server, codes, strata, 3 if small else 20, 10 if small else 90),
                **await _memory(launched, server, 10 if small else 40, 20 if small else 200),
            }
            await launched.close()
        return figures
    finally:
        server.end()


@asynccontextmanager
async def _person(launched: Browser, server: Server) -> AsyncIterator[Page]:
    """A page of somebody who has entered, with a cache of its own that knows nothing yet."""
    context = await launched.new_context(viewport={"width": 1280, "height": 900})
    page = await context.new_page()
    await page.request.get(server.entrance)
    yield page
    await context.close()


async def _open(page: Page, server: Server, address: str) -> float:
    begin = time.perf_counter()
    await page.goto(server.url + address, wait_until="commit")
    await page.wait_for_function(OPENED, timeout=60_000)
    return 1000 * (time.perf_counter() - begin)


async def _first_paint(launched: Browser, server: Server, times: int) -> float:
    """The median of fresh browsers' first pages: nothing of it is in any cache of theirs."""
    told = []
    for _ in range(times):
        async with _person(launched, server) as page:
            told.append(await _open(page, server, "/overview"))
    return statistics.median(told)


async def _alone(launched: Browser, server: Server, codes: list[str], times: int) -> dict[str, float]:
    """One person chooses features that nobody has chosen before."""
    async with _person(launched, server) as page:
        await _open(page, server, "/overview")
        told = []
        for code in random.Random(1).sample(codes, min(times + 5, len(codes))):
            told.append(await page.evaluate(PAINTED, ["choose", {"name": "feature", "value": code}]))
            await page.wait_for_timeout(150)
        told = sorted(told[5:])  # the first few warm the pages of memory that all later ones use
    return {"select_ms_median": statistics.median(told), "select_ms_p95": told[int(0.95 * len(told))]}


#: Where people go.
PAGES = ("/overview", "/compare", "/predictions", "/patterns", "/quality")


async def _together(
    launched: Browser, server: Server, codes: list[str], strata: list[str], people: int, seconds: float
) -> dict[str, float]:
    """People who choose every five seconds: half features, a quarter cohorts, a quarter pages."""
    told: dict[str, list[float]] = {"feature": [], "cohort": [], "page": []}

    async def person(number: int) -> None:
        chance = random.Random(number)
        async with _person(launched, server) as page:
            await _open(page, server, "/overview")
            await asyncio.sleep(5 * number / people)
            end, stratum = time.monotonic() + seconds, "all"
            while time.monotonic() < end:
                begin = time.monotonic()
                kind = chance.choice(["feature", "feature", "cohort", "page"])
                if kind == "page":
                    address = urlencode({"feature": chance.choice(codes)})
                    took, stratum = await _open(page, server, f"{chance.choice(PAGES)}?{address}"), "all"
                else:
                    choice = {"name": "feature", "value": chance.choice(codes)}
                    if kind == "cohort":
                        # Another one each time: what is chosen already changes nothing.
                        stratum = chance.choice([name for name in strata if name != stratum])
                        choice = {"name": "stratum", "value": stratum}
                    took = await page.evaluate(PAINTED, ["choose", choice])
                told[kind].append(took)
                await asyncio.sleep(max(0.0, 5 - (time.monotonic() - begin)))

    await asyncio.gather(*(person(number) for number in range(people)))
    everything = sorted(took for some in told.values() for took in some)
    return {
        "select_ms_p95_20_sessions": everything[int(0.95 * len(everything))],
        "select_ms_median_20_sessions": statistics.median(everything),
        **{f"{kind}_ms_p95_20_sessions": sorted(some)[int(0.95 * len(some))] for kind, some in told.items() if some},
    }


async def _memory(launched: Browser, server: Server, held: int, times: int) -> dict[str, float]:
    """What sessions take that are open together; and what is left of many that were opened and closed."""
    context = await launched.new_context()
    entering = await context.new_page()
    await entering.request.get(server.entrance)
    for _ in range(5):
        await _visit(context, server)
    before = server.memory()
    pages = [await _visit(context, server, stays=True) for _ in range(held)]
    each = (server.memory() - before) / held
    for page in pages:
        await page.close()
    for _ in range(20):  # Bokeh forgets a session some seconds after its page is gone
        await asyncio.sleep(1)
    before = server.memory()
    for _ in range(times):
        await _visit(context, server)
    await asyncio.sleep(40)
    left = server.memory() - before
    await context.close()
    return {"memory_mb_per_session": each, "memory_mb_left_per_closed_session": left / times}


async def _visit(context: object, server: Server, stays: bool = False) -> Page:
    page: Page = await context.new_page()  # type: ignore[attr-defined]
    await _open(page, server, "/overview")
    if not stays:
        await page.close()
    return page
