"""The SDK's client over WebSocket, through the gateway, on a network that is cut; and both ends of the 1.x line."""

import json
import os
import random
import subprocess
import urllib.request
import warnings
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import anyio
import pytest
from harness.clients import peer
from harness.cutter import Cutter
from harness.gateways import Gateway, until
from harness.network import Network
from harness.ports import bound_socket
from harness.processes import HARNESS_PARENT, served_on
from harness.upstreams import Upstream
from mcp import Client, types
from mcp.shared.exceptions import MCPError
from trunkline.transports.client import websocket_client

pytestmark = pytest.mark.anyio

PATIENCE = 30.0


@pytest.fixture
async def network(gateway: Gateway) -> AsyncIterator[Network]:
    async with Network(gateway.port) as running:
        yield running


@asynccontextmanager
async def client(
    network: Network, *, mode: Any = "legacy", workflow: str | None = None, **callbacks: Any
) -> AsyncIterator[Client]:
    url = f"ws://127.0.0.1:{network.port}/servers/up/ws"
    with warnings.catch_warnings(), anyio.fail_after(PATIENCE):
        # Sampling is deprecated by 2026-07-28; the servers of today use it.
        warnings.simplefilter("ignore")
        async with Client(websocket_client(url, workflow=workflow), mode=mode, **callbacks) as connected:
            yield connected


async def text(of: Client, tool: str, **arguments: Any) -> str:
    result = await of.call_tool(tool, arguments)
    assert not result.is_error, result
    return "".join(block.text for block in result.content if isinstance(block, types.TextContent))


@pytest.mark.parametrize("mode", ["legacy", "auto"])
async def test_a_counter_goes_on_over_three_cuts(
    network: Network, gateway: Gateway, upstream: Upstream, mode: str
) -> None:
    before = gateway.metric("trunkline_resumes_total", transport="websocket", outcome="resumed")
    counted = []
    async with client(network, mode=mode) as connected:
        for cuts in range(4):
            counted += [await text(connected, "counter") for _ in range(3)]
            if cuts < 3:
                taken = network.taken
                await network.cut()
                await network.came(taken + 1)
    assert counted == [str(n) for n in range(1, 13)]
    assert upstream.counts()["initialize"] == 1
    assert gateway.metric("trunkline_resumes_total", transport="websocket", outcome="resumed") == before + 3


async def test_calls_in_flight_at_a_cut_are_answered_once_each(network: Network, upstream: Upstream, key: str) -> None:
    results: dict[int, str] = {}
    half = anyio.Event()

    async def hold(connected: Client, n: int) -> None:
        answer = await text(connected, "hold", gate=f"{key}-{n}", tag=str(n))
        assert n not in results
        results[n] = answer
        if len(results) == 8:
            half.set()

    async with client(network) as connected, anyio.create_task_group() as tasks:
        for n in range(16):
            tasks.start_soon(hold, connected, n)
        await upstream.saw("mark:holding", 16)
        network.is_closed = True
        await network.cut()
        for n in range(8):  # answered while nobody is connected
            upstream.open(f"{key}-{n}")
        await upstream.saw("mark:held", 8)
        network.is_closed = False
        await half.wait()
        await network.cut()
        for n in range(8, 16):
            upstream.open(f"{key}-{n}")
    assert results == {n: f"{key}-{n} is open {n}" for n in range(16)}
    assert upstream.counts()["method:tools/call"] == 16


async def test_calls_that_were_lost_on_the_way_are_made_once(network: Network, upstream: Upstream, key: str) -> None:
    counted: list[str] = []

    async def count(connected: Client) -> None:
        counted.append(await text(connected, "counter"))

    async with client(network) as connected, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(text, connected, "hold", gate=key))
        await upstream.saw("mark:holding")
        for _ in range(3):
            network.swallow()
            for _ in range(5):
                tasks.start_soon(count, connected)
            await network.swallowed()
            await network.cut()
            await count(connected)
        upstream.open(key)
    assert sorted(counted, key=int) == [str(n) for n in range(1, 19)]
    assert upstream.counts()["method:tools/call"] == 1 + 18


@pytest.mark.parametrize("seed", range(6))
async def test_cuts_at_any_byte_lose_no_call_and_run_none_twice(
    gateway: Gateway, upstream: Upstream, seed: int
) -> None:
    draw = random.Random(seed)
    counted: list[int] = []
    unknown: list[MCPError] = []
    done = anyio.Event()

    async def count(connected: Client) -> None:
        try:
            counted.append(int(await text(connected, "counter")))
        except MCPError as error:
            unknown.append(error)

    async with Cutter(gateway.port) as cutter:
        url = f"ws://127.0.0.1:{cutter.port}/servers/up/ws"
        with anyio.fail_after(PATIENCE):
            async with Client(websocket_client(url), mode="legacy") as connected:

                async def work() -> None:
                    for _ in range(12):
                        async with anyio.create_task_group() as calls:
                            for _ in range(draw.randint(1, 5)):
                                calls.start_soon(count, connected)
                    done.set()

                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(work)
                    while not done.is_set():
                        newest = cutter.newest
                        if draw.random() < 0.5:
                            newest.limit(up=draw.randint(0, 700))
                        else:
                            newest.limit(down=draw.randint(0, 1400))
                        while cutter.newest is newest and not done.is_set():  # noqa: ASYNC110 - neither has an event
                            await anyio.sleep(0.005)
                    cutter.newest.limit()
    # Cut again amid its question what had arrived, a client cannot know; it says so.
    assert all(error.error.data == {"executed": "unknown"} for error in unknown)
    ran = upstream.counts()["method:tools/call"]
    assert len(set(counted)) == len(counted)
    assert len(counted) <= ran <= len(counted) + len(unknown)
    assert len(counted) > len(unknown)
    assert len(cutter.connections) > 3


