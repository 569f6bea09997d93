"""The pool: one upstream session for each workflow, found again by its owner and by nobody else."""

import asyncio
from typing import Any

import pytest
from harness.memory_wire import echo
from harness.muxing import ALICE, BOB, Bench, Client, begin, bench, initialize, request, settle
from trunkline.mux.errors import (
    InvalidParams,
    Overloaded,
    RevisionNotServed,
    TrunklineError,
    UnknownSession,
    UpstreamRefused,
    UpstreamUnreachable,
)
from trunkline.mux.pool import Begun

pytestmark = pytest.mark.anyio


def messages(at: Bench) -> int:
    """How many messages came to the servers."""
    return sum(len(session.exchanges) for server in (at.server, at.other) for session in server.sessions)


async def test_concurrent_begins_of_one_key_open_one_session() -> None:
    async with bench() as at:
        at.server.pause("connect")
        tasks = [asyncio.create_task(begin(at.pool, ALICE, key="chat")) for _ in range(20)]
        await at.server.reached("connect")
        await settle()
        at.server.let("connect")
        begun = await asyncio.gather(*tasks)
        assert len(at.server.sessions) == 1
        assert len({one.workflow for one in begun}) == 1
        assert sorted(one.state for one in begun) == ["created"] + ["resumed"] * 19
        assert sorted(one.pool_result for one in begun) == ["hit"] * 19 + ["miss"]
        assert at.counts["pool_requests", "x", "hit"] == 19


async def test_a_claim_whose_answer_is_overtaken_still_opens_one_session() -> None:
    async with bench() as at:
        at.directory.pause("claim", once=True)
        first = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await at.directory.reached("claim")
        second = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await settle()
        at.directory.let("claim")
        assert (await first).workflow is (await second).workflow
        assert len(at.server.sessions) == 1


async def test_a_key_names_nothing_outside_its_principal_and_server() -> None:
    async with bench() as at:
        begun = [
            await begin(at.pool, ALICE, key="chat"),
            await begin(at.pool, BOB, key="chat"),
            await begin(at.pool, ALICE, server="y", key="chat"),
            await begin(at.pool, ALICE, key="other"),
            await begin(at.pool, ALICE),
            await begin(at.pool, ALICE),
        ]
        assert len({one.workflow.record.session_id for one in begun}) == 6
        assert {one.state for one in begun} == {"created"}
        assert (len(at.server.sessions), len(at.other.sessions)) == (5, 1)


@pytest.mark.parametrize("by", ["session_id", "key"])
async def test_coming_back_costs_no_upstream_request(by: str) -> None:
    async with bench() as at:
        first = await begin(at.pool, ALICE, key="chat")
        before = messages(at)
        name = {"session_id": first.workflow.record.session_id, "key": "chat"}[by]
        again = await begin(at.pool, ALICE, **{by: name})
        assert again == Begun(first.workflow, "resumed", "hit", first.result)
        assert messages(at) == before == 2


OTHER: dict[str, dict[str, Any]] = {
    "protocolVersion": {"message": initialize("2025-06-18")},
    "capabilities": {"message": initialize(capabilities={"roots": {}})},
    "session headers": {"session_headers": {"X-Tenant": "2"}},
}


@pytest.mark.parametrize("field", OTHER)
async def test_another_handshake_is_refused_while_the_session_is_in_use(field: str) -> None:
    async with bench() as at:
        client = await at.client(ALICE, key="chat")
        exchange = client.call()
        with pytest.raises(InvalidParams, match=field):
            await begin(at.pool, ALICE, key="chat", **OTHER[field])
        client.leave()
        with pytest.raises(InvalidParams, match=field):
            await begin(at.pool, ALICE, session_id=client.workflow.record.session_id, **OTHER[field])
        assert not exchange.ready.done()
        assert len(at.server.sessions) == 1


@pytest.mark.parametrize("field", OTHER)
async def test_another_handshake_is_refused_while_the_session_opens(field: str) -> None:
    async with bench() as at:
        at.server.pause("connect")
        first = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await at.server.reached("connect")
        with pytest.raises(InvalidParams, match=field):
            await begin(at.pool, ALICE, key="chat", **OTHER[field])
        at.server.let("connect")
        assert (await first).state == "created"


@pytest.mark.parametrize("field", OTHER)
async def test_another_handshake_begins_anew_where_nobody_is_attached(field: str) -> None:
    async with bench() as at:
        old = (await at.client(ALICE, key="chat")).workflow
        again = await begin(at.pool, ALICE, session_id=old.record.session_id, **OTHER[field])
        await at.closed()
        assert again.state == "reset"
        assert again.workflow.record.key == "chat"
        assert again.workflow.record.session_id != old.record.session_id
        assert [session.is_closed for session in at.server.sessions] == [True, False]
        with pytest.raises(UnknownSession):
            await at.pool.lookup.find(ALICE, "x", old.record.session_id)
        back = await begin(at.pool, ALICE, key="chat", **OTHER[field])
        assert back.workflow is again.workflow


