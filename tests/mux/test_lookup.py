"""A workflow is found by who it belongs to, for as long as its record says that it lives here."""

import asyncio
from typing import Any

import pytest
from harness.muxing import ALICE, BOB, Bench, begin, bench, position, settle
from trunkline.mux.directory import MAX_STALENESS
from trunkline.mux.errors import Overloaded, UnknownSession
from trunkline.mux.record import derived

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("principal", "server", "session_id"), [(BOB, "x", None), (ALICE, "y", None), (ALICE, "x", "guessed")]
)
async def test_g4_who_does_not_own_a_session_is_told_that_there_is_none(
    principal: Any, server: str, session_id: str | None
) -> None:
    async with bench() as at:
        workflow = (await begin(at.pool, ALICE, key="chat")).workflow
        name = session_id or workflow.record.session_id
        token = workflow.record.event_token if session_id is None else derived(name, b"event", 16)
        with pytest.raises(UnknownSession) as told:
            await at.pool.lookup.find(principal, server, name)
        with pytest.raises(UnknownSession) as told_again:
            await at.pool.lookup.find_position(principal, server, position(f"{token}-0-0-0"))
        with pytest.raises(UnknownSession):
            await begin(at.pool, principal, server, session_id=name)
        assert str(told.value) == str(told_again.value)
        assert await at.pool.lookup.find(ALICE, "x", workflow.record.session_id) is workflow
        mine = position(f"{workflow.record.event_token}-0-0-0")
        assert await at.pool.lookup.find_position(ALICE, "x", mine) is workflow


# Records that other workers change.


async def stale(at: Bench, cause: str, *, heard: bool) -> str:
    """The session id of a workflow whose record another worker changed."""
    session_id = (await begin(at.pool, ALICE, key="chat")).workflow.record.session_id
    await settle()
    await at.pool.lookup.find(ALICE, "x", session_id)  # what the workflow's own opening told is heard
    await at.directory.overtake(session_id, remove=cause == "removed", heard=heard)
    await settle()
    return session_id


@pytest.mark.parametrize("cause", ["removed", "taken_over"])
async def test_a_change_by_another_worker_is_noticed_after_at_most_five_seconds(cause: str) -> None:
    async with bench() as at:
        session_id = await stale(at, cause, heard=False)
        asked = at.directory.calls["get"]
        at.clock.advance(MAX_STALENESS)
        assert await at.pool.lookup.find(ALICE, "x", session_id)
        assert at.directory.calls["get"] == asked
        at.clock.advance(0.1)
        with pytest.raises(UnknownSession):
            await at.pool.lookup.find(ALICE, "x", session_id)
        await at.ended(cause)
        assert (at.pool.workflows, at.server.live) == ([], [])
        assert len(at.directory.records) == (cause == "taken_over"), "the other worker's record is its own"
        for record in at.directory.records:
            await at.directory.remove(record)


@pytest.mark.parametrize("cause", ["removed", "taken_over"])
async def test_a_change_that_is_told_is_noticed_at_once(cause: str) -> None:
    async with bench() as at:
        session_id = await stale(at, cause, heard=True)
        with pytest.raises(UnknownSession):
            await at.pool.lookup.find(ALICE, "x", session_id)
        await at.ended(cause)
        for record in at.directory.records:
            await at.directory.remove(record)


async def test_a_key_whose_session_was_taken_over_is_not_served_here() -> None:
    async with bench() as at:
        await stale(at, "taken_over", heard=False)
        with pytest.raises(Overloaded):
            await begin(at.pool, ALICE, key="chat")
        await at.ended("taken_over")
        for record in at.directory.records:
            await at.directory.remove(record)


@pytest.mark.parametrize("how", ["fails", "is left"])
async def test_a_check_that_came_to_no_end_is_done_again(how: str) -> None:
    async with bench() as at:
        session_id = await stale(at, "removed", heard=True)
        if how == "fails":
            at.directory.failing["get"] = ConnectionError("the directory is away")
            with pytest.raises(ConnectionError):
                await at.pool.lookup.find(ALICE, "x", session_id)
            del at.directory.failing["get"]
        else:
            asked = at.directory.calls["get"]
            at.directory.pause("get", before=True)
            finding = asyncio.create_task(at.pool.lookup.find(ALICE, "x", session_id))
            await at.directory.reached("get", asked + 1)
            finding.cancel()
            await asyncio.wait([finding])
            at.directory.let("get")
        with pytest.raises(UnknownSession):
            await at.pool.lookup.find(ALICE, "x", session_id)
        await at.ended("removed")


async def test_what_ends_while_it_is_compared_is_not_found() -> None:
    async with bench() as at:
        workflow = (await begin(at.pool, ALICE, key="chat")).workflow
        at.clock.advance(MAX_STALENESS + 1)
        at.directory.pause("get")
        by_id = asyncio.create_task(at.pool.lookup.find(ALICE, "x", workflow.record.session_id))
        await at.directory.reached("get")
        workflow.checked = float("-inf")
        by_key = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await at.directory.reached("get", 2)
        await at.pool.end(workflow, "deleted")
        at.directory.let("get")
        with pytest.raises(UnknownSession):
            await by_id
        begun = await by_key
        assert begun.state == "reset"
        assert begun.workflow.ended is None