async def test_what_a_server_asks_outlives_a_cut(network: Network, upstream: Upstream, key: str) -> None:
    asked: list[str] = []
    was_asked, may_answer = anyio.Event(), anyio.Event()

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        was_asked.set()
        await may_answer.wait()
        return types.ElicitResult(action="accept", content={"colour": "red"})

    async def sample(context: Any, params: Any) -> types.CreateMessageResult:
        asked.append(params.messages[0].content.text)
        answer = types.TextContent(type="text", text="a poem")
        return types.CreateMessageResult(role="assistant", content=answer, model="test")

    async with client(network, elicitation_callback=elicit, sampling_callback=sample) as connected:
        results: list[str] = []

        async def ask() -> None:
            results.append(await text(connected, "ask"))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await was_asked.wait()
            taken = network.taken
            await network.cut()
            await network.came(taken + 1)
            network.swallow()  # the answer does not arrive
            may_answer.set()
            await network.swallowed()
            await network.cut()
        assert results == ["accept red"]
        assert await text(connected, "sample", prompt="write") == "a poem"
    assert asked == ["Which colour?", "write"]


async def test_progress_goes_on_over_a_cut(network: Network, upstream: Upstream, key: str) -> None:
    steps: list[float] = []
    stepped = anyio.Event()

    async def progress(done: float, total: float | None, message: str | None) -> None:
        steps.append(done)
        stepped.set()

    async with client(network) as connected, anyio.create_task_group() as tasks:

        async def slow() -> None:
            result = await connected.call_tool("slow", {"steps": 3, "gate": key}, progress_callback=progress)
            assert not result.is_error

        tasks.start_soon(slow)
        upstream.open(f"{key}.1")
        await stepped.wait()
        await network.cut()
        upstream.open(f"{key}.2")
        upstream.open(f"{key}.3")
    assert steps == [1, 2, 3]


async def test_leaving_closes_in_order_and_a_key_comes_back(
    network: Network, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with client(network, workflow=key) as connected:
        assert await text(connected, "counter") == "1"
    await until(
        lambda: gateway.metric("trunkline_workflows", server="up", transport="websocket", state="attached") == 0
    )
    async with client(network, workflow=key) as connected:
        assert await text(connected, "counter") == "2"
    assert upstream.counts()["initialize"] == 1
    assert network.taken == 2


async def test_a_session_that_is_ended_fails_its_calls_with_the_reason(
    network: Network, gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with client(network, workflow=key) as connected, anyio.create_task_group() as tasks:
        errors: list[MCPError] = []

        async def hold() -> None:
            with pytest.raises(MCPError) as caught:
                await connected.call_tool("hold", {"gate": key})
            errors.append(caught.value)

        tasks.start_soon(hold)
        await upstream.saw("mark:holding")
        headers = {"Trunkline-Workflow": key, "Trunkline-End": "workflow", "MCP-Protocol-Version": "2025-11-25"}
        await anyio.to_thread.run_sync(_delete, gateway.url(), headers)
    assert errors[0].error.code == -31002
    assert "ended" in errors[0].error.message


def _delete(url: str, headers: dict[str, str]) -> None:
    request = urllib.request.Request(url, headers=headers, method="DELETE")
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answered:
        assert answered.status in (200, 204)


# The 1.x line.


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(HARNESS_PARENT)}


@contextmanager
def server_of_sdk1() -> Iterator[int]:
    python = peer("TRUNKLINE_SDK1_PYTHON")
    listener = bound_socket()
    port = int(listener.getsockname()[1])
    with served_on(listener, "harness.ws_sdk1", python=str(python), path="/ready"):
        yield port


async def test_a_server_of_the_1x_line_is_spoken_to_until_the_connection_ends() -> None:
    with server_of_sdk1() as port:
        async with Network(port) as network:
            url = f"ws://127.0.0.1:{network.port}/ws"
            with anyio.fail_after(PATIENCE):
                async with Client(websocket_client(url), mode="legacy") as connected:
                    assert [await text(connected, "counter") for _ in range(3)] == ["1", "2", "3"]
                    async with anyio.create_task_group() as tasks:

                        async def hold() -> None:
                            with pytest.raises(MCPError, match="no session to come back to"):
                                await connected.call_tool("hold")

                        tasks.start_soon(hold)
                        assert await text(connected, "counter") == "4"
                        await network.cut()
                    assert network.taken == 1


async def test_a_client_of_the_1x_line_counts_through_the_gateway(gateway: Gateway, upstream: Upstream) -> None:
    url = gateway.url().replace("http://", "ws://").removesuffix("/mcp") + "/ws"
    command = [str(peer("TRUNKLINE_SDK1_PYTHON")), "-m", "harness.ws_sdk1", url, "20"]
    with anyio.fail_after(PATIENCE):
        ended = await anyio.run_process(command, env=environment(), stderr=subprocess.PIPE, check=False)
    assert ended.returncode == 0, ended.stderr.decode()
    assert json.loads(ended.stdout) == [str(n) for n in range(1, 21)]
    assert upstream.counts()["initialize"] == 1
