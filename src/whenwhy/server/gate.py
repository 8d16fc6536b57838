"""Requests flow in; those of known users, to this host, flow on to Bokeh's pages and sockets, the others get a sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlencode

from bokeh.application import Application
from bokeh.application.handlers.handler import Handler
from bokeh.document import Document
from bokeh.server.tornado import BokehTornado
from bokeh.server.views.autoload_js_handler import AutoloadJsHandler
from bokeh.server.views.doc_handler import DocHandler
from bokeh.server.views.ico_handler import IcoHandler
from bokeh.server.views.metadata_handler import MetadataHandler
from bokeh.server.views.session_handler import SessionHandler
from bokeh.server.views.ws import WSHandler
from bokeh.util.token import check_token_signature, get_token_payload
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler, HTTPError, RedirectHandler, RequestHandler

from whenwhy.server.authentication import Authentication, Refused
from whenwhy.server.listening import without_usual_port
from whenwhy.server.users import User

log = logging.getLogger(__name__)

#: Bokeh's pages build functions from text, and its styles stand in the page.
CONTENT_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; connect-src 'self'; font-src 'self' data:; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)

#: What people read instead of a status.
SENTENCES = {
    400: "This request cannot be understood: go back and try again.",
    403: "This form was sent from elsewhere, or is too old: go back, reload the page and try again.",
    404: "There is no such page here.",
    405: "This page does not do that.",
}
WENT_WRONG = "Something went wrong; the server's log says what."

#: What would make a browser join a session of somebody's choice, who could then read along.
CHOSEN_SESSIONS = ("bokeh-session-id", "bokeh-token")

#: No page uses these, and the first allows every origin to read its answers.
NOT_SERVED = (AutoloadJsHandler, MetadataHandler)


class GuardedTornado(BokehTornado):
    """Bokeh's server behind one gate, through which every request goes, whatever answers it.

    Bokeh's own AuthProvider stands before its pages, but not before static files and icons, lets the handshake of a
    websocket pass before it asks, never asks again as long as the socket is open, and does not look whose session a
    socket joins.

    Args:
        applications: Bokeh's, by their paths.
        authentication: knows who asks.
        hosts: HOST or HOST:PORT, by which browsers may have come: pages of no other name get an answer, so that a
            name which somebody points at this machine reads nothing.
        proxy_address: whose word on the browser's address and scheme counts.
        options: of Bokeh and of Tornado.
    """

    def __init__(
        self,
        applications: Mapping[str, Application],
        authentication: Authentication,
        hosts: frozenset[str],
        proxy_address: str,
        **options: Any,
    ) -> None:
        for application in applications.values():
            application.add(UserInToken(authentication))
        self.authentication, self._hosts, self._proxy_address = authentication, hosts, proxy_address
        self._guarded: dict[type[RequestHandler], type[RequestHandler]] = {}
        self._words = Environment(
            loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined
        ).get_template("words.html")
        extra = [*options.pop("extra_patterns", []), *authentication.routes]
        super().__init__(applications, extra_patterns=extra, **options)

    def get_handler_delegate(
        self, request: HTTPServerRequest, target_class: type[RequestHandler], *given: Any, **named: Any
    ) -> Any:
        """Whatever answers the request, behind the gate."""
        if target_class not in self._guarded:
            self._guarded[target_class] = _behind_the_gate(target_class)
        return super().get_handler_delegate(request, self._guarded[target_class], *given, **named)

    def words(self, title: str, sentence: str, form: str = "", **more: str) -> str:
        """The page that says a sentence, and asks for something by one of its forms."""
        return self._words.render({"title": title, "sentence": sentence, "form": form, "name": "", "next": "/", **more})

    def scheme(self, request: HTTPServerRequest) -> str:
        """What the browser came by, http or https, as far as the proxy says it."""
        if self._is_proxy(request) and request.headers.get("X-Forwarded-Proto", "").lower() == "https":
            return "https"
        return request.protocol

    def peer(self, request: HTTPServerRequest) -> str:
        """The browser's address, as far as the proxy says it: the last one, which it has seen itself."""
        told = request.headers.get("X-Forwarded-For", "").rpartition(",")[2].strip()
        return (told if self._is_proxy(request) and told else request.remote_ip or "")[:64]

    def hosts(self, request: HTTPServerRequest) -> set[str]:
        """The names by which a browser may have come, as it writes them."""
        scheme = self.scheme(request)
        return {without_usual_port(host, scheme) for host in self._hosts}

    def origins(self, request: HTTPServerRequest) -> set[str]:
        """The origins of this server's own pages."""
        scheme = self.scheme(request)
        return {f"{scheme}://{host}" for host in self.hosts(request)}

    def _is_proxy(self, request: HTTPServerRequest) -> bool:
        return request.remote_ip == self._proxy_address


