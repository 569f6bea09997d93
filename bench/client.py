"""The load: calls in a closed loop, in an open loop, or all at once; every answer is checked.

`async with opened(target, inflight=16) as slots` gives room for calls, and `closed_loop(slots, seconds=1)`,
`open_loop(slots, rate=1000, seconds=1)` and `burst(slots)` make them. A target is a port, a path and a transport.
"""

import asyncio
import contextlib
import itertools
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace

from bench.connection import AnewSlot, Connection, open_session, open_session_at
from bench.shared_wires import SharedSlot, SSEWire, WebSocketWire
from bench.ticks import ticking
from bench.wires import FIRST_NUMBER, REVISION, HTTPSlot, Slot, Target

__all__ = [
    "REVISION",
    "Connection",
    "Sample",
    "Slot",
    "Target",
    "arguments",
    "burst",
    "closed_loop",
    "open_loop",
    "open_session",
    "opened",
    "run_calls",
]

PATIENCE = 60.0
"""Seconds that the last calls of a turn may take."""

_numbers = itertools.count(FIRST_NUMBER)


@dataclass
class Sample:
    """The calls of one turn: seconds of each that was answered, those that went wrong, and seconds of all together."""

    seconds: list[float] = field(default_factory=list)
    elapsed: float = 0.0
    errors: int = 0

    @property
    def calls(self) -> int:
        """How many were made."""
        return len(self.seconds) + self.errors

    @property
    def rate(self) -> float:
        """Calls each second that were answered."""
        return len(self.seconds) / self.elapsed


def arguments(kib: int = 0, ms: float = 0, pad: int = 300) -> bytes:
    """Arguments of a call: `pad` bytes, asking for a text of so many KiB, `ms` late."""
    parts = [b'"pad":"%b"' % (b"y" * pad)]
    if kib:
        parts.append(b'"kib":%d' % kib)
    if ms:
        parts.append(b'"ms":%g' % ms)
    return b",".join(parts)


SMALL = (arguments(),)


