"""The head of a request is bounded, and requests of any other size are served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
import uvicorn
from harness.ports import bound_socket
from trunkline.gateway.bounded_http import MAX_HEAD_BYTES, BoundedHTTP

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


async def application(scope: Any, receive: Any, send: Any) -> None:
    size = 0
    while True:
        message = await receive()
        size += len(message.get("body", b""))
        if not message.get("more_body"):
            break
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    socket = bound_socket()
    config = uvicorn.Config(application, http=BoundedHTTP, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[socket]))
    reader, writer = await asyncio.open_connection("127.0.0.1", socket.getsockname()[1])
    try:
        yield reader, writer
    finally:
        writer.close()
        server.should_exit = True
        await task


@pytest.mark.parametrize(
    "endless", [b"a:b\r\n", b"X: " + b"y" * 60_000 + b"\r\n", b"y" * 1000], ids=["many", "large", "one"]
)
async def test_g10_a_head_that_does_not_end_is_cut(endless: bytes) -> None:
    async with connected() as (_, writer), asyncio.timeout(PATIENCE):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n" + (b"X: " if endless[:1] == b"y" else b""))
        sent = 100
        try:
            while True:
                writer.write(endless)
                sent += len(endless)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            assert sent >= MAX_HEAD_BYTES


async def test_requests_of_any_size_are_served_one_after_another() -> None:
    async with connected() as (reader, writer), asyncio.timeout(PATIENCE):
        for size in (0, 10, 3 * MAX_HEAD_BYTES, 5):
            head = b"POST / HTTP/1.1\r\nHost: h\r\nX: %b\r\nContent-Length: %d\r\n\r\n" % (b"y" * 60_000, size)
            writer.write(head + b"x" * size)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(str(size))) == b"%d" % size
