"""Connections of a listener are bounded in number, whatever their kind."""

import asyncio
import resource
from collections.abc import Mapping
from contextlib import suppress
from math import inf
from typing import Any, cast

import pytest
from harness.gateways import until
from harness.http_serving import GET, PATIENCE, Parts, echo, said, serving, talking
from harness.http_serving import answering as answering_in_parts
from trunkline.gateway import http_listening
from trunkline.gateway.http_connection import HTTPConnection
from trunkline.gateway.http_listening import HTTPListening, connection_limit
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

pytestmark = pytest.mark.anyio


async def test_g10_a_connection_over_the_limit_is_refused_with_503() -> None:
    statistics = Statistics()
    listening = HTTPListening(statistics)
    listening.max_connections = 1
    async with talking(echo, listening) as (reader, writer):
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "
        port = writer.get_extra_info("peername")[1]
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)
        refusal = await other_reader.read()
        assert refusal.startswith(b"HTTP/1.1 503")
        assert b"retry-after" in refusal
        other_writer.close()
        assert statistics.counts["refused", "connections"] == 1
        writer.write(GET % 2)
        assert await said(reader) == b"GET /2 "


HALF_A_HEAD = b"GET /1 HTTP/1.1\r\nHost: h\r\n"
UNREAD_BODY = b"POST /1 HTTP/1.1\r\nHost: h\r\nContent-Length: 9\r\n\r\n"


async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers without a look at the body, as who is not let in is answered; `/2` is not, before it has gone."""
    if scope["path"] == "/2":
        await receive()
        await receive()
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"no"})


@pytest.mark.parametrize(
    ("sent", "is_answered"),
    [(b"", False), (HALF_A_HEAD, False), (GET % 1, True), (UNREAD_BODY, True)],
    ids=["nothing", "half a head", "a request before", "no body"],
)
async def test_g10_who_waits_longest_for_its_client_gives_way_to_one_that_comes(
    sent: bytes, is_answered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_listening, "GIVE_WAY_SECONDS", 0.0)
    listening = HTTPListening(Statistics())
    listening.max_connections = 3
    async with serving(refusing, listening) as port, asyncio.timeout(PATIENCE):
        clients = []
        for request in (GET % 2, sent, sent):  # the first one is at work for longest, and does not wait
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            clients.append((reader, writer))
            if is_answered and request == sent:
                assert await said(reader) == b"no"
        await until(lambda: len(held(listening)) == 3 and (sent != HALF_A_HEAD or all_in_head(listening, 2)))
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET % 1)
        assert await said(reader) == b"no"
        assert listening.statistics.counts == {("refused", "gave_way"): 1}
        with suppress(ConnectionResetError):
            assert await clients[1][0].read() == b""
        assert len(held(listening)) == 3
        for _, one in [*clients, (reader, writer)]:
            one.close()


async def test_g10_who_asks_since_it_was_found_waiting_does_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "GIVE_WAY_SECONDS", 0.0)
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 3600)
    listening, may = HTTPListening(Statistics()), asyncio.Event()
    listening.max_connections = 2

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/2":
            await may.wait()
        await echo(scope, receive, send)

    async with serving(application, listening) as port, asyncio.timeout(PATIENCE):
        clients = []
        for _ in range(3):  # the first one gives way to the third, and the second one is found as well
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(GET % 1)
            assert await said(reader) == b"GET /1 "
            clients.append((reader, writer))
        reader, writer = clients[1]
        writer.write(GET % 2)
        await until(lambda: sum(one.waits_since == inf for one in held(listening)) == 1)
        _, late = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: listening.statistics.counts["refused", "gave_way"] == 2)
        may.set()
        assert await said(reader) == b"GET /2 "
        for _, one in (*clients, (reader, late)):
            one.close()


async def test_the_end_of_the_server_waits_for_requests_and_nothing_is_kept_of_them_once_they_are_answered() -> None:
    listening, may = HTTPListening(Statistics()), asyncio.Event()
    async with talking(answering_in_parts(b"1", b"2", until=may), listening) as (reader, writer):
        writer.write(GET % 1)
        await reader.readuntil(b"\r\n\r\n")
        assert len(listening.state.tasks) == 1
        may.set()
        await reader.readuntil(b"0\r\n\r\n")
        await until(lambda: not listening.state.tasks)


async def test_what_uvicorn_says_of_every_answer_is_as_it_says_now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The date is among it."""
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.01)
    listening = HTTPListening(Statistics())
    async with talking(echo, listening) as (reader, writer):
        await until(lambda: hasattr(listening, "state") and listening.answer_heads.default)
        before = listening.answer_heads.default
        await until(lambda: listening.answer_heads.default != before)
        writer.write(GET % 1)
        assert before not in await reader.readuntil(b"\r\n\r\n")


