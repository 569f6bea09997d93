"""G10: messages of a server that are not complete are bounded in all, whatever they come on; over it, one fails.

None of them waits for the garbage collector, once it is cut.
"""

import asyncio
import gc
from collections.abc import Iterator
from contextlib import AsyncExitStack

import pytest
from contract.session import Receiver, opened, told
from harness.changing import until
from harness.http_bench import http_bench
from harness.modern_bench import STREAM, all_of, answer, asked, chunk
from harness.one_stream import over_sse
from harness.raw_http import Peer, saying, serving
from harness.upstream_scripted import Cut, Hang, OpenStream, Pause, Play, Raw, Send
from trunkline.mux.errors import UpstreamFault
from trunkline.mux.ports import NONE, MovableWire
from trunkline.mux.statistics import Statistics
from trunkline.transports.frames import text_frame
from trunkline.transports.unfinished import Unfinished
from trunkline.transports.upstream.sse import SSEConnector
from trunkline.transports.upstream.websocket import WebSocketConnector
from websockets.utils import accept_key

pytestmark = pytest.mark.anyio

BEGUN = b"x" * 100_000
"""Of each message; no more than one of them has room."""
ROOM = 150_000
CLOSING_BYTE = 0x88
LIMIT = {"limit": "max_unfinished_bytes"}
BODY: Play = [OpenStream({"Content-Type": "application/json"}), Raw(BEGUN), Hang()]
EVENT: Play = [OpenStream(), Raw(b"data: " + BEGUN), Hang()]


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Nothing is freed but by counting."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("play", [BODY, EVENT], ids=["body", "event"])
async def test_g10_answers_over_streamable_http(play: Play) -> None:
    async with http_bench(call=[play] * 3) as bench, bench.session() as session:
        unfinished = bench.connector.unfinished = Unfinished(ROOM)
        first = session.request()
        await until(lambda: unfinished.held >= len(BEGUN))
        error = await session.failure(session.request())
        assert (type(error), error.data) == (UpstreamFault, LIMIT)
        session.wire.abandon(first)
        await until(lambda: not unfinished.held)
        session.request()
        await until(lambda: unfinished.held >= len(BEGUN))
    assert unfinished.held == 0


async def test_g10_of_an_event_that_was_cut_nothing_is_kept_until_its_stream_is_taken_up() -> None:
    play: Play = [OpenStream(), Send(told(1), event_id="1", retry=100), *EVENT[1:-1], Cut()]
    async with http_bench(call=[play], resume=[[Hang()]]) as bench, bench.session() as session:
        bench.connector.unfinished = Unfinished(ROOM)
        request = session.request()
        await bench.upstream.saw("resume")
        assert request.state == "pending"
        assert bench.connector.unfinished.held == 0


TAKEN_UP: Play = [OpenStream(), Send(told(1), event_id="1", retry=1), Cut()]


@pytest.mark.usefixtures("no_collector")
async def test_g10_of_an_event_that_was_cut_again_nothing_is_kept_until_its_stream_is_taken_up() -> None:
    cut: Play = [*EVENT[:-1], Cut()]
    async with http_bench(call=[TAKEN_UP], resume=[cut, cut, [Hang()]]) as bench, bench.session() as session:
        bench.connector.unfinished = Unfinished(ROOM)
        request = session.request()
        for times in (2, 3):
            await bench.upstream.saw("resume", times)
            assert bench.connector.unfinished.held == 0
        assert request.state == "pending"


@pytest.mark.usefixtures("no_collector")
async def test_g10_of_a_stream_that_was_taken_up_nothing_is_kept_once_its_call_is_abandoned() -> None:
    async with http_bench(call=[TAKEN_UP], resume=[EVENT]) as bench, bench.session() as session:
        unfinished = bench.connector.unfinished = Unfinished(ROOM)
        request = session.request()
        await until(lambda: unfinished.held >= len(BEGUN))
        session.wire.abandon(request)
        await until(lambda: not unfinished.held)


@pytest.mark.usefixtures("no_collector")
async def test_g10_of_a_stream_that_was_taken_up_nothing_is_kept_once_its_call_has_failed() -> None:
    more: Play = [*EVENT[:-1], Pause("more"), Raw(BEGUN), Hang()]
    async with http_bench(call=[TAKEN_UP], resume=[more]) as bench, bench.session() as session:
        unfinished = bench.connector.unfinished = Unfinished(ROOM)
        request = session.request()
        await until(lambda: unfinished.held >= len(BEGUN))
        bench.upstream.open("more")
        assert (await session.failure(request)).data == LIMIT
        await until(lambda: not unfinished.held)


