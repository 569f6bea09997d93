"""Streamable HTTP for clients: how a call is answered, and how its stream is taken up again."""

import json
from typing import Any

import pytest
from harness.asgi_client import Answer, asgi_client
from harness.clustering import started
from harness.endpoint_bench import NEWEST, authenticate, call, front, opened, shake_hands
from harness.memory_wire import Exchange, echo, message
from harness.muxing import settle
from harness.sse import Event
from trunkline.mux.errors import UpstreamUnreachable
from trunkline.mux.fairness import Turnstile
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.principal import ANONYMOUS
from trunkline.transports import EndpointConfig, Guard, StreamableHTTPEndpoint, streamable_request
from trunkline.transports.admission import Admission
from trunkline.transports.asgi import ASKED, MEANT, Receive, Scope, Send

pytestmark = pytest.mark.anyio

OLD, BATCHING = "2025-06-18", "2025-03-26"
FIRST, SECOND = (message("notifications/message", {"level": "info", "data": n}) for n in (1, 2))
CHANGED = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}


async def event_of(answer: Answer) -> Event:
    """The next event; the stream must not be at its end."""
    event = await answer.event()
    assert event is not None
    return event


async def message_of(answer: Answer) -> Event:
    """The next event that holds a message."""
    while not (event := await event_of(answer)).data:
        pass
    return event


