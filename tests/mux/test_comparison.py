"""What lives at a worker is compared with its record: another worker's is let go, a forgotten one told again."""

import asyncio

import anyio
import msgspec
import pytest
from harness.changing import until
from harness.clustering import Member, Workers, orphaned, started, two, workers
from harness.memory_wire import echo
from harness.muxing import ALICE, initialize, settle
from trunkline.mux.directory import ID_BLOCK, LEASE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, UnknownSession
from trunkline.mux.placement import CALLS, WHOLE
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


async def test_what_ended_elsewhere_is_not_brought_back_by_the_worker_that_was_paused() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        await b.pool.end((await b.find(session_id)).workflow, "deleted")
        await a.beat()
        await until(lambda: mine.ended is not None)
        await settle()
        assert await at.directory.get(session_id) is None
        for member in (a, b):
            with pytest.raises(UnknownSession):
                await member.find(session_id)


async def test_what_was_declared_gone_is_not_brought_back_by_its_worker() -> None:
    async with two(movable=False) as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        with pytest.raises(UnknownSession):
            await b.find(session_id)
        await a.beat()
        await until(lambda: mine.ended is not None)
        await settle()
        assert await at.directory.get(session_id) is None
        await until(lambda: a.pool.channels == [])


async def test_who_was_away_for_longer_than_a_record_lives_holds_nothing_of_it() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=mine.record.lifetime + LEASE_SECONDS)
        at.directory.forget(session_id)  # of what it knew, the end included, nothing is left
        await a.beat()
        await until(lambda: mine.ended is not None)
        await settle()
        assert await at.directory.get(session_id) is None


@pytest.mark.parametrize("shares_what", ["is_another_workers", "is_drained"])
async def test_what_ended_longer_ago_than_the_end_is_known_is_not_let_go_of(shares_what: str) -> None:
    async with started(2, reuse="user") as (at, a, b):
        mine, other = [(await a.client(ALICE)).workflow for _ in range(2)]
        await b.beat(after=LEASE_SECONDS)
        theirs = await b.find(mine.record.session_id, WHOLE, ALICE)
        if shares_what == "is_another_workers":
            await b.find(other.record.session_id, WHOLE, ALICE)
        await b.pool.end(theirs.workflow, "deleted")
        await b.beat(after=mine.record.lifetime)
        if shares_what == "is_another_workers":
            await a.beat()
        else:
            a.pool.lapse(at.clock() - mine.record.lifetime)
            await a.pool.drain(0)
        await until(lambda: mine.ended and other.ended)
        await settle()
        assert await at.directory.get(mine.record.session_id) is None


async def test_who_had_a_lease_ever_since_tells_again_also_what_was_compared_long_ago() -> None:
    async with two(idle_timeout=10, resume_window=5) as (at, a, _, session_id):
        mine = (await a.find(session_id)).workflow
        mine.streams.attach_standalone()  # and nothing more comes of its client
        await at.pass_time(mine.record.lifetime + 1)
        at.directory.forget(session_id)
        await at.interrupt()
        assert (mine.ended, await at.directory.get(session_id)) == (None, mine.record)


async def test_what_a_worker_changed_without_hearing_of_it_is_what_it_goes_on_from() -> None:
    async with two() as (at, a, _, session_id):
        mine = (await a.find(session_id)).workflow
        changed = await at.directory.replace(mine.record)
        assert changed is not None
        await a.beat(after=LEASE_SECONDS)
        await settle()
        assert not mine.is_doubted
        assert mine.record == changed
        await a.pool.end(mine, "deleted")
        assert await at.directory.get(session_id) is None


async def test_doubts_that_meet_are_as_old_as_the_first() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        half = mine.record.lifetime / 2
        for _ in range(2):
            await b.beat(after=half)
            gets, at.directory.is_away = at.directory.get, True

            async def away(*asked: object) -> None:
                raise DirectoryUnavailable("a test has taken the directory away")

            at.directory.get = away  # type: ignore[method-assign, assignment]
            at.directory.is_away = False
            await a.beat()
            await settle()
            at.directory.get = gets  # type: ignore[method-assign]
            assert mine.is_doubted
        await b.beat(after=LEASE_SECONDS)
        at.directory.forget(session_id)
        await a.beat()
        await until(lambda: mine.ended is not None)


