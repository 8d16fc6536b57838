"""The files dashboards/NAME.py flow in, the pages /NAME flow out."""

from __future__ import annotations

import gc
import importlib.util
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

from bokeh.application import Application
from bokeh.application.application import SessionContext
from bokeh.application.handlers.function import FunctionHandler
from bokeh.application.handlers.handler import Handler
from bokeh.document import Document
from bokeh.themes import Theme
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from whenwhy.errors import UserError
from whenwhy.server.charts import one_page
from whenwhy.server.gate import user_in
from whenwhy.server.labels import NOT_A_CAUSE
from whenwhy.server.published import Published
from whenwhy.server.saved_cohorts import SavedCohorts
from whenwhy.server.session import WENT_WRONG, Session
from whenwhy.server.view import View
from whenwhy.shipped import shipped

if TYPE_CHECKING:
    from whenwhy.attribution.what_if import Served

log = logging.getLogger(__name__)

#: The shell of every page lies beside this file, each page's own layout in dashboards/NAME.html.
SHELL = Path(__file__).parent


#: From the cohort to the patient, as people read; a page that is not named comes last.
ORDER: Final = ("overview", "compare", "projection", "predictions", "patterns", "patient", "quality")


@dataclass(frozen=True)
class Page:
    """A page's name, which is its address, its title, what it shows, and the function that makes its views."""

    name: str
    title: str
    shows: str
    views: Callable[[Session], list[View]]


def pages() -> dict[str, Page]:
    """Every page: a function of the file's own name whose docstring's first line is `Title: what it shows.`

    Example:
        >>> pages()["compare"].title, pages()["compare"].shows
        ('Compare', 'where and when the contributions of two cohorts differ')
    """
    found = {}
    files = {file.stem: file for file in shipped("dashboards").glob("[a-z]*.py")}
    for file in sorted(
        files.values(), key=lambda file: (ORDER.index(file.stem) if file.stem in ORDER else len(ORDER), file.stem)
    ):
        function = getattr(_loaded(file), file.stem, None)
        assert function is not None, f"{file} has no function {file.stem}"
        title, _, shows = (function.__doc__ or file.stem).strip().splitlines()[0].rstrip(".").partition(": ")
        found[file.stem] = Page(file.stem, title, shows, function)
    return found


def _loaded(file: Path) -> ModuleType:
    """The module of a file that no import path leads to."""
    spec = importlib.util.spec_from_file_location(f"whenwhy_dashboards_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def application(
    page: Page,
    every: Mapping[str, Page],
    published: Published,
    pool: Executor,
    saved: SavedCohorts,
    endings: Endings,
    served: Mapping[str, Served] | None = None,
    logs_out: bool = False,
) -> Application:
    """A page as Bokeh serves it: one session for each time that it is opened.

    Args:
        page: the one.
        every: all of them, by name.
        published: the store's versions.
        pool: where sessions ask.
        saved: cohorts by name.
        endings: of the sessions of all pages.
        served: the models of runs, so that people may ask what if.
        logs_out: whether there is a page /logout.
    """
    folder = shipped("dashboards")
    templates = Environment(loader=FileSystemLoader([folder, SHELL]), autoescape=False, undefined=StrictUndefined)
    theme = Theme(folder / "theme.yaml")

    def open_page(document: Document) -> None:
        document.destroy = partial(_destroy, document.destroy)  # type: ignore[method-assign]
        document.theme = theme
        document.title = f"{page.title} · whenwhy"
        user = user_in(document.session_context.token_payload)  # type: ignore[union-attr]
        variables = {
            "pages": every.values(), "page": page, "not_a_cause": NOT_A_CAUSE, "user": user, "logs_out": logs_out
        }  # fmt: skip
        try:
            version = published.begin(user, page.name)
            endings.add(document, lambda: published.end(version))
            newer = partial(published.newer_than, version)
            session = Session(document, version, pool, _address(document), saved, user.name, newer, served)
            endings.add(document, session.end)
            with one_page():
                views = page.views(session)
            with document.models.freeze():  # with each root Bokeh would go through all that are there already
                for roots in (session.roots, *(view.charts for view in views)):
                    for name, root in roots.items():
                        root.name = name
                        document.add_root(root)
            document.template = templates.get_template(f"{page.name}.html")
            document.template_variables.update({**variables, "offered": session.offered()})
            session.begin(views)
        except Exception as error:
            # A page that cannot be made says so; Bokeh would show a blank one.
            document.clear()
            sentence = str(error)
            if not isinstance(error, UserError):
                log.exception("The page %s could not be made", page.name)
                sentence = WENT_WRONG
            document.template = templates.get_template("failure.html")
            document.template_variables.update({**variables, "sentence": sentence})

    return Application(FunctionHandler(open_page), endings)


class Endings(Handler):
    """What is to be done when a session ends. After callbacks of documents Bokeh searches all memory for garbage."""

    def __init__(self) -> None:
        super().__init__()
        self._of: dict[str, list[Callable[[], None]]] = {}
        self._has_garbage = False

    def collect(self) -> None:
        """Nothing; what sessions left behind since the last time is gone. It takes a moment of everybody's time."""
        if self._has_garbage:
            self._has_garbage = False
            gc.collect()

    def add(self, document: Document, end: Callable[[], None]) -> None:
        """Nothing; `end` is called at the end of the document's session."""
        self._of.setdefault(_id(document.session_context), []).append(end)

    def modify_document(self, doc: Document) -> None:
        """Nothing."""

    async def on_session_destroyed(self, session_context: SessionContext) -> None:
        """Nothing; all is done that was to be done."""
        self._has_garbage = True
        for end in self._of.pop(_id(session_context), []):
            end()


def _destroy(destroy: Callable[[Any], None], session: Any) -> None:
    """Bokeh's own, without its search of all memory: that is a moment for each page that is open, at each that is closed,
    and finds nothing of the document, which is no garbage yet.
    """
    gc.freeze()
    try:
        destroy(session)
    finally:
        gc.unfreeze()


def _id(context: SessionContext | None) -> str:
    return "" if context is None else str(context.id)


def _address(document: Document) -> dict[str, list[str]]:
    """The values of each argument of the page's address."""
    # Bokeh's type for the context lacks the request.
    request = getattr(document.session_context, "request", None)
    given: Mapping[str, list[bytes]] = request.arguments if request is not None else {}
    return {name: [value.decode("utf-8", "replace") for value in values] for name, values in given.items()}
