"""A server that offers no GET stream says so on a connection that serves on; and nothing of that is left behind."""

import asyncio
import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest
from contract.session import Session, opened
from harness.gateways import until
from harness.raw_http import PATIENCE, Peer, RawServer, Serve, serving
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream import answers
from trunkline.transports.upstream.answers import ERROR_BODY_BYTES
from trunkline.transports.upstream.http1 import _Connection
from trunkline.transports.upstream.http_delivery import Receipt
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

ACCEPTED = b"HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n"
REFUSED = b"HTTP/1.1 %d No\r\nContent-Type: text/plain\r\nContent-Length: 7\r\n\r\n"
BODY = b"no such"


def answering(id: int) -> bytes:
    body = b'{"jsonrpc":"2.0","id":%d,"result":{"protocolVersion":"2025-11-25","capabilities":{}}}' % id
    return b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


def server_of(refuse: Callable[[Peer], object]) -> Serve:
    """A server that answers what is asked for by POST, in order, and has a GET refused by that."""

    async def serve(peer: Peer) -> None:
        while True:
            start, _, body = await peer.request()
            if start.startswith("GET"):
                await refuse(peer)  # type: ignore[misc]
            elif b'"id"' in body:
                await peer.say(answering(int(body.partition(b'"id": ')[2].partition(b",")[0])))
            else:
                await peer.say(ACCEPTED)

    return serve


@asynccontextmanager
async def session(refuse: Callable[[Peer], object]) -> AsyncIterator[tuple[Session, RawServer]]:
    async with serving(server_of(refuse)) as server, asyncio.timeout(PATIENCE):
        connector = StreamableHTTPConnector("x", server.url, Statistics())
        try:
            async with opened(connector) as here:
                yield here, server
        finally:
            await connector.close()


@pytest.mark.parametrize("status", [400, 404, 405, 503])
async def test_a_refused_stream_costs_no_connection(status: int) -> None:
    refused = asyncio.Event()

    async def refuse(peer: Peer) -> None:
        await peer.say(REFUSED % status + BODY)
        refused.set()

    async with session(refuse) as (here, server):
        await refused.wait()
        for _ in range(3):
            await here.answered(here.request())
        assert server.connections == 1


async def test_what_a_refusal_says_may_come_later() -> None:
    go_on, is_used_again = asyncio.Event(), asyncio.Event()

    async def refuse(peer: Peer) -> None:
        await peer.say(REFUSED % 405)
        await go_on.wait()
        await peer.say(BODY)
        _, _, body = await peer.request()
        is_used_again.set()
        await peer.say(answering(int(body.partition(b'"id": ')[2].partition(b",")[0])))
        await peer.closed()

    async with session(refuse) as (here, server):
        await here.answered(here.request())
        assert server.connections == 2, "the first one is not free yet"
        go_on.set()
        at_once = 1
        while not is_used_again.is_set():
            at_once += 1  # in the end more than there are other connections
            for request in [here.request() for _ in range(at_once)]:
                await here.answered(request)


async def say_nothing(peer: Peer) -> None:
    """Say that there is a body, and nothing of it."""
    await peer.say(REFUSED % 405)


async def say_too_much(peer: Peer) -> None:
    """Say more than anybody wants to know."""
    await peer.say(b"HTTP/1.1 405 No\r\nContent-Length: 99999999\r\n\r\n", b"x" * (ERROR_BODY_BYTES + 1))


@pytest.mark.parametrize("say", [say_nothing, say_too_much])
async def test_a_refusal_without_an_end_is_cut(say: Callable[[Peer], object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "LISTEN_SECONDS", 0.05 if say is say_nothing else 3600.0)
    is_cut = asyncio.Event()

    async def refuse(peer: Peer) -> None:
        await say(peer)  # type: ignore[misc]
        await peer.closed()
        is_cut.set()

    async with session(refuse) as (here, _):
        await is_cut.wait()
        await here.answered(here.request())


async def test_what_a_refusal_says_is_not_kept() -> None:
    said = b"no such " * 4096
    refused = asyncio.Event()

    async def refuse(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 503 No\r\nContent-Length: %d\r\n\r\n%b" % (len(said), said))
        refused.set()

    tracemalloc.start()
    try:
        async with session(refuse) as (here, _):
            await refused.wait()
            await here.answered(here.request())
            parts = [one.size for one in tracemalloc.take_snapshot().traces]
    finally:
        tracemalloc.stop()
    assert max(parts) < len(said)


@pytest.fixture
def uncollected() -> Iterator[Callable[[type], int]]:
    """How many objects of a type there are, while nothing collects what refers to itself."""
    gc.collect()
    gc.disable()
    yield lambda kind: sum(isinstance(one, kind) for one in gc.get_objects())
    gc.enable()


@pytest.mark.parametrize("kind", [_Connection, Receipt])
async def test_nothing_of_a_session_is_left_to_the_garbage_collector(
    kind: type, uncollected: Callable[[type], int]
) -> None:
    async def refuse(peer: Peer) -> None:
        await peer.say(REFUSED % 405 + BODY)

    async with session(refuse) as (here, _):
        here.send(b'{"jsonrpc":"2.0","method":"notifications/roots/list_changed"}')
        await here.answered(here.request())
    await until(lambda: uncollected(kind) == 0)
