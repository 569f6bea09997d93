"""Streamable HTTP to a server on a real socket: sessions, and what may come for an answer."""

from collections.abc import Callable

import pytest
from contract.wire import INITIALIZED, told
from harness.http_bench import Heard, Hearer, HTTPBench, http_bench
from harness.ports import free_port
from harness.upstream_scripted import (
    Cut,
    Forever,
    Hang,
    Json,
    OpenStream,
    Pause,
    Play,
    Raw,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
    Step,
)
from trunkline.mux.errors import InvalidRequest, SessionLost, TrunklineError, UpstreamFault, UpstreamUnreachable
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.mux.ports import NONE, MovableWire
from trunkline.transports.upstream import streamable_http
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

GOOD: Play = [Reply({"content": []})]
NEVER = 3600.0
"""Seconds that no test waits: who waits for them fails."""

JSON_BEGINS = OpenStream({"Content-Type": "application/json"})


# Sessions.


@pytest.mark.parametrize("session_id", ["a b", "caf\xe9", "x" * 1025, "tab\tin"])
async def test_a_session_id_that_is_not_visible_ascii_is_refused(session_id: str) -> None:
    async with http_bench(session_id) as bench:
        async with bench.wire() as session:
            error = await session.failure(session.request("initialize"))
            assert isinstance(error, UpstreamFault)
            assert session_id not in error.message
        assert [came.kind for came in bench.upstream.received] == ["initialize"]


@pytest.mark.parametrize("session_id", ["upstream-session", ""])
async def test_a_released_session_is_gone_on_with_by_another_connector(session_id: str) -> None:
    async with http_bench(session_id) as bench:
        async with bench.session() as session:
            wire = session.wire
            assert isinstance(wire, MovableWire)
            moved = wire.session
            wire.release()
        other = StreamableHTTPConnector("x", bench.upstream.url, bench.statistics)
        receiver = Hearer()
        async with other.adopt(receiver, NONE, moved, "2025-11-25", listen=False) as wire:
            await Heard(wire, receiver).answered(Heard(wire, receiver).request())
        receiver.left = True
        await other.close()
        kinds = [came.kind for came in bench.upstream.received if came.kind != "GET"]
        end = ["DELETE"] if session_id else []
        assert kinds == ["initialize", "notifications/initialized", "tools/call", *end]
        assert bench.upstream.received[-1].headers.get("mcp-session-id") == (session_id or None)


async def test_a_session_id_goes_with_everything_after_the_handshake_and_a_delete_ends_it() -> None:
    async with http_bench("!~" + "x" * 1022) as bench:
        async with bench.session() as session:
            await bench.upstream.saw("GET")
            await session.answered(session.request())
        first, *rest = bench.upstream.received
        assert (first.kind, first.headers.get("mcp-session-id")) == ("initialize", None)
        assert {came.kind for came in rest} == {"notifications/initialized", "GET", "tools/call", "DELETE"}
        assert {came.headers["mcp-session-id"] for came in rest} == {"!~" + "x" * 1022}
        assert [bench.sent(kind) for kind in ("initialize", "initialized", "get", "call", "delete")] == [1] * 5


async def test_a_server_without_sessions_gets_no_session_id_and_no_delete() -> None:
    async with http_bench("") as bench:
        async with bench.session() as session:
            await session.answered(session.request())
        assert not bench.upstream.of("DELETE")
        assert not any("mcp-session-id" in came.headers for came in bench.upstream.received)


@pytest.mark.parametrize("status", [405, 404, 500])
async def test_a_server_may_refuse_to_end_a_session(status: int) -> None:
    async with http_bench(DELETE=[[Status(status)]]) as bench:
        async with bench.session() as session:
            await session.answered(session.request())
        assert len(bench.upstream.of("DELETE")) == 1


