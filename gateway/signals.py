"""Signals to a program: they wait until it can obey them, and afterwards end nothing, so that it ends in order.

Imports little: the program has this before anything else.
"""

from __future__ import annotations

import atexit
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import asyncio

HELD: Final = (signal.SIGTERM, signal.SIGHUP)
"""SIGINT is not: whoever pressed Ctrl-C waits for nothing, and Python ends in order for it."""


def hold() -> None:
    """Let signals wait from now on, but while they are `received`: without a handler they would end the program.

    What is started meanwhile holds them as well.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    for number in HELD:  # beside the main thread, which holds them, others may run that do not
        signal.signal(number, _ignore)
    atexit.register(_ignore_all)


@contextmanager
def held() -> Iterator[None]:
    """What is started meanwhile holds signals from its first instruction on; then all is as it was before."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def received() -> Iterator[AsyncIterator[signal.Signals]]:
    """The signals that come, for the length of the context; first those that waited. Then all is as it was before.

    A loop's own handlers would be taken away by themselves: until those of before are back, a signal ended the program.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[signal.Signals] = asyncio.Queue()

    def note(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(waiting.put_nowait, signal.Signals(number))

    before = {number: signal.signal(number, note) for number in (*HELD, signal.SIGINT)}
    held = signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
    try:
        yield _each(waiting)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for number, handler in before.items():
            signal.signal(number, handler)


async def _each(waiting: asyncio.Queue[signal.Signals]) -> AsyncIterator[signal.Signals]:
    while True:
        yield await waiting.get()


def _ignore(number: int, frame: FrameType | None) -> None:
    """Whoever says it has been heard."""


def _ignore_all() -> None:
    """Have the kernel do the same: handlers of its own Python takes away before all threads have ended."""
    for number in HELD:
        signal.signal(number, signal.SIG_IGN)