def all_in_head(listening: HTTPListening, count: int) -> bool:
    return sum(one.unfinished > 0 for one in held(listening)) == count


async def test_g10_who_has_not_waited_for_long_does_not_give_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(http_listening, "GIVE_WAY_SECONDS", 60.0)
    listening = HTTPListening(Statistics())
    listening.max_connections = 1
    async with talking(echo, listening) as (reader, writer):
        writer.write(GET % 1)
        assert await said(reader) == b"GET /1 "
        port = writer.get_extra_info("peername")[1]
        late, other = await asyncio.open_connection("127.0.0.1", port)
        assert (await late.read()).startswith(b"HTTP/1.1 503")
        other.close()
        monkeypatch.setattr(http_listening, "GIVE_WAY_SECONDS", 0.0)
        answer = b""
        while not answer.startswith(b"HTTP/1.1 200"):  # it is looked for again from the next look on
            late, other = await asyncio.open_connection("127.0.0.1", port)
            other.write(GET % 2)
            answer = await late.read(4096)
            other.close()
        assert await reader.read() == b""
        assert listening.statistics.counts["refused", "gave_way"] == 1


async def test_half_of_the_files_of_the_process_are_for_clients(monkeypatch: pytest.MonkeyPatch) -> None:
    for files, connections in ((1000, 500), (1, 1), (resource.RLIM_INFINITY, 1_000_000)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, files=files: (files, files))
        assert connection_limit() == connections


async def test_g10_sockets_of_both_kinds_count_to_the_limit() -> None:
    held = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await held.wait()
        else:
            await echo(scope, receive, send)

    statistics = Statistics()
    listening = HTTPListening(statistics)
    listening.max_connections = 2
    upgrade = b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    ask_for = b"GET / HTTP/1.1\r\nHost: h\r\n" + upgrade + b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    async with serving(application, listening) as port, asyncio.timeout(PATIENCE):
        writers = []
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(writer)
            writer.write(ask_for)
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        assert (await reader.read()).startswith(b"HTTP/1.1 503 ")
        held.set()
        for writer in writers:
            writer.close()


def held(listening: HTTPListening) -> list[HTTPConnection]:
    return [cast(HTTPConnection, one) for one in listening.state.connections] if hasattr(listening, "state") else []


async def test_g10_the_longest_heads_are_cut_when_all_that_do_not_end_are_too_long(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    listening = HTTPListening(Statistics())
    async with serving(echo, listening) as port, asyncio.timeout(PATIENCE):
        clients = []
        for size in (20_000, 60_000, 30_000, 10, 0):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /1 HTTP/1.1\r\nhost: h\r\nx: " + b"a" * size if size else GET % 1)
            clients.append((reader, writer))
        await until(lambda: sum(one.unfinished > 20_000 for one in held(listening)) == 3)
        assert not listening.statistics.counts
        monkeypatch.setattr(http_listening, "MAX_UNFINISHED_BYTES", 50_000)
        await until(lambda: listening.statistics.counts["refused", "head"] == 2)
        for cut in (1, 2):
            reader, writer = clients[cut]
            with suppress(ConnectionResetError):
                assert await reader.read() == b""
            writer.close()
        for left in (0, 3, 4):
            reader, writer = clients[left]
            if left != 4:
                writer.write(b"\r\n\r\n")
            assert await said(reader) == b"GET /1 "
            writer.close()


class Taking:
    """A connection of a client that takes so much of its answer from one look to the next."""

    due, unfinished, is_write_paused = float("inf"), 0, True

    def __init__(self, left: int, rate: int) -> None:
        self.left = left
        self.rate = rate
        self.why = ""

    @property
    def untaken(self) -> int:
        self.left -= self.rate
        return self.left

    def cut(self, why: str) -> None:
        self.why = why
        self.is_write_paused = False


async def test_g10_who_takes_a_large_answer_is_not_cut_for_those_who_leave_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 3600)
    monkeypatch.setattr(http_listening, "MAX_UNTAKEN_BYTES", 100_000)
    listening = HTTPListening(Statistics())
    listening.loop, listening.state = asyncio.get_running_loop(), ServerState()
    left, sipped, taken = Taking(10_000, 0), Taking(20_000, 1), Taking(69_000, 100)
    clients = [left, sipped, taken]
    for one in clients:
        listening.add(cast(HTTPConnection, one))
    while taken.left > 68_000:
        listening._look()
    assert [one.why for one in clients] == ["", "", ""]
    late = Taking(11_000, 10)
    listening.add(cast(HTTPConnection, late))
    listening._look()
    assert [one.why for one in (*clients, late)] == ["", "untaken", "", ""]


