"""What carries the calls of a load over HTTP: kept connections, one call at a time on each; and streams of events.

A slot has room for one call. It is called without an await, and tells by a plain call what came of it, so that the load
costs its core less than the gateway costs its own. Every answer is looked at: it must be the call's own.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

REVISION: Final = "2025-06-18"
"""Answers stay plain JSON however long they take: all variants are read in the same way."""

MODERN: Final = "2026-07-28"
"""Without sessions: every request says for itself what others agree on before."""

MODERN_HEADERS: Final = (f"MCP-Protocol-Version: {MODERN}", "Mcp-Method: tools/call")
MODERN_META: Final = (
    b'"_meta":{"io.modelcontextprotocol/protocolVersion":"%b","io.modelcontextprotocol/clientCapabilities":{}},'
    % MODERN.encode()
)

INITIALIZE: Final = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"%b","capabilities":{},'
    b'"clientInfo":{"name":"bench","version":"1"}}}' % REVISION.encode()
)
INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
CALL: Final = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}'
FIRST_NUMBER: Final = 100_000_000
"""Numbers of calls are ids as well, and all of them equally long."""

OPEN_SECONDS: Final = 30.0
ID: Final = re.compile(rb'"id"\s*:\s*(\d+)')


@dataclass(frozen=True)
class Target:
    """Where calls go."""

    port: int
    path: str
    transport: str = "http"
    """http, modern (the same without sessions), sse or ws."""
    token: str = ""
    """Whose calls they are."""
    key: str = ""
    """The key of a workflow, for clients that come anew with each call."""
    tool: str = "echo"
    own_ids: bool = False
    """Each call has an id of its own, for those who lose calls that share one; else all over HTTP have the same."""

    def head(self, method: str = "POST", path: str = "") -> str:
        """A request, as far as it is the same for all."""
        lines = [f"{method} {path or self.path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        if method == "POST":
            lines += ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
        if self.transport == "modern":
            lines += [*MODERN_HEADERS, f"Mcp-Name: {self.tool}"]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")
        if self.key:
            lines.append(f"Trunkline-Workflow: {self.key}")
        return "\r\n".join([*lines, ""])

    def call(self, id: int, number: int, arguments: bytes) -> bytes:
        """A call whose answer can be told from any other's."""
        meta = MODERN_META if self.transport == "modern" else b""
        params = b'{%b"name":"%b","arguments":{"t":"%d;",%b}}' % (meta, self.tool.encode(), number, arguments)
        return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":%b}' % (id, params)


Answered = Callable[["Slot", bool], None]
"""Is told of each answer, and whether it is the one that was due."""


class Slot(Protocol):
    """Room for one call."""

    since: float
    """When the call that is in it was due."""

    def call(self, number: int, arguments: bytes, answered: Answered) -> None:
        """Make a call."""


class HTTPConnection(asyncio.Protocol):
    """One kept connection: whole answers to one request at a time, be they JSON, chunked, or a stream of events."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._body: list[bytes] = []
        self._done: Callable[[int, bytes], None] | None = None

    def send(self, request: bytes, done: Callable[[int, bytes], None]) -> None:
        """Send a whole request; `done` is told status and body, or status 0 where the connection was cut."""
        self._done = done
        assert self._transport is not None
        self._transport.write(request)

    def close(self) -> None:
        """Close it; nothing is told."""
        self._done = None
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_open(self) -> bool:
        """Whether it can be used."""
        return self._transport is not None and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._tell(0, b"")

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._transport = None
        self._tell(0, b"")

    def on_body(self, body: bytes) -> None:
        """Some of an answer."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The answer is whole."""
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body.clear()
        self._tell(self._parser.get_status_code(), body)

    def _tell(self, status: int, body: bytes) -> None:
        done, self._done = self._done, None
        if done is not None:
            done(status, body)


class HTTPSlot:
    """Calls of one session, one after the other on a connection of its own; all with the same id, unless the target
    wants one for each.
    """

    def __init__(self, target: Target, session: str) -> None:
        self._target = target
        own = f"Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: {REVISION}\r\n" if session else ""
        self._head = f"{target.head()}{own}Content-Length: ".encode() + b"%d\r\n\r\n"
        self._connection = HTTPConnection()
        self._due = b""
        self._id = 1
        self._answered: Answered
        self.since = 0.0

    async def open(self) -> None:
        """Connect."""
        self._connection = HTTPConnection()
        await asyncio.get_running_loop().create_connection(lambda: self._connection, "127.0.0.1", self._target.port)

    def call(self, number: int, arguments: bytes, answered: Answered) -> None:
        """See `Slot.call`."""
        self._answered = answered
        self._due = b"%d;" % number
        self._id = number if self._target.own_ids else 1
        body = self._target.call(self._id, number, arguments)
        request = self._head % len(body) + body
        if self._connection.is_open:
            self._connection.send(request, self._take)
        else:
            asyncio.get_running_loop().create_task(self._call_anew(request))

    def close(self) -> None:
        """Leave."""
        self._connection.close()

    async def _call_anew(self, request: bytes) -> None:
        try:
            await self.open()
        except OSError:
            self._answered(self, False)
        else:
            self._connection.send(request, self._take)

    def _take(self, status: int, body: bytes) -> None:
        found = ID.search(body)
        self._answered(self, status == 200 and found is not None and int(found[1]) == self._id and self._due in body)


class EventStream(HTTPConnection):
    """The answer to a GET that does not end: each of its events is told."""

    def __init__(self, event: Callable[[bytes], None], lost: Callable[[], None]) -> None:
        super().__init__()
        self._event = event
        self._lost = lost
        self._held = b""

    def on_body(self, body: bytes) -> None:
        """Some of the stream."""
        *events, self._held = (self._held + body).replace(b"\r\n", b"\n").split(b"\n\n")
        for event in events:
            self._event(event)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        super().connection_lost(exc)
        self._lost()


async def open_stream(target: Target, session: str) -> EventStream:
    """The GET stream of a session; what comes on it is of no interest."""
    stream = EventStream(lambda _: None, lambda: None)
    transport, _ = await asyncio.get_running_loop().create_connection(lambda: stream, "127.0.0.1", target.port)
    own = f"Accept: text/event-stream\r\nMcp-Session-Id: {session}\r\n\r\n"
    transport.write((target.head("GET") + own).encode())
    return stream