async def test_g10_the_stream_of_what_is_told_unasked() -> None:
    async with http_bench(GET=[EVENT], call=[EVENT]) as bench:
        unfinished = bench.connector.unfinished = Unfinished(ROOM)
        async with bench.session() as session:
            await until(lambda: unfinished.held >= len(BEGUN))
            assert (await session.failure(session.request())).data == LIMIT
            assert isinstance(session.wire, MovableWire)
            session.wire.rest()
            assert unfinished.held == 0


@pytest.mark.parametrize("is_stream", [False, True], ids=["body", "event"])
async def test_g10_answers_of_2026_07_28(is_stream: bool) -> None:
    async def serve(peer: Peer) -> None:
        await peer.request()
        if is_stream:
            await peer.say(STREAM, chunk(b"data: " + BEGUN))
        else:
            await peer.say(answer(b" " * 300_000)[:-200_000])
        await peer.closed()

    async with asked(serve) as here:
        unfinished = here.upstream.unfinished = Unfinished(ROOM)
        passage = here.send()
        await until(lambda: unfinished.held >= len(BEGUN))
        other = here.send()
        with pytest.raises(UpstreamFault) as caught:
            await all_of(other)
        assert caught.value.data == LIMIT | {"executed": "unknown"}
        passage.close()
        other.close()
        del caught
        assert unfinished.held == 0


@pytest.mark.usefixtures("no_collector")
async def test_g10_of_an_answer_of_2026_07_28_that_failed_nothing_is_kept() -> None:
    async with asked(saying(STREAM, chunk(b"data: " + BEGUN), chunk(BEGUN))) as here:
        unfinished = here.upstream.unfinished = Unfinished(ROOM)
        passage = here.send()
        with pytest.raises(UpstreamFault):
            await all_of(passage)
        passage.close()
        del passage
        assert unfinished.held == 0


async def test_g10_the_stream_of_http_and_sse() -> None:
    async with over_sse() as server:
        statistics = Statistics()
        connector = SSEConnector("x", server.address, statistics)
        unfinished = connector.unfinished = Unfinished(ROOM)
        async with opened(connector) as one, opened(connector) as other:
            server.sessions[0].raw(b"data: " + BEGUN)
            await until(lambda: unfinished.held >= len(BEGUN))
            server.sessions[1].raw(b"data: " + BEGUN)
            assert "not complete" in (await other.lost()).message
            assert statistics.counts["upstream_faults", "x"] == 1
            assert not one.receiver.of("lost")
        await connector.close()
        await until(lambda: not unfinished.held)


@pytest.mark.usefixtures("no_collector")
async def test_g10_of_a_stream_of_http_and_sse_that_failed_before_it_said_where_messages_go() -> None:
    async with serving(saying(STREAM, chunk(b"data: " + BEGUN), chunk(BEGUN))) as server:
        connector = SSEConnector("x", server.url, Statistics())
        unfinished = connector.unfinished = Unfinished(ROOM)
        with pytest.raises(UpstreamFault):
            await AsyncExitStack().enter_async_context(connector.connect(Receiver(), NONE, listen=True))
        await connector.close()
        assert unfinished.held == 0


async def test_g10_messages_on_websockets() -> None:
    whole = text_frame(b'{"jsonrpc":"2.0","method":"notifications/x","params":"%b"}' % BEGUN)
    go_on = asyncio.Event()

    async def serve(peer: Peer) -> None:
        _, headers, _ = await peer.request()
        accepted = accept_key(headers["sec-websocket-key"]).encode()
        head = b"HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: mcp\r\n"
        await peer.say(head + b"Sec-WebSocket-Accept: %b\r\n\r\n" % accepted, whole[:-1])
        await go_on.wait()
        await peer.say(whole[-1:])
        while (data := await peer.some()) and data[0] != CLOSING_BYTE:
            pass

    statistics = Statistics()
    async with serving(serve) as server, AsyncExitStack() as stack:
        connector = WebSocketConnector("x", server.url.replace("http", "ws", 1), statistics)
        unfinished = connector.unfinished = Unfinished(ROOM)
        one, other = Receiver(), Receiver()
        await stack.enter_async_context(connector.connect(one, NONE, listen=True))
        await until(lambda: unfinished.held >= len(BEGUN))
        await stack.enter_async_context(connector.connect(other, NONE, listen=True))
        await other.until(lambda: other.of("lost"))
        assert statistics.counts["upstream_faults", "x"] == 1
        go_on.set()
        await one.until(lambda: one.of("received"))
        assert not one.of("lost")
        await until(lambda: not unfinished.held)
