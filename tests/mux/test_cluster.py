"""Several workers that share a directory: who serves what, who takes over, and who lets go."""

import json
from collections.abc import Collection

import anyio
import pytest
from harness.clustering import Member, Workers, two, until, workers
from harness.memory_wire import echo, message
from harness.muxing import ALICE, BOB, Client, events, idle, initialize, position, settle, some
from msgspec.structs import replace
from trunkline.mux.cluster import BESIDE_SECONDS, TOUCH_SECONDS, touch_interval
from trunkline.mux.directory import LEASE_SECONDS, MAX_STALENESS
from trunkline.mux.envelope import parse
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Overloaded, SessionLost, UnknownSession
from trunkline.mux.event_log import MAX_EMPTY, Position, Stream
from trunkline.mux.exchange import Exchange
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.placement import CALLS, NAMES, WHOLE, concern_of
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.streams import Reader

pytestmark = pytest.mark.anyio


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


async def test_g4_a_session_on_the_path_of_another_server_is_unknown_on_every_worker() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        for worker in (a, b):
            for concern in (CALLS, WHOLE):
                with pytest.raises(UnknownSession):
                    await worker.pool.lookup.find(ANONYMOUS, "y", session_id, concern)


async def test_what_cannot_be_moved_is_served_by_its_holder_alone() -> None:
    async with workers(movable=False) as at:
        _, b, session_id = await two(at)
        with pytest.raises(Elsewhere):
            await b.beside(session_id)


async def test_a_key_of_what_lives_here_costs_no_look_at_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    async with workers() as at:
        a = await at.start()
        mine = await a.client(ALICE, key="k")
        at.directory.is_away = True

        async def away(*asked: object) -> None:
            raise DirectoryUnavailable("a test has taken the directory away")

        monkeypatch.setattr(at.directory, "find", away)
        assert await a.pool.lookup.find_key(ALICE, "x", "k", CALLS) is mine.workflow
        with pytest.raises(DirectoryUnavailable):
            await a.pool.lookup.find_key(BOB, "x", "k", CALLS)
        monkeypatch.undo()
        at.directory.is_away = False
        await a.pool.end(mine.workflow, "deleted")
        assert await a.pool.lookup.find_key(ALICE, "x", "k", CALLS) is None


async def test_a_keyed_workflow_is_one_on_all_workers() -> None:
    async with workers() as at:
        a, b = await at.start(), await at.start()
        mine = await a.client(ALICE, key="k")
        with pytest.raises(Elsewhere):
            await b.client(ALICE, key="k")
        found = await b.pool.lookup.find_key(ALICE, "x", "k", CALLS)
        assert found is not None
        assert found.record.session_id == mine.workflow.record.session_id
        assert await b.pool.lookup.find_key(BOB, "x", "k", CALLS) is None


async def test_beside_the_holder_nothing_stays_that_nobody_uses() -> None:
    async with workers() as at:
        _, b, session_id = await two(at)
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(BESIDE_SECONDS + 1)
        await until(lambda: b.pool.channels == [])
        assert b.pool.statistics.counts["beside_ended", "idle"] == 1
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


async def test_what_ends_beside_its_holder_for_want_of_room_is_ended_at_the_server() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        beside = await b.beside(session_id)
        beside.workflow.fail("event_log_overflow")
        await settle()
        with pytest.raises(UnknownSession):
            await a.find(session_id)
        await until(lambda: at.server.deleted == ["1"])


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


# Idleness.


async def test_what_stays_in_use_is_told_at_a_fraction_of_what_its_record_lives() -> None:
    async with workers(idle_timeout=200, resume_window=100) as at:
        a, b, session_id = await two(at)
        told: list[list[str]] = []
        touch = at.directory.touch

        async def noted(session_ids: Collection[str]) -> None:
            told.append(list(session_ids))
            await touch(session_ids)

        at.directory.touch = noted  # type: ignore[method-assign]
        reader = (await a.find(session_id)).workflow.streams.attach_standalone()
        interval = touch_interval(a.pool.workflows[0].pooling)
        assert interval == 20
        await at.pass_time(100)
        assert 4 <= len(told) <= 6, "not each five seconds"
        reader.close()
        told.clear()
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(TOUCH_SECONDS + 0.5)
        assert told
        assert len(told) <= 2, "what begins to be used is told soon, by each that serves it"


