"""Who may look, and at what: a real server in a process of its own, asked as a browser would, and as one would not."""

from __future__ import annotations

import asyncio
import gzip
import html
import json
import logging
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection
from http.cookies import SimpleCookie
from io import StringIO
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit
from urllib.request import HTTPCookieProcessor, HTTPSHandler, build_opener

import pytest
from bokeh.util.token import generate_jwt_token, generate_session_id, get_session_id, get_token_payload
from tornado.httpclient import HTTPClientError, HTTPRequest
from tornado.httputil import HTTPHeaders, HTTPServerRequest, RequestStartLine
from tornado.web import create_signed_value
from tornado.websocket import WebSocketClientConnection, WebSocketClosedError, websocket_connect

from conftest import Command, SmallRun, one_sentence
from whenwhy.errors import UserError
from whenwhy.server import Entrance, serve
from whenwhy.server.answers import question
from whenwhy.server.authentication import Anyone, Proxy, derived
from whenwhy.server.gate import GuardedTornado
from whenwhy.server.listening import listen
from whenwhy.server.passwords import WRONG, own_path
from whenwhy.server.published import Published
from whenwhy.server.throttle import LONGEST_WAIT, REMEMBERED, Throttle
from whenwhy.server.users import User, UsersFile, add_user, read_users, remove_user

PASSWORDS = {
    "alice": "correct horse battery",
    "bob": "staple of another kind",
    "carol": "whose name is guessed at",
    "dan": "who will be changed soon",
    "erin": "who will be removed soon",
}
ROLES = {"alice": "viewer", "bob": "analyst", "carol": "viewer", "dan": "analyst", "erin": "viewer"}
SECRET = "0123456789abcdef" * 4


@dataclass
class Served:
    """A server, and the browser's cookies."""

    url: str
    log: Path
    cookies: dict[str, str] = field(default_factory=dict)

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    @property
    def origin(self) -> str:
        return f"http://{self.host}"

    @property
    def port(self) -> int:
        return urlsplit(self.url).port or 80

    @property
    def session_cookie(self) -> str:
        """The name of the cookie that says who asks."""
        return f"whenwhy_session_{self.port}"

    def as_new(self) -> Served:
        """The same server, seen by a browser that has no cookies."""
        return Served(self.url, self.log)

    def ask(
        self, path: str, method: str = "GET", form: dict[str, str] | None = None, **headers: str
    ) -> tuple[int, dict[str, str], str]:
        """Status, headers and text of one answer; cookies are kept, redirects are not followed."""
        connection = HTTPConnection(self.host, timeout=20)
        sent = {"Cookie": "; ".join(f"{name}={value}" for name, value in self.cookies.items())} if self.cookies else {}
        sent |= {"Content-Type": "application/x-www-form-urlencoded"} if form is not None else {}
        sent |= headers
        connection.request(method, path, urlencode(form) if form is not None else None, sent)
        answer = connection.getresponse()
        for line in answer.headers.get_all("Set-Cookie") or []:
            for name, morsel in SimpleCookie(line).items():
                self.cookies[name] = morsel.value
        content = answer.read()
        if answer.headers.get("Content-Encoding") == "gzip":
            content = gzip.decompress(content)
        connection.close()
        return answer.status, dict(answer.headers), content.decode("utf-8", "replace")

    def log_in(self, name: str, password: str | None = None, to: str = "/") -> tuple[int, dict[str, str], str]:
        """The answer to a form that was filled in."""
        _, _, page = self.ask("/login")
        form = {"name": name, "password": password or PASSWORDS[name], "next": to, "_xsrf": xsrf(page)}
        return self.ask("/login", "POST", form)

    def token(self, path: str = "/overview") -> str:
        """The signed token of a page that was opened."""
        status, _, page = self.ask(path)
        assert status == 200, page
        found = re.search(r'"token":"([^"]+)"', page)
        assert found is not None
        return found[1]

    def connect(self, token: str, path: str = "/overview/ws", **headers: str | None) -> int:
        """The status of a websocket's beginning: 101 where Bokeh then says that it is there."""
        return asyncio.run(self._connect(token, path, headers))

    async def _connect(self, token: str, path: str, headers: dict[str, str | None]) -> int:
        try:
            socket = await websocket_connect(self.socket_request(path, headers), subprotocols=["bokeh", token])
        except HTTPClientError as error:
            return error.code
        first = await asyncio.wait_for(socket.read_message(), 20)
        socket.close()
        assert first is not None, "the socket was closed"
        assert json.loads(first)["msgtype"] == "ACK"
        return 101

    def socket_request(self, path: str, headers: dict[str, str | None]) -> HTTPRequest:
        """The beginning of a websocket as this browser makes it; None leaves a header out."""
        cookies = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        sent = {"Origin": self.origin, "Cookie": cookies, **headers}
        return HTTPRequest(f"ws://{self.host}{path}", headers={k: v for k, v in sent.items() if v is not None})


async def opened(browser: Served, token: str) -> WebSocketClientConnection:
    """A page's websocket, once Bokeh has said in the three parts of a message that it is there."""
    socket = await websocket_connect(browser.socket_request("/overview/ws", {}), subprotocols=["bokeh", token])
    for _ in range(3):
        await socket.read_message()
    return socket


