"""People without a browser: they open pages over Bokeh's protocol, choose, and know when everything is put."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from typing import Any

from tornado.httpclient import AsyncHTTPClient, HTTPRequest
from tornado.websocket import WebSocketClientConnection, websocket_connect

#: Nobody waits longer, in seconds.
PATIENCE = 60.0


class Person:
    """One who has entered, and looks at one page at a time.

    Args:
        entrance: the address that a server prints, with its token.
    """

    def __init__(self, entrance: str) -> None:
        self._entrance = entrance
        self._url = re.match(r"https?://[^/]+", entrance)[0]  # type: ignore[index]
        self._cookie = ""
        self._socket: WebSocketClientConnection | None = None
        self._models: dict[str, str] = {}
        self._acts = 0

    async def open(self, address: str) -> float:
        """Milliseconds from the address until the server has told everything of a page; the page before is closed."""
        begin = time.perf_counter()
        self.close()
        if not self._cookie:
            answer = await AsyncHTTPClient().fetch(self._entrance, follow_redirects=False, raise_error=False)
            self._cookie = "; ".join(one.split(";")[0] for one in answer.headers.get_list("Set-Cookie"))
        headers = {"Cookie": self._cookie, "Accept-Encoding": "gzip"}
        page = await AsyncHTTPClient().fetch(self._url + address, headers=headers)
        token = re.search(r'"token":"([^"]+)"', page.body.decode())[1]  # type: ignore[index]
        path = address.partition("?")[0]
        request = HTTPRequest(
            f"{self._url.replace('http', 'ws', 1)}{path}/ws", headers={"Cookie": self._cookie, "Origin": self._url}
        )
        self._socket = await websocket_connect(
            request, subprotocols=["bokeh", token], max_message_size=2**28, compression_options={}
        )
        await self._message("ACK")
        await self._send("PULL-DOC-REQ", {})
        content = await self._message("PULL-DOC-REPLY")
        roots = {root["attributes"]["name"]: root for root in content["doc"]["roots"] if "attributes" in root}
        self._models = {name: roots[name]["id"] for name in ("told", "said")}
        is_put = _is_ready(roots["told"]["attributes"].get("tags", []))
        opened = {"type": "event", "name": "document_ready", "values": {"type": "map"}}
        await self._send(
            "PATCH-DOC",
            {"events": [{"kind": "MessageSent", "msg_type": "bokeh_event", "msg_data": opened}]},
        )
        if not is_put:
            await self._until_put()
        return 1000 * (time.perf_counter() - begin)

    async def choose(self, name: str, value: str) -> float:
        """Milliseconds from another choice until the server has told everything that follows."""
        begin = time.perf_counter()
        self._acts += 1
        said = {
            "kind": "ModelChanged",
            "model": {"id": self._models["said"]},
            "attr": "tags",
            "new": [[self._acts, "choose", {"name": name, "value": value}]],
        }
        await self._send("PATCH-DOC", {"events": [said]})
        await self._until_put()
        return 1000 * (time.perf_counter() - begin)

    def close(self) -> None:
        """Nothing; the page is closed."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def _until_put(self) -> None:
        async with asyncio.timeout(PATIENCE):
            await self._told_ready()

    async def _told_ready(self) -> None:
        while not any(
            event["kind"] == "ModelChanged" and event["model"]["id"] == self._models["told"] and _is_ready(event["new"])
            for event in (await self._message("PATCH-DOC"))["events"]
        ):
            pass

    async def _send(self, kind: str, content: dict[str, Any]) -> None:
        assert self._socket is not None
        header = {"msgid": uuid.uuid4().hex, "msgtype": kind}
        for part in (header, {}, content):
            await self._socket.write_message(json.dumps(part))

    async def _message(self, kind: str) -> dict[str, Any]:
        """The content of the next message of a kind; others are left unread."""
        received = None
        while received != kind:
            received, content = await self._receive()
        return content

    async def _receive(self) -> tuple[str, dict[str, Any]]:
        """The kind and content of the next message; its buffers are left unread."""
        header = json.loads(await self._frame())
        await self._frame()  # metadata
        content = json.loads(await self._frame())
        for _ in range(header.get("num_buffers", 0)):
            await self._frame()
            await self._frame()
        return header["msgtype"], content

    async def _frame(self) -> str | bytes:
        assert self._socket is not None
        frame = await self._socket.read_message()
        if frame is None:
            raise ConnectionError("the server closed the page's connection")
        return frame


def _is_ready(tags: Any) -> bool:
    return any(isinstance(one, dict) and one.get("status") == "ready" for one in _plain(tags))


def _plain(value: Any) -> Any:
    """A value of Bokeh's JSON as people write it: maps are lists of pairs there."""
    if isinstance(value, dict) and value.get("type") == "map":
        return {_plain(key): _plain(of) for key, of in value.get("entries", [])}
    if isinstance(value, list):
        return [_plain(one) for one in value]
    return value
