"""The connections of the lean client: how they come about, are used again, are cut, and end."""

import asyncio
import socket
import threading
from functools import partial

import pytest
from harness.http1_client import CONTEXT, NONE, PLAIN, client_of, post
from harness.raw_http import PATIENCE, Hearer, Peer, serving
from trunkline.transports import portions
from trunkline.transports.upstream import http1
from trunkline.transports.upstream.http1 import HTTP1Client

pytestmark = pytest.mark.anyio


async def test_what_comes_unasked_on_a_kept_connection_is_nobodys_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 2 * PATIENCE)  # else it would be closed for being idle
    speak, spoken = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await speak.wait()
        await peer.say(PLAIN.replace(b"hello", b"wrong"))
        await peer.closed()
        spoken.set()

    async with client_of(serve) as (client, server):
        assert await post(client).outcome() is None
        speak.set()
        async with asyncio.timeout(PATIENCE):
            await spoken.wait()
        hearer = post(client)
        assert await hearer.outcome() is None
        assert hearer.body == b"hello"
    assert server.connections == 2


async def test_an_answer_before_the_request_was_read_ends_the_connection() -> None:
    async def serve(peer: Peer) -> None:
        await peer.say(PLAIN)
        await peer.closed()

    async with client_of(serve) as (client, server):
        hearer = post(client, b"x" * 64 * 1024 * 1024)
        error = await hearer.outcome()
        assert error is None or error.sent
        await post(client).outcome()
    assert server.connections == 2


async def test_requests_at_once_have_connections_of_their_own_and_share_them_later() -> None:
    arrived = asyncio.Barrier(5)

    async def serve(peer: Peer) -> None:
        while True:
            _, _, body = await peer.request()
            if not body.startswith(b"later"):
                await arrived.wait()
            await peer.say(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body), body)

    async with client_of(serve) as (client, server):
        hearers = [post(client, b"%d" % n) for n in range(5)]
        assert [await hearer.outcome() for hearer in hearers] == [None] * 5
        assert [hearer.body for hearer in hearers] == [b"%d" % n for n in range(5)]
        for n in range(10):
            later = post(client, b"later%d" % n)
            assert await later.outcome() is None
            assert later.body == b"later%d" % n
    assert server.connections == 5


async def answer_once(closed: asyncio.Event, peer: Peer) -> None:
    await peer.request()
    await peer.say(PLAIN)
    await peer.closed()
    closed.set()


async def test_a_kept_connection_is_dropped_when_it_was_idle_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 0.05)
    closed = asyncio.Event()
    async with client_of(partial(answer_once, closed)) as (client, _):
        assert await post(client).outcome() is None
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


async def test_g9_a_server_that_vanished_without_a_word_is_noticed() -> None:
    answering = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        answering.set()
        await peer.closed()

    async with client_of(serve) as (client, _):
        post(client)
        await asyncio.wait_for(answering.wait(), PATIENCE)
        (connection,) = client._open
        used = connection._transport.get_extra_info("socket")
        assert used.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        probes = {name: used.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in http1.PROBED}
        assert probes == http1.PROBED
        assert probes["TCP_KEEPIDLE"] + probes["TCP_KEEPINTVL"] * probes["TCP_KEEPCNT"] <= 120


async def test_a_server_that_is_not_there_got_nothing() -> None:
    async with serving(lambda peer: peer.closed()) as server:
        url = server.url
    client = HTTP1Client(url, CONTEXT)
    error = await post(client).outcome()
    await client.close()
    assert error is not None
    assert not error.sent
    assert str(error) == "Connection refused"


async def test_a_server_that_does_not_speak_tls_got_nothing() -> None:
    async def serve(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.closed()

    async with serving(serve) as server:
        client = HTTP1Client(server.url.replace("http:", "https:"), CONTEXT)
        error = await post(client).outcome()
        await client.close()
    assert error is not None
    assert not error.sent
    assert "127.0.0.1" not in str(error)


async def test_a_connection_that_does_not_come_about_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "CONNECT_SECONDS", 0.05)
    async with serving(lambda peer: peer.closed()) as server:
        client = HTTP1Client(server.url.replace("http:", "https:"), CONTEXT)
        error = await post(client).outcome()
        await client.close()
    assert error is not None
    assert not error.sent


