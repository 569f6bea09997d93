"""Requests of 2026-07-28 at the endpoint: admission, what goes on, and what comes back."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from harness import modern_endpoint
from harness.asgi_client import Answer, ASGIClient, asgi_client
from harness.duplex_clients import initialize
from harness.endpoint_bench import NEWEST, authenticate, call, front, shake_hands
from harness.modern_endpoint import (
    DONE,
    META,
    NOTE,
    SPOKEN,
    body_of,
    both_eras,
    headers_of,
    requests_to,
)
from harness.muxing import bench
from harness.ports import free_port
from harness.upstream_scripted import (
    Json,
    OpenStream,
    Pause,
    Play,
    Refuse,
    Reply,
    ScriptedUpstream,
    Send,
)
from trunkline.mux.fairness import Turnstile
from trunkline.mux.modern import DISCOVER, LISTEN, REVISIONS, VERSION_KEY
from trunkline.mux.routing import LEGACY, MODERN
from trunkline.transports import EndpointConfig, Guard
from trunkline.transports import modern as under_test
from trunkline.transports.admission import Admission
from trunkline.transports.modern import ModernEndpoint

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, params=[False, True], ids=["in a task", "at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered in a task, or by callbacks."""
    monkeypatch.setattr(modern_endpoint, "offers_whole", request.param)


@asynccontextmanager
async def modern_only(
    discover: Play = SPOKEN, *, admission: Admission | None = None, **options: Any
) -> AsyncIterator[ASGIClient]:
    """An endpoint of this era alone."""
    more = {} if admission is None else {"admission": admission}
    async with (
        ScriptedUpstream({"server/discover": [discover]}) as upstream,
        requests_to(upstream.url, **options) as (server, requests, _),
        bench() as here,
        asgi_client(
            ModernEndpoint(EndpointConfig("x", here.pool, Guard(loopback=True), authenticate, **more), requests)
        ) as client,
    ):
        await server.revisions()
        yield client


# What goes on, and what comes back.


async def test_g2_a_request_and_its_answer_pass_byte_for_byte() -> None:
    body = (
        b'{ "jsonrpc":"2.0", "id" : 123456789012345678901234567890, "method":"tools/call","vendor":1.50,\n "params":'
        b'{"name":"\\u0074","requestState":"s \\/","inputResponses":{"a":{"action":"accept"}},"_meta":'
        b'{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientCapabilities":{},'
        b'"vendor/x":[1e400]}}}'
    )
    reply = '{"jsonrpc":"2.0", "id":$ID,"result":{"resultType":"input_required","requestState":"\\u0041","x":1.50}}'
    sent = headers_of(
        mcp_name="=?base64?dA==?=",
        mcp_param_region="eu",
        mcp_session_id="s",
        last_event_id="e",
        authorization="alice",
        x_tenant="a",
        x_other="b",
    )
    async with both_eras([Json(reply)], headers=["x-tenant"]) as here:
        answer = await here.client.post(body, sent)
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert not {"mcp-session-id", "trunkline-pool"} & answer.headers.keys()
        assert await answer.body() == reply.replace("$ID", "123456789012345678901234567890").encode()
        (came,) = here.upstream.of("tools/call")
        assert await here.outcome(answer) == "ok"
        assert here.counts["upstream_requests", "x", "call"] == 1
    assert came.body == body
    got = {name: came.headers.get(name) for name in ("mcp-protocol-version", "mcp-method", "mcp-name", "x-tenant")}
    assert got == {
        "mcp-protocol-version": MODERN,
        "mcp-method": "tools/call",
        "mcp-name": "t",
        "x-tenant": "a",
    }
    assert came.headers["mcp-param-region"] == "eu"
    assert came.headers["authorization"] == "Bearer ours"
    assert not {"mcp-session-id", "last-event-id", "x-other"} & came.headers.keys()


@pytest.mark.parametrize(
    ("code", "status"), [(-32601, 404), (-32602, 400), (-32021, 400), (-32603, 200), (-32000, 200)]
)
async def test_e20_an_error_of_the_server_keeps_its_words_and_gets_its_status(code: int, status: int) -> None:
    async with both_eras([Refuse(code, "why", {"a": 1})]) as here:
        answer = await here.call(id="i")
        assert answer.status == status
        assert await answer.json() == {
            "jsonrpc": "2.0",
            "id": "i",
            "error": {"code": code, "message": "why", "data": {"a": 1}},
        }
        assert await here.outcome(answer) == "error"


