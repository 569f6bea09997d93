"""Several workers that share a directory: who serves what, and what is idle or over for all of them."""

import anyio
import pytest
from harness.changing import until
from harness.clustering import started, two, workers
from harness.memory_wire import message
from harness.muxing import ALICE, BOB, settle
from trunkline.mux.cluster import BESIDE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, UnknownSession
from trunkline.mux.placement import CALLS, WHOLE
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.recording import TOUCH_SECONDS, touch_interval

pytestmark = pytest.mark.anyio


async def test_a_record_names_its_worker_and_the_upstream_session() -> None:
    async with two() as (at, _, _, session_id):
        record = await at.directory.get(session_id)
        assert record is not None
        assert (record.worker, record.upstream_session) == ("worker-1", f":{at.server.session.id}")
        assert record.lifetime == 1800 + 300


async def test_g7_calls_are_served_beside_the_holder_on_the_same_upstream_session() -> None:
    async with two() as (at, a, b, session_id):
        beside = await b.beside(session_id)
        assert (await beside.answer(beside.call({"arguments": {"n": 1}})))["result"]["structuredContent"] == {"n": 1}
        assert {session.id for session in at.server.sessions} == {"1"}
        assert len(at.server.of("initialize")) == 1
        assert a.pool.workflows
        assert b.pool.workflows == []
        assert [wire.is_listening for wire in at.server.sessions] == [True, False]


async def test_e4_ids_on_one_upstream_session_are_disjoint() -> None:
    async with two() as (at, a, b, session_id):
        here, beside = await a.find(session_id), await b.beside(session_id)
        for n in range(5):
            await here.answer(here.call(id=b"%d" % n))
            await beside.answer(beside.call(id=b"%d" % n))
        ids = [exchange.id for exchange in at.server.of("tools/call")]
        assert len(ids) == len(set(ids)) == 10


async def test_everything_but_calls_goes_to_the_holder() -> None:
    async with two() as (_, _, b, session_id):
        with pytest.raises(Elsewhere) as elsewhere:
            await b.find(session_id)
        assert elsewhere.value.worker == "worker-1"
        with pytest.raises(Elsewhere):
            await b.client(session_id=session_id)


async def test_g4_a_session_of_another_principal_is_unknown_on_every_worker() -> None:
    async with started(2) as (_, a, b):
        session_id = (await a.client(ALICE)).workflow.record.session_id
        await b.find(session_id, CALLS, ALICE)
        for worker in (a, b):
            for concern in (CALLS, CALLS._replace(are_calls=False)):
                with pytest.raises(UnknownSession):
                    await worker.find(session_id, concern, BOB)


async def test_g4_a_session_on_the_path_of_another_server_is_unknown_on_every_worker() -> None:
    async with two() as (_, a, b, session_id):
        for worker in (a, b):
            for concern in (CALLS, WHOLE):
                with pytest.raises(UnknownSession):
                    await worker.pool.lookup.find(ANONYMOUS, "y", session_id, concern)


async def test_what_cannot_be_moved_is_served_by_its_holder_alone() -> None:
    async with two(movable=False) as (_, _, b, session_id):
        with pytest.raises(Elsewhere):
            await b.beside(session_id)


async def test_a_key_of_what_lives_here_costs_no_look_at_the_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(1) as (at, a):
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
    async with started(2) as (_, a, b):
        mine = await a.client(ALICE, key="k")
        with pytest.raises(Elsewhere):
            await b.client(ALICE, key="k")
        found = await b.pool.lookup.find_key(ALICE, "x", "k", CALLS)
        assert found is not None
        assert found.record.session_id == mine.workflow.record.session_id
        assert await b.pool.lookup.find_key(BOB, "x", "k", CALLS) is None


async def test_beside_the_holder_nothing_stays_that_nobody_uses() -> None:
    async with two() as (at, _, b, session_id):
        beside = await b.beside(session_id)
        await beside.answer(beside.call())
        await at.pass_time(BESIDE_SECONDS + 1)
        await until(lambda: b.pool.channels == [])
        assert b.pool.statistics.counts["beside_ended", "idle"] == 1
        assert at.server.deleted == []
        assert (await at.directory.get(session_id)) is not None


async def test_the_end_of_a_workflow_ends_it_beside_its_holder() -> None:
    async with two() as (at, a, b, session_id):
        beside = await b.beside(session_id)
        await a.pool.end((await a.find(session_id)).workflow, "deleted")
        await settle()
        with pytest.raises(UnknownSession):
            await b.beside(session_id)
        assert beside.workflow.ended is not None
        await until(lambda: at.server.deleted == ["1"])


async def test_a_session_that_the_server_forgot_is_over_for_all() -> None:
    async with two() as (at, a, b, session_id):
        beside = await b.beside(session_id)
        at.server.session.forget()
        lost = await beside.answer(beside.call())
        assert lost["error"]["data"]["executed"] == "no"
        await settle()
        with pytest.raises(UnknownSession):
            await a.find(session_id)