@pytest.mark.parametrize(
    ("revision", "named"),
    [("2024-11-05", None), ("2025-03-26", None), ("2025-06-18", "2025-06-18"), ("2025-11-25", "2025-11-25")],
)
async def test_the_revision_is_named_after_the_handshake_to_servers_that_know_the_header(
    revision: str, named: str | None
) -> None:
    async with http_bench() as bench:
        async with bench.wire() as session:
            await session.answered(session.request("initialize"))
            await session.wire.establish(revision, INITIALIZED)
            await session.answered(session.request())
            await bench.upstream.saw("GET")
        first, *rest = bench.upstream.received
        assert "mcp-protocol-version" not in first.headers
        assert len(rest) == 4
        assert {came.headers.get("mcp-protocol-version") for came in rest} == {named}


# What a server may answer to a call that is no answer.


def answering(code: int) -> Callable[[TrunklineError], bool]:
    return lambda error: type(error) is UpstreamUnreachable and error.data.get("status") == code


def is_fault(error: TrunklineError) -> bool:
    return type(error) is UpstreamFault


def is_lost(error: TrunklineError) -> bool:
    return type(error) is SessionLost


NO_ANSWER: dict[str, tuple[Play, Callable[[TrunklineError], bool], str | None]] = {
    "accepted": ([Status(202)], is_fault, None),
    "a page": ([Status(200, "<html>", "text/html")], answering(200), "unknown"),
    "no type": ([Status(200, "{}", "")], answering(200), "unknown"),
    "no content": ([Status(204)], answering(204), "unknown"),
    "bad request": ([Status(400)], answering(400), "no"),
    "bad request, JSON that is no error": ([Status(400, "{}", "application/json")], answering(400), "no"),
    "bad request, broken JSON": ([Status(400, "{", "application/json")], answering(400), "no"),
    "unauthorized": ([Status(401)], answering(401), "no"),
    "an error that calls itself a stream": ([Status(409, ": no\n\n", "text/event-stream")], answering(409), "no"),
    "server error": ([Status(500)], answering(500), "unknown"),
    "bad gateway, JSON": ([Status(502, '{"error":"down"}', "application/json")], answering(502), "unknown"),
    "a body of nothing": ([Json("")], is_fault, None),
    "a body without end": ([JSON_BEGINS, Forever(b" " * 65536)], is_fault, None),
    "a body that breaks": ([JSON_BEGINS, Raw(b"{"), Cut()], is_lost, "unknown"),
    "an event without end": ([OpenStream(), Raw(b"data: "), Forever(b"x" * 65536)], is_fault, None),
    "an event of lines without end": ([OpenStream(), Forever(b"data: " + b"x" * 65536 + b"\n")], is_fault, None),
    "a stream without ids that ends": ([OpenStream(), Send(told(1))], is_lost, "unknown"),
    "a stream without ids that breaks": ([OpenStream(), Send(told(1)), Cut()], is_lost, "unknown"),
}


@pytest.mark.parametrize("name", NO_ANSWER)
async def test_what_is_no_answer_fails_its_own_call_and_says_whether_it_may_have_run(name: str) -> None:
    play, is_expected, executed = NO_ANSWER[name]
    async with http_bench(call=[play, GOOD]) as bench, bench.session() as session:
        error = await session.failure(session.request())
        assert is_expected(error), repr(error)
        assert error.data.get("executed") == executed
        assert "127.0.0.1" not in error.message
        await session.answered(session.request())
        assert len(bench.upstream.of("tools/call")) == 2, "nothing is sent twice"
        assert not session.receiver.of("lost")


async def test_an_event_and_a_body_of_the_largest_size_arrive() -> None:
    def padded(request_id: int, size: int) -> str:
        head = f'{{"jsonrpc":"2.0","id":{request_id},"result":{{"x":"'
        return head + "x" * (size - len(head) - 3) + '"}}'

    event = padded(3, MAX_EVENT_BYTES - len("data: \n\n"))
    plays = [[Json(padded(2, MAX_EVENT_BYTES))], [OpenStream(), Send(event)]]
    async with http_bench(call=plays) as bench, bench.session() as session:
        assert len((await session.answered(session.request())).text) == MAX_EVENT_BYTES
        assert (await session.answered(session.request())).text == event.encode()