async def test_h5_a_stream_is_passed_on_event_by_event() -> None:
    play: Play = [OpenStream(), Send("", event_id="1"), Send(NOTE, event_id="2"), Pause("gate"), Reply(DONE, "3")]
    async with both_eras(play) as here:
        answer = await here.call()
        assert (answer.status, answer.is_stream) == (200, True)
        assert answer.headers["x-accel-buffering"] == "no"
        first = await answer.event()
        assert first is not None
        assert json.loads(first.data) == NOTE
        here.upstream.open("gate")
        (last,) = await answer.messages()
        assert last == {"jsonrpc": "2.0", "id": 1, "result": DONE}
        assert b"id: " not in answer.raw
        assert await here.outcome(answer) == "ok"


async def test_h5_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "KEEP_ALIVE_SECONDS", 0.01)
    async with both_eras([OpenStream(), Pause("gate"), Reply(DONE)]) as here:
        answer = await here.call()
        await answer.came(b": keep-alive\n\n: keep-alive\n\n")
        here.upstream.open("gate")
        assert len(await answer.messages()) == 1


async def test_l28_subscriptions_are_streamed() -> None:
    ack = {"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {"_meta": {"a/b": 7}}}
    async with both_eras(script={LISTEN: [[OpenStream(), Send(ack), Pause("gate"), Send(NOTE)]]}) as here:
        answer = await here.call(LISTEN)
        first = await answer.event()
        assert first is not None
        assert json.loads(first.data) == ack
        here.upstream.open("gate")
        assert await answer.messages() == [NOTE]
        assert await here.outcome(answer, LISTEN) == "ok"


# Refusals.


@pytest.mark.parametrize(
    ("body", "headers", "code", "reason"),
    [
        (body_of(), headers_of("tools/list"), -32020, "header_mismatch"),
        (body_of(), {"mcp-protocol-version": MODERN}, -32020, "header_mismatch"),
        (body_of(), {}, -32020, "header_mismatch"),
        (body_of(name="t"), headers_of(mcp_name="T"), -32020, "header_mismatch"),
        (body_of(meta={}), headers_of(), -32602, "invalid_params"),
        (body_of(meta={**META, VERSION_KEY: "2027-01-01"}), headers_of(mcp_protocol_version="2027-01-01"), -32022, ""),
        (body_of(id=1.5), headers_of(), -32600, "invalid_request"),
        ([body_of()], headers_of(), -32600, "invalid_request"),
        ({"jsonrpc": "2.0", "id": 1, "result": {}}, headers_of(), -32600, "invalid_request"),
        (b"{", headers_of(), -32700, "parse_error"),
    ],
)
async def test_l19_l20_h2_what_is_no_request_of_this_era_does_not_go_on(
    body: Any, headers: dict[str, str], code: int, reason: str
) -> None:
    async with both_eras() as here:
        answer = await here.client.post(body, headers)
        error = await answer.json()
        assert (answer.status, error["error"]["code"]) == (400, code)
        assert error["id"] == (1 if code in (-32020, -32602, -32022) else None)
        if code == -32022:
            assert error["error"]["data"] == {"supported": [MODERN], "requested": "2027-01-01"}
        assert here.counts["refused", reason or "unsupported_revision"] == 1
        assert not here.upstream.of("tools/call")


async def test_h2_a_header_that_comes_twice_is_refused() -> None:
    async with both_eras() as here:
        scope_headers = [(n.encode(), v.encode()) for n, v in {**here.client.headers, **headers_of()}.items() if v]
        answer = Answer([json.dumps(body_of()).encode()], endless=False)
        scope = {"type": "http", "method": "POST", "path": "/mcp", "headers": [*scope_headers, (b"mcp-method", b"x")]}
        await here.client.app(scope, answer.receive, answer.send)
        assert (await answer.json())["error"]["code"] == -32020


async def test_a_page_of_another_site_that_hides_its_origin_is_refused() -> None:
    async with both_eras() as here:
        assert (await here.call(sec_fetch_site="cross-site")).status == 403
        await shake_hands(here.client)
        for method, body in (("POST", call()), ("DELETE", b"")):
            assert (await here.client.ask(method, body, {"sec-fetch-site": "cross-site"})).status == 403
        assert not here.upstream.of("tools/call")


async def test_a_header_that_cannot_go_on_is_refused() -> None:
    async with both_eras(headers=["x-tenant"]) as here:
        answer = await here.call(x_tenant="a\x01b")
        assert (answer.status, (await answer.json())["error"]["code"]) == (400, -32600)
        assert not here.upstream.of("tools/call")


async def test_a_server_of_sessions_is_answered_for_honestly() -> None:
    async with both_eras(discover=[Refuse(-32601)]) as here:
        answer = await here.call(id="i")
        error = await answer.json()
        assert (answer.status, error["id"], error["error"]["code"]) == (400, "i", -32022)
        assert error["error"]["data"] == {"supported": list(LEGACY), "requested": MODERN}
        assert [came.kind for came in here.upstream.received] == ["server/discover"]  # it was asked once


async def test_a_server_that_is_away_is_no_server_of_sessions() -> None:
    async with (
        requests_to(f"http://127.0.0.1:{free_port()}/mcp") as (_, requests, counts),
        front(options={"modern": requests}) as ahead,
    ):
        answer = await ahead.client.post(body_of(), headers_of())
        assert (answer.status, (await answer.json())["error"]["code"]) == (200, -31001)
        assert counts["calls", "x", "tools/call", "upstream_unreachable"] == 1


async def test_e13_a_notification_is_acknowledged_and_dropped() -> None:
    cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}}
    async with both_eras([OpenStream(), Pause("gate"), Reply(DONE)]) as here:
        running = await here.call()
        answer = await here.client.post(cancel, {"mcp-protocol-version": MODERN})
        assert (answer.status, await answer.body()) == (202, b"")
        here.upstream.open("gate")
        assert len(await running.messages()) == 1
        assert not here.upstream.of("notifications/cancelled")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_h1_there_is_nothing_but_post(method: str) -> None:
    async with both_eras() as here, modern_only() as alone:
        answer = await here.client.ask(method, b"", {"mcp-protocol-version": MODERN, "accept": "application/json"})
        assert (answer.status, answer.headers["allow"]) == (405, "POST")
        answer = await alone.ask(method, b"")
        assert (answer.status, answer.headers["allow"]) == (405, "POST, OPTIONS")


