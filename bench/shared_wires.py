"""What carries many calls at once, told apart by their ids: a WebSocket, or an SSE stream with requests beside it."""

import asyncio
from typing import cast

from bench.frames import PING, PONG, TEXT, Frames, frame
from bench.wires import (
    ID,
    INITIALIZE,
    INITIALIZED,
    OPEN_SECONDS,
    Answered,
    EventStream,
    HTTPConnection,
    Target,
)


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
        found = ID.search(message)
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
