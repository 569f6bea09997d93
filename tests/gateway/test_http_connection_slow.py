"""One connection of a client that takes nothing of its answer, or closes its half of the connection."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from harness.gateways import until
from harness.http_serving import GET, Parts, answering, echo, post, said, serving, talking
from trunkline.gateway import http_connection, http_listening
from trunkline.gateway.http_connection import HTTPConnection
from trunkline.gateway.http_listening import HTTPListening
from trunkline.mux.statistics import Statistics

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
SOCKET = (
    b"GET /2 HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


def is_paused(listening: HTTPListening) -> bool:
    """Whether a client leaves an answer untaken."""
    return hasattr(listening, "state") and any(cast(Any, one).is_write_paused for one in listening.state.connections)


@pytest.mark.parametrize(
    ("then", "size"),
    [(b"", 0), (GET % 2 + GET % 3, 20), (GET % 2 + GET % 3, 20_000_000), (GET % 2 + b"\0", 20), (SOCKET, 20)],
    ids=["nothing", "little", "much", "no HTTP", "a socket"],
)
async def test_g10_a_client_that_takes_nothing_of_its_answer_is_cut(
    then: bytes, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_connection, "IDLE_SECONDS", 0.2)
    monkeypatch.setattr(http_connection, "TAKE_SECONDS", 0.2)
    bodies = iter([b"x" * 20_000_000, b"x" * size])

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await asyncio.Event().wait()
        await answering(next(bodies))(scope, receive, send)

    listening = HTTPListening(Statistics())
    async with serving(application, listening) as port, asyncio.timeout(PATIENCE):
        transport, _ = await asyncio.get_running_loop().create_connection(Parts, "127.0.0.1", port)
        transport.pause_reading()
        transport.write(GET % 1)
        await until(lambda: is_paused(listening) or listening.statistics.counts)
        transport.write(then)
        await until(lambda: not listening.state.connections)
        transport.close()
    assert listening.statistics.counts["refused", "untaken"] == 1


@asynccontextmanager
async def stalled(listening: HTTPListening) -> AsyncIterator[tuple[asyncio.Transport, Parts]]:
    """A client that takes nothing of a large answer, until it reads on."""
    async with serving(answering(b"x" * 20_000_000), listening) as port, asyncio.timeout(PATIENCE):
        transport, client = await asyncio.get_running_loop().create_connection(Parts, "127.0.0.1", port)
        transport.pause_reading()
        transport.write(GET % 1)
        await until(lambda: is_paused(listening))
        yield transport, client
        transport.close()


async def test_g10_who_takes_nothing_gains_no_time_by_asking_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_connection, "TAKE_SECONDS", PATIENCE)
    listening = HTTPListening(Statistics())
    async with stalled(listening) as (transport, _):
        [connection] = [cast(HTTPConnection, one) for one in listening.state.connections]
        due = connection.due
        transport.write(GET % 2)
        await until(lambda: connection._reader.heads == 2)
        transport.write(GET % 3 + GET % 4 + GET % 5)
        await until(lambda: connection._reader.heads > 2)
        assert connection.due == due


async def test_g10_a_stream_of_which_nothing_is_taken_is_cut_once_it_was_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_connection, "TAKE_SECONDS", 0.2)

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})
        while True:
            async with asyncio.timeout(0.05):
                await send({"type": "http.response.body", "body": b"x" * 4_000_000, "more_body": True})

    listening = HTTPListening(Statistics())
    async with serving(application, listening) as port, asyncio.timeout(PATIENCE):
        transport, _ = await asyncio.get_running_loop().create_connection(Parts, "127.0.0.1", port)
        transport.pause_reading()
        transport.write(GET % 1)
        await until(lambda: listening.statistics.counts["refused", "untaken"] == 1)
        assert not listening.state.connections
        transport.close()


@pytest.mark.parametrize("rest", [b"", b"body"], ids=["in its body", "in its answer"])
async def test_g10_nothing_is_kept_of_a_connection_that_has_gone(rest: bytes) -> None:
    """Nor does it take the collector of garbage, which looks for whole workflows."""
    asked = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (message := await receive())["type"] != "http.disconnect":
            if not message["more_body"]:
                asked.set()

    def is_there() -> bool:
        return hasattr(listening, "state") and len(listening.state.connections) == 1

    listening = HTTPListening(Statistics())
    gc.collect()
    gc.disable()
    try:
        async with talking(application, listening) as (_, writer):
            writer.write(b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
            await until(lambda: is_there() and any(cast(Any, one)._reader.heads for one in listening.state.connections))
            writer.write(rest)
            if rest:
                await asked.wait()
            writer.close()
            await until(lambda: not any(isinstance(one, HTTPConnection) for one in gc.get_objects()))
    finally:
        gc.enable()


async def test_who_takes_its_answer_late_may_be_silent_afterwards_as_long_as_anybody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_connection, "TAKE_SECONDS", PATIENCE)
    monkeypatch.setattr(http_connection, "IDLE_SECONDS", 3600.0)
    listening = HTTPListening(Statistics())
    async with stalled(listening) as (transport, _):
        [connection] = [cast(HTTPConnection, one) for one in listening.state.connections]
        transport.resume_reading()
        await until(lambda: not connection.is_write_paused)
        assert 3000 < connection.due - asyncio.get_running_loop().time() <= 3600
    assert not listening.statistics.counts


async def turns_later(scope: Any, receive: Any, send: Any) -> None:
    """Answers some turns of the loop later, and asks nobody whether its client is still there."""
    for _ in range(20):
        await asyncio.sleep(0)
    await echo(scope, receive, send)


@pytest.mark.parametrize("requests", [GET % 1, post(b"what"), GET % 1 + post(b"what") + GET % 2])
async def test_who_closes_its_half_behind_its_requests_is_answered(requests: bytes) -> None:
    async with serving(turns_later, HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(requests)
        writer.write_eof()
        answered = await reader.read()
        assert answered.count(b"HTTP/1.1 200 OK") == requests.count(b"HTTP/1.1")
        assert answered.count(b"connection: close") == 1
        writer.close()


@pytest.mark.parametrize("half", [b"GET / HTTP/1.1\r\n", post(b"what")[:-1], GET % 1 + b"\r", post(b"what") + b"x"])
async def test_who_closes_its_half_within_a_request_has_gone(half: bytes) -> None:
    async with serving(turns_later, HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(half)
        writer.write_eof()
        await reader.read()
        writer.close()


def resting(begun: asyncio.Event, over: asyncio.Event) -> Callable[[Any, Any, Any], Awaitable[None]]:
    """Echoes, but for `/1`: that one says that it has begun, and waits until it may go on."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/1":
            begun.set()
            await over.wait()
        await echo(scope, receive, send)

    return application


