"""A raw client of the Streamable HTTP transport: exact bytes out, exact bytes in.

It knows no MCP beyond the names of headers, checks nothing and repairs nothing, so that a test can send what no SDK
would send and see what no SDK would show.
"""

import io
import json
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Self

import aiohttp
import anyio
import msgspec

from harness.sse import Event, Parser

BOTH = "application/json, text/event-stream"
PATIENCE = 20.0
"""Seconds after which waiting for the peer fails the test."""


def raw_members(body: bytes) -> dict[str, bytes]:
    """The first level of a JSON object, each value as the bytes it was spelled with."""
    return {name: bytes(raw) for name, raw in msgspec.json.decode(body, type=dict[str, msgspec.Raw]).items()}


class Answer:
    """An HTTP answer, as far as it has come."""

    def __init__(self, response: aiohttp.ClientResponse, unread: "set[Answer]") -> None:
        self._response = response
        self._unread = unread
        unread.add(self)
        self._parser = Parser()
        self._events: list[Event] = []
        self._body: bytes | None = None
        self.last_event_id: str | None = None
        """The id of the last event that was read, as an EventSource would keep it."""

    @property
    def status(self) -> int:
        return self._response.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Case-insensitive."""
        return self._response.headers

    @property
    def is_stream(self) -> bool:
        """Whether this is an SSE stream."""
        return self._response.content_type == "text/event-stream"

    async def body(self) -> bytes:
        """All of the body."""
        if self._body is None:
            with anyio.fail_after(PATIENCE):
                self._body = await self._response.read()
            self._unread.discard(self)
        return self._body

    async def json(self) -> Any:
        """The body as JSON."""
        return json.loads(await self.body())

    async def next_event(self, *, timeout: float = PATIENCE) -> Event | None:
        """The next event, priming ones too; None at the end of the stream.

        Raises:
            TimeoutError: nothing came for `timeout` seconds.
            aiohttp.ClientError: the connection was cut.
        """
        with anyio.fail_after(timeout):
            while not self._events:
                chunk = await self._response.content.readany()
                if not chunk:
                    self._unread.discard(self)
                    return None
                self._events += self._parser.feed(chunk)
        event = self._events.pop(0)
        if event.id is not None:
            self.last_event_id = event.id
        return event

    async def events(self) -> AsyncIterator[Event]:
        """Each event until the stream ends."""
        while (event := await self.next_event()) is not None:
            yield event

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Each JSON-RPC message until the stream ends; priming events left out. One where the body is JSON."""
        if not self.is_stream:
            yield await self.json()
            return
        async for event in self.events():
            if event.data:
                yield json.loads(event.data)

    async def raw_response(self) -> bytes:
        """The JSON text of the first message that has a `result` or an `error`.

        Raises:
            AssertionError: the answer ended without one.
        """
        if not self.is_stream:
            return await self.body()
        async for event in self.events():
            if event.data and {"result", "error"} & raw_members(event.data.encode()).keys():
                return event.data.encode()
        raise AssertionError("the stream ended without a response")

    async def response(self) -> dict[str, Any]:
        """The first message that has a `result` or an `error`."""
        message: dict[str, Any] = json.loads(await self.raw_response())
        return message

    def cut(self) -> None:
        """Close the connection without reading on: what a peer sees when a client vanishes."""
        self._unread.discard(self)
        self._response.close()


