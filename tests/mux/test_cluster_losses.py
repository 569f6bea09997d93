"""A directory that lost what it was told last, as a redis does that fails over to a replica: it is told again."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from harness.changing import until
from harness.clustering import Member, Workers, started, two
from harness.muxing import ALICE, Client, begin, initialize, settle
from msgspec.structs import replace
from trunkline.mux import lookup
from trunkline.mux.directory import LEASE_SECONDS, MAX_STALENESS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Overloaded, SessionLost, UnknownSession
from trunkline.mux.leftovers import FIRST_SECONDS
from trunkline.mux.lookup import COMPARED_AT_ONCE
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def gone_back() -> AsyncIterator[tuple[Workers, Member, Member, Client]]:
    """Two workers, and a client of a workflow of which the directory knows what it knew before it was open."""
    async with two() as (at, a, b, session_id):
        client = await a.find(session_id)
        await client.answer(client.call())
        record = client.workflow.record
        at.directory.go_back(replace(record, epoch=0, revision="", result=b"", upstream_session=""))
        yield at, a, b, client


async def away(*asked: object) -> None:
    raise DirectoryUnavailable("a test has taken the directory away")


async def test_g7_what_a_directory_lost_of_a_workflow_is_told_to_it_again() -> None:
    async with gone_back() as (at, a, b, client):
        session_id = client.workflow.record.session_id
        at.directory._next_id[session_id] = 1
        await a.beat(after=LEASE_SECONDS)
        await b.beat()
        await settle()
        assert await at.directory.get(session_id) == client.workflow.record
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())
        await at.lose(a)
        again = await b.find(session_id)
        assert "result" in await again.answer(again.call())
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 3
        assert len(at.server.of("initialize")) == 1


async def test_g7_what_nobody_seems_to_hold_is_left_to_who_may_be_about_to_tell_of_it_again() -> None:
    """Where no other one may have parts of it, who lives is not asked for."""
    async with started(3, movable=False, stateless=True) as (at, a, b, c):
        session_id = (await a.client()).workflow.record.session_id
        await at.drain(a)
        let_go = await at.directory.get(session_id)
        assert let_go is not None
        held = (await b.find(session_id)).workflow
        at.directory.go_back(let_go)
        b.view.is_cut = True
        await at.interrupt()
        with pytest.raises(DirectoryUnavailable):
            await c.find(session_id)
        b.view.is_cut = False
        await at.pass_time(LEASE_SECONDS)
        with pytest.raises(Elsewhere) as elsewhere:
            await c.find(session_id)
        assert (elsewhere.value.worker, held.ended) == (b.members.worker.id, None)


async def test_e4_which_ids_were_drawn_is_told_again_though_that_fails_at_first() -> None:
    async with gone_back() as (at, a, b, client):
        session_id = client.workflow.record.session_id
        at.directory._next_id[session_id] = 1
        draw_ids = at.directory.draw_ids
        at.directory.draw_ids = away  # type: ignore[method-assign]
        await a.beat(after=LEASE_SECONDS)
        await settle()
        at.directory.draw_ids = draw_ids  # type: ignore[method-assign]
        await at.pass_time(LEASE_SECONDS)
        assert await at.directory.get(session_id) == client.workflow.record
        beside = await b.beside(session_id)
        for _ in range(3):
            assert "result" in await beside.answer(beside.call())
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 4


async def test_g7_it_is_told_too_where_the_workflow_is_used_before_anybody_knows_of_a_loss() -> None:
    async with gone_back() as (at, a, _, client):
        at.clock.advance(MAX_STALENESS + 0.1)
        assert await a.pool.lookup.find(ANONYMOUS, "x", client.workflow.record.session_id) is client.workflow
        assert await at.directory.get(client.workflow.record.session_id) == client.workflow.record


@pytest.mark.parametrize("by", ["use", "news"])
async def test_g7_a_record_that_was_lost_unnoticed_is_told_again(by: str) -> None:
    async with two() as (at, a, b, session_id):
        workflow = (await a.find(session_id)).workflow
        at.directory.forget(session_id)
        if by == "use":
            at.clock.advance(MAX_STALENESS + 0.1)
            assert await a.pool.lookup.find(ANONYMOUS, "x", session_id) is workflow
        else:
            await at.interrupt()
        assert await at.directory.get(session_id) == workflow.record
        await b.beat()
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())


async def test_g7_it_is_told_again_though_that_fails_at_first_and_nobody_uses_it_there() -> None:
    async with two() as (at, a, b, session_id):
        await at.pass_time(1)
        at.directory.forget(session_id)
        a.view.fails_at = a.view.calls + 1
        await at.interrupt()
        await at.pass_time(LEASE_SECONDS + 1)
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())
        assert not (await a.find(session_id)).workflow.is_doubted


async def test_g7_it_is_told_again_though_it_was_used_while_the_directory_was_away() -> None:
    async with two() as (at, a, b, session_id):
        await at.pass_time(1)
        at.directory.forget(session_id)
        a.view.is_cut = True
        await at.interrupt()
        await a.find(session_id)
        a.view.is_cut = False
        await at.pass_time(LEASE_SECONDS + 1)
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())


async def test_g10_doubts_are_settled_by_one_task_however_long_the_directory_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        get, answers = at.directory.get, anyio.Event()

        async def slow(name: str) -> WorkflowRecord | None:
            await answers.wait()
            return await get(name)

        monkeypatch.setattr(at.directory, "get", slow)
        await b.beat(after=LEASE_SECONDS)
        await a.beat()
        numbers = list[int]()
        for _ in range(5):
            tuple(a.pool._sweep.look_after(at.clock()))
            await settle()
            numbers.append(len(a.pool._tasks._running))
        assert len(set(numbers)) == 1
        answers.set()
        await until(lambda: not mine.is_doubted)


async def test_g7_what_was_lost_is_told_again_many_at_a_time_and_not_all_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(1, max_workflows_per_user=100) as (at, a):
        await at.start()
        mine = [(await a.client()).workflow for _ in range(COMPARED_AT_ONCE + 5)]
        get, answers, asked = at.directory.get, anyio.Event(), 0

        async def slow(name: str) -> WorkflowRecord | None:
            nonlocal asked
            asked += 1
            await answers.wait()
            return await get(name)

        monkeypatch.setattr(at.directory, "get", slow)
        for workflow in mine:
            at.directory.forget(workflow.record.session_id)
        await at.interrupt()
        at.directory._tell("")
        tuple(a.pool._sweep.look_after(at.clock()))
        await settle()
        assert asked == COMPARED_AT_ONCE
        answers.set()
        await settle(200)
        for workflow in mine:
            assert await get(workflow.record.session_id) is not None


async def test_g7_nothing_is_unknown_before_those_who_hold_it_can_have_told_it_again() -> None:
    async with two() as (at, a, b, session_id):
        keyed = (await a.client(ALICE, key="chat")).workflow
        beside = await b.beside(session_id)
        publish = at.directory.publish
        at.directory.publish = away  # type: ignore[method-assign]
        for lost in (session_id, keyed.record.session_id):
            at.directory.forget(lost)
        await at.interrupt()
        assert (await b.beside(session_id)).workflow is beside.workflow
        assert "result" in await beside.answer(beside.call())
        with pytest.raises(DirectoryUnavailable):
            await b.find(session_id)
        with pytest.raises(DirectoryUnavailable):
            await b.client(ALICE, key="chat")
        at.directory.publish = publish  # type: ignore[method-assign]
        await at.interrupt()
        with pytest.raises(Elsewhere):
            await b.find(session_id)
        with pytest.raises(Elsewhere):
            await b.client(ALICE, key="chat")
        await at.pass_time(LEASE_SECONDS)
        with pytest.raises(UnknownSession):
            await b.find("unknown")


async def test_all_is_compared_once_the_newest_first_for_each_time_that_something_was_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lookup, "COMPARED_AT_ONCE", 1)
    async with started(1) as (at, a):
        oldest, middle, newest = [(await a.client()).workflow.record.session_id for _ in range(3)]
        get, asked, answers = at.directory.get, list[str](), anyio.Semaphore(0)

        async def slow(session_id: str) -> WorkflowRecord | None:
            asked.append(session_id)
            await answers.acquire()
            return await get(session_id)

        at.directory.get = slow  # type: ignore[method-assign]
        await at.interrupt()
        assert asked == [newest]
        await at.interrupt()
        assert asked == [newest], "it is compared again, but not yet"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.find, middle)
            await settle()
            for _ in range(9):
                answers.release()
        await settle()
        assert asked == [newest, middle, oldest, newest]


async def test_a_record_that_is_missing_for_longer_than_an_end_is_known_is_not_told_again() -> None:
    async with two(idle_timeout=10, resume_window=5) as (at, a, _, session_id):
        (await a.find(session_id)).workflow.streams.attach_standalone()
        at.directory.forget(session_id)
        at.clock.advance(20)
        with pytest.raises(UnknownSession):
            await a.find(session_id)


async def test_g7_a_record_that_is_missing_since_just_now_is_told_again_however_long_ago_it_was_seen() -> None:
    async with two(idle_timeout=10, resume_window=5) as (at, a, _, session_id):
        workflow = (await a.find(session_id)).workflow
        workflow.streams.attach_standalone()
        await at.pass_time(30)
        at.directory.forget(session_id)
        await a.beat(after=LEASE_SECONDS)
        await settle()
        assert (await a.find(session_id)).workflow is workflow
        assert await at.directory.get(session_id) == workflow.record


async def test_e4_who_serves_beside_learns_which_ids_are_drawn_from_then_on() -> None:
    async with two() as (at, _, b, session_id):
        beside = await b.beside(session_id)
        before = beside.workflow.record.first_id
        at.directory.forget(session_id)
        await at.interrupt()
        at.clock.advance(MAX_STALENESS + 0.1)
        assert (await b.beside(session_id)).workflow is beside.workflow
        told = await at.directory.get(session_id)
        assert told is not None
        assert beside.workflow.record.first_id == told.first_id > before


async def test_what_ends_is_removed_though_the_directory_lost_its_last_state() -> None:
    async with gone_back() as (at, a, b, client):
        await a.pool.end(client.workflow, "deleted")
        assert await at.directory.get(client.workflow.record.session_id) is None
        with pytest.raises(UnknownSession):
            await b.find(client.workflow.record.session_id)


async def test_what_its_client_ends_while_nobody_can_tell_who_has_it_ends_at_the_server_as_well() -> None:
    async with two() as (at, a, _, session_id):
        workflow = (await a.find(session_id)).workflow
        a.view.is_cut = True
        at.clock.advance(LEASE_SECONDS)
        await a.pool.end(workflow, "deleted")
        await until(lambda: len(at.server.deleted) == 1)


async def test_g8_what_is_let_go_goes_on_though_the_directory_lost_its_last_state() -> None:
    async with gone_back() as (at, a, b, client):
        at.directory._next_id[client.workflow.record.session_id] = 1
        await at.drain(a)
        again = await b.find(client.workflow.record.session_id)
        for _ in range(3):
            assert "result" in await again.answer(again.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 4


async def test_g8_what_is_let_go_goes_on_though_the_directory_has_just_forgotten_it() -> None:
    async with two() as (at, a, b, session_id):
        at.directory.forget(session_id)
        await at.drain(a)
        again = await b.find(session_id)
        assert "result" in await again.answer(again.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_what_ended_elsewhere_is_not_brought_back_by_a_worker_that_drains() -> None:
    async with two() as (at, a, b, session_id):
        await b.beat(after=LEASE_SECONDS)
        theirs = (await b.find(session_id)).workflow
        with at.directory.unheard():
            await b.pool.end(theirs, "deleted")
        await at.drain(a)
        assert await at.directory.get(session_id) is None


@pytest.mark.parametrize("cause", ["drained", "not_opened", "taken_over"])
async def test_g8_what_is_let_go_while_it_is_told_again_goes_on(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with gone_back() as (at, a, b, client):
        session_id = client.workflow.record.session_id
        publish, append = at.directory.publish, at.directory.append
        is_told, is_heard, is_written = anyio.Event(), anyio.Event(), anyio.Event()

        async def told(record: WorkflowRecord) -> WorkflowRecord | None:
            standing = await publish(record)
            is_told.set()
            await is_heard.wait()
            return standing

        async def written(*what: Any) -> None:
            await is_written.wait()
            await append(*what)

        monkeypatch.setattr(at.directory, "publish", told)
        monkeypatch.setattr(at.directory, "append", written)
        client.workflow.streams.attach_standalone()  # an event, which is on its way when the worker lets go
        await b.beat(after=MAX_STALENESS + 0.1)
        comparing = asyncio.create_task(a.find(session_id))
        await is_told.wait()
        if cause == "drained":
            await a.pool.drain(1)
        else:
            a.pool.lookup._ending.soon(client.workflow, cause)
        is_heard.set()
        with suppress(DirectoryUnavailable, UnknownSession, SessionLost, Elsewhere, Overloaded):
            await comparing
        is_written.set()
        await settle()
        again = Client((await at.serve(session_id, b))[1])
        assert "result" in await again.answer(again.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_what_begins_anew_under_its_session_id_is_not_ended_for_what_was_left_of_the_one_before() -> None:
    async with two() as (at, a, _, session_id):
        a.view.fails_at, a.view.is_done = a.view.calls + 2, True  # looks, removes, and does not hear that it did
        message = initialize("2025-06-18")
        begun = await begin(a.pool, session_id=session_id, new_id=session_id, message=message)
        assert begun.state == "reset"
        assert a.pool.statistics.counts["leftovers", "kept"] == 1
        await at.pass_time(FIRST_SECONDS)
        client = await a.find(session_id)
        assert client.workflow is begun.workflow
        assert "result" in await client.answer(client.call())
        at.clock.advance(MAX_STALENESS + 0.1)
        assert (await a.find(session_id)).workflow is begun.workflow


@pytest.mark.parametrize("late", ["get", "publish"])
async def test_what_begins_anew_under_its_session_id_is_no_older_state_of_the_one_before(
    late: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two() as (at, a, _, session_id):
        mine = (await a.find(session_id)).workflow
        for _ in range(3):
            mine.record = await at.directory.replace(mine.record) or mine.record
        await settle()
        assert (await a.find(session_id)).workflow is mine
        do, is_asked, may_be_done = getattr(at.directory, late), anyio.Event(), anyio.Event()

        async def slow(what: Any) -> WorkflowRecord | None:
            is_asked.set()
            await may_be_done.wait()
            return await do(what)  # type: ignore[no-any-return]

        if late == "publish":
            at.directory.forget(session_id)
        with monkeypatch.context() as patched:
            patched.setattr(at.directory, late, slow)
            comparing = asyncio.create_task(a.pool.lookup.compare(mine))
            await is_asked.wait()
        message = initialize("2025-06-18")
        begun = await begin(a.pool, session_id=session_id, new_id=session_id, message=message)
        assert begun.workflow is not mine
        may_be_done.set()
        await comparing
        await settle()
        assert begun.workflow.ended is None
        assert await at.directory.get(session_id) == begun.workflow.record
