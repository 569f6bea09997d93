"""Servers with one stream for each session, played by hand: over HTTP+SSE, WebSocket, and stdio.

    async with over_websocket() as server:
        ...  # connect to server.address
        message = await server.got("tools/call")
        message.finish(answer)

The handshake goes well by itself. They are real: sockets, and for stdio a process that hands on what it reads.
"""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final
from urllib.parse import parse_qs, urlsplit

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from harness.changing import Changing

"""Seconds after which waiting for the peer fails the test."""

RESULT: Final = {
    "protocolVersion": "2025-11-25",
    "capabilities": {"tools": {}},
    "serverInfo": {"name": "one-stream", "version": "1"},
}

STREAM_HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream; charset=utf-8\r\nTransfer-Encoding: chunked\r\n\r\n"
)


class Message:
    """One message as it came in."""

    is_cut = False

    def __init__(self, session: "Session", text: bytes, headers: Mapping[str, str]) -> None:
        self.session = session
        self.text = text
        self.headers = headers
        """Those of its POST; over WebSocket and stdio a message has none."""

    @property
    def kind(self) -> str:
        """Its method, or `response`."""
        return str(json.loads(self.text).get("method", "response"))

    def say(self, text: bytes) -> None:
        """Send this on the stream."""
        self.session.say(text)

    finish = say

    def cut(self) -> None:
        """Break the stream."""
        self.session.cut()


class Session:
    """One session: its stream, and what came in."""

    def __init__(self, server: "OneStreamServer", say: Callable[[bytes], None], close: Callable[[], None]) -> None:
        self.server = server
        self.say = say
        self.close = close
        """End the stream, in the words of the transport."""
        self.cut: Callable[[], None] = close
        """Break it."""
        self.opening: Mapping[str, str] = {}
        """The headers that opened it."""
        self.raw: Callable[[bytes], None] = lambda data: None
        """Send these very bytes, where the transport has bytes between messages."""
        self.stall: Callable[[], None] = lambda: None
        self.go_on: Callable[[], None] = lambda: None
        """Read again after `stall`, where that is possible."""
        self.ended = False

    def take(self, text: bytes, headers: Mapping[str, str] | None = None) -> None:
        """A message came in."""
        self.server.take(Message(self, text, headers or {}))

    def over(self) -> None:
        """The client has gone."""
        self.ended = True
        self.server.happened()


class OneStreamServer(Changing):
    """A server for as long as its maker is entered."""

    binds = False
    listens = True

    def __init__(self, *, acknowledges: bool) -> None:
        super().__init__()
        self.acknowledges = acknowledges
        """Whether the transport tells what became of each message."""
        self.address: Any = None
        """The URL, or the command."""
        self.sessions: list[Session] = []
        self.messages: list[Message] = []
        self.refuses: set[str] = set()
        """Kinds of messages that are not accepted; `*` for all."""
        self.refusal = 400
        self.answers_initialize = True
        self.stalls = False
        self.endpoint = "/message?session={n}"
        """Where an SSE server sends its clients; empty for nowhere."""
        self.get_status = 200

    @property
    def session(self) -> Session:
        """The newest session."""
        return self.sessions[-1]

    @property
    def ended(self) -> bool:
        """True once the client ended the newest session."""
        return bool(self.sessions) and self.session.ended

    def of(self, kind: str) -> list[Message]:
        """What came in of a kind, over all sessions."""
        return [message for message in self.messages if message.kind == kind]

    def came(self, kind: str) -> int:
        """How many of it."""
        return len(self.of(kind))

    async def got(self, kind: str, count: int = 1) -> Message:
        """Wait until so many of a kind came in; the last of them."""
        await self.until(lambda: self.came(kind) >= count)
        return self.of(kind)[count - 1]

    def take(self, message: Message) -> None:
        """A message was accepted."""
        self.messages.append(message)
        if message.kind == "initialize" and self.answers_initialize:
            response = {"jsonrpc": "2.0", "id": json.loads(message.text)["id"], "result": RESULT}
            message.say(json.dumps(response).encode())
        if self.stalls and message.kind == "tools/call":
            message.session.stall()
        if not self.acknowledges and self.refuses & {message.kind, "*"}:
            message.session.close()
        self.happened()

    # For the contract of wires.

    def tell(self, text: bytes) -> None:
        """Say this unasked."""
        self.session.say(text)

    def forget(self) -> None:
        """Know the session no longer."""
        self.refuses.add("*")
        self.refusal = 404
        if not self.acknowledges:
            self.session.close()

    def refuse_initialized(self) -> None:
        """Accept no `notifications/initialized`."""
        self.refuses.add("notifications/initialized")

    def stall(self) -> None:
        """Answer no good-bye."""
        self.stalls = True


