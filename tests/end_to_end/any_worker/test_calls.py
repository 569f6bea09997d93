"""Several gateways with one redis, without sticky routing: any of them goes on with what another one began (G5 to G8).

Each has a port of its own here, so that a test says which one is asked, and which one is lost.
"""

import json
from contextlib import AsyncExitStack
from itertools import cycle
from pathlib import Path
from typing import Any

import anyio
import pytest
from aiohttp import ClientError
from harness.any_worker import LEASE, OWNED, PAUSE, settings
from harness.gateways import Gateway, gateway, until
from harness.hosts import Patient, elsewhere, kill, paused
from harness.raw_upstreams import RawUpstream, Transport
from harness.redis_server import RedisServer
from harness.upstreams import Upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
LONG_PAUSE = 10.0
TOLD_AT_ONCE = 5.0
"""A bound for what is told without a time-out having passed; those are longer."""


async def number(wire: Wire, n: int) -> dict[str, Any]:
    """A call that carries its number."""
    return await (await wire.call("numbered", {"n": n}, id=b"%d" % n)).response()


def arrived(server: RawUpstream, client: str) -> list[int]:
    """The numbers of the calls that came to the server."""
    return [json.loads(text)["params"]["arguments"]["n"] for text in server.received(client, "tools/call")]


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