def xsrf(page: str) -> str:
    found = re.search(r'name="_xsrf" value="([^"]+)"', page)
    assert found is not None, page
    return html.unescape(found[1])


def words(page: str) -> str:
    return re.sub(r"\s+", " ", re.sub(r"<style>.*</style>|<[^>]+>", " ", html.unescape(page), flags=re.DOTALL)).strip()


@contextmanager
def served(store: Path, log: Path, *options: object) -> Iterator[Served]:
    """A server by its command; it ends cleanly and without a fault in its log."""
    with log.open("w") as errors:
        command = [sys.executable, "-m", "whenwhy", "serve", store, "--port", "0", *options]
        server = subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert server.stdout is not None
            said = re.search(r"is at (\S+) ", server.stdout.readline())
            assert said is not None, log.read_text()
            yield Served(said[1], log)
            server.send_signal(signal.SIGTERM)
            assert server.wait(20) == 0, log.read_text()
        finally:
            if server.poll() is None:
                server.kill()
                server.wait()
    assert "Traceback" not in log.read_text()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("security")


@pytest.fixture(scope="module")
def secret_file(folder: Path) -> Path:
    """A secret that the tests know too, so that they can sign what no server has."""
    file = folder / "secret"
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


@pytest.fixture(scope="module")
def users_file(folder: Path) -> Path:
    file = folder / "users.json"
    for name, password in PASSWORDS.items():
        add_user(file, name, ROLES[name], password)
    return file


@pytest.fixture(scope="module")
def questions(folder: Path) -> Path:
    """The access log of the server with passwords."""
    return folder / "questions.jsonl"


@pytest.fixture(scope="module")
def with_passwords(
    small_run: SmallRun, folder: Path, users_file: Path, secret_file: Path, questions: Path
) -> Iterator[Served]:
    """A server at which people log in."""
    options = ("--users", users_file, "--secret-file", secret_file, "--access-log", questions)
    with served(small_run.store, folder / "passwords.log", *options) as server:
        yield server


@pytest.fixture(scope="module")
def alice(with_passwords: Served) -> Served:
    """A viewer who has logged in."""
    browser = with_passwords.as_new()
    assert browser.log_in("alice")[0] == 303
    return browser


@pytest.fixture(scope="module")
def bob(with_passwords: Served) -> Served:
    """An analyst who has logged in."""
    browser = with_passwords.as_new()
    assert browser.log_in("bob")[0] == 303
    return browser


@pytest.fixture(scope="module")
def by_link(small_run: SmallRun, folder: Path, secret_file: Path) -> Iterator[Served]:
    """A server that prints an address with a token."""
    with served(small_run.store, folder / "link.log", "--role", "analyst", "--secret-file", secret_file) as server:
        yield server


# -- nobody is asked ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("entrance", "address", "said"),
    [
        (Entrance(), "0.0.0.0", "nobody asks who they are"),
        (Entrance(users=Path("users.json")), "192.0.2.1", "Passwords would travel to '192.0.2.1' unencrypted"),
        (Entrance(role="viewer"), "192.0.2.1", "Tokens would travel"),
        (Entrance(role="viewer", users=Path("users.json")), "127.0.0.1", "--role and --users are different ways"),
        (Entrance(role="viewer", allow_anyone=True), "127.0.0.1", "--role and --allow-anyone are different ways"),
        (Entrance(proxy_header="X-User"), "127.0.0.1", "add --users FILE"),
        (Entrance(users=Path("u"), proxy_header="X-User", proxy_address="proxy"), "127.0.0.1", "no address of a proxy"),
        (Entrance(tls_key=Path("key.pem")), "127.0.0.1", "give both"),
    ],
)
def test_what_is_not_safe_is_refused(entrance: Entrance, address: str, said: str) -> None:
    """In one sentence, before a store is looked at."""
    with pytest.raises(UserError, match=re.escape(said)):
        serve(Path("no such store"), port=0, address=address, entrance=entrance, on_ready=print)


@pytest.mark.parametrize(
    "entrance",
    [
        Entrance(allow_anyone=True),
        Entrance(users=Path("users.json"), allow_plain_http=True),
        Entrance(users=Path("users.json"), proxy_header="X-User"),
        Entrance(users=Path("users.json"), tls_certificate=Path("c.pem"), tls_key=Path("k.pem")),
    ],
)
def test_what_is_safe_or_was_asked_for_is_not(entrance: Entrance) -> None:
    """Other machines may then come."""
    entrance.check("192.0.2.1")


@pytest.mark.parametrize("origin", ["*", "http://example.org", "example.org/path", "*.example.org", "a b", "", "a:b"])
def test_an_origin_is_one_host(origin: str) -> None:
    """No pattern, no scheme, no path."""
    with pytest.raises(UserError, match="is no single origin"):
        listen("127.0.0.1", 0, origins=[origin])


def test_all_addresses_need_a_name() -> None:
    """By which browsers come, since the address says none."""
    with pytest.raises(UserError, match="add --origin"):
        listen("0.0.0.0", 0)


