"""WebSocket to servers that do it right, and to servers that do not; the contract holds the rest."""

import asyncio
import json
import logging
import signal
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import uvloop
from contract.session import Receiver, Session, connected, opened, told
from harness.changing import until
from harness.framing import frames_of
from harness.one_stream import OneStreamServer, over_websocket
from harness.raw_http import Peer, saying, serving
from harness.stream_peers import sdk_over_websocket
from trunkline.mux.errors import InvalidRequest, TrunklineError, UpstreamFault, UpstreamUnreachable
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.mux.ports import NONE
from trunkline.mux.statistics import Statistics
from trunkline.transports import portions
from trunkline.transports.frames import Frames, text_frame
from trunkline.transports.upstream import websocket
from trunkline.transports.upstream.one_stream import MAX_UNSENT
from trunkline.transports.upstream.websocket import WebSocketConnector
from websockets.asyncio.server import ServerConnection, serve
from websockets.frames import CLOSE, PING, PONG, Frame
from websockets.protocol import SERVER, Protocol
from websockets.utils import accept_key

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def session_with() -> AsyncIterator[tuple[Session, OneStreamServer, Statistics]]:
    statistics = Statistics()
    async with over_websocket() as server, opened(WebSocketConnector("x", server.address, statistics)) as session:
        yield session, server, statistics


async def refused(url: str) -> TrunklineError:
    """What opening raises."""
    with pytest.raises(TrunklineError) as raised:
        async with WebSocketConnector("x", url, Statistics()).connect(Receiver(), NONE, listen=True):
            raise AssertionError("it opened")
    return raised.value


def ws(url: str) -> str:
    return url.replace("http://", "ws://")


async def test_each_message_is_counted_by_kind() -> None:
    async with session_with() as (session, server, statistics):
        await session.call(server)
        session.send(told(1))
        session.send(b'{"jsonrpc":"2.0","id":1,"result":{}}', kind="response")
        await server.got("response")
    counts = {labels[-1]: count for labels, count in statistics.counts.items()}
    assert counts == {"initialize": 1, "initialized": 1, "call": 1, "notification": 1, "response": 1}


async def test_the_opening_carries_headers_and_asks_for_the_subprotocol() -> None:
    async with over_websocket() as server:
        connector = WebSocketConnector("x", server.address, Statistics(), headers={"Authorization": "Bearer s"})
        async with opened(connector, {"X-Tenant": "acme"}):
            opening = server.session.opening
            assert opening["authorization"] == "Bearer s"
            assert opening["x-tenant"] == "acme"
            assert opening["sec-websocket-protocol"] == "mcp"
            assert "sec-websocket-extensions" not in opening, "no compression"
            assert opening["user-agent"] == "trunkline"
            connector.rotate({"authorization": "Bearer t"})
        async with opened(connector):
            assert server.session.opening["authorization"] == "Bearer t"
        await connector.close()


async def test_debug_logs_hold_no_secret(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    async with over_websocket() as server:
        connector = WebSocketConnector("x", server.address, Statistics(), headers={"Authorization": "Bearer s3cret"})
        async with opened(connector):
            pass
    ours = [record for record in caplog.records if record.name != "websockets.server"]  # the test's own server
    assert not [record for record in ours if "s3cret" in record.getMessage()]


@pytest.mark.parametrize("url", ["http://x/", "ws://", "ws:///x", "ws://x/#f", "ws://a..b/"])
def test_another_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="ws://"):
        WebSocketConnector("x", url, Statistics())


async def test_headers_that_cannot_be_sent_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be sent"):
        WebSocketConnector("x", "ws://127.0.0.1/", Statistics(), headers={"A": "\n"})
    with pytest.raises(InvalidRequest):
        async with WebSocketConnector("x", "ws://127.0.0.1/", Statistics()).connect(
            Receiver(), {"A": "\n"}, listen=True
        ):
            raise AssertionError("it opened")


