"""Names and passwords flow in, sessions of known users flow out: the pages /login and /logout."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from whenwhy.server.authentication import Route, SessionCookies
from whenwhy.server.throttle import Throttle
from whenwhy.server.users import LONGEST_NAME, User, UsersFile

if TYPE_CHECKING:
    from whenwhy.server.gate import GuardedTornado

log = logging.getLogger(__name__)

#: The same for a wrong password and for a name that is not there.
WRONG = "Name and password do not belong together: try again."


class Passwords:
    """People log in with a name and a password of the file of users.

    Args:
        users: the file; whoever is removed from it, or has another password or role, is so at the next request.
        cookies: of sessions.
    """

    logs_out = True
    login = "/login"
    unknown = "You are not logged in: open the page /login."

    def __init__(self, users: UsersFile, cookies: SessionCookies) -> None:
        self.users, self.cookies, self.throttle = users, cookies, Throttle()
        # One at a time: a hash takes 64 MiB and a core.
        self.pool = ThreadPoolExecutor(1, thread_name_prefix="whenwhy-passwords")
        self.routes: Sequence[Route] = [
            (r"/login", Login, {"passwords": self}),
            (r"/logout", Logout, {"passwords": self}),
        ]

    def user(self, request: HTTPServerRequest) -> User | None:
        """The user who logged in and is still there, with the same password."""
        told = self.cookies.told(request)
        if told.get("by") != "password" or told["mark"] != self.users.mark(told["name"]):
            return None
        return self.users.user(told["name"])


class PasswordPage(RequestHandler):
    """What both pages share."""

    application: GuardedTornado
    is_open = True

    def initialize(self, passwords: Passwords) -> None:
        """Nothing; the users are known."""
        self._passwords = passwords


class Login(PasswordPage):
    """The page that asks for a name and a password."""

    def get(self) -> None:
        """The form."""
        self._form("")

    async def post(self) -> None:
        """To the page that was asked for, or the form with a sentence."""
        name, password = (
            self.get_body_argument("name", "")[:LONGEST_NAME],
            self.get_body_argument("password", "", False),
        )
        throttle, address = self._passwords.throttle, self.application.peer(self.request)
        wait = throttle.attempt(name, address)
        if wait:
            self.set_status(429)
            self.set_header("Retry-After", str(wait))
            self._form(f"There were too many failed attempts: try again in {wait} seconds.", name)
            return
        users = self._passwords.users
        loop = asyncio.get_running_loop()
        user = await loop.run_in_executor(self._passwords.pool, users.with_password, name, password)
        mark = users.mark(name)
        if user is None or mark is None:
            log.warning("A login failed from %s", address)
            self.set_status(403)
            self._form(WRONG, name)
            return
        throttle.succeeded(name, address)
        secure = self.application.scheme(self.request) == "https"
        self._passwords.cookies.set(self, secure, by="password", name=user.name, mark=mark)
        self.redirect(own_path(self.get_body_argument("next", "/")), status=303)

    def _form(self, sentence: str, name: str = "") -> None:
        self.finish(
            self.application.words(
                "Log in",
                sentence,
                form="login",
                name=name,
                next=own_path(self.get_argument("next", "/")),
                xsrf=self.xsrf_token.decode(),
            )
        )


class Logout(PasswordPage):
    """The page that ends a session. A page of its own, since only a form of this site may do it."""

    def get(self) -> None:
        """The form; whoever is not logged in may log in."""
        user = self._passwords.user(self.request)
        if user is None:
            self.redirect("/login", status=303)
            return
        self.finish(
            self.application.words(
                "Log out",
                f"You are logged in as {user.name} ({user.role}).",
                form="logout",
                xsrf=self.xsrf_token.decode(),
            )
        )

    def post(self) -> None:
        """To the page where one logs in."""
        self._passwords.cookies.end(self)
        self.redirect("/login", status=303)


def own_path(text: str) -> str:
    r"""The path, where it leads to a page of this server, else "/".

    Example:
        >>> own_path("/overview?feature=hdl"), own_path("//example.org"), own_path("/\\example.org")
        ('/overview?feature=hdl', '/', '/')
    """
    try:
        parts = urlsplit(text)
    except ValueError:
        return "/"
    # Browsers take a backslash for a slash, and leave out control characters before they look.
    is_own = text.startswith("/") and not text.startswith("//") and "\\" not in text and text.isprintable()
    return text if is_own and not parts.scheme and not parts.netloc else "/"