@contextlib.asynccontextmanager
async def opened(
    target: Target, *, inflight: int, workflows: int = 1, anew: bool = False, session: str | None = None
) -> AsyncIterator[list[Slot]]:
    """Room for so many calls, spread over so many workflows; `anew` for clients that come anew with each call.

    `session` is one that is open already; an empty one stands for a server that has none.
    """
    async with contextlib.AsyncExitStack() as stack:
        slots: list[Slot] = []
        share = -(-inflight // workflows)
        for n in range(workflows):
            room = min(share, inflight - n * share)
            if anew:
                slots += [AnewSlot(replace(target, key=target.key and f"{target.key}-{n}-{i}")) for i in range(room)]
            elif target.transport in ("http", "modern"):
                own = session if session is not None else ""
                if session is None and target.transport == "http":
                    own = await open_session_at(target)
                slots += [await _connected(HTTPSlot(target, own), stack) for _ in range(room)]
            else:
                wire = SSEWire(target) if target.transport == "sse" else WebSocketWire(target)
                await wire.open(room)
                stack.callback(wire.close)
                slots += [SharedSlot(wire) for _ in range(room)]
        yield slots


async def _connected(slot: HTTPSlot, stack: contextlib.AsyncExitStack) -> HTTPSlot:
    await slot.open()
    stack.callback(slot.close)
    return slot


class _Load:
    """Calls that are made and awaited."""

    def __init__(self, asks: Sequence[bytes]) -> None:
        self.sample = Sample()
        self._asks = itertools.cycle(asks)
        self._in_flight = 0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._started = 0.0

    async def wait(self, seconds: float) -> Sample:
        """The sample, once the load is over."""
        async with asyncio.timeout(seconds + PATIENCE):
            await self._over
        self.sample.elapsed = time.perf_counter() - self._started
        return self.sample

    def start(self, slot: Slot, since: float) -> None:
        """Make a call that is due since then."""
        slot.since = since
        self._in_flight += 1
        slot.call(next(_numbers), next(self._asks), self._take)

    def goes_on(self, slot: Slot, now: float) -> bool:
        """A slot is free: use it if there is something to do; False where no further call will be made."""
        raise NotImplementedError

    def _take(self, slot: Slot, is_right: bool) -> None:
        now = time.perf_counter()
        self._in_flight -= 1
        if is_right:
            self.sample.seconds.append(now - slot.since)
        else:
            self.sample.errors += 1
        if not self.goes_on(slot, now) and not self._in_flight and not self._over.done():
            self._over.set_result(None)


class _ClosedLoop(_Load):
    def __init__(self, slots: Sequence[Slot], seconds: float, calls: int | None, asks: Sequence[bytes]) -> None:
        super().__init__(asks)
        self._left = calls
        self._started = time.perf_counter()
        self._until = self._started + seconds
        for slot in slots:
            self.goes_on(slot, self._started)

    def goes_on(self, slot: Slot, now: float) -> bool:
        if now >= self._until or self._left == 0:
            return False
        if self._left is not None:
            self._left -= 1
        self.start(slot, now)
        return True


class _OpenLoop(_Load):
    def __init__(self, slots: Sequence[Slot], rate: float, seconds: float, asks: Sequence[bytes]) -> None:
        super().__init__(asks)
        self._free = list(slots)
        self._waiting: deque[float] = deque()
        """When calls were due for which no slot is free: as many as come within the turn."""
        self._between = 1 / rate
        self._started = self._due = time.perf_counter()
        self._until = self._started + seconds - self._between / 2  # what sums of fractions lack adds no call

    def tick(self) -> None:
        """Make the calls that are due by now."""
        now = time.perf_counter()
        while self._due <= now and self._due < self._until:
            if self._free:
                self.start(self._free.pop(), self._due)
            else:
                self._waiting.append(self._due)
            self._due += self._between
        if self._due >= self._until and not self._in_flight and not self._over.done():
            self._over.set_result(None)

    def goes_on(self, slot: Slot, now: float) -> bool:
        if self._waiting:
            self.start(slot, self._waiting.popleft())
            return True
        self._free.append(slot)
        return self._due < self._until


class _Burst(_Load):
    def __init__(self, slots: Sequence[Slot], asks: Sequence[bytes]) -> None:
        super().__init__(asks)
        self._started = time.perf_counter()
        for slot in slots:
            self.start(slot, self._started)

    def goes_on(self, slot: Slot, now: float) -> bool:
        return False


async def closed_loop(
    slots: Sequence[Slot], *, seconds: float = PATIENCE, calls: int | None = None, asks: Sequence[bytes] = SMALL
) -> Sample:
    """Each slot calls again as soon as it is answered, for so long or until so many calls were made."""
    return await _ClosedLoop(slots, seconds, calls, asks).wait(seconds)


async def open_loop(slots: Sequence[Slot], *, rate: float, seconds: float, asks: Sequence[bytes] = SMALL) -> Sample:
    """So many calls each second, whether others are answered or not; each takes from when it was due."""
    load = _OpenLoop(slots, rate, seconds, asks)
    with ticking(1 / rate, load.tick):
        return await load.wait(seconds)


async def burst(slots: Sequence[Slot], *, asks: Sequence[bytes] = SMALL) -> Sample:
    """One call in each slot, all at once."""
    return await _Burst(slots, asks).wait(0)


async def run_calls(port: int, path: str, session: str, *, calls: int, inflight: int) -> Sample:
    """So many calls on an open session, so many at once.

    Raises:
        RuntimeError: some were not answered with what they asked for.
    """
    async with opened(Target(port, path), inflight=inflight, session=session) as slots:
        sample = await closed_loop(slots, calls=calls)
    if sample.errors:
        raise RuntimeError(f"{sample.errors} of {sample.calls} calls went wrong")
    return sample