async def test_a_handshake_is_the_same_in_any_order_under_any_name_and_at_the_negotiated_revision() -> None:
    async with bench(revision="2025-06-18") as at:
        first = await begin(at.pool, message=initialize(capabilities={"roots": {}, "sampling": {}}), key="chat")
        at.pool.statistics.counts.clear()
        client = Client(first.workflow)
        client.call()
        for same in (
            initialize(capabilities={"sampling": {}, "roots": {}}),
            initialize("2025-06-18", capabilities={"roots": {}, "sampling": {}}),
            initialize(capabilities={"roots": {}, "sampling": {}}, clientInfo={"name": "other", "version": "2"}),
        ):
            assert (await begin(at.pool, message=same, key="chat")).workflow is first.workflow
        client.leave()


async def test_a_session_that_ended_is_unknown_and_its_key_begins_anew() -> None:
    async with bench() as at:
        first = (await begin(at.pool, ALICE, key="chat")).workflow
        await at.pool.end(first, "deleted")
        await at.pool.end(first, "idle")
        assert await at.pool.lookup.find_key(ALICE, "x", "chat") is None
        with pytest.raises(UnknownSession):
            await at.pool.lookup.find(ALICE, "x", first.record.session_id)
        assert (await begin(at.pool, ALICE, key="chat")).state == "reset"
        assert at.counts["workflows_closed", "deleted"] == 1
        assert at.counts["workflows_closed", "idle"] == 0


async def test_a_key_can_begin_anew_while_the_end_of_its_workflow_is_still_being_recorded() -> None:
    async with bench() as at:
        first = (await begin(at.pool, ALICE, key="chat")).workflow
        at.directory.pause("remove", before=True)
        ending = asyncio.create_task(at.pool.end(first, "deleted"))
        await at.directory.reached("remove")
        again = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await settle()
        at.directory.let("remove")
        await ending
        assert (await again).state == "reset"


async def test_a_session_that_another_worker_opens_is_not_opened_twice() -> None:
    async with bench() as at:
        record = (await begin(at.pool, ALICE, server="y")).workflow.record
        elsewhere = type(record)("elsewhere", ALICE, "x", "chat", record.handshake)
        await at.directory.claim(elsewhere)
        with pytest.raises(Overloaded) as refused:
            await begin(at.pool, ALICE, key="chat")
        assert refused.value.limit == "opening"
        assert at.server.sessions == []
        await at.directory.remove(elsewhere)


async def open_fails(at: Bench, how: str) -> type[TrunklineError]:
    """Let the next session fail to open."""
    match how:
        case "unreachable":
            at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
            return UpstreamUnreachable
        case "initialize refused":
            at.server.answers_initialize = lambda exchange: exchange.refuse(-32001, "closed today")
            return UpstreamRefused
        case "revision not served":
            at.server.result["protocolVersion"] = "1999-01-01"
            return RevisionNotServed
        case _:
            at.server.refuses_initialized = True
            return UpstreamUnreachable


@pytest.mark.parametrize("how", ["unreachable", "initialize refused", "revision not served", "initialized refused"])
async def test_an_open_that_fails_fails_for_all_who_wait_and_leaves_nothing(how: str) -> None:
    async with bench() as at:
        expected = await open_fails(at, how)
        outcomes = await asyncio.gather(*(begin(at.pool, ALICE, key="chat") for _ in range(5)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [expected] * 5
        assert len(at.server.closing) == len(at.server.sessions) <= 1
        await at.ended("not_opened")
        at.at_rest()
        assert at.pool.failures["x"].stage == ("connect" if how == "unreachable" else "handshake")
        assert "y" not in at.pool.failures


async def test_a_server_that_failed_can_be_tried_again_at_once() -> None:
    async with bench() as at:
        at.directory.pause("remove", before=True)
        at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
        with pytest.raises(UpstreamUnreachable):
            await begin(at.pool, ALICE, key="chat")
        at.server.unreachable = None
        again = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await settle()
        at.directory.let("remove")
        assert (await again).pool_result == "miss"
        assert at.pool.failures == {}


async def test_the_servers_refusal_of_a_handshake_is_handed_on_word_for_word() -> None:
    async with bench() as at:
        await open_fails(at, "initialize refused")
        with pytest.raises(UpstreamRefused) as refused:
            await begin(at.pool)
        assert refused.value.raw == b'{"code": -32001, "message": "closed today"}'


@pytest.mark.parametrize("params", [{"protocolVersion": 7}, {"capabilities": []}, {"capabilities": 1}, []])
async def test_a_handshake_that_is_none_is_refused_before_anything_happens(params: Any) -> None:
    given = {"protocolVersion": "2025-11-25", "capabilities": {}, **params} if params else {}
    async with bench() as at:
        with pytest.raises(InvalidParams):
            await begin(at.pool, message=request("initialize", given))
        assert (at.server.sessions, at.directory.calls) == ([], {})


async def test_who_is_revoked_while_it_begins_gets_nothing() -> None:
    async with bench(on_request=echo) as at:
        at.directory.pause("claim")
        beginning = asyncio.ensure_future(begin(at.pool, ALICE))
        await at.directory.reached("claim")
        at.pool.revoke(lambda principal: principal != ALICE)
        at.directory.let("claim")
        with pytest.raises(UnknownSession):
            await beginning
        assert not at.pool.workflows
        assert not at.directory.records