class Wire:
    """A raw client of one endpoint. Entered, it has connections of its own; sessions are headers that a test sets."""

    def __init__(self, url: str, headers: Mapping[str, str] | None = None) -> None:
        self.url = url
        self.headers: dict[str, str] = dict(headers or {})
        """Sent with every request, over the defaults."""
        self._unread: set[Answer] = set()

    async def __aenter__(self) -> Self:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
            auto_decompress=False,
            skip_auto_headers=("User-Agent", "Accept", "Content-Type", "Accept-Encoding"),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for answer in list(self._unread):
            answer.cut()
        await self._http.close()

    @property
    def session_id(self) -> str | None:
        """The session that requests carry."""
        return self.headers.get("Mcp-Session-Id")

    async def request(
        self,
        method: str,
        body: bytes | None = None,
        headers: Mapping[str, str | None] | None = None,
        *,
        path: str = "",
        timeout: float = PATIENCE,
    ) -> Answer:
        """Send a request; a header that is None is left out. Returns when the head of the answer is there."""
        merged: dict[str, str | None] = {**self.headers, **(headers or {})}
        kept = {name: value for name, value in merged.items() if value is not None}
        # A stream is sent in pieces, so that a large body does not hold up the loop; its size is known all the same.
        data = io.BytesIO(body) if body else body
        with anyio.fail_after(timeout):
            return Answer(await self._http.request(method, self.url + path, data=data, headers=kept), self._unread)

    async def post(
        self,
        body: bytes | Mapping[str, Any],
        headers: Mapping[str, str | None] | None = None,
        *,
        timeout: float = PATIENCE,
    ) -> Answer:
        """POST a message, or any bytes."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        defaults = {"Accept": BOTH, "Content-Type": "application/json"}
        return await self.request("POST", raw, {**defaults, **self.headers, **(headers or {})}, timeout=timeout)

    async def post_in_two(self, body: bytes, head_read: anyio.Event, go_on: anyio.Event) -> Answer:
        """POST the head of a message and, once the endpoint has asked for it and `go_on` is set, its body."""

        async def wait() -> AsyncIterator[bytes]:
            head_read.set()
            await go_on.wait()
            yield body

        headers = {"Accept": BOTH, "Content-Type": "application/json", **self.headers}
        with anyio.fail_after(PATIENCE):
            answer = await self._http.post(self.url, data=wait(), headers=headers, expect100=True)
        return Answer(answer, self._unread)

    async def get(self, last_event_id: str | None = None, headers: Mapping[str, str | None] | None = None) -> Answer:
        """Open the standalone stream, or resume one."""
        resume = {"Last-Event-ID": last_event_id} if last_event_id is not None else {}
        return await self.request("GET", None, {"Accept": "text/event-stream", **resume, **(headers or {})})

    async def delete(self, headers: Mapping[str, str | None] | None = None) -> Answer:
        """End the session, or detach from it."""
        return await self.request("DELETE", None, headers)

    async def open(
        self,
        revision: str = "2025-11-25",
        *,
        capabilities: Mapping[str, Any] | None = None,
        name: str = "wire",
        id: bytes = b'"open"',
    ) -> Answer:
        """Do the handshake, and carry the session from here on; the answer to `initialize`.

        Raises:
            AssertionError: the endpoint refused.
        """
        params = {
            "protocolVersion": revision,
            "capabilities": dict(capabilities or {}),
            "clientInfo": {"name": name, "version": "1"},
        }
        body = b'{"jsonrpc":"2.0","id":%s,"method":"initialize","params":%s}' % (id, json.dumps(params).encode())
        answer = await self.post(body)
        message = await answer.response()
        assert answer.status == 200, (answer.status, message)
        assert "result" in message, message
        if "Mcp-Session-Id" in answer.headers:
            self.headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
        if message["result"]["protocolVersion"] >= "2025-06-18":
            self.headers["MCP-Protocol-Version"] = message["result"]["protocolVersion"]
        accepted = await self.post(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        assert accepted.status == 202, (accepted.status, await accepted.body())
        return answer

    async def call(
        self,
        tool: str,
        arguments: Mapping[str, Any] | None = None,
        *,
        id: bytes = b"1",
        meta: Mapping[str, Any] | None = None,
        headers: Mapping[str, str | None] | None = None,
    ) -> Answer:
        """Call a tool with an id of any spelling; returns when the head of the answer is there."""
        params: dict[str, Any] = {"name": tool, "arguments": dict(arguments or {})}
        if meta is not None:
            params["_meta"] = dict(meta)
        body = b'{"jsonrpc":"2.0","id":%s,"method":"tools/call","params":%s}' % (id, json.dumps(params).encode())
        return await self.post(body, headers)


def text_of(message: Mapping[str, Any]) -> str:
    """The text of a tool's result.

    Raises:
        AssertionError: the message is an error, or a result without text.
    """
    assert "result" in message, message
    return str(message["result"]["content"][0]["text"])
