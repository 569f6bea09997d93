"""Streams of one worker that are resumed, and questions on them that are answered, at another (G3, G5 to G7)."""

import json
from contextlib import AsyncExitStack
from typing import Any

import anyio
import pytest
from harness.any_worker import PAUSE
from harness.duplex_clients import DuplexClient, SocketClient, SSEClient, initialize
from harness.gateways import Gateway, until
from harness.hosts import Patient, elsewhere, is_kept, kill, paused
from harness.redis_server import RedisServer
from harness.upstreams import Upstream
from harness.wire import Answer, text_of

pytestmark = pytest.mark.anyio

PATIENCE = 20.0


async def log_data(stream: Answer, count: int) -> list[str]:
    """What the next log messages say, until there were so many."""
    said: list[str] = []
    while len(said) < count:
        event = await stream.next_event()
        assert event is not None, said
        if event.data:
            said.append(json.loads(event.data)["params"]["data"])
    return said


@pytest.mark.parametrize("lives", [True, False])
async def test_g5_the_standalone_stream_is_resumed_at_another_worker(
    pair: tuple[Gateway, Gateway], redis: RedisServer, upstream: Upstream, key: str, lives: bool
) -> None:
    first, second = pair
    async with Patient(first.url()) as wire, AsyncExitStack() as stack:
        await wire.open()
        fresh = await stack.enter_async_context(elsewhere(second, wire))
        stream = await wire.get()
        await upstream.saw("get")
        assert text_of(await (await fresh.call("log", {"text": key, "times": 3, "attributed": False})).response())
        assert await log_data(stream, 1) == [f"{key} 1"]
        last = stream.last_event_id
        assert await log_data(stream, 2) == [f"{key} 2", f"{key} 3"]  # which the client loses
        await until(lambda: is_kept(redis, f"{key} 3".encode()))
        stream.cut()
        if not lives:
            kill(first)

        resumed = await fresh.get(last)
        assert resumed.status == 200
        assert await log_data(resumed, 2) == [f"{key} 2", f"{key} 3"]
        if not lives:
            await upstream.saw("get", 2)
        await (await fresh.call("log", {"text": f"{key} more", "attributed": False})).response()
        assert await log_data(resumed, 1) == [f"{key} more 1"]
    assert upstream.counts()["initialize"] == 1


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("transport", [SSEClient, SocketClient])
async def test_g5_a_client_with_one_connection_goes_on_at_another_worker(
    pair: tuple[Gateway, Gateway],
    redis: RedisServer,
    upstream: Upstream,
    key: str,
    transport: type[DuplexClient],
    lives: bool,
) -> None:
    first, second = (host.url().removesuffix("/mcp") for host in pair)
    async with transport(first) as client, transport(second) as fresh:  # type: ignore[call-arg]
        await client.open()
        for n in range(3):
            await client.call("echo", {"value": f"{key}-{n}"}, id=n)
            assert (await client.answer(n))["result"]["structuredContent"] == {"value": f"{key}-{n}"}
            if n == 0:
                remember(client, fresh)
        await until(lambda: is_kept(redis, f"{key}-2".encode()))
        if not lives:
            kill(pair[0])
            await client.over()
        await fresh.resume()
        missed = await fresh.hear(2)
        assert [message["id"] for message in missed] == [1, 2]
        await fresh.call("counter", id=3)
        assert text_of(await fresh.answer(3)) == "1"
        assert [message["id"] for message in fresh.heard] == [1, 2, 3]
    assert upstream.counts()["initialize"] == 1
    assert upstream.counts()["method:tools/call"] == 4


async def test_g7_a_client_begins_on_a_stream_at_one_worker_with_messages_to_another(
    pair: tuple[Gateway, Gateway],
) -> None:
    first, second = pair
    async with SSEClient(first.server_url("up"), posts_to=f"http://127.0.0.1:{second.port}") as client:
        await client.open()
        await client.call("counter")
        assert text_of(await client.answer()) == "1"


async def test_g7_a_message_that_comes_after_its_stream_died_with_its_worker_is_answered_on_the_next_one(
    pair: tuple[Gateway, Gateway], redis: RedisServer, key: str
) -> None:
    first, second = pair
    async with SSEClient(first.server_url("up")) as client, SSEClient(second.server_url("up")) as fresh:
        await client.open()
        await client.call("echo", {"value": key}, id="before")
        await client.answer("before")
        await until(lambda: is_kept(redis, key.encode()))
        kill(first)
        await client.over()
        assert (await fresh.post(counter(1), endpoint=client.endpoint)).status == 202
        remember(client, fresh)
        await fresh.resume()
        assert text_of(await fresh.answer(1)) == "1"


