"""Requests of 2026-07-28 at the endpoint: admission, what goes on and what comes back, and clients that leave."""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from harness.asgi_client import Answer, ASGIClient, asgi_client
from harness.endpoint_bench import NEWEST, authenticate, call, front, initialize, shake_hands
from harness.muxing import bench
from harness.ports import free_port
from harness.upstream_scripted import (
    Cut,
    Hang,
    Json,
    OpenStream,
    Pause,
    Play,
    Raw,
    Refuse,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
    text_result,
)
from trunkline.mux.envelope import Envelope
from trunkline.mux.fairness import Turnstile
from trunkline.mux.modern import CAPABILITIES_KEY, DISCOVER, LISTEN, REVISIONS, VERSION_KEY
from trunkline.mux.ports import Headers, Span
from trunkline.mux.routing import LEGACY, MODERN
from trunkline.mux.statistics import Statistics
from trunkline.transports import EndpointConfig, Guard, asgi
from trunkline.transports import modern as under_test
from trunkline.transports.admission import Admission
from trunkline.transports.asgi import Grant
from trunkline.transports.modern import ModernEndpoint, ModernRequests
from trunkline.transports.tracing import Tracer
from trunkline.transports.upstream.modern_http import ModernHTTPServer
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

META = {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}
SPOKEN: Play = [Reply({"resultType": "complete", "supportedVersions": [MODERN], "capabilities": {}})]
NOTE = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}}
DONE = {"resultType": "complete", "content": []}
ANSWERED: Play = [Reply(DONE)]


