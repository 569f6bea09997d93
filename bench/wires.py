"""What carries the calls of a load: kept HTTP connections, an SSE stream, a WebSocket, or a new connection for each.

A slot has room for one call. It is called without an await, and tells by a plain call what came of it, so that the load
costs its core less than the gateway costs its own. Every answer is looked at: it must be the call's own.
"""

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol, cast

import httptools

from bench.frames import PING, PONG, TEXT, Frames, frame

REVISION: Final = "2025-06-18"
"""Answers stay plain JSON however long they take: all variants are read in the same way."""

INITIALIZE: Final = (
    b'{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"%b","capabilities":{},'
    b'"clientInfo":{"name":"bench","version":"1"}}}' % REVISION.encode()
)
INITIALIZED: Final = b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
CALL: Final = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{}}}'
FIRST_NUMBER: Final = 100_000_000
"""Numbers of calls are ids as well, and all of them equally long."""

OPEN_SECONDS: Final = 30.0
_ID: Final = re.compile(rb'"id"\s*:\s*(\d+)')


@dataclass(frozen=True)
class Target:
    """Where calls go."""

    port: int
    path: str
    transport: str = "http"
    """http, sse or ws."""
    token: str = ""
    """Whose calls they are."""
    key: str = ""
    """The key of a workflow, for clients that come anew with each call."""
    tool: str = "echo"

    def head(self, method: str = "POST", path: str = "") -> str:
        """A request, as far as it is the same for all."""
        lines = [f"{method} {path or self.path} HTTP/1.1", f"Host: 127.0.0.1:{self.port}"]
        if method == "POST":
            lines += ["Content-Type: application/json", "Accept: application/json, text/event-stream"]
        if self.token:
            lines.append(f"Authorization: Bearer {self.token}")
        if self.key:
            lines.append(f"Trunkline-Workflow: {self.key}")
        return "\r\n".join([*lines, ""])

    def call(self, id: int, number: int, arguments: bytes) -> bytes:
        """A call whose answer can be told from any other's."""
        return b'{"jsonrpc":"2.0","id":%d,"method":"tools/call","params":{"name":"%b","arguments":{"t":"%d;",%b}}}' % (
            id,
            self.tool.encode(),
            number,
            arguments,
        )


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
    """Calls of one session, one after the other on a connection of its own, all with the same id."""

    def __init__(self, target: Target, session: str) -> None:
        self._target = target
        own = f"Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: {REVISION}\r\n" if session else ""
        self._head = f"{target.head()}{own}Content-Length: ".encode() + b"%d\r\n\r\n"
        self._connection = HTTPConnection()
        self._due = b""
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
        body = self._target.call(1, number, arguments)
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
        found = _ID.search(body)
        self._answered(self, status == 200 and found is not None and found[1] == b"1" and self._due in body)


class SharedSlot:
    """Room for one of the calls of a wire that carries many."""

    def __init__(self, wire: "WebSocketWire | SSEWire") -> None:
        self._wire = wire
        self.since = 0.0

    def call(self, number: int, arguments: bytes, answered: Answered) -> None:
        """See `Slot.call`."""
        self._wire.call(self, number, arguments, answered)


