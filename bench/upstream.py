"""A lean MCP server, so that what is measured is the gateway: Streamable HTTP and WebSocket on one port, or stdio.

Run: `python -m bench.upstream --port 9301`, or `--stdio`. Paths: `/mcp`; `/delay/5/mcp`, where each HTTP request takes
5 ms more, as on a network; `/events/mcp`, where each answer is a stream of one event, as those of the SDK's servers;
`/quiet/mcp`, which offers no GET stream; `/ws`. `GET /recorder` tells what came by HTTP, `DELETE` forgets it.

Its tool takes any arguments and returns them. `kib` in them asks for a text of that size, `ms` for an answer that late.
"""

import argparse
import asyncio
import os
import sys
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import httptools
import msgspec
import uvloop

from bench.frames import CLOSE, PING, PONG, TEXT, Frames, accept_key, frame

SMALL_TEXT = b"x" * 340
KIB_OF_TEXT = b"x" * 1024
TOOLS = b'{"tools":[{"name":"echo","inputSchema":{"type":"object"}}]}'
RESULT = b'{"content":[{"type":"text","text":"%b"}],"isError":false,"structuredContent":%b}'
INITIALIZED = b'{"protocolVersion":%b,"capabilities":{"tools":{}},"serverInfo":{"name":"bench","version":"1"}}'
EVENT = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%b"}}\n\n'
STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n%btransfer-encoding: chunked\r\n\r\n"
ANSWER_EVENT = b"event: message\r\ndata: %b\r\n\r\n"

DISCOVERED = b'{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}}}'

KINDS = {"tools/call": "call", "tools/list": "list", None: "response"}

Respond = Callable[[bytes], None]


class Arguments(msgspec.Struct):
    """Those that the tool understands."""

    kib: int = 0
    ms: float = 0.0


class Params(msgspec.Struct):
    """Of any request."""

    protocolVersion: msgspec.Raw = msgspec.Raw(b'"2025-06-18"')  # noqa: N815 -- as it stands on the wire
    arguments: msgspec.Raw = msgspec.Raw(b"{}")
    kib: int = 0


class Message(msgspec.Struct):
    """One that came."""

    id: msgspec.Raw = msgspec.Raw(b"")
    method: str | None = None
    params: Params | None = None


decode = msgspec.json.Decoder(Message).decode
decode_arguments = msgspec.json.Decoder(Arguments).decode


