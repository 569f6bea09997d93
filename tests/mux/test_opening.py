"""A client that goes while its session opens: what the pool had begun goes on or ends, and nothing leaks."""

import asyncio
import logging

import anyio
import pytest
from harness.memory_wire import Stage
from harness.muxing import ALICE, BOB, Bench, begin, bench, cancelled, settle
from trunkline.mux.errors import Overloaded, SessionLost, UpstreamUnreachable, WorkflowEnded

pytestmark = pytest.mark.anyio

STAGES: tuple[Stage, ...] = ("connect", "initialize", "establish")
OPERATIONS = ("claim", "draw_ids", "replace")


async def reach(at: Bench, moment: str) -> "asyncio.Task[object]":
    """A client whose `begin` stands still at this moment."""
    beginning = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
    if moment in OPERATIONS:
        await at.directory.reached(moment)
    else:
        await at.server.reached(moment)  # type: ignore[arg-type]
    await settle()
    return beginning


def pause(at: Bench, moment: str, *, before: bool = False) -> None:
    if moment in OPERATIONS:
        at.directory.pause(moment, before=before)
    else:
        at.server.pause(moment)  # type: ignore[arg-type]


def let(at: Bench, moment: str) -> None:
    if moment in OPERATIONS:
        at.directory.let(moment)
    else:
        at.server.let(moment)  # type: ignore[arg-type]


MOMENTS = [*((stage, False) for stage in STAGES), *((op, before) for op in OPERATIONS for before in (True, False))]


@pytest.mark.parametrize(("moment", "before"), MOMENTS)
async def test_an_open_goes_on_when_its_client_leaves(moment: str, before: bool) -> None:
    async with bench(idle_timeout=10) as at:
        pause(at, moment, before=before)
        await cancelled(await reach(at, moment))
        let(at, moment)
        back = await begin(at.pool, ALICE, key="chat")
        assert back.state == "resumed"
        assert len(at.server.sessions) == len(at.directory.records) == 1
        at.clock.advance(10)
        await at.ended("idle")
        await at.closed()
        at.at_rest()


@pytest.mark.parametrize(("moment", "before"), MOMENTS)
async def test_an_open_that_fails_after_its_client_left_leaves_nothing(moment: str, before: bool) -> None:
    async with bench() as at:
        pause(at, moment, before=before)
        leaving = await reach(at, moment)
        at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
        at.server.answers_initialize = lambda exchange: exchange.refuse()
        at.server.refuses_initialized = True
        await cancelled(leaving)
        if moment == "replace":
            at.directory.failing["replace"] = ConnectionError("the directory is away")
            await at.pool.end(at.pool.workflows[0], "deleted")
        let(at, moment)
        await at.ended("deleted" if moment == "replace" else "not_opened")
        at.at_rest()


@pytest.mark.parametrize(("moment", "before"), [entry for entry in MOMENTS if entry[0] != "claim"])
async def test_a_workflow_that_ends_while_it_opens_fails_its_client_and_leaves_nothing(
    moment: str, before: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with bench() as at:
        pause(at, moment, before=before)
        beginning = await reach(at, moment)
        await at.pool.end(at.pool.workflows[0], "deleted")
        with pytest.raises(WorkflowEnded) as told:
            await beginning
        assert told.value.cause == "deleted"
        let(at, moment)
        await at.closed()
        at.at_rest()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_one_of_many_that_wait_may_leave() -> None:
    async with bench() as at:
        at.server.pause("initialize")
        tasks = [asyncio.create_task(begin(at.pool, ALICE, key="chat")) for _ in range(5)]
        await at.server.reached("initialize")
        await cancelled(tasks[0])
        await cancelled(tasks[3])
        at.server.let("initialize")
        begun = await asyncio.gather(*(task for task in tasks if not task.done()))
        assert len({one.workflow for one in begun}) == 1
        assert len(at.server.sessions) == 1


async def test_a_directory_that_fails_to_claim_takes_no_place() -> None:
    async with bench(max_workflows=1) as at:
        at.directory.failing["claim"] = ConnectionError("the directory is away")
        for _ in range(3):
            with pytest.raises(ConnectionError):
                await begin(at.pool, ALICE, key="chat")
        at.at_rest()
        del at.directory.failing["claim"]
        assert (await begin(at.pool, ALICE, key="chat")).state == "created"


async def test_a_directory_that_fails_to_record_what_was_opened_fails_the_client() -> None:
    async with bench() as at:
        at.directory.failing["replace"] = ConnectionError("the directory is away")
        with pytest.raises(WorkflowEnded):
            await begin(at.pool, ALICE, key="chat")
        await at.closed()
        at.at_rest()


async def test_a_session_that_is_lost_before_it_is_recorded_is_not_handed_out() -> None:
    async with bench() as at:
        at.directory.pause("replace")
        beginning = await reach(at, "replace")
        at.server.session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
        at.directory.let("replace")
        with pytest.raises(SessionLost):
            await beginning
        await at.ended("upstream_lost")
        await at.closed()
        at.at_rest()
        assert (await begin(at.pool, ALICE, key="chat")).state == "reset"


async def test_the_pool_may_be_cancelled_while_a_session_opens_and_another_works() -> None:
    async with bench() as at:
        with anyio.CancelScope() as scope:
            async with at.sibling() as pool:
                await begin(pool, ALICE)
                at.server.pause("initialize")
                opening = asyncio.create_task(begin(pool, BOB))
                await at.server.reached("initialize", 2)
                scope.cancel()
                await anyio.sleep_forever()
        with pytest.raises(WorkflowEnded):
            await opening
        assert (pool.workflows, pool.channels, at.server.live, at.directory.records) == ([], [], [], [])


async def test_who_comes_after_the_end_of_the_pool_is_refused_and_never_waits() -> None:
    async with bench() as at:
        pass
    for _ in range(2):
        with pytest.raises(Overloaded) as refused:
            await begin(at.pool, ALICE, key="chat")
        assert refused.value.limit == "draining"