@pytest.mark.parametrize("status", [400, 401, 403, 422, 500, 503])
async def test_a_jsonrpc_error_in_an_http_error_reaches_the_caller(status: int) -> None:
    body = '{"jsonrpc":"2.0","id":2,"error":{"code":-32001,"message":"no","data":{"x":1e400}}}'
    play = [Status(status, body, "application/json; charset=utf-8")]
    async with http_bench(call=[play]) as bench, bench.session() as session:
        assert (await session.answered(session.request())).text == body.encode()
        assert not session.receiver.of("failed")


async def test_a_redirect_is_not_followed() -> None:
    async with ScriptedUpstream() as elsewhere, http_bench() as bench:
        codes = (301, 302, 303, 307, 308)
        bench.upstream.script["tools/call"] = [[Status(code, headers={"Location": elsewhere.url})] for code in codes]
        async with bench.session() as session:
            for code in codes:
                assert answering(code)(await session.failure(session.request()))
        assert not elsewhere.received


async def test_a_server_that_is_not_there_did_not_run_anything() -> None:
    bench = HTTPBench(ScriptedUpstream(port=free_port()))
    async with bench.wire() as session:
        error = await session.failure(session.request("initialize"))
        assert type(error) is UpstreamUnreachable
        assert error.data == {"executed": "no"}
        assert "127.0.0.1" not in error.message
    await bench.connector.close()
    await bench.connector.close()


@pytest.mark.parametrize("bad", [b"{nope", b"\xff\xfe", b"[" * 10_000, b"7"], ids=lambda bad: repr(bad[:4]))
@pytest.mark.parametrize("streamed", [True, False])
async def test_what_is_no_message_comes_with_the_request_on_whose_exchange_it_came(bad: bytes, streamed: bool) -> None:
    """The wire does not judge it; the channel does, and has to know whose it is."""
    steps: list[Step] = [OpenStream(), Raw(b"data: %b\n\n" % bad), Hang()] if streamed else [Json(bad)]
    async with http_bench(call=[steps]) as bench, bench.session() as session:
        request = session.request()
        assert await session.heard(request) == [bad]


# A session that the server forgot.


async def test_a_call_in_flight_still_gets_its_answer_when_the_session_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streamable_http, "LOST_SECONDS", NEVER)
    plays: list[Play] = [[Pause("go"), *GOOD], [Pause("go"), Status(404)], [Status(404)]]
    async with http_bench(call=plays) as bench:
        async with bench.session() as session:
            fine = session.request()
            await bench.upstream.reached("go")
            also_refused = session.request()
            await bench.upstream.reached("go", 2)
            refused = session.request()
            await bench.upstream.saw("tools/call", 3)
            bench.upstream.open("go")
            await session.answered(fine)
            assert await session.lost() == {refused, also_refused}
            assert not session.receiver.of("failed")
        assert not bench.upstream.of("DELETE"), "there is nothing left to end"


async def test_a_call_that_stays_unanswered_does_not_hold_up_the_news(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamable_http, "LOST_SECONDS", 0.01)
    async with http_bench(call=[[Hang()], [Status(404)]]) as bench, bench.session() as session:
        silent = session.request()
        await bench.upstream.saw("tools/call")
        refused = session.request()
        assert await session.lost() == {refused}
        assert silent.state == "pending", "it may have run"


async def test_a_call_whose_answer_has_begun_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamable_http, "LOST_SECONDS", NEVER)
    plays: list[Play] = [[OpenStream(), Send(told(1)), Hang()], [Status(404)]]
    async with http_bench(call=plays) as bench, bench.session() as session:
        speaking = session.request()
        await session.heard(speaking)
        refused = session.request()
        assert await session.lost() == {refused}
        assert speaking.state == "pending", "it runs"