def body_of(method: str = "tools/call", id: Any = 1, meta: Any = META, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": method, "params": {"_meta": meta, **params}}


def headers_of(method: str = "tools/call", **more: str) -> dict[str, str]:
    return {"mcp-protocol-version": MODERN, "mcp-method": method, **{n.replace("_", "-"): v for n, v in more.items()}}


class JSONHead(OpenStream):
    """The head of a body of JSON, whose bytes follow."""

    def __init__(self, size: int) -> None:
        super().__init__({"content-type": "application/json", "content-length": str(size)})


class Here:
    """A server, and clients of what stands before it."""

    def __init__(self, upstream: ScriptedUpstream, client: ASGIClient, requests: ModernRequests, counts: Any) -> None:
        self.upstream = upstream
        self.client = client
        self.requests = requests
        self.counts = counts

    async def call(self, method: str = "tools/call", id: Any = 1, **headers: str) -> Answer:
        return await self.client.post(body_of(method, id), headers_of(method, **headers))

    def start(self, method: str = "tools/call", **headers: str) -> Answer:
        return self.client.start("POST", body_of(method), headers_of(method, **headers))

    async def outcome(self, answer: Answer, method: str = "tools/call") -> str:
        """How the one request of this method ended, as it was counted."""
        await answer.over()
        (found,) = [key[3] for key in self.counts if key[:3] == ("calls", "x", method)]
        return str(found)


@asynccontextmanager
async def requests_to(
    url: str,
    *,
    max_inflight: int = 64,
    headers: Sequence[str] = (),
    offers: Sequence[str] = (*LEGACY, *REVISIONS),
    tracer: Tracer | None = None,
) -> AsyncIterator[tuple[ModernHTTPServer, ModernRequests, Any]]:
    statistics = Statistics()
    connector = StreamableHTTPConnector("x", url, statistics, headers={"Authorization": "Bearer ours"})
    upstream = ModernHTTPServer("x", connector.http, connector.headers, statistics, timeout=10, offers=offers)
    requests = ModernRequests("x", upstream, statistics, max_inflight=max_inflight, headers=headers, tracer=tracer)
    try:
        yield upstream, requests, statistics.counts
    finally:
        await requests.close()


@asynccontextmanager
async def both_eras(
    play: Play = ANSWERED,
    *,
    discover: Play = SPOKEN,
    script: Mapping[str, Sequence[Play]] | None = None,
    **options: Any,
) -> AsyncIterator[Here]:
    """An endpoint of both eras before a server that plays this for every call."""
    plays = {"server/discover": [discover], "tools/call": [play], **(script or {})}
    async with (
        ScriptedUpstream(plays) as upstream,
        requests_to(upstream.url, **options) as (server, requests, counts),
        front(options={"modern": requests}) as ahead,
    ):
        await server.revisions()
        yield Here(upstream, ahead.client, requests, counts)


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


# Clients that leave, limits, and what breaks.


@pytest.mark.parametrize("play", [[Pause("here"), Hang()], [OpenStream(), Send(NOTE), Pause("here"), Hang()]])
async def test_e13_a_client_that_leaves_cancels(play: Play) -> None:
    async with both_eras(play) as here:
        answer = here.start()
        await here.upstream.reached("here")
        answer.leave()
        await here.upstream.until(lambda: here.upstream.disconnects == 1)
        assert await here.outcome(answer) == "cancelled"
        assert here.requests.inflight == 0


async def test_e13_a_client_that_leaves_before_its_request_could_be_sent_cancels_it() -> None:
    discover: Play = [Pause("probe"), *SPOKEN]
    async with (
        ScriptedUpstream({"server/discover": [discover]}) as upstream,
        requests_to(upstream.url) as (_, requests, counts),
        front(options={"modern": requests}) as ahead,
    ):
        leaving, staying = (ahead.client.start("POST", body_of(), headers_of()) for _ in range(2))
        await upstream.reached("probe")
        leaving.leave()
        await leaving.seen_to_leave()
        upstream.open("probe")
        assert (await staying.json())["result"] == text_result("ok")
        await leaving.over()
        assert len(upstream.of("tools/call")) == 1
        assert counts["calls", "x", "tools/call", "cancelled"] == 1


async def test_g10_the_requests_of_a_principal_are_bounded() -> None:
    async with both_eras([Pause("gate"), Reply(DONE)], max_inflight=2) as here:
        first, second = (here.start(authorization="alice") for _ in range(2))
        await here.upstream.reached("gate", 2)
        refused = await here.call(authorization="alice")
        error = (await refused.json())["error"]
        assert (refused.status, error["code"], error["data"]) == (200, -31003, {"limit": "max_inflight_per_workflow"})
        assert here.counts["refused", "max_inflight_per_workflow"] == 1
        other = here.start(authorization="bob")
        await here.upstream.reached("gate", 3)
        here.upstream.open("gate")
        for answer in (first, second, other):
            assert (await answer.json())["result"] == DONE
            await answer.over()
        assert (await (await here.call(authorization="alice")).json())["result"] == DONE


async def test_g10_streams_of_subscriptions_are_bounded_and_take_no_place_of_a_call() -> None:
    script: dict[str, Sequence[Play]] = {LISTEN: [[OpenStream(), Send(NOTE), Hang()]]}
    async with both_eras(script=script, max_inflight=2) as here:
        listening = [await here.call(LISTEN, n) for n in range(2)]
        refused = await here.call(LISTEN)
        assert (await refused.json())["error"]["data"] == {"limit": "max_inflight_per_workflow"}
        assert (await (await here.call()).json())["result"] == DONE
        assert here.requests.inflight == 0, "no call waits for an answer"
        listening[0].leave()
        await listening[0].over()
        assert (await here.call(LISTEN)).is_stream


async def test_g1_the_same_id_may_be_under_way_many_times() -> None:
    async with both_eras(
        [Pause("gate"), Json('{"jsonrpc":"2.0","id":$ID,"result":{"resultType":"complete"}}')]
    ) as here:
        answers = [here.start() for _ in range(64)]
        await here.upstream.reached("gate", 64)
        here.upstream.open("gate")
        for answer in answers:
            assert (await answer.json())["id"] == 1
            await answer.over()
        assert not here.requests._passages, "nothing is kept of what has ended"


@pytest.mark.parametrize(
    ("play", "status", "code"),
    [
        ([Status(404, "gone")], 200, -31001),
        ([Status(401)], 200, -31001),
        ([Status(202)], 200, -32603),
        ([Json("[]")], 200, -32603),
        ([JSONHead(9), Cut()], 200, -31002),
        ([JSONHead(200_000), Raw(b" " * 150_000), Cut()], 200, -31002),
        ([Json('{"jsonrpc":"2.0","id":"another","result":{}}')], 200, -32603),
    ],
)
async def test_g9_an_answer_that_is_none_is_an_error(play: Play, status: int, code: int) -> None:
    async with both_eras(play) as here:
        answer = await here.call(id="i")
        error = await answer.json()
        assert (answer.status, error["id"], error["error"]["code"]) == (status, "i", code)


class Traced:
    """Traces calls, and keeps how each ended."""

    def __init__(self) -> None:
        self.ends: list[str] = []

    def begin(self, server: str, message: Envelope, context: Headers, *who: object) -> tuple[Span, Headers]:
        return self, context

    def ended(self, outcome: str) -> None:
        self.ends.append(outcome)


async def test_how_a_request_ended_is_told_to_who_traces_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    traced = Traced()
    async with both_eras(script={"tools/call": [ANSWERED, [Status(404, "gone")]]}, tracer=traced) as here:
        for _ in range(2):
            await (await here.call()).over()
    assert traced.ends == ["ok", "upstream_unreachable"]
    (line,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert line == "call ended: upstream_unreachable (the server answered HTTP 404)"


async def test_h6_a_broken_stream_ends_with_an_error() -> None:
    async with both_eras([OpenStream(), Send(NOTE), Cut()]) as here:
        answer = await here.call(id="i")
        note, error = await answer.messages()
        assert note == NOTE
        assert (error["id"], error["error"]["code"]) == ("i", -31002)
        assert error["error"]["data"] == {"executed": "unknown"}
        assert await here.outcome(answer) == "session_lost"


async def test_l28_a_broken_stream_of_subscriptions_ends_without_a_word() -> None:
    async with both_eras(script={LISTEN: [[OpenStream(), Send(NOTE), Cut()]]}) as here:
        answer = await here.call(LISTEN)
        assert await answer.messages() == [NOTE]
        assert await here.outcome(answer, LISTEN) == "session_lost"


async def test_g9_a_client_that_takes_nothing_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "SEND_SECONDS", 0.01)
    async with both_eras([OpenStream(), Pause("gate"), Send(NOTE), Hang()]) as here:
        answer = await here.call()
        answer.stalled = True
        here.upstream.open("gate")
        await answer.over()
        await here.upstream.until(lambda: here.upstream.disconnects == 1)
        assert here.counts["slow_clients", "x"] == 1


async def test_g9_a_client_that_does_not_even_take_the_error_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(under_test, "SEND_SECONDS", 0.01)
    async with both_eras([OpenStream(), Pause("gate"), Cut()]) as here:
        answer = await here.call()
        answer.stalled = True
        here.upstream.open("gate")
        assert await here.outcome(answer) == "session_lost"
        assert not answer.is_whole


# The end of the gateway.


async def test_g8_a_drain_waits_for_requests_but_not_for_subscriptions() -> None:
    script: dict[str, Sequence[Play]] = {LISTEN: [[OpenStream(), Send(NOTE), Hang()]]}
    async with both_eras([Pause("gate"), Reply(DONE)], script=script) as here:
        listening = await here.call(LISTEN)
        await listening.event()
        running = here.start()
        await here.upstream.reached("gate")
        done: list[bool] = []

        async def drain() -> None:
            done.append(await here.requests.drain(10))

        here.client._tasks.start_soon(drain)
        assert await listening.messages() == []
        refused = (await (await here.call()).json())["error"]
        assert (refused["code"], refused["data"]) == (-31002, {"executed": "no"})
        assert not done
        here.upstream.open("gate")
        assert (await running.json())["result"] == DONE
        await running.over()
        assert await here.requests.drain(0)
    assert done == [True]


async def test_g8_a_drain_ends_although_a_request_does_not() -> None:
    async with both_eras([Pause("gate"), Hang()]) as here:
        running = here.start()
        await here.upstream.reached("gate")
        assert not await here.requests.drain(0.01)
        assert (await running.json())["error"]["code"] == -31002


@pytest.mark.parametrize("is_known", [False, True])
async def test_g8_a_request_that_could_not_be_sent_before_the_end_of_a_drain_is_not_sent(is_known: bool) -> None:
    discover: Play = [Pause("probe"), *SPOKEN]
    async with (
        ScriptedUpstream({"server/discover": [SPOKEN, discover] if is_known else [discover]}) as upstream,
        requests_to(upstream.url) as (server, requests, _),
        front(options={"modern": requests}) as ahead,
    ):
        if is_known:
            await server.revisions()
            server.forget()
        waiting = ahead.client.start("POST", body_of(), headers_of())
        await upstream.reached("probe")
        assert not await requests.drain(0)
        error = (await waiting.json())["error"]
        assert (error["code"], error["data"]) == (-31002, {"executed": "no"})
        await waiting.over()
        assert await requests.drain(0)
        assert not upstream.of("tools/call")


# Settings that change.


async def test_a_successor_takes_what_comes_and_what_is_under_way_ends_in_order() -> None:
    script: dict[str, Sequence[Play]] = {LISTEN: [[OpenStream(), Send(NOTE), Hang()]]}
    async with (
        both_eras([Pause("gate"), Reply(DONE)], script=script) as here,
        ScriptedUpstream({"server/discover": [SPOKEN], "tools/call": [ANSWERED]}) as moved,
        requests_to(moved.url) as (_, successor, _),
    ):
        listening = await here.call(LISTEN)
        await listening.event()
        running = here.start()
        await here.upstream.reached("gate")
        here.requests.give_way(successor)
        done: list[bool] = []

        async def drain() -> None:
            done.append(await here.requests.drain(10))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(drain)
            assert await listening.messages() == []
            assert (await (await here.call()).json())["result"] == DONE
            assert (len(moved.of("tools/call")), len(here.upstream.of("tools/call")), done) == (1, 1, [])
            here.upstream.open("gate")
            assert (await running.json())["result"] == DONE
        assert done == [True]


async def test_a_stream_of_subscriptions_ends_with_the_identity_that_opened_it(monkeypatch: pytest.MonkeyPatch) -> None:
    grant = Grant()
    monkeypatch.setattr(asgi, "UNBOUND", grant)
    script: dict[str, Sequence[Play]] = {LISTEN: [[OpenStream(), Send(NOTE), Hang()]]}
    async with both_eras([Pause("gate"), Reply(DONE)], script=script) as here:
        listening = await here.call(LISTEN)
        await listening.event()
        running = here.start()
        await here.upstream.reached("gate")
        grant.withdraw()
        assert await listening.messages() == []
        assert here.counts["refused", "identity_ended"] == 1
        await here.upstream.until(lambda: here.upstream.disconnects == 1)
        here.upstream.open("gate")
        assert (await running.json())["result"] == DONE


async def test_a_stream_of_subscriptions_whose_identity_ends_before_it_begins_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = Grant()
    monkeypatch.setattr(asgi, "UNBOUND", grant)
    async with both_eras(script={LISTEN: [[Pause("gate"), Hang()]]}) as here:
        listening = here.start(LISTEN)
        await here.upstream.reached("gate")
        grant.withdraw()
        assert (await listening.json())["error"]["code"] == -32600
        assert listening.status == 401
        assert "invalid_token" in listening.headers["www-authenticate"]
        await here.upstream.until(lambda: here.upstream.disconnects == 1)
