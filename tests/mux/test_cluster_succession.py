"""Who goes on with a workflow after its worker died, was paused or drained, or the directory lost what it was told."""

import asyncio
from contextlib import suppress
from typing import Any

import anyio
import pytest
from harness.clustering import Member, Workers, two, until, workers
from harness.memory_wire import echo
from harness.muxing import ALICE, Client, begin, initialize, settle
from msgspec.structs import replace
from trunkline.mux import lookup
from trunkline.mux.directory import LEASE_SECONDS, MAX_STALENESS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Overloaded, SessionLost, UnknownSession
from trunkline.mux.leftovers import FIRST_SECONDS
from trunkline.mux.limits import Pooling
from trunkline.mux.lookup import COMPARED_AT_ONCE
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


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
        [adopted] = b.pool.workflows
        assert [event.what for event in adopted.account.timeline][:1] == ["taken_over"]


async def test_a_record_is_kept_for_as_long_as_the_settings_of_who_has_it_say() -> None:
    """As in a rolling restart with other settings: else it is unknown elsewhere before it is idle for so long here."""
    async with workers(idle_timeout=100) as at:
        a = await at.start()
        session_id = (await a.client()).workflow.record.session_id
        at.settings = {**at.settings, "pooling": Pooling(idle_timeout=5000)}
        b = await at.start()
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        held = (await b.find(session_id)).workflow
        record = await at.directory.get(session_id)
        assert record is not None
        assert record.lifetime == held.record.lifetime == 5000 + held.pooling.resume_window


async def test_g8_what_a_drained_worker_let_go_of_is_taken_on_and_counted_as_such() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        await a.pool.drain(1)
        await settle()
        client = await b.find(session_id)
        assert "result" in await client.answer(client.call())
        assert b.pool.workflows == [client.workflow]
        counts = b.pool.statistics.counts
        assert (b.pool.statistics.total("takeovers"), counts["takeovers", "let_go"]) == (1, 1)


async def test_g7_a_session_that_its_successor_cannot_open_yet_is_left_alone() -> None:
    """The directory fails between the take-over and the first block of ids."""
    async with workers() as at:
        a, b, session_id = await two(at)
        a.kill()
        await at.pass_time(LEASE_SECONDS)

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


async def test_g12_a_take_over_that_finds_no_room_is_counted_and_may_be_tried_again() -> None:
    async with workers(max_workflows=1) as at:
        a, b, session_id = await two(at)
        own = await b.client()
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        with pytest.raises(Overloaded) as refused:
            await b.find(session_id)
        assert refused.value.limit == "max_workflows"
        assert b.pool.statistics.counts["takeovers", "refused"] == 1
        await b.pool.end(own.workflow, "deleted")
        await b.find(session_id)
        assert b.pool.statistics.counts["takeovers", "adopted"] == 1


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


async def test_g7_what_a_wire_held_back_did_not_run() -> None:
    async with workers(movable=False) as at:
        a, _, session_id = await two(at)
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
    async with workers() as at:
        await two(at)
        assert at.server.session.receiver.fence is None


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


async def test_an_end_in_doubt_that_the_client_wanted_is_the_end_at_the_successor_too() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        mine = (await a.find(session_id)).workflow
        at.clock.advance(LEASE_SECONDS)
        await b.beat()
        theirs = (await b.find(session_id)).workflow
        await a.pool.end(mine, "deleted")
        await settle()
        assert at.server.deleted == [], "it is the successor's to end"
        for member in (a, b):
            with pytest.raises(UnknownSession):
                await member.find(session_id)
        await until(lambda: at.server.deleted == ["1"])
        assert theirs.ended is not None


