"""The old path: every call has an upstream session of its own, and nothing is kept between two calls (G11)."""

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

import anyio
import pytest
from harness.memory_wire import Exchange as Upstream
from harness.memory_wire import echo, message
from harness.muxing import ALICE, Bench, Client, begin, initialize, notification, response, settle
from harness.raw_http import Peer, serving
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux import initialization
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.errors import UpstreamUnreachable
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.statistics import Statistics
from trunkline.mux.upstream import Upstream as PoolUpstream
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

OldPath = Callable[..., AbstractAsyncContextManager[Bench]]

CALL = ["initialize", "notifications/initialized", "tools/call"]
HABITS = ["initialize", "notifications/initialized", "tools/list", "tools/call"]


def trace(at: Bench, session: int) -> list[str]:
    """What came in on one session, in order."""
    return [exchange.kind for exchange in at.server.sessions[session].exchanges]


def answer_lists(exchange: Upstream) -> None:
    """Answer the question for tools, and nothing else."""
    if exchange.kind == "tools/list":
        exchange.answer({"tools": []})


# The trace.


async def test_g11_a_session_is_opened_once_to_tell_what_the_server_is(old_path: OldPath) -> None:
    async with old_path() as at:
        said = initialize(capabilities={"roots": {}})
        begun = await begin(at.pool, message=said, session_headers={"X-Tenant": "1"})
        await at.closed()
        assert json.loads(begun.result) == at.server.result
        assert trace(at, 0) == ["initialize", "notifications/initialized"]
        assert at.server.sessions[0].headers == {"X-Tenant": "1"}
        assert at.pool.channels == []


@pytest.mark.parametrize("habits", [False, True])
async def test_g11_each_call_has_a_session_of_its_own(old_path: OldPath, habits: bool) -> None:
    async with old_path(habits=habits) as at:
        client = await at.client()
        for n in range(1, 4):
            exchange = client.call({"n": n}, id=b"%d" % n)
            if habits:
                (await at.server.got("tools/list", n)).answer({"tools": []})
            (await at.server.got("tools/call", n)).answer({"n": n})
            assert await client.answer(exchange) == {"jsonrpc": "2.0", "id": n, "result": {"n": n}}
            await at.closed(n + 1)
            session = at.server.sessions[n]
            assert trace(at, n) == (HABITS if habits else CALL)
            assert session.is_listening is habits, "the GET stream is one of the habits"
            assert session.of("tools/call")[0].json["params"] == {"n": n}
        assert len(at.server.sessions) == 4
        assert client.told == ["bypass"] * 3
        assert at.counts["pool_requests", "x", "bypass"] == 4
        assert at.counts["calls", "x", "tools/call", "ok"] == 3


