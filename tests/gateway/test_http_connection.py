"""One connection of a client: what comes is bounded, what is HTTP is answered in order, what is not is refused."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from math import inf
from typing import Any, cast

import pytest
from harness.gateways import until
from harness.http_serving import GET, Connected, application, echo, said, serving, talking
from trunkline.gateway import http_connection, http_listening
from trunkline.gateway.http_connection import MAX_STEPS, HTTPConnection
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.request_reader import MAX_HEAD_BYTES, MAX_HEADERS
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import WholeRequest
from trunkline.transports.patience import Patience

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


@asynccontextmanager
async def connected(listening: HTTPListening | None = None) -> AsyncIterator[Connected]:
    async with serving(application, listening or HTTPListening(Statistics())) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield reader, writer
        finally:
            writer.close()


@pytest.mark.parametrize(
    ("endless", "most"),
    [
        (b"a:b\r\n", MAX_HEADERS * len(b"a:b\r\n")),
        (b"X: " + b"y" * 60_000 + b"\r\n", MAX_HEAD_BYTES),
        (b"y" * 1000, MAX_HEAD_BYTES),
    ],
    ids=["many", "large", "one"],
)
async def test_g10_a_head_that_does_not_end_is_cut(endless: bytes, most: int) -> None:
    statistics = Statistics()
    async with connected(HTTPListening(statistics)) as (_, writer), asyncio.timeout(PATIENCE):
        writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n" + (b"X: " if endless[:1] == b"y" else b""))
        sent = 100
        try:
            while True:
                writer.write(endless)
                sent += len(endless)
                await writer.drain()
                await asyncio.sleep(0)
        except ConnectionError:
            assert sent >= most
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
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", PATIENCE if before else 0.05)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    statistics = Statistics()
    async with connected(HTTPListening(statistics)) as (reader, writer), asyncio.timeout(PATIENCE):
        for _ in range(before):
            await ask(reader, writer)
        monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.05)
        writer.write(sent or b"G" * before)
        assert await reader.read() == b""
        assert statistics.counts["refused", "slow_head"] == 1


async def test_a_head_in_time_ends_the_patience_however_long_its_request_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "HEAD_SECONDS", 1.0)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    statistics = Statistics()
    async with connected(HTTPListening(statistics)) as (reader, writer), asyncio.timeout(PATIENCE):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\n\r\n")
        passed = asyncio.Event()
        asyncio.get_running_loop().call_later(1.2, passed.set)
        await passed.wait()
        writer.write(b"x")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        assert not statistics.counts


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"GET / HTTP/1.1\r\nHost: h\r\n\r\n")
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
    await reader.readexactly(1)


@pytest.mark.parametrize("begun", [b"", b"wh"])
async def test_a_body_that_does_not_come_is_waited_for_so_long(begun: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_connection, "BODY_SECONDS", 0.05)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    statistics = Statistics()
    head = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n"
    async with connected(HTTPListening(statistics)) as (reader, writer), asyncio.timeout(PATIENCE):
        for whole in (b"what", b"ever"):  # one that comes in parts, and then another, take no harm
            writer.write(head + whole[:1])
            await writer.drain()
            writer.write(whole[1:])
            assert (await reader.readuntil(b"\r\n\r\n4")).startswith(b"HTTP/1.1 200")
        writer.write(head + begun)
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
    assert statistics.total("refused", "slow_body") == 1


@pytest.mark.parametrize("cut", [20, -2], ids=["head", "body"])
async def test_who_sends_the_begin_of_one_with_the_end_of_another_has_the_whole_time_for_each(cut: int) -> None:
    made: list[HTTPConnection] = []

    class RememberingListening(HTTPListening):
        def __call__(self, *given: Any, **more: Any) -> HTTPConnection:
            made.append(super().__call__(*given, **more))
            return made[-1]

    def take(whole: WholeRequest) -> bool:
        whole.reply(200, [], whole.body)
        return True

    request = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nbody"
    async with talking(echo, RememberingListening(Statistics(), take)) as (reader, writer):
        writer.write(request)
        assert await said(reader) == b"body"
        connection = made[0]
        connection.data_received(request[:cut])
        for _ in range(3):
            due = connection.due
            connection.data_received(request[cut:] + request[:cut])
            assert await said(reader) == b"body"
            assert due < connection.due < inf


async def test_requests_that_do_not_wait_are_answered_in_order() -> None:
    async with talking(echo) as (reader, writer):
        writer.write(b"".join([GET % number for number in range(1000)]))
        assert [await said(reader) for _ in range(1000)] == [b"GET /%d " % number for number in range(1000)]


async def test_who_asks_for_another_protocol_is_answered_in_this_one_and_loses_nothing() -> None:
    """As Java's client does, which asks for HTTP/2 with its first request, whatever that is."""
    asks = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAEAAEAAAAIAAAAB\r\n"
    post = b"POST /%d HTTP/1.1\r\nHost: h\r\n" + asks + b"Content-Length: 4\r\n\r\nbody"
    async with talking(echo) as (reader, writer):
        writer.write(b"".join([(post % number) + (GET % number) for number in range(2000)]))
        for number in range(2000):
            assert await said(reader) == b"POST /%d body" % number
            assert await said(reader) == b"GET /%d " % number


