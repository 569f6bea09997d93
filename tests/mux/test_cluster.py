"""Several workers that share a directory: who serves what, who takes over, and who lets go."""

import anyio
import pytest
from harness.clustering import Member, Workers, until, workers
from harness.memory_wire import echo
from harness.muxing import ALICE, BOB, settle
from trunkline.mux.cluster import BESIDE_SECONDS, TOUCH_SECONDS
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Overloaded, UnknownSession
from trunkline.mux.placement import CALLS

pytestmark = pytest.mark.anyio


async def two(at: Workers) -> tuple[Member, Member, str]:
    """Two workers, and the session id of a workflow that the first one holds."""
    a, b = await at.start(), await at.start()
    at.server.on_request = echo
    return a, b, (await a.client()).workflow.record.session_id


async def test_a_record_names_its_worker_and_the_upstream_session() -> None:
    async with workers() as at:
        _, _, session_id = await two(at)
        record = await at.directory.get(session_id)
        assert record is not None
        assert (record.worker, record.upstream_session) == ("worker-1", f":{at.server.session.id}")
        assert record.lifetime == 1800 + 300


async def test_g7_calls_are_served_beside_the_holder_on_the_same_upstream_session() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        beside = await b.beside(session_id)
        assert (await beside.answer(beside.call({"arguments": {"n": 1}})))["result"]["structuredContent"] == {"n": 1}
        assert {session.id for session in at.server.sessions} == {"1"}
        assert len(at.server.of("initialize")) == 1
        assert a.pool.workflows
        assert b.pool.workflows == []
        assert [wire.is_listening for wire in at.server.sessions] == [True, False]


async def test_e4_ids_on_one_upstream_session_are_disjoint() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        here, beside = await a.find(session_id), await b.beside(session_id)
        for n in range(5):
            await here.answer(here.call(id=b"%d" % n))
            await beside.answer(beside.call(id=b"%d" % n))
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 10


async def test_everything_but_calls_goes_to_the_holder() -> None:
    async with workers() as at:
        _, b, session_id = await two(at)
        with pytest.raises(Elsewhere) as elsewhere:
            await b.find(session_id)
        assert elsewhere.value.worker == "worker-1"
        with pytest.raises(Elsewhere):
            await b.client(session_id=session_id)


async def test_g4_a_session_of_another_principal_is_unknown_on_every_worker() -> None:
    async with workers() as at:
        a, b = await at.start(), await at.start()
        session_id = (await a.client(ALICE)).workflow.record.session_id
        await b.find(session_id, CALLS, ALICE)
        for worker in (a, b):
            for concern in (CALLS, CALLS._replace(are_calls=False)):
                with pytest.raises(UnknownSession):
                    await worker.find(session_id, concern, BOB)


async def test_what_cannot_be_moved_is_served_by_its_holder_alone() -> None:
    async with workers(movable=False) as at:
        _, b, session_id = await two(at)
        with pytest.raises(Elsewhere):
            await b.beside(session_id)


async def test_a_keyed_workflow_is_one_on_all_workers() -> None:
    async with workers() as at:
        a, b = await at.start(), await at.start()
        mine = await a.client(ALICE, key="k")
        with pytest.raises(Elsewhere):
            await b.client(ALICE, key="k")
        found = await b.pool.find_key(ALICE, "x", "k", CALLS)
        assert found is not None
        assert found.record.session_id == mine.workflow.record.session_id
        assert await b.pool.find_key(BOB, "x", "k", CALLS) is None


async def test_beside_the_holder_nothing_stays_that_nobody_uses() -> None:
    async with workers() as at:
        _, b, session_id = await two(at)
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(BESIDE_SECONDS + 1)
        await until(lambda: b.pool.channels == [])
        assert at.server.deleted == []
        assert (await at.directory.get(session_id)) is not None


async def test_the_end_of_a_workflow_ends_it_beside_its_holder() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        beside = await b.beside(session_id)
        await a.pool.end((await a.find(session_id)).workflow, "deleted")
        await settle()
        with pytest.raises(UnknownSession):
            await b.beside(session_id)
        assert beside.workflow.ended is not None
        await until(lambda: at.server.deleted == ["1"])


async def test_a_session_that_the_server_forgot_is_over_for_all() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        beside = await b.beside(session_id)
        at.server.session.forget()
        lost = await beside.answer(beside.call())
        assert lost["error"]["data"]["executed"] == "no"
        await settle()
        with pytest.raises(UnknownSession):
            await a.find(session_id)


# Taking over.


async def test_g7_a_dead_holder_is_succeeded_with_the_same_upstream_session() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        a.kill()
        with pytest.raises(Elsewhere):
            await b.find(session_id)
        await at.pass_time(LEASE_SECONDS)
        client = await b.find(session_id)
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 1
        record = await at.directory.get(session_id)
        assert record is not None
        assert record.worker == "worker-2"
        assert b.pool.statistics.counts["takeovers", "adopted"] == 1
        assert at.server.session.is_listening


async def test_who_served_beside_goes_on_as_the_holder() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        beside = await b.beside(session_id)
        waiting = beside.call()
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        held = await b.find(session_id)
        assert held.workflow is beside.workflow
        (await at.server.got("tools/call")).answer({"n": 7})
        assert (await beside.answer(waiting))["result"] == {"n": 7}
        assert at.server.session.is_listening
        assert b.pool.workflows == [held.workflow]