def test_a_viewers_server_answers_its_own_names_alone(small_run: SmallRun, tmp_path: Path) -> None:
    """Nobody is asked; but a name that somebody points at this machine reads nothing, nor does another origin."""
    options = ("--origin", "tunnel.example.org:8080")
    with served(small_run.store, tmp_path / "log", *options) as server:
        token = server.token()
        assert get_token_payload(token)["user"] == {"name": "anyone", "role": "viewer"}
        assert server.connect(token) == 101
        # The name as Host, and as origin of the socket.
        assert server.ask("/overview", Host="tunnel.example.org:8080")[0] == 200
        assert server.connect(token, Origin="http://tunnel.example.org:8080") == 101
        for host in ("example.org", "tunnel.example.org", f"example.org:{server.port}", ""):
            status, _, page = server.ask("/overview", Host=host)
            assert status == 403
            assert "--origin HOST[:PORT]" in page
        refused = [
            "http://example.org",
            f"https://{server.host}",
            server.origin + ".example.org",
            f"http://127.0.0.1:{server.port + 1}",
            "null",
            "",
            None,
        ]
        for origin in refused:
            assert server.connect(token, Origin=origin) == 403, origin
        # A browser's own word that it is the same origin does not count more than the origin.
        assert server.connect(token, Origin="http://example.org", **{"Sec-Fetch-Site": "same-origin"}) == 403


# -- a link with a token ------------------------------------------------------------------------------


def test_a_link_lets_in_whoever_has_opened_it(by_link: Served, small_run: SmallRun) -> None:
    """And nobody else on this machine; the token leaves the address line at once."""
    browser = by_link.as_new()
    status, headers, page = browser.ask("/overview")
    assert (status, headers["Cache-Control"]) == (403, "no-store")
    assert "opens by the address with a token" in words(page)
    token = parse_qs(urlsplit(by_link.url).query)["token"][0]
    assert len(token) >= 40
    for wrong in (token[:-1], token + "x", "", "é"):
        assert browser.ask("/enter?" + urlencode({"token": wrong}))[0] == 403
        assert browser.cookies == {}
    status, headers, _ = browser.ask(f"/enter?token={token}")
    assert (status, headers["Location"], headers["Referrer-Policy"]) == (303, "/", "no-referrer")
    cookie = SimpleCookie(headers["Set-Cookie"])[by_link.session_cookie]
    assert cookie["httponly"]
    assert (cookie["samesite"], cookie["path"], cookie["max-age"]) == ("Strict", "/", str(12 * 3600))
    assert not cookie["secure"], "a browser would not bring it back by http"
    page_token = browser.token()
    assert get_token_payload(page_token)["user"]["role"] == "analyst"
    assert browser.connect(page_token) == 101
    assert token not in by_link.log.read_text()
    # The page's own token is nothing without the cookie.
    assert by_link.as_new().connect(page_token) == 403


def test_a_store_without_rows_has_no_analysts(small_run: SmallRun, tmp_path: Path, whenwhy: Command) -> None:
    """In one sentence, before any port is taken."""
    shared = shutil.copytree(small_run.store, tmp_path / "shared", ignore=shutil.ignore_patterns("rows.duckdb"))
    said = one_sentence(whenwhy("serve", shared, "--role", "analyst", "--port", "0"))
    assert "has no rows.duckdb, so nobody can be an analyst of it" in said
    assert "There is no role 'admin'" in one_sentence(whenwhy("serve", shared, "--role", "admin"))


# -- cookies and tokens that no server made -----------------------------------------------------------


def signed(server: Served, told: dict[str, str], secret: bytes = SECRET.encode(), age: float = 0, **how: Any) -> str:
    """A cookie as the server would sign it."""
    key = derived(secret, "cookies")
    name = how.pop("name", server.session_cookie)
    return create_signed_value(key, name, json.dumps(told), clock=lambda: time.time() - age, **how).decode()


def test_only_cookies_of_this_server_count(by_link: Served) -> None:
    """Neither forged, nor expired, nor of another purpose, name or signature of old."""
    told = {"by": "link", "id": "1"}

    def status(cookie: str) -> int:
        return Served(by_link.url, by_link.log, {by_link.session_cookie: cookie}).ask("/overview")[0]

    right = signed(by_link, told)
    assert status(right) == 200
    assert status(signed(by_link, told, age=12 * 3600 - 60)) == 200
    wrong = {
        "expired": signed(by_link, told, age=12 * 3600 + 60),
        "another secret": signed(by_link, told, b"another"),
        "another name": signed(by_link, told, name="whenwhy_session_1"),
        "SHA-1": signed(by_link, told, version=1),
        "another way in": signed(by_link, {"by": "password", "name": "bob", "mark": "", "id": "1"}),
        "no signature": right.rpartition("|")[0] + "|",
        "changed": right[:-1] + ("0" if right[-1] != "0" else "1"),
        "changed content": right.replace(right.split("|")[4], "4:e30="),
        "words": "analyst",
        "nothing": "",
    }
    assert {name: status(cookie) for name, cookie in wrong.items()} == dict.fromkeys(wrong, 403)


def test_a_role_of_ones_own_does_not_count(alice: Served, users_file: Path) -> None:
    """A cookie that says a role is nothing more: the file says it."""
    told = {"by": "password", "name": "alice", "mark": UsersFile(users_file).mark("alice") or "", "id": "1"}
    browser = Served(alice.url, alice.log, {alice.session_cookie: signed(alice, told | {"role": "analyst"})})
    assert get_token_payload(browser.token("/overview?role=analyst&user=bob"))["user"] == {
        "name": "alice",
        "role": "viewer",
    }
    for changed in ({"mark": "0" * 16}, {"name": "bob"}, {"name": "nobody"}):
        browser.cookies[alice.session_cookie] = signed(alice, told | changed)
        assert browser.ask("/overview")[0] == 303, changed


