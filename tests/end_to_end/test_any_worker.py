"""Several gateways with one redis, without sticky routing: any of them goes on with what another one began (G5 to G8).

Each has a port of its own here, so that a test says which one is asked, and which one is lost.
"""

import json
from collections.abc import Iterator
from contextlib import AsyncExitStack, ExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import ClientError
from harness.duplex_clients import DuplexClient, SocketClient, SSEClient, initialize
from harness.gateways import Gateway, gateway, until
from harness.hosts import Hosts, Patient, elsewhere, hosts, is_kept, kill, paused
from harness.raw_upstreams import RawUpstream, Transport, raw_upstream
from harness.redis_server import RedisServer
from harness.upstreams import Upstream
from harness.wire import Answer, Wire, text_of

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
LEASE = 1.5
"""Seconds for which a worker is taken to live after its last heartbeat."""

OWNED: tuple[Transport, ...] = ("stdio", "sse", "ws")
"""What servers speak whose sessions belong to one worker."""

SHARED = ("shared", "parted")
"""Servers whose sessions a user shares; what one user has on one of them is at one worker."""

PAUSE = 2 * LEASE
LONG_PAUSE = 10.0
TOLD_AT_ONCE = 5.0
"""A bound for what is told without a time-out having passed; those are longer."""


@pytest.fixture(scope="module")
def owned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Transport, RawUpstream]]:
    """Servers whose sessions belong to one worker."""
    with ExitStack() as stack:
        yield {one: stack.enter_context(raw_upstream(one, tmp_path_factory.mktemp(one))) for one in OWNED}


@pytest.fixture(scope="module")
def several(
    redis: RedisServer,
    upstream_process: Upstream,
    owned: dict[Transport, RawUpstream],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Hosts]:
    toml = tmp_path_factory.mktemp("hosts") / "trunkline.toml"
    toml.write_text(settings(redis.url, upstream_process, owned))
    with hosts(toml) as running:
        yield running


@pytest.fixture
def pair(several: Hosts, upstream: Upstream) -> tuple[Gateway, Gateway]:
    """Two gateways with one redis: most tests lose the first one."""
    first, second = several.complete()
    return first, second


def settings(directory: str, upstream: Upstream, owned: dict[Transport, RawUpstream]) -> str:
    """A gateway before all of these servers."""
    return "\n".join(
        [
            f'[directory]\nbackend = "redis"\nurl = "{directory}"',
            "[gateway]\ndrain_timeout = 10",
            f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]',
            *(f'[servers.{name}]\nurl = "{upstream.url}"\neras = ["legacy"]\nreuse = "user"' for name in SHARED),
            *(f'{server.settings(name)}eras = ["legacy"]' for name, server in owned.items()),
        ]
    )


async def number(wire: Wire, n: int) -> dict[str, Any]:
    """A call that carries its number."""
    return await (await wire.call("numbered", {"n": n}, id=b"%d" % n)).response()


def arrived(server: RawUpstream, client: str) -> list[int]:
    """The numbers of the calls that came to the server."""
    return [json.loads(text)["params"]["arguments"]["n"] for text in server.received(client, "tools/call")]


async def log_data(stream: Answer, count: int) -> list[str]:
    """What the next log messages say, until there were so many."""
    said: list[str] = []
    while len(said) < count:
        event = await stream.next_event()
        assert event is not None, said
        if event.data:
            said.append(json.loads(event.data)["params"]["data"])
    return said


# Calls.


async def test_g7_each_request_comes_to_another_worker_on_a_connection_of_its_own(
    pair: tuple[Gateway, Gateway], upstream: Upstream
) -> None:
    workflows, calls = 8, 20

    async def live() -> None:
        hosts = cycle(pair)
        async with Patient(next(hosts).url(), {"Connection": "close"}) as wire:
            await wire.open()
            for n in range(1, calls + 1):
                async with elsewhere(next(hosts), wire) as fresh:
                    assert text_of(await (await fresh.call("counter")).response()) == str(n)

    async with anyio.create_task_group() as tasks:
        for _ in range(workflows):
            tasks.start_soon(live)
    report = upstream.report()
    assert len(report["sessions"]) == report["counts"]["initialize"] == workflows
    assert report["counts"]["method:tools/call"] == workflows * calls


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_g7_four_workers_behind_one_socket_count_in_fifty_workflows(
    redis: RedisServer, upstream: Upstream, tmp_path: Path
) -> None:
    workflows, calls = 50, 200
    toml = tmp_path / "trunkline.toml"
    toml.write_text(settings(redis.url, upstream, {}))

    async def live(base: Gateway) -> None:
        async with Patient(base.url(), {"Connection": "close"}) as wire:
            await wire.open()
            for n in range(1, calls + 1):
                assert text_of(await (await wire.call("counter")).response()) == str(n)

    with gateway("--workers", "4", "--log-level", "warning", toml=toml) as running:
        async with anyio.create_task_group() as tasks:
            for _ in range(workflows):
                tasks.start_soon(live, running)
    report = upstream.report()
    assert len(report["sessions"]) == report["counts"]["initialize"] == workflows
    assert report["counts"]["method:tools/call"] == workflows * calls