class Tool:
    """What the server is, on every transport."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def receive(self, message: Message, respond: Respond) -> bool:
        """Take a message; False where nothing will be answered to it."""
        self.counts[KINDS.get(message.method) or str(message.method)] += 1
        if not bytes(message.id) or message.method is None:
            return False
        params = message.params or Params()
        late = 0.0
        if message.method == "tools/call":
            asked = decode_arguments(params.arguments)
            text = KIB_OF_TEXT * asked.kib if asked.kib else SMALL_TEXT
            result, late = RESULT % (text, params.arguments), asked.ms
        elif message.method == "initialize":
            result = INITIALIZED % bytes(params.protocolVersion)
        elif message.method == "server/discover":
            result = DISCOVERED
        elif message.method == "tools/list":
            result = TOOLS
        else:
            result = b"{}"
        answer = b'{"jsonrpc":"2.0","id":%b,"result":%b}' % (bytes(message.id), result)
        if late:
            asyncio.get_running_loop().call_later(late / 1000, respond, answer)
        else:
            respond(answer)
        return True


class Server:
    """What all connections share."""

    def __init__(self) -> None:
        self.tool = Tool()
        self.streams: dict[bytes, Connection] = {}
        """The GET stream of each session."""
        self.floods: dict[bytes, int] = {}
        """Kibibytes that are due on the stream of a session, which is not there yet."""
        self._sessions = 0

    def new_session(self) -> bytes:
        """An id that was not given before."""
        self._sessions += 1
        return b"session-%d" % self._sessions


class Connection(asyncio.Protocol):
    """One connection: requests one after the other, or a WebSocket."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._headers: dict[bytes, bytes] = {}
        self._url = b""
        self._body: list[bytes] = []
        self._session = b""
        """Whose stream it is."""
        self._frames: Frames | None = None
        """Not None once it is a WebSocket."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        if self._session and self._server.streams.get(self._session) is self:
            del self._server.streams[self._session]

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        if self._frames is not None:
            self._take_frames(self._frames, data)
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._become_websocket(data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self._transport.close()

    # What the parser tells.

    def on_message_begin(self) -> None:
        """A request begins."""
        self._headers.clear()
        self._body.clear()
        self._url = b""

    def on_url(self, url: bytes) -> None:
        """Some of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        """Some of the body."""
        self._body.append(body)

    def on_message_complete(self) -> None:
        """The request is complete."""
        if b"sec-websocket-key" in self._headers:
            return
        parts = self._url.split(b"/")
        method = self._parser.get_method()
        if parts[-1] == b"recorder":
            self._tell_recorder(method)
            return
        session = self._headers.get(b"mcp-session-id", b"")
        answer = partial(self._answer, method, b"".join(self._body), session, parts[1])
        if parts[1] == b"delay":
            asyncio.get_running_loop().call_later(float(parts[2]) / 1000, answer)
        else:
            answer()

    def _answer(self, method: bytes, body: bytes, session: bytes, kind: bytes) -> None:
        if method == b"POST":
            self._post(body, session, self._respond_by_event if kind == b"events" else self._respond)
            return
        self._server.tool.counts[method.decode().lower()] += 1
        if method != b"GET":
            self._respond(b"")
        elif kind == b"quiet":
            self._respond(b"", b"405 Method Not Allowed")
        else:
            self._server.streams[session] = self
            self._session = session
            self._transport.write(STREAM_HEAD % b"")
            self._flood(self._server.floods.pop(session, 0))

    def _post(self, body: bytes, session: bytes, respond: Callable[..., None]) -> None:
        try:
            message = decode(body)
        except msgspec.DecodeError:
            self._respond(b"", b"400 Bad Request")
            return
        if message.method == "notifications/flood" and message.params is not None:
            if (stream := self._server.streams.get(session)) is not None:
                stream._flood(message.params.kib)
            else:
                self._server.floods[session] = message.params.kib
        given = self._server.new_session() if message.method == "initialize" else b""
        if not self._server.tool.receive(message, partial(respond, session=given)):
            self._respond(b"", b"202 Accepted")

    def _respond(self, body: bytes, status: bytes = b"200 OK", session: bytes = b"") -> None:
        own = b"mcp-session-id: %b\r\n" % session if session else b""
        head = b"HTTP/1.1 %b\r\ncontent-type: application/json\r\n%bcontent-length: %d\r\n\r\n"
        self._transport.write(head % (status, own, len(body)) + body)

    def _respond_by_event(self, body: bytes, session: bytes = b"") -> None:
        own = b"mcp-session-id: %b\r\n" % session if session else b""
        event = ANSWER_EVENT % body
        self._transport.write(STREAM_HEAD % own + b"%x\r\n%b\r\n0\r\n\r\n" % (len(event), event))

    def _tell_recorder(self, method: bytes) -> None:
        if method == b"DELETE":
            self._server.tool.counts.clear()
        self._respond(msgspec.json.encode(self._server.tool.counts))

    def _flood(self, kib: int) -> None:
        """So many kibibytes of notifications on this stream."""
        event = EVENT % KIB_OF_TEXT
        chunk = b"%x\r\n%b\r\n" % (len(event), event)
        self._transport.writelines([chunk] * kib)

    # WebSocket

    def _become_websocket(self, rest: bytes) -> None:
        self._frames = Frames()
        self._transport.write(
            b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
            b"sec-websocket-protocol: mcp\r\nsec-websocket-accept: %b\r\n\r\n"
            % accept_key(self._headers[b"sec-websocket-key"])
        )
        self._take_frames(self._frames, rest)

    def _take_frames(self, frames: Frames, data: bytes) -> None:
        for opcode, payload in frames.feed(data):
            if opcode == TEXT:
                self._server.tool.receive(decode(payload), self._send_frame)
            elif opcode == PING:
                self._transport.write(frame(payload, PONG))
            elif opcode == CLOSE:
                self._transport.write(frame(payload, CLOSE))
                self._transport.close()

    def _send_frame(self, answer: bytes) -> None:
        self._transport.write(frame(answer))


async def serve(port: int) -> None:
    """Serve on loopback until the process is ended."""
    server = Server()
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(lambda: Connection(server), "127.0.0.1", port, backlog=4096)
    async with listener:
        await listener.serve_forever()


async def serve_stdio() -> None:
    """Serve on stdin and stdout until stdin ends."""
    reader = asyncio.StreamReader(limit=16 * 1024 * 1024)
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    transport, _ = await loop.connect_write_pipe(asyncio.BaseProtocol, cast(Any, sys.stdout))
    tool = Tool()
    async for line in reader:
        tool.receive(decode(line), lambda answer: transport.write(answer + b"\n"))


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int)
    parser.add_argument("--stdio", action="store_true")
    parser.add_argument("--core", type=int, help="the one to run on, where the parent has another")
    given = parser.parse_args()
    if given.stdio == (given.port is not None):
        parser.error("either --port or --stdio")
    if given.core is not None:
        os.sched_setaffinity(0, {given.core})
    uvloop.run(serve_stdio() if given.stdio else serve(given.port))


if __name__ == "__main__":
    main()