def log_and_answer(exchange: Exchange) -> None:
    """For `MemoryServer.on_request`: something comes before the answer."""
    exchange.say(FIRST)
    exchange.answer({"n": 1})


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call takes long as soon as it is not answered at once."""
    monkeypatch.setattr(streamable_request, "DECIDE_SECONDS", 0)


# The form of an answer.


@pytest.mark.parametrize("revision", [NEWEST, OLD, BATCHING, "2024-11-05"])
async def test_a_response_that_comes_first_is_plain_json(revision: str) -> None:
    async with opened(revision) as here:
        here.server.on_request = echo
        answer = await here.client.post(
            b'{"jsonrpc":"2.0","id":"\\u0061","method":"tools/call","params":{"arguments":{}}}'
        )
        assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
        assert answer.headers["trunkline-pool"] == "hit"
        assert b'"id":"\\u0061"' in await answer.body(), "the id is spelled as the client spelled it"
        await answer.over()


async def test_an_error_of_the_server_is_plain_json_in_200() -> None:
    async with opened() as here:
        here.server.on_request = lambda exchange: exchange.refuse(-32001, "no such tool")
        answer = await here.client.post(call(7))
        assert answer.status == 200
        assert await answer.json() == {
            "jsonrpc": "2.0",
            "id": 7,
            "error": {"code": -32001, "message": "no such tool"},
        }


async def test_a_call_that_takes_long_turns_into_a_primed_stream() -> None:
    async with opened() as here:
        answer = await here.client.post(call(5))
        assert (answer.status, answer.is_stream) == (200, True)
        assert "no-transform" in answer.headers["cache-control"]
        first = await event_of(answer)
        assert first.data == ""
        assert first.id
        (await here.server.got("tools/call")).answer({"n": 1})
        second = await event_of(answer)
        assert json.loads(second.data) == {"jsonrpc": "2.0", "id": 5, "result": {"n": 1}}
        assert second.id
        assert second.id != first.id
        assert await answer.event() is None, "the stream of a call ends with its response"


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("revision", [OLD, BATCHING])
async def test_a_client_that_knows_no_priming_waits_for_its_plain_answer(revision: str) -> None:
    async with opened(revision) as here:
        answer = here.client.start("POST", call())
        exchange = await here.server.got("tools/call")
        await settle()
        assert answer.status == 0
        exchange.answer({"n": 1})
        await answer.begun()
        assert (await answer.json())["result"] == {"n": 1}


@pytest.mark.parametrize(("revision", "primed"), [(NEWEST, True), (OLD, False), (BATCHING, False)])
async def test_a_message_before_the_response_makes_a_stream(revision: str, primed: bool) -> None:
    async with opened(revision) as here:
        here.server.on_request = log_and_answer
        answer = await here.client.post(call(5))
        if primed:
            priming = await event_of(answer)
            assert priming.data == ""
            assert priming.id
        told, result = await answer.messages()
        assert told == json.loads(FIRST)
        assert result == {"jsonrpc": "2.0", "id": 5, "result": {"n": 1}}


# What needs no answer.


@pytest.mark.parametrize(
    "body",
    [
        CHANGED,
        {"jsonrpc": "2.0", "id": 4711, "result": {}},
        {"jsonrpc": "2.0", "id": "unknown", "error": {"code": 1, "message": "no"}},
    ],
)
async def test_what_needs_no_answer_is_accepted(body: dict[str, Any]) -> None:
    async with opened() as here:
        answer = await here.client.post(body)
        assert (answer.status, await answer.body()) == (202, b"")
        assert len(here.server.of("notifications/roots/list_changed")) == ("method" in body)


async def test_a_clients_answer_reaches_the_server_that_asked() -> None:
    async with opened(capabilities={"roots": {}}) as here:
        stream = await here.client.get()
        here.server.session.tell(message("roots/list", id="s-1"))
        asked = json.loads((await message_of(stream)).data)
        assert asked["method"] == "roots/list"
        reply = {"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": []}}
        assert (await here.client.post(reply)).status == 202
        assert (await here.server.got("response")).json == {**reply, "id": "s-1"}


async def test_an_event_id_that_is_empty_names_none() -> None:
    async with opened() as here:
        assert (await here.client.get("")).status == 200, "as an EventSource has it before its first event"
        assert (await here.client.get("nonsense")).status == 404


# Batches, of one revision only.


async def test_a_batch_is_answered_as_an_array() -> None:
    async with opened(BATCHING) as here:
        here.server.on_request = echo
        answer = await here.client.post([call(1, n=1), CHANGED, call("1", n=2)])
        assert answer.status == 200
        results = {repr(one["id"]): one["result"]["structuredContent"] for one in await answer.json()}
        assert results == {"1": {"n": 1}, "'1'": {"n": 2}}
        assert len(await (await here.client.post([call(1)])).json()) == 1, "an array, also of one"
        assert all(b"[" not in exchange.text[:1] for exchange in here.server.of("tools/call"))


async def test_each_call_of_a_batch_hears_why_there_is_no_session_for_it() -> None:
    async with front() as here:
        here.server.unreachable = UpstreamUnreachable("connection refused", executed="no")
        answer = await here.client.post([call(1), CHANGED, call("b")], {"trunkline-workflow": "k"})
        assert answer.status == 200
        assert [(one["id"], one["error"]["code"]) for one in await answer.json()] == [(1, -31001), ("b", -31001)]


async def test_each_call_of_a_batch_hears_that_too_many_messages_wait() -> None:
    async with front(
        revision=BATCHING, options={"admission": Admission(Turnstile(per_round=1, max_waiting=1))}
    ) as here:
        await shake_hands(here.client, BATCHING)
        answers = [here.client.start("POST", [call(n), call(-n)]) for n in (1, 2, 3)]
        refused = await answers[2].json()
        assert [(one["id"], one["error"]["data"]["limit"]) for one in refused] == [
            (3, "max_waiting"),
            (-3, "max_waiting"),
        ]
        await here.server.got("tools/call", 4)
        for upstream in here.server.of("tools/call"):
            upstream.answer({})
        assert [len(await answer.json()) for answer in answers[:2]] == [2, 2]


async def test_a_batch_that_cannot_be_read_hears_that_too_many_messages_wait() -> None:
    async with front(
        revision=BATCHING, options={"admission": Admission(Turnstile(per_round=1, max_waiting=1))}
    ) as here:
        await shake_hands(here.client, BATCHING)
        answers = [here.client.start("POST", body) for body in (CHANGED, CHANGED, [call(1), "no message"])]
        assert (await answers[2].json())["error"]["data"]["limit"] == "max_waiting"
        for answer in answers[:2]:
            await answer.over()
            assert answer.status == 202


async def test_a_batch_without_a_request_is_accepted() -> None:
    async with opened(BATCHING) as here:
        answer = await here.client.post([CHANGED, {"jsonrpc": "2.0", "id": 4711, "result": {}}, CHANGED])
        assert (answer.status, await answer.body()) == (202, b"")
        assert len(here.server.of("notifications/roots/list_changed")) == 2


async def test_a_batch_in_which_a_message_comes_first_is_one_stream() -> None:
    async with opened(BATCHING) as here:
        answer = here.client.start("POST", [call(1), call(2)])
        second = await here.server.got("tools/call", 2)
        first = here.server.of("tools/call")[0]
        first.answer({"n": 1})
        second.say(FIRST)
        await answer.begun()
        second.answer({"n": 2})
        assert [one.get("result") for one in await answer.messages()] == [{"n": 1}, None, {"n": 2}]


@pytest.mark.parametrize("revision", [NEWEST, OLD])
async def test_other_revisions_have_no_batches(revision: str) -> None:
    async with opened(revision) as here:
        answer = await here.client.post([call(1)])
        assert answer.status == 400
        assert (await answer.json())["error"]["code"] == -32600
        assert not here.server.of("tools/call")


async def test_initialize_is_not_part_of_a_batch() -> None:
    async with opened(BATCHING) as here:
        answer = await here.client.post([{"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}])
        assert answer.status == 400
        assert len(here.server.sessions) == 1


# Clients that leave and come back.


async def test_a_stream_is_taken_up_by_the_last_event_id_without_gap_or_repetition() -> None:
    async with opened() as here:
        answer = await here.client.post(call(5))
        exchange = await here.server.got("tools/call")
        exchange.say(FIRST)
        priming, told = await event_of(answer), await event_of(answer)
        answer.leave()
        await answer.over()
        exchange.say(SECOND)
        resumed = await here.client.get(told.id)
        event = await event_of(resumed)
        assert json.loads(event.data)["params"]["data"] == 2
        exchange.answer({"n": 1})
        assert [one["result"] for one in await resumed.messages()] == [{"n": 1}]
        everything = await (await here.client.get(priming.id, {"mcp-session-id": None})).messages()
        assert [one.get("params", {}).get("data") for one in everything] == [1, 2, None]
        assert not here.server.of("notifications/cancelled"), "leaving is no cancellation"
        assert here.counts["resumes", "http", "resumed"] == 2


async def test_an_event_id_opens_nothing_for_another_principal() -> None:
    async with opened() as here:
        here.client.headers["authorization"] = "alice"
        await shake_hands(here.client)
        event = await event_of(await here.client.post(call()))
        for event_id in (event.id, "f" * 32 + "-1-1-1", "none"):
            stolen = await here.client.get(event_id, {"mcp-session-id": None, "authorization": "bob"})
            assert stolen.status == 404
        assert (await here.client.get(event.id, {"mcp-session-id": None})).status == 200
        (await here.server.got("tools/call")).answer()


async def test_an_event_id_and_a_session_id_that_disagree_are_refused() -> None:
    async with opened() as here:
        event = await event_of(await here.client.post(call()))
        await shake_hands(here.client)
        refused = await here.client.get(event.id)
        assert (refused.status, refused.is_stream) == (400, False)
        (await here.server.got("tools/call")).answer()


async def test_what_belongs_to_no_call_comes_on_get_and_is_taken_up_there() -> None:
    async with opened() as here:
        stream = await here.client.get()
        here.server.session.tell(FIRST)
        event = await message_of(stream)
        assert json.loads(event.data) == json.loads(FIRST)
        stream.leave()
        await stream.over()
        here.server.session.tell(SECOND)
        again = await message_of(await here.client.get(event.id))
        assert json.loads(again.data) == json.loads(SECOND)


@pytest.mark.usefixtures("at_once")
async def test_a_plain_answer_whose_client_left_is_lost_and_counted() -> None:
    async with opened(OLD) as here:
        answer = here.client.start("POST", call())
        exchange = await here.server.got("tools/call")
        await settle()
        answer.leave()
        await settle()
        assert not exchange.is_cut, "the call goes on"
        exchange.answer()
        await answer.over()
        assert here.counts["cut_answers", "x"] == 1


async def test_a_stream_that_begins_while_draining_only_asks_to_come_back() -> None:
    async with opened() as here:
        here.bench.pool._opening.draining = True
        answer = await here.client.get()
        assert (answer.status, answer.is_stream) == (200, True)
        assert await answer.body() == b"retry: 1000\n\n"


async def test_g8_what_comes_when_a_drain_has_ended_its_session_is_told_of_the_drain() -> None:
    async with opened() as here:
        event = await event_of(await here.client.get())
        await here.bench.pool.drain(0)
        answer = await here.client.post(call("late"))
        late = await answer.json()
        assert (answer.status, late["id"]) == (200, "late")
        assert (late["error"]["code"], late["error"]["data"]) == (-31002, {"executed": "no"})
        for event_id in (None, event.id):
            stream = await here.client.get(event_id)
            assert (stream.status, await stream.body()) == (200, b"retry: 1000\n\n")
        assert (await here.client.delete()).status == 404


async def test_g8_a_stream_that_was_let_go_is_to_be_asked_for_once_more() -> None:
    async with started(1) as (_, draining):
        workflow = (await draining.client(key="k")).workflow
        reader = workflow.streams.attach_standalone()
        [event] = await reader.next(0) or []
        event_id = reader.event_id(event)
        reader.close()
        await draining.pool.drain(0)
        await settle()
        config = EndpointConfig("x", draining.pool, Guard(loopback=True), lambda _: ANONYMOUS)
        async with asgi_client(StreamableHTTPEndpoint(config)) as client:
            for headers in ({"last-event-id": event_id}, {"mcp-session-id": workflow.record.session_id}):
                answer = await client.ask("GET", b"", headers)
                assert (answer.status, await answer.body()) == (200, b"retry: 1000\n\n"), "nobody can go on with it yet"


async def test_what_the_log_no_longer_holds_is_not_taken_up_with_a_gap() -> None:
    async with opened(event_log=EventLogLimits(events=2)) as here:
        answer = await here.client.post(call())
        priming = await event_of(answer)
        exchange = await here.server.got("tools/call")
        for _ in range(3):
            exchange.say(FIRST)
            await message_of(answer)
        gone = await here.client.get(priming.id)
        assert gone.status == 404
        assert here.counts["resumes", "http", "trimmed"] == here.counts["refused", "event_log_trimmed"] == 1
        await here.bench.ended("event_log_trimmed")


# Among several workers.


@pytest.mark.parametrize(
    ("meant", "said", "counted"),
    [(ASKED, b"1", None), (0, b"", "unknown_cancel"), (1, b"", None), (2, b"", "ambiguous_cancel")],
)
async def test_g1_a_cancellation_is_performed_where_it_means_one_call_of_all_workers(
    meant: int, said: bytes, counted: str | None
) -> None:
    async with started(1) as (at, worker):
        client = await worker.client()
        client.call(id=b"7")
        endpoint = StreamableHTTPEndpoint(EndpointConfig("x", worker.pool, Guard(loopback=True), authenticate))

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await endpoint({**scope, MEANT: meant}, receive, send)

        async with asgi_client(app, mcp_session_id=client.workflow.record.session_id) as http:
            cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
            assert await (await http.post(cancelled)).body() == said
        assert len(at.server.of("notifications/cancelled")) == (meant == 1)
        counts = worker.pool.statistics.counts
        assert {word for word in ("unknown_cancel", "ambiguous_cancel") if counts[word, "x"]} == {counted} - {None}
