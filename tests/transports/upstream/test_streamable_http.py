"""Streamable HTTP to a server on a real socket: sessions, and what may come for an answer."""

import asyncio

import pytest
from contract.session import INITIALIZED, told
from harness.gateways import until
from harness.http_bench import Heard, Hearer, HTTPBench, http_bench
from harness.ports import free_port
from harness.upstream_scripted import (
    PATIENCE,
    Cut,
    Hang,
    OpenStream,
    Pause,
    Play,
    Reply,
    ScriptedUpstream,
    Send,
    Status,
)
from trunkline.mux.errors import InvalidRequest, UpstreamFault, UpstreamUnreachable
from trunkline.mux.ports import NONE, MovableWire
from trunkline.transports.upstream import http_delivery, loss
from trunkline.transports.upstream.streamable_http import StreamableHTTPConnector

pytestmark = pytest.mark.anyio

GOOD: Play = [Reply({"content": []})]
NEVER = 3600.0
"""Seconds that no test waits: who waits for them fails."""

JSON_BEGINS = OpenStream({"Content-Type": "application/json"})


# Requests.


async def test_e12_a_call_that_was_cancelled_before_there_was_a_connection_for_it_is_not_sent() -> None:
    """Its cancellation may go out on another one, and come before it."""
    async with http_bench(call=[GOOD]) as bench, bench.session() as session:
        begun, cancelled = session.request(), session.request()  # the second one needs a connection of its own
        cancelled.state = "abandoned"
        error = await session.failure(cancelled)
        assert (type(error), error.data) == (UpstreamUnreachable, {"executed": "no"})
        await session.answered(begun)
        await session.answered(session.request())
        assert len(bench.upstream.of("tools/call")) == 2


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


async def test_a_server_that_takes_the_handshake_with_a_stream_without_end_is_not_waited_for() -> None:
    script: dict[str, list[Play]] = {"notifications/initialized": [[OpenStream(), Hang()]]}
    async with http_bench(**script) as bench, asyncio.timeout(PATIENCE), bench.session() as session:
        await session.answered(session.request())


async def test_a_session_that_rested_goes_on_as_what_it_was_with_the_credentials_of_now() -> None:
    async with http_bench() as bench:
        async with bench.session() as session:
            assert isinstance(session.wire, MovableWire)
            await session.answered(session.request())
            session.wire.rest()
            bench.connector.rotate({"Authorization": "Bearer new"})
            await session.answered(session.request())
            session.wire.rest()
        for came in (bench.upstream.of("tools/call")[-1], bench.upstream.received[-1]):
            names = ("mcp-session-id", "mcp-protocol-version", "authorization")
            assert [came.headers[name] for name in names] == ["upstream-session", "2025-11-25", "Bearer new"]
        assert bench.upstream.received[-1].kind == "DELETE"


async def test_a_session_that_rests_while_a_call_is_under_way_still_hears_its_answer() -> None:
    async with http_bench(call=[[Pause("rest"), *GOOD]]) as bench, bench.session() as session:
        assert isinstance(session.wire, MovableWire)
        request = session.request()
        await bench.upstream.reached("rest")
        session.wire.rest()
        bench.upstream.open("rest")
        await session.answered(request)


async def test_a_server_that_is_not_there_did_not_run_anything() -> None:
    bench = HTTPBench(ScriptedUpstream(port=free_port()))
    async with bench.wire() as session:
        error = await session.failure(session.request("initialize"))
        assert type(error) is UpstreamUnreachable
        assert error.data == {"executed": "no"}
        assert "127.0.0.1" not in error.message
    await bench.connector.close()
    await bench.connector.close()


# A session that the server forgot.


async def test_a_call_in_flight_still_gets_its_answer_when_the_session_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loss, "LOST_SECONDS", NEVER)
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
    monkeypatch.setattr(loss, "LOST_SECONDS", 0.01)
    async with http_bench(call=[[Hang()], [Status(404)]]) as bench, bench.session() as session:
        silent = session.request()
        await bench.upstream.saw("tools/call")
        refused = session.request()
        assert await session.lost() == {refused}
        assert silent.state == "pending", "it may have run"


async def test_a_call_whose_answer_has_begun_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loss, "LOST_SECONDS", NEVER)
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
        assert (type(error), error.data["status"]) == (UpstreamUnreachable, 404)
        assert error.data["executed"] == "no"
        assert not session.receiver.of("lost")


async def test_404_of_a_server_without_sessions_fails_one_call() -> None:
    async with http_bench("", call=[[Status(404)], GOOD]) as bench, bench.session() as session:
        error = await session.failure(session.request())
        assert (type(error), error.data["status"]) == (UpstreamUnreachable, 404)
        await session.answered(session.request())


async def test_a_call_whose_headers_cannot_be_sent_fails_and_not_from_within_send() -> None:
    async with http_bench() as bench, bench.session() as session:
        assert type(await session.failure(session.request(headers={"X-One": "a\x7f"}))) is InvalidRequest


async def test_g10_only_so_many_answers_wait_for_a_server_that_takes_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_delivery, "MAX_DELIVERIES", 2)
    async with http_bench(response=[[Hang()]]) as bench, bench.session() as session:
        for n in range(5):
            session.wire.send(b'{"jsonrpc":"2.0","id":%d,"result":{}}' % n, kind="response")
        await bench.upstream.saw("response", 2)
        assert bench.statistics.total("undelivered") == 3


async def test_what_waits_too_long_behind_others_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_delivery, "MAX_AT_ONCE", 1)
    async with http_bench(told=[[Hang()]]) as bench, bench.session() as session:
        session.send(told(1))
        monkeypatch.setattr(http_delivery, "DELIVER_SECONDS", 0.01)
        session.send(told(2))
        await until(lambda: bench.statistics.total("undelivered"))
        assert len(await bench.upstream.saw("notifications/message")) == 1
