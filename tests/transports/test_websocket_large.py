"""G10: what large messages take while they come on sockets, and while they wait there, is bounded as bodies are."""

import gc
import json
import tracemalloc

import anyio
import pytest
from harness import muxing
from harness.duplex_clients import SocketClient, initialize
from harness.fragments import FRAME, KEY, in_fragments, whole, write
from harness.gateways import until
from harness.listening import Served, listening
from harness.memory_wire import Exchange, echo
from harness.muxing import PATIENCE
from trunkline.mux.burden import MAX_BYTES_PER_USER, Burden
from trunkline.transports import websocket

pytestmark = pytest.mark.anyio

ALICE, BOB = {"Authorization": "alice"}, {"Authorization": "bob"}
FULL = "max_large_bytes_per_user: too much of one user's large messages is not answered yet"
CALL = json.dumps(
    {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "t", "arguments": {"pad": "x" * 100_000}}}
).encode()


async def until_held(at: Served, least: int, most: int) -> None:
    with anyio.fail_after(PATIENCE):
        while not least <= at.pool.burden.held <= most:
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("sent", [whole(CALL), in_fragments(CALL)], ids=["whole", "in fragments"])
async def test_g10_messages_that_are_not_complete_count_to_what_their_user_may_have(sent: bytes) -> None:
    async with (
        listening() as at,
        SocketClient(at.base(), ALICE) as one,
        SocketClient(at.base(), ALICE) as two,
        SocketClient(at.base(), BOB) as three,
    ):
        at.pool.burden = Burden(total=1_000_000, per_user=150_000)
        at.server.on_request = echo
        for client in (one, two, three):
            await client.open()
        write(one, sent[:-1])
        await until_held(at, 100_000, 101_000)
        write(three, sent[:-1])
        await until_held(at, 200_000, 202_000)
        write(two, sent[:-1])
        assert await two.closed() == (1013, FULL)
        assert at.counts["refused", "max_large_bytes_per_user"] == 1
        for client in (one, three):
            write(client, sent[-1:])
            assert "result" in await client.answer(1)
        assert at.pool.burden.held == 0
        write(one, sent + sent[:-1])
        assert "result" in await one.answer(1)
        await until_held(at, 100_000, 101_000)
        one.cut()
        await until_held(at, 0, 0)


async def test_g10_a_large_message_that_does_not_come_to_its_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as at, SocketClient(at.base(), ALICE) as client:
        await client.open()
        at.server.on_request = echo
        write(client, whole(CALL))
        assert "result" in await client.answer(1)
        monkeypatch.setattr(websocket, "BODY_SECONDS", 1.0)
        write(client, in_fragments(CALL)[: 9 * FRAME])
        await until_held(at, 90_000, 90_000)
        write(client, b"\x89\x80" + KEY)  # a ping between fragments is no progress
        assert await client.closed() == (1008, "the message took too long to come")
        assert at.counts["refused", "slow_body"] == 1
        await until_held(at, 0, 0)


@pytest.mark.parametrize("sent", [whole(CALL), in_fragments(CALL)], ids=["whole", "in fragments"])
async def test_g10_of_a_message_that_was_cut_nothing_waits_for_the_garbage_collector(sent: bytes) -> None:
    async with listening() as at:

        async def cut(count: int) -> None:
            """Begin a message on so many sockets, and cut them."""
            for _ in range(count):
                async with SocketClient(at.base(), ALICE, counts=False) as client:
                    await client.open("?workflow=k")
                    write(client, sent[:-1])
                    await until_held(at, 100_000, 101_000)
                await until_held(at, 0, 0)

        await cut(1)
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            await cut(10)
            await until(lambda: tracemalloc.get_traced_memory()[0] < 500_000)
        finally:
            tracemalloc.stop()
            gc.enable()


async def test_g10_a_socket_whose_message_finds_no_room_to_wait_is_closed_in_order() -> None:
    async with listening() as at, SocketClient(at.base(), ALICE) as client:
        at.pool.burden = Burden(per_user=len(CALL) - 1)
        await client.connect("?workflow=k")
        write(client, whole(CALL)[:-5_000])
        await until_held(at, 90_000, 97_000)
        write(client, whole(CALL)[-5_000:])
        with anyio.fail_after(PATIENCE / 2):  # the client's close is read: it need not wait for who does not answer
            assert await client.closed() == (1013, FULL)
        await until_held(at, 0, 0)


async def test_g10_a_large_message_that_had_to_wait_counts_once_when_it_is_taken() -> None:
    async with listening() as at, SocketClient(at.base(), ALICE) as client:
        at.server.on_request = echo
        others = MAX_BYTES_PER_USER - len(CALL) * 3 // 2
        at.pool.burden.take_up(muxing.ALICE, "x", others)
        await client.connect("?workflow=k")
        write(client, whole(CALL))
        assert "result" in await client.answer(1)
        await until_held(at, others, others)
        at.pool.burden.lay_down(muxing.ALICE, "x", others)


async def test_g10_large_messages_that_wait_for_their_session_count_as_well() -> None:
    held: list[Exchange] = []
    async with (
        listening() as at,
        SocketClient(at.base(), ALICE) as one,
        SocketClient(at.base(), ALICE) as two,
    ):
        at.pool.burden = Burden(total=1_000_000, per_user=150_000)
        at.server.answers_initialize = held.append
        at.server.on_request = echo
        await one.connect()
        await one.send(initialize())
        write(one, whole(CALL))
        await until_held(at, 100_000, 101_000)
        await two.connect()
        await two.send(initialize())
        write(two, whole(CALL))
        assert await two.closed() == (1013, FULL)
        for exchange in held:
            exchange.answer(
                {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}}
            )
        assert "result" in await one.answer(1)
        await until_held(at, 0, 0)