@pytest.mark.parametrize("fails", [True, False])
async def test_an_end_that_the_client_wanted_is_tried_again_as_such(
    fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        mine = (await a.find(session_id)).workflow
        at.clock.advance(LEASE_SECONDS)
        await b.beat()
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
    async with workers(movable=False) as at:
        a, b, session_id = await two(at)
        await a.pool.drain(1)
        await settle()
        with pytest.raises(UnknownSession):
            await b.find(session_id)


# A directory that lost what it was told last, as a redis does that fails over to a replica.


async def gone_back(at: Workers) -> tuple[Member, Member, Client]:
    """Two workers, and a client of a workflow of which the directory knows what it knew before it was open."""
    a, b, session_id = await two(at)
    client = await a.find(session_id)
    await client.answer(client.call())
    record = client.workflow.record
    at.directory.go_back(replace(record, epoch=0, revision="", result=b"", upstream_session=""))
    return a, b, client


async def test_g7_what_a_directory_lost_of_a_workflow_is_told_to_it_again() -> None:
    async with workers() as at:
        a, b, client = await gone_back(at)
        session_id = client.workflow.record.session_id
        at.directory._next_id[session_id] = 1
        at.clock.advance(LEASE_SECONDS)
        await a.beat()
        await b.beat()
        await settle()
        assert await at.directory.get(session_id) == client.workflow.record
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        again = await b.find(session_id)
        assert "result" in await again.answer(again.call())
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 3
        assert len(at.server.of("initialize")) == 1


async def test_e4_which_ids_were_drawn_is_told_again_though_that_fails_at_first() -> None:
    async with workers() as at:
        a, b, client = await gone_back(at)
        session_id = client.workflow.record.session_id
        at.directory._next_id[session_id] = 1
        draw_ids = at.directory.draw_ids
        at.directory.draw_ids = away  # type: ignore[method-assign]
        at.clock.advance(LEASE_SECONDS)
        await a.beat()
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
    async with workers() as at:
        a, _, client = await gone_back(at)
        at.clock.advance(MAX_STALENESS + 0.1)
        assert await a.pool.lookup.find(ANONYMOUS, "x", client.workflow.record.session_id) is client.workflow
        assert await at.directory.get(client.workflow.record.session_id) == client.workflow.record


@pytest.mark.parametrize("by", ["use", "news"])
async def test_g7_a_record_that_was_lost_unnoticed_is_told_again(by: str) -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        workflow = (await a.find(session_id)).workflow
        at.directory.forget(session_id)
        if by == "use":
            at.clock.advance(MAX_STALENESS + 0.1)
            assert await a.pool.lookup.find(ANONYMOUS, "x", session_id) is workflow
        else:
            at.directory._tell("")
            await settle()
        assert await at.directory.get(session_id) == workflow.record
        await b.beat()
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())


async def test_g7_it_is_told_again_though_that_fails_at_first_and_nobody_uses_it_there() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        await at.pass_time(1)
        at.directory.forget(session_id)
        a.view.fails_at = a.view.calls + 1
        at.directory._tell("")
        await settle()
        await at.pass_time(LEASE_SECONDS + 1)
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())
        assert not (await a.find(session_id)).workflow.is_doubted


async def test_g7_it_is_told_again_though_it_was_used_while_the_directory_was_away() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        await at.pass_time(1)
        at.directory.forget(session_id)
        a.view.is_cut = True
        at.directory._tell("")
        await settle()
        await a.find(session_id)
        a.view.is_cut = False
        await at.pass_time(LEASE_SECONDS + 1)
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())


async def test_g10_doubts_are_settled_by_one_task_however_long_the_directory_takes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        mine = (await a.find(session_id)).workflow
        get, answers = at.directory.get, anyio.Event()

        async def slow(name: str) -> WorkflowRecord | None:
            await answers.wait()
            return await get(name)

        monkeypatch.setattr(at.directory, "get", slow)
        at.clock.advance(LEASE_SECONDS)
        await b.beat()
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
    async with workers(max_workflows_per_user=100) as at:
        a = await at.start()
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
        at.directory._tell("")
        await settle()
        at.directory._tell("")
        tuple(a.pool._sweep.look_after(at.clock()))
        await settle()
        assert asked == COMPARED_AT_ONCE
        answers.set()
        await settle(200)
        for workflow in mine:
            assert await get(workflow.record.session_id) is not None


