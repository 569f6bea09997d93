"""The directory hears of what is in use, and for no longer, by whoever serves it."""

from collections.abc import Collection

import pytest
from harness.changing import until
from harness.clustering import two
from trunkline.mux.cluster import BESIDE_SECONDS
from trunkline.mux.recording import TOUCH_SECONDS, touch_interval

pytestmark = pytest.mark.anyio


async def test_what_stays_in_use_is_told_at_a_fraction_of_what_its_record_lives() -> None:
    async with two(idle_timeout=200, resume_window=100) as (at, a, b, session_id):
        told: list[list[str]] = []
        touch = at.directory.touch

        async def noted(session_ids: Collection[str]) -> None:
            told.append(list(session_ids))
            await touch(session_ids)

        at.directory.touch = noted  # type: ignore[method-assign]
        reader = (await a.find(session_id)).workflow.streams.attach_standalone()
        interval = touch_interval(a.pool.workflows[0].pooling)
        assert interval == 20
        await at.pass_time(100)
        assert 4 <= len(told) <= 6, "not each five seconds"
        reader.close()
        told.clear()
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(TOUCH_SECONDS + 0.5)
        assert told
        assert len(told) <= 2, "what begins to be used is told soon, by each that serves it"


async def test_a_use_that_could_not_be_told_is_told_as_soon_as_it_can() -> None:
    async with two() as (at, a, _, session_id):
        reader = (await a.find(session_id)).workflow.streams.attach_standalone()
        await at.pass_time(10)
        a.view.is_cut = True
        await at.pass_time(600)
        a.view.is_cut = False
        await at.pass_time(TOUCH_SECONDS * 2)
        age = await at.directory.untouched(session_id)
        assert age is not None
        assert age <= TOUCH_SECONDS * 2
        reader.close()


async def test_what_ends_beside_its_holder_takes_no_use_with_it() -> None:
    async with two(idle_timeout=6000, resume_window=6000) as (at, _, b, session_id):
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(TOUCH_SECONDS * 2)
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(BESIDE_SECONDS + 2)
        await until(lambda: b.pool.channels == [])
        age = await at.directory.untouched(session_id)
        assert age is not None
        assert age <= TOUCH_SECONDS
