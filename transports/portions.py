"""What comes on a connection, read in portions: a peer that floods costs the others little in each turn of the loop.

An event loop reads on while more has come, and calls nobody else meanwhile: whoever sends what takes longer to read
than to send would keep everybody waiting. So reading rests until the next turn where it took its time.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from time import perf_counter
from typing import Final, Protocol

TURN_SECONDS: Final = 0.002
"""How long one connection may be read in a turn of the event loop, but for the portion that it is exceeded with."""

PORTION_BYTES: Final = 16_384
PORTION_ITEMS: Final = 64
"""So much, or so many messages, are read before it is looked at the clock."""

MAX_LINES: Final = 2 * PORTION_ITEMS
"""The same of a stream of events, each of which ends by an empty line."""

SMALL: Final = 1_024
"""What is not longer is read at once: whoever waits for answers sends no more, and the clock need not be asked."""

Read = Callable[[bytes, int], int]
"""Reads some of what came, from a place on, and returns where the next portion begins; at its end or beyond, none."""


class Source(Protocol):
    """Where it comes from: a transport."""

    def pause_reading(self) -> None:
        """Let what comes wait."""

    def resume_reading(self) -> None:
        """Go on."""

    def is_closing(self) -> bool:
        """Whether nothing more comes of it."""

    def close(self) -> None:
        """End it."""


class Portions:
    """Of one connection: what came, and waits for its turn. It refers to nobody while nothing waits."""

    __slots__ = ("_go_on", "_is_held", "_lost", "_rest", "is_resting")

    def __init__(self) -> None:
        self.is_resting = False
        """True while reading rests, whether something that came waits or not."""
        self._is_held = False
        """True while who reads wants nothing."""
        self._rest = b""
        self._go_on: Callable[[], None] | None = None
        """Goes on with what waits, where that is held."""
        self._lost: Callable[[], None] | None = None

    def take(self, data: bytes, read: Read, source: Source) -> None:
        """Have it read, now or in the turns that follow."""
        if self.is_resting:
            self._rest += data
        elif (size := len(data)) > SMALL or self._is_held:
            self._take(data, 0, read, source)
        elif (at := read(data, 0)) < size:
            self._take(data, at, read, source)

    def hold(self, source: Source) -> None:
        """Let everything wait that was not handed to who reads."""
        self._is_held = True
        source.pause_reading()

    def release(self, source: Source) -> None:
        """Go on."""
        self._is_held = False
        if self._go_on is not None:
            asyncio.get_running_loop().call_soon(self._go_on)
            self._go_on = None
        elif not self.is_resting and not source.is_closing():
            source.resume_reading()

    def lost(self, then: Callable[[], None]) -> None:
        """Nothing more comes: do this once all is read, or at once where that is held."""
        if self.is_resting and not self._is_held:
            self._lost = then
        else:
            self.is_resting, self._rest, self._go_on = False, b"", None
            then()

    def _take(self, data: bytes, at: int, read: Read, source: Source) -> None:
        end, size = perf_counter() + TURN_SECONDS, len(data)
        while at < size and not self._is_held:
            at = read(data, at)
            if perf_counter() > end:
                break
        else:
            if at >= size:
                return
        self.is_resting, self._rest = True, data[at:]
        if self._lost is None and not source.is_closing():
            source.pause_reading()
        asyncio.get_running_loop().call_soon(self._next_turn, read, source)

    def _next_turn(self, read: Read, source: Source) -> None:
        if not self.is_resting:  # it was held, and lost
            return
        if self._is_held and self._lost is None:
            self._go_on = partial(self._next_turn, read, source)
            return
        rest, self._rest, self.is_resting = self._rest, b"", False
        try:
            if not self._is_held:
                self._take(rest, 0, read, source)
        except BaseException:
            source.close()  # as event loops do where a protocol fails
            raise
        finally:
            self._end_turn(source)

    def _end_turn(self, source: Source) -> None:
        if self.is_resting:
            return
        if self._lost is not None:
            lost, self._lost = self._lost, None
            lost()
        elif not self._is_held and not source.is_closing():
            source.resume_reading()


def end_of_events(data: bytes, at: int, stop: int) -> int:
    """Where a portion ends that begins there, of a stream of events: at the stop, or before."""
    return min(end_of_lines(data, at, stop, MAX_LINES), end_of_lines(data, at, stop, MAX_LINES, b"\r"))


def end_of_lines(data: bytes, at: int, stop: int, most: int = PORTION_ITEMS, mark: bytes = b"\n") -> int:
    """The same of lines: where so many end by this mark."""
    for _ in range(most):
        at = data.find(mark, at, stop) + 1
        if not at:
            return stop
    return at
