"""HTTP+SSE on a real socket: the stream, the messages beside it, what is refused, and how a stream is taken up."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from harness import muxing
from harness.changing import until
from harness.duplex_clients import PATIENCE, SSEClient, initialize
from harness.listening import Served, listening
from harness.memory_wire import echo
from harness.wire import Answer, Wire
from trunkline.mux.burden import MAX_BYTES_PER_USER
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.transports import http_endpoint, link, sse
from trunkline.transports.guard import Guard

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}
ALICE, BOB = {"Authorization": "alice"}, {"Authorization": "bob"}


@asynccontextmanager
async def opened(at: Served, headers: dict[str, str] | None = None, query: str = "") -> AsyncIterator[SSEClient]:
    """A client with a session."""
    async with SSEClient(at.base(), headers) as client:
        await client.open(query)
        yield client


async def refused(answer: Answer, status: int) -> str:
    """The text of a refusal."""
    assert answer.status == status, (answer.status, await answer.body())
    message: str = (await answer.json())["error"]["message"]
    return message


async def test_t1_a_stream_begins_with_the_place_for_messages_and_brings_their_answers() -> None:
    async with listening() as at, SSEClient(at.base()) as client:
        stream = await client.get()
        assert (stream.status, stream.headers["Content-Type"]) == (200, "text/event-stream")
        assert "no-cache" in stream.headers["Cache-Control"]
        first = await stream.next_event()
        assert first is not None
        assert (first.event, first.id) == ("endpoint", None)
        assert first.data.startswith(f"/servers/x/message?session_id={stream.headers['Mcp-Session-Id']}")
        accepted = await client.post(initialize(7), endpoint=first.data)
        assert (accepted.status, await accepted.body()) == (202, b"Accepted")
        event = await stream.next_event()
        assert event is not None
        assert event.id
        assert (event.event, json.loads(event.data)["id"]) == ("message", 7)


@pytest.mark.parametrize("is_batch", [False, True])
async def test_g10_a_large_message_counts_once_when_it_is_taken(is_batch: bool) -> None:
    revision = "2025-03-26"
    async with listening(revision=revision) as at, SSEClient(at.base(), ALICE) as client:
        at.server.on_request = echo
        await client.connect()
        await client.begin(revision=revision)
        call = {**PING, "method": "tools/call", "params": {"name": "t", "arguments": {"pad": "x" * 100_000}}}
        others = MAX_BYTES_PER_USER - 150_000
        at.pool.burden.take_up(muxing.ALICE, "x", others)
        await client.send(json.dumps([PING | {"id": 1}, call] if is_batch else call).encode())
        assert "result" in await client.answer("p")
        await until(lambda: at.pool.burden.held == others)
        at.pool.burden.lay_down(muxing.ALICE, "x", others)


async def test_e10_a_batch_is_split_where_the_session_has_batches() -> None:
    async with listening(revision="2025-03-26") as at, SSEClient(at.base()) as client:
        at.server.on_request = echo
        await client.connect()
        calls = [
            {"jsonrpc": "2.0", "id": n, "method": "tools/call", "params": {"name": "x", "arguments": {"n": n}}}
            for n in range(2)
        ]
        batch = json.dumps([*calls, {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}]).encode()
        await refused(await client.post(batch), 400)
        await client.begin(revision="2025-03-26")
        await client.send(batch)
        answers = {answer["id"]: answer["result"]["structuredContent"] for answer in await client.hear(2)}
        assert answers == {0: {"n": 0}, 1: {"n": 1}}
        await at.server.got("notifications/roots/list_changed")
        for amiss in ([], [*calls, initialize()], [*calls, {"id": 1}]):
            await refused(await client.post(json.dumps(amiss).encode()), 400)
        assert len(at.server.of("tools/call")) == 2


async def test_e11_other_revisions_have_no_batches() -> None:
    async with listening() as at, opened(at) as client:
        assert "no batches" in await refused(await client.post(json.dumps([PING]).encode()), 400)


async def test_t2_the_place_for_messages_is_below_the_root_path() -> None:
    async with listening(uvicorn_options={"root_path": "/a b"}) as at, SSEClient(at.base()) as client:
        await client.connect()
        assert client.endpoint.startswith("/a%20b/servers/x/message?")


async def test_t5_the_message_of_another_principal_gets_the_404_of_an_unknown_session() -> None:
    async with listening() as at, opened(at, ALICE) as hers, SSEClient(at.base(), BOB) as his:
        unknown = hers.endpoint.replace(hers.session_id, "0" * len(hers.session_id))
        stolen = await his.post(PING, endpoint=hers.endpoint)
        assert await refused(stolen, 404) == await refused(await his.post(PING, endpoint=unknown), 404)
        hers.cut()
        await at.until_detached()
        assert await stolen.body() == await (await his.post(PING, endpoint=hers.endpoint)).body()
        assert await refused(await his.get(f"?session_id={hers.session_id}"), 404)
        assert await refused(await his.get(headers={"Last-Event-ID": hers.last_event_id}), 404)


@pytest.mark.parametrize("name", [".", ".x", "x.x", "100000000.x", "ffffffff.x", "unknown"])
async def test_t5_a_stream_that_there_is_not_is_an_unknown_session_whatever_its_name(name: str) -> None:
    async with listening() as at, SSEClient(at.base()) as client:
        await refused(await client.post(PING, endpoint=f"/servers/x/message?session_id=none&stream={name}"), 404)


async def test_a_message_for_a_stream_that_there_is_not_of_a_session_that_lives_is_told_so() -> None:
    async with listening() as at, opened(at) as client:
        unknown = f"/servers/x/message?session_id={client.session_id}&stream=unknown"
        assert "connect again" in await refused(await client.post(PING, endpoint=unknown), 404)


async def test_x2_every_request_is_authenticated() -> None:
    async with listening() as at, opened(at) as client, SSEClient(at.base(), {"Authorization": "wrong"}) as nobody:
        for answer in (await nobody.get(), await nobody.post(PING, endpoint=client.endpoint)):
            assert answer.status == 401
            assert answer.headers["WWW-Authenticate"].startswith("Bearer")


async def test_a_session_is_unknown_on_another_servers_path() -> None:
    async with listening() as at, opened(at) as client, SSEClient(at.base("y")) as other:
        assert (await other.post(PING, endpoint=client.endpoint.replace("/x/", "/y/"))).status == 404
        assert (await other.get(f"?session_id={client.session_id}")).status == 404


async def test_x1_a_foreign_origin_is_refused_and_an_allowed_one_may_read() -> None:
    guard = Guard(loopback=True, allowed_origins=["https://app.example"])
    async with listening(guard=guard) as at, SSEClient(at.base()) as client:
        assert (await client.get(headers={"Origin": "https://evil.example"})).status == 403
        stream = await client.get(headers={"Origin": "https://app.example"})
        assert (stream.status, stream.headers["Access-Control-Allow-Origin"]) == (200, "https://app.example")


async def test_x1_a_page_of_another_site_comes_into_no_session_whose_key_it_guesses() -> None:
    """An image or a script is asked for by GET and without an Origin; but browsers say for whose page."""
    async with listening() as at, opened(at, query="?workflow=chat") as client, SSEClient(at.base()) as page:
        for whose in ("cross-site", "same-site"):
            answer = await page.get("?workflow=chat", {"Sec-Fetch-Site": whose, "Accept": "image/png,*/*"})
            assert answer.status == 403
        [workflow] = at.pool.workflows
        assert workflow.wires == 1
        assert at.pool.statistics.counts["refused", "cross_site"] == 2
        assert (await page.get("?workflow=chat", {"Sec-Fetch-Site": "same-origin"})).status == 200
        await client.send(PING)
        assert await client.next() == {"jsonrpc": "2.0", "id": "p", "result": {}}


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'{"jsonrpc":"2.0","id":null,"method":"ping"}', {}, 400),
        (b"{}", {"Content-Type": "text/plain"}, 415),
        (b"{" + b" " * MAX_BODY_BYTES, {}, 413),
        (PING, {"Mcp-Session-Id": "another"}, 400),
        (PING, {"Trunkline-Workflow": "another"}, 400),
    ],
)
async def test_a_message_that_is_none_is_refused_and_the_stream_goes_on(
    body: Any, headers: dict[str, str], status: int
) -> None:
    async with listening() as at, opened(at) as client:
        await refused(await client.post(body, headers), status)
        await client.send(PING)
        assert await client.next() == {"jsonrpc": "2.0", "id": "p", "result": {}}


async def test_a_message_without_session_and_other_methods_are_refused() -> None:
    async with listening() as at, SSEClient(at.base()) as client:
        assert "session" in await refused(await client.post(PING, endpoint="/servers/x/message"), 400)
        assert (await client.get(headers={"Accept": "application/json"})).status == 406
    async with listening() as at, Wire(at.base()) as wire:
        for method, path in (("POST", "/sse"), ("DELETE", "/sse"), ("GET", "/message"), ("PUT", "/message")):
            answer = await wire.request(method, b"{}", path=path)
            assert answer.status == 405, (method, path)
            assert ("GET" if path == "/sse" else "POST") in answer.headers["Allow"]


@pytest.mark.parametrize("query", ["?session_id=a&session_id=b", "?workflow=a%20b", "?session_id=%FF&workflow=\xe4"])
async def test_a_query_that_names_no_one_thing_is_refused(query: str) -> None:
    async with listening() as at, SSEClient(at.base()) as client:
        assert (await client.get(query)).status in (400, 404)


async def test_what_disagrees_is_refused() -> None:
    async with listening() as at, opened(at, query="?workflow=k") as keyed, opened(at) as other:
        for query, headers in (
            (f"?session_id={keyed.session_id}&workflow=j", {}),
            (f"?session_id={other.session_id}", {"Trunkline-Workflow": "k"}),
            (f"?session_id={other.session_id}", {"Mcp-Session-Id": keyed.session_id}),
            (f"?session_id={other.session_id}", {"Last-Event-ID": keyed.last_event_id}),
            ("?workflow=j", {"Last-Event-ID": keyed.last_event_id}),
            (f"?session_id={other.session_id}", {"Last-Event-ID": "12"}),
        ):
            await refused(await keyed.get(query, headers), 400)


async def test_a_key_tells_how_the_workflow_came_and_needs_no_handshake() -> None:
    async with listening() as at, SSEClient(at.base()) as client:
        at.server.on_request = echo
        await client.connect("?workflow=k")
        assert client.stream is not None
        assert client.stream.headers["Trunkline-Workflow-State"] == "created"
        await client.call("t", {"n": 1})
        assert (await client.next())["id"] == 1
        async with SSEClient(at.base(), {"Trunkline-Workflow": "k"}) as again:
            await again.connect()
            assert again.stream is not None
            assert again.stream.headers["Trunkline-Workflow-State"] == "resumed"
            assert again.session_id == client.session_id
        await at.pool.end(at.pool.workflows[0], "idle")
        async with SSEClient(at.base(), {"Trunkline-Workflow": "k"}) as late:
            await late.connect()
            assert late.stream is not None
            assert late.stream.headers["Trunkline-Workflow-State"] == "reset", "what it knew is gone"


# Cut, and taken up.


async def test_g5_a_stream_is_taken_up_where_it_was_cut_and_its_calls_have_gone_on() -> None:
    async with listening() as at, opened(at) as client:
        await client.call("t", id=1)
        await client.call("t", id=2)
        for n in (1, 2):
            await at.server.got("tools/call", n)
        at.server.of("tools/call")[0].answer({})
        assert (await client.next())["id"] == 1
        client.cut()
        await at.until_detached()
        at.server.of("tools/call")[1].answer({})
        await client.resume()
        assert (await client.next())["id"] == 2
        assert len(at.server.sessions) == 1


async def test_g5_what_a_cut_stream_carried_after_the_last_event_id_comes_again() -> None:
    async with listening() as at, opened(at) as client:
        at.server.on_request = echo
        known = client.last_event_id
        for n in (1, 2):
            await client.call("t", id=n)
            assert (await client.next())["id"] == n
        client.cut()
        client.last_event_id = known
        await client.resume()
        assert [message["id"] for message in await client.hear(2)] == [1, 2]
        await client.call("t", id=3)
        assert (await client.next())["id"] == 3


async def test_a_message_that_comes_while_the_stream_is_cut_is_answered_when_it_is_back() -> None:
    async with listening() as at, opened(at) as client:
        at.server.on_request = echo
        client.cut()
        await at.until_detached()
        await client.call("t", id=1)
        await client.resume()
        assert (await client.next())["id"] == 1
        await client.call("t", id=2)
        assert (await client.next())["id"] == 2, "the new place for messages"


async def test_an_older_place_for_messages_leads_to_the_stream_that_took_over() -> None:
    async with listening() as at, opened(at) as client:
        at.server.on_request = echo
        older, client.stream = (client.endpoint, client.stream), None
        await client.resume()
        assert older[1] is not None
        assert await older[1].next_event() is None, "the older stream has ended"
        assert (await client.post({**PING, "id": "o"}, endpoint=older[0])).status == 202
        assert (await client.next())["id"] == "o"


async def test_two_streams_of_one_workflow_have_ids_of_their_own() -> None:
    async with listening() as at, opened(at, query="?workflow=k") as one, opened(at, query="?workflow=k") as two:
        assert one.session_id == two.session_id
        await one.call("t", {"who": 1})
        await at.server.got("tools/call")
        await two.call("t", {"who": 2})
        await at.server.got("tools/call", 2)
        for exchange in reversed(at.server.of("tools/call")):
            echo(exchange)
        for client, who in ((one, 1), (two, 2)):
            assert (await client.next())["result"]["structuredContent"] == {"who": who}
        assert len(at.server.sessions) == 1


async def test_a_session_without_a_key_that_nobody_comes_back_to_is_abandoned() -> None:
    async with listening(resume_window=60) as at, opened(at) as client:
        client.cut()
        await at.until_detached()
        at.bench.clock.advance(59)
        await at.bench.swept()
        assert at.pool.workflows
        at.bench.clock.advance(2)
        await at.bench.ended("abandoned")
        assert (await client.post(PING)).status == 404


# Ends.


async def test_g8_a_drain_ends_the_stream_with_retry_and_later_ones_get_the_same() -> None:
    async with listening() as at, opened(at) as client:
        assert await at.pool.drain(0)
        assert client.stream is not None
        last = await client.stream.next_event()
        assert last is not None
        assert (last.data, last.retry) == ("", 1000)
        assert await client.stream.next_event() is None
        later = await client.get(headers={"Last-Event-ID": client.last_event_id})
        assert later.status == 200
        event = await later.next_event()
        assert event is not None
        assert event.retry == 1000
        assert await later.next_event() is None


async def test_the_stream_of_a_workflow_that_is_gone_ends_and_does_not_come_back() -> None:
    async with listening() as at, opened(at) as client:
        [workflow] = at.pool.workflows
        await at.pool.end(workflow, "deleted")
        await client.over()
        assert (await client.get(headers={"Last-Event-ID": client.last_event_id})).status == 404
        assert (await client.post(PING)).status == 404


async def test_a_stream_without_a_handshake_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HANDSHAKE_SECONDS", 0.1)
    async with listening() as at, SSEClient(at.base()) as client:
        await client.connect()
        await client.over()
        assert (await client.post(PING)).status == 404


async def test_a_quiet_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "KEEP_ALIVE_SECONDS", 0.05)
    async with listening() as at, opened(at) as client:
        assert client.stream is not None
        with anyio.fail_after(PATIENCE):
            assert b": keep-alive" in await client.stream._response.content.readany()


async def test_g10_a_client_that_takes_nothing_is_cut_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_endpoint, "SEND_SECONDS", 0.2)
    async with listening() as at, opened(at) as client:
        assert client.stream is not None
        connection = client.stream._response.connection
        assert connection is not None
        assert connection.transport is not None
        connection.transport.pause_reading()  # type: ignore[attr-defined]
        for n in range(3):
            await client.call("t", id=n)
            (await at.server.got("tools/call", n + 1)).answer({"pad": "." * 3_000_000})
        await at.until_detached()
        assert at.counts["slow_clients", "x"] == 1
        client.cut()


async def test_g10_no_more_streams_than_two_for_each_workflow_may_be_open() -> None:
    async with listening(max_workflows=1) as at, SSEClient(at.base()) as one, SSEClient(at.base()) as two:
        await one.connect()
        await two.connect()
        refusal = await two.get()
        assert refusal.status == 503
        assert "Retry-After" in refusal.headers
        assert at.counts["refused", "max_workflows"] == 1