async def test_a_use_that_could_not_be_told_is_told_as_soon_as_it_can() -> None:
    async with workers() as at:
        a, _, session_id = await two(at)
        reader = (await a.find(session_id)).workflow.streams.attach_standalone()
        await at.pass_time(10)
        a.view.is_cut = True
        await at.pass_time(600)
        a.view.is_cut = False
        await at.pass_time(TOUCH_SECONDS * 2)
        age = await at.directory.untouched(session_id)
        assert age is not None
        assert age <= TOUCH_SECONDS * 2
        reader.close()


async def test_what_ends_beside_its_holder_takes_no_use_with_it() -> None:
    async with workers(idle_timeout=6000, resume_window=6000) as at:
        _, b, session_id = await two(at)
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(TOUCH_SECONDS * 2)
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(BESIDE_SECONDS + 2)
        await until(lambda: b.pool.channels == [])
        age = await at.directory.untouched(session_id)
        assert age is not None
        assert age <= TOUCH_SECONDS


@pytest.mark.parametrize("rhythm", [0.5, 7, 13])
async def test_one_that_is_used_at_any_worker_is_never_idle_and_one_that_is_not_is_in_time(rhythm: float) -> None:
    async with workers(idle_timeout=60, resume_window=60) as at:
        a, b, session_id = await two(at)
        passed = 0.0
        while passed < 150:
            beside = await b.beside(session_id)
            await beside.answer(beside.call())
            await at.pass_time(rhythm)
            passed += rhythm
        assert a.pool.workflows, "it was in use all the time"
        await at.pass_time(60 + touch_interval(a.pool.workflows[0].pooling) + TOUCH_SECONDS + 2)
        await until(lambda: a.pool.workflows == [])
        assert a.pool.statistics.counts["workflows_closed", "idle"] == 1


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


# Streams and questions.


def question(id: str = "q1") -> bytes:
    return message("sampling/createMessage", {"messages": [], "maxTokens": 1}, id=id)


async def sampling(at: Workers) -> tuple[Member, Member, str]:
    a, b = await at.start(), await at.start()
    client = await a.client(message=initialize(capabilities={"sampling": {}}))
    return a, b, client.workflow.record.session_id


async def streamed(member: Member, client: Client, id: bytes = b"1") -> tuple[Exchange, Reader]:
    """A call whose answer is a stream, and who reads it."""
    exchange = client.call(id=id)
    exchange.decide_for_stream()
    outcome = await exchange.ready
    assert isinstance(outcome, Stream)
    return exchange, client.workflow.streams.attach(outcome, 0)


async def journal(member: Member) -> None:
    """Wait until what this worker wrote has arrived."""
    assert member.pool._cluster is not None
    await until(lambda: not member.pool._cluster.journal._waiting)


async def resume(at: Workers, first: Member, event_id: str) -> tuple[Member, Reader]:
    """Come back to an event, from the worker that is met first."""
    member = first
    for _ in range(4):
        try:
            workflow = await member.pool.lookup.find_position(ANONYMOUS, "x", position(event_id))
            await workflow.opened
            return member, workflow.streams.resume(position(event_id))
        except Elsewhere as elsewhere:
            member = next(other for other in at.all if other.members.worker.id == elsewhere.worker)
    raise AssertionError("a request went round in circles")


async def test_names_tell_which_worker_gave_them() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        for member, client in ((a, await a.find(session_id)), (b, await b.beside(session_id))):
            _, reader = await streamed(member, client)
            assert reader.stream.number // NAMES == member.number
            reader.close()


