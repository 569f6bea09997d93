"""Who lives here, which keys are in motion, and what pages show."""

from functools import partial

import anyio
import pytest
from harness.muxing import ALICE, BOB, bench, initialize, settle
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.record import Handshake, WorkflowRecord
from trunkline.mux.residents import Residents, row_of

pytestmark = pytest.mark.anyio

HANDSHAKE = Handshake("2025-11-25", b"{}", b"{}")


def record(session_id: str, key: str | None = None) -> WorkflowRecord:
    return WorkflowRecord(session_id, ALICE, "x", key, HANDSHAKE)


async def test_who_comes_while_a_key_is_in_motion_waits() -> None:
    residents, first = Residents(), record("a", "key")
    assert residents.moving(ALICE, "x", "key", None) is None
    residents.unsettle(first)
    moving = residents.moving(ALICE, "x", "key", None)
    assert moving is not None
    assert residents.moving(BOB, "x", "key", None) is None
    assert residents.moving(ALICE, "y", "key", None) is None
    residents.settle(record("another", "key"))
    assert not moving.is_set()
    residents.settle(first)
    assert moving.is_set()
    assert residents.moving(ALICE, "x", "key", None) is None


async def test_a_later_motion_of_a_key_wakes_who_waits_for_the_one_before() -> None:
    residents = Residents()
    residents.unsettle(record("a", "key"))
    before = residents.moving(ALICE, "x", "key", None)
    residents.unsettle(record("b", "key"))
    assert before is not None
    assert before.is_set()
    residents.settle(record("a", "key"))
    assert residents.moving(ALICE, "x", "key", None) is not None


async def test_without_a_key_the_session_id_names() -> None:
    residents = Residents()
    residents.unsettle(record("a"))
    assert residents.moving(ALICE, "x", None, "a") is not None
    assert residents.moving(ALICE, "x", None, "b") is None


async def test_a_workflow_leaves_once_and_its_end_is_remembered() -> None:
    async with bench() as at:
        residents = at.pool._residents
        workflow = (await at.client(key="key")).workflow
        assert residents.held.by_token[workflow.record.event_token] is workflow
        assert residents.held.census.total == 1
        at.pool._ending.soon(workflow, "deleted")
        assert not residents.leave(workflow)
        assert (residents.held.by_id, residents.held.by_token, residents.held.census.total) == ({}, {}, 0)
        assert residents.before(workflow.record).cause == "deleted"
        assert residents.before(record("other")).cause == ""
        with anyio.fail_after(5):
            await at.ended("deleted")
        await settle()


async def test_a_page_shows_no_secret() -> None:
    async with bench() as at:
        client = await at.client(ALICE, key="secret-key", message=initialize("2025-06-18"))
        record = client.workflow.record
        client.call()
        at.clock.advance(3)
        row = row_of(client.workflow)
        assert (row["state"], row["inflight"], row["idle"], row["keyed"]) == ("attached", 1, None, True)
        for secret in (record.session_id, record.event_token, "secret-key", "alice"):
            assert secret not in f"{row} {client.workflow!r} {at.pool!r}"
        client.leave()
        await settle()
        assert row_of(client.workflow)["state"] == "detached"


async def test_what_is_served_beside_its_holder_is_served_but_is_none_of_those_that_live_here() -> None:
    async with bench() as at:
        residents, held = at.pool._residents, (await at.client(key="held")).workflow
        beside = (await at.client(key="beside")).workflow
        assert residents.leave(beside)
        assert residents.served == [held]
        residents.beside.census.add(beside.principal, beside.server)
        residents.beside.add(beside)
        assert (residents.beside.has(held), residents.beside.has(beside)) == (False, True)
        assert residents.served == [held, beside]
        session_id, token = beside.record.session_id, beside.record.event_token
        assert residents.served_as(session_id) == [beside] == [residents.beside.by_token[token]]
        assert (session_id in residents.held.by_id, residents.held.census.total) == (False, 1)
        of_key = partial(residents.served_by, ANONYMOUS, "x")
        assert (of_key("held"), of_key("beside"), of_key("other")) == ([held], [beside], [])
        assert residents.served_by(ALICE, "x", "held") == residents.served_by(ANONYMOUS, "y", "beside") == []
        assert residents.beside.remove(beside)
        assert of_key("beside") == []
        assert not residents.beside.remove(beside)
        assert (residents.served, residents.served_as(session_id), residents.beside.by_token) == ([held], [], {})
        residents.held.census.add(beside.principal, beside.server)
        residents.add(beside)
