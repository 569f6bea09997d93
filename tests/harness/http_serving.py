"""An ASGI application behind uvicorn's sockets, on connections of trunkline's own; and raw requests to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from trunkline.gateway.http_listening import HTTPListening
from trunkline.mux.statistics import Statistics

from harness.listening import serving as uvicorn_serving

PATIENCE = 10.0


@asynccontextmanager
async def serving(application: Any, listening: HTTPListening) -> AsyncIterator[int]:
    """A server of the application, whose connections are those; its port."""
    async with uvicorn_serving(application, http=listening.protocol) as port:
        yield port


class Said(NamedTuple):
    """An answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """One connection of a client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def post(
        self, message: Any, headers: Mapping[str, str], *, packets: int = 1, method: str = "POST", target: str = "/mcp"
    ) -> None:
        """Send a message; in two packets, its body comes in the second one, and later than anybody waits for it."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"{method} {target} HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode()
        if packets == 1:
            self.writer.write(head + body)
        else:
            self.writer.write(head)
            asyncio.get_running_loop().call_later(0.3, self.writer.write, body)

    async def answer(self) -> Said:
        """The next answer, whose length is told."""
        status, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Said(int(status.split()[1]), headers, body)


@asynccontextmanager
async def connecting(port: int) -> AsyncIterator[Connection]:
    """A connection, for the length of the context."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield Connection(reader, writer)
    finally:
        writer.close()


Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Parts(asyncio.Protocol):
    """What comes from a server, as it comes."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[bytes] = asyncio.Queue()
        self.is_over = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        self.parts.put_nowait(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_over.set()


@asynccontextmanager
async def parts_of(application: Any, request: bytes) -> AsyncIterator[Parts]:
    async with serving(application, HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        transport, client = await asyncio.get_running_loop().create_connection(Parts, "127.0.0.1", port)
        transport.write(request)
        try:
            yield client
        finally:
            transport.close()


def answering(*bodies: bytes, until: asyncio.Event | None = None) -> Any:
    """An application that answers in parts; with `until` as a stream, which goes on after its head only when it may."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        headers = [] if until is not None else [(b"content-length", b"%d" % sum(map(len, bodies)))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if until is not None:
            await until.wait()
        for body in bodies[:-1]:
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": bodies[-1]})

    return application


GET = b"GET /%d HTTP/1.1\r\nHost: h\r\n\r\n"

HEAD = b"POST /%d HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nX: y\r\n\r\n"


def post(body: bytes, number: int = 1) -> bytes:
    """A request with this body, to a path of this number."""
    return HEAD % (number, len(body)) + body


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the size of the body."""
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Answers with what it was asked: method, path and body."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        body += message["body"]
        if not message["more_body"]:
            break
    said = f"{scope['method']} {scope['path']} ".encode() + body
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(said))]})
    await send({"type": "http.response.body", "body": said})


async def said(reader: asyncio.StreamReader, *, past_continue: bool = False) -> bytes:
    """The body of the next answer, which says how long it is."""
    head = await reader.readuntil(b"\r\n\r\n")
    if past_continue and head.startswith(b"HTTP/1.1 100"):
        head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), head
    length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length"))
    return await reader.readexactly(int(length.split(b": ")[1]))


@asynccontextmanager
async def talking(application: Any, listening: HTTPListening | None = None) -> AsyncIterator[Connected]:
    async with serving(application, listening or HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()