async def test_what_is_no_http_is_refused_after_the_answers_that_are_due() -> None:
    statistics = Statistics()
    async with talking(echo, HTTPListening(statistics)) as (reader, writer):
        writer.write(GET % 1 + GET % 2 + b"nonsense\r\n\r\n" + GET % 3)
        assert await said(reader) == b"GET /1 "
        assert await said(reader) == b"GET /2 "
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    assert statistics.counts == {("refused", "not_http"): 1}


async def test_g10_who_is_answered_at_once_leaves_others_their_turn_and_gets_every_answer() -> None:
    """However much came in one piece; what is no HTTP behind it is refused after the answers that are due."""
    number, in_turn, most = 10 * MAX_STEPS, 0, 0

    def turn() -> None:
        nonlocal in_turn
        in_turn = 0

    def take(whole: WholeRequest) -> bool:
        nonlocal in_turn, most
        if not in_turn:
            asyncio.get_running_loop().call_soon(turn)
        in_turn += 1
        most = max(most, in_turn)
        whole.reply(200, [], whole.scope["path"].encode())
        return True

    async with talking(echo, HTTPListening(Statistics(), take)) as (reader, writer):
        writer.write(b"".join([GET % n for n in range(number)]) + b"nonsense\r\n\r\n")
        assert [await said(reader) for _ in range(number)] == [b"/%d" % n for n in range(number)]
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    assert most <= MAX_STEPS


async def test_a_body_that_is_no_http_is_refused_and_no_request() -> None:
    asked = asyncio.Event()
    seen: list[str] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        seen.append((await receive())["type"])
        asked.set()
        seen.append((await receive())["type"])

    statistics = Statistics()
    async with talking(application, HTTPListening(statistics)) as (reader, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n")
        await asked.wait()
        writer.write(b"no length\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")
    assert statistics.counts == {("refused", "not_http"): 1}
    assert seen == ["http.request", "http.disconnect"]


async def test_g10_what_stands_round_a_body_is_bounded() -> None:
    statistics = Statistics()
    async with talking(echo, HTTPListening(statistics)) as (_, writer):
        writer.write(b"POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\nX: ")
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(b"y" * 60_000)
                await writer.drain()
                await asyncio.sleep(0)
    assert statistics.counts["refused", "head"] == 1


async def test_a_connection_that_asks_nothing_is_ended_even_if_it_sends_empty_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_connection, "IDLE_SECONDS", 0.3)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    statistics = Statistics()
    async with talking(echo, HTTPListening(statistics)) as (reader, writer):
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "
        over = asyncio.ensure_future(reader.read())
        while not over.done():
            writer.write(b"\r\n")
            await asyncio.wait([over], timeout=0.05)
        assert isinstance(over.exception(), ConnectionError | None)
    assert not statistics.counts


async def test_a_small_body_in_a_second_packet_is_waited_for_for_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_listening, "HOLD_SECONDS", PATIENCE)
    offered: list[bytes] = []
    asked = asyncio.Event()

    def take(whole: WholeRequest) -> bool:
        offered.append(whole.body)
        return False

    async def application(scope: Any, receive: Any, send: Any) -> None:
        asked.set()
        await echo(scope, receive, send)

    head = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n"
    listening = HTTPListening(Statistics(), take)
    async with talking(application, listening) as (reader, writer):
        writer.write(head % 4)
        await asyncio.sleep(0)
        writer.write(b"bo")
        await writer.drain()
        writer.write(b"dy" + GET % 2)
        assert await said(reader) == b"POST /1 body"
        assert await said(reader) == b"GET /2 "
        assert offered == [b"body", b""]
        listening.hold = Patience(0.05)
        asked.clear()
        writer.write(head % 4)
        await asked.wait()  # who reads it says when it takes too long
        writer.write(b"late")
        assert await said(reader) == b"POST /1 late"
        asked.clear()
        writer.write(head % 1_000_000)
        await asked.wait()
        writer.write(b"x" * 1_000_000)
        assert len(await said(reader)) > 1_000_000
        assert len(offered) == 2


