"""One upstream session for all workflows of a principal: what they share, what is kept apart, what survives a loss."""

import asyncio
import json
from typing import Any

import pytest
from harness.memory_wire import echo, message
from harness.muxing import ALICE, BOB, Bench, Client, begin, bench, idle, initialize, notification, settle, some
from trunkline.mux.errors import Overloaded, WorkflowEnded
from trunkline.mux.pool import Begun
from trunkline.mux.routing import LEGACY
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio

CALLS = "tools/call"


async def listening(client: Client) -> Any:
    reader = client.workflow.streams.attach_standalone()
    await reader.next(0)  # it is primed
    return reader


async def test_workflows_of_one_principal_share_a_session_and_a_second_one_costs_nothing() -> None:
    async with bench(reuse="user", on_request=echo) as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        assert len(at.server.sessions) == 1
        assert len(at.server.of("initialize")) == 1
        assert at.counts["pool_requests", "x", "miss"] == 1
        assert at.counts["pool_requests", "x", "hit"] == 1
        for client, n in ((one, 1), (two, 2)):
            answer = await client.answer(client.call({"arguments": {"n": n}}))
            assert (answer["id"], answer["result"]["structuredContent"]) == (1, {"n": n})


async def test_calls_of_different_workflows_with_one_id_get_their_own_answers() -> None:
    async with bench(reuse="user") as at:
        clients = [await at.client(ALICE) for _ in range(20)]
        exchanges = [client.call({"n": n}, id=b"1") for n, client in enumerate(clients)]
        for n in reversed(range(20)):
            upstream = await at.server.got(CALLS, n + 1)
            upstream.answer({"n": upstream.json["params"]["n"]})
        for n, (client, exchange) in enumerate(zip(clients, exchanges, strict=True)):
            assert (await client.answer(exchange))["result"] == {"n": n}


async def test_g3_what_concerns_all_comes_on_the_stream_of_a_call_for_its_own_workflow_alone() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        reader = await listening(two)
        exchange = one.call()
        upstream = await at.server.got(CALLS)
        upstream.say(message("notifications/tools/list_changed"))
        assert [json.loads(text)["method"] for _, text in await some(reader)] == ["notifications/tools/list_changed"]
        reader.close()
        upstream.answer()
        told = [came.get("method") for came in await one.answers(exchange)]
        assert told == ["notifications/tools/list_changed", None], "once, and then the answer"


async def test_g4_two_principals_never_share() -> None:
    async with bench(reuse="user") as at:
        await at.client(ALICE)
        await at.client(BOB)
        assert len(at.server.sessions) == 2


@pytest.mark.parametrize(
    "other",
    [
        {"message": initialize("2025-06-18")},
        {"message": initialize(capabilities={"experimental": {"a": {}}})},
        {"session_headers": {"x-tenant": "two"}},
        {"server": "y"},
    ],
    ids=["revision", "capabilities", "session headers", "server"],
)
async def test_what_a_session_was_opened_with_is_part_of_its_key(other: dict[str, Any]) -> None:
    async with bench(reuse="user") as at:
        await at.client(ALICE)
        await at.client(ALICE, **other)
        assert len(at.server.sessions) + len(at.other.sessions) == 2


async def test_l8_a_shared_session_is_opened_with_the_revision_that_its_clients_ask_for() -> None:
    async with bench(reuse="user") as at:
        for revision in LEGACY:
            await at.client(ALICE, message=initialize(revision))
        assert [came.json["params"]["protocolVersion"] for came in at.server.of("initialize")] == [*LEGACY]


async def test_l15_the_server_is_told_only_what_can_be_routed() -> None:
    async with bench(reuse="user") as at:
        await at.client(ALICE, message=initialize(capabilities={"sampling": {}, "roots": {}, "experimental": {}}))
        await at.client(ALICE, message=initialize(capabilities={"elicitation": {}, "experimental": {}}))
        (came,) = at.server.of("initialize")
        assert came.json["params"]["capabilities"] == {"experimental": {}}
        assert came.json["params"]["clientInfo"]["name"] == "trunkline"


async def test_more_sessions_open_only_when_the_first_is_full_and_at_most_so_many() -> None:
    async with bench(reuse="user", max_inflight_per_channel=2, max_channels_per_user=2) as at:
        clients = [await at.client(ALICE) for _ in range(5)]
        calls = [client.call() for client in clients[:2]]
        await at.server.got(CALLS, 2)
        assert len(at.server.sessions) == 1
        calls += [client.call() for client in clients[2:4]]
        await at.server.got(CALLS, 4)
        assert [len(session.of(CALLS)) for session in at.server.sessions] == [2, 2]
        refused = await clients[4].answer(clients[4].call())
        assert refused["error"]["data"] == {"limit": "max_channels_per_user"}
        for n in range(4):
            (await at.server.got(CALLS, n + 1)).answer()
        for client, call in zip(clients, calls, strict=False):
            assert "result" in await client.answer(call)