async def test_g7_nothing_is_unknown_before_those_who_hold_it_can_have_told_it_again() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        keyed = (await a.client(ALICE, key="chat")).workflow
        beside = await b.beside(session_id)
        publish = at.directory.publish
        at.directory.publish = away  # type: ignore[method-assign]
        for lost in (session_id, keyed.record.session_id):
            at.directory.forget(lost)
        at.directory._tell("")
        await settle()
        assert (await b.beside(session_id)).workflow is beside.workflow
        assert "result" in await beside.answer(beside.call())
        with pytest.raises(DirectoryUnavailable):
            await b.find(session_id)
        with pytest.raises(DirectoryUnavailable):
            await b.client(ALICE, key="chat")
        at.directory.publish = publish  # type: ignore[method-assign]
        at.directory._tell("")
        await settle()
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
    async with workers() as at:
        a = await at.start()
        oldest, middle, newest = [(await a.client()).workflow.record.session_id for _ in range(3)]
        get, asked, answers = at.directory.get, list[str](), anyio.Semaphore(0)

        async def slow(session_id: str) -> WorkflowRecord | None:
            asked.append(session_id)
            await answers.acquire()
            return await get(session_id)

        at.directory.get = slow  # type: ignore[method-assign]
        at.directory._tell("")
        await settle()
        assert asked == [newest]
        at.directory._tell("")
        await settle()
        assert asked == [newest], "it is compared again, but not yet"
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(a.find, middle)
            await settle()
            for _ in range(9):
                answers.release()
        await settle()
        assert asked == [newest, middle, oldest, newest]


async def away(*asked: object) -> None:
    raise DirectoryUnavailable("a test has taken the directory away")


async def test_a_record_that_is_missing_for_longer_than_an_end_is_known_is_not_told_again() -> None:
    async with workers(idle_timeout=10, resume_window=5) as at:
        a, _, session_id = await two(at)
        (await a.find(session_id)).workflow.streams.attach_standalone()
        at.directory.forget(session_id)
        at.clock.advance(20)
        with pytest.raises(UnknownSession):
            await a.find(session_id)


async def test_what_ends_is_removed_though_the_directory_lost_its_last_state() -> None:
    async with workers() as at:
        a, b, client = await gone_back(at)
        await a.pool.end(client.workflow, "deleted")
        assert await at.directory.get(client.workflow.record.session_id) is None
        with pytest.raises(UnknownSession):
            await b.find(client.workflow.record.session_id)


async def test_g8_what_is_let_go_goes_on_though_the_directory_lost_its_last_state() -> None:
    async with workers() as at:
        a, b, client = await gone_back(at)
        at.directory._next_id[client.workflow.record.session_id] = 1
        await a.pool.drain(1)
        await settle()
        again = await b.find(client.workflow.record.session_id)
        for _ in range(3):
            assert "result" in await again.answer(again.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 4


async def test_g8_what_is_let_go_goes_on_though_the_directory_has_just_forgotten_it() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.directory.forget(session_id)
        await a.pool.drain(1)
        await settle()
        again = await b.find(session_id)
        assert "result" in await again.answer(again.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_what_ended_elsewhere_is_not_brought_back_by_a_worker_that_drains() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.clock.advance(LEASE_SECONDS)
        await b.beat()
        theirs = (await b.find(session_id)).workflow
        watchers = set(at.directory._watchers)
        at.directory._watchers.clear()  # the news is on its way
        await b.pool.end(theirs, "deleted")
        at.directory._watchers |= watchers
        await a.pool.drain(1)
        await settle()
        assert await at.directory.get(session_id) is None


@pytest.mark.parametrize("cause", ["drained", "not_opened", "taken_over"])
async def test_g8_what_is_let_go_while_it_is_told_again_goes_on(cause: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with workers() as at:
        a, b, client = await gone_back(at)
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
        at.clock.advance(MAX_STALENESS + 0.1)
        await b.beat()
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
    async with workers() as at:
        a, _, session_id = await two(at)
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
    async with workers() as at:
        a, _, session_id = await two(at)
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
