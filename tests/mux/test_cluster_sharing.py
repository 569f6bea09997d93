"""Several workers where sessions are shared (`user`)."""

import asyncio
import json

import anyio
import pytest
from harness.changing import until
from harness.clustering import Workers, orphaned, started
from harness.memory_wire import echo, message
from harness.muxing import ALICE, BOB, Client, begin, idle, settle, some
from trunkline.mux import leftovers
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, SessionLost, UnknownSession
from trunkline.mux.event_log import Stream
from trunkline.mux.exchange import Exchange
from trunkline.mux.placement import CALLS, WHOLE
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


async def test_workflows_that_share_a_session_live_at_one_worker() -> None:
    async with started(2, reuse="user") as (at, a, b):
        first = await a.client(ALICE)
        with pytest.raises(Elsewhere) as elsewhere:
            await b.client(ALICE)
        assert elsewhere.value.worker == "worker-1"
        with pytest.raises(Elsewhere):
            await b.find(first.workflow.record.session_id, CALLS, ALICE)
        await b.client(BOB)
        with pytest.raises(Elsewhere):
            await a.client(BOB)
        assert len(at.server.of("initialize")) == 2


async def test_g7_a_successor_goes_on_with_the_shared_session() -> None:
    async with started(2, reuse="user", on_request=echo) as (at, a, b):
        ids = [(await a.client(ALICE)).workflow.record.session_id for _ in range(3)]
        await at.lose(a)
        for session_id in ids:
            client = await b.find(session_id, WHOLE, ALICE)
            assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 1
        assert len({wire.id for wire in at.server.sessions}) == 1
        sent = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(set(sent)) == len(sent)
        assert (await b.client(ALICE)).workflow is not None


async def test_who_was_paused_leaves_a_shared_session_to_its_successor() -> None:
    async with started(2, reuse="user", on_request=echo) as (at, a, b):
        mine = (await a.client(ALICE)).workflow
        await b.beat(after=LEASE_SECONDS)
        client = await b.find(mine.record.session_id, WHOLE, ALICE)
        await a.beat()
        await settle()
        assert mine.ended is not None
        assert at.server.deleted == []
        assert "result" in await client.answer(client.call())


