"""Full collections come when they are worth their pause, and then what workflows leave behind is gone."""

import asyncio
import gc
import weakref

import pytest
from harness.muxing import ALICE, begin, bench
from trunkline.gateway import garbage
from trunkline.gateway.garbage import ENOUGH_ENDED, LONG_SECONDS, Schedule, collect, collected_by_schedule

pytestmark = pytest.mark.anyio


def test_all_is_collected_when_as_many_have_ended_as_there_are() -> None:
    schedule = Schedule(0.0)
    assert not schedule.is_due(1.0, ended=ENOUGH_ENDED - 1, living=0)
    assert schedule.is_due(2.0, ended=ENOUGH_ENDED, living=0)
    assert not schedule.is_due(3.0, ended=2 * ENOUGH_ENDED, living=ENOUGH_ENDED + 1)
    assert schedule.is_due(4.0, ended=2 * ENOUGH_ENDED + 1, living=ENOUGH_ENDED + 1)


def test_all_is_collected_once_in_a_long_time() -> None:
    schedule = Schedule(0.0)
    assert not schedule.is_due(LONG_SECONDS - 1, ended=0, living=10)
    assert schedule.is_due(LONG_SECONDS, ended=0, living=10)
    assert not schedule.is_due(LONG_SECONDS + 1, ended=0, living=10)


def test_the_collectors_own_rule_is_back_afterwards() -> None:
    before = gc.get_threshold()
    with collected_by_schedule():
        assert gc.get_threshold()[2] == garbage.NEVER
        assert gc.get_freeze_count() > 0
    assert gc.get_threshold() == before
    assert gc.get_freeze_count() == 0


class Ring:
    """Garbage that refers to itself."""

    def __init__(self) -> None:
        self.itself = self


async def test_what_workflows_leave_behind_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(garbage, "LOOK_SECONDS", 0.01)
    collected = asyncio.Event()
    async with bench(idle_timeout=10) as at:
        with collected_by_schedule():
            ring = Ring()
            weakref.finalize(ring, collected.set)
            for generation in (0, 1):  # old enough for a full collection alone
                gc.collect(generation)
            del ring
            collecting = asyncio.create_task(collect(at.pool))
            await begin(at.pool, ALICE)
            at.clock.advance(10)
            await at.ended("idle")
            assert not collected.is_set()
            monkeypatch.setattr(garbage, "ENOUGH_ENDED", 1)
            async with asyncio.timeout(10):
                await collected.wait()
            collecting.cancel()
            await asyncio.wait([collecting])
