"""A person's choices flow in, answers of the store flow out to the views: one session of one page."""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import Any

from bokeh.document import Document, without_document_lock
from bokeh.models import CustomJS
from bokeh.models.ui.ui_element import UIElement

from whenwhy.errors import UserError
from whenwhy.server.published import Version
from whenwhy.server.state import State, state_from_address
from whenwhy.server.view import View, text

log = logging.getLogger(__name__)

READY, LOADING, FAILED = "ready", "loading …", "failed"
WENT_WRONG = (
    "This could not be answered; the server's log says why. What the page shows may belong to an earlier choice: "
    "choose again, or reload the page."
)


class Session:
    """The state of one open page, and the only one who changes it."""

    def __init__(self, document: Document, version: Version, pool: Executor, address: Mapping[str, str]) -> None:
        self.document, self.version = document, version
        self.state, self._wrong = state_from_address(address, version.choices)
        self._pool = pool
        self._views: list[View] = []
        self._generation = 0
        self.is_putting = False
        self.status = text(LOADING, "status")
        self.notice = text("", "notice", visible=False)
        self.status.js_on_change(
            "tags", CustomJS(code="window.history.replaceState(null, '', '?' + cb_obj.tags[0] + window.location.hash)")
        )

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The models that belong to the page itself."""
        return {"status": self.status, "notice": self.notice}

    def begin(self, views: Sequence[View]) -> None:
        """Nothing; the views are filled as soon as the page is there."""
        self._views = list(views)
        self._load()

    def choose(self, **changes: Any) -> None:
        """Nothing; the state changes, and every view follows. Changes while answers are put are the page's own."""
        if self.is_putting:
            return
        state = replace(self.state, **changes)
        if state != self.state:
            self.state, self._wrong = state, []
            self._load()

    def clear_filters(self) -> None:
        """Nothing; the default cohort, with the same feature."""
        self.choose(**vars(self.state.without_filters(self.version.choices)))

    def _load(self) -> None:
        self._generation += 1
        self.status.text = LOADING
        generation, state = self._generation, self.state

        @without_document_lock
        async def answer() -> None:
            await self._answer(generation, state)

        self._next_tick(answer)

    async def _answer(self, generation: int, state: State) -> None:
        """Asks on a thread and without the document's lock, so that a slow question delays nobody."""
        try:
            loop = asyncio.get_running_loop()
            answers = await loop.run_in_executor(self._pool, self.answers, generation, state)
        except UserError as error:
            self._next_tick(partial(self.fail, generation, str(error)))
        except Exception:
            log.exception("A question could not be answered for %s", state)
            self._next_tick(partial(self.fail, generation, WENT_WRONG))
        else:
            if answers is not None:
                self._next_tick(partial(self.put, generation, state, answers))

    def _next_tick(self, callback: Callable[[], Any]) -> None:
        # A page that was closed meanwhile has no next tick, and nobody waits for it.
        with contextlib.suppress(RuntimeError):
            self.document.add_next_tick_callback(callback)

    def is_current(self, generation: int) -> bool:
        """Whether nobody has chosen anything since."""
        return generation == self._generation

    def answers(self, generation: int, state: State) -> list[Any] | None:
        """Each view's answer, or None once nobody waits for them. Runs on a thread of the pool."""
        found = []
        for view in self._views:
            if not self.is_current(generation):
                return None
            found.append(view.query(self.version.answers, state))
        return found

    def put(self, generation: int, state: State, answers: Sequence[Any]) -> None:
        """Nothing; the views show the answers, unless somebody has chosen anything since."""
        if not self.is_current(generation):
            return
        self.is_putting = True
        try:
            for view, answer in zip(self._views, answers, strict=True):
                view.put(answer)
        except Exception:
            log.exception("A view could not show its answer for %s", state)
            self.fail(generation, WENT_WRONG)
            return
        finally:
            self.is_putting = False
        self._say(self._wrong)
        self.status.tags = [state.address]
        self.status.text = READY

    def fail(self, generation: int, sentence: str) -> None:
        """Nothing; the page says so in words."""
        if self.is_current(generation):
            self._say([sentence])
            self.status.text = FAILED

    def _say(self, sentences: Sequence[str]) -> None:
        self.notice.text = "".join(f'<p class="warning" role="alert">{html.escape(s)}</p>' for s in sentences)
        self.notice.visible = bool(sentences)
