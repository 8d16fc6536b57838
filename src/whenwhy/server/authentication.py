"""Requests flow in, who asks flows out: the ways of knowing, and what each of them asks of a browser."""

from __future__ import annotations

import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tornado.httputil import HTTPServerRequest
from tornado.web import HTTPError, RequestHandler, create_signed_value, decode_signed_value

from whenwhy.server.users import User, UsersFile

if TYPE_CHECKING:
    from whenwhy.server.gate import GuardedTornado

#: A session cookie is worth nothing after so long.
SESSION_SECONDS = 12 * 3600

#: A pattern of addresses, its handler, and the handler's arguments.
Route = tuple[str, type[RequestHandler], dict[str, Any]]


class Refused(HTTPError):  # noqa: N818 -- no fault of anybody
    """A request that gets one sentence instead of an answer."""

    def __init__(self, sentence: str, status: int = 403) -> None:
        super().__init__(status)
        self.sentence = sentence


class Authentication(Protocol):
    """A way of knowing who asks."""

    @property
    def routes(self) -> Sequence[Route]:
        """The pages that it needs: their handlers say `is_open`, since whoever comes to them is not known yet."""
        ...

    @property
    def logs_out(self) -> bool:
        """Whether there is a page /logout."""
        ...

    @property
    def login(self) -> str | None:
        """The page where people say who they are, or None where they cannot."""
        ...

    @property
    def unknown(self) -> str:
        """The sentence for requests from nobody known."""
        ...

    def user(self, request: HTTPServerRequest) -> User | None:
        """Who asks, or None. It is asked again with every request and every message."""
        ...


@dataclass(frozen=True)
class Anyone:
    """Nobody is asked, and everybody is a viewer."""

    routes: Sequence[Route] = ()
    logs_out: bool = False
    login: str | None = None
    unknown: str = "Nobody is refused."

    def user(self, request: HTTPServerRequest) -> User:
        """The viewer that everybody is."""
        return User("anyone", "viewer")


@dataclass(frozen=True)
class Proxy:
    """A proxy has asked, and names the user in a header; the file of users says the role.

    Args:
        header: such as X-Forwarded-User.
        address: the proxy's. A request from any other address is nobody's, whatever its headers say.
        users: without passwords, since the proxy asks for them.
    """

    header: str
    address: str
    users: UsersFile
    routes: Sequence[Route] = ()
    logs_out: bool = False
    login: str | None = None

    @property
    def unknown(self) -> str:
        """The sentence for requests from nobody known."""
        return (
            "You are not among those who may look here, or did not come by way of the proxy that knows you: ask whoever "
            "serves this dashboard."
        )

    def user(self, request: HTTPServerRequest) -> User | None:
        """The user whom the proxy names, once."""
        names = request.headers.get_list(self.header)
        # A header that was there before the proxy added its own could be anybody's.
        if request.remote_ip != self.address or len(names) != 1:
            return None
        return self.users.user(names[0])


@dataclass
class SessionCookies:
    """What browsers bring to be known again: signed, dated, and not for scripts or other sites.

    Args:
        secret: signs; whoever has it can be anybody.
        name: of the cookie. Cookies belong to a host, whatever the port, so that another dashboard needs another name.
    """

    secret: bytes
    name: str
    _ended: dict[str, float] = field(default_factory=dict)

    def set(self, handler: RequestHandler, secure: bool, **told: str) -> None:
        """Nothing; the browser will bring what is told."""
        value = json.dumps(told | {"id": secrets.token_hex(8)})
        handler.set_cookie(
            self.name,
            create_signed_value(self.secret, self.name, value),
            max_age=SESSION_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=secure,
        )

    def told(self, request: HTTPServerRequest) -> dict[str, str]:
        """What was told when the cookie was set; nothing, if it is forged, too old, or was ended."""
        cookie = request.cookies.get(self.name)
        # Earlier versions are signed by SHA-1.
        value = cookie and decode_signed_value(
            self.secret, self.name, cookie.value, max_age_days=SESSION_SECONDS / 86400, min_version=2
        )
        told: dict[str, str] = json.loads(value) if value else {}
        return {} if told.get("id") in self._ended else told

    def end(self, handler: RequestHandler) -> None:
        """Nothing; the cookie is taken back, and no copy of it is worth anything."""
        now = time.time()
        self._ended = {one: until for one, until in self._ended.items() if until > now}
        told = self.told(handler.request)
        if told:
            self._ended[told["id"]] = now + SESSION_SECONDS
        handler.clear_cookie(self.name, httponly=True, samesite="Strict")


class Link:
    """Whoever has opened the address with the token is a user of one role: other users of the machine have not.

    Args:
        user: whom the link stands for.
        cookies: of sessions.
    """

    logs_out = False
    login = None
    unknown = "This dashboard opens by the address with a token that `whenwhy serve` has printed: open that one in this browser."

    def __init__(self, user: User, cookies: SessionCookies) -> None:
        self._user, self._cookies = user, cookies
        self._token = secrets.token_urlsafe(32)
        self.routes: Sequence[Route] = [(r"/enter", Enter, {"link": self, "cookies": cookies})]

    @property
    def path(self) -> str:
        """What is printed behind the address of the server."""
        return f"enter?token={self._token}"

    def is_token(self, text: str) -> bool:
        """Whether it is the token, in a time that does not tell how much of it is right."""
        return hmac.compare_digest(text.encode(), self._token.encode())

    def user(self, request: HTTPServerRequest) -> User | None:
        """The link's user, as whom the server was started: a cookie of an earlier start has no role of its own."""
        return self._user if self._cookies.told(request).get("by") == "link" else None


class Enter(RequestHandler):
    """The page that exchanges a token for a cookie."""

    application: GuardedTornado
    is_open = True

    def initialize(self, link: Link, cookies: SessionCookies) -> None:
        """Nothing; the link is known."""
        self._link, self._cookies = link, cookies

    def get(self) -> None:
        """To the first page, without the token."""
        if not self._link.is_token(self.get_query_argument("token", "")):
            raise Refused(Link.unknown)
        self._cookies.set(self, self.application.scheme(self.request) == "https", by="link")
        self.redirect("/", status=303)


def derived(secret: bytes, purpose: str) -> bytes:
    """A key for one purpose, from which neither the secret nor another key follows.

    Example:
        >>> derived(b"secret", "cookies") == derived(b"secret", "tokens")
        False
    """
    return hmac.new(secret, purpose.encode(), hashlib.sha256).digest()