async def test_those_who_share_a_session_that_was_taken_over_go_on_where_it_is() -> None:
    async with started(2, reuse="user", on_request=echo) as (at, a, b):
        asked_for, other = [(await a.client(ALICE)).workflow for _ in range(2)]
        await b.beat(after=LEASE_SECONDS)
        await b.find(asked_for.record.session_id, WHOLE, ALICE)
        await a.beat()
        await until(lambda: other.ended)
        await settle()
        with pytest.raises(Elsewhere) as elsewhere:
            await a.find(other.record.session_id, WHOLE, ALICE)
        assert elsewhere.value.worker == b.members.worker.id
        client = await b.find(other.record.session_id, WHOLE, ALICE)
        assert "result" in await client.answer(client.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_a_session_that_is_given_up_while_it_is_replaced_is_given_up_whole() -> None:
    async with started(2, reuse="user", max_channel_age=100, idle_timeout=1e6) as (at, a, b):
        asked_for, other = [await a.client(ALICE) for _ in range(2)]
        waiting = other.call({"uri": "file:///a"}, method="resources/subscribe")
        await at.server.got("resources/subscribe")
        await a.beat(after=101)
        await until(lambda: len(other.workflow.line.channels) == 2 and other.workflow.line.channels[1].is_open)
        await settle()
        await b.beat(after=LEASE_SECONDS)
        await b.find(asked_for.workflow.record.session_id, WHOLE, ALICE)
        await a.beat()
        await until(lambda: other.workflow.ended)
        assert "error" in await other.answer(waiting)
        await settle()


async def test_a_record_that_is_removed_takes_nothing_from_those_who_share_its_session() -> None:
    async with started(1, reuse="user") as (at, a):
        gone, other = await a.client(ALICE), await a.client(ALICE)
        waiting = other.call()
        call = await at.server.got("tools/call")
        await at.directory.remove(gone.workflow.record)
        await settle()
        with pytest.raises(UnknownSession):
            await a.find(gone.workflow.record.session_id, WHOLE, ALICE)
        await settle()
        assert other.workflow.ended is None
        call.answer({"n": 1})
        assert (await other.answer(waiting))["result"] == {"n": 1}
        assert at.server.deleted == []


async def test_a_record_that_another_worker_removed_leaves_the_session_to_that_one() -> None:
    async with started(2, reuse="user", on_request=echo) as (at, a, b):
        gone, other = [(await a.client(ALICE)).workflow for _ in range(2)]
        await b.beat(after=LEASE_SECONDS)
        theirs = await b.find(gone.record.session_id, WHOLE, ALICE)
        await b.pool.end(theirs.workflow, "deleted")
        await a.beat()
        await until(lambda: other.ended)
        await settle()
        client = await b.find(other.record.session_id, WHOLE, ALICE)
        assert "result" in await client.answer(client.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_a_record_left_with_a_worker_that_has_no_part_in_the_shared_session_goes_to_the_one_that_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with orphaned(ALICE, reuse="user") as (at, b, c, session_id):
        replace = at.directory.replace

        async def unanswered(record: WorkflowRecord) -> None:
            await replace(record)
            raise DirectoryUnavailable("a test has lost the answer")

        monkeypatch.setattr(at.directory, "replace", unanswered)
        with pytest.raises(DirectoryUnavailable):
            await b.find(session_id, WHOLE, ALICE)
        monkeypatch.undo()
        await c.beat(after=LEASE_SECONDS)
        await c.client(ALICE)
        await b.beat()
        with pytest.raises(Elsewhere) as elsewhere:
            await b.find(session_id, WHOLE, ALICE)
        assert elsewhere.value.worker == c.members.worker.id
        client = await c.find(session_id, WHOLE, ALICE)
        assert "result" in await client.answer(client.call())


async def test_a_record_that_stayed_after_its_end_sends_nobody_in_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(2, reuse="user") as (at, a, b):
        ended = (await b.client(ALICE, key="chat")).workflow
        monkeypatch.setattr(leftovers, "FIRST_SECONDS", leftovers.LAST_SECONDS)  # it stays for as long as this takes
        with monkeypatch.context() as broken:
            broken.setattr(at.directory, "remove", away)
            await b.pool.end(ended, "deleted")
        await a.beat(after=LEASE_SECONDS)
        await a.client(ALICE)
        await b.beat()
        for member, other in ((a, b), (b, a)):
            with pytest.raises(Elsewhere) as elsewhere:
                await member.client(ALICE, key="chat")
            assert elsewhere.value.worker == other.members.worker.id
        assert (await begin(a.pool, ALICE, key="chat")).state == "reset"


async def away(*asked: object) -> None:
    raise DirectoryUnavailable("a test has taken the directory away")


async def test_g7_what_cannot_be_moved_is_not_used_while_one_that_shares_it_may_be_another_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(1, reuse="user", movable=False, on_request=echo) as (at, a):
        client = await a.client(ALICE)
        monkeypatch.setattr(at.directory, "get", away)
        await a.beat(after=LEASE_SECONDS)
        assert a.members.holds_lease
        refused = await client.answer(client.call())
        assert refused["error"]["data"] == {"limit": "lease", "executed": "no"}
        monkeypatch.undo()
        await at.pass_time(0.5)
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("tools/call")) == 1


async def test_r5_r6_a_session_that_may_not_be_written_to_yet_is_told_later_what_it_has_to_know(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(1, reuse="user", movable=False, on_request=echo) as (at, a):
        client = await a.client(ALICE)
        await client.answer(ask(client, "resources/subscribe", uri="x:1"))
        await client.answer(ask(client, "logging/setLevel", level="debug"))
        reader = client.workflow.streams.attach_standalone()
        monkeypatch.setattr(at.directory, "get", away)
        await a.beat(after=LEASE_SECONDS)
        at.server.session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
        await at.server.reached("establish", 2)
        await at.pass_time(1)
        again = at.server.session
        assert [exchange.kind for exchange in again.exchanges] == ["initialize", "notifications/initialized"]
        monkeypatch.undo()
        await at.pass_time(1)
        assert [exchange.json["params"] for exchange in again.exchanges[2:]] == [{"level": "debug"}, {"uri": "x:1"}]
        reader.close()


def ask(client: Client, method: str, **params: str) -> Exchange:
    return client.call(params, method=method)


@pytest.mark.parametrize("movable", [True, False])
@pytest.mark.parametrize("ends", ["killed", "drained"])
async def test_r5_r6_a_successor_knows_what_each_workflow_wants_of_a_shared_session(movable: bool, ends: str) -> None:
    async with started(2, reuse="user", movable=movable, on_request=lambda exchange: exchange.answer({})) as (at, a, b):
        clients = [await a.client(ALICE) for _ in range(2)]
        for client, uri in zip(clients, ("file:///a", "file:///b"), strict=True):
            await client.answer(ask(client, "resources/subscribe", uri=uri))
        await clients[0].answer(ask(clients[0], "resources/subscribe", uri="file:///left"))
        await clients[0].answer(ask(clients[0], "resources/unsubscribe", uri="file:///left"))
        await clients[0].answer(ask(clients[0], "logging/setLevel", level="error"))
        await settle()
        if ends == "killed":
            a.kill()
        else:
            await at.drain(a)
            a.is_dead = True
        await at.pass_time(LEASE_SECONDS)
        ids = [client.workflow.record.session_id for client in clients]
        one, two = [await b.find(session_id, WHOLE, ALICE) for session_id in ids]
        await settle()
        told = [exchange.json["params"] for exchange in at.server.session.of("resources/subscribe")]
        assert {"uri": "file:///left"} not in told
        readers = [client.workflow.streams.attach_standalone() for client in (one, two)]
        for uri in ("file:///a", "file:///b", "file:///left"):
            at.server.session.tell(message("notifications/resources/updated", {"uri": uri}))
        heard = [[json.loads(text)["params"]["uri"] for _, text in await some(reader, 1)] for reader in readers]
        assert heard == [["file:///a"], ["file:///b"]]
        assert all([await idle(reader) for reader in readers])
        at.server.on_request = None
        for client, levels in ((one, ["error"]), (two, ["info", "error"])):
            call = client.call()
            exchange = at.server.session.of("tools/call")[-1]
            for level in ("debug", "info", "error"):
                exchange.say(message("notifications/message", {"level": level, "data": 1}))
            stream = await call.ready
            assert isinstance(stream, Stream)
            logged = [json.loads(event.message)["params"]["level"] for event in stream.events if event.message]
            assert logged == levels
        assert at.server.session.of("logging/setLevel")[-1].json["params"] == {"level": "info"}


async def test_what_a_workflow_wants_is_noted_later_where_the_directory_is_away() -> None:
    async with started(1, reuse="user", on_request=lambda exchange: exchange.answer({})) as (at, a):
        client = await a.client(ALICE)
        session_id = client.workflow.record.session_id
        a.view.is_cut = True
        await client.answer(ask(client, "resources/subscribe", uri="file:///a"))
        await settle()
        a.view.is_cut = False
        await at.pass_time(1)
        record = await at.directory.get(session_id)
        assert record is not None
        assert record.wish.subscriptions == ("file:///a",)
        assert record == client.workflow.record


async def test_g8_a_drain_lets_go_of_shared_sessions() -> None:
    async with started(2, reuse="user", on_request=echo) as (at, a, b):
        session_id = (await a.client(ALICE)).workflow.record.session_id
        await at.drain(a)
        a.is_dead = True
        await at.pass_time(LEASE_SECONDS)
        client = await b.find(session_id, WHOLE, ALICE)
        assert "result" in await client.answer(client.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_g8_a_drain_lets_go_of_the_session_that_just_took_the_place_of_an_aged_one() -> None:
    async with started(2, reuse="user", max_channel_age=100, idle_timeout=1e6, on_request=echo) as (at, a, b):
        client = await a.client(ALICE)
        await client.answer(client.call())
        await at.pass_time(1)
        aged = at.server.session
        at.clock.advance(101)
        for member in (a, b):
            await member.beat()
        tuple(a.pool._sweep.look_after(at.clock()))
        await until(lambda: aged.is_closed)
        assert at.server.session is not aged
        assert client.workflow.record.upstream_session == f":{aged.id}"
        await at.drain(a)
        again = await b.find(client.workflow.record.session_id, WHOLE, ALICE)
        assert "result" in await again.answer(again.call())
        assert at.server.session is not aged
        assert (len(at.server.of("initialize")), at.server.deleted) == (2, [aged.id])


def noting_slowly(at: Workers, monkeypatch: pytest.MonkeyPatch) -> tuple[anyio.Event, anyio.Event]:
    """The first worker does not hear that what it changed is stored, once the first is set, before the second is."""
    replace, is_noted, is_heard = at.directory.replace, anyio.Event(), anyio.Event()

    async def slow(record: WorkflowRecord) -> WorkflowRecord | None:
        stored = await replace(record)
        if record.worker == "worker-1":
            is_noted.set()
            await is_heard.wait()
        return stored

    monkeypatch.setattr(at.directory, "replace", slow)
    return is_noted, is_heard


@pytest.mark.parametrize("is_late", [True, False])
async def test_g8_a_drain_tells_what_a_workflow_wants_though_what_it_wanted_before_is_being_noted(
    is_late: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(2, reuse="user", on_request=lambda exchange: exchange.answer({})) as (at, a, b):
        client = await a.client(ALICE)
        is_noted, is_heard = noting_slowly(at, monkeypatch)
        await client.answer(ask(client, "resources/subscribe", uri="file:///a"))
        await is_noted.wait()
        await client.answer(ask(client, "resources/subscribe", uri="file:///b"))
        await a.pool.drain(1)
        if is_late:
            await settle()
        is_heard.set()
        await settle()
        found = await b.find(client.workflow.record.session_id, WHOLE, ALICE)
        assert found.workflow.record.wish.subscriptions == ("file:///a", "file:///b")


async def test_g8_a_drain_tells_which_session_there_is_though_the_one_before_is_being_noted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(2, reuse="user", max_channel_age=100, idle_timeout=1e6) as (at, a, b):
        at.server.on_request = lambda exchange: exchange.answer({})
        client = await a.client(ALICE)
        await at.pass_time(1)
        is_noted, is_heard = noting_slowly(at, monkeypatch)
        await client.answer(ask(client, "resources/subscribe", uri="file:///a"))
        await is_noted.wait()
        aged = at.server.session
        await at.pass_time(101)
        await until(lambda: aged.is_closed)
        await at.drain(a)
        is_heard.set()
        await settle()
        again = await b.find(client.workflow.record.session_id, WHOLE, ALICE)
        assert "result" in await again.answer(again.call())
        assert again.workflow.record.upstream_session not in ("", f":{aged.id}")
        assert (len(at.server.of("initialize")), at.server.deleted) == (2, [aged.id])


async def test_a_drain_ends_the_sessions_that_no_other_worker_would_go_on_with() -> None:
    async with started(2, reuse="user", max_inflight_per_channel=1) as (at, a, _):
        await a.pool.end((await a.client(BOB)).workflow, "deleted")
        client = await a.client(ALICE)
        waiting = [client.call(id=b"%d" % n) for n in (1, 2)]
        await at.server.until(lambda: len(at.server.of("tools/call")) == 2)
        for call in at.server.of("tools/call"):
            call.answer()
        for exchange in waiting:
            await client.answer(exchange)
        record = client.workflow.record
        assert len(at.server.of("initialize")) == 3
        await a.pool.drain(1)
        await until(lambda: len(at.server.deleted) == 2)
        await settle()
        assert record.upstream_session not in [f":{session}" for session in at.server.deleted]


async def test_g8_who_comes_while_the_worker_of_a_shared_session_drains_begins_at_another_one() -> None:
    async with started(2, reuse="user") as (at, a, b):
        waiting = await a.client(ALICE)
        exchange = waiting.call()
        await at.server.got("tools/call")
        draining = asyncio.create_task(a.pool.drain(10))
        await settle()
        newcomer = await b.client(ALICE)
        await settle()
        assert waiting.workflow.ended is None
        at.server.on_request = echo
        assert "result" in await newcomer.answer(newcomer.call())
        at.server.of("tools/call")[0].answer()
        assert "result" in await waiting.answer(exchange)
        await draining
        await settle()
        found = await b.find(waiting.workflow.record.session_id, WHOLE, ALICE)
        assert "result" in await found.answer(found.call())