@pytest.mark.parametrize(
    ("answered", "kind", "data"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", UpstreamUnreachable, {"status": 403, "executed": "no"}),
        (
            b"HTTP/1.1 307 Go\r\nLocation: ws://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
            UpstreamUnreachable,
            {"status": 307, "executed": "no"},
        ),
        (b"no HTTP at all\r\n\r\n", UpstreamFault, {}),
        (b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", UpstreamFault, {}),
    ],
)
async def test_an_opening_that_is_refused_or_broken(
    answered: bytes, kind: type[TrunklineError], data: dict[str, object]
) -> None:
    async with serving(saying(answered)) as server:
        error = await refused(ws(server.url))
        assert server.connections == 1, "a redirect is not followed"
    assert type(error) is kind
    assert error.data == data


async def test_a_server_that_is_not_there_got_nothing() -> None:
    async with serving(lambda peer: peer.closed()) as server:
        url = ws(server.url)
    error = await refused(url)
    assert isinstance(error, UpstreamUnreachable)
    assert error.data == {"executed": "no"}
    assert error.message == "the server cannot be reached: Connection refused"


async def test_a_server_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CONNECT_SECONDS", 0.1)
    async with serving(lambda peer: peer.closed()) as server:
        error = await refused(ws(server.url))
    assert isinstance(error, UpstreamUnreachable)
    assert error.message.endswith("no connection in time")


async def test_a_server_without_the_subprotocol_is_refused() -> None:
    async def handle(connection: ServerConnection) -> None:
        await connection.wait_closed()

    async with serve(handle, "127.0.0.1", 0) as server:
        error = await refused(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/")
    assert isinstance(error, UpstreamFault)
    assert "subprotocol mcp" in error.message


async def test_a_failure_of_tls_says_so_without_the_address() -> None:
    async def speak_no_tls(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 This is no TLS\r\n\r\n")
        await peer.closed()

    async with serving(speak_no_tls) as server:
        error = await refused(server.url.replace("http://", "wss://"))
    assert isinstance(error, UpstreamUnreachable)
    assert error.message == "the server cannot be reached: TLS could not be set up"


async def test_a_binary_frame_loses_the_session() -> None:
    async with session_with() as (session, server, statistics):
        waiting = session.request()
        await server.got("tools/call")
        server.session.raw(b"\x00")
        assert "binary" in (await session.lost()).message
        assert statistics.total("upstream_faults", "x") == 1
        assert waiting.state == "pending"
        await server.until(lambda: server.ended)


async def test_a_frame_that_is_too_large_loses_the_session() -> None:
    async with session_with() as (session, server, statistics):
        server.tell(b'"' + b"x" * MAX_EVENT_BYTES + b'"')
        assert "1009" in (await session.lost()).message
        assert statistics.total("upstream_faults", "x") == 1


async def test_a_large_frame_arrives() -> None:
    text = b'"' + b"x" * (MAX_EVENT_BYTES - 2) + b'"'
    async with session_with() as (session, server, _):
        server.tell(text)
        await session.receiver.until(lambda: session.receiver.reports[-1].text == text)


async def test_a_close_tells_its_code_and_not_its_reason() -> None:
    async with session_with() as (session, server, statistics):
        server.session.close()
        assert (await session.lost()).message == "the server closed the WebSocket (1000)"
        assert statistics.total("upstream_faults", "x") == 0


async def test_a_server_that_is_cut_off_is_lost() -> None:
    async with session_with() as (session, server, _):
        server.session.cut()
        assert (await session.lost()).message == "the connection was cut"


async def test_a_server_that_answers_no_ping_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.1)
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.1)
    async with session_with() as (session, server, _):
        server.session.stall()
        assert (await session.lost()).message == "the server did not answer pings"


async def test_a_server_that_does_not_read_is_lost_and_what_was_not_sent_did_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.1)
    async with session_with() as (session, server, _):
        first = session.request()
        await server.got("tools/call")
        server.session.stall()
        requests = []
        while not session.receiver.of("lost"):
            requests.append(session.request(params={"x": "x" * 1_000_000}))
            await anyio.lowlevel.checkpoint()
        await session.lost()
        (report,) = session.receiver.of("lost")
        assert first.state == "pending"
        assert report.refused
        assert set(report.refused) == set(requests[-len(report.refused) :]), "the last ones"
        assert len(report.refused) < len(requests), "some had been handed to the kernel"
        assert 16 <= len(requests) <= 40, "the queue is bounded"