async def test_of_many_that_find_a_dead_holder_one_succeeds() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        c = await at.start()
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        found: list[Member] = []

        async def come(member: Member) -> None:
            found.append((await at.serve(session_id, member))[0])

        async with anyio.create_task_group() as tasks:
            for member in (b, c) * 3:
                tasks.start_soon(come, member)
        assert len(found) == 6
        assert len(set(found)) == 1
        assert sum(member.pool.statistics.total("takeovers", "adopted") for member in (b, c)) == 1
        assert len([wire for wire in at.server.live if wire.is_listening]) == 1


async def test_what_died_with_its_worker_is_gone() -> None:
    async with workers(movable=False) as at:
        a, b, session_id = await two(at)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        with pytest.raises(UnknownSession):
            await b.find(session_id)
        assert await at.directory.get(session_id) is None
        assert b.pool.statistics.counts["takeovers", "gone"] == 1


async def test_a_stateless_server_gets_a_new_session_from_the_successor() -> None:
    async with workers(movable=False, stateless=True) as at:
        a, b, session_id = await two(at)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        client = await b.find(session_id)
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 2


# A worker that lost its lease.


async def test_g7_who_was_paused_ends_what_others_took_over_and_leaves_it_alone() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        mine = (await a.find(session_id)).workflow
        at.clock.advance(LEASE_SECONDS)
        await b.beat()
        await b.find(session_id)
        await a.beat()
        await settle()
        assert mine.ended is not None
        assert mine.ended.cause == "taken_over"
        with pytest.raises(Elsewhere) as elsewhere:
            await a.find(session_id)
        assert elsewhere.value.worker == "worker-2"
        await settle()
        assert at.server.deleted == []


async def test_who_was_paused_and_not_succeeded_goes_on() -> None:
    async with workers() as at:
        a, _, session_id = await two(at)
        at.clock.advance(LEASE_SECONDS * 4)
        await a.beat()
        client = await a.find(session_id)
        assert "result" in await client.answer(client.call())
        assert not client.workflow.is_doubted


async def test_g7_without_a_lease_nothing_is_written_to_what_cannot_be_moved() -> None:
    async with workers(movable=False) as at:
        a, _, session_id = await two(at)
        client = await a.find(session_id)
        at.clock.advance(LEASE_SECONDS)
        refused = await client.answer(client.call())
        assert refused["error"]["data"] == {"limit": "lease", "executed": "no"}
        client.workflow.line.notify(b'{"jsonrpc":"2.0","method":"notifications/x"}', {})
        assert at.server.of("tools/call") == at.server.of("notifications/x") == []
        await a.beat()
        await settle()
        assert "result" in await client.answer(client.call())


async def test_without_a_lease_http_sessions_go_on() -> None:
    async with workers() as at:
        a, _, session_id = await two(at)
        client = await a.find(session_id)
        a.view.is_cut = True
        at.clock.advance(60)
        await a.beat()
        again = await a.find(session_id)
        assert "result" in await again.answer(again.call())
        assert client.workflow.ended is None
        with pytest.raises(DirectoryUnavailable):
            await a.find("unknown")
        with pytest.raises(DirectoryUnavailable):
            await a.client()


async def test_an_end_in_doubt_leaves_the_upstream_session_alone() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        mine = (await a.find(session_id)).workflow
        at.clock.advance(LEASE_SECONDS)
        await b.beat()
        theirs = await b.find(session_id)
        await a.pool.end(mine, "evicted")
        await settle()
        assert at.server.deleted == []
        assert "result" in await theirs.answer(theirs.call())
        assert await at.directory.get(session_id) is not None


# Drain.


async def test_g8_a_worker_that_drains_lets_go_and_any_other_goes_on() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        client = await a.find(session_id)
        waiting = client.call()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.pool.drain, 5)
            await settle()
            (await at.server.got("tools/call")).answer({"n": 1})
            assert (await client.answer(waiting))["result"] == {"n": 1}
        await settle()
        at.server.on_request = echo
        with pytest.raises(Elsewhere):
            await a.find(session_id)
        again = await b.find(session_id)
        assert "result" in await again.answer(again.call())
        assert at.server.deleted == []
        with pytest.raises(Overloaded):
            await a.client()


async def test_a_worker_that_drains_last_says_so() -> None:
    async with workers() as at:
        a = await at.start()
        session_id = (await a.client()).workflow.record.session_id
        await a.pool.drain(1)
        await settle()
        with pytest.raises(Overloaded) as refused:
            await a.find(session_id)
        assert refused.value.limit == "draining"
        b = await at.start()
        with pytest.raises(Elsewhere):
            await a.find(session_id)
        await b.find(session_id)


async def test_what_cannot_be_moved_ends_with_its_worker() -> None:
    async with workers(movable=False) as at:
        a, b, session_id = await two(at)
        await a.pool.drain(1)
        await settle()
        with pytest.raises(UnknownSession):
            await b.find(session_id)


# Idleness.


async def test_calls_beside_the_holder_keep_a_workflow_in_use() -> None:
    async with workers(idle_timeout=20, resume_window=5) as at:
        a, b, session_id = await two(at)
        for _ in range(12):
            beside = await b.beside(session_id)
            await beside.answer(beside.call())
            await at.pass_time(TOUCH_SECONDS)
        assert (await a.find(session_id)).workflow.ended is None


async def test_a_workflow_that_no_worker_uses_ends() -> None:
    async with workers(idle_timeout=20, resume_window=5) as at:
        a, _, _ = await two(at)
        await at.pass_time(40)
        await until(lambda: a.pool.workflows == [])
        await until(lambda: at.server.deleted == ["1"])
        assert a.pool.statistics.counts["workflows_closed", "idle"] == 1