def forged(user: dict[str, str] | None, key: bytes, session_id: str | None = None, seconds: int = 600) -> str:
    """A page's token, signed by whoever has the key."""
    session_id = session_id or generate_session_id(key, signed=True)
    payload: dict[str, Any] = {"headers": {}, "cookies": {}, "arguments": {}} | ({"user": user} if user else {})
    return generate_jwt_token(session_id, key, signed=True, extra_payload=payload, expiration=seconds)  # type: ignore[arg-type]


def test_a_socket_takes_its_users_own_token_alone(alice: Served, bob: Served) -> None:
    """Signed by this server, for this user in this role; a viewer does not join an analyst's session."""
    own, key = alice.token(), derived(SECRET.encode(), "tokens")
    alone = {"name": "alice", "role": "viewer"}
    assert alice.connect(own) == 101
    assert alice.connect(forged(alone, key)) == 101, "so is the forging right, but for what is wrong below"
    content, _, signature = own.partition(".")
    wrong = {
        "an analyst's": bob.token(),
        "another key": forged(alone, b"another key"),
        "another role": forged({"name": "alice", "role": "analyst"}, key),
        "another name": forged({"name": "bob", "role": "viewer"}, key),
        "nobody's": forged(None, key),
        "unsigned": content,
        "changed": content[:-4] + "AAAA." + signature,
        "another's signature": content + "." + bob.token().partition(".")[2],
        "words": "bokeh",
        "bytes": "%00.%00",
    }
    assert {name: alice.connect(token) for name, token in wrong.items()} == dict.fromkeys(wrong, 403)
    assert alice.as_new().connect(own) == 403, "a token without its cookie"
    assert bob.connect(own) == 403
    assert alice.connect(own, "/nowhere/ws") == alice.connect(own, "/overview/ws/x") == 404


def test_nobody_chooses_the_session_of_a_page(alice: Served, bob: Served) -> None:
    """Else a viewer could send an analyst an address, and then read along in that session by a token of the viewer's own."""
    token = alice.token()
    session = get_session_id(token)
    for path in (f"/overview?bokeh-session-id={session}", f"/overview?bokeh-token={token}"):
        for browser in (alice, bob):
            assert browser.ask(path)[0] == 403
    assert bob.ask("/overview", **{"Bokeh-Session-Id": session})[0] == 403


# -- what is there, and what it says to browsers ------------------------------------------------------


def test_nothing_is_open_but_the_way_in(with_passwords: Served, alice: Served) -> None:
    """Pages lead to the login, all else is refused; what no page uses is not there for anybody."""
    nobody = with_passwords.as_new()
    for page in ("/", "/overview", "/overview?feature=lab"):
        status, headers, _ = nobody.ask(page)
        assert (status, headers["Location"]) == (303, "/login?" + urlencode({"next": page}))
        elsewhere = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
        status, headers, text = nobody.ask(page, **elsewhere)
        assert (status, headers["Refresh"]) == (200, f"0; url={page}"), "asked again from here, with the cookie"
        assert "token" not in text
    closed = ["/overview/metadata", "/overview/autoload.js?bokeh-autoload-element=1", "/static/js/bokeh.min.js", "/x"]
    for path in (*closed, "/overview/ws", "/overview/static/js/bokeh.min.js", "/static/extensions/x/y"):
        assert nobody.ask(path)[0] == 403, path
    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"):
        assert nobody.ask("/overview", method)[0] in (403, 405), method
    for path in closed[:2]:
        for method in ("GET", "OPTIONS"):
            status, headers, _ = alice.ask(path, method, Origin="http://example.org")
            assert status == 404
            assert "Access-Control-Allow-Origin" not in headers
    assert nobody.ask("/login")[0] == 200
    assert alice.ask("/static/js/bokeh.min.js")[0] == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../../../../../../../../etc/passwd",
        "/static/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2fserver/tornado.py",
        "/static//etc/passwd",
        "/static/js/..%5c..%5ctornado.py",
        "/overview/static/../../../server/tornado.py",
        "/static/extensions/../../../../etc/passwd",
        "/static/%00",
    ],
)
def test_static_files_are_bokehs_alone(alice: Served, path: str) -> None:
    """No way leads out of their folder."""
    status, _, text = alice.ask(path)
    assert status in (400, 403, 404)
    assert "root:" not in text
    assert "import" not in text


def test_answers_say_what_browsers_may_do(alice: Served, with_passwords: Served) -> None:
    """Pages are kept nowhere and framed nowhere; scripts are compressed, and kept for years by their version."""
    status, headers, page = alice.ask("/overview", **{"Accept-Encoding": "gzip"})
    assert status == 200
    for policy in ("default-src 'none'", "frame-ancestors 'none'", "base-uri 'none'", "form-action 'self'"):
        assert policy in headers["Content-Security-Policy"]
    assert "http" not in headers["Content-Security-Policy"]
    expected = {
        "Cache-Control": "no-store",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Content-Encoding": "gzip",
    }
    assert {name: headers.get(name) for name in expected} == expected
    assert "Server" not in headers
    assert "Content-Security-Policy" not in page
    script = re.search(r"/static/js/bokeh.min.js\?v=\w+", page)
    assert script is not None
    _, of_script, _ = alice.ask(script[0], **{"Accept-Encoding": "gzip"})
    assert int(of_script["Cache-Control"].removeprefix("max-age=")) > 30 * 86400
    assert of_script["Content-Encoding"] == "gzip"
    for refused in (with_passwords.as_new().ask("/static/x"), alice.ask("/nowhere")):
        assert refused[1]["Cache-Control"] == "no-store"
        assert "frame-ancestors 'none'" in refused[1]["Content-Security-Policy"]


