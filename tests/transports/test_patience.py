"""Waits of one length share a timer, are over in their order, and can be called off."""

import asyncio
import time

import pytest
from trunkline.transports.patience import Patience

pytestmark = pytest.mark.anyio

SECONDS = 0.01
BOUND = 10.0


async def test_each_is_called_back_in_order_and_not_before_its_time() -> None:
    loop, patience = asyncio.get_running_loop(), Patience(SECONDS)
    over: list[tuple[str, float]] = []
    done = asyncio.Event()
    begun = loop.time()
    patience.begin(loop, lambda: over.append(("first", loop.time())))
    await asyncio.sleep(0)
    second = loop.time()
    patience.begin(loop, lambda: over.append(("second", loop.time())))
    patience.begin(loop, done.set)
    await asyncio.wait_for(done.wait(), BOUND)
    assert [name for name, _ in over] == ["first", "second"]
    assert over[0][1] - begun >= SECONDS * 0.9
    assert over[1][1] - second >= SECONDS * 0.9


async def test_what_was_called_off_is_not_called_back_and_not_kept() -> None:
    loop, patience = asyncio.get_running_loop(), Patience(SECONDS)
    over: list[int] = []
    waiting = [patience.begin(loop, lambda n=n: over.append(n)) for n in range(100)]  # type: ignore[misc]
    for one in waiting[:50] + waiting[51:]:
        one.cancel()
        one.cancel()
    done = asyncio.Event()
    patience.begin(loop, done.set)
    await asyncio.wait_for(done.wait(), BOUND)
    assert over == [50]
    assert len(patience) == 0


async def test_it_goes_on_after_it_was_empty() -> None:
    loop, patience = asyncio.get_running_loop(), Patience(SECONDS)
    for _ in range(3):
        done = asyncio.Event()
        patience.begin(loop, done.set)
        await asyncio.wait_for(done.wait(), BOUND)


async def test_one_that_fails_holds_up_nobody() -> None:
    loop, patience = asyncio.get_running_loop(), Patience(SECONDS)
    told: list[dict[str, object]] = []
    loop.set_exception_handler(lambda loop, context: told.append(context))
    done = asyncio.Event()
    patience.begin(loop, lambda: 1 / 0)
    patience.begin(loop, done.set)
    await asyncio.wait_for(done.wait(), BOUND)
    assert [type(one["exception"]) for one in told] == [ZeroDivisionError]


async def test_what_is_called_off_at_the_last_moment_is_not_called_back() -> None:
    loop, patience = asyncio.get_running_loop(), Patience(SECONDS)
    over: list[str] = []
    done = asyncio.Event()
    waiting = []
    patience.begin(loop, lambda: [one.cancel() for one in waiting])  # type: ignore[arg-type, return-value]
    waiting.append(patience.begin(loop, lambda: over.append("late")))
    patience.begin(loop, done.set)
    time.sleep(2 * SECONDS)  # noqa: ASYNC251 - the loop is late, so that all are due at once
    await asyncio.wait_for(done.wait(), BOUND)
    assert over == []
