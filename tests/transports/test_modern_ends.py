"""Requests of 2026-07-28 and their ends: clients that leave, limits, what breaks, and what changes meanwhile."""

import json
from collections.abc import Sequence

import anyio
import pytest
from harness import modern_endpoint
from harness.endpoint_bench import front
from harness.modern_endpoint import (
    ANSWERED,
    DONE,
    NOTE,
    SPOKEN,
    JSONHead,
    body_of,
    both_eras,
    headers_of,
    requests_to,
)
from harness.upstream_scripted import (
    Cut,
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
    text_result,
)
from trunkline.mux.envelope import Envelope
from trunkline.mux.modern import LISTEN
from trunkline.mux.ports import Headers, Span
from trunkline.transports import asgi
from trunkline.transports import modern as under_test
from trunkline.transports.asgi import Grant

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True, params=[False, True], ids=["in a task", "at once"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests are answered in a task, or by callbacks."""
    monkeypatch.setattr(modern_endpoint, "offers_whole", request.param)


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

    def __init__(self, failures: int = 0) -> None:
        self.begun = 0
        self.ends: list[str] = []
        self._failures = failures
        """How often it fails before it works."""

    def begin(self, server: str, message: Envelope, context: Headers, *who: object) -> tuple[Span, Headers]:
        if self._failures:
            self._failures -= 1
            raise RuntimeError("of the tracer's own")
        self.begun += 1
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


async def test_what_fails_in_a_tracer_takes_no_place() -> None:
    async with both_eras(tracer=Traced(failures=2), max_inflight=1) as here:
        for _ in range(2):
            assert (await here.call()).status == 500
        assert here.requests.inflight == 0
        assert (await (await here.call()).json())["result"] == DONE


async def test_each_span_that_is_begun_is_ended_however_deep_the_body() -> None:
    traced = Traced()
    async with both_eras(tracer=traced) as here:
        statuses = set()
        for depth in range(890, 960):
            body = json.dumps(body_of()).replace('"params": {', '"params": {"a":' + "[" * depth + "]" * depth + ",")
            answer = await here.client.post(body.encode(), headers_of())
            await answer.over()
            statuses.add(answer.status)
        assert statuses <= {200, 400}
    assert traced.begun == len(traced.ends) > 0


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