class Gate(RequestHandler):
    """What stands before every handler."""

    application: GuardedTornado
    is_open = False

    def set_default_headers(self) -> None:
        """Nothing; every answer says what a browser may do with it."""
        self.set_header("Content-Security-Policy", CONTENT_POLICY)
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Opener-Policy", "same-origin")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.clear_header("Server")
        # Tornado says otherwise of scripts with their version in their address: they may be kept for years.
        self.set_header("Cache-Control", "no-store")

    def get_current_user(self) -> User | None:
        """Who asks."""
        return self.application.authentication.user(self.request)

    async def prepare(self) -> None:
        """Nothing, or a refusal: a host of another name, nobody known, a session that was chosen."""
        host = without_usual_port(self.request.headers.get("Host", ""), self.application.scheme(self.request))
        if host not in self.application.hosts(self.request):
            raise Refused(
                "This dashboard does not know the name by which your browser came: whoever serves it may add it by "
                "--origin HOST[:PORT], as it stands in the address line."
            )
        if "\0" in unquote(self.request.path):  # no file is called so, and the system stumbles over it
            raise HTTPError(404)
        if not self.is_open and self.current_user is None:
            self._answer_to_nobody()
            return
        if isinstance(self, SessionHandler) and (
            any(name in self.request.arguments for name in CHOSEN_SESSIONS)
            or "Bokeh-Session-Id" in self.request.headers
        ):
            raise Refused("An address does not say in which session a page opens: leave its bokeh- arguments out.")
        done = super().prepare()
        if done is not None:
            await done

    def _answer_to_nobody(self) -> None:
        """The page where people say who they are, or a refusal."""
        here, login = self.request.uri or "/", self.application.authentication.login
        if self.request.method != "GET" or not isinstance(self, DocHandler | RedirectHandler):
            raise Refused(self.application.authentication.unknown)
        if self.request.headers.get("Sec-Fetch-Site") == "cross-site":
            # Whoever follows an address that was passed on comes without the cookie: asked for from here, it is there.
            self.set_header("Refresh", f"0; url={here}")
            self.finish(self.application.words("One moment", "The page opens …"))
        elif login is None:
            raise Refused(self.application.authentication.unknown)
        else:
            self.redirect(f"{login}?{urlencode({'next': here})}", status=303)

    def write_error(self, status_code: int, **about: Any) -> None:
        """The page of words: why, in a sentence, and nothing about how."""
        error = about["exc_info"][1] if "exc_info" in about else None
        sentence = error.sentence if isinstance(error, Refused) else SENTENCES.get(status_code, WENT_WRONG)
        form = "" if isinstance(error, Refused) else "back"
        self.finish(self.application.words("Not shown", sentence, form))

    def log_exception(self, *told: Any) -> None:
        """Refusals are no faults; the log of failed requests has them."""
        if not isinstance(told[1], HTTPError):
            super().log_exception(*told)


class GuardedSocket(Gate, WSHandler):
    """Bokeh's websocket, of whose messages every one is of a known user."""

    async def prepare(self) -> None:
        """Nothing, or a refusal: also another origin, or a token that is not this server's and this user's."""
        await super().prepare()
        if self.request.headers.get("Origin") not in self.application.origins(self.request):
            log.warning(
                "A websocket was refused: its origin is none of %s", sorted(self.application.origins(self.request))
            )
            raise Refused("A page of another origin may not connect.")
        offered = self.request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        if not self._is_of(offered[-1].strip(), self.current_user):
            raise Refused("This page's token is not yours: reload the page.")

    def check_origin(self, origin: str) -> bool:
        """Whether it is this server's own; Bokeh's check knows patterns, and obeys a variable of the environment."""
        return origin in self.application.origins(self.request)

    async def on_message(self, fragment: str | bytes) -> None:
        """Nothing; the message is handled, unless its sender has gone out of the file, or the session is over."""
        if self._is_still_known():
            await super().on_message(fragment)

    def on_pong(self, data: bytes) -> None:
        """Nothing; the same for a page at which nobody does anything."""
        if self._is_still_known():
            super().on_pong(data)

    def _is_still_known(self) -> bool:
        if self.get_current_user() == self.current_user:
            return True
        self.close(1008, "not known any more")
        return False

    def _is_of(self, token: str, user: User | None) -> bool:
        """Whether the token is this server's, made for this user in this role."""
        try:
            if not check_token_signature(token, secret_key=self.application.secret_key, signed=True):
                return False
            return user is not None and user_in(get_token_payload(token)) == user
        except Exception:  # whatever a forged token makes Bokeh stumble over
            return False


class UserInToken(Handler):
    """Puts who asks into the signed token of a page, out of which a page's own code reads it."""

    def __init__(self, authentication: Authentication) -> None:
        super().__init__()
        self._authentication = authentication

    def modify_document(self, doc: Document) -> None:
        """Nothing."""

    def process_request(self, request: HTTPServerRequest) -> dict[str, Any]:
        """The user's name and role."""
        user = self._authentication.user(request)
        return {"user": vars(user)} if user is not None else {}


def user_in(payload: Mapping[str, Any]) -> User:
    """The user in a token's payload, such as `document.session_context.token_payload`.

    Example:
        >>> user_in({"user": {"name": "alice", "role": "viewer"}})
        User(name='alice', role='viewer')
    """
    return User(**payload["user"])


def _behind_the_gate(handler: type[RequestHandler]) -> type[RequestHandler]:
    if handler is WSHandler:
        return GuardedSocket
    if issubclass(handler, NOT_SERVED):
        handler = NotServed
    is_open = getattr(handler, "is_open", issubclass(handler, IcoHandler))
    return type(f"Guarded{handler.__name__}", (Gate, handler), {"is_open": is_open})


class NotServed(ErrorHandler):
    """What is not there."""

    def initialize(self, **_: Any) -> None:  # type: ignore[override]
        """Nothing; whatever it was given stood for something else."""
        super().initialize(status_code=404)