async def test_a_message_for_a_stream_that_ended_with_the_pause_of_its_worker_goes_in_no_circle(
    pair: tuple[Gateway, Gateway], redis: RedisServer, key: str
) -> None:
    first, second = pair
    async with SSEClient(first.server_url("up")) as client, SSEClient(second.server_url("up")) as fresh:
        await client.open()
        await client.call("echo", {"value": key}, id="before")
        await client.answer("before")
        await until(lambda: is_kept(redis, key.encode()))
        remember(client, fresh)
        with paused(first):
            await anyio.sleep(PAUSE)
            assert (await fresh.post(counter(1), endpoint=client.endpoint)).status == 202
        await client.over()
        for n, one in ((2, fresh), (3, client)):
            assert (await one.post(counter(n), endpoint=client.endpoint)).status == 202
        await fresh.resume()
        answers = await fresh.hear(3)
        assert {message["id"] for message in answers} == {1, 2, 3}
        assert {text_of(message) for message in answers} == {"1", "2", "3"}


@pytest.mark.parametrize("transport", [SSEClient, SocketClient])
async def test_g7_who_shares_a_session_begins_on_a_connection_to_any_worker(
    pair: tuple[Gateway, Gateway], upstream: Upstream, transport: type[DuplexClient]
) -> None:
    async with AsyncExitStack() as stack:
        for n, host in enumerate((*pair, *pair)):
            client = await stack.enter_async_context(transport(host.server_url("shared")))  # type: ignore[call-arg]
            await client.open()
            await client.call("echo", {"value": str(n)}, id=n)
            assert (await client.answer(n))["result"]["structuredContent"] == {"value": str(n)}
    assert upstream.counts().get("initialize", 0) <= 1, "all of them are one user's"


@pytest.mark.parametrize("transport", [SSEClient, SocketClient])
async def test_g7_what_began_elsewhere_since_a_client_connected_is_told_to_it(
    pair: tuple[Gateway, Gateway], key: str, transport: type[DuplexClient]
) -> None:
    bases = [host.server_url("up") for host in pair]
    named = {"Trunkline-Workflow": key}
    async with transport(bases[0], named) as client, transport(bases[1], named) as late:  # type: ignore[call-arg]
        await client.connect()
        await late.connect()
        await client.begin()
        await late.send(initialize(id="late"))
        refused = await late.answer("late")
        assert refused["error"]["code"] == -31003
        assert refused["error"]["data"] == {"limit": "worker"}
        await late.over()  # and is not kept for the handshake that cannot come about there
        assert not isinstance(late, SocketClient) or (await late.closed())[0] == 1013
        await late.open()
        await late.call("echo", {"value": "x"})
        assert (await late.answer(1))["result"]["structuredContent"] == {"value": "x"}


def counter(id: int) -> dict[str, Any]:
    """A call that says how many of its kind came before on the session."""
    return {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "counter", "arguments": {}}}


def remember(client: DuplexClient, fresh: DuplexClient) -> None:
    """Another connection is to go on from here."""
    if isinstance(client, SSEClient) and isinstance(fresh, SSEClient):
        fresh.last_event_id = client.last_event_id
    elif isinstance(client, SocketClient) and isinstance(fresh, SocketClient):
        fresh.session_id, fresh.count = client.session_id, client.count


async def test_g5_the_answer_to_a_call_is_fetched_from_another_worker(
    pair: tuple[Gateway, Gateway], redis: RedisServer, upstream: Upstream, key: str
) -> None:
    first, second = pair
    async with Patient(first.url()) as wire:
        await wire.open()
        answer = await wire.call("slow", {"steps": 3, "gate": key}, meta={"progressToken": key})
        upstream.open(f"{key}.1")
        event = await answer.next_event()
        while event is not None and not event.data:
            event = await answer.next_event()
        last = answer.last_event_id
        answer.cut()
        upstream.open(f"{key}.2")
        upstream.open(f"{key}.3")
        await until(lambda: is_kept(redis, b"3 steps"))
        kill(first)
        async with elsewhere(second, wire) as fresh:
            messages = [message async for message in (await fresh.get(last)).messages()]
    assert [message["params"]["progress"] for message in messages[:-1]] == [2, 3]
    assert text_of(messages[-1]) == "3 steps"
    assert upstream.counts()["method:tools/call"] == 1


