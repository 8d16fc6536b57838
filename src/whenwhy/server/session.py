"""A person's choices flow in, answers of the store flow out to the views: one session of one page."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from bokeh.document import Document, without_document_lock
from bokeh.models import CustomJS
from bokeh.models.ui.ui_element import UIElement
from bokeh.models.widgets.markups import Div

from whenwhy.errors import Stopped, UserError
from whenwhy.server.actions import acted
from whenwhy.server.cohort import Cohort
from whenwhy.server.export import csv_of
from whenwhy.server.feature_names import feature_words
from whenwhy.server.labels import NOT_A_CAUSE, class_words, run_words, split_words, stratum_words
from whenwhy.server.markup import notice, words
from whenwhy.server.patient import Chosen
from whenwhy.server.published import Version
from whenwhy.server.saved_cohorts import SavedCohorts
from whenwhy.server.state import ORDERS, State, state_from_address
from whenwhy.server.view import View
from whenwhy.server.views.about import asked_of

if TYPE_CHECKING:
    from whenwhy.attribution.what_if import Served

log = logging.getLogger(__name__)

READY, LOADING, FAILED = "ready", "loading", "failed"
WENT_WRONG: Final = (
    "This could not be answered; the server's log says why. What the page shows may belong to an earlier choice: "
    "choose again, or reload the page."
)
#: So many features a search tells.
FOUND: Final = 50

#: So often a session looks whether another version was published.
LOOK_EVERY_MS: Final = 5_000


class Session:
    """The state of one open page, and the only one who changes it.

    Two models that nobody sees carry what is neither chart nor number: `told` brings words and the state to the page,
    `said` what a person does to the server.
    """

    def __init__(
        self,
        document: Document,
        version: Version,
        pool: Executor,
        address: Mapping[str, Sequence[str]],
        saved: SavedCohorts,
        user: str,
        is_newer: Callable[[], bool],
        served: Mapping[str, Served] | None = None,
    ) -> None:
        self.document, self.version, self.user = document, version, user
        self.saved = saved if version.choices.has_rows else saved.for_viewers()
        self.served = served or {}
        #: The patient that is looked at: here alone, so that no address and no link has one.
        self.chosen = Chosen()
        self.state, self._wrong = state_from_address(address, version.choices, self.condition)
        self._pool, self._is_newer = pool, is_newer
        self._views: Sequence[View] = ()
        self._generation = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._answered: list[tuple[View, Any]] = []
        #: The names of saved cohorts that the page lists.
        self._listed: list[str] = []
        self._left = 0
        self._failed = False
        self._is_putting = self._has_told = False
        self._message: dict[str, Any] = {"number": 0}
        self._heard: Any = 0
        self._is_open = False
        self.told = Div(visible=False)
        self.told.js_on_change("tags", CustomJS(code="window.whenwhy.told(cb_obj.tags[0])"))
        self.said = Div(visible=False)
        self.said.on_change("tags", lambda attribute, old, new: self._hear(new))

    @property
    def roots(self) -> Mapping[str, UIElement]:
        """The models that belong to the page itself."""
        return {"told": self.told, "said": self.said}

    def begin(self, views: Sequence[View]) -> None:
        """Nothing; the views are filled as soon as the page is there."""
        self._views = views
        self.document.js_on_event("document_ready", CustomJS(code="window.whenwhy.ready()"))
        self.document.on_event("document_ready", lambda event: self._opened())
        self.document.js_on_event("connection_lost", CustomJS(code="window.whenwhy.lost()"))
        # Messages may have been missed meanwhile; the address says what to show.
        self.document.js_on_event("client_reconnected", CustomJS(code="location.reload()"))
        # Bokeh's own words would cover the page's.
        self.document.config.notify_connection_status = False
        self._load()
        self.document.add_periodic_callback(self._look, LOOK_EVERY_MS)

    def end(self) -> None:
        """Nothing; the page is gone, and nobody waits for what it asked."""
        self._give_up()

    def _look(self) -> None:
        """Tells once that a newer version is there; this session keeps its own."""
        if not self._has_told and self._is_newer():
            self._has_told = True
            self._tell(newer=True)

    def condition(self, text: str, run: str) -> Any:
        """The condition of a text of an address, one that was saved included."""
        if text.startswith("saved:"):
            return self.saved.condition(text.removeprefix("saved:"))
        condition = self.version.choices.condition(text, run)
        if text.startswith("where:"):
            # Said once and at once: every card would say it otherwise, and the chip could not be taken away.
            self.version.store.require_condition(condition.sql)
        return condition

    def offered(self) -> dict[str, Any]:
        """What the page's controls offer, in words, for each run."""
        choices = self.version.choices
        runs = {}
        for run, of in choices.offered.items():
            outcome = str(choices.runs[run]["outcome"])
            runs[run] = {
                "class": [(name, class_words(name, outcome)) for name in of.classes],
                "stratum": [(name, stratum_words(name)) for name in of.strata],
                "split": [(name, split_words(name)) for name in of.splits],
            }
        return {
            "runs": runs,
            "run": [(name, run_words(row)) for name, row in choices.runs.items()],
            "orders": list(ORDERS.items()),
            "role": self.version.store.role,
            "version": f"version {self.version.name}",
            "not_a_cause": NOT_A_CAUSE,
        }

    # -- what a person does ------------------------------------------------------------------------

    def _hear(self, tags: Any) -> None:
        """Nothing; an action was done, and the page knows that it was heard, whatever follows."""
        try:
            self._heard, action, told = tags[0]
        except (TypeError, ValueError, LookupError):
            self._say([WENT_WRONG])
            return
        self.act(action, told)
        if self._message.get("heard") != self._heard:
            self._tell()

    def act(self, action: str, told: Mapping[str, Any]) -> None:
        """Nothing; what a person did on the page changes the state, or is answered in words."""
        try:
            if action == "csv":
                self._send_csv(str(told["view"]))
            elif action == "search":
                self._tell(found=self._search(str(told["text"])))
            else:
                self.show(acted(self, action, told))
        except UserError as error:
            self._say([str(error)])
        except Exception:  # a page's connection may say anything
            log.exception("The action %s could not be done for %s", action, self.state)
            self._say([WENT_WRONG])

    def choose_feature(self, code: str) -> None:
        """Nothing; a chart's bar was chosen. Changes while answers are put are the page's own."""
        if not self._is_putting:
            self.act("choose", {"name": "feature", "value": code})

    def enter_group(self, code: str) -> None:
        """Nothing; a chart's bar of a code group was chosen."""
        if not self._is_putting:
            self.act("enter", {"group": code})

    def mark(self, condition: str) -> None:
        """Nothing; a brush was drawn over a chart."""
        self.act("select", {"condition": condition})

    def show(self, state: State) -> None:
        """Nothing; this is the state, and every view follows."""
        if state != self.state:
            # Another cohort has another list, and the places of changes are those of the run's own records.
            changes = self.chosen.changes if state.run == self.state.run else ()
            self.chosen = replace(self.chosen, skip=0, changes=changes)
            self.state, self._wrong = state, []
            self._load()
        elif self.saved.names != self._listed:
            self._tell(state=self._described(state))

    def look(self, chosen: Chosen) -> None:
        """Nothing; this is what is looked at of single patients, and every view follows."""
        if chosen != self.chosen:
            self.chosen, self._wrong = chosen, []
            self._load()

    # -- from a state to what is seen --------------------------------------------------------------

    def _load(self) -> None:
        self._give_up()
        self._generation += 1
        self._answered, self._left, self._failed = [], len(self._views), False
        # The page's controls follow at once, however long the charts take.
        self._tell(status=LOADING, state=self._described(self.state))
        generation, state = self._generation, self.state

        @without_document_lock
        async def ask() -> None:
            if generation == self._generation:
                for view in self._views:
                    task = asyncio.create_task(self._answer(generation, state, view))
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)

        self._next_tick(ask)

    def _give_up(self) -> None:
        """Nobody waits for what was asked before: the store may be interrupted."""
        for task in self._tasks:
            task.cancel()

    async def _answer(self, generation: int, state: State, view: View) -> None:
        """Asks without the document's lock, so that a slow question delays nobody."""
        try:
            questions = view.questions(state)
            tables = await asyncio.gather(*(self.version.answers.answer(asked) for asked in questions.values()))
            read = partial(view.read, state, dict(zip(questions, tables, strict=True)))
            found = await asyncio.get_running_loop().run_in_executor(self._pool, read)
        except UserError as error:
            found = error
        except Stopped:
            return
        except Exception:
            log.exception("A question could not be answered for %s", state)
            found = UserError(WENT_WRONG)
        if generation == self._generation:
            self._answered.append((view, found))
            if len(self._answered) == 1:
                self._next_tick(partial(self._put, generation, state))

    def _put(self, generation: int, state: State) -> None:
        """Shows what has been answered since the last time, unless somebody has chosen anything since."""
        if generation != self._generation:
            return
        answered, self._answered = self._answered, []
        texts: dict[str, str] = {}
        self._is_putting = True
        try:
            for view, found in answered:
                texts |= self._put_view(view, found)
        finally:
            self._is_putting = False
        self._left -= len(answered)
        if self._left:
            self._tell(texts=texts)
            return
        texts["notice"] = notice(self._wrong)
        self._tell(texts=texts, state=self._described(state), status=FAILED if self._failed else READY)

    def _put_view(self, view: View, found: Any) -> Mapping[str, str]:
        """The texts of a view whose charts have been put; or words, if it cannot show anything."""
        if not isinstance(found, UserError):
            try:
                return {f"{view.name}_words": "", **view.put(found)}
            except Exception:
                log.exception("The view %s could not show its answer for %s", view.name, self.state)
                found = UserError(WENT_WRONG)
        self._failed = self._failed or str(found) == WENT_WRONG
        for chart in view.charts.values():
            chart.visible = False
        return {f"{view.name}_heading": "", f"{view.name}_table": "", f"{view.name}_words": words(str(found))}

    def _described(self, state: State) -> dict[str, Any]:
        """What the page's own controls show."""
        self._listed = self.saved.names
        return {
            "address": state.address,
            "feature": state.feature,
            "feature_words": self.version.choices.offered[state.run].words_of(state.feature),
            "run": state.run,
            "split": state.split,
            "class": state.cohort.class_label,
            "stratum": state.cohort.stratum,
            "order": state.order,
            "opened": sorted(state.opened),
            "selected": None if state.selected is None else state.selected.words,
            "compared": state.against is not None,
            "against": against_of(state),
            "is_default": state == state.without_filters(self.version.choices),
            "saved": self._listed,
            "forgettable": self._listed if self.version.choices.has_rows else self.saved.names_by(self.user),
        }

    def _search(self, text: str) -> list[tuple[str, str]]:
        """The first features whose code or name has all the words of a text."""
        sought, found = text.casefold().split(), []
        for code, row in self.version.choices.offered[self.state.run].features.items():
            name = feature_words(code, row["description"])
            if all(word in name.casefold() for word in sought):
                found.append((code, name))
                if len(found) == FOUND:
                    break
        return found

    # -- to the page -------------------------------------------------------------------------------

    def _send_csv(self, name: str) -> None:
        view = next(view for view in self._views if view.name == name)
        asked = view.csv(self.state)
        outcome = str(self.version.choices.runs[self.state.run]["outcome"])
        about = {"cohort": asked_of(asked, self.state, outcome), "version": self.version.name}

        @without_document_lock
        async def answer() -> None:
            try:
                content = csv_of(await self.version.answers.answer(asked), asked, about)
                told: dict[str, Any] = {"csv": {"name": f"{name}.csv", "content": content}}
            except UserError as error:
                told = {"texts": {"notice": notice([str(error)])}}
            except Exception:
                log.exception("The question of %s could not be answered for a file", name)
                told = {"texts": {"notice": notice([WENT_WRONG])}}
            self._next_tick(partial(self._tell, **told))

        self._next_tick(answer)

    def _say(self, sentences: Sequence[str]) -> None:
        self._tell(texts={"notice": notice(sentences)})

    def _tell(self, texts: Mapping[str, str] | None = None, **told: Any) -> None:
        """Sends a message. Those before the page is open are one, which it reads as it opens."""
        before = {} if self._is_open else self._message
        # A number of its own, since the same message twice would be no change.
        self._message = {
            **before,
            "number": self._message["number"] + 1,
            "heard": self._heard,
            "texts": {**before.get("texts", {}), **(texts or {})},
            **told,
        }
        self.told.tags = [self._message]

    def _opened(self) -> None:
        self._is_open = True

    def _next_tick(self, callback: Callable[[], Any]) -> None:
        # A page that was closed meanwhile has no next tick, and nobody waits for it.
        with contextlib.suppress(RuntimeError):
            self.document.add_next_tick_callback(callback)


def against_of(state: State) -> str:
    """What a list of references calls the one that is chosen; empty where it is not in the list.

    Example:
        >>> against_of(State("r", "held_out", "hdl", against="rest"))
        'rest'
    """
    if not isinstance(state.against, Cohort):
        return state.against or ""
    if state.against == Cohort():
        return "all"
    if state.against == replace(state.cohort, class_label=state.against.class_label):
        return f"class:{state.against.class_label}"
    if state.against == replace(state.cohort, stratum=state.against.stratum):
        return f"stratum:{state.against.stratum}"
    return next((c.text for c in state.against.conditions if c.text.startswith("saved:")), "")
