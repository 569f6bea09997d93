"""A workflow is found by who it belongs to, for as long as its record says that it lives here."""

import asyncio
from contextlib import nullcontext, suppress
from typing import Any

import anyio
import msgspec
import pytest
from harness.clustering import Workers, two
from harness.muxing import ALICE, BOB, begin, bench, cancelled, position, settle
from trunkline.mux.directory import MAX_STALENESS
from trunkline.mux.errors import UnknownSession
from trunkline.mux.record import WorkflowRecord, derived

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


async def changed(at: Workers, session_id: str, cause: str, *, heard: bool) -> None:
    """Another worker changes a record; where it is not `heard`, no watcher is told."""
    record = await at.directory.get(session_id)
    assert record is not None
    with nullcontext() if heard else at.directory.unheard():
        if cause == "removed":
            await at.directory.remove(record)
        else:
            await at.directory.replace(msgspec.structs.replace(record, worker="another"))
    await settle()


@pytest.mark.parametrize("cause", ["removed", "taken_over"])
@pytest.mark.parametrize("heard", [False, True])
async def test_a_change_by_another_worker_is_noticed_at_once_or_after_at_most_five_seconds(
    cause: str, heard: bool
) -> None:
    async with two() as (at, a, _, session_id):
        await settle()
        workflow = (await a.find(session_id)).workflow  # what its own opening told is heard
        await changed(at, session_id, cause, heard=heard)
        if not heard:
            await at.pass_time(MAX_STALENESS)
            asked = a.view.calls
            assert (await a.find(session_id)).workflow is workflow
            assert a.view.calls == asked
            at.clock.advance(0.1)
        with suppress(UnknownSession):  # who had it is not there: what was taken over is taken back
            assert (await a.find(session_id)).workflow is not workflow
        assert workflow.ended is not None
        assert workflow.ended.cause == cause


@pytest.mark.parametrize("how", ["fails", "is left"])
async def test_a_check_that_came_to_no_end_is_done_again(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (at, a, _, session_id):
        await settle()
        await a.find(session_id)
        await changed(at, session_id, "removed", heard=True)
        if how == "fails":
            a.view.fails_at = a.view.calls + 1
            assert (await a.find(session_id)).workflow.ended is None, "it is used as it is"
            await at.pass_time(MAX_STALENESS + 0.1)
        else:
            with monkeypatch.context() as patch:
                patch.setattr(at.directory, "get", lambda session_id: anyio.sleep_forever())
                finding = asyncio.create_task(a.find(session_id))
                await settle()
                await cancelled(finding)
        with pytest.raises(UnknownSession):
            await a.find(session_id)
        assert a.pool.statistics.counts["workflows_closed", "removed"] == 1


async def test_what_ends_while_it_is_compared_is_not_found(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (at, a, _, session_id):
        workflow = (await a.find(session_id)).workflow
        get, is_ended = at.directory.get, asyncio.Event()

        async def late(session_id: str) -> WorkflowRecord | None:
            record = await get(session_id)
            await is_ended.wait()
            return record

        monkeypatch.setattr(at.directory, "get", late)
        await at.pass_time(MAX_STALENESS + 1)
        finding = asyncio.create_task(a.find(session_id))
        await settle()
        await a.pool.end(workflow, "deleted")
        is_ended.set()
        with pytest.raises(UnknownSession):
            await finding