# -- names and passwords ------------------------------------------------------------------------------


def test_a_form_of_another_site_does_nothing(with_passwords: Served, alice: Served) -> None:
    """Neither logs in nor out: the form's own secret is missing, wrong, or without its cookie."""
    browser = with_passwords.as_new()
    _, _, page = browser.ask("/login")
    form = {"name": "alice", "password": PASSWORDS["alice"]}
    other = with_passwords.as_new()
    _, _, others_page = other.ask("/login")
    for token in (None, "", "x", xsrf(others_page)):
        status, _, said = browser.ask("/login", "POST", form | ({"_xsrf": token} if token is not None else {}))
        assert status == 403, token
        assert "sent from elsewhere" in said
    assert with_passwords.as_new().ask("/login", "POST", form | {"_xsrf": xsrf(page)})[0] == 403
    assert alice.ask("/logout", "POST", {})[0] == 403
    assert alice.ask("/overview")[0] == 200, "still logged in"
    for proto, secure in (("http", False), ("https", True)):
        right = form | {"_xsrf": xsrf(page)}
        status, headers, _ = browser.ask("/login", "POST", right, **{"X-Forwarded-Proto": proto})
        assert (status, "Secure" in headers["Set-Cookie"]) == (303, secure), "behind a proxy that says https"


def test_a_failed_login_does_not_tell_who_is_there(with_passwords: Served) -> None:
    """The same words for a wrong password and for an unknown name, and nearly the same time; the log has no password."""
    seconds, said = {}, {}
    for name in ("alice", "nobody <b>"):
        browser = with_passwords.as_new()
        began = time.perf_counter()
        status, _, page = browser.log_in(name, "a password that is wrong")
        seconds[name] = time.perf_counter() - began
        assert status == 403
        assert browser.session_cookie not in browser.cookies
        said[name] = words(re.sub(r'value="[^"]*"|autofocus', "", page))
        assert "nobody <b>" not in page, "names are shown as text"
    assert said["alice"] == said["nobody <b>"]
    assert WRONG in said["alice"]
    assert 0.1 < seconds["alice"] / seconds["nobody <b>"] < 10, "a hash takes fifty times as long as none"
    log = with_passwords.log.read_text()
    assert "A login failed from 127.0.0.1" in log
    assert "wrong" not in log.replace("password is wrong", "")


@pytest.mark.parametrize(
    ("asked", "led_to"),
    [
        ("/overview?feature=lab&stratum=sex%3DF", "/overview?feature=lab&stratum=sex%3DF"),
        ("https://example.org/", "/"),
        ("//example.org", "/"),
        ("/\\example.org", "/"),
        ("\\\\example.org", "/"),
        ("/\t/example.org", "/"),
        ("/\n/example.org", "/"),
        ("javascript:alert(1)", "/"),
        ("overview", "/"),
        ("///example.org", "/"),
        ("http://[", "/"),
        ("", "/"),
    ],
)
def test_a_login_leads_to_this_server_alone(asked: str, led_to: str) -> None:
    """Whatever the address asked for."""
    assert own_path(asked) == led_to


def test_a_login_leads_to_the_page_that_was_asked_for(with_passwords: Served) -> None:
    """By way of the form, which keeps it; a logout ends every copy of the cookie."""
    browser = with_passwords.as_new()
    _, headers, _ = browser.ask("/overview?feature=lab")
    _, _, page = browser.ask(headers["Location"])
    assert 'name="next" value="/overview?feature=lab"' in html.unescape(page)
    assert browser.log_in("alice", to="//example.org")[1]["Location"] == "/"
    assert browser.log_in("alice", to="/overview?feature=lab")[1]["Location"] == "/overview?feature=lab"
    token, copied = browser.token(), dict(browser.cookies)
    status, _, page = browser.ask("/logout")
    assert "You are logged in as alice (viewer)." in words(page)
    status, headers, _ = browser.ask("/logout", "POST", {"_xsrf": xsrf(page)})
    assert (status, headers["Location"]) == (303, "/login")
    for cookies in (browser.cookies, copied):
        ended = Served(browser.url, browser.log, dict(cookies))
        assert ended.ask("/overview")[0] == 303
        assert ended.connect(token) == 403
    assert browser.ask("/logout")[0] == 303