async def test_g7_what_waits_when_the_fence_closes_is_not_sent() -> None:
    async with session_with() as (session, server, _):
        may = True
        session.receiver.fence = lambda: may
        session.request()
        await server.got("tools/call")
        server.session.stall()
        requests = []
        for _ in range(12):
            requests.append(session.request(params={"x": "x" * 1_000_000}))
            await anyio.wait_all_tasks_blocked()
        session.send(told(1))
        may = False
        server.session.go_on()
        await session.receiver.until(lambda: any(one.request is None for one in session.receiver.of("withheld")))
        withheld = [one.request for one in session.receiver.of("withheld") if one.request is not None]
        assert withheld
        assert withheld == requests[-len(withheld) :], "the last ones, in order"
        may = True
        session.send(told(2))
        last = await server.got("notifications/message")
        assert json.loads(last.text)["params"] == {"data": 2}
        assert server.came("tools/call") == 1 + len(requests) - len(withheld)
        assert not session.receiver.of("lost")


async def test_g6_a_call_that_failed_while_it_waited_is_not_begun() -> None:
    async with session_with() as (session, server, _):
        session.request()
        await server.got("tools/call")
        server.session.stall()
        for _ in range(12):
            session.request(params={"x": "x" * 1_000_000})
            await anyio.wait_all_tasks_blocked()
        failed, abandoned = (session.request() for _ in range(2))
        failed.state = "done"
        abandoned.state = "abandoned"  # its cancellation follows, and names it
        server.session.go_on()
        last = session.request()
        await server.until(lambda: json.loads(server.messages[-1].text).get("id") == last.id)
        ids = [json.loads(message.text).get("id") for message in server.messages]
        assert ids[-3:] == [failed.id - 1, abandoned.id, last.id]


async def test_small_messages_are_bounded_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    async with session_with() as (session, _, _):
        requests = [session.request() for _ in range(MAX_UNSENT + 1)]
        await session.lost()
        (report,) = session.receiver.of("lost")
        assert requests[-1] in report.refused


CLOSING_BYTE = 0x88
"""How a frame begins that closes."""


async def accept(peer: Peer, behind: bytes = b"") -> None:
    """Answer the upgrade, with this right behind it."""
    _, headers, _ = await peer.request()
    accepted = accept_key(headers["sec-websocket-key"]).encode()
    head = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mcp\r\n"
    await peer.say(head + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accepted + behind)


@asynccontextmanager
async def by_hand(behind_the_upgrade: list[bytes]) -> AsyncIterator[tuple[Session, list[bytes]]]:
    """A session with a server that answers the upgrade with these pieces behind it; and what it read after that."""
    read: list[bytes] = []

    async def say(peer: Peer) -> None:
        first, *others = behind_the_upgrade
        await accept(peer, first)
        await peer.say(*others)
        while (data := await peer.some()) and data[0] != CLOSING_BYTE:
            read.append(data)

    async with serving(say) as server, connected(WebSocketConnector("x", ws(server.url), Statistics())) as session:
        yield session, read


@pytest.mark.parametrize("cut", [0, 1, 5, 40, None])
async def test_what_comes_right_behind_the_upgrade_is_heard(cut: int | None) -> None:
    text = b"".join(text_frame(told(n)) for n in range(3))
    pieces = [text] if cut is None else [text[:cut], text[cut:]]
    async with by_hand(pieces) as (session, _):
        await session.receiver.until(lambda: len(session.receiver.reports) == 3)
        assert [one.text for one in session.receiver.reports] == [told(n) for n in range(3)]


async def test_a_server_that_leaves_right_behind_the_upgrade_is_lost() -> None:
    close = Frame(CLOSE, b"\x03\xe9").serialize(mask=False)
    async with by_hand([close]) as (session, _):
        assert (await session.lost()).message == "the server closed the WebSocket (1001)"


async def test_what_is_sent_at_once_goes_out_in_one_piece() -> None:
    async with by_hand([b""]) as (session, read):
        for n in range(3):
            session.send(told(n))
        await until(lambda: read)
        frames = Frames(Protocol(SERVER), 1 << 20, is_masked=True)
        assert frames_of(read[0], frames) == [told(n) for n in range(3)]
        size = 6 + len(told(0))
        assert len({read[0][at + 2 : at + 6] for at in (0, size, 2 * size)}) == 3, (
            "each is masked with a key of its own"
        )


