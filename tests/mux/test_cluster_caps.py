"""Several workers that share a directory: whom the caps of one count, and who gives way at them."""

import pytest
from harness.clustering import started
from harness.memory_wire import echo
from harness.muxing import ALICE
from trunkline.mux.cluster import BESIDE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Overloaded
from trunkline.mux.opening import MAX_ASKED
from trunkline.mux.placement import CALLS
from trunkline.mux.policy import EVICTABLE_AFTER
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.recording import TOUCH_SECONDS, touch_interval

pytestmark = pytest.mark.anyio


async def test_g10_a_number_of_a_servers_own_bounds_what_is_served_of_it_beside_holders() -> None:
    async with started(3, max_workflows=1) as (at, a, b, c):
        first, second, other = [
            (await member.client(server=server)).workflow.record.session_id
            for member, server in ((a, "x"), (c, "x"), (a, "y"))
        ]
        await b.beside(first)
        with pytest.raises(Elsewhere):
            await b.beside(second)
        workflow = await b.pool.lookup.find(ANONYMOUS, "y", other, CALLS)
        assert workflow.record.session_id == other
        await at.pass_time(BESIDE_SECONDS + 1)
        await b.beside(second)


async def test_g10_what_is_in_use_at_another_worker_does_not_give_way_to_a_newcomer() -> None:
    async with started(2, max_workflows_per_user=2, on_request=echo) as (at, a, b):
        used, left = [(await a.client(ALICE)).workflow for _ in range(2)]
        interval = touch_interval(used.pooling)
        for _ in range(30):
            beside = await b.find(used.record.session_id, CALLS, ALICE)
            await beside.answer(beside.call())
            await at.pass_time(10)
        [newcomer] = [(await a.client(ALICE)).workflow]
        assert (used.ended, left.ended is not None) == (None, True), "by what is known here, either was idle"
        with pytest.raises(Overloaded, match="max_workflows_per_user"):
            await a.client(ALICE)
        assert (used.ended, newcomer.ended) == (None, None)
        await at.pass_time(interval + 2 * TOUCH_SECONDS + BESIDE_SECONDS)
        await a.client(ALICE)
        assert used.ended is not None
        assert a.pool.statistics.counts["workflows_closed", "evicted"] == 2


async def test_g10_what_is_used_while_the_directory_is_asked_of_it_does_not_give_way() -> None:
    async with started(1, max_workflows_per_user=1) as (at, a):
        client = await a.client(ALICE)
        await at.pass_time(touch_interval(client.workflow.pooling) * 3)
        untouched = a.view.untouched

        async def late(session_id: str) -> float | None:
            client.call()
            seconds: float | None = await untouched(session_id)
            return seconds

        a.view.untouched = late  # type: ignore[attr-defined]
        with pytest.raises(Overloaded):
            await a.client(ALICE)
        assert client.workflow.ended is None


async def test_g10_who_would_have_given_way_does_once_the_directory_answers_again() -> None:
    async with started(1, max_workflows_per_user=1) as (at, a):
        left = (await a.client(ALICE)).workflow
        await at.pass_time(touch_interval(left.pooling) * 3)
        a.view.fails_at = a.view.calls + 1
        with pytest.raises(DirectoryUnavailable):
            await a.client(ALICE)
        assert left.ended is None
        await a.client(ALICE)
        assert left.ended is not None


async def test_g10_a_newcomer_asks_of_a_few_that_may_be_in_use_elsewhere() -> None:
    async with started(2, max_workflows_per_user=MAX_ASKED + 2, idle_timeout=1e6) as (at, a, _):
        for _ in range(MAX_ASKED + 2):
            await a.client(ALICE)
        await at.pass_time(70)
        asked, untouched = 0, a.view.untouched

        async def counted(session_id: str) -> float | None:
            nonlocal asked
            asked += 1
            seconds: float | None = await untouched(session_id)
            return seconds

        a.view.untouched = counted  # type: ignore[attr-defined]
        for sum_of_all in (MAX_ASKED, MAX_ASKED + 2):
            with pytest.raises(Overloaded):
                await a.client(ALICE)
            assert asked == sum_of_all
        assert len(a.pool.workflows) == MAX_ASKED + 2


async def test_g10_where_no_other_worker_lives_its_own_touch_keeps_nothing_from_giving_way() -> None:
    async with started(1, max_workflows_per_user=1, on_request=echo) as (at, a):
        client = await a.client(ALICE)
        interval = touch_interval(client.workflow.pooling)
        await at.pass_time(interval)
        await client.answer(client.call())
        await at.pass_time(EVICTABLE_AFTER)
        seconds = await at.directory.untouched(client.workflow.record.session_id)
        assert seconds is not None
        assert seconds < EVICTABLE_AFTER + TOUCH_SECONDS
        await a.client(ALICE)
        assert client.workflow.ended is not None


async def test_g10_what_was_used_here_last_and_is_in_use_at_another_worker_does_not_give_way() -> None:
    async with started(2, max_workflows_per_user=1, on_request=echo) as (at, a, b):
        client = await a.client(ALICE)
        session_id, interval = client.workflow.record.session_id, touch_interval(client.workflow.pooling)
        await at.pass_time(interval - 10)
        beside = await b.find(session_id, CALLS, ALICE)
        await beside.answer(beside.call())
        await at.pass_time(5)
        await client.answer(client.call())
        for _ in range(8):
            await beside.answer(beside.call())
            await at.pass_time(10)
        assert await at.directory.untouched(session_id) > EVICTABLE_AFTER, "the last word was that of who holds it"
        with pytest.raises(Overloaded):
            await a.client(ALICE)


async def test_g10_what_another_worker_served_that_has_just_died_does_not_give_way() -> None:
    async with started(2, max_workflows_per_user=1, on_request=echo) as (at, a, b):
        session_id = (await a.client(ALICE)).workflow.record.session_id
        await at.pass_time(EVICTABLE_AFTER)
        beside = await b.find(session_id, CALLS, ALICE)
        await beside.answer(beside.call())
        await at.pass_time(TOUCH_SECONDS)
        await at.lose(b)
        with pytest.raises(Overloaded):
            await a.client(ALICE)


async def test_g10_what_no_other_worker_serves_gives_way_as_soon_as_it_is_idle_here() -> None:
    async with started(1, movable=False, max_workflows_per_user=1) as (_, a):
        left = (await a.client(ALICE)).workflow
        await a.beat(after=EVICTABLE_AFTER)
        await a.client(ALICE)
        assert left.ended is not None
