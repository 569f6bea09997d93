"""A client that leaves at any step, and a directory that fails at any call: nothing is left of what they cut short."""

import asyncio
import itertools
from collections import Counter
from contextlib import suppress
from typing import Any

import anyio
import pytest
from harness.clustering import Member, Workers, workers
from harness.memory_wire import echo
from harness.muxing import ALICE, Bench, Client, begin, bench, initialize, settle
from trunkline.mux.directory import LEASE_SECONDS, MAX_STALENESS
from trunkline.mux.errors import Elsewhere, TrunklineError
from trunkline.mux.placement import CALLS
from trunkline.mux.pool import Begun
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio

POOLINGS: list[dict[str, Any]] = [
    {},
    {"spares": 1},
    {"spares": 2, "max_workflows_per_user": 2},
    {"reuse": "user"},
    {"stateless": True, "max_workflows_per_user": 1},
]


async def live(at: Bench) -> None:
    """What clients do with a key: three come at once, one returns, one begins anew, it ends, and is begun once more."""
    begins = [begin(at.pool, ALICE, key="chat") for _ in range(3)]
    await asyncio.gather(*begins, return_exceptions=True)
    client = Client((await begin(at.pool, ALICE, key="chat")).workflow)
    await client.answer(client.call())
    at.clock.advance(MAX_STALENESS + 1)
    await begin(at.pool, ALICE, session_id=client.workflow.record.session_id)
    workflow = (await begin(at.pool, ALICE, key="chat", message=initialize("2025-06-18"))).workflow
    await asyncio.gather(at.pool.end(workflow, "deleted"), begin(at.pool, ALICE, key="chat"), return_exceptions=True)


async def check(at: Bench) -> None:
    """Everybody who is counted lives, and is recorded; and the key serves whoever comes."""
    await settle(60)
    at.directory.fails_at = 0
    pool = at.pool
    assert pool._residents.held.census.total == len(pool.workflows)
    assert all(workflow.opened.done() for workflow in pool.workflows)
    assert {record.session_id for record in at.directory.records} >= {w.record.session_id for w in pool.workflows}
    for message in (None, initialize("2025-06-18")):  # one of them is that of whoever has it
        with suppress(TrunklineError):
            client = Client((await begin(pool, ALICE, key="chat", message=message)).workflow)
            assert "result" in await client.answer(client.call())
            await pool.end(client.workflow, "deleted")
            return
    raise AssertionError("the key serves nobody")


@pytest.mark.parametrize("pooling", POOLINGS)
async def test_a_client_may_leave_at_any_step(pooling: dict[str, Any]) -> None:
    for steps in itertools.count():
        async with bench(**pooling, on_request=echo) as at:
            living = asyncio.create_task(live(at))
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            is_over = living.done()
            living.cancel()
            await asyncio.wait([living])
            await check(at)
        if is_over:
            break
    assert steps > 30


@pytest.mark.parametrize("pooling", POOLINGS)
async def test_the_directory_may_fail_at_any_call(pooling: dict[str, Any]) -> None:
    for call in itertools.count(1):
        async with bench(**pooling, on_request=echo) as at:
            at.directory.fails_at = call
            with suppress(TrunklineError):
                await live(at)
            is_over = at.directory.calls.total() < call
            left = list(at.pool._ending._leftovers._kept.values())
            if left:  # tried again in a moment
                at.clock.advance(1)
                await at.directory.reached("remove", at.directory.calls["remove"] + 1)
            await check(at)
        if is_over:
            break
    assert call > 5


# Among several workers.


async def begin_at(at: Workers, member: Member) -> Begun:
    """A workflow that begins, or is come back to, wherever that is."""
    for _ in range(4):
        try:
            return await begin(member.pool, key="chat")
        except Elsewhere as elsewhere:
            member = next(other for other in at.all if other.members.worker.id == elsewhere.worker)
    raise AssertionError("a request went round in circles")


async def call_at(at: Workers, member: Member, session_id: str) -> Workflow:
    """A call that comes to this worker; where it was served."""
    _, workflow = await at.serve(session_id, member, CALLS)
    client = Client(workflow)
    await client.answer(client.call())
    return workflow


async def move(at: Workers) -> None:
    """A workflow is used at two workers, taken over from one that is paused, come back to, and ended."""
    a, b = at.all
    session_id = (await begin_at(at, a)).workflow.record.session_id
    await call_at(at, b, session_id)
    await b.beat(after=LEASE_SECONDS)
    await call_at(at, b, session_id)
    await at.serve(session_id, b)
    await a.beat()
    await settle()
    await call_at(at, a, session_id)
    await begin_at(at, a)
    member, workflow = await at.serve(session_id, a)
    await member.pool.end(workflow, "deleted")
    await begin_at(at, b)


async def check_workers(at: Workers) -> None:
    """Each workflow has one holder, which its record names; and the key serves whoever comes to any worker."""
    await settle(60)
    for member in at.all:
        member.view.fails_at = 0
    await at.pass_time(3)
    holders = Counter(workflow.record.session_id for member in at.all for workflow in member.pool.workflows)
    assert all(count == 1 for count in holders.values())
    for member in at.all:
        assert member.pool._residents.held.census.total == len(member.pool.workflows)
        for workflow in member.pool.workflows:
            record = await at.directory.get(workflow.record.session_id)
            assert record is not None
            assert record.worker == member.members.worker.id
    for member in at.all:
        client = Client((await begin_at(at, member)).workflow)
        assert "result" in await client.answer(client.call())
    sent = [(exchange.session.id, exchange.id) for exchange in at.server.of("tools/call")]
    assert len(set(sent)) == len(sent)


SERVERS: list[dict[str, Any]] = [
    {},
    {"reuse": "user"},
    {"reuse": "none"},
    {"movable": False, "stateless": True},
]


@pytest.mark.parametrize("settings", SERVERS)
async def test_a_client_of_several_workers_may_leave_at_any_step(settings: dict[str, Any]) -> None:
    for steps in itertools.count():
        async with workers(**settings) as at:
            at.server.on_request = echo
            await at.start()
            await at.start()
            moving = asyncio.create_task(move(at))
            for _ in range(steps):
                await anyio.lowlevel.checkpoint()
            is_over = moving.done()
            moving.cancel()
            await asyncio.wait([moving])
            await check_workers(at)
        if is_over:
            break
    assert steps > 30


@pytest.mark.parametrize("is_done", [False, True])
@pytest.mark.parametrize("settings", SERVERS)
async def test_the_directory_of_several_workers_may_fail_at_any_call(settings: dict[str, Any], is_done: bool) -> None:
    for call in itertools.count(1):
        async with workers(**settings) as at:
            at.server.on_request = echo
            for member in (await at.start(), await at.start()):
                member.view.fails_at, member.view.is_done, member.view.calls = call, is_done, 0
            with suppress(TrunklineError):
                await move(at)
            is_over = all(member.view.calls < call for member in at.all)
            await check_workers(at)
        if is_over:
            break
    assert call > 5