async def test_g7_a_call_that_another_worker_serves_outlives_the_one_that_holds_the_workflow(
    pair: tuple[Gateway, Gateway], upstream: Upstream, key: str
) -> None:
    first, second = pair
    async with Patient(first.url()) as wire, elsewhere(second, wire) as fresh:
        await wire.open()
        fresh.headers.update(wire.headers)
        answers: list[str] = []

        async def call() -> None:
            answers.append(text_of(await (await fresh.call("hold", {"gate": key})).response()))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await upstream.saw("mark:holding")
                kill(first)
                assert text_of(await (await fresh.call("counter")).response()) == "1"
                upstream.open(key)
    assert answers == [f"{key} is open"]
    assert upstream.counts()["initialize"] == 1
    assert upstream.counts()["method:tools/call"] == 2


@pytest.mark.parametrize("transport", OWNED)
async def test_g7_a_call_handed_to_a_worker_that_is_killed_is_told_at_once_and_its_key_begins_anew(
    pair: tuple[Gateway, Gateway], owned: dict[Transport, RawUpstream], transport: Transport, key: str
) -> None:
    first, second = pair
    server, script = owned[transport], [{"pass": "never"}]
    async with Patient(first.url(transport), {"Trunkline-Workflow": key}) as wire, AsyncExitStack() as stack:
        await wire.open(name=key)
        fresh = await stack.enter_async_context(elsewhere(second, wire, transport))
        assert "result" in await number(fresh, 1)
        told: list[dict[str, Any]] = []

        async def call() -> None:
            body = {"name": "numbered", "arguments": {"n": 2}, "script": script}
            message = {"jsonrpc": "2.0", "id": 2, "method": "tools/call", "params": body}
            told.append(await (await fresh.post(message)).response())

        with anyio.fail_after(TOLD_AT_ONCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await until(lambda: arrived(server, key) == [1, 2])
                kill(first)
        assert told[0]["error"]["code"] == -31002
        assert told[0]["error"]["data"]["executed"] == "unknown"

        # The session died with its worker; what its key names begins anew within a lease and half a second.
        with anyio.fail_after(LEASE + 0.5 + TOLD_AT_ONCE):
            assert (await fresh.call("numbered", {"n": 3})).status == 404
            again = await stack.enter_async_context(Patient(second.url(transport), {"Trunkline-Workflow": key}))
            opened = await again.open(name=key)
        assert opened.headers["Trunkline-Workflow-State"] == "reset"
        assert "result" in await number(again, 4)
    assert arrived(server, key) == [1, 2, 4]


# A worker that stands still for longer than its lease.


@pytest.mark.parametrize("transport", OWNED)
@pytest.mark.parametrize("pause_seconds", [PAUSE, pytest.param(LONG_PAUSE, marks=pytest.mark.slow)])
async def test_g7_a_worker_that_was_stopped_writes_nothing_once_another_one_has_begun_anew(
    pair: tuple[Gateway, Gateway],
    owned: dict[Transport, RawUpstream],
    transport: Transport,
    pause_seconds: float,
    key: str,
) -> None:
    first, second = pair
    server, keyed = owned[transport], {"Trunkline-Workflow": key}
    async with Patient(first.url(transport), keyed) as wire, Patient(second.url(transport), keyed) as fresh:
        await wire.open("2025-06-18", name=key)
        assert "result" in await number(wire, 1)
        late: list[dict[str, Any] | int] = []

        async def call(n: int) -> None:
            try:
                answer = await wire.call("numbered", {"n": n}, id=b"%d" % n)
                late.append(await answer.response() if answer.status == 200 else answer.status)
            except ClientError:  # its connection was idle for longer than one is kept
                late.append(0)

        async with anyio.create_task_group() as tasks:
            with paused(first):
                for n in range(100, 110):
                    tasks.start_soon(call, n)  # the kernel takes them
                await anyio.sleep(pause_seconds)
                opened = await fresh.open("2025-06-18", name=key)
                assert opened.headers["Trunkline-Workflow-State"] == "reset"
        assert "result" in await number(fresh, 2)
    assert len(late) == 10
    for told in late:
        if isinstance(told, dict):
            assert told["error"]["data"].get("executed", "no") == "no", told
        else:
            assert told in (0, 404, 503)
    assert arrived(server, key) == [1, 2]


@pytest.mark.parametrize("server", ["stdio", "up"])
async def test_g7_a_worker_that_was_stopped_brings_back_nothing_that_has_ended(
    pair: tuple[Gateway, Gateway], upstream: Upstream, server: str
) -> None:
    first, second = pair
    removed = 'trunkline_workflows_closed_total{reason="removed"}'
    async with Patient(first.url(server)) as wire, AsyncExitStack() as stack:
        await wire.open("2025-06-18")
        fresh = await stack.enter_async_context(elsewhere(second, wire, server))
        before = first.metrics().get(removed, 0)
        with paused(first):
            await anyio.sleep(PAUSE)
            if server == "up":  # the second one takes it over, and its client ends it
                assert (await fresh.delete()).status == 200
            assert (await fresh.call("counter")).status == 404
        await until(lambda: first.metrics().get(removed, 0) == before + 1)
        for each in (wire, fresh):
            assert (await each.call("counter")).status == 404


async def test_g7_a_worker_that_was_stopped_goes_on_where_nobody_gave_its_session_up(
    pair: tuple[Gateway, Gateway], owned: dict[Transport, RawUpstream], key: str
) -> None:
    first, second = pair
    async with Patient(first.url("stdio")) as wire, AsyncExitStack() as stack:
        await wire.open("2025-06-18", name=key)
        fresh = await stack.enter_async_context(elsewhere(second, wire, "stdio"))
        assert "result" in await number(fresh, 1)
        with paused(first):
            await anyio.sleep(PAUSE)
        told = await number(wire, 2)
        with anyio.fail_after(PATIENCE):
            while "error" in told:
                assert told["error"]["data"]["limit"] == "lease", told
                told = await number(wire, 2)
        assert "result" in await number(fresh, 3)
    assert arrived(owned["stdio"], key) == [1, 2, 3]


# Streams.


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


async def test_a_message_for_a_stream_that_ended_with_the_pause_of_its_worker_goes_in_no_circle(
    pair: tuple[Gateway, Gateway],
) -> None:
    first, second = pair
    call = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "counter", "arguments": {}}}
    async with SSEClient(first.server_url("up")) as client, SSEClient(second.server_url("up")) as fresh:
        await client.open()
        fresh.last_event_id = client.last_event_id
        with paused(first):
            await anyio.sleep(PAUSE)
            assert (await fresh.post(call, endpoint=client.endpoint)).status == 404, "as where its worker is dead"
        await client.over()
        for one in (fresh, client):
            assert (await one.post(call, endpoint=client.endpoint)).status == 404
        await fresh.resume()
        await fresh.call("counter")
        assert text_of(await fresh.answer()) == "1"


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


