"""What comes is read in portions, in order, and others have their turn between them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from trunkline.transports import portions
from trunkline.transports.portions import SMALL, Portions

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
PORTION = 1_000


class Reading(asyncio.Protocol):
    """Reads so much at once, and notes how often others had a turn since the last time."""

    def __init__(self) -> None:
        self.portions = Portions()
        self.came = b""
        self.sizes: list[int] = []
        self.is_lost = asyncio.Event()
        self.has_come = asyncio.Event()
        self.holds_at = -1
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.sizes.append(0)
        self.portions.take(data, self.read, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.portions.lost(self.is_lost.set)

    def read(self, data: bytes) -> bytes:
        self.came += data[:PORTION]
        self.sizes[-1] += len(data[:PORTION])
        self.has_come.set()
        if len(self.came) == self.holds_at:
            self.portions.hold(self.transport)
        return data[PORTION:]


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[Reading, asyncio.StreamWriter]]:
    """One connection: who reads, and who writes."""
    loop = asyncio.get_running_loop()
    made: asyncio.Future[Reading] = loop.create_future()

    def make() -> Reading:
        protocol = Reading()
        loop.call_soon(made.set_result, protocol)
        return protocol

    async with asyncio.timeout(PATIENCE), await loop.create_server(make, "127.0.0.1", 0) as server:
        _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            at = await made
            yield at, writer
        finally:
            writer.close()
            at.transport.abort()


TEXT = b"".join([b"%09d " % n for n in range(50_000)])


@pytest.fixture(autouse=True)
def every_portion_takes_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)


async def test_others_have_a_turn_between_portions_and_everything_comes_in_order() -> None:
    async with reading() as (at, writer):
        turns = 0

        def turn() -> None:
            nonlocal turns
            turns += 1
            if len(at.came) < len(TEXT):
                asyncio.get_running_loop().call_soon(turn)

        turn()
        writer.write(TEXT)
        writer.close()
        await at.is_lost.wait()
        assert at.came == TEXT
        assert turns >= len(TEXT) // PORTION


async def test_what_is_small_is_read_at_once() -> None:
    async with reading() as (at, writer):
        writer.write(b"x" * SMALL)
        while len(at.came) < SMALL:
            at.has_come.clear()
            await at.has_come.wait()
        assert at.sizes == [SMALL]


async def test_time_that_is_left_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "TURN_SECONDS", PATIENCE)
    async with reading() as (at, writer):
        writer.write(TEXT)
        writer.close()
        await at.is_lost.wait()
        assert at.came == TEXT
        assert max(at.sizes) > PORTION


async def test_what_came_before_the_connection_was_cut_is_read_before_that_is_told() -> None:
    async with reading() as (at, writer):
        writer.write(TEXT[:50_000])
        await at.has_come.wait()
        at.transport.pause_reading()
        at.connection_lost(None)
        assert not at.is_lost.is_set()
        await at.is_lost.wait()
        assert at.came == TEXT[: len(at.came)]
        assert len(at.came) == sum(at.sizes)
        assert len(at.came) > PORTION


async def test_nothing_is_read_of_a_connection_that_is_closed() -> None:
    async with reading() as (at, writer):
        writer.write(TEXT[:50_000])
        await at.has_come.wait()
        at.transport.abort()
        await at.is_lost.wait()
        assert len(at.came) < 50_000


@pytest.mark.parametrize("is_quick", [False, True])
async def test_nothing_is_handed_to_who_holds_it_until_it_is_released(
    is_quick: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_quick:
        monkeypatch.setattr(portions, "TURN_SECONDS", PATIENCE)
    async with reading() as (at, writer):
        at.holds_at = 5 * PORTION
        writer.write(TEXT)
        for held in (5, 9):
            while len(at.came) < at.holds_at:
                at.has_come.clear()
                await at.has_come.wait()
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(at.came) == held * PORTION
            at.holds_at = 9 * PORTION
            at.portions.release(at.transport)
        writer.close()
        await at.is_lost.wait()
        assert at.came == TEXT


async def test_who_holds_when_the_connection_is_lost_is_told_at_once() -> None:
    async with reading() as (at, writer):
        at.holds_at = PORTION
        writer.write(TEXT[:50_000])
        await at.has_come.wait()
        for _ in range(10):
            await asyncio.sleep(0)
        at.connection_lost(None)
        assert at.is_lost.is_set()
        assert len(at.came) == PORTION
