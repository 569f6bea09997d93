"""The dedicated line: one channel for a workflow, and for a stateless server another one when it was lost (G6)."""

import json

import pytest
from harness.memory_wire import echo, message
from harness.muxing import ALICE, Bench, Client, begin, bench, initialize, notification, response, some
from trunkline.mux.errors import SessionLost, UpstreamUnreachable

pytestmark = pytest.mark.anyio

GONE = SessionLost("the server is gone", executed="unknown")


async def lose(at: Bench) -> None:
    """The session is lost while nothing is in flight."""
    at.server.session.receiver.lost(GONE)
    await at.closed(len(at.server.sessions))


async def test_l18_a_lost_session_is_not_silently_begun_anew() -> None:
    async with bench() as at:
        client = await at.client()
        line = client.workflow.line
        assert line.is_open
        await lose(at)
        assert not line.is_open
        assert (await client.answer(client.call()))["error"]["data"] == {"executed": "no"}
        await at.ended("upstream_lost")
        assert len(at.server.sessions) == 1


async def test_a_stateless_server_is_opened_once_more_for_all_who_wait() -> None:
    async with bench(stateless=True, on_request=echo) as at:
        client = await at.client()
        await lose(at)
        assert client.workflow.line.is_open
        at.server.pause("initialize")
        exchanges = [client.call({"arguments": {"n": n}}, id=b"%d" % n) for n in range(10)]
        await at.server.reached("initialize", 2)
        at.server.let("initialize")
        answers = [await client.answer(exchange) for exchange in exchanges]
        assert [one["id"] for one in answers] == list(range(10))
        assert [one["result"]["structuredContent"]["n"] for one in answers] == list(range(10))
        assert len(at.server.sessions) == 2
        assert set(client.told) == {"miss"}
        assert at.counts["workflows_closed", "upstream_lost"] == 0


async def test_the_new_session_has_the_handshake_of_the_old_and_ids_of_its_own() -> None:
    async with bench(stateless=True, on_request=echo) as at:
        begun = await begin(at.pool, message=initialize(capabilities={"roots": {}}), session_headers={"X-Tenant": "1"})
        client = Client(begun.workflow)
        await client.answer(client.call())
        await lose(at)
        await client.answer(client.call())
        old, new = at.server.sessions
        assert (old.headers, old.revision) == (new.headers, new.revision)
        assert old.exchanges[0].json["params"] == new.exchanges[0].json["params"]
        ids = [{exchange.id for exchange in s.exchanges if exchange.request} for s in (old, new)]
        assert not ids[0] & ids[1]


async def test_l13_a_session_that_is_opened_anew_in_another_revision_ends_what_was_agreed_in_the_old_one() -> None:
    async with bench(stateless=True, on_request=echo) as at:
        client = await at.client()
        await lose(at)
        at.server.result = {**at.server.result, "instructions": "the same revision"}
        assert "result" in await client.answer(client.call())
        await lose(at)
        at.server.result = {**at.server.result, "protocolVersion": "2025-06-18"}
        error = (await client.answer(client.call()))["error"]
        assert (error["code"], error["data"]) == (-31002, {"executed": "no"})
        await at.ended("upstream_changed")
        assert len(at.server.of("tools/call")) == 1


async def test_g6_only_calls_that_surely_did_not_run_are_sent_again() -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        running = client.call({"name": "running"}, id=b"1")
        at.server.session.forget()
        refused = [client.call({"name": "refused"}, id=b"%d" % n) for n in (2, 3)]
        at.server.on_request = echo
        assert (await client.answer(running))["error"]["data"] == {"executed": "unknown"}
        for exchange in refused:
            assert "result" in await client.answer(exchange)
        first, second = at.server.sessions
        assert [e.json["params"]["name"] for e in first.of("tools/call")] == ["running"]
        assert [e.json["params"]["name"] for e in second.of("tools/call")] == ["refused"] * 2
        assert at.counts["calls", "x", "tools/call", "ok"] == 2


async def test_g6_a_call_is_sent_again_only_once() -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        at.server.session.forget()
        exchange = client.call()
        at.server.pause("establish")
        await at.server.reached("establish", 2)
        at.server.session.forget()
        at.server.let("establish")
        assert (await client.answer(exchange))["error"]["data"] == {"executed": "no"}
        assert at.server.of("tools/call") == []
        assert len(at.server.sessions) == 2
        at.server.on_request = echo
        assert "result" in await client.answer(client.call())
        assert len(at.server.sessions) == 3


async def test_a_server_that_stays_away_fails_those_who_wait_and_is_tried_again_by_the_next() -> None:
    async with bench(stateless=True, on_request=echo) as at:
        client = await at.client()
        await lose(at)
        at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
        for exchange in [client.call(id=b"%d" % n) for n in range(3)]:
            error = (await client.answer(exchange))["error"]
            assert (error["code"], error["data"]) == (-31001, {"executed": "no"})
        at.server.unreachable = None
        assert "result" in await client.answer(client.call())
        assert not client.workflow.ended