async def test_g6_a_call_that_died_with_its_worker_is_told_so_where_its_stream_is_resumed(
    pair: tuple[Gateway, Gateway], redis: RedisServer, upstream: Upstream, key: str
) -> None:
    first, second = pair
    async with Patient(first.url()) as wire:
        await wire.open()
        answer = await wire.call("slow", {"steps": 3, "gate": key}, meta={"progressToken": key})
        first_event = await answer.next_event()
        assert first_event is not None
        upstream.open(f"{key}.1")
        await answer.next_event()
        await until(lambda: is_kept(redis, b"step 1"))
        kill(first)
        async with elsewhere(second, wire) as fresh:
            messages = [message async for message in (await fresh.get(first_event.id)).messages()]
            assert messages[0]["params"]["progress"] == 1
            assert [message["error"]["code"] for message in messages[1:]] == [-31002]
            assert messages[1]["error"]["data"]["executed"] == "unknown"
            assert text_of(await (await fresh.call("counter")).response()) == "1"
    assert upstream.counts()["initialize"] == 1
    assert upstream.counts()["method:tools/call"] == 2


async def test_g5_g6_a_call_of_a_shared_session_that_went_to_another_worker_is_told_as_lost_by_whoever_is_asked(
    pair: tuple[Gateway, Gateway], upstream: Upstream, key: str
) -> None:
    """Its worker was paused, and had two sessions of one user: the other one was asked for first."""
    first, second = pair
    taken_over = 'trunkline_workflows_closed_total{reason="taken_over"}'
    async with AsyncExitStack() as stack:
        one, other = [await stack.enter_async_context(Patient(first.url("parted"))) for _ in range(2)]
        await one.open()
        await other.open()
        answer = await other.call("hold", {"gate": key})
        assert await answer.next_event() is not None
        last = answer.last_event_id
        answer.cut()
        before = first.metrics().get(taken_over, 0)
        with paused(first):
            await anyio.sleep(PAUSE)
            fresh = await stack.enter_async_context(elsewhere(second, one, "parted"))
            assert text_of(await (await fresh.call("counter")).response()) == "1"
        await until(lambda: first.metrics().get(taken_over, 0) == before + 2)
        upstream.open(key)
        for host in (second, first):
            resumed = await (await stack.enter_async_context(elsewhere(host, other, "parted"))).get(last)
            [told] = [message async for message in resumed.messages()]
            assert (told["error"]["code"], told["error"]["data"]["executed"]) == (-31002, "unknown")
    assert upstream.counts()["method:tools/call"] == 2


# What the server asks.


@pytest.mark.parametrize("lives", [True, False])
async def test_g3_what_was_asked_at_one_worker_is_answered_through_another(
    pair: tuple[Gateway, Gateway], redis: RedisServer, upstream: Upstream, lives: bool
) -> None:
    first, second = pair
    async with Patient(first.url()) as wire, AsyncExitStack() as stack:
        await wire.open(capabilities={"roots": {}})
        fresh = await stack.enter_async_context(elsewhere(second, wire))
        stream = await wire.get()
        await upstream.saw("get")
        results: list[dict[str, Any]] = []

        async def call() -> None:
            results.append(await (await fresh.call("roots")).response())

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                question = await stream.next_event()
                while question is not None and not question.data:
                    question = await stream.next_event()
                assert question is not None
                asked = json.loads(question.data)
                assert asked["method"] == "roots/list"
                await until(lambda: is_kept(redis, b"roots/list"))
                if not lives:
                    kill(first)
                answer = {"jsonrpc": "2.0", "id": asked["id"], "result": {"roots": [{"uri": "file:///here"}]}}
                assert (await fresh.post(answer)).status == 202
                assert (await fresh.post(answer)).status == 202  # once more has no effect
        assert results[0]["result"]["structuredContent"] == {"result": ["file:///here"]}
    assert upstream.counts()["response"] == 1


@pytest.mark.parametrize("names", ["session", "key"])
async def test_g3_what_was_asked_on_the_stream_of_a_call_is_answered_through_another_worker(
    pair: tuple[Gateway, Gateway], upstream: Upstream, key: str, names: str
) -> None:
    first, second = pair
    keyed = {"Trunkline-Workflow": key} if names == "key" else {}
    async with Patient(first.url(), keyed) as wire, AsyncExitStack() as stack:
        await wire.open(capabilities={"elicitation": {}})
        caller, other = [
            await stack.enter_async_context(Patient(host.url(), keyed or wire.headers)) for host in (second, first)
        ]
        answer = await caller.call("ask")
        async for message in answer.messages():
            if message.get("method") == "elicitation/create":
                content = {"action": "accept", "content": {"colour": "red"}}
                reply = {"jsonrpc": "2.0", "id": message["id"], "result": content}
                assert (await other.post(reply)).status == 202
            else:
                assert text_of(message) == "accept red"
    assert upstream.counts()["response"] == 1
