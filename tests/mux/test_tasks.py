"""What a pool begins is seen through."""

import asyncio
import logging
from contextlib import suppress

import anyio
import pytest
from harness.muxing import settle
from trunkline.mux import tasks as module
from trunkline.mux.errors import Overloaded
from trunkline.mux.tasks import Tasks

pytestmark = pytest.mark.anyio

PATIENCE = 10


async def test_a_caller_that_is_cancelled_leaves_nothing_half_done() -> None:
    tasks, gate, done = Tasks(), anyio.Event(), []

    async def work(name: str) -> None:
        await gate.wait()
        done.append(name)

    async with tasks.running(PATIENCE):
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as callers:
                callers.start_soon(tasks.see_through, work, "a")
                await settle()
                scope.cancel()
        gate.set()
    assert done == ["a"]


async def test_a_caller_hears_the_result_or_the_error(caplog: pytest.LogCaptureFixture) -> None:
    tasks = Tasks()

    async def half(number: int) -> int:
        if number % 2:
            raise ValueError("odd")
        return number // 2

    async with tasks.running(PATIENCE):
        assert await tasks.see_through(half, 4) == 2
        with pytest.raises(ValueError, match="odd"):
            await tasks.see_through(half, 3)
    assert caplog.records == []


async def test_a_defect_ends_nobody_else(caplog: pytest.LogCaptureFixture) -> None:
    tasks, done = Tasks(), []

    async def fail() -> None:
        raise ValueError("defect")

    async def work(name: str) -> None:
        await settle()
        done.append(name)

    async with tasks.running(PATIENCE):
        tasks.spawn(work, "a")
        tasks.spawn(fail)
    assert done == ["a"]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_what_the_end_of_the_pool_ends_is_told() -> None:
    tasks = Tasks()

    async def wait() -> None:
        await anyio.sleep_forever()

    async def ask() -> None:
        with pytest.raises(Overloaded):
            await tasks.see_through(wait)

    async with anyio.create_task_group() as callers, tasks.running(0.01):
        callers.start_soon(ask)
        await settle()
    with pytest.raises(Overloaded):
        tasks.spawn(wait)


async def test_what_does_not_end_is_told_and_nobody_waits_for_it(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CANCEL_SECONDS", 0.01)
    tasks, gate, over = Tasks(), anyio.Event(), anyio.Event()

    async def swallows() -> None:
        while not gate.is_set():
            with suppress(asyncio.CancelledError):
                await gate.wait()
        over.set()

    async def ask() -> None:
        with pytest.raises(Overloaded):
            await tasks.see_through(swallows)

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as callers, tasks.running(0.01):
            tasks.spawn(swallows)
            callers.start_soon(ask)
            await settle()
        told = [record for record in caplog.records if record.levelno == logging.ERROR]
        assert [record.__dict__["task"].rpartition(".")[2] for record in told] == ["swallows"] * 2
        gate.set()
        await over.wait()