async def test_g5_a_stream_beside_the_holder_is_resumed_where_it_is() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        _, reader = await streamed(b, await b.beside(session_id))
        event_id = reader.event_id((await reader.next(1) or [])[0])
        reader.close()
        (await at.server.got("tools/call")).answer({"n": 1})
        member, again = await resume(at, a, event_id)
        assert member is b
        assert [json.loads(text)["result"] async for _, text in events(again)] == [{"n": 1}]


async def test_g5_a_stream_of_a_dead_worker_is_resumed_from_its_log() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        _, reader = await streamed(a, await a.find(session_id), b'"mine"')
        event_id = reader.event_id((await reader.next(1) or [])[0])
        call = await at.server.got("tools/call")
        call.say(message("notifications/message", {"level": "info", "data": 1}))
        call.say(message("notifications/message", {"level": "info", "data": 2}))
        [first] = (await some(reader, 2))[:1]
        await journal(a)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        _, again = await resume(at, b, first[0])
        told = [json.loads(text) async for _, text in events(again)]
        assert told[0]["params"]["data"] == 2
        assert told[1]["id"] == "mine"
        assert told[1]["error"]["data"] == {"executed": "unknown"}
        _, whole = await resume(at, b, event_id)
        assert len([text async for _, text in events(whole)]) == 3


async def test_g5_a_successor_leaves_the_streams_of_who_lives_to_them() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        c = await at.start()
        at.server.on_request = None
        exchange, reader = await streamed(c, await c.beside(session_id))
        await reader.next(1)
        await journal(c)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        held = (await b.find(session_id)).workflow
        assert exchange.stream is not None
        assert not held.knows(exchange.stream.number), "its call goes on, and is not told as lost"
        (await at.server.got("tools/call")).answer({"n": 1})
        assert [json.loads(text)["result"] async for _, text in events(reader)] == [{"n": 1}]


async def test_g5_a_client_that_has_more_than_the_log_is_believed() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        client = await a.find(session_id)
        reader = client.workflow.streams.attach_standalone()
        tell = at.server.session.tell
        tell(message("notifications/message", {"data": 1}))
        await some(reader)
        await journal(a)
        a.view.is_cut = True
        tell(message("notifications/message", {"data": 2}))
        [(event_id, _)] = await some(reader)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        _, again = await resume(at, b, event_id)
        at.server.session.tell(message("notifications/message", {"data": 3}))
        [(newest, text)] = await some(again)
        assert json.loads(text)["params"]["data"] == 3
        again.close()
        _, once_more = await resume(at, b, newest)
        assert await idle(once_more)


async def test_a_stream_that_no_log_tells_of_ends_without_ending_the_workflow() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        a.view.is_cut = True
        _, reader = await streamed(a, await a.find(session_id))
        event_id = reader.event_id((await reader.next(1) or [])[0])
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        _, again = await resume(at, b, event_id)
        assert [text async for _, text in events(again)] == []
        assert (await b.find(session_id)).workflow.ended is None


async def test_g10_streams_that_a_client_makes_up_are_not_kept() -> None:
    async with workers() as at:
        a, _, session_id = await two(at)
        workflow = (await a.find(session_id)).workflow
        made_up = [a.number * NAMES + n for n in range(1000, 1100)]
        for number in made_up:
            found = Position(workflow.record.event_token, number, 0, 1)
            assert await a.pool.lookup.find_position(ANONYMOUS, "x", found) is workflow
            reader = workflow.streams.resume(found)
            assert reader.due() is None
            reader.close()
        assert workflow.ended is None
        assert sum(map(workflow.streams.knows, made_up)) <= MAX_EMPTY + 1


def own(n: int) -> bytes:
    return message("notifications/message", {"data": n})


async def counted(at: Workers, member: Member, session_id: str, count: int) -> list[int]:
    """What a client is sent that comes back to its wire with a count."""
    duplex = (await member.find(session_id)).workflow.duplexes.newest
    assert duplex is not None
    reader = duplex.attach_after(count)
    try:
        return [json.loads(event.message)["params"]["data"] for event in reader.due() or ()]
    finally:
        duplex.detach(reader)