async def test_calls_that_wait_are_limited() -> None:
    async with bench(stateless=True, max_inflight_per_channel=2) as at:
        client = await at.client()
        await lose(at)
        at.server.pause("connect")
        waiting = [client.call(id=b"%d" % n) for n in range(2)]
        refused = await client.answer(client.call(id=b"9"))
        assert refused["error"]["data"] == {"limit": "max_inflight_per_channel"}
        at.server.on_request = echo
        at.server.let("connect")
        for exchange in waiting:
            assert "result" in await client.answer(exchange)


async def test_a_call_that_waits_can_be_cancelled_and_is_never_sent() -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        await lose(at)
        at.server.pause("connect")
        exchanges = [client.call({"name": str(n)}, id=b"%d" % n) for n in range(3)]
        for n in (0, 2):
            client.workflow.notify(notification("notifications/cancelled", {"requestId": n}), {})
        assert (await client.answer(exchanges[0]))["error"]["code"] == -32800
        assert (await client.answer(exchanges[2]))["error"]["code"] == -32800
        at.server.on_request = echo
        at.server.let("connect")
        assert "result" in await client.answer(exchanges[1])
        assert [e.json["params"]["name"] for e in at.server.of("tools/call")] == ["1"]
        assert at.server.of("notifications/cancelled") == []


async def test_when_all_who_waited_have_cancelled_the_next_call_waits_for_the_same_session() -> None:
    async with bench(stateless=True, on_request=echo) as at:
        client = await at.client()
        await lose(at)
        at.server.pause("connect")
        client.call(id=b"1")
        client.workflow.notify(notification("notifications/cancelled", {"requestId": 1}), {})
        client.leave()
        exchange = client.call({"name": "second"}, id=b"2")
        at.server.let("connect")
        assert len(await client.answers(exchange)) == 1
        assert len(at.server.sessions) == 2
        assert [e.json["params"]["name"] for e in at.server.of("tools/call")] == ["second"]


@pytest.mark.parametrize("stop", ["deleted", "drained"])
async def test_g6_calls_that_waited_when_the_workflow_ended_surely_did_not_run(stop: str) -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        await lose(at)
        at.server.pause("connect")
        exchanges = [client.call(id=b"%d" % n) for n in range(3)]
        await at.server.reached("connect", 2)
        if stop == "drained":
            assert not await at.pool.drain(0)
        else:
            await at.pool.end(client.workflow, stop)
        for exchange in exchanges:
            error = (await client.answer(exchange))["error"]
            assert (error["code"], error["data"]) == (-31002, {"executed": "no"})
        at.server.let("connect")
        await at.closed(2)
        assert at.server.of("tools/call") == []


async def test_g6_calls_that_waited_for_a_session_that_was_lost_again_surely_did_not_run() -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        await lose(at)
        at.server.pause("initialize")
        exchange = client.call()
        await at.server.reached("initialize", 2)
        at.server.unreachable = UpstreamUnreachable("no answer to initialize", executed="unknown")
        at.server.session.receiver.lost(GONE)
        error = (await client.answer(exchange))["error"]
        assert (error["code"], error["data"]) == (-31001, {"executed": "no"}), "it was tried once more"
        at.server.let("initialize")


async def test_g6_no_call_that_waited_in_vain_is_told_what_became_of_another_one() -> None:
    async with bench(stateless=True) as at:
        client = await at.client()
        at.server.session.forget()
        at.server.answers_initialize = lambda exchange: exchange.answer({"protocolVersion": "1999-01-01"})
        at.server.pause("initialize")
        refused = client.call(id=b"1")
        await at.server.reached("initialize", 2)
        waiting = client.call(id=b"2")
        at.server.let("initialize")
        for exchange in (refused, waiting):
            error = (await client.answer(exchange))["error"]
            assert (error["code"], error["data"]) == (-32603, {"executed": "no"})
        assert at.server.of("tools/call") == []


async def test_what_the_old_session_asked_is_forgotten_with_it() -> None:
    async with bench(stateless=True) as at:
        client = await at.client(ALICE, message=initialize(capabilities={"sampling": {}}))
        reader = client.workflow.streams.attach_standalone()
        asked = []
        for _ in range(2):
            at.server.session.tell(message("sampling/createMessage", {}, id="s"))
            asked.append(json.loads((await some(reader))[0][1])["id"])
            if len(asked) == 1:
                await lose(at)
                at.server.on_request = echo
                await client.answer(client.call())
        for number in asked:
            client.workflow.respond(response(number, {"to": number}))
        [answered] = at.server.of("response")
        assert (answered.session, answered.json["result"]) == (at.server.session, {"to": asked[1]})
        assert at.counts["unknown_answers", "x"] == 1
        reader.close()


async def test_a_server_that_was_never_reached_is_told_to_the_client_that_began() -> None:
    async with bench(stateless=True) as at:
        at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
        with pytest.raises(UpstreamUnreachable):
            await begin(at.pool)
        await at.ended("not_opened")
