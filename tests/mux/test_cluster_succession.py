"""Who goes on with a workflow after its worker died, was paused or drained."""

import asyncio

import anyio
import pytest
from harness.changing import until
from harness.clustering import Member, started, two
from harness.memory_wire import echo
from harness.muxing import settle
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Overloaded, SessionLost, UnknownSession
from trunkline.mux.leftovers import FIRST_SECONDS
from trunkline.mux.limits import Pooling
from trunkline.mux.placement import CALLS
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


# Taking over.


async def test_g7_a_dead_holder_is_succeeded_with_the_same_upstream_session() -> None:
    async with two() as (at, a, b, session_id):
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
        [adopted] = b.pool.workflows
        assert [event.what for event in adopted.account.timeline][:1] == ["taken_over"]


async def test_a_record_is_kept_for_as_long_as_the_settings_of_who_has_it_say() -> None:
    """As in a rolling restart with other settings: else it is unknown elsewhere before it is idle for so long here."""
    async with started(1, idle_timeout=100) as (at, a):
        session_id = (await a.client()).workflow.record.session_id
        at.settings = {**at.settings, "pooling": Pooling(idle_timeout=5000)}
        b = await at.start()
        await at.lose(a)
        held = (await b.find(session_id)).workflow
        record = await at.directory.get(session_id)
        assert record is not None
        assert record.lifetime == held.record.lifetime == 5000 + held.pooling.resume_window


async def test_g8_what_a_drained_worker_let_go_of_is_taken_on_and_counted_as_such() -> None:
    async with two() as (at, a, b, session_id):
        await at.drain(a)
        client = await b.find(session_id)
        assert "result" in await client.answer(client.call())
        assert b.pool.workflows == [client.workflow]
        counts = b.pool.statistics.counts
        assert (b.pool.statistics.total("takeovers"), counts["takeovers", "let_go"]) == (1, 1)


async def test_g7_a_session_that_its_successor_cannot_open_yet_is_left_alone() -> None:
    """The directory fails between the take-over and the first block of ids."""
    async with two() as (at, a, b, session_id):
        await at.lose(a)

        async def fail(*_: object) -> range:
            raise DirectoryUnavailable("a test")

        b.view.draw_ids = fail  # type: ignore[method-assign]
        with pytest.raises(DirectoryUnavailable):
            await b.find(session_id)
        del b.view.draw_ids
        await settle()
        assert at.server.deleted == []
        client = await b.find(session_id)
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 1


async def test_who_served_beside_goes_on_as_the_holder() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        beside = await b.beside(session_id)
        waiting = beside.call()
        await at.lose(a)
        held = await b.find(session_id)
        assert held.workflow is beside.workflow
        (await at.server.got("tools/call")).answer({"n": 7})
        assert (await beside.answer(waiting))["result"] == {"n": 7}
        assert at.server.session.is_listening
        assert b.pool.workflows == [held.workflow]


async def test_of_many_that_find_a_dead_holder_one_succeeds() -> None:
    async with two() as (at, a, b, session_id):
        c = await at.start()
        await at.lose(a)
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


async def test_g12_a_take_over_that_finds_no_room_is_counted_and_may_be_tried_again() -> None:
    async with two(max_workflows=1) as (at, a, b, session_id):
        own = await b.client()
        await at.lose(a)
        with pytest.raises(Overloaded) as refused:
            await b.find(session_id)
        assert refused.value.limit == "max_workflows"
        assert b.pool.statistics.counts["takeovers", "refused"] == 1
        await b.pool.end(own.workflow, "deleted")
        await b.find(session_id)
        assert b.pool.statistics.counts["takeovers", "adopted"] == 1


async def test_what_died_with_its_worker_is_gone() -> None:
    async with two(movable=False) as (at, a, b, session_id):
        await at.lose(a)
        with pytest.raises(UnknownSession):
            await b.find(session_id)
        assert await at.directory.get(session_id) is None
        assert b.pool.statistics.counts["takeovers", "gone"] == 1


async def test_a_stateless_server_gets_a_new_session_from_the_successor() -> None:
    async with two(movable=False, stateless=True) as (at, a, b, session_id):
        await at.lose(a)
        client = await b.find(session_id)
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 2


# A worker that lost its lease.


async def test_g7_who_was_paused_ends_what_others_took_over_and_leaves_it_alone() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
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


async def test_g7_who_wakes_leaves_to_its_successor_what_comes_before_it_could_beat() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        with at.directory.unheard():
            await b.find(session_id)
        member, _ = await at.serve(session_id, a)
        assert member is b
        assert mine.ended is not None
        assert mine.ended.cause == "taken_over"


