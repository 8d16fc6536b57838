"""A published store flows in, a server of its pages flows out, until it is told to end."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bokeh.resources import Resources
from bokeh.server.server import BaseServer
from bokeh.server.views.static_handler import StaticHandler
from bokeh.settings import settings
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.web import RedirectHandler

from whenwhy.server.authentication import Link, derived
from whenwhy.server.entrance import Entrance
from whenwhy.server.gate import GuardedTornado
from whenwhy.server.listening import listen
from whenwhy.server.pages import Endings, application, pages
from whenwhy.server.published import Published
from whenwhy.server.saved_cohorts import SavedCohorts
from whenwhy.server.served import served_of

if TYPE_CHECKING:
    from whenwhy.models.foreign.named import ForeignSource

log = logging.getLogger(__name__)

#: The page that "/" leads to.
FIRST_PAGE = "overview"

#: Between the page's arrival and its websocket: a person may leave a tab half loaded over lunch.
TOKEN_SECONDS = 24 * 3600

#: Sessions ask at the same time on so many threads; DuckDB itself uses every core, so more of them keep quick questions from
#: standing behind slow ones.
THREADS = 8

#: Closed sessions are forgotten one after the other and not all at once, as each takes a moment of everybody's time.
CHECK_EVERY_MS = 500

#: Garbage waits so long at the most.
COLLECT_EVERY_MS = 10_000

#: People send a name and a password, and nothing longer.
MOST_BYTES_OF_A_FORM = 100_000


class LocalTornado(GuardedTornado):
    """Bokeh's server, sending its own JavaScript alone: hospitals have no internet."""

    def resources(self, absolute_url: str | bool | None = None) -> Resources:
        """The scripts that the pages use. MathJax alone would be half of everything sent, and no page has formulas."""
        return Resources(
            mode="server",
            root_url="/",
            path_versioner=StaticHandler.append_version,
            components=["bokeh", "bokeh-widgets"],
        )


def serve(
    store_path: Path,
    *,
    port: int,
    address: str = "127.0.0.1",
    entrance: Entrance | None = None,
    access_log: Path | None = None,
    model: Path | ForeignSource | None = None,
    sequences: Path | None = None,
    on_ready: Callable[[str], None],
) -> None:
    """Nothing; pages of the store are served until SIGINT or SIGTERM.

    Args:
        store_path: a published store; another version published meanwhile is what new sessions see.
        port: 0 takes a free one.
        address: to listen on.
        entrance: who may look; None: whoever reaches the address, which is then one of this machine alone, as a viewer.
        access_log: where what pages ask is written down; None: in the store.
        model, sequences: of a run of the store, so that analysts see what the model says after each step, and what if.
        on_ready: called with the address for a browser once connections are accepted.

    Raises:
        UserError: no store there, an address that is not safe with this entrance, a port that is in use, or a model of
            no run.

    Example: `serve(Path("demo/store"), port=5006, on_ready=print)`
    """
    # A page that is closed while something is sent to it is no event.
    logging.getLogger("bokeh.server.views.ws").setLevel(logging.ERROR)
    # Whether a page's models fit together is known before anybody opens it.
    settings.perform_document_validation = False
    entrance = entrance or Entrance()
    entrance.check(address)
    secret, tls = entrance.secret(), entrance.tls()
    pool = ThreadPoolExecutor(THREADS, thread_name_prefix="whenwhy-ask")
    published = Published(store_path, pool, access_log)
    published.require(entrance.role or "viewer")
    saved = SavedCohorts(store_path)
    served = None
    if model is not None and sequences is not None:
        served = served_of(model, sequences, published.runs())
    every, endings = pages(), Endings()
    listening = listen(address, port, entrance.scheme, entrance.origins)
    try:
        authentication = entrance.authentication(secret, listening.port)
        loop = IOLoop.current()
        tornado = LocalTornado(
            {
                f"/{page.name}": application(
                    page, every, published, pool, saved, endings, served, authentication.logs_out
                )
                for page in every.values()
            },
            authentication,
            listening.hosts,
            entrance.proxy_address,
            extra_patterns=[(r"/", RedirectHandler, {"url": f"/{FIRST_PAGE}", "permanent": False})],
            use_index=False,
            redirect_root=False,
            sign_sessions=True,
            secret_key=derived(secret, "tokens"),
            session_token_expiration=TOKEN_SECONDS,
            check_unused_sessions_milliseconds=CHECK_EVERY_MS,
            xsrf_cookies=True,
            xsrf_cookie_name=f"whenwhy_form_{listening.port}",
            xsrf_cookie_kwargs={"httponly": True, "samesite": "Strict", "secure": tls is not None},
            # A session's token would carry these along, and no page reads them.
            include_headers=[],
            include_cookies=[],
            compress_response=True,
            log_function=_log_failures,
        )
        server = BaseServer(loop, tornado, HTTPServer(tornado, ssl_options=tls, max_body_size=MOST_BYTES_OF_A_FORM))
        server._http.add_sockets(listening.sockets)
        server.start()
        before = {kind: signal.signal(kind, lambda *_: loop.add_callback_from_signal(loop.stop)) for kind in _ENDS}
        collecting = PeriodicCallback(endings.collect, COLLECT_EVERY_MS)
        collecting.start()
        way_in = authentication.path if isinstance(authentication, Link) else ""
        try:
            loop.add_callback(on_ready, listening.url + way_in)
            loop.start()
        finally:
            collecting.stop()
            for kind, handler in before.items():
                signal.signal(kind, handler)
            server.stop(wait=False)
    finally:
        for one in listening.sockets:
            one.close()
        pool.shutdown(wait=False, cancel_futures=True)


_ENDS = (signal.SIGINT, signal.SIGTERM)


def _log_failures(handler: Any) -> None:
    """Requests that failed are worth a line, the others are not."""
    if handler.get_status() >= 400:
        log.warning("%d %s %s", handler.get_status(), handler.request.method, handler.request.path)
