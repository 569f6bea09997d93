"""HTTP+SSE to servers that do it right, and to servers that do not; the contract holds the rest."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from contract.session import Receiver, Session, answer, connected, opened, told
from harness.gateways import until
from harness.one_stream import STREAM_HEAD, OneStreamServer, over_sse
from harness.raw_http import Peer, saying, serving
from harness.stream_peers import Line, sdk_over_sse
from trunkline.mux.errors import InvalidRequest, SessionLost, TrunklineError, UpstreamFault, UpstreamUnreachable
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.mux.ports import NONE
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream import http_delivery, sse
from trunkline.transports.upstream.sse import SSEConnector

pytestmark = pytest.mark.anyio

ENDPOINT = b"event: endpoint\ndata: /message\n\n"


def chunked(*events: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(event), event) for event in events)


@asynccontextmanager
async def connector_to(
    url: str, statistics: Statistics | None = None
) -> AsyncIterator[tuple[SSEConnector, Statistics]]:
    statistics = statistics or Statistics()
    connector = SSEConnector("x", url, statistics)
    try:
        yield connector, statistics
    finally:
        await connector.close()
        await connector.close()


@asynccontextmanager
async def session_with(**options: Any) -> AsyncIterator[tuple[Session, OneStreamServer, Statistics]]:
    async with over_sse() as server:
        for name, value in options.items():
            setattr(server, name, value)
        async with connector_to(server.address) as (connector, statistics), opened(connector) as session:
            yield session, server, statistics


async def refused(url: str) -> tuple[TrunklineError, Statistics]:
    """What opening raises."""
    async with connector_to(url) as (connector, statistics):
        with pytest.raises(TrunklineError) as raised:
            async with connector.connect(Receiver(), NONE, listen=True):
                raise AssertionError("it opened")
        return raised.value, statistics


async def test_each_request_is_counted_by_kind() -> None:
    async with session_with() as (session, server, statistics):
        await session.call(server)
        session.send(told(1))
        await server.got("notifications/message")
        session.send(b'{"jsonrpc":"2.0","id":1,"result":{}}', kind="response")
        await server.got("response")
    counts = {labels[-1]: count for labels, count in statistics.counts.items()}
    assert counts == {"get": 1, "initialize": 1, "initialized": 1, "call": 1, "notification": 1, "response": 1}


async def test_headers_say_what_they_have_to() -> None:
    async with (
        over_sse() as server,
        connector_to(server.address) as (connector, _),
        opened(connector, {"X-Tenant": "acme"}) as session,
    ):
        session.send(told(1), headers={"X-Class": "b"})
        message = await server.got("notifications/message")
        assert server.session.opening["accept"] == "text/event-stream"
        assert server.session.opening["x-tenant"] == message.headers["x-tenant"] == "acme"
        assert message.headers["x-class"] == "b"
        assert message.headers["mcp-protocol-version"] == "2025-11-25"
        assert "mcp-protocol-version" not in (await server.got("initialize")).headers


async def test_open_sessions_send_headers_that_were_rotated_but_keep_what_is_fixed_for_them() -> None:
    async with (
        over_sse() as server,
        connector_to(server.address) as (connector, _),
        opened(connector, {"X-Tenant": "acme"}) as session,
    ):
        connector.rotate({"Authorization": "Bearer new", "x-tenant": "other"})
        session.send(told(1))
        message = await server.got("notifications/message")
        assert message.headers["authorization"] == "Bearer new"
        assert message.headers["x-tenant"] == "acme"
        assert message.headers["mcp-protocol-version"] == "2025-11-25"


@pytest.mark.parametrize("endpoint", ["message?session={n}", "?session={n}", "ABSOLUTE"])
async def test_the_endpoint_may_be_relative_or_absolute(endpoint: str) -> None:
    async with over_sse() as server, connector_to(server.address) as (connector, _):
        server.endpoint = endpoint.replace("ABSOLUTE", server.address.replace("/sse", "/m?session={n}"))
        async with opened(connector) as session:
            await session.call(server)


@pytest.mark.parametrize(
    "endpoint", ["http://elsewhere.example/message", "https://127.0.0.1/message", "//elsewhere.example/m", "/m\x00"]
)
async def test_an_endpoint_elsewhere_is_refused(endpoint: str) -> None:
    async with over_sse() as server:
        server.endpoint = endpoint
        error, statistics = await refused(server.address)
        assert isinstance(error, UpstreamFault)
        assert "elsewhere" not in error.message, "the server's words are not ours"
        assert statistics.total("upstream_faults", "x") == 1
        await server.until(lambda: server.ended)
        assert server.messages == []


async def test_g10_an_endpoint_has_a_bound() -> None:
    async with over_sse() as server:
        server.endpoint = "/m?".ljust(sse.MAX_ENDPOINT_BYTES + 1, "x")
        error, statistics = await refused(server.address)
        assert isinstance(error, UpstreamFault)
        assert str(sse.MAX_ENDPOINT_BYTES) in error.message
        assert statistics.total("upstream_faults", "x") == 1


async def test_an_endpoint_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "ENDPOINT_SECONDS", 1.0)
    async with over_sse() as server:
        server.endpoint = ""
        error, statistics = await refused(server.address)
        assert isinstance(error, UpstreamFault)
        assert "did not say within 1 s" in error.message
        assert statistics.total("upstream_faults", "x") == 1
        await server.until(lambda: server.ended)


@pytest.mark.parametrize(
    ("answered", "kind", "words"),
    [
        (STREAM_HEAD + chunked(b"data: {}\n\n"), UpstreamFault, "a message before"),
        (STREAM_HEAD + chunked(b": ping\n\n") + b"0\r\n\r\n", UpstreamFault, "ended before"),
        (STREAM_HEAD + b"zz\r\n", UpstreamUnreachable, "cannot be reached"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 2\r\n\r\nhi",
            UpstreamFault,
            "no event stream",
        ),
        (b"HTTP/1.1 405 No\r\nContent-Length: 0\r\n\r\n", UpstreamUnreachable, "HTTP 405"),
        (b"HTTP/1.1 301 Moved\r\nLocation: http://y/\r\nContent-Length: 0\r\n\r\n", UpstreamUnreachable, "HTTP 301"),
    ],
)
async def test_what_is_no_stream_with_an_endpoint_is_refused(
    answered: bytes, kind: type[TrunklineError], words: str
) -> None:
    async with serving(saying(answered)) as server:
        error, _ = await refused(server.url)
    assert type(error) is kind
    assert words in error.message


async def test_a_server_that_is_not_there_got_nothing() -> None:
    async with serving(lambda peer: peer.closed()) as server:
        url = server.url
    error, _ = await refused(url)
    assert isinstance(error, UpstreamUnreachable)
    assert error.data == {"executed": "no"}


async def test_headers_that_cannot_be_sent_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        SSEConnector("x", "http://127.0.0.1/", Statistics(), headers={"A": "\n"})
    async with over_sse() as server, connector_to(server.address) as (connector, _):
        with pytest.raises(InvalidRequest):
            async with connector.connect(Receiver(), {"A": "\n"}, listen=True):
                raise AssertionError("it opened")
        async with opened(connector) as session:
            request = session.request(headers={"A": "\n"})
            session.send(told(1), headers={"A": "\n"})
            await session.receiver.until(lambda: session.receiver.of("failed"))
            (report,) = session.receiver.of("failed")
            assert report.request is request
            assert isinstance(report.error, InvalidRequest)
        assert (server.came("tools/call"), server.came("notifications/message")) == (0, 0)


@pytest.mark.parametrize(("status", "executed"), [(400, "no"), (413, "no"), (500, "unknown"), (302, "unknown")])
async def test_a_post_that_is_refused_fails_its_request_alone(status: int, executed: str) -> None:
    async with session_with(refuses={"tools/call", "notifications/message"}, refusal=status) as (session, server, _):
        request = session.request()
        session.send(told(1))
        await session.receiver.until(lambda: session.receiver.of("failed"))
        (report,) = session.receiver.of("failed")
        assert report.request is request
        assert report.error is not None
        assert report.error.data == {"status": status, "executed": executed}
        server.refuses.clear()
        await session.call(server)


async def test_g7_what_waits_for_a_connection_when_the_fence_closes_is_not_sent() -> None:
    async with session_with() as (session, server, _):
        may = True
        session.receiver.fence = lambda: may
        begun, held = session.request(), session.request()  # the second one needs a connection of its own
        session.send(told(1))
        may = False
        await session.receiver.until(lambda: len(session.receiver.of("withheld")) == 2)
        assert [report.request for report in session.receiver.of("withheld")] == [held, None]
        session.request()
        await session.receiver.until(lambda: len(session.receiver.of("withheld")) == 3)
        may = True
        await session.call(server, 2)
        assert begun.state == "pending"
        assert (server.came("tools/call"), server.came("notifications/message")) == (2, 0)


async def test_e12_a_call_that_was_cancelled_before_there_was_a_connection_for_it_is_not_sent() -> None:
    async with session_with() as (session, server, _):
        begun, cancelled = session.request(), session.request()  # the second one needs a connection of its own
        cancelled.state = "abandoned"
        await session.receiver.until(lambda: session.receiver.of("withheld"))
        assert [report.request for report in session.receiver.of("withheld")] == [cancelled]
        (await server.got("tools/call")).finish(answer(begun))
        await session.answered(begun)
        await session.call(server, 2)
        assert server.came("tools/call") == 2


async def test_a_notification_can_find_that_the_session_is_gone() -> None:
    async with session_with() as (session, server, _):
        server.forget()
        session.send(told(1))
        error = await session.lost()
        assert error.data == {"executed": "unknown"}
        await server.until(lambda: server.ended)


@pytest.mark.parametrize("ending", [b"", b"0\r\n\r\n", b"not a chunk"])
async def test_a_stream_that_ends_or_breaks_loses_the_session_at_once(ending: bytes) -> None:
    handshake: list[bytes] = []

    async def serve(peer: Peer) -> None:
        start, _, body = await peer.request()
        if start.startswith("GET"):
            await peer.say(STREAM_HEAD + chunked(ENDPOINT))
            await arrived.wait()
            await peer.say(ending)
            if not ending:
                peer.reset()
            return
        while True:
            handshake.append(body)
            await peer.say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
            arrived.set()
            _, _, body = await peer.request()

    arrived = anyio.Event()
    async with (
        serving(serve) as server,
        connector_to(server.url) as (connector, _),
        connected(connector) as session,
    ):
        request = session.request("initialize")
        error = await session.lost()
        assert error.data == {"executed": "unknown"}
        assert request.state == "pending", "it may have run: the channel tells its caller"
        with pytest.raises(SessionLost):
            await session.wire.establish("2025-11-25", b"{}")


async def test_an_event_that_is_too_large_loses_the_session() -> None:
    async with session_with() as (session, server, statistics):
        piece = b"x" * (1024 * 1024)
        server.session.raw(b"data: ")
        for _ in range(MAX_EVENT_BYTES // len(piece) + 1):
            server.session.raw(piece)
        error = await session.lost()
        assert f"larger than {MAX_EVENT_BYTES} bytes" in error.message
        assert statistics.total("upstream_faults", "x") == 1
        await server.until(lambda: server.ended)


async def test_what_is_no_message_is_left_out() -> None:
    async with session_with() as (session, server, _):
        server.session.raw(b": ping\n\nevent: message\ndata:\n\nevent: other\ndata: x\n\n")
        server.session.raw(b"event: endpoint\ndata: http://elsewhere.example/\n\nretry: 1\n\n")
        server.tell(told(1))
        await session.receiver.until(lambda: session.receiver.reports[-1].text == told(1))
        assert len(session.receiver.reports) == 2
        await session.call(server)


@asynccontextmanager
async def posting(post: Any, statistics: Statistics | None = None) -> AsyncIterator[Session]:
    """A session before its handshake, with a server that treats each POST so."""

    async def serve(peer: Peer) -> None:
        start, _, _ = await peer.request()
        if start.startswith("GET"):
            await peer.say(STREAM_HEAD + chunked(ENDPOINT))
            await peer.closed()
        else:
            await post(peer)

    async with (
        serving(serve) as server,
        connector_to(server.url, statistics) as (connector, _),
        connected(connector) as session,
    ):
        yield session


async def test_a_post_that_breaks_may_have_arrived() -> None:
    async def cut(peer: Peer) -> None:
        peer.reset()

    async with posting(cut) as session:
        request = session.request()
        session.send(told(1))
        await session.receiver.until(lambda: session.receiver.of("failed"))
        (report,) = session.receiver.of("failed")
        assert report.request is request
        assert report.error is not None
        assert report.error.data == {"executed": "unknown"}
        with pytest.raises(SessionLost):
            await session.wire.establish("2025-11-25", b"{}")


async def test_a_body_that_nobody_needs_is_not_read_to_its_end() -> None:
    closed = anyio.Event()

    async def talk(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 202 Accepted\r\nContent-Length: 9999999\r\n\r\n" + b"x" * 200_000)
        await peer.closed()
        closed.set()

    async with posting(talk) as session:
        session.request()
        with anyio.fail_after(10):
            await closed.wait()
        assert not session.receiver.reports


@pytest.mark.parametrize(("bound", "value"), [("MAX_DELIVERIES", 2), ("MAX_DELIVERY_BYTES", 2 * len(told(0)))])
async def test_g10_only_so_many_messages_wait_for_a_server_that_takes_none(
    monkeypatch: pytest.MonkeyPatch, bound: str, value: int
) -> None:
    monkeypatch.setattr(http_delivery, bound, value)
    arrived = anyio.Semaphore(0)

    async def hang(peer: Peer) -> None:
        arrived.release()
        await peer.closed()

    statistics = Statistics()
    async with posting(hang, statistics) as session:
        for n in range(5):
            session.send(told(n))
        session.request()
        with anyio.fail_after(10):
            for _ in range(3):  # two messages, and the request, which has bounds of its own
                await arrived.acquire()
        assert statistics.total("undelivered") == 3


async def test_g9_a_server_that_takes_no_messages_has_few_connections_of_them() -> None:
    arrived, count = anyio.Semaphore(0), 0

    async def hang(peer: Peer) -> None:
        nonlocal count
        count += 1
        arrived.release()
        await peer.closed()

    async with posting(hang) as session:
        for n in range(100):
            session.send(told(n))
        session.request()
        with anyio.fail_after(10):
            for _ in range(http_delivery.MAX_AT_ONCE + 1):
                await arrived.acquire()
        await anyio.wait_all_tasks_blocked()
        assert count == http_delivery.MAX_AT_ONCE + 1


async def test_what_waits_too_long_behind_others_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_delivery, "MAX_AT_ONCE", 1)

    async def hang(peer: Peer) -> None:
        await peer.closed()

    statistics = Statistics()
    async with posting(hang, statistics) as session:
        session.send(told(1))
        monkeypatch.setattr(http_delivery, "DELIVER_SECONDS", 0.01)
        session.send(told(2))
        await until(lambda: statistics.total("undelivered"))


async def test_what_does_not_reach_the_server_is_counted() -> None:
    was_cut = anyio.Event()

    async def cut(peer: Peer) -> None:
        peer.reset()
        was_cut.set()

    statistics = Statistics()
    async with posting(cut, statistics) as session:
        session.send(told(1))
        with anyio.fail_after(10):
            await was_cut.wait()
        session.request()
        await session.receiver.until(lambda: session.receiver.of("failed"))
        assert statistics.total("undelivered") == 1


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 202 Accepted\r\nContent-Length: 2\r\n\r\n"])
async def test_a_post_that_does_not_end_is_given_up_when_nobody_waits(
    monkeypatch: pytest.MonkeyPatch, begun: bytes
) -> None:
    monkeypatch.setattr(http_delivery, "DELIVER_SECONDS", 1.0)
    monkeypatch.setattr(sse, "LATE_SECONDS", 0.05)
    posts, given_up = itertools.count(1), list[int]()
    arrived, one, both = anyio.Event(), anyio.Event(), anyio.Event()

    async def hang(peer: Peer) -> None:
        post = next(posts)
        await peer.say(begun)
        arrived.set()
        await peer.closed()
        given_up.append(post)
        (one if len(given_up) == 1 else both).set()

    async with posting(hang) as session:
        request = session.request()
        await arrived.wait()
        session.send(told(1))
        with anyio.fail_after(10):
            await one.wait()  # the notification; the request was as late before it, but somebody waits for its answer
            assert request.state == "pending"
            assert given_up == [2]
            request.state = "done"
            await both.wait()
        assert not session.receiver.reports


@pytest.mark.parametrize("line", ["sdk1", "sdk2"])
async def test_a_server_of_the_sdk(line: Line) -> None:
    with sdk_over_sse(line) as url:
        async with connector_to(url) as (connector, _), opened(connector) as session:
            calls = [session.request(params={"name": "add", "arguments": {"a": n, "b": 1}}) for n in range(20)]
            for n, call in enumerate(calls):
                result = json.loads((await session.answered(call)).text)["result"]
                assert result["content"][0]["text"] == str(n + 1)
            slow = session.request(params={"name": "report", "arguments": {}, "_meta": {"progressToken": 7}})
            await session.answered(slow)
            assert any(b"notifications/progress" in report.text for report in session.receiver.reports)
            assert not session.receiver.of("failed")
            assert not session.receiver.of("lost")