def test_guesses_are_slowed() -> None:
    """By name and by address, twice as long each time, never for long, and in bounded memory."""
    now = 0.0
    throttle = Throttle(lambda: now)
    waits = []
    for _ in range(12):
        wait = throttle.attempt("alice", "192.0.2.1")
        if wait:
            waits.append(wait)
            now += wait
            assert throttle.attempt("alice", "192.0.2.1") == 0, "whoever waits is heard"
    assert waits == [1, 2, 4, 8, 16, 32, 60]
    assert throttle.attempt("alice", "192.0.2.99") == LONGEST_WAIT, "from wherever"
    assert throttle.attempt("bob", "192.0.2.99") == 0
    now += 3600
    assert throttle.attempt("alice", "192.0.2.1") == 0, "forgotten"
    # Of one address, whatever the names.
    assert [throttle.attempt(f"name {i}", "192.0.2.7") for i in range(21)] == [0] * 20 + [1]
    for i in range(REMEMBERED):
        throttle.attempt(f"name {i}", f"address {i}")
    assert len(throttle) == REMEMBERED


def test_a_login_that_was_tried_too_often_waits(with_passwords: Served) -> None:
    """Also with the right password; another name is heard."""
    browser = with_passwords.as_new()
    for _ in range(5):
        assert browser.log_in("carol", "a password that is wrong")[0] == 403
    status, headers, page = browser.log_in("carol")
    assert status == 429
    assert 1 <= int(headers["Retry-After"]) <= 2
    assert "too many failed attempts: try again in" in words(page)
    assert browser.log_in("alice")[0] == 303


# -- users come and go --------------------------------------------------------------------------------


def test_a_user_who_is_removed_or_changed_is_so_at_once(with_passwords: Served, users_file: Path) -> None:
    """At the next request and at the next message of an open page; so is one whose password or role has changed."""
    users, erin, dan = users_file, with_passwords.as_new(), with_passwords.as_new()
    assert erin.log_in("erin")[0] == dan.log_in("dan")[0] == 303
    token = dan.token()

    async def message_after(change: Any) -> str | bytes | None:
        """What an open page hears in answer to its next message."""
        socket = await opened(dan, token)
        change()
        with suppress(WebSocketClosedError):
            for part in ({"msgid": "1", "msgtype": "SERVER-INFO-REQ"}, {}, {}):
                await socket.write_message(json.dumps(part))
        while (heard := await asyncio.wait_for(socket.read_message(), 20)) is not None:
            if "SERVER-INFO-REPLY" in str(heard):
                break
        return heard

    assert asyncio.run(message_after(lambda: None)) is not None
    assert asyncio.run(message_after(lambda: add_user(users, "dan", "viewer", PASSWORDS["dan"]))) is None
    assert dan.ask("/overview")[0] == 303, "another hash, even of the same password, ends sessions"
    assert dan.log_in("dan")[0] == 303
    assert dan.connect(token) == 403, "a token of the earlier role"
    assert get_token_payload(dan.token())["user"]["role"] == "viewer"
    assert erin.ask("/overview")[0] == 200
    remove_user(users, "erin")
    assert erin.ask("/overview")[0] == 303
    assert erin.log_in("erin")[0] == 403
    # A file that cannot be trusted lets nobody in.
    whole = users.read_text()
    users.chmod(0o640)
    assert dan.ask("/overview")[0] == 303
    users.chmod(0o600)
    assert dan.ask("/overview")[0] == 200
    users.write_text("{")
    assert dan.ask("/overview")[0] == 303
    users.write_text(whole)
    assert (erin.ask("/overview")[0], dan.ask("/overview")[0]) == (303, 200)
    log = with_passwords.log.read_text()
    assert "Others may read or change" in log
    assert "is no JSON" in log


@pytest.mark.parametrize(
    ("content", "mode", "said"),
    [
        (None, 0o600, "There is no"),
        ("{", 0o600, "is no JSON"),
        ("[]", 0o600, "is no file of users"),
        ('{"a": {"role": "admin"}}', 0o600, "The user 'a'"),
        ('{"a": {"role": ["viewer"]}}', 0o600, "The user 'a'"),
        ('{"a": {"role": "viewer", "password": 1}}', 0o600, "The user 'a'"),
        ('{"a": "viewer"}', 0o600, "The user 'a'"),
        ("{}", 0o644, "Others may read or change"),
        ("{}", 0o620, "Others may read or change"),
    ],
)
def test_a_file_of_users_that_cannot_be_trusted_is_refused(
    small_run: SmallRun, tmp_path: Path, whenwhy: Command, content: str | None, mode: int, said: str
) -> None:
    """In one sentence."""
    file = tmp_path / "users.json"
    if content is not None:
        file.write_text(content)
        file.chmod(mode)
    assert said in one_sentence(whenwhy("serve", small_run.store, "--port", "0", "--users", file))


