"""A worker that changes while it serves what others hold, or begins to hold it: its settings, or that it ends."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from harness.clustering import Member, Workers, workers
from harness.memory_wire import echo
from harness.muxing import Client, settle
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import Elsewhere
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


async def orphaned(at: Workers) -> tuple[Member, Member, str]:
    """Two workers that live, and the session id of a workflow whose worker is dead."""
    a, b, c = [await at.start() for _ in range(3)]
    at.server.on_request = echo
    session_id = (await a.client()).workflow.record.session_id
    a.kill()
    await at.pass_time(LEASE_SECONDS)
    return b, c, session_id


@asynccontextmanager
async def taking_over(
    at: Workers, member: Member, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator["asyncio.Task[Client]"]:
    """A request for which a worker takes over: inside, the directory has taken that down, and not said so yet."""
    taken, said = anyio.Event(), anyio.Event()
    replace = at.directory.replace

    async def slow(record: WorkflowRecord) -> WorkflowRecord | None:
        stored = await replace(record)
        taken.set()
        await said.wait()
        return stored

    monkeypatch.setattr(at.directory, "replace", slow)
    finding = asyncio.create_task(member.find(session_id))
    await taken.wait()
    monkeypatch.setattr(at.directory, "replace", replace)
    yield finding
    said.set()


async def test_g8_a_worker_that_begins_to_drain_while_it_takes_over_leaves_it_to_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with workers() as at:
        b, c, session_id = await orphaned(at)
        async with taking_over(at, b, session_id, monkeypatch) as finding:
            await b.pool.drain(0)
        with pytest.raises(Elsewhere) as elsewhere:
            await finding
        assert elsewhere.value.worker == c.members.worker.id
        assert b.pool.workflows == []
        client = await c.find(session_id)
        assert "result" in await client.answer(client.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_what_is_taken_over_while_settings_change_goes_on_under_the_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with workers() as at:
        b, _, session_id = await orphaned(at)
        async with taking_over(at, b, session_id, monkeypatch) as finding:
            b.reconfigure()
        client = await finding
        assert client.workflow.generation == 1
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 1


async def test_settings_are_kept_for_those_who_are_served_beside_their_holder_under_them() -> None:
    async with workers(reuse="none", resume_window=30) as at:
        a, b = await at.start(), await at.start()
        at.server.on_request = echo
        client = await b.beside((await a.client()).workflow.record.session_id)
        await client.answer(client.call())
        b.reconfigure()
        await at.pass_time(1)
        assert [upstream.name for upstream in b.released] == ["y"]
        again = await b.beside(client.workflow.record.session_id)
        assert "result" in await again.answer(again.call())
        await at.pass_time(90)
        assert [upstream.name for upstream in b.released] == ["y", "x"]
        await settle()
