"""Who is told that the process has to stop, beside who had the signal before."""

import asyncio
import os
import signal
import threading
from collections.abc import Iterator

import pytest
from trunkline.compat.contextforge.leaving import Leaving

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]


@pytest.fixture
def server() -> Iterator[list[int]]:
    """The signals that a server's own handler has had."""
    had: list[int] = []
    stock = signal.signal(signal.SIGTERM, lambda number, _: had.append(number))
    try:
        yield had
    finally:
        signal.signal(signal.SIGTERM, stock)


async def test_all_are_told_and_the_server_has_its_signal(server: list[int]) -> None:
    leaving = Leaving()
    told = [asyncio.Event(), asyncio.Event()]

    async def leave(n: int) -> None:
        told[n].set()

    leaving.tell(lambda: leave(0))
    leaving.tell(lambda: leave(1))
    leaving.watch()
    leaving.watch()
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        async with asyncio.timeout(10):
            for event in told:
                await event.wait()
    finally:
        leaving.unwatch()
    assert server == [signal.SIGTERM]


async def test_afterwards_the_signals_are_as_they_were(server: list[int]) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    leaving = Leaving()
    leaving.watch()
    assert signal.getsignal(signal.SIGTERM) is not before[0]
    leaving.unwatch()
    leaving.unwatch()
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


async def test_who_has_taken_the_signals_meanwhile_keeps_them(server: list[int]) -> None:
    leaving = Leaving()
    leaving.watch()
    mine = signal.SIG_IGN
    signal.signal(signal.SIGTERM, mine)
    leaving.unwatch()
    assert signal.getsignal(signal.SIGTERM) is mine


async def test_in_another_thread_nothing_is_changed(server: list[int]) -> None:
    before = signal.getsignal(signal.SIGTERM)

    async def watch() -> None:
        Leaving().watch()

    thread = threading.Thread(target=lambda: asyncio.run(watch()))
    thread.start()
    await asyncio.to_thread(thread.join)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_after_the_loop_has_ended_still_reaches_the_server(server: list[int]) -> None:
    leaving = Leaving()

    async def watch() -> None:
        leaving.watch()

    asyncio.run(watch())
    try:
        os.kill(os.getpid(), signal.SIGTERM)
    finally:
        leaving.unwatch()
    assert server == [signal.SIGTERM]