async def test_what_the_directory_forgot_while_it_was_away_is_told_again() -> None:
    async with started(2, on_request=echo) as (at, a, b):
        client = await a.client(ALICE, key="k")
        session_id = client.workflow.record.session_id
        a.view.is_cut = True
        await b.beat(after=LEASE_SECONDS)
        await a.beat()
        at.directory.forget(session_id)
        a.view.is_cut = False
        await a.beat()
        await settle()
        assert await at.directory.get(session_id) == client.workflow.record
        beside = await b.find(session_id, CALLS, ALICE)
        for each in (client, beside):
            assert "result" in await each.answer(each.call())
        sent = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(set(sent)) == len(sent) == 2


async def test_e4_no_id_is_used_again_where_the_directory_forgot_which_it_gave() -> None:
    async with started(1, reuse="user", on_request=echo) as (at, a):
        client = await a.client(ALICE)
        at.directory._next_id.clear()
        for _ in range(ID_BLOCK + 1):
            await client.answer(client.call())
        sent = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(set(sent)) == len(sent) == ID_BLOCK + 1


async def loses_its_data(at: Workers, session_id: str, holder: Member) -> None:
    """The directory is away, and knows nothing when it is back; the worker that holds the workflow tells it again."""
    holder.view.is_cut = True
    at.clock.advance(LEASE_SECONDS)
    for member in at.all:
        await member.beat()
    at.directory.forget(session_id)
    holder.view.is_cut = False
    await holder.beat()
    await settle()
    assert await at.directory.get(session_id) is not None


async def test_e4_no_worker_gets_ids_again_that_another_one_drew_before_the_directory_lost_its_data() -> None:
    async with workers() as at:
        members = [await at.start() for _ in range(4)]
        at.server.on_request = echo
        holder = members[0]
        clients = [await holder.client()]
        session_id = clients[0].workflow.record.session_id
        for member in members[1:]:
            clients.append(await member.beside(session_id))  # who draws a block, and goes on with it
            await loses_its_data(at, session_id, holder)
            for client in clients:
                assert "result" in await client.answer(client.call())
        sent = [int(exchange.id) for exchange in at.server.of("tools/call")]
        assert len(set(sent)) == len(sent) == 2 + 3 + 4
        assert max(sent) < 2**31, "some servers parse 32 bits"
        assert len(at.server.of("initialize")) == 1


async def test_e4_a_successor_gets_no_ids_that_a_shared_session_had_before_the_directory_lost_its_data() -> None:
    async with started(2, reuse="user", on_request=echo) as (at, a, b):
        client = await a.client(ALICE)
        session_id = client.workflow.record.session_id
        for _ in range(3):
            await client.answer(client.call())
        at.directory._next_id = {name: next_id for name, next_id in at.directory._next_id.items() if name == session_id}
        at.clock.advance(LEASE_SECONDS)
        for member in (a, b):
            await member.beat()
        await settle()
        await at.lose(a)
        again = await b.find(session_id, WHOLE, ALICE)
        for _ in range(3):
            assert "result" in await again.answer(again.call())
        sent = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(set(sent)) == len(sent) == 6
        assert len(at.server.of("initialize")) == 1


async def test_g7_who_took_over_keeps_it_though_who_was_paused_is_first_to_hear_that_the_directory_lost_it() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        theirs = (await b.find(session_id)).workflow
        at.directory.forget(session_id)
        for member, workflow in ((a, mine), (b, theirs)):
            await member.pool.lookup.compare(workflow)
        await a.beat()
        await settle()
        assert (theirs.ended, await at.directory.get(session_id)) == (None, theirs.record)
        assert mine.ended is not None