async def test_a_notification_tells_as_well_that_the_session_is_forgotten() -> None:
    async with http_bench(told=[[Status(404)]]) as bench, bench.session() as session:
        session.send(told(1))
        assert await session.lost() == set()


async def test_a_notification_that_is_refused_costs_nothing() -> None:
    async with http_bench(told=[[Status(400)], [Status(500)], [Cut()]]) as bench, bench.session() as session:
        for n in (1, 2, 3):
            session.send(told(n))
            await bench.upstream.saw("notifications/message", n)
        await session.answered(session.request())
        assert {report.what for report in session.receiver.reports} == {"received"}


@pytest.mark.parametrize("session_id", ["", "upstream-session"])
async def test_404_to_the_handshake_is_no_lost_session(session_id: str) -> None:
    async with http_bench(session_id, initialize=[[Status(404)]]) as bench, bench.wire() as session:
        error = await session.failure(session.request("initialize"))
        assert answering(404)(error)
        assert error.data["executed"] == "no"
        assert not session.receiver.of("lost")


async def test_404_of_a_server_without_sessions_fails_one_call() -> None:
    async with http_bench("", call=[[Status(404)], GOOD]) as bench, bench.session() as session:
        assert answering(404)(await session.failure(session.request()))
        await session.answered(session.request())


async def test_a_call_whose_headers_cannot_be_sent_fails_and_not_from_within_send() -> None:
    async with http_bench() as bench, bench.session() as session:
        assert type(await session.failure(session.request(headers={"X-One": "a\x7f"}))) is InvalidRequest


async def test_g10_only_so_many_answers_wait_for_a_server_that_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamable_http, "MAX_DELIVERIES", 2)
    async with http_bench(response=[[Hang()]]) as bench, bench.session() as session:
        for n in range(5):
            session.wire.send(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % n, kind="response")
        await bench.upstream.saw("response", 2)
        assert bench.statistics.total("undelivered") == 3


# Servers that answer 400 where the specification has 404.

NO_SESSION = '{"jsonrpc":"2.0","id":null,"error":{"code":-32000,"message":"Bad Request: No valid session ID provided"}}'


@pytest.mark.parametrize(
    "refusal",
    [Status(400, NO_SESSION, "application/json"), Status(400, "Invalid or missing session ID"), Status(404)],
    ids=["JSON-RPC", "text", "404"],
)
async def test_a_session_that_is_forgotten_is_known_by_what_the_server_says(refusal: Status) -> None:
    async with http_bench(call=[GOOD, [refusal]]) as bench, bench.session() as session:
        await session.answered(session.request())
        refused = session.request()
        assert await session.lost() == {refused}
        assert not session.receiver.of("failed")
        assert len(bench.upstream.of("tools/call")) == 2


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ('{"jsonrpc":"2.0","id":2,"error":{"code":-32602,"message":"Invalid session id"}}', "application/json"),
        ("no such tool", "text/plain"),
        ("session not found" + " " * 100_000, "text/plain"),
    ],
    ids=["of a handler", "of something else", "without end"],
)
async def test_a_400_that_does_not_say_so_fails_one_call(body: str, kind: str) -> None:
    async with http_bench(call=[[Status(400, body, kind)], GOOD]) as bench, bench.session() as session:
        request = session.request()
        if kind == "application/json":
            assert (await session.answered(request)).text == body.encode()
        else:
            assert answering(400)(await session.failure(request))
        await session.answered(session.request())
        assert not session.receiver.of("lost")


@pytest.mark.parametrize("session_id", ["", "upstream-session"])
async def test_a_400_is_looked_into_only_where_there_is_a_session(session_id: str) -> None:
    refusal = Status(400, "Invalid or missing session ID")
    async with http_bench(session_id, initialize=[[refusal]]) as bench, bench.wire() as session:
        assert answering(400)(await session.failure(session.request("initialize")))
    async with http_bench("", call=[[refusal], GOOD]) as bench, bench.session() as session:
        assert answering(400)(await session.failure(session.request()))
        await session.answered(session.request())
