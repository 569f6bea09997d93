"""The head of a request is bounded, and requests of any other size are served."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from typing import Any

import pytest
import uvicorn
from harness.ports import bound_socket
from trunkline.gateway import bounded_http
from trunkline.gateway.bounded_http import MAX_HEAD_BYTES, BoundedHTTP, connection_limit
from trunkline.mux.statistics import Statistics

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


Connected = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@asynccontextmanager
async def serving(application: Any, protocol: type[BoundedHTTP]) -> AsyncIterator[int]:
    """A server of the application; its port."""
    socket = bound_socket()
    config = uvicorn.Config(application, http=protocol, lifespan="off", log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    server.capture_signals = nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[socket]))
    try:
        yield socket.getsockname()[1]
    finally:
        server.should_exit = True
        await task


@asynccontextmanager
async def connected(protocol: type[BoundedHTTP] = BoundedHTTP) -> AsyncIterator[Connected]:
    async with serving(application, protocol) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


@pytest.mark.parametrize(
    "endless", [b"a:b\r\n", b"X: " + b"y" * 60_000 + b"\r\n", b"y" * 1000], ids=["many", "large", "one"]
)
async def test_g10_a_head_that_does_not_end_is_cut(endless: bytes) -> None:
    statistics = Statistics()
    async with connected(BoundedHTTP.counting(statistics)) as (_, writer), asyncio.timeout(PATIENCE):
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
            assert statistics.counts["refused", "head"] == 1


async def test_requests_of_any_size_are_served_one_after_another() -> None:
    async with connected() as (reader, writer), asyncio.timeout(PATIENCE):
        for size in (0, 10, 3 * MAX_HEAD_BYTES, 5):
            head = b"POST / HTTP/1.1\r\nHost: h\r\nX: %b\r\nContent-Length: %d\r\n\r\n" % (b"y" * 60_000, size)
            writer.write(head + b"x" * size)
            answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(len(str(size))) == b"%d" % size


@pytest.mark.parametrize("sent", [b"", b"GET / HT", b"GET / HTTP/1.1\r\nHost: h\r\n"], ids=["nothing", "line", "some"])
@pytest.mark.parametrize("before", [0, 1])
async def test_g10_a_head_that_takes_too_long_is_cut(before: int, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a new connection, and after a request: there, silence is uvicorn's to end."""
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.2)
    statistics = Statistics()
    async with connected(BoundedHTTP.counting(statistics)) as (reader, writer), asyncio.timeout(PATIENCE):
        for _ in range(before):
            await ask(reader, writer)
        writer.write(sent or b"G" * before)
        assert await reader.read() == b""
        assert statistics.counts["refused", "slow_head"] == 1


async def test_a_head_in_time_ends_the_patience_however_long_its_request_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "HEAD_SECONDS", 0.1)
    statistics = Statistics()
    async with connected(BoundedHTTP.counting(statistics)) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n")
        passed = asyncio.Event()
        asyncio.get_running_loop().call_later(0.3, passed.set)
        await passed.wait()
        writer.write(b"x")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert not statistics.counts


async def test_g10_a_connection_over_the_limit_is_refused_with_503() -> None:
    statistics = Statistics()
    protocol = BoundedHTTP.counting(statistics)
    protocol.max_connections = 1
    async with connected(protocol) as (reader, writer), asyncio.timeout(PATIENCE):
        await ask(reader, writer)
        port = writer.get_extra_info("peername")[1]
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        refusal = await other_reader.read()
        assert refusal.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in refusal
        other_writer.close()
        assert statistics.counts["refused", "connections"] == 1
        await ask(reader, writer)


def test_half_of_the_files_of_the_process_are_for_clients() -> None:
    assert connection_limit() >= 1


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readexactly(1)


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
    async with serving(application, BoundedHTTP) as port, asyncio.timeout(PATIENCE):
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


async def test_an_answer_goes_out_in_one_packet() -> None:
    async with parts_of(answering(b"body"), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") as client:
        part = await client.parts.get()
        assert part.startswith(b"HTTP/1.1 200")
        assert part.endswith(b"\r\n\r\nbody")


async def test_who_waits_to_be_told_to_go_on_is_told_before_the_body_comes() -> None:
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
    async with serving(answering(b"body"), BoundedHTTP) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head)
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"what")
        assert (await reader.readuntil(b"body")).startswith(b"HTTP/1.1 200")
        writer.close()


@pytest.mark.parametrize("begun", [b"", b"wh"])
async def test_a_body_that_does_not_come_is_waited_for_so_long(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounded_http, "BODY_SECONDS", 0.05)
    statistics = Statistics()
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"
    async with connected(BoundedHTTP.counting(statistics)) as (reader, writer), asyncio.timeout(PATIENCE):
        for whole in (b"what", b"ever"):  # one that comes in parts, and then another, take no harm
            writer.write(head + whole[:1])
            await writer.drain()
            writer.write(whole[1:])
            assert (await reader.readuntil(b"\r\n\r\n4")).startswith(b"HTTP/1.1 200")
        writer.write(head + begun)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert statistics.total("refused", "slow_body") == 1


async def test_the_head_of_a_stream_waits_for_nothing_that_comes_later() -> None:
    go_on = asyncio.Event()
    async with parts_of(answering(b"late", until=go_on), b"GET / HTTP/1.1\r\nHost: h\r\n\r\n") as client:
        assert (await client.parts.get()).endswith(b"\r\n\r\n")
        go_on.set()
        assert (await client.parts.get()).startswith(b"4\r\nlate\r\n")


async def test_a_head_goes_out_where_nothing_follows_it() -> None:
    for method, status in ((b"HEAD", 200), (b"GET", 204), (b"GET", 200)):

        async def empty(scope: Any, receive: Any, send: Any, status: int = status) -> None:
            length = [(b"content-length", b"0")] if status == 200 else []
            await send({"type": "http.response.start", "status": status, "headers": length})
            await send({"type": "http.response.body", "body": b""})

        async with parts_of(empty, method + b" / HTTP/1.1\r\nHost: h\r\n\r\n") as client:
            assert (await client.parts.get()).startswith(b"HTTP/1.1 %d" % status)


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
async def test_an_answer_is_whole_before_its_connection_is_closed(method: bytes) -> None:
    bodies = b"x" * (2 * bounded_http.SMALL_BODY), b"y"
    async with parts_of(answering(*bodies), method + b" / HTTP/1.0\r\nHost: h\r\n\r\n") as client:
        await client.is_over.wait()
        head, _, body = b"".join(client.parts.get_nowait() for _ in range(client.parts.qsize())).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200")
        assert body == (b"".join(bodies) if method == b"GET" else b"")
