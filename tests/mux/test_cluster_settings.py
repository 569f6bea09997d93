"""Several workers whose settings differ: another reuse, another place of the server, other limits; no sessions."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest
from harness.clustering import started
from harness.memory_wire import echo
from harness.muxing import ALICE, Client, settle
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.errors import Elsewhere, UnknownSession
from trunkline.mux.limits import EventLogLimits, Pooling, Reuse
from trunkline.mux.placement import CALLS, WHOLE
from trunkline.mux.record import Terms

pytestmark = pytest.mark.anyio


async def test_without_sessions_any_worker_serves_calls() -> None:
    async with started(2, reuse="none", on_request=echo) as (at, a, b):
        session_id = (await a.client()).workflow.record.session_id
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())
        with pytest.raises(Elsewhere):
            await b.find(session_id)
        await at.lose(a)
        held = await b.find(session_id)
        assert held.workflow is beside.workflow
        assert "result" in await held.answer(held.call())


async def test_a_stateless_server_that_forgot_a_session_gets_another_one_for_all() -> None:
    async with started(2, stateless=True, on_request=echo) as (at, a, b):
        client = await a.client()
        session_id = client.workflow.record.session_id
        at.server.session.forget()
        assert "result" in await client.answer(client.call())
        await at.pass_time(1)
        assert (await at.directory.get(session_id) or client.workflow.record).upstream_session == ":2"
        beside = await b.beside(session_id)
        assert "result" in await beside.answer(beside.call())
        assert len(at.server.of("initialize")) == 2


@pytest.mark.parametrize(("before", "after"), [("user", "workflow"), ("workflow", "user"), ("workflow", "none")])
async def test_g1_g4_a_session_is_not_taken_for_one_of_another_reuse_by_workers_with_other_settings(
    before: Reuse, after: Reuse
) -> None:
    """As in a rolling restart: two workflows that shared a session would both take it for their own."""
    async with started(1, reuse=before, on_request=echo) as (at, a):
        ids = [(await a.client(ALICE)).workflow.record.session_id for _ in range(2)]
        make_line = PerRequestLine if after == "none" else None
        at.settings = {**at.settings, "pooling": Pooling(reuse=after), "make_line": make_line}
        b = await at.start()
        for session_id in ids:
            for concern in (CALLS, WHOLE):
                with pytest.raises(Elsewhere):
                    await b.find(session_id, concern, ALICE)
        a.pool._opening.draining = True
        for workflow in a.pool.workflows:
            await a.pool.end(workflow, "drained")
        await settle()
        for session_id in ids:
            with pytest.raises(UnknownSession):
                await b.find(session_id, CALLS, ALICE)
        assert b.pool.channels == []
        counts = b.pool.statistics.counts
        assert (b.pool.statistics.total("takeovers"), counts["takeovers", "let_go"]) == (2, 2)


@pytest.mark.parametrize(
    "change", [{"resume_window": 900}, {"idle_timeout": 3600}, {"event_log": EventLogLimits(events=100)}], ids=str
)
async def test_what_is_kept_otherwise_is_its_holders_until_that_one_is_dead(change: dict[str, Any]) -> None:
    """Who serves beside tells as seldom as suits itself that it is in use, and cuts the log that all share."""
    async with started(1, on_request=echo) as (at, a):
        session_id = (await a.client()).workflow.record.session_id
        at.settings = {**at.settings, "pooling": msgspec.structs.replace(Pooling(), **change)}
        b, c = await at.start(), await at.start()
        for concern in (CALLS, WHOLE):
            with pytest.raises(Elsewhere):
                await b.find(session_id, concern)
        await at.lose(a)
        held = await b.find(session_id)
        assert "result" in await held.answer(held.call())
        beside = await c.beside(session_id)
        assert "result" in await beside.answer(beside.call())


async def test_what_is_gone_on_with_as_it_was_served_beside_its_dead_holder_is_under_older_settings_still() -> None:
    async with started(3, on_request=echo) as (at, a, b, c):
        session_id = (await a.client()).workflow.record.session_id
        beside = await b.beside(session_id)
        for member in (b, c):
            changed = {name: replace(it, generation=1, place="elsewhere") for name, it in member.pool.upstreams.items()}
            member.pool.reconfigure(changed, member.pool.pooling)
        await at.lose(a)
        held = await b.find(session_id)
        assert held.workflow is beside.workflow
        with pytest.raises(Elsewhere):
            await c.beside(session_id)


@pytest.mark.parametrize("is_there", [True, False])
async def test_g7_what_began_where_its_server_was_goes_on_by_whoever_still_has_a_session_there(is_there: bool) -> None:
    """Whichever worker is asked: another one may have the settings, or had them and has nothing open under them."""
    async with started(3, on_request=echo) as (at, a, b, c):
        session_ids = [(await a.client()).workflow.record.session_id for _ in range(2)]
        await b.beside(session_ids[0])
        for member in (a, b, c):
            member.reconfigure(place="elsewhere")
            if not is_there:
                member.pool.reconfigure({}, member.pool.pooling)
        at.settings = {**at.settings, "place": "elsewhere"}
        d = await at.start()
        await at.pass_time(1)
        await at.lose(a)
        for session_id in session_ids:
            for asked in (c, d):
                for concern in (WHOLE, CALLS):
                    where, workflow = await at.serve(session_id, asked, concern)
                    assert where is b
                    client = Client(workflow)
                    assert "result" in await client.answer(client.call())
            assert workflow.is_superseded
            assert workflow.record.settings == Terms("", workflow.pooling.keeping)
        await at.lose(b)
        for session_id in session_ids:
            with pytest.raises(UnknownSession):
                await c.find(session_id)


async def test_g8_what_is_let_go_under_older_settings_goes_on_where_those_hold_again() -> None:
    """A change that was wrong is taken back by a restart as well: so such a session is not ended at its server."""
    async with started(1, on_request=echo) as (at, a):
        session_id = (await a.client()).workflow.record.session_id
        a.reconfigure(place="elsewhere")
        await at.drain(a)
        b = await at.start()
        held = await b.find(session_id)
        assert "result" in await held.answer(held.call())
        assert not held.workflow.is_superseded


@pytest.mark.parametrize("stateless", [False, True])
async def test_g4_no_session_is_asked_for_at_another_server_than_the_one_that_gave_it(stateless: bool) -> None:
    """There it is a secret of another server, or names a session of somebody else."""
    async with started(1) as (at, a):
        at.server.on_request = at.other.on_request = echo
        session_id = (await a.client()).workflow.record.session_id
        at.settings = {**at.settings, "place": "elsewhere", "stateless": stateless}
        b = await at.start()
        for concern in (CALLS, WHOLE):
            with pytest.raises(Elsewhere):
                await b.find(session_id, concern)
        await at.lose(a)
        if stateless:
            held = await b.find(session_id)
            assert "result" in await held.answer(held.call())
        else:
            with pytest.raises(UnknownSession):
                await b.find(session_id)
            assert await at.directory.get(session_id) is None
        assert [wire.id for wire in b.reach["x"].wires] == (["2"] if stateless else [])
