"""G10: large messages on a WebSocket that another worker serves count while they come, as on one served here."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
from harness.changing import until
from harness.duplex_clients import SocketClient
from harness.fragments import FRAME, KEY, in_fragments, whole, write
from harness.listening import Served, listening, serving
from harness.memory_wire import echo
from harness.worker_house import House
from trunkline.gateway import websockets
from trunkline.gateway.workers.forwarding import Forwarder
from trunkline.mux.burden import Burden
from trunkline.mux.errors import Elsewhere
from trunkline.transports import websocket
from trunkline.transports.asgi import Message, Receive, Scope, Send
from trunkline.transports.frames import text_frame
from websockets.frames import BINARY, Frame

pytestmark = pytest.mark.anyio

ALICE, BOB = {"Authorization": "alice"}, {"Authorization": "bob"}
FULL = "max_large_bytes_per_user: too much of one user's large messages is not answered yet"
PAD = b"x" * 300_000
CALL = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t","arguments":{"pad":"%b"}}}' % PAD


class Relayed:
    """Endpoints at worker `b`, and worker `a` in front of them, which hands everything on."""

    def __init__(self, at: Served, base: str) -> None:
        self.at = at
        self.base = base

    async def until_held(self, least: int, most: int) -> None:
        """Wait until so many bytes count at `b`."""
        await until(lambda: least <= self.at.pool.burden.held <= most)


async def elsewhere(scope: Scope, receive: Receive, send: Send) -> None:
    """Worker `a`: all that comes is worker `b`'s."""
    await receive()
    raise Elsewhere("b")


@pytest.fixture
async def relayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Relayed]:
    monkeypatch.setattr(websockets, "LINGER_SECONDS", 0.1)  # who is closed within a message does not answer it legally
    async with AsyncExitStack() as stack:
        at = await stack.enter_async_context(listening())
        at.server.on_request = echo
        house = House(tmp_path, stack)
        await stack.enter_async_context(house.member.running())
        await house.begins("b", at.endpoints)
        forwarder = Forwarder(elsewhere, house.member, house.opened, house.statistics)
        port = await stack.enter_async_context(serving(forwarder))
        yield Relayed(at, f"http://127.0.0.1:{port}/servers/x")


@asynccontextmanager
async def begun(relayed: Relayed, headers: dict[str, str]) -> AsyncIterator[SocketClient]:
    async with SocketClient(relayed.base, headers) as client:
        await client.open()
        yield client


@pytest.mark.parametrize("sent", [whole(CALL), in_fragments(CALL)], ids=["whole", "in fragments"])
async def test_g10_messages_that_are_not_complete_count_where_they_are_served(relayed: Relayed, sent: bytes) -> None:
    at = relayed.at
    at.pool.burden = Burden(total=2_000_000, per_user=400_000)
    async with begun(relayed, ALICE) as one, begun(relayed, ALICE) as two, begun(relayed, BOB) as three:
        write(one, sent[:-1])
        await relayed.until_held(200_000, 310_000)
        write(two, sent[:-1])
        assert await two.closed() == (1013, FULL)
        assert at.counts["refused", "max_large_bytes_per_user"] == 1
        write(three, sent[:-1])
        await relayed.until_held(400_000, 620_000)
        for client in (one, three):
            write(client, sent[-1:])
            assert "result" in await client.answer(1)
        assert at.pool.burden.held == 0
        write(one, sent + sent[:-1])
        assert "result" in await one.answer(1)
        await relayed.until_held(200_000, 310_000)
        one.cut()
        await relayed.until_held(0, 0)


async def test_g10_a_large_message_that_does_not_come_to_its_end_is_given_up(
    relayed: Relayed, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with begun(relayed, ALICE) as client:
        write(client, whole(CALL))
        assert "result" in await client.answer(1)
        monkeypatch.setattr(websocket, "BODY_SECONDS", 0.2)
        write(client, in_fragments(CALL)[: 20 * FRAME])  # to the end of one: what the client's library answers is legal
        assert await client.closed() == (1008, "the message took too long to come")
        assert relayed.at.counts["refused", "slow_body"] == 1
        await relayed.until_held(0, 0)


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (Frame(BINARY, b"b").serialize(mask=True), 1003),
        (Frame(BINARY, b"b", fin=False).serialize(mask=True), 1003),
        (text_frame(b"\xff", KEY), 1007),
        (b"\x83\x80" + KEY, 1002),
        (text_frame(b"x" * 4_194_305, KEY), 1009),
    ],
    ids=["binary", "the beginning of what is binary", "no UTF-8", "not legal", "too large"],
)
async def test_what_is_no_message_ends_it_as_it_ends_one_that_is_served_here(
    relayed: Relayed, sent: bytes, code: int
) -> None:
    async with begun(relayed, ALICE) as client:
        write(client, sent)
        assert (await client.closed())[0] == code


async def test_who_does_not_ask_for_it_is_told_of_whole_messages_alone(tmp_path: Path) -> None:
    """A worker of a build that knows nothing of it took it for a binary frame, and closed."""
    told: list[Message] = []

    async def former(scope: Scope, receive: Receive, send: Send) -> None:
        told.append(await receive())
        await send({"type": "websocket.accept", "subprotocol": "mcp", "headers": [(b"mcp-session-id", b"x")]})
        while told[-1]["type"] != "websocket.disconnect":
            told.append(await receive())
            await send({"type": "websocket.send", "text": '{"id":1}'})

    async with AsyncExitStack() as stack:
        house = House(tmp_path, stack)
        await stack.enter_async_context(house.member.running())
        await house.begins("b", former)
        forwarder = Forwarder(elsewhere, house.member, house.opened, house.statistics)
        port = await stack.enter_async_context(serving(forwarder))
        async with SocketClient(f"http://127.0.0.1:{port}/servers/x", ALICE) as client:
            await client.connect()
            write(client, whole(CALL)[:-1])
            write(client, whole(CALL)[-1:] + in_fragments(CALL))
            await client.hear(2)
    assert told[1:3] == [{"type": "websocket.receive", "text": CALL.decode()}] * 2


async def test_messages_that_come_in_one_piece_are_relayed_in_order(relayed: Relayed) -> None:
    async with begun(relayed, ALICE) as client:
        ping = b'{"jsonrpc":"2.0","id":%d,"method":"ping"}'
        write(client, b"".join(text_frame(ping % n, KEY) for n in range(200)))
        assert [(await client.next())["id"] for _ in range(200)] == list(range(200))