async def test_where_no_thread_can_be_made_that_asks_for_a_host_the_request_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    client = HTTP1Client("http://localhost:9/mcp", CONTEXT)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", fail)
        error = await post(client).outcome()
    await client.close()
    assert error is not None
    assert not error.sent
    assert [record.getMessage() for record in caplog.records] == ["no connection could be opened"]


async def test_a_cut_exchange_tells_nothing_and_closes_its_connection() -> None:
    came, closed = asyncio.Event(), asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        came.set()
        await peer.closed()
        closed.set()

    async with client_of(serve) as (client, _):
        hearer = Hearer()
        cut = client.send("POST", NONE, b"{}", hearer)
        async with asyncio.timeout(PATIENCE):
            await came.wait()
            cut()
            await closed.wait()
        assert not hearer.over.done()


async def test_a_cut_while_connecting_sends_nothing() -> None:
    seen: list[bytes] = []

    async def serve(peer: Peer) -> None:
        _, _, body = await peer.request()
        seen.append(body)
        await peer.say(PLAIN)

    async with client_of(serve) as (client, _):
        hearer = Hearer()
        client.send("POST", NONE, b"never", hearer)()
        await post(client).outcome()
        assert seen == [b"{}"]
        assert not hearer.over.done()


async def test_a_late_cut_does_not_touch_the_next_request_on_the_connection() -> None:
    second = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(PLAIN)
        await peer.request()
        second.set()
        await peer.say(PLAIN)
        await peer.closed()

    async with client_of(serve) as (client, server):
        first = Hearer()
        cut = client.send("POST", NONE, b"{}", first)
        assert await first.outcome() is None
        next_one = post(client)
        async with asyncio.timeout(PATIENCE):
            await second.wait()
        cut()
        assert await next_one.outcome() is None
    assert server.connections == 1


async def test_closing_breaks_what_is_under_way() -> None:
    came = asyncio.Event()

    async def serve(peer: Peer) -> None:
        await peer.request()
        came.set()
        await peer.closed()

    async with client_of(serve) as (client, _):
        hearer = post(client)
        async with asyncio.timeout(PATIENCE):
            await came.wait()
        connecting = post(client)
        await client.close()
        assert await hearer.outcome() is not None
        error = await connecting.outcome()
        assert error is not None
        assert not error.sent


async def test_what_is_asked_after_the_end_is_answered_and_keeps_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http1, "KEEP_ALIVE_SECONDS", 2 * PATIENCE)
    closed = asyncio.Event()
    async with client_of(partial(answer_once, closed)) as (client, _):
        await client.close()
        assert await post(client).outcome() is None
        async with asyncio.timeout(PATIENCE):
            await closed.wait()


@pytest.mark.parametrize("seconds", [-1.0, PATIENCE])
async def test_an_answer_that_nobody_asked_for_behind_a_long_one_is_nobodys(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where one portion ends with the answer, what is behind it was there before it could be another's."""
    monkeypatch.setattr(portions, "TURN_SECONDS", seconds)
    head, end = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0\r\n\r\n"
    size = portions.PORTION_BYTES - len(head) - len(b"%x\r\n\r\n" % portions.PORTION_BYTES) - len(end)
    long = head + b"%04x\r\n%b\r\n" % (size, b"x" * size) + end
    assert len(long) == portions.PORTION_BYTES

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(long + PLAIN.replace(b"hello", b"wrong"))
        await peer.request()
        await peer.say(PLAIN)

    async with client_of(serve) as (client, server):
        first = post(client)
        assert await first.outcome() is None
        assert first.body == b"x" * size
        server._serve = answer_plainly
        second = post(client)
        assert await second.outcome() is None
        assert second.body == b"hello"
        assert server.connections == 2


async def answer_plainly(peer: Peer) -> None:
    await peer.request()
    await peer.say(PLAIN)