async def test_a_workflow_that_ends_withdraws_its_own_calls_and_leaves_the_session() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        hers, others = one.call(), two.call()
        await at.server.got(CALLS, 2)
        await at.pool.end(one.workflow, "deleted")
        assert (await one.answer(hers))["error"]["code"] == -31002
        assert (await at.server.got("notifications/cancelled")).json["params"]["requestId"]
        (await at.server.got(CALLS, 2)).answer()
        assert "result" in await two.answer(others)
        assert len(at.server.live) == 1
        again = await at.client(ALICE)
        assert len(at.server.sessions) == 1
        at.server.on_request = echo
        assert "result" in await again.answer(again.call())


async def test_a_cancellation_means_only_its_own_workflows_call() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        first, second = one.call(id=b"7"), two.call(id=b"7")
        await at.server.got(CALLS, 2)
        two.workflow.notify(notification("notifications/cancelled", {"requestId": 7}), {})
        assert (await two.answer(second))["error"]["code"] == -32800
        (await at.server.got(CALLS, 1)).answer()
        assert "result" in await one.answer(first)


async def test_the_session_ends_when_nobody_has_used_it_for_long() -> None:
    async with bench(reuse="user", idle_timeout=100) as at:
        client = await at.client(ALICE)
        await at.pool.end(client.workflow, "deleted")
        at.clock.advance(99)
        await at.swept()
        assert len(at.server.live) == 1
        at.clock.advance(2)
        await at.closed()
        await at.client(ALICE)
        assert len(at.server.sessions) == 2


async def test_a_lost_session_is_opened_anew_once_and_knows_what_the_lost_one_knew() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.answer()) as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        await one.answer(one.call({"uri": "file:///a"}, method="resources/subscribe"))
        await one.answer(one.call({"level": "debug"}, method="logging/setLevel"))
        at.server.session.forget()
        answers = [await client.answer(client.call()) for client in (one, two)]
        assert all("result" in answer for answer in answers), "what surely did not run is sent again"
        assert len(at.server.sessions) == 2
        assert one.workflow.ended is None
        again = at.server.session
        assert [e.json["params"] for e in again.of("logging/setLevel")] == [{"level": "debug"}]
        assert [e.json["params"] for e in again.of("resources/subscribe")] == [{"uri": "file:///a"}]


async def test_what_may_have_run_is_not_sent_again() -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        call = client.call()
        (await at.server.got(CALLS)).cut()
        error = (await client.answer(call))["error"]
        assert (error["code"], error["data"]) == (-31002, {"executed": "unknown"})
        assert len(at.server.of(CALLS)) == 1


async def test_l13_a_server_that_became_another_ends_the_workflows_that_were_told_of_the_old_one() -> None:
    async with bench(reuse="user", on_request=echo) as at:
        client = await at.client(ALICE)
        at.server.result = {**at.server.result, "serverInfo": {"name": "memory", "version": "2"}}
        at.server.session.forget()
        await client.answer(client.call())
        await at.ended("upstream_changed")


async def test_r5_subscriptions_are_counted_and_updates_reach_who_asked_for_them() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.answer()) as at:
        one, two, three = [await at.client(ALICE) for _ in range(3)]
        readers = [await listening(client) for client in (one, two, three)]
        for client in (one, two):
            assert "result" in await client.answer(client.call({"uri": "file:///a"}, method="resources/subscribe"))
        assert len(at.server.of("resources/subscribe")) == 1
        at.server.session.tell(message("notifications/resources/updated", {"uri": "file:///a"}))
        for reader in readers[:2]:
            assert b"resources/updated" in (await some(reader))[0][1]
        assert await idle(readers[2])
        await one.answer(one.call({"uri": "file:///a"}, method="resources/unsubscribe"))
        assert not at.server.of("resources/unsubscribe")
        for reader in readers:
            reader.close()
        await at.pool.end(two.workflow, "deleted")
        assert (await at.server.got("resources/unsubscribe")).json["params"] == {"uri": "file:///a"}