@pytest.mark.parametrize(("count", "missed"), [(2, [1, 2, 3]), (3, [2, 3]), (4, [2, 3]), (5, [3]), (6, [3]), (7, [])])
async def test_g5_a_count_on_a_socket_that_carried_others_as_well_means_the_same_at_a_successor(
    count: int, missed: list[int]
) -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        duplex = (await a.find(session_id)).workflow.duplexes.new()
        duplex.attach()
        duplex.tally.skip(2)  # answers to what came before the workflow was known
        duplex.meet(duplex.tally)
        for n, ordinal in ((1, 4), (2, 6), (3, None)):  # between them, the stream of an exchange that was resumed here
            duplex.add(own(n))
            if ordinal is not None:
                duplex.tally.add_other(ordinal)
        await journal(a)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        assert await counted(at, b, session_id, count) == missed


@pytest.mark.parametrize(("count", "missed"), [(1, [2, 3]), (0, [3])])
async def test_g5_on_a_socket_that_its_client_never_saw_a_count_means_the_one_before(
    count: int, missed: list[int]
) -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        duplex = (await a.find(session_id)).workflow.duplexes.new()
        duplex.attach()
        duplex.meet(duplex.tally)
        for n in (1, 2, 3):
            duplex.add(own(n))
        duplex.attach_after(2)
        await journal(a)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        assert await counted(at, b, session_id, count) == missed


async def test_g5_what_a_log_has_to_know_of_is_not_trimmed_with_what_it_held() -> None:
    async with workers(event_log=EventLogLimits(events=40)) as at:
        a, b = await at.start(), await at.start()
        client = await a.client(message=initialize(capabilities={"sampling": {}}))
        session_id = client.workflow.record.session_id
        at.server.session.tell(question())
        duplex = client.workflow.duplexes.new()
        reader = duplex.attach()
        duplex.meet(duplex.tally)
        client.workflow.calls.take(parse(b'{"jsonrpc":"2.0","id":"owed","method":"tools/call"}', limit=100), duplex, {})
        exchange, other = await streamed(a, client, b'"owed too"')
        await other.next(1)
        for n in range(1, 101):
            duplex.add(own(n))
            reader.due()
        await journal(a)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        workflow = (await b.find(session_id)).workflow
        assert workflow.duplexes.newest is not None
        again = workflow.duplexes.newest.attach_after(98)
        due = [json.loads(event.message) for event in again.due() or ()]
        assert [one["params"]["data"] for one in due[:-1]] == [99, 100]
        assert (due[-1]["id"], due[-1]["error"]["data"]) == ("owed", {"executed": "unknown"})
        assert workflow.knows(a.number * NAMES + 1), "the question"
        assert exchange.stream is not None
        assert workflow.knows(exchange.stream.number)


async def test_a_question_asked_by_a_dead_worker_is_answered_through_its_successor() -> None:
    async with workers() as at:
        a, b, session_id = await sampling(at)
        reader = (await a.find(session_id)).workflow.streams.attach_standalone()
        at.server.session.tell(question())
        [(_, text)] = await some(reader)
        asked = json.loads(text)["id"]
        await journal(a)
        a.kill()
        await at.pass_time(LEASE_SECONDS)
        answer = parse(b'{"jsonrpc":"2.0","id":%d,"result":{"n":1}}' % asked, limit=1000)
        concern = concern_of([answer])
        assert concern.worker == a.number
        for _ in range(2):
            (await b.find(session_id, concern)).workflow.respond(answer)
        sent = await at.server.got("response")
        assert sent.json == {"jsonrpc": "2.0", "id": "q1", "result": {"n": 1}}
        assert len(at.server.of("response")) == 1
        assert b.pool.statistics.counts["unknown_answers", "x"] == 1