async def test_l13_a_session_opened_anew_in_another_revision_ends_the_workflow_for_all() -> None:
    async with two(stateless=True) as (at, a, b, session_id):
        beside = await b.beside(session_id)
        at.server.result = {**at.server.result, "protocolVersion": "2025-06-18"}
        at.server.session.forget()
        assert (await beside.answer(beside.call()))["error"]["data"] == {"executed": "no"}
        await settle()
        with pytest.raises(UnknownSession):
            await a.find(session_id)
        assert b.pool.statistics.counts["beside_ended", "upstream_changed"] == 1


async def test_what_ends_beside_its_holder_for_want_of_room_is_ended_at_the_server() -> None:
    async with two() as (at, a, b, session_id):
        beside = await b.beside(session_id)
        beside.workflow.fail("event_log_overflow")
        await settle()
        with pytest.raises(UnknownSession):
            await a.find(session_id)
        await until(lambda: at.server.deleted == ["1"])


# Idleness.


@pytest.mark.parametrize("rhythm", [0.5, 7, 13])
async def test_one_that_is_used_at_any_worker_is_never_idle_and_one_that_is_not_is_in_time(rhythm: float) -> None:
    async with two(idle_timeout=60, resume_window=60) as (at, a, b, session_id):
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


async def test_a_directory_that_is_away_or_slow_is_not_asked_again_and_again_for_what_is_idle() -> None:
    async with two(idle_timeout=60) as (at, a, _, _):
        asked, go_on = 0, anyio.Event()

        async def slow(session_id: str) -> float | None:
            nonlocal asked
            asked += 1
            if a.view.is_cut:
                raise DirectoryUnavailable("a test has cut the network")
            await go_on.wait()
            return await at.directory.untouched(session_id)

        await at.pass_time(TOUCH_SECONDS * 2)
        a.view.untouched = slow  # type: ignore[attr-defined]
        a.view.is_cut = True
        await a.beat()
        await at.pass_time(100)
        a.view.is_cut = False
        assert (asked, len(a.pool.workflows)) == (0, 1)
        await at.pass_time(5)
        assert (asked, len(a.pool.workflows)) == (1, 1), "one is asked for once at a time"
        go_on.set()
        await until(lambda: a.pool.workflows == [])


async def test_calls_beside_the_holder_keep_a_workflow_in_use() -> None:
    async with two(idle_timeout=20, resume_window=5) as (at, a, b, session_id):
        for _ in range(12):
            beside = await b.beside(session_id)
            await beside.answer(beside.call())
            await at.pass_time(TOUCH_SECONDS)
        assert (await a.find(session_id)).workflow.ended is None


async def test_one_that_is_used_elsewhere_does_not_end_because_its_record_was_lost() -> None:
    async with two(idle_timeout=20, resume_window=5) as (at, a, b, session_id):
        for _ in range(3):
            await at.pass_time(TOUCH_SECONDS)
            beside = await b.beside(session_id)
            await beside.answer(beside.call())
        [workflow] = a.pool.workflows
        at.clock.advance(TOUCH_SECONDS + 0.5)
        at.directory.forget(session_id)
        tuple(a.pool._sweep.look_after(at.clock()))
        await settle()
        assert (a.pool.workflows, at.server.deleted) == ([workflow], [])
        assert await at.directory.get(session_id) == workflow.record


async def test_a_workflow_that_no_worker_uses_ends() -> None:
    async with two(idle_timeout=20, resume_window=5) as (at, a, _, _):
        await at.pass_time(40)
        await until(lambda: a.pool.workflows == [])
        await until(lambda: at.server.deleted == ["1"])
        assert a.pool.statistics.counts["workflows_closed", "idle"] == 1


# What has ended stays ended.


async def test_a_record_that_could_not_be_removed_brings_nothing_back() -> None:
    async with two(reuse="none") as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        a.view.is_cut = True
        await a.pool.end(mine, "deleted")
        a.view.is_cut = False
        with pytest.raises(UnknownSession):
            await a.find(session_id)
        with pytest.raises(UnknownSession):
            await at.serve(session_id, b)
        assert a.pool.workflows == b.pool.workflows == []


async def test_g6_of_tools_that_a_server_may_have_changed_no_call_is_sent_again() -> None:
    """That is told where the conversation is held: who serves it beside does not hear it."""
    async with workers() as at:
        at.settings["trust_annotations"] = True
        a, b = await at.start(), await at.start()
        session_id = (await a.client()).workflow.record.session_id
        tools = {"tools": [{"name": "t", "annotations": {"idempotentHint": True}}]}
        for member in (a, b):
            client = await member.find(session_id, CALLS)
            listed = client.call(method="tools/list")
            (await at.server.got("tools/list", 1 + (member is b))).answer(tools)  # of several, the newest
            await client.answer(listed)
        a.reach["x"].wires[0].tell(message("notifications/tools/list_changed"))
        for number, member in enumerate((a, b), 1):
            client = await member.find(session_id, CALLS)
            cut = client.call({"name": "t"})
            (await at.server.got("tools/call", number)).cut()
            assert (await client.answer(cut))["error"]["data"] == {"executed": "unknown"}
        assert len(at.server.of("tools/call")) == 2