class SharedWire:
    """Calls that are told apart by their ids."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._waiting: dict[int, tuple[SharedSlot, Answered]] = {}
        self._opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._is_lost = False

    def call(self, slot: SharedSlot, number: int, arguments: bytes, answered: Answered) -> None:
        """Make a call."""
        if self._is_lost:
            asyncio.get_running_loop().call_soon(answered, slot, False)
            return
        self._waiting[number] = slot, answered
        self.send(self.target.call(number, number, arguments))

    def send(self, message: bytes) -> None:
        """Send a message."""
        raise NotImplementedError

    def take(self, message: bytes) -> None:
        """Take what came."""
        found = _ID.search(message)
        number = int(found[1]) if found else -1
        if number == 0 and not self._opened.done():
            self._opened.set_result(None)
        elif (waiting := self._waiting.pop(number, None)) is not None:
            waiting[1](waiting[0], b"%d;" % number in message)

    def lost(self) -> None:
        """The wire was cut: no call has an answer any more."""
        self._is_lost = True
        if not self._opened.done():
            self._opened.set_exception(ConnectionError("the connection was cut before the session began"))
        waiting, self._waiting = self._waiting, {}
        for slot, answered in waiting.values():
            answered(slot, False)

    async def rest(self) -> None:
        """Keep only what the session needs while nothing is called."""

    async def begin(self) -> None:
        """Begin the session."""
        self.send(INITIALIZE)
        await asyncio.wait_for(self._opened, OPEN_SECONDS)
        self.send(INITIALIZED)


class WebSocketWire(SharedWire, asyncio.Protocol):
    """One WebSocket."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._frames = Frames()
        self._head: bytes | None = b""
        """Of the handshake's answer; None once it is there."""
        self._transport: asyncio.Transport
        self._accepted: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def open(self, inflight: int) -> None:
        """Connect, and begin the session; there is room for any number of calls."""
        await asyncio.get_running_loop().create_connection(lambda: self, "127.0.0.1", self.target.port)
        upgrade = (
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: mcp\r\n\r\n"
        )
        self._transport.write((self.target.head("GET") + upgrade).encode())
        await asyncio.wait_for(self._accepted, OPEN_SECONDS)
        await self.begin()

    def send(self, message: bytes) -> None:
        """See `SharedWire.send`."""
        self._transport.write(frame(message, masked=True))

    def close(self) -> None:
        """Leave."""
        self._waiting.clear()
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self.lost()

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._head is not None:
            head, found, data = (self._head + data).partition(b"\r\n\r\n")
            if not found:
                self._head = head
                return
            self._head = None
            if b" 101 " not in head:
                self._accepted.set_exception(ConnectionError(head.decode("latin-1")))
                return
            self._accepted.set_result(None)
        for opcode, payload in self._frames.feed(data):
            if opcode == TEXT:
                self.take(payload)
            elif opcode == PING:
                self._transport.write(frame(payload, PONG, masked=True))


class SSEWire(SharedWire):
    """An HTTP+SSE stream, and the connections by which messages are sent beside it."""

    def __init__(self, target: Target) -> None:
        super().__init__(target)
        self._stream = EventStream(self._event, self.lost)
        self._idle: list[HTTPConnection] = []
        self._all: list[HTTPConnection] = []
        self._due: list[bytes] = []
        self._is_quiet = asyncio.Event()
        """Set once everything was sent."""
        self._endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._head = b""

    async def open(self, inflight: int) -> None:
        """Connect, with room for so many calls, and begin the session."""
        loop, port = asyncio.get_running_loop(), self.target.port
        transport, _ = await loop.create_connection(lambda: self._stream, "127.0.0.1", port)
        transport.write(f"{self.target.head('GET')}Accept: text/event-stream\r\n\r\n".encode())
        path = await asyncio.wait_for(self._endpoint, OPEN_SECONDS)
        self._head = f"{self.target.head(path=path)}Content-Length: ".encode() + b"%d\r\n\r\n"
        for _ in range(inflight):
            connection = HTTPConnection()
            await loop.create_connection(lambda own=connection: own, "127.0.0.1", port)  # type: ignore[misc]
            self._all.append(connection)
        self._idle = list(self._all)
        await self.begin()

    def send(self, message: bytes) -> None:
        """See `SharedWire.send`: by a connection that is free, or as soon as one is."""
        if not self._idle:
            self._due.append(message)
            return
        connection = self._idle.pop()
        self._is_quiet.clear()
        connection.send(self._head % len(message) + message, lambda status, _: self._sent(connection, status))

    async def rest(self) -> None:
        """See `SharedWire.rest`: the stream alone, once everything is sent."""
        if len(self._idle) < len(self._all):
            await asyncio.wait_for(self._is_quiet.wait(), OPEN_SECONDS)
        for connection in self._all:
            connection.close()

    def close(self) -> None:
        """Leave."""
        self._waiting.clear()
        for connection in (self._stream, *self._all):
            connection.close()

    def _sent(self, connection: HTTPConnection, status: int) -> None:
        self._idle.append(connection)
        if len(self._idle) == len(self._all) and not self._due:
            self._is_quiet.set()
        if status not in (200, 202):
            self.lost()
        elif self._due:
            self.send(self._due.pop(0))

    def _event(self, event: bytes) -> None:
        for line in event.splitlines():
            if line.startswith(b"data:"):
                text = line[5:].strip()
                if self._endpoint.done():
                    self.take(text)
                else:
                    self._endpoint.set_result(text.decode())


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