async def test_an_answer_goes_to_the_worker_that_asked() -> None:
    async with workers() as at:
        a, b, session_id = await sampling(at)
        beside = await b.beside(session_id)
        _, reader = await streamed(b, beside)
        (await at.server.got("tools/call")).say(question())
        [(_, text)] = await some(reader)
        answer = parse(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % json.loads(text)["id"], limit=1000)
        member, workflow = await at.serve(session_id, a, concern_of([answer]))
        assert member is b
        workflow.respond(answer)
        assert (await at.server.got("response")).json["id"] == "q1"


async def test_g8_what_was_not_sent_yet_waits_for_the_client_elsewhere() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        client = await a.find(session_id)
        reader = client.workflow.streams.attach_standalone()
        at.server.session.tell(message("notifications/message", {"data": 1}))
        [(event_id, _)] = await some(reader)
        reader.close()
        at.server.session.tell(message("notifications/message", {"data": 2}))
        await a.pool.drain(1)
        _, again = await resume(at, b, event_id)
        at.server.session.tell(message("notifications/message", {"data": 3}))
        assert [json.loads(text)["params"]["data"] for _, text in await some(again, 2)] == [2, 3]


async def test_a_cancellation_finds_the_worker_at_which_its_call_is_in_flight() -> None:
    async with workers() as at:
        a, b, session_id = await two(at)
        at.server.on_request = None
        beside = await b.beside(session_id)
        waiting = beside.call(id=b"5")
        cancelled = parse(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}', limit=1000)
        assert a.pool.lookup.find_calls(ANONYMOUS, "x", session_id, None, cancelled) == []
        assert b.pool.lookup.find_calls(ALICE, "x", session_id, None, cancelled) == []
        assert b.pool.lookup.find_calls(ANONYMOUS, "x", session_id, "another", cancelled) == []
        assert b.pool.lookup.find_calls(ANONYMOUS, "x", None, None, cancelled) == []
        [found] = b.pool.lookup.find_calls(ANONYMOUS, "x", session_id, None, cancelled)
        assert found is beside.workflow
        found.notify(cancelled, {})
        assert "error" in await beside.answer(waiting)
        await at.server.got("notifications/cancelled")


async def test_calls_that_a_cancellation_can_mean_are_found_by_key_and_counted_each() -> None:
    async with workers() as at:
        a = await at.start()
        client = await a.client(ALICE, key="k")
        for raw in (b"5", b"5", b"6"):
            client.call(id=raw)
        cancelled = parse(b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":5}}', limit=1000)
        assert a.pool.lookup.find_calls(ALICE, "x", None, "k", cancelled) == [client.workflow] * 2
        assert a.pool.lookup.find_calls(ALICE, "x", None, "other", cancelled) == []
        assert a.pool.lookup.find_calls(BOB, "x", None, "k", cancelled) == []


async def test_what_a_dead_worker_named_is_looked_for_here() -> None:
    async with workers() as at:
        a, b, _ = await two(at)
        with pytest.raises(Elsewhere):
            await a.pool.send_on(b.number)
        await a.pool.send_on(a.number)
        await a.pool.send_on(99)
        b.kill()
        await at.pass_time(LEASE_SECONDS)
        await a.pool.send_on(b.number)


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
        await a.pool.drain(1)
        await settle()
        again = await b.find(client.workflow.record.session_id)
        assert "result" in await again.answer(again.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


# What has ended stays ended.


async def test_a_record_that_could_not_be_removed_brings_nothing_back() -> None:
    async with workers(reuse="none") as at:
        a, b, session_id = await two(at)
        mine = (await a.find(session_id)).workflow
        a.view.is_cut = True
        await a.pool.end(mine, "deleted")
        a.view.is_cut = False
        with pytest.raises(UnknownSession):
            await a.find(session_id)
        with pytest.raises(UnknownSession):
            await at.serve(session_id, b)
        assert a.pool.workflows == b.pool.workflows == []
