"""What the pool may keep, and for how long: caps, the drain."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from harness.muxing import ALICE, BOB, CAROL, begin, bench, settle
from trunkline.mux import policy
from trunkline.mux.errors import Overloaded, WorkflowEnded
from trunkline.mux.limits import Pooling
from trunkline.mux.policy import EVICTABLE_AFTER
from trunkline.mux.principal import ANONYMOUS, Principal

pytestmark = pytest.mark.anyio

DAVE = Principal("issuer", "acme", "dave")

CAPS: dict[str, tuple[Principal, Principal]] = {
    # who fills it, and who is refused; CAROL is in another tenant than the others
    "max_workflows": (CAROL, ALICE),
    "max_workflows_per_user": (ALICE, ALICE),
    "max_workflows_per_tenant": (BOB, ALICE),
}


@pytest.mark.parametrize("limit", CAPS)
async def test_g10_a_newcomer_over_a_cap_is_refused_by_its_name(limit: str) -> None:
    async with bench(**{limit: 2}) as at:
        residents, newcomer = CAPS[limit]
        for _ in range(2):
            await begin(at.pool, residents)
        at.clock.advance(EVICTABLE_AFTER - 0.1)
        with pytest.raises(Overloaded) as refused:
            await begin(at.pool, newcomer)
        assert refused.value.limit == limit
        assert len(at.pool.workflows) == len(at.server.sessions) == 2


@pytest.mark.parametrize("limit", CAPS)
async def test_g10_who_is_longest_detached_and_idle_gives_way(limit: str) -> None:
    async with bench(**{limit: 3}) as at:
        residents, newcomer = CAPS[limit]
        oldest = await at.client(residents)
        touched = await at.client(residents)
        attached = await at.client(residents)
        attached.workflow.wire_came()
        at.clock.advance(1)
        touched.call(method="ping")
        touched.leave()
        at.clock.advance(EVICTABLE_AFTER)
        await begin(at.pool, newcomer)
        await at.ended("evicted")
        assert oldest.workflow.ended
        assert at.server.sessions[0].is_closed
        assert oldest.workflow not in at.pool.workflows
        assert {touched.workflow, attached.workflow} < set(at.pool.workflows)
        attached.leave()


async def test_g10_newcomers_at_a_cap_have_others_looked_at_once_and_not_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks, look = 0, policy._look

    def counted(*what: Any) -> Any:
        nonlocal looks
        looks += 1
        return look(*what)

    async with bench(max_workflows=10) as at:
        for _ in range(10):
            await at.client()
        monkeypatch.setattr(policy, "_look", counted)
        for _ in range(20):
            with pytest.raises(Overloaded):
                await begin(at.pool)
        assert looks == 1
        at.clock.advance(EVICTABLE_AFTER)
        for _ in range(5):
            await begin(at.pool)
        await at.ended("evicted", 5)
        assert looks == 2


async def test_a_cap_of_others_evicts_none_of_theirs() -> None:
    async with bench(max_workflows_per_user=1, max_workflows_per_tenant=2) as at:
        for principal in (BOB, CAROL, DAVE):
            await begin(at.pool, principal)
        bobs = at.pool.workflows[0]
        at.clock.advance(EVICTABLE_AFTER)
        await begin(at.pool, ALICE)
        assert sorted(w.principal.subject for w in at.pool.workflows) == ["alice", "carol", "dave"]
        assert bobs.ended is not None
        assert bobs.ended.cause == "evicted"


@pytest.mark.parametrize("limit", CAPS)
async def test_g10_a_cap_that_a_server_has_of_its_own_counts_what_is_on_it_alone(limit: str) -> None:
    async with bench() as at:
        own = replace(at.pool.upstreams["y"], pooling=Pooling(**{limit: 2}), generation=1)
        at.pool.reconfigure({"x": at.pool.upstreams["x"], "y": own}, at.pool.pooling)
        residents, newcomer = CAPS[limit]
        others = [(await begin(at.pool, residents)).workflow for _ in range(4)]
        at.clock.advance(EVICTABLE_AFTER)
        oldest = (await begin(at.pool, residents, "y")).workflow
        await begin(at.pool, residents, "y")
        with pytest.raises(Overloaded) as refused:
            await begin(at.pool, newcomer, "y")
        assert refused.value.limit == limit
        at.clock.advance(EVICTABLE_AFTER)
        await begin(at.pool, newcomer, "y")
        await at.ended("evicted")
        assert oldest.ended is not None
        assert all(workflow.ended is None for workflow in others)


@pytest.mark.parametrize("limit", CAPS)
async def test_g10_what_is_on_a_server_with_a_cap_of_its_own_is_not_counted_on_others(limit: str) -> None:
    async with bench(**{limit: 2}) as at:
        many = replace(at.pool.upstreams["y"], pooling=Pooling(**{limit: 4}), generation=1)
        at.pool.reconfigure({"x": at.pool.upstreams["x"], "y": many}, Pooling(**{limit: 2}))
        residents, newcomer = CAPS[limit]
        others = [(await begin(at.pool, residents, "y")).workflow for _ in range(4)]
        at.clock.advance(EVICTABLE_AFTER)
        for _ in range(2):
            await begin(at.pool, residents)
        with pytest.raises(Overloaded):
            await begin(at.pool, newcomer)
        assert all(workflow.ended is None for workflow in others)


async def test_anonymous_has_no_cap_of_its_own() -> None:
    async with bench(max_workflows=4, max_workflows_per_user=1, max_workflows_per_tenant=1) as at:
        for _ in range(4):
            await begin(at.pool, ANONYMOUS)
        with pytest.raises(Overloaded) as refused:
            await begin(at.pool, ANONYMOUS)
        assert refused.value.limit == "max_workflows"


async def test_one_place_that_is_made_free_is_given_once() -> None:
    async with bench(max_workflows=1) as at:
        await begin(at.pool)
        at.clock.advance(EVICTABLE_AFTER)
        at.directory.pause("remove", before=True)
        tasks = [asyncio.create_task(begin(at.pool, principal)) for principal in (ALICE, BOB)]
        await at.directory.reached("remove")
        await settle()
        at.directory.let("remove")
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["Begun", "Overloaded"]
        assert len(at.pool.workflows) == 1


async def test_a_session_that_is_resumed_needs_no_further_place() -> None:
    async with bench(max_workflows_per_user=1) as at:
        tasks = [asyncio.create_task(begin(at.pool, ALICE, key="chat")) for _ in range(5)]
        begun = await asyncio.gather(*tasks)
        assert len({one.workflow for one in begun}) == 1
        assert (await begin(at.pool, ALICE, key="chat")).state == "resumed"


# The drain.


async def test_g8_a_drain_waits_for_what_is_in_flight_and_refuses_the_rest() -> None:
    async with bench() as at:
        client, idle = await at.client(), await at.client()
        exchange = client.call()
        upstream = await at.server.got("tools/call")
        draining = asyncio.create_task(at.pool.drain(10))
        await settle()
        assert not draining.done()
        assert at.pool.draining

        late = (await client.answer(client.call(id=b"2")), await idle.answer(idle.call(id=b"3")))
        assert [answer["error"]["code"] for answer in late] == [-31002] * 2
        assert [answer["error"]["data"] for answer in late] == [{"executed": "no"}] * 2
        with pytest.raises(Overloaded) as refused:
            await begin(at.pool)
        assert refused.value.limit == "draining"

        upstream.answer({"done": True})
        assert (await client.answer(exchange))["result"] == {"done": True}
        assert await draining
        await at.closed(2)
        assert at.counts["workflows_closed", "drained"] == 2
        at.at_rest()


async def test_g8_a_drain_cuts_what_does_not_end_in_time() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        await at.server.got("tools/call")
        assert not await at.pool.drain(0)
        answer = await client.answer(exchange)
        assert answer["error"]["data"] == {"executed": "unknown"}
        await at.closed()


async def test_a_session_that_is_opened_while_the_drain_begins_ends_with_it() -> None:
    async with bench() as at:
        at.server.pause("connect")
        at.directory.pause("claim", once=True)
        claiming = asyncio.create_task(begin(at.pool, key="1"))
        await at.directory.reached("claim")
        opening = asyncio.create_task(begin(at.pool, key="2"))
        await at.server.reached("connect")
        assert await at.pool.drain(0)
        at.directory.let("claim")
        with pytest.raises(Overloaded):
            await claiming
        with pytest.raises(WorkflowEnded):
            await opening
        at.server.let("connect")
        await at.closed(0)


async def test_leaving_the_pool_ends_every_workflow_and_says_goodbye() -> None:
    async with bench() as at:
        for _ in range(5):
            await begin(at.pool)
    assert at.counts["workflows_closed", "drained"] == 5
    assert len(at.server.closing) == 5
    with pytest.raises(Overloaded):
        await begin(at.pool)