@pytest.mark.parametrize("how", ["refused", "cancelled", "timed out"])
async def test_r5_a_subscription_stands_though_another_request_for_it_came_to_nothing(how: str) -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        reader = await listening(client)
        asked = [client.call({"uri": "file:///a"}, method="resources/subscribe", id=b"%d" % n) for n in (1, 2)]
        (await at.server.got("resources/subscribe")).answer()
        assert "result" in await client.answer(asked[0])
        if how == "refused":
            (await at.server.got("resources/subscribe", 2)).refuse(-32002, "too many")
        elif how == "cancelled":
            client.workflow.notify(notification("notifications/cancelled", {"requestId": 2}), {})
        else:
            at.clock.advance(400)
            await at.swept()
        assert "error" in await client.answer(asked[1])
        at.server.session.tell(message("notifications/resources/updated", {"uri": "file:///a"}))
        assert b"resources/updated" in (await some(reader))[0][1]
        reader.close()


async def test_r5_a_refused_subscription_is_nobodys() -> None:
    async with bench(reuse="user", on_request=lambda exchange: exchange.refuse(-32002, "no such resource")) as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        for client in (one, two):
            error = (await client.answer(client.call({"uri": "x"}, method="resources/subscribe")))["error"]
            assert error["code"] == -32002
        assert len(at.server.of("resources/subscribe")) == 2
        await settle()
        assert not at.server.of("resources/unsubscribe")


async def test_r5_what_the_server_watches_for_nobody_is_taken_back_though_the_last_request_for_it_was_refused() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        asked = [client.call({"uri": "file:///a"}, method="resources/subscribe") for client in (one, two)]
        (await at.server.got("resources/subscribe", 2)).answer()
        assert "result" in await two.answer(asked[1])
        assert "result" in await two.answer(two.call({"uri": "file:///a"}, method="resources/unsubscribe"))
        assert not at.server.of("resources/unsubscribe")
        at.server.of("resources/subscribe")[0].refuse(-32002, "too many")
        assert "error" in await one.answer(asked[0])
        assert (await at.server.got("resources/unsubscribe")).json["params"] == {"uri": "file:///a"}


async def test_r6_the_server_hears_the_most_verbose_level_and_each_workflow_its_own() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        at.server.on_request = lambda exchange: exchange.answer()
        await one.answer(one.call({"level": "error"}, method="logging/setLevel"))
        await two.answer(two.call({"level": "debug"}, method="logging/setLevel"))
        await one.answer(one.call({"level": "error"}, method="logging/setLevel"))
        assert [e.json["params"]["level"] for e in at.server.of("logging/setLevel")] == ["info", "debug"]
        at.server.on_request = None
        exchanges = one.call(), two.call()
        for n in (1, 2):
            upstream = await at.server.got(CALLS, n)
            for level in ("debug", "error"):
                upstream.say(message("notifications/message", {"level": level, "data": level}))
            upstream.answer()
        heard = [
            [told["params"]["level"] for told in await client.answers(exchange) if "method" in told]
            for client, exchange in zip((one, two), exchanges, strict=True)
        ]
        assert heard == [["error"], ["debug", "error"]]
        assert not at.counts["unattributed", "notifications/message"], "it is known whose that is"


@pytest.mark.parametrize("params", [{}, {"level": "loud"}, {"level": 3}])
async def test_a_level_that_is_none_is_refused(params: dict[str, Any]) -> None:
    async with bench(reuse="user") as at:
        client = await at.client(ALICE)
        assert (await client.answer(client.call(params, method="logging/setLevel")))["error"]["code"] == -32602
        assert (await client.answer(client.call({}, method="resources/subscribe")))["error"]["code"] == -32602


async def test_what_cannot_be_attributed_is_refused_and_counted_never_broadcast() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        readers = [await listening(client) for client in (one, two)]
        at.server.session.tell(message("elicitation/create", {"message": "who?"}, id=1))
        refused = (await at.server.got("response")).json
        assert (refused["id"], refused["error"]["code"]) == (1, -31005)
        at.server.session.tell(message("notifications/message", {"level": "info", "data": 1}))
        await settle()
        assert [await idle(reader) for reader in readers] == [True, True]
        assert at.counts["unattributed", "elicitation/create"] == 1
        assert at.counts["unattributed", "notifications/message"] == 1
        at.server.session.tell(message("notifications/tools/list_changed"))
        for reader in readers:
            assert b"list_changed" in (await some(reader))[0][1]
            reader.close()