@pytest.mark.parametrize("last", [GET % 9, post(b"x" * 10_000, 9), SOCKET.replace(b"/2", b"/9"), post(b"x", 9)[:-1]])
async def test_who_closes_its_half_behind_more_than_is_parsed_ahead_is_answered_in_order(last: bytes) -> None:
    begun, over = asyncio.Event(), asyncio.Event()
    listening = HTTPListening(Statistics())
    async with serving(resting(begun, over), listening) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        await begun.wait()
        writer.write(GET % 2 + post(b"x" * 15_000, 3) + last)
        writer.write_eof()
        await until(lambda: any(connection.has_left for connection in listening._connections))
        over.set()
        answers = (await reader.read()).split(b"HTTP/1.1 ")[1:]
        is_cut = last.endswith(b"\r\n\r\n") and b"POST" in last
        assert [answer[:3] for answer in answers] == [b"200", b"200", b"200", b"500" if is_cut else b"200"]
        writer.close()


@pytest.mark.parametrize("begins", [False, True])
async def test_who_asks_whether_its_client_has_gone_is_told_so_when_it_closes_its_half(begins: bool) -> None:
    asks, told = asyncio.Event(), asyncio.Event()

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        asks.set()
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    async with serving(watching, HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        await asks.wait()
        writer.write_eof()
        await told.wait()
        await reader.read()
        writer.close()


async def test_who_asks_later_is_told_too_and_its_answer_is_heard_no_more() -> None:
    asks, told = asyncio.Event(), asyncio.Event()

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await asks.wait()
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    listening = HTTPListening(Statistics())
    async with serving(watching, listening) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        writer.write_eof()
        await until(lambda: any(connection.has_left for connection in listening._connections))
        asks.set()
        await told.wait()
        assert (await reader.read()).startswith(b"HTTP/1.1 500")  # it gave none
        writer.close()


@pytest.mark.parametrize("behind", [GET % 2, GET % 2 + GET % 3, post(b"what") + b"GET", post(b"x" * 9_000) * 2])
@pytest.mark.parametrize("is_later", [False, True])
async def test_e13_who_leaves_with_requests_behind_one_that_runs_is_noticed(behind: bytes, is_later: bool) -> None:
    asks, told, asked = asyncio.Event(), asyncio.Event(), list[str]()

    async def watching(scope: Any, receive: Any, send: Any) -> None:
        asked.append(scope["path"])
        await receive()
        asks.set()
        assert (await receive())["type"] == "http.disconnect"
        told.set()

    async with serving(watching, HTTPListening(Statistics())) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1 + (b"" if is_later else behind))
        await asks.wait()
        writer.write(behind if is_later else b"")
        writer.close()
        await told.wait()
        assert await reader.read() == b""
    assert asked == ["/1"]


async def test_g10_of_requests_behind_one_that_runs_no_more_is_read_than_may_be() -> None:
    begun, over = asyncio.Event(), asyncio.Event()
    listening = HTTPListening(Statistics())
    async with serving(resting(begun, over), listening) as port, asyncio.timeout(PATIENCE):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        await begun.wait()
        count, body = 200, b"x" * 5_000
        writer.write(post(body, 2) * count)
        (connection,) = listening._connections
        await until(lambda: not connection.transport.is_reading())
        assert len(connection._reader.unread) < 300_000
        over.set()
        assert await said(reader) == b"GET /1 "
        for _ in range(count):
            assert await said(reader) == b"POST /2 " + body
        writer.close()