async def test_headers_are_told_as_they_are_with_each_request() -> None:
    seen: list[tuple[Any, ...]] = []

    def take(whole: WholeRequest) -> bool:
        headers = whole.headers
        seen.append((headers, headers.get("x"), headers.query, headers.peer, len(whole.body)))
        whole.reply(200, [], b"")
        return True

    async with talking(echo, HTTPListening(Statistics(), take)) as (reader, writer):
        for x, query, size in ((b"1", b"a", 3), (b"1", b"a", 11), (b"1", b"b", 4), (b"2", b"b", 0)):
            head = b"POST /?%b HTTP/1.1\r\nHost: h\r\nX: %b\r\nContent-Length: %d\r\n\r\n" % (query, x, size)
            writer.write(head + b"y" * size)
            await said(reader)
    assert [one[0] is seen[0][0] for one in seen] == [True, True, False, False]
    assert [one[1:] for one in seen] == [
        ("1", b"a", "127.0.0.1", 3),
        ("1", b"a", "127.0.0.1", 11),
        ("1", b"b", "127.0.0.1", 4),
        ("2", b"b", "127.0.0.1", 0),
    ]


SLOW_THEN_ECHO = b"POST /slow HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nslow"


def slow(may: asyncio.Event, asked: asyncio.Event) -> Any:
    """As `echo`, but for `/slow`, which it answers when it may."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/slow":
            await receive()
            asked.set()
            await may.wait()
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"4")]})
            await send({"type": "http.response.body", "body": b"slow"})
        else:
            await echo(scope, receive, send)

    return application


@pytest.mark.parametrize("head", [b"Content-Length: 4", b"Content-Length: 100000", b"Transfer-Encoding: chunked"])
@pytest.mark.parametrize("expects", [False, True])
async def test_a_body_that_comes_after_the_answer_before_it_is_read(
    head: bytes, expects: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the answer before it took: meanwhile it could not come."""
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_connection, "BODY_SECONDS", 0.05)
    body = b"y" * (100_000 if b"100000" in head else 4)
    may, asked = asyncio.Event(), asyncio.Event()
    statistics = Statistics()
    async with talking(slow(may, asked), HTTPListening(statistics)) as (reader, writer):
        more = b"Expect: 100-continue\r\n" if expects else b""
        writer.write(SLOW_THEN_ECHO)
        await asked.wait()
        writer.write(b"POST /2 HTTP/1.1\r\nHost: h\r\n" + head + b"\r\n" + more + b"\r\n")
        await asyncio.sleep(0.2)
        monkeypatch.setattr(http_connection, "BODY_SECONDS", PATIENCE)
        may.set()
        assert await said(reader) == b"slow"
        if expects:
            assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"4\r\nyyyy\r\n0\r\n\r\n" if b"chunked" in head else body)
        assert await said(reader) == b"POST /2 " + body
    assert not statistics.counts


async def test_who_is_answered_slowly_is_answered_whatever_comes_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    for behind in (b"G", b"G!!\r\n"):
        may, asked = asyncio.Event(), asyncio.Event()
        async with talking(slow(may, asked)) as (reader, writer):
            monkeypatch.setattr(http_connection, "HEAD_SECONDS", PATIENCE)
            writer.write(SLOW_THEN_ECHO)
            await asked.wait()
            monkeypatch.setattr(http_connection, "HEAD_SECONDS", 0.05)
            writer.write(behind[:1])
            await asyncio.sleep(0)
            writer.write(behind[1:])
            asyncio.get_running_loop().call_later(0.2, may.set)
            assert await said(reader) == b"slow"


async def test_the_end_of_the_server_waits_for_a_request_whose_body_is_on_its_way() -> None:
    listening = HTTPListening(Statistics())
    async with talking(echo, listening) as (reader, writer):
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "
        writer.write(b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\n")
        await until(
            lambda: (
                hasattr(listening, "state")
                and any(cast(Any, one)._reader.newest is not None for one in listening.state.connections)
            )
        )
        for connection in list(listening.state.connections):
            connection.shutdown()
        writer.write(b"body")
        assert await said(reader) == b"POST /1 body"
        assert await reader.read() == b""


async def test_http_1_0_stays_what_it_is_where_another_protocol_is_asked_for() -> None:
    async with talking(echo) as (reader, writer):
        writer.write(b"GET /1 HTTP/1.0\r\nConnection: upgrade\r\nUpgrade: x\r\nEmpty:\r\n\r\n")
        assert (await reader.read()).endswith(b"GET /1 ")