async def test_tasks_are_not_offered_and_roots_are_nobodys() -> None:
    async with bench(reuse="user") as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}, "tasks": {}}}
        client = await at.client(ALICE)
        assert b"tasks" not in client.workflow.record.result
        beside = await at.client(ALICE)
        assert beside.workflow.record.result is client.workflow.record.result, "it may be large, and is held once"
        assert (await client.answer(client.call(method="tasks/list")))["error"]["code"] == -32601
        client.workflow.notify(notification("notifications/roots/list_changed"), {})
        client.workflow.notify(notification("notifications/progress", {"progressToken": "1:7", "progress": 1}), {})
        client.workflow.notify(notification("notifications/other"), {})
        await at.server.got("notifications/other")
        assert not at.server.of("notifications/roots/list_changed")
        assert not at.server.of("notifications/progress")


async def test_r15_a_call_that_asks_for_a_task_is_an_ordinary_one_where_tasks_are_not_offered() -> None:
    """Who declares no tasks ignores that one is asked for (Tasks, "Capability Negotiation")."""
    async with bench(reuse="user", on_request=echo) as at:
        client = await at.client(ALICE)
        asked = {"name": "x", "task": {"ttl": 1}, "arguments": {"task": 1}, "_meta": {"progressToken": "mine"}}
        assert (await client.answer(client.call(asked)))["result"]["structuredContent"] == {"task": 1}
        [came] = at.server.of("tools/call")
        assert came.json["params"] == {
            "name": "x",
            "arguments": {"task": 1},
            "_meta": {"progressToken": int(came.id)},
        }


async def test_progress_reaches_its_call_whatever_tokens_others_use() -> None:
    async with bench(reuse="user") as at:
        one, two = await at.client(ALICE), await at.client(ALICE)
        meta = {"_meta": {"progressToken": "p"}}
        exchanges = one.call(meta), two.call(meta)
        for n in (2, 1):
            upstream = await at.server.got(CALLS, n)
            token = upstream.json["params"]["_meta"]["progressToken"]
            at.server.session.tell(message("notifications/progress", {"progressToken": token, "progress": n}))
            upstream.answer()
        for n, (client, exchange) in enumerate(zip((one, two), exchanges, strict=True), 1):
            told = (await client.answers(exchange))[0]
            assert told["params"] == {"progressToken": "p", "progress": n}


async def test_a_first_session_that_cannot_be_opened_costs_its_workflow_and_is_tried_anew() -> None:
    async with bench(reuse="user") as at:
        at.server.unreachable = Overloaded("not now", limit="test")
        with pytest.raises(Overloaded):
            await at.client(ALICE)
        at.server.unreachable = None
        at.server.on_request = echo
        client = await at.client(ALICE)
        assert "result" in await client.answer(client.call())


async def opening(at: Bench, key: str) -> "tuple[asyncio.Task[Begun], Workflow]":
    """A workflow that waits for the session."""
    beginning = asyncio.create_task(begin(at.pool, ALICE, key=key))
    await settle()
    return beginning, next(workflow for workflow in at.pool.workflows if workflow.record.key == key)


async def test_a_workflow_that_ends_leaves_the_handshake_to_those_who_wait_for_it() -> None:
    async with bench(reuse="user") as at:
        at.server.pause("initialize")
        (gone, workflow), (stays, _) = await opening(at, "one"), await opening(at, "two")
        await at.pool.end(workflow, "deleted")
        with pytest.raises(WorkflowEnded):
            await gone
        at.server.let("initialize")
        assert (await stays).state == "created"
        assert len(at.server.of("initialize")) == 1
        assert not at.server.of("notifications/cancelled")


async def test_a_handshake_goes_on_when_all_who_wanted_it_have_gone() -> None:
    async with bench(reuse="user") as at:
        at.server.pause("connect")
        gone, workflow = await opening(at, "one")
        await at.pool.end(workflow, "deleted")
        at.server.pause("initialize")
        at.server.let("connect")
        handshake = await at.server.got("initialize")
        handshake.say(message("notifications/message", {"level": "info", "data": "nobody hears it"}))
        handshake.say(message("roots/list", id=1))
        assert (await at.server.got("response")).json["error"]["code"] == -31005
        left, workflow = await opening(at, "two")
        await at.pool.end(workflow, "deleted")
        for beginning in (gone, left):
            with pytest.raises(WorkflowEnded):
                await beginning
        at.server.let("initialize")
        assert (await begin(at.pool, ALICE, key="two")).state == "reset"
        assert len(at.server.of("initialize")) == 1


async def test_the_end_of_the_pool_ends_what_is_shared() -> None:
    async with bench(reuse="user") as at:
        await at.client(ALICE)
        sessions = at.server.sessions
    assert [session.is_closed for session in sessions] == [True]