@pytest.mark.parametrize("changes", [0, 2])
async def test_g5_g7_who_took_over_keeps_it_though_the_directory_lost_that(changes: int) -> None:
    async with two() as (at, a, b, session_id):
        before = await at.directory.get(session_id)
        assert before is not None
        await at.lose(a)
        client = await b.find(session_id)
        for _ in range(changes):
            client.workflow.record = await at.directory.replace(client.workflow.record) or client.workflow.record
        await client.answer(client.call())
        known = client.workflow.record
        at.directory.go_back(before)
        at.directory._next_id[session_id] = 1
        await at.interrupt()
        record = await at.directory.get(session_id)
        assert record == client.workflow.record
        assert (record.worker, record.epoch, client.workflow.ended) == (known.worker, known.epoch, None)
        c = await at.start()
        beside = await c.beside(session_id)
        for each in (client, beside, beside):
            assert "result" in await each.answer(each.call())
        sent = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(set(sent)) == len(sent) == 4


async def test_g7_who_was_paused_takes_nothing_back_though_the_directory_lost_something() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        for _ in range(3):
            mine.record = await at.directory.replace(mine.record) or mine.record
        await b.beat(after=LEASE_SECONDS)
        at.directory.go_back(msgspec.structs.replace(mine.record, epoch=1))
        theirs = (await b.find(session_id)).workflow
        assert theirs.record.epoch < mine.record.epoch
        await a.pool.lookup.compare(mine)
        await a.beat()
        await settle()
        assert (theirs.ended, await at.directory.get(session_id)) == (None, theirs.record)
        assert mine.ended is not None


async def test_g7_what_was_asked_before_a_lapse_makes_nobody_sure(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        get, answers, asked = at.directory.get, [anyio.Event(), anyio.Event()], list[str]()

        async def slow(name: str) -> WorkflowRecord | None:
            stored, answer = await get(name), answers[len(asked)]
            asked.append(name)
            await answer.wait()
            return stored

        with monkeypatch.context() as patched:
            patched.setattr(at.directory, "get", slow)
            comparing = asyncio.create_task(a.pool.lookup.compare(mine))
            await until(lambda: asked)
            patched.undo()
            with at.directory.unheard():
                await b.beat(after=LEASE_SECONDS)
                theirs = (await b.find(session_id)).workflow
            patched.setattr(at.directory, "get", slow)
            await a.beat()
            answers[0].set()
            assert await comparing
            assert mine.is_doubted
            answers[1].set()
            await until(lambda: mine.ended is not None)
        assert (mine.ended.cause, theirs.ended) == ("taken_over", None)


async def test_g7_who_was_cut_off_while_it_took_over_leaves_it_to_who_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with orphaned() as (at, b, c, session_id):
        replace, is_stored, is_heard = at.directory.replace, anyio.Event(), anyio.Event()

        async def slow(record: WorkflowRecord) -> WorkflowRecord | None:
            stored = await replace(record)
            if record.worker == b.members.worker.id:
                is_stored.set()
                await is_heard.wait()
            return stored

        monkeypatch.setattr(at.directory, "replace", slow)
        finding = asyncio.create_task(b.find(session_id))
        await is_stored.wait()
        await c.beat(after=LEASE_SECONDS)
        theirs = (await c.find(session_id)).workflow
        await b.beat()
        is_heard.set()
        with pytest.raises(Elsewhere):
            await finding
        assert (b.pool.workflows, c.pool.workflows, theirs.ended) == ([], [theirs], None)
        assert await at.directory.get(session_id) == theirs.record


async def test_who_has_the_key_meanwhile_keeps_it() -> None:
    async with started(2) as (at, a, b):
        mine = (await a.client(ALICE, key="k")).workflow
        a.view.is_cut = True
        await b.beat(after=LEASE_SECONDS)
        await a.beat()
        at.directory.forget(mine.record.session_id)
        theirs = (await b.client(ALICE, key="k", message=initialize())).workflow
        a.view.is_cut = False
        await a.beat()
        await settle()
        assert mine.ended is not None
        assert theirs.ended is None
        with anyio.fail_after(5), pytest.raises(Elsewhere):
            await a.pool.lookup.find_key(ALICE, "x", "k")
