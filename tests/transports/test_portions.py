"""What comes is read in portions, in order, and others have their turn between them."""

import asyncio
import gc
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as some
from trunkline.transports import portions
from trunkline.transports.portions import SMALL, Portions

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
PORTION = 1_000


@pytest.fixture(scope="module", params=[False, True], ids=["asyncio", "uvloop"])
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, bool]]:
    """Both event loops: what they do with a connection that is closing, or paused, differs."""
    return "asyncio", {"use_uvloop": request.param}


class Reading(asyncio.Protocol):
    """Reads so much at once, and notes how often others had a turn since the last time."""

    def __init__(self, made: "asyncio.Queue[Reading]") -> None:
        self.made = made
        self.portions = Portions()
        self.taken = b""
        self.came = b""
        self.sizes: list[int] = []
        self.is_lost = asyncio.Event()
        self.has_come = asyncio.Event()
        self.holds_at = -1
        self.then: Callable[[], object] | None = None
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self.made.put_nowait(self)

    def data_received(self, data: bytes) -> None:
        self.sizes.append(0)
        self.taken += data
        self.portions.take(data, self.read, self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self.portions.lost(self.is_lost.set)

    def read(self, data: bytes, at: int) -> int:
        part = data[at : at + PORTION]
        self.came += part
        self.sizes[-1] += len(part)
        self.has_come.set()
        if len(self.came) == self.holds_at:
            self.portions.hold(self.transport)
        if self.then is not None:
            then, self.then = self.then, None
            then()
        return at + len(part)


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[tuple[str, int], "asyncio.Queue[Reading]"]]:
    """Where to connect to, and who reads what comes there."""
    loop = asyncio.get_running_loop()
    made: asyncio.Queue[Reading] = asyncio.Queue()

    async with asyncio.timeout(PATIENCE), await loop.create_server(lambda: Reading(made), "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname(), made


@asynccontextmanager
async def reading() -> AsyncIterator[tuple[Reading, asyncio.StreamWriter]]:
    """One connection: who reads, and who writes."""
    async with listening() as (address, made):
        _, writer = await asyncio.open_connection(*address)
        try:
            at = await made.get()
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


async def test_what_came_before_a_peer_cut_the_connection_is_read_though_something_was_to_be_written() -> None:
    """That fails, and a transport is closing from then on, while what it brought still waits for its turn."""
    loop = asyncio.get_running_loop()
    async with listening() as (address, made):
        with socket.create_connection(address) as peer:
            at = await made.get()

            def cut() -> None:
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                at.transport.write(b"x")

            at.then = lambda: loop.call_soon(cut)
            peer.sendall(TEXT[:50_000])
            await at.is_lost.wait()
            assert len(at.came) > PORTION
            assert at.came == at.taken


async def test_a_connection_ends_whose_reader_fails_in_a_later_turn() -> None:
    async with reading() as (at, writer):
        failed: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))

        def fail() -> None:
            raise ValueError

        def fail_next() -> None:
            at.then = fail

        at.then = fail_next
        writer.write(TEXT[:50_000])
        await at.is_lost.wait()
        asyncio.get_running_loop().set_exception_handler(None)
        assert [type(one["exception"]) for one in failed] == [ValueError]


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


class Told:
    """What there is between a transport and who reads, where both do whatever they may, in any order."""

    def __init__(self, holds: frozenset[int]) -> None:
        self.portions = Portions()
        self.holds = holds
        """Before which of the portions that come it is held."""
        self.taken = self.came = b""
        self.read = 0
        self.is_reading, self.is_held, self.is_closed, self.is_lost = True, False, False, False
        self.ends = 0

    # The transport.

    def pause_reading(self) -> None:
        self.is_reading = False

    def resume_reading(self) -> None:
        assert not self.is_closed
        assert not self.is_held
        self.is_reading = True

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def send(self, size: int, *, unasked: bool = False) -> None:
        """Some more comes, where it is read; as some transports do, once more though it is not."""
        if not self.is_lost and (self.is_reading or unasked):
            part = TEXT[len(self.taken) : len(self.taken) + size]
            self.taken += part
            self.portions.take(part, self._read, self)

    def lose(self) -> None:
        """It is over."""
        if not self.is_lost:
            self.is_lost = self.is_closed = True
            self.portions.lost(self._end)
            assert self.ends or not self.is_held

    # Who reads.

    def hold(self) -> None:
        if not self.is_held and not self.is_closed:
            self.is_held = True
            self.portions.hold(self)

    def release(self) -> None:
        if self.is_held:
            self.is_held = False
            self.portions.release(self)

    def _read(self, data: bytes, at: int) -> int:
        assert not self.is_held
        assert not self.ends
        assert at < len(data)
        part = data[at : at + PORTION]
        self.came += part
        assert self.taken.startswith(self.came)
        self.read += 1
        if self.read in self.holds:
            self.hold()
        return at + len(part)

    def _end(self) -> None:
        self.ends += 1
        assert self.is_held or self.came == self.taken


async def test_g10_no_more_is_read_while_some_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)
    told = Told(frozenset())
    told.send(3 * PORTION)
    while told.came != told.taken:
        assert not told.is_reading
        await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert told.is_reading


STEPS: dict[str, Callable[[Told], None]] = {
    "a little": lambda told: told.send(100),
    "some": lambda told: told.send(SMALL),
    "much": lambda told: told.send(5 * PORTION),
    "unasked": lambda told: told.send(50, unasked=True),
    "much unasked": lambda told: told.send(3 * PORTION, unasked=True),
    "hold": Told.hold,
    "release": Told.release,
    "close": Told.close,
    "lose": Told.lose,
}
COMMON = ["turn", "turn", "a little", "some", "much", "unasked", "much unasked", "hold", "release"]


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("seconds", [-1.0, PATIENCE])
@given(
    steps=some.lists(some.sampled_from(COMMON), max_size=30),
    last=some.lists(some.sampled_from([*COMMON, "close", "lose"]), max_size=10),
    holds=some.frozensets(some.integers(1, 30), max_size=4),
)
def test_whatever_happens_all_is_read_once_in_order_and_nothing_stalls(
    run: Callable[[Any], None], seconds: float, steps: list[str], last: list[str], holds: frozenset[int]
) -> None:
    async def live() -> None:
        failed: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        told = Told(holds)
        for step in (*steps, *last):
            if step == "turn":
                await asyncio.sleep(0)
            else:
                STEPS[step](told)
        told.holds = frozenset()
        if not told.ends:
            told.release()
        for _ in range(len(told.taken) // PORTION + 10):
            await asyncio.sleep(0)
        assert not failed
        assert told.ends == told.is_lost
        if not told.is_lost:
            assert told.came == told.taken
            assert told.is_reading or told.is_closed
        assert all(isinstance(one, bool | bytes | type | None) for one in gc.get_referents(told.portions))

    portions.TURN_SECONDS, before = seconds, portions.TURN_SECONDS  # type: ignore[misc]
    try:
        run(live())
    finally:
        portions.TURN_SECONDS = before  # type: ignore[misc]