async def test_g7_what_is_compared_after_a_pause_is_not_used_before(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (at, a, b, session_id):
        await b.beat(after=LEASE_SECONDS)
        await b.find(session_id)
        get, asked, goes_on = at.directory.get, anyio.Event(), anyio.Event()

        async def slow(session_id: str) -> WorkflowRecord | None:
            asked.set()
            await goes_on.wait()
            return await get(session_id)

        monkeypatch.setattr(at.directory, "get", slow)
        await a.beat()
        await asked.wait()
        assert a.pool.lookup.at_hand(ANONYMOUS, "x", session_id) is None
        serving = asyncio.create_task(at.serve(session_id, a))
        await settle()
        assert not serving.done()
        goes_on.set()
        member, _ = await serving
        assert member is b


async def test_who_was_paused_and_not_succeeded_goes_on() -> None:
    async with two() as (_, a, _, session_id):
        await a.beat(after=LEASE_SECONDS * 4)
        client = await a.find(session_id)
        assert "result" in await client.answer(client.call())
        assert not client.workflow.is_doubted


async def test_g7_without_a_lease_nothing_is_written_to_what_cannot_be_moved() -> None:
    async with two(movable=False) as (at, a, _, session_id):
        client = await a.find(session_id)
        at.clock.advance(LEASE_SECONDS)
        refused = await client.answer(client.call())
        assert refused["error"]["data"] == {"limit": "lease", "executed": "no"}
        client.workflow.line.notify(b'{"jsonrpc":"2.0","method":"notifications/x"}', {})
        assert at.server.of("tools/call") == at.server.of("notifications/x") == []
        await a.beat()
        await settle()
        assert "result" in await client.answer(client.call())


async def test_g7_what_a_wire_held_back_did_not_run() -> None:
    async with two(movable=False) as (at, a, _, session_id):
        at.server.on_request = None
        client = await a.find(session_id)
        waiting = client.call()
        request = (await at.server.got("tools/call")).request
        wire = at.server.session.receiver
        assert wire.fence is not None
        assert wire.fence()
        at.clock.advance(LEASE_SECONDS)
        assert not wire.fence()
        wire.withheld(request)
        wire.withheld(None)
        assert (await client.answer(waiting))["error"]["data"] == {"limit": "lease", "executed": "no"}
        assert a.pool.statistics.counts["fenced", "x"] == 1


async def test_what_any_worker_may_use_has_no_fence() -> None:
    async with two() as (at, _, _, _):
        assert at.server.session.receiver.fence is None


async def test_without_a_lease_http_sessions_go_on() -> None:
    async with two() as (_, a, _, session_id):
        client = await a.find(session_id)
        a.view.is_cut = True
        await a.beat(after=60)
        again = await a.find(session_id)
        assert "result" in await again.answer(again.call())
        assert client.workflow.ended is None
        with pytest.raises(DirectoryUnavailable):
            await a.find("unknown")
        with pytest.raises(DirectoryUnavailable):
            await a.client()


async def test_an_end_that_comes_as_the_lease_is_over_closes_the_upstream_session_that_nobody_took_over() -> None:
    async with two() as (at, a, _, session_id):
        await a.find(session_id)
        at.clock.advance(LEASE_SECONDS)
        lookup = a.pool.lookup
        assert lookup.at_hand(ANONYMOUS, "x", session_id, concern=CALLS) is not None, "which goes on without a lease"
        assert lookup.at_hand(ANONYMOUS, "x", session_id) is None
        client = await a.find(session_id)
        assert lookup.at_hand(ANONYMOUS, "x", session_id) is client.workflow
        await a.pool.end(client.workflow, "deleted")
        await settle()
        assert at.server.deleted == [client.workflow.record.upstream_session[1:]]
        assert await at.directory.get(session_id) is None


async def test_an_end_in_doubt_leaves_the_upstream_session_alone() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        theirs = await b.find(session_id)
        await a.pool.end(mine, "evicted")
        await settle()
        assert at.server.deleted == []
        assert "result" in await theirs.answer(theirs.call())
        assert await at.directory.get(session_id) is not None


async def test_an_end_in_doubt_that_the_client_wanted_is_the_end_at_the_successor_too() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        theirs = (await b.find(session_id)).workflow
        await a.pool.end(mine, "deleted")
        for member in (a, b):
            with pytest.raises(UnknownSession):
                await member.find(session_id)
        await until(lambda: "1" in at.server.deleted)
        assert theirs.ended is not None


@pytest.mark.parametrize("fails", [True, False])
async def test_an_end_that_the_client_wanted_is_tried_again_as_such(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        theirs = (await b.find(session_id)).workflow
        get = at.directory.get

        async def changes(session_id: str) -> WorkflowRecord | None:
            """The successor records something meanwhile."""
            monkeypatch.setattr(at.directory, "get", get)
            read = await get(session_id)
            assert read is not None
            theirs.record = await at.directory.replace(read) or theirs.record
            return read

        if fails:
            a.view.fails_at = a.view.calls + 1
        else:
            monkeypatch.setattr(at.directory, "get", changes)
        await a.pool.end(mine, "deleted")
        assert await get(session_id) == theirs.record
        assert a.pool.statistics.counts["leftovers", "kept"] == 1
        await at.pass_time(FIRST_SECONDS)
        assert await get(session_id) is None
        with pytest.raises(UnknownSession):
            await b.find(session_id)
        await until(lambda: at.server.deleted == ["1"])
        assert theirs.ended is not None


# Drain.


async def test_g8_a_worker_that_drains_lets_go_and_any_other_goes_on() -> None:
    async with two() as (at, a, b, session_id):
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
    async with started(1) as (at, a):
        session_id = (await a.client()).workflow.record.session_id
        await at.drain(a)
        with pytest.raises(SessionLost) as lost:
            await a.beside(session_id)
        assert lost.value.data["executed"] == "no"
        with pytest.raises(Overloaded) as refused:
            await a.find(session_id)
        assert refused.value.limit == "draining"
        b = await at.start()
        with pytest.raises(Elsewhere):
            await a.find(session_id)
        await b.find(session_id)


async def test_what_cannot_be_moved_ends_with_its_worker() -> None:
    async with two(movable=False) as (at, a, b, session_id):
        await at.drain(a)
        with pytest.raises(UnknownSession):
            await b.find(session_id)