@asynccontextmanager
async def over_sse() -> AsyncIterator[OneStreamServer]:
    """HTTP+SSE: `address` is the URL of the stream."""
    server = OneStreamServer(acknowledges=True)
    async with _listening(lambda reader, writer: _serve_http(server, reader, writer)) as port:
        server.address = f"http://127.0.0.1:{port}/sse"
        yield server


@asynccontextmanager
async def over_websocket() -> AsyncIterator[OneStreamServer]:
    """WebSocket: `address` is the URL."""
    server = OneStreamServer(acknowledges=False)

    async def handle(connection: ServerConnection) -> None:
        await _serve_websocket(server, connection)

    protocols = [Subprotocol("mcp")]
    async with serve(handle, "127.0.0.1", 0, subprotocols=protocols, compression=None, close_timeout=0.2) as listener:
        server.address = f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/ws"
        yield server


@asynccontextmanager
async def over_stdio() -> AsyncIterator[OneStreamServer]:
    """stdio: `address` is the command; the process hands on to the test what it reads, and prints what it is told."""
    server = OneStreamServer(acknowledges=False)
    with TemporaryDirectory() as folder:
        path = str(Path(folder) / "socket")
        async with _listening(lambda reader, writer: _serve_relay(server, reader, writer), path):
            server.address = (sys.executable, "-I", "-S", str(Path(__file__).with_name("stdio_relay.py")), path)
            yield server


@asynccontextmanager
async def _listening(
    serve_one: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any], path: str | None = None
) -> AsyncIterator[int]:
    tasks: set[asyncio.Task[Any]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await serve_one(reader, writer)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()

    if path is None:
        listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    else:
        listener = await asyncio.start_unix_server(accept, path, limit=64 * 1024 * 1024)
    try:
        yield listener.sockets[0].getsockname()[1] if path is None else 0
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks)


async def _serve_http(server: OneStreamServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        start, *lines = head.strip().split("\r\n")
        method, target, _ = start.split(" ")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if method == "GET":
            await _serve_stream(server, headers, reader, writer)
            return
        query = parse_qs(urlsplit(target).query)
        status = 202
        if "session" not in query:
            status = 405
        elif server.refuses & {json.loads(body).get("method", "response"), "*"}:
            status = server.refusal
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\nOK" % status)
        if status == 202:
            server.sessions[int(query["session"][0])].take(body, headers)


async def _serve_stream(
    server: OneStreamServer, headers: Mapping[str, str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    if server.get_status != 200:
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: 0\r\n\r\n" % server.get_status)
        return

    def raw(data: bytes) -> None:
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))

    session = Session(server, lambda text: raw(b"event: message\r\ndata: %s\r\n\r\n" % text), writer.transport.abort)
    session.raw = raw
    session.opening = headers
    server.sessions.append(session)
    writer.write(STREAM_HEAD)
    raw(b": ping\r\n\r\n")
    if server.endpoint:
        raw(b"event: endpoint\r\ndata: %s\r\n\r\n" % server.endpoint.format(n=len(server.sessions) - 1).encode())
    server.happened()
    try:
        while await reader.read(65536):
            pass
    finally:
        session.over()


async def _serve_websocket(server: OneStreamServer, connection: ServerConnection) -> None:
    assert connection.request is not None
    outgoing: asyncio.Queue[str | bytes | None] = asyncio.Queue()
    session = Session(server, lambda text: outgoing.put_nowait(text.decode()), lambda: outgoing.put_nowait(None))
    session.opening = {name.lower(): value for name, value in connection.request.headers.raw_items()}
    session.raw = outgoing.put_nowait
    session.stall = connection.transport.pause_reading
    session.go_on = connection.transport.resume_reading
    session.cut = connection.transport.abort
    server.sessions.append(session)
    server.happened()

    async def write() -> None:
        while (text := await outgoing.get()) is not None:
            await connection.send(text)
        await connection.close()

    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(write())
        try:
            while True:
                text = await connection.recv()
                assert isinstance(text, str)
                session.take(text.encode())
        except ConnectionClosed:
            session.over()
        writer.cancel()


async def _serve_relay(server: OneStreamServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    def do(what: bytes, data: bytes = b"") -> None:
        writer.write(what + json.dumps(data.decode("latin-1")).encode() + b"\n")

    session = Session(server, lambda text: do(b"out", text + b"\n"), lambda: do(b"exit"))
    session.raw = lambda data: do(b"out", data)
    session.stall = lambda: do(b"stall")
    server.sessions.append(session)
    server.happened()
    try:
        while line := await reader.readline():
            session.take(line.removesuffix(b"\n"))
    finally:
        session.over()