async def test_sessions_are_served_beside() -> None:
    async with both_eras() as here:
        await shake_hands(here.client)
        modern = await here.call()
        assert (await modern.json())["result"] == DONE
        # A session goes on, whatever its messages hold: its header tells.
        answer = await here.client.delete({"mcp-protocol-version": NEWEST})
        assert answer.status == 200
        assert here.counts["upstream_requests", "x", "call"] == 1


async def test_a_message_of_a_session_is_not_taken_for_one_of_this_era() -> None:
    async with both_eras() as here:
        here.client.headers["mcp-session-id"] = "unknown"
        assert (await here.client.post(body_of())).status == 404
        assert not here.upstream.of("tools/call")


# This era alone.


async def test_with_this_era_alone_a_handshake_is_told_what_is_supported() -> None:
    async with modern_only() as client:
        for body, headers, spelled, asked in (
            (initialize(), {}, 0, NEWEST),
            (call(5), {"mcp-protocol-version": NEWEST, "mcp-session-id": "s"}, 5, NEWEST),
            (b"{", {"mcp-protocol-version": NEWEST}, None, NEWEST),
            (call(6), {}, 6, ""),
        ):
            answer = await client.post(body, headers)
            error = await answer.json()
            assert (answer.status, error["id"], error["error"]["code"]) == (400, spelled, -32022)
            assert error["error"]["data"] == {"supported": [MODERN], "requested": asked}


async def test_with_this_era_alone_requests_pass() -> None:
    async with modern_only() as client:
        answer = await client.post(body_of("tools/list"), headers_of("tools/list"))
        assert (await answer.json())["result"] == {"tools": []}
        assert (await client.post(body_of(), {**headers_of(), "accept": "application/json"})).status == 406
        assert (await client.post(body_of(), {**headers_of(), "content-type": "text/plain"})).status == 415


async def test_with_this_era_alone_a_server_of_sessions_is_of_no_use() -> None:
    async with modern_only([Refuse(-32601)]) as client:
        answer = await client.post(body_of(), headers_of())
        assert (await answer.json())["error"]["data"] == {"supported": [], "requested": MODERN}


async def test_with_this_era_alone_nothing_else_is_named() -> None:
    both = {**SPOKEN[0].result, "supportedVersions": ["2025-11-25", MODERN, "2027-01-01"]}
    async with modern_only([Reply(both)], offers=REVISIONS) as client:
        told = await (await client.post(body_of(DISCOVER), headers_of(DISCOVER))).json()
        assert told["result"] == {**both, "supportedVersions": [MODERN]}
        meta = {**META, VERSION_KEY: "2027-01-01"}
        refused = await client.post(body_of(meta=meta), headers_of(mcp_protocol_version="2027-01-01"))
        assert (await refused.json())["error"]["data"] == {"supported": [MODERN], "requested": "2027-01-01"}


async def test_with_this_era_alone_users_take_turns() -> None:
    admission = Admission(Turnstile(per_round=1, max_waiting=2))
    async with modern_only(admission=admission) as client:
        answers = [client.start("POST", body_of("tools/list", n), headers_of("tools/list")) for n in range(6)]
        texts = [await answer.json() for answer in answers]
        assert [text["id"] for text in texts] == list(range(6))
        refused = [text["error"] for text in texts if "error" in text]
        assert {(error["code"], error["data"]["limit"]) for error in refused} == {(-31003, "max_waiting")}