@pytest.mark.parametrize("text", [b"\xff", b'"\xe2\x28\xa1"'])
async def test_text_that_is_no_utf8_loses_the_session(text: bytes) -> None:
    async with by_hand([text_frame(text)]) as (session, _):
        assert (await session.lost()).message == "the server sent what is not taken (1007)"


async def test_a_server_that_does_not_read_for_long_owes_no_pong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "PING_SECONDS", 0.2)
    async with session_with() as (session, server, _):
        server.session.stall()
        for _ in range(12):
            session.request(params={"x": "x" * 1_000_000})
        await anyio.sleep(0.7)  # several pings would be due, and unanswered
        monkeypatch.setattr(websocket, "PING_SECONDS", 10.0)
        server.session.go_on()
        await server.got("tools/call", 12)
        assert not session.receiver.of("lost")


async def test_g10_a_server_that_pings_and_reads_nothing_is_owed_one_pong() -> None:
    stalled, go_on = anyio.Event(), anyio.Event()
    read: list[bytes | Frame] = []

    async def pinging(peer: Peer) -> None:
        await accept(peer)
        await stalled.wait()
        await peer.say(
            b"".join(Frame(PING, b"%d" % n).serialize(mask=False) for n in range(1_000)) + text_frame(told(1))
        )
        await go_on.wait()
        frames = Frames(Protocol(SERVER, max_size=None), MAX_EVENT_BYTES, is_masked=True)
        while came := await peer.some():
            read.extend(frames_of(came, frames))

    async with serving(pinging) as server:
        async with connected(WebSocketConnector("x", ws(server.url), Statistics())) as session:
            for _ in range(15):
                session.request(params={"x": "x" * 1_000_000})
            await anyio.sleep(0.1)  # so much is written as the kernel takes
            stalled.set()
            await session.receiver.until(lambda: session.receiver.reports)
            go_on.set()
        await until(lambda: bool(any(isinstance(one, Frame) and one.opcode is CLOSE for one in read)))
    pongs = [bytes(one.data) for one in read if isinstance(one, Frame) and one.opcode is PONG]
    assert pongs == [b"999"]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_came_with_pings_before_the_connection_was_cut_is_heard_and_then_that_it_was(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pongs can no longer be written; a transport of uvloop that is closed raises where that is tried."""
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)
    count = 800
    ping = Frame(PING, b"").serialize(mask=False)

    async def live() -> None:
        receiver = Receiver()

        async def cutting(peer: Peer) -> None:
            await accept(peer)
            await peer.say(b"".join(text_frame(told(n)) + ping for n in range(count)))
            await receiver.until(lambda: receiver.reports)
            peer.reset()

        async with (
            serving(cutting) as server,
            WebSocketConnector("x", ws(server.url), Statistics()).connect(receiver, NONE, listen=True),
        ):
            await receiver.until(lambda: receiver.of("lost"))
        *heard, end = receiver.reports
        assert [report.text for report in heard] == [told(n) for n in range(count)]
        assert str(end.error) == "the connection was cut"

    run(live())


async def test_what_was_sent_last_arrives_before_the_good_bye() -> None:
    async with session_with() as (session, server, _):
        for n in range(50):
            session.send(told(n))
    await server.until(lambda: server.ended)
    assert server.came("notifications/message") == 50


async def test_a_server_of_the_sdk() -> None:
    with sdk_over_websocket() as (url, process):
        async with opened(WebSocketConnector("x", url, Statistics())) as session:
            calls = [session.request(params={"name": "add", "arguments": {"a": n, "b": 1}}) for n in range(20)]
            for n, call in enumerate(calls):
                result = json.loads((await session.answered(call)).text)["result"]
                assert result["content"][0]["text"] == str(n + 1)
            report = session.request(params={"name": "report", "arguments": {}, "_meta": {"progressToken": 7}})
            await session.answered(report)
            assert any(b"notifications/progress" in one.text for one in session.receiver.reports)
            assert not session.receiver.of("lost")
            waiting = session.request(params={"name": "forever", "arguments": {}})
            process.send_signal(signal.SIGKILL)
            assert (await session.lost()).message == "the connection was cut"
            assert waiting.state == "pending"