@pytest.mark.parametrize("habits", [False, True])
async def test_g11_over_http_a_call_is_four_requests_and_with_the_habits_six(habits: bool) -> None:
    seen: list[str] = []
    listening = anyio.Event()

    async def serve(peer: Peer) -> None:
        while True:
            start, headers, body = await peer.request()
            asked = json.loads(body) if body else {}
            seen.append(" ".join(filter(None, (start.split()[0], asked.get("method"), headers.get("mcp-session-id")))))
            if start.startswith("GET"):  # an event stream without an event
                listening.set()
                await peer.say(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
                await peer.closed()
                return
            if asked.get("method") == "tools/list":
                await listening.wait()  # that of the two which comes first is not fixed
            result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": {}}
            text = json.dumps({"jsonrpc": "2.0", "id": asked.get("id"), "result": result}) if "id" in asked else ""
            status = "200 OK\r\nMcp-Session-Id: s1" if asked.get("method") == "initialize" else "200 OK"
            status = status if text or start.startswith("DELETE") else "202 Accepted"
            head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
            await peer.say(f"{head}{text}".encode())

    async with serving(serve) as server:
        statistics = Statistics()
        connector = StreamableHTTPConnector("x", server.url, statistics)
        upstream = PoolUpstream("x", connector, Pooling(), make_line=lambda make: PerRequestLine(make, habits=habits))
        pool = Pool({"x": upstream}, MemoryDirectory(), pooling=Pooling(), statistics=statistics)
        async with pool.running():
            client = Client((await begin(pool)).workflow)
            await client.answer(client.call())
        await connector.close()

    opened, called = seen[:3], seen[3:]
    assert opened == ["POST initialize", "POST notifications/initialized s1", "DELETE s1"]
    assert called[:2] == ["POST initialize", "POST notifications/initialized s1"]
    assert called[-2:] == ["POST tools/call s1", "DELETE s1"]
    assert sorted(called[2:-2]) == (["GET s1", "POST tools/list s1"] if habits else [])
    kinds = ["initialize", "initialized", "call", "delete", "get"]
    counted = [statistics.counts["upstream_requests", "x", kind] for kind in kinds]
    assert counted == ([2, 2, 2, 2, 1] if habits else [2, 2, 1, 2, 0])


@pytest.mark.parametrize("habits", [False, True])
async def test_g11_with_the_habits_the_end_of_the_session_comes_before_the_answer(
    old_path: OldPath, habits: bool
) -> None:
    async with old_path(habits=habits) as at:
        at.server.on_request = echo
        client = await at.client()
        await at.closed()
        at.server.pause("close")
        exchange = client.call({"n": 1}, id=b"1")
        await at.server.reached("close", 2)
        await settle()
        assert exchange.is_decided is not habits
        at.server.let("close")
        assert "result" in await client.answer(exchange)


async def test_the_handshake_of_a_call_is_that_of_its_client(old_path: OldPath) -> None:
    async with old_path() as at:
        at.server.on_request = echo
        said = initialize(capabilities={"roots": {"listChanged": True}}, vendor={"n": 10**29})
        client = Client((await begin(at.pool, message=said, session_headers={"X-Tenant": "1"})).workflow)
        await client.answer(client.call(headers={"X-Class": "2"}))
        first, second = at.server.sessions
        assert first.exchanges[0].members["params"] == second.exchanges[0].members["params"]
        assert second.headers == {"X-Tenant": "1"}
        assert second.of("tools/call")[0].headers == {"x-tenant": "1", "x-class": "2"}


async def test_what_the_habits_ask_is_told_to_nobody(old_path: OldPath) -> None:
    async with old_path(habits=True) as at:
        client = await at.client()
        exchange = client.call()
        listed = await at.server.got("tools/list")
        listed.say(message("notifications/progress", {"progressToken": 0, "progress": 1}))
        listed.refuse(-32601, "no tools here")
        (await at.server.got("tools/call")).answer({"n": 1})
        assert [answer["result"] for answer in await client.answers(exchange)] == [{"n": 1}]


async def test_what_belongs_to_a_call_reaches_it(old_path: OldPath) -> None:
    async with old_path() as at:
        client = await at.client(message=initialize(capabilities={"elicitation": {}}))
        exchange = client.call({"_meta": {"progressToken": "mine"}})
        upstream = await at.server.got("tools/call")
        token = upstream.json["params"]["_meta"]["progressToken"]
        upstream.say(message("notifications/progress", {"progressToken": token, "progress": 1}))
        upstream.say(message("elicitation/create", {"message": "who?"}, id="s1"))
        client.workflow.respond(response(1, {"action": "decline"}))
        assert (await at.server.got("response")).json["id"] == "s1"
        upstream.answer()
        progress, question, last = await client.answers(exchange)
        assert progress["params"]["progressToken"] == "mine"
        assert question["method"] == "elicitation/create"
        assert last["id"] == 1


async def test_a_notification_has_no_session_to_go_to(old_path: OldPath) -> None:
    async with old_path() as at:
        client = await at.client()
        await at.closed()
        client.workflow.notify(notification("notifications/roots/list_changed"), {})
        await settle()
        assert len(at.server.sessions) == 1


# Many at once.


@pytest.mark.parametrize("habits", [False, True])
async def test_calls_at_once_are_independent_of_each_other(old_path: OldPath, habits: bool) -> None:
    async with old_path(habits=habits) as at:
        at.server.on_request = answer_lists
        client, other = await at.client(ALICE), await at.client()
        exchanges = [who.call({"n": n}, id=b"7") for n in range(5) for who in (client, other)]
        await at.server.got("tools/call", 10)
        for upstream in reversed(at.server.of("tools/call")):
            upstream.answer(upstream.json["params"])
        for n, exchange in enumerate(exchanges):
            who = (client, other)[n % 2]
            assert await who.answer(exchange) == {"jsonrpc": "2.0", "id": 7, "result": {"n": n // 2}}
        await at.closed(12)
        assert len(at.server.sessions) == 12


async def test_g10_the_calls_of_a_workflow_are_limited(old_path: OldPath) -> None:
    async with old_path(max_inflight_per_workflow=2) as at:
        client = await at.client()
        exchanges = [client.call(id=b"%d" % n) for n in range(3)]
        refused = await client.answer(exchanges.pop())
        assert refused["error"]["data"] == {"limit": "max_inflight_per_workflow"}
        await at.server.got("tools/call", 2)
        at.server.on_request = echo
        for upstream in at.server.of("tools/call"):
            upstream.answer()
        for exchange in exchanges:
            assert "result" in await client.answer(exchange)
        assert "result" in await client.answer(client.call())


# Failures.


FAILURES = {
    "error": (lambda upstream: upstream.refuse(-32000, "no"), -32000),
    "cut": (lambda upstream: upstream.cut(), -31002),
    "unreachable": (lambda upstream: upstream.cut(UpstreamUnreachable("HTTP 503", executed="no")), -31001),
    "no json": (lambda upstream: upstream.say(b"no json"), -32603),
}


@pytest.mark.parametrize("habits", [False, True])
@pytest.mark.parametrize("how", FAILURES)
async def test_a_call_that_fails_fails_alone_and_its_session_is_closed(
    old_path: OldPath, how: str, habits: bool
) -> None:
    async with old_path(habits=habits) as at:
        at.server.on_request = answer_lists
        fail, code = FAILURES[how]
        client = await at.client()
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        await at.server.got("tools/call", 2)
        first, second = at.server.of("tools/call")
        fail(first)
        assert (await client.answer(hit))["error"]["code"] == code
        await at.closed(2)
        assert at.server.live == [second.session]
        second.answer()
        assert "result" in await client.answer(other)
        await at.closed(3)
        assert client.workflow.ended is None


async def test_a_server_that_cannot_be_reached_opens_no_workflow(old_path: OldPath) -> None:
    async with old_path() as at:
        at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
        with pytest.raises(UpstreamUnreachable):
            await begin(at.pool)
        await at.ended("not_opened")


async def test_a_call_without_an_answer_is_cancelled_in_time_and_its_session_closed(old_path: OldPath) -> None:
    async with old_path(request_timeout=5) as at:
        client = await at.client()
        exchange = client.call()
        await at.server.got("tools/call")
        at.clock.advance(5)
        assert (await client.answer(exchange))["error"]["code"] == -31004
        await at.closed(2)
        assert trace(at, 1) == [*CALL, "notifications/cancelled"]


async def test_where_the_server_is_stateless_a_call_that_surely_did_not_run_is_sent_again(old_path: OldPath) -> None:
    async with old_path(stateless=True) as at:
        client = await at.client()
        at.server.pause("establish")
        exchange = client.call({"n": 1})
        await at.server.reached("establish", 2)
        at.server.session.forget()
        at.server.on_request = echo
        at.server.let("establish")
        assert "result" in await client.answer(exchange)
        await at.closed(3)
        assert [trace(at, n) for n in (1, 2)] == [CALL[:2], CALL]


HANDSHAKES = {
    "unreachable": -31001,
    "refused": -32000,
    "not initialized": -31001,
    "defective": -32603,
}


@pytest.mark.parametrize("habits", [False, True])
async def test_a_session_that_the_server_forgot_costs_its_own_call_only(old_path: OldPath, habits: bool) -> None:
    async with old_path(habits=habits) as at:
        client = await at.client()
        at.server.pause("establish")
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        await at.server.reached("establish", 3)
        at.server.sessions[1].forget()
        at.server.on_request = answer_lists
        at.server.let("establish")
        error = (await client.answer(hit))["error"]
        assert (error["code"], error["data"]) == (-31002, {"executed": "no"})
        (await at.server.got("tools/call")).answer()
        assert "result" in await client.answer(other)
        assert client.workflow.ended is None


@pytest.mark.parametrize("habits", [False, True])
@pytest.mark.parametrize("how", HANDSHAKES)
async def test_a_handshake_that_fails_costs_its_own_call_only(
    old_path: OldPath, how: str, habits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with old_path(habits=habits) as at:
        at.server.on_request = answer_lists
        client = await at.client()
        running = client.call(id=b"1")
        upstream = await at.server.got("tools/call")
        match how:
            case "unreachable":
                at.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
            case "refused":
                at.server.answers_initialize = lambda exchange: exchange.refuse(-32000, "not today")
            case "not initialized":
                at.server.refuses_initialized = True
            case "defective":
                at.server.unreachable = ValueError("a defect")  # type: ignore[assignment]
        failed = await client.answer(client.call(id=b"2"))
        assert failed["id"] == 2
        assert failed["error"]["code"] == HANDSHAKES[how]
        upstream.answer()
        assert "result" in await client.answer(running)
        assert client.workflow.ended is None
        assert ("the channel failed" in caplog.text) is (how == "defective")


async def test_g9_a_handshake_that_takes_too_long_fails_its_call(
    old_path: OldPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with old_path() as at:
        client = await at.client()
        at.server.pause("initialize")
        with monkeypatch.context() as hasty:
            hasty.setattr(initialization, "OPEN_SECONDS", 0.02)
            assert (await client.answer(client.call()))["error"]["code"] == -31001
        at.server.let("initialize")
        at.server.on_request = echo
        assert "result" in await client.answer(client.call())


async def test_a_question_that_nobody_answered_ends_with_its_call(old_path: OldPath) -> None:
    async with old_path() as at:
        client = await at.client(message=initialize(capabilities={"elicitation": {}}))
        for n in range(3):
            exchange = client.call()
            upstream = await at.server.got("tools/call", n + 1)
            upstream.say(message("elicitation/create", {"message": "who?"}, id=1))
            upstream.answer()
            await client.answers(exchange)
            await at.closed(n + 2)
        assert len(client.workflow.questions) == 0