def answering(sizes: Mapping[bytes, int]) -> ASGIApp:
    """An application whose answers are so large, by their paths."""

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        body = b"x" * sizes[scope["raw_path"]]
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body})

    return application


async def test_g10_who_leaves_most_untaken_is_cut_when_all_leave_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 0.02)
    sizes = {b"/1": 20_000_000, b"/2": 30_000_000, b"/3": 24_000_000}

    listening = HTTPListening(Statistics())
    async with serving(answering(sizes), listening) as port, asyncio.timeout(PATIENCE):
        clients = []
        for number in (1, 2, 3):
            transport, client = await asyncio.get_running_loop().create_connection(Parts, "127.0.0.1", port)
            transport.pause_reading()
            transport.write(GET % number)
            clients.append((transport, client))
        await until(lambda: sum(one.is_write_paused for one in held(listening)) == 3)
        assert not listening.statistics.counts
        most = max(held(listening), key=lambda one: one.untaken)
        monkeypatch.setattr(http_listening, "MAX_UNTAKEN_BYTES", 50_000_000)
        await until(lambda: most.is_lost)
        assert listening.statistics.counts["refused", "untaken"] == 1
        for number, (transport, client) in zip((1, 2, 3), clients, strict=True):
            transport.resume_reading()
            if number == 2:
                await client.is_over.wait()
                continue
            came = 0
            while came < sizes[b"/%d" % number]:
                came += len(await client.parts.get())
            transport.close()


async def test_g10_who_takes_answer_after_answer_is_not_cut_for_those_who_leave_theirs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is left of one answer at a look, and of the next one at another, does not tell how fast it is taken."""
    monkeypatch.setattr(http_listening, "LOOK_SECONDS", 3600)
    sizes = {b"/1": 30_000_000, b"/2": 20_000_000, b"/3": 40_000_000}

    listening = HTTPListening(Statistics())
    async with serving(answering(sizes), listening) as port, asyncio.timeout(PATIENCE):
        left, _ = await asyncio.get_running_loop().create_connection(asyncio.Protocol, "127.0.0.1", port)
        taking, taker = await asyncio.get_running_loop().create_connection(Parts, "127.0.0.1", port)
        for number, transport in ((1, left), (2, taking)):
            transport.pause_reading()
            transport.write(GET % number)
        await until(lambda: sum(one.is_write_paused for one in held(listening)) == 2)
        listening._look()
        taking.resume_reading()
        came = 0
        while came < sizes[b"/2"]:
            came += len(await taker.parts.get())
        taking.pause_reading()
        taking.write(GET % 3)
        await until(lambda: sum(one.untaken > 15_000_000 for one in held(listening)) == 2)
        most = max(held(listening), key=lambda one: one.untaken)
        monkeypatch.setattr(http_listening, "MAX_UNTAKEN_BYTES", 50_000_000)
        listening._look()
        await until(lambda: len(held(listening)) == 1)
        assert held(listening) == [most]
        assert listening.statistics.counts["refused", "untaken"] == 1
        for transport in (left, taking):
            transport.abort()