def test_users_are_added_listed_and_removed(tmp_path: Path, whenwhy: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """By commands; the file holds no password, and is for its owner alone whatever the umask."""
    file = tmp_path / "users.json"

    def add(name: str, password: str, *more: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", StringIO(password + "\n"))
        return whenwhy("users", "add", file, name, *more)

    before = os.umask(0)
    try:
        assert add("alice", PASSWORDS["alice"], "--role", "viewer", "--password-stdin")[0] == 0
    finally:
        os.umask(before)
    assert file.stat().st_mode & 0o777 == 0o600
    assert PASSWORDS["alice"] not in file.read_text()
    assert "$argon2id$" in file.read_text()
    assert whenwhy("users", "add", file, "carol", "--role", "analyst", "--without-password")[0] == 0
    assert whenwhy("users", "list", file)[1] == "alice: viewer\ncarol: analyst, without a password\n"
    users = UsersFile(file)
    assert users.with_password("alice", PASSWORDS["alice"]) == User("alice", "viewer")
    for name, password in (("alice", ""), ("alice", PASSWORDS["bob"]), ("carol", ""), ("nobody", PASSWORDS["alice"])):
        assert users.with_password(name, password) is None
    assert "12 to 1024 characters" in one_sentence(add("dan", "short", "--role", "viewer", "--password-stdin"))
    assert "no terminal" in one_sentence(add("dan", "", "--role", "viewer"))
    assert "There is no role 'admin'" in one_sentence(add("dan", "", "--role", "admin", "--without-password"))
    assert "is no name" in one_sentence(add("a\nb", "", "--role", "viewer", "--without-password"))
    assert "There is no user 'alise'" in one_sentence(whenwhy("users", "remove", file, "alise"))
    assert whenwhy("users", "remove", file, "alice")[0] == 0
    assert set(read_users(file)) == {"carol"}
    assert users.user("alice") is None, "a server that has it open sees it"
    assert list(tmp_path.iterdir()) == [file]


def test_a_password_is_asked_for_twice_without_echo(tmp_path: Path) -> None:
    """On the terminal; two that differ are refused."""
    file = tmp_path / "users.json"
    on_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    add = [sys.executable, "-m", "whenwhy", "users", "add", str(file), "alice", "--role", "viewer"]
    for again, status in ((PASSWORDS["bob"], 2), (PASSWORDS["alice"], 0)):
        with subprocess.Popen(
            [sys.executable, "-c", on_terminal, *add], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        ) as asked:
            assert asked.stdin is not None
            assert asked.stdout is not None
            shown = b""
            for prompt, password in ((b"Password: ", PASSWORDS["alice"]), (b"again: ", again)):
                while not shown.endswith(prompt):
                    shown += asked.stdout.read(1) or pytest.fail(shown.decode())
                asked.stdin.write(password.encode() + b"\n")
            shown += asked.stdout.read()
        assert asked.returncode == status, shown
        assert not any(password.encode() in shown for password in PASSWORDS.values())
        assert file.exists() == (status == 0)


# -- a proxy that has asked ---------------------------------------------------------------------------


def asked_by(address: str, *names: str) -> HTTPServerRequest:
    """A request from an address, with so many headers."""
    headers = HTTPHeaders({"Host": "localhost"})
    for name in names:
        headers.add("X-Forwarded-User", name)
    request = HTTPServerRequest(start_line=RequestStartLine("GET", "/", "HTTP/1.1"), headers=headers)
    request.remote_ip = address
    return request


def test_a_header_counts_from_the_proxy_alone(users_file: Path) -> None:
    """Once, and for a name of the file."""
    proxy = Proxy("X-Forwarded-User", "192.0.2.9", UsersFile(users_file))
    assert proxy.user(asked_by("192.0.2.9", "bob")) == User("bob", "analyst")
    for request in (
        asked_by("192.0.2.8", "bob"),
        asked_by("127.0.0.1", "bob"),
        asked_by("192.0.2.9"),
        asked_by("192.0.2.9", "nobody"),
        asked_by("192.0.2.9", "bob", "bob"),
        asked_by("192.0.2.9", "alice", "bob"),
        asked_by("192.0.2.9", "bob,alice"),
    ):
        assert proxy.user(request) is None


def test_only_the_proxy_says_how_a_browser_came() -> None:
    """Its scheme and address, of which the proxy has seen the last; others say it for nothing."""
    server = GuardedTornado({}, Anyone(), frozenset({"whenwhy.example.org"}), "192.0.2.9", use_index=False)
    for address, told in (("192.0.2.9", ("https", "203.0.113.5")), ("192.0.2.8", ("http", "192.0.2.8"))):
        request = asked_by(address)
        request.headers["X-Forwarded-Proto"] = "https"
        request.headers["X-Forwarded-For"] = "198.51.100.1, 203.0.113.5"
        assert (server.scheme(request), server.peer(request)) == told
        assert server.origins(request) == {f"{told[0]}://whenwhy.example.org"}


def test_a_proxy_names_the_user(small_run: SmallRun, users_file: Path, tmp_path: Path) -> None:
    """Its names are those of the file; what others put into the header is nothing, nor do they say who they are else."""
    options = ("--users", users_file, "--proxy-header", "X-Forwarded-User", "--origin", "whenwhy.example.org")
    with served(small_run.store, tmp_path / "log", *options) as server:
        by_proxy = {"X-Forwarded-User": "alice", "X-Forwarded-Proto": "https", "Host": "whenwhy.example.org"}
        status, _, page = server.ask("/overview", **by_proxy)
        found = re.search(r'"token":"([^"]+)"', page)
        assert (status, found is not None) == (200, True)
        token = found[1] if found else ""
        assert get_token_payload(token)["user"] == {"name": "alice", "role": "viewer"}
        assert server.connect(token, Origin="https://whenwhy.example.org", **by_proxy) == 101
        assert server.connect(token, Origin="http://whenwhy.example.org", **by_proxy) == 403
        assert (
            server.connect(token, Origin="https://whenwhy.example.org", **by_proxy | {"X-Forwarded-User": "bob"}) == 403
        )
        for headers in ({}, {"X-Forwarded-User": "nobody"}, {"X_Forwarded_User": "alice"}):
            assert server.ask("/overview", **headers)[0] == 403
        assert server.ask("/login", **by_proxy)[0] == 404


# -- what they see, and what is written down ----------------------------------------------------------


def test_a_role_reads_its_own_file_and_every_question_says_who(alice: Served, bob: Served, questions: Path) -> None:
    """A viewer's questions go to the shareable file, an analyst's to rows; also what was answered before is written."""
    seen = {}
    for browser, name in ((alice, "alice"), (bob, "bob"), (alice, "alice")):
        before = len(questions.read_text().splitlines())
        asyncio.run(looked(browser, browser.token()))
        lines = [json.loads(line) for line in questions.read_text().splitlines()[before:]]
        asked = [line for line in lines if "page" in line]
        assert {(line["user"], line["role"], line["page"]) for line in asked} == {(name, ROLES[name], "overview")}
        assert all(line["rows"] >= 0 and len(line["version"]) > 8 for line in asked)
        told = sorted(json.dumps([line["query"], line["arguments"]], sort_keys=True) for line in asked)
        assert told
        assert seen.setdefault(name, told) == told, "the second time as well, out of what is remembered"


async def looked(browser: Served, token: str) -> None:
    """Nothing; a page has been opened and has heard its answers."""
    socket = await opened(browser, token)
    for part in ({"msgid": "1", "msgtype": "PULL-DOC-REQ"}, {}, {}):
        await socket.write_message(json.dumps(part))
    while "ready" not in str(await asyncio.wait_for(socket.read_message(), 20)):
        pass
    socket.close()


def test_a_viewer_has_no_rows(small_run: SmallRun) -> None:
    """The version of a role is its file: a cohort by rows is refused to a viewer."""
    published = Published(small_run.store, ThreadPoolExecutor(1))
    viewer, analyst = (published.begin(User("x", role), "overview") for role in ("viewer", "analyst"))  # type: ignore[arg-type]
    with pytest.raises(UserError, match="this role does not see"):
        viewer.answers.now(question("top_features", cohort="true"))
    assert analyst.answers.now(question("top_features", cohort="true")).num_rows > 0
    with pytest.raises(UserError):
        viewer.store.sql("select * from predictions")
    assert viewer.store is not analyst.store


# -- secrets and certificates -------------------------------------------------------------------------


def test_sessions_survive_a_restart_by_a_secret_file(
    small_run: SmallRun, users_file: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The file is made for its owner alone; without it, or with another, they end."""
    secret = tmp_path / "secret"
    first = Entrance(users=users_file, secret_file=secret).secret()
    assert secret.stat().st_mode & 0o777 == 0o600
    assert len(first) >= 32
    assert Entrance(secret_file=secret).secret() == first
    assert Entrance().secret() != Entrance().secret()
    secret.chmod(0o644)
    with pytest.raises(UserError, match="Others may read"):
        Entrance(secret_file=secret).secret()
    secret.chmod(0o600)
    secret.write_text("short")
    with pytest.raises(UserError, match="shorter than 32 bytes"):
        Entrance(secret_file=secret).secret()
    with pytest.raises(UserError, match="cannot be read or made"):
        Entrance(secret_file=tmp_path / "no" / "secret").secret()
    assert not caplog.records


@pytest.fixture(scope="module")
def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of this machine that signed itself, and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("There is no openssl to make a certificate.")
    made = folder / "certificate.pem", folder / "key.pem"
    subprocess.run(
        [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-out", str(made[0]), "-keyout", str(made[1])],
        check=True, capture_output=True,
    )  # fmt: skip
    return made


def test_pages_come_by_https(
    small_run: SmallRun, users_file: Path, certificate: tuple[Path, Path], tmp_path: Path
) -> None:
    """Then cookies are for https alone, and so is the origin."""
    cert, key = certificate
    options = ("--users", users_file, "--tls-certificate", cert, "--tls-key", key)
    with served(small_run.store, tmp_path / "log", *options) as server:
        assert server.url.startswith("https://127.0.0.1:")
        context = ssl.create_default_context(cafile=str(cert))
        context.check_hostname = False
        opener = build_opener(HTTPSHandler(context=context), HTTPCookieProcessor())
        page = opener.open(server.url + "login", timeout=20).read().decode()
        form = {"name": "alice", "password": PASSWORDS["alice"], "_xsrf": xsrf(page)}
        answer = opener.open(server.url + "login", urlencode(form).encode(), timeout=20)
        assert urlsplit(answer.url).path == "/overview"
        jar = next(one.cookiejar for one in opener.handlers if isinstance(one, HTTPCookieProcessor))
        assert {cookie.name.rpartition("_")[0]: cookie.secure for cookie in jar} == {
            "whenwhy_form": True,
            "whenwhy_session": True,
        }
    with pytest.raises(UserError, match="are no certificate and its key"):
        Entrance(tls_certificate=cert, tls_key=cert).tls()


def test_the_logger_is_quiet_about_passwords(users_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever goes wrong with a hash."""
    caplog.set_level(logging.DEBUG)
    damaged = users_file.with_name("damaged.json")
    damaged.write_text(json.dumps({"alice": {"role": "viewer", "password": "no hash"}}))
    damaged.chmod(0o600)
    assert UsersFile(damaged).with_password("alice", PASSWORDS["alice"]) is None
    assert PASSWORDS["alice"] not in caplog.text