CANCELLED = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}


async def test_g1_a_cancellation_that_could_mean_a_call_at_either_worker_is_ignored_and_counted(
    pair: tuple[Gateway, Gateway], upstream: Upstream, key: str
) -> None:
    first, second = pair
    results: list[str] = []
    ambiguous = [host.metric("trunkline_dropped_total", reason="ambiguous_cancel") for host in pair]
    async with Patient(first.url()) as wire, AsyncExitStack() as stack:
        await wire.open()
        fresh = await stack.enter_async_context(elsewhere(second, wire))

        async def call(at: Wire, gate: str) -> None:
            results.append(text_of(await (await at.call("hold", {"gate": gate}, id=b"7")).response()))

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call, wire, f"{key}-1")
                tasks.start_soon(call, fresh, f"{key}-2")
                await upstream.saw("mark:holding", 2)
                for at in (wire, fresh):
                    assert (await at.post(CANCELLED)).status == 202
                for gate in (1, 2):
                    upstream.open(f"{key}-{gate}")
    assert sorted(results) == [f"{key}-1 is open", f"{key}-2 is open"]
    for host, before in zip(pair, ambiguous, strict=True):
        assert host.metric("trunkline_dropped_total", reason="ambiguous_cancel") == before + 1


@pytest.mark.parametrize("names", ["session", "key"])
async def test_g3_a_cancellation_reaches_the_one_call_that_it_means_at_whatever_worker_it_is(
    pair: tuple[Gateway, Gateway], upstream: Upstream, key: str, names: str
) -> None:
    first, second = pair
    keyed = {"Trunkline-Workflow": key} if names == "key" else {}
    async with Patient(first.url(), keyed) as wire, AsyncExitStack() as stack:
        await wire.open()
        fresh = await stack.enter_async_context(Patient(second.url(), keyed or wire.headers))
        told: list[dict[str, Any]] = []

        async def call() -> None:
            told.append(await (await fresh.call("hold", {"gate": key}, id=b"7")).response())

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(call)
                await upstream.saw("mark:holding")
                sender = await stack.enter_async_context(Patient(first.url(), keyed or wire.headers))
                assert (await sender.post(CANCELLED)).status == 202
                await upstream.saw("mark:cancelled")
    assert "error" in told[0]


async def test_g7_a_workflow_is_ended_through_any_worker(pair: tuple[Gateway, Gateway], upstream: Upstream) -> None:
    first, second = pair
    async with Patient(first.url()) as wire:
        await wire.open()
        async with elsewhere(second, wire) as fresh:
            assert text_of(await (await fresh.call("counter")).response()) == "1"
            assert (await fresh.delete()).status == 200
            assert (await fresh.delete()).status in (200, 404)
            await upstream.saw("delete")
            assert (await wire.call("counter")).status == 404
            with anyio.fail_after(PATIENCE):
                while (await fresh.call("counter")).status != 404:
                    pass
    assert upstream.counts()["delete"] == 1
