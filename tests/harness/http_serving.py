"""An ASGI application behind uvicorn's sockets, on connections of trunkline's own; and raw requests to it."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, nullcontext
from typing import Any, NamedTuple

import uvicorn
from trunkline.gateway.http_connection import HTTPListening

from harness.ports import bound_socket

PATIENCE = 10.0


@asynccontextmanager
async def serving(application: Any, listening: HTTPListening) -> AsyncIterator[int]:
    """A server of the application; its port."""
    socket = bound_socket()
    config = uvicorn.Config(
        application, http=listening.protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield socket.getsockname()[1]
    finally:
        server.should_exit = True
        await task


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

    def post(self, message: Any, headers: Mapping[str, str], *, packets: int = 1) -> None:
        """Send a message; in two packets, its body comes in the second one, and later than anybody waits for it."""
        body = message if isinstance(message, bytes) else json.dumps(message).encode()
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = f"POST /mcp HTTP/1.1\r\n{lines}Content-Length: {len(body)}\r\n\r\n".encode()
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
