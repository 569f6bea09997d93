"""2026-07-28 on both sides: the SDK's client and raw ones, through the gateway, on the SDK's servers."""

import hashlib
import json
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from harness.gateways import TOKENS, Gateway, bearer, until
from harness.gateways import gateway as running_gateway
from harness.hosts import hosts
from harness.processes import http_status
from harness.redis_server import redis_server
from harness.upstream_scripted import Refuse, Reply, ScriptedUpstream
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Answer, Wire, raw_members, text_of
from mcp import Client, types
from mcp.client.streamable_http import streamable_http_client
from mcp.client.subscriptions import SubscriptionLost, ToolsListChanged
from mcp.shared.exceptions import MCPError

pytestmark = pytest.mark.anyio

MODERN = "2026-07-28"
META = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientCapabilities": {},
    "io.modelcontextprotocol/clientInfo": {"name": "wire", "version": "1"},
}
BOTH = ("legacy", "modern")
PATIENCE = 20.0


@pytest.fixture(scope="module")
def gateway_process(upstream_process: Upstream) -> Iterator[Gateway]:
    """As elsewhere, with both eras on offer."""
    with running_gateway(upstreams={"up": upstream_process.url}, eras=BOTH) as process:
        yield process


@pytest.fixture(scope="module")
def everything_process() -> Iterator[Upstream]:
    with running_upstream("everything") as server:
        yield server


@pytest.fixture(scope="module")
def everything(everything_process: Upstream) -> Iterator[Gateway]:
    """A gateway before the server with the tools of the new protocol."""
    with running_gateway(upstreams={"up": everything_process.url}, eras=BOTH) as process:
        yield process


@asynccontextmanager
async def sdk_client(url: str, mode: str, **options: Any) -> AsyncIterator[Client]:
    """The SDK's client, with a way to the gateway that no proxy of the machine stands in."""
    timeout = httpx2.Timeout(30, read=60)
    async with (
        httpx2.AsyncClient(timeout=timeout, trust_env=False) as http,
        Client(streamable_http_client(url, http_client=http), mode=mode, **options) as client,
    ):
        yield client


async def call(
    wire: Wire,
    tool: str,
    arguments: Mapping[str, Any] | None = None,
    *,
    id: bytes = b"1",
    headers: Mapping[str, str | None] | None = None,
    method: str = "tools/call",
) -> Answer:
    """A request of this era, on a raw wire."""
    params = {"name": tool, "arguments": dict(arguments or {}), "_meta": META}
    body = b'{"jsonrpc":"2.0","id":%s,"method":"%s","params":%s}' % (id, method.encode(), json.dumps(params).encode())
    routing = {"MCP-Protocol-Version": MODERN, "Mcp-Method": method, "Mcp-Name": tool}
    return await wire.post(body, {**routing, **(headers or {})})


# The SDK's client.


@pytest.mark.parametrize("mode", ["auto", MODERN])
async def test_the_sdks_client_needs_no_session(gateway: Gateway, upstream: Upstream, mode: str) -> None:
    seen: list[float] = []

    async def progress(progress: float, total: float | None, message: str | None) -> None:
        seen.append(progress)

    async with sdk_client(gateway.url(), mode) as client:
        assert client.protocol_version == MODERN
        assert {"echo", "hold"} <= {tool.name for tool in (await client.list_tools()).tools}
        echoed = await client.call_tool("echo", {"value": {"n": [1, None, "ключ"]}})
        assert echoed.structured_content == {"value": {"n": [1, None, "ключ"]}}
        await client.call_tool("slow", {"steps": 3}, progress_callback=progress)
        with pytest.raises(MCPError) as unknown:
            await client.read_resource("test://nothing")
        assert unknown.value.error.code == -32602
        assert (await client.get_prompt("poem", {"topic": "sea"})).messages

    assert seen == [1, 2, 3]
    report = upstream.report()
    assert not report["sessions"]
    assert not {"initialize", "get", "delete"} & report["counts"].keys()


async def test_who_closes_its_half_behind_a_call_is_answered(gateway: Gateway, upstream: Upstream) -> None:
    """Whoever comes soon enough: nothing tells a half that is closed from a client that has gone."""
    params = {"name": "echo", "arguments": {"value": 7}, "_meta": META}
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
    head = (
        f"POST /servers/up/mcp HTTP/1.1\r\nHost: 127.0.0.1:{gateway.port}\r\nContent-Type: application/json\r\n"
        f"Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\n"
        f"Mcp-Name: echo\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    with anyio.fail_after(PATIENCE):
        for _ in range(2):  # the first one is told of the server's revisions
            async with await anyio.connect_tcp("127.0.0.1", gateway.port) as stream:
                await stream.send((head + body).encode())
                await stream.send_eof()
                answer = b"".join([part async for part in stream])
            assert b'"value":7' in answer


async def test_with_sessions_alone_the_sdks_client_falls_back(upstream: Upstream) -> None:
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with sdk_client(gateway.url(), "auto") as client:
            assert client.protocol_version == "2025-11-25"
            result = await client.call_tool("counter")
            assert result.structured_content == {"result": 1}
        async with sdk_client(gateway.url(), MODERN) as client:
            with pytest.raises(MCPError) as refused:
                await client.list_tools()
        assert refused.value.error.code == -32022
    assert upstream.counts()["initialize"] == 1


async def test_before_a_server_of_sessions_the_sdks_client_falls_back() -> None:
    with (
        running_upstream("sdk1") as server,
        running_gateway(upstreams={"up": server.url}, eras=BOTH) as gateway,
    ):
        for count in (1, 2):
            async with sdk_client(gateway.url(), "auto") as client:
                assert client.protocol_version == "2025-11-25"
                result = await client.call_tool("counter")
                assert result.structured_content == {"result": 1}
            assert (await server.saw("delete", count))["counts"]["initialize"] == count
        assert gateway.metric("trunkline_upstream_requests_total", server="up", kind="probe") == 1


async def test_without_sessions_a_handshake_names_what_is_supported(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    settings = f'[servers.up]\nurl = "{upstream.url}"\neras = ["modern"]\n'
    with running_gateway(toml=settings_file(settings)) as gateway:
        async with Wire(gateway.url()) as wire:
            with pytest.raises(AssertionError) as refused:
                await wire.open()
            assert "-32022" in str(refused.value)
            assert MODERN in str(refused.value)
            assert (await wire.get()).status == 405
        async with Wire(f"{gateway.base}/servers/up/sse") as wire:
            assert (await wire.get()).status == 404
        async with sdk_client(gateway.url(), "auto") as client:
            assert client.protocol_version == MODERN
            assert (await client.call_tool("echo", {"value": 1})).structured_content == {"value": 1}
    assert "initialize" not in upstream.counts()


async def test_l27_what_a_server_needs_is_asked_for_and_given(everything: Gateway) -> None:
    asked: list[str] = []

    async def elicit(context: Any, params: Any) -> types.ElicitResult:
        asked.append(params.message)
        return types.ElicitResult(action="accept", content={"name": "Ada", "ok": True})

    async with sdk_client(everything.url(), MODERN, elicitation_callback=elicit) as client:
        hello = await client.call_tool("test_input_required_result_elicitation")
        state = await client.call_tool("test_input_required_result_request_state")
    assert [block.text for block in hello.content if isinstance(block, types.TextContent)] == ["Hello, Ada!"]
    assert [block.text for block in state.content if isinstance(block, types.TextContent)] == [
        "state-ok: confirmation received"
    ]
    assert asked == ["What is your name?", "Please confirm"]


async def test_l28_subscriptions_reach_those_that_listen(everything: Gateway, everything_process: Upstream) -> None:
    everything_process.reset()
    async with sdk_client(everything.url(), MODERN) as one, sdk_client(everything.url(), MODERN) as other:
        async with one.listen(tools_list_changed=True) as first, other.listen(tools_list_changed=True) as second:
            assert first.honored.tools_list_changed
            with anyio.fail_after(PATIENCE):
                await one.call_tool("test_trigger_tool_change")
                assert isinstance(await anext(first), ToolsListChanged)
                assert isinstance(await anext(second), ToolsListChanged)
        assert everything_process.counts()["method:subscriptions/listen"] == 2
    await until(lambda: everything.metric("trunkline_calls_total", method="subscriptions/listen") == 2)


async def test_g8_a_drain_ends_subscriptions(everything_process: Upstream) -> None:
    with running_gateway(upstreams={"up": everything_process.url}, eras=BOTH) as gateway:
        async with sdk_client(gateway.url(), MODERN) as client, client.listen(tools_list_changed=True) as listening:
            gateway.process.send_signal(signal.SIGTERM)
            with anyio.fail_after(PATIENCE), pytest.raises(SubscriptionLost):
                await anext(listening)
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0


# Raw clients.


async def test_g1_sixty_four_requests_with_one_id_get_each_its_own_answer(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    answers: dict[int, tuple[bytes, str, int]] = {}
    async with Wire(gateway.url()) as wire, anyio.create_task_group() as tasks:

        async def one(n: int) -> None:
            arguments = {"name": key, "parties": 64, "tag": f"{key}/{n}", "place": 63 - n}
            raw = await (await call(wire, "barrier", arguments, id=b'"same"')).raw_response()
            result = json.loads(raw)["result"]["structuredContent"]
            answers[n] = (raw_members(raw)["id"], result["tag"], result["peak"])

        for n in range(64):
            tasks.start_soon(one, n)

    assert answers == {n: (b'"same"', f"{key}/{n}", 64) for n in range(64)}
    report = upstream.report()
    assert {request["id"] for request in report["requests"] if request.get("tool") == "barrier"} == {'"same"'}
    assert report["peak"] == 64


async def test_e13_a_client_that_leaves_cancels_its_request_and_no_other(
    gateway: Gateway, upstream: Upstream, key: str
) -> None:
    async with Wire(gateway.url()) as wire, anyio.create_task_group() as tasks:
        leaving = anyio.CancelScope()

        async def stay() -> None:
            answer = await call(wire, "hold", {"gate": f"{key}-stays"})
            assert text_of(await answer.response()) == f"{key}-stays is open"

        async def leave() -> None:
            with leaving:
                await call(wire, "hold", {"gate": f"{key}-leaves"})

        tasks.start_soon(stay)
        tasks.start_soon(leave)
        await upstream.saw("mark:holding", 2)
        leaving.cancel()
        marks = (await upstream.saw("mark:cancelled"))["marks"]
        assert [mark["gate"] for mark in marks if mark["name"] == "cancelled"] == [f"{key}-leaves"]
        upstream.open(f"{key}-stays")
    assert upstream.counts()["mark:cancelled"] == 1


async def test_e13_a_client_that_leaves_a_stream_cancels_too(gateway: Gateway, upstream: Upstream, key: str) -> None:
    params = {"name": "slow", "arguments": {"steps": 2, "gate": key}, "_meta": {**META, "progressToken": 1}}
    message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
    routing = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "tools/call", "Mcp-Name": "slow"}
    before = gateway.metric("trunkline_calls_total", method="tools/call", outcome="cancelled")
    upstream.open(f"{key}.1")
    async with Wire(gateway.url()) as wire:
        answer = await wire.post(message, routing)
        event = await answer.next_event()
        assert event is not None
        assert json.loads(event.data)["params"] == {"progressToken": 1, "progress": 1, "total": 2, "message": "step 1"}
        assert gateway.metric("trunkline_inflight") == 1
        answer.cut()
        await until(
            lambda: gateway.metric("trunkline_calls_total", method="tools/call", outcome="cancelled") == before + 1
        )
        assert gateway.metric("trunkline_inflight") == 0


async def test_x4_the_token_of_a_client_stays_here(upstream: Upstream, settings_file: Callable[[str], Path]) -> None:
    digest = hashlib.sha256(TOKENS["alice"].encode()).hexdigest()
    settings = (
        f'[auth]\nmode = "tokens"\ntokens = [{{ sha256 = "{digest}", tenant = "acme", subject = "alice" }}]\n'
        f'[servers.up]\nurl = "{upstream.url}"\nheaders = {{ X-Ours = "1" }}\nforward_headers = ["X-Class"]\n'
        "max_inflight_per_workflow = 1\n"
    )
    with running_gateway(toml=settings_file(settings)) as gateway:
        async with Wire(gateway.url(), bearer("alice")) as wire:
            answer = await call(wire, "echo", {"value": 1}, headers={"X-Class": "gold", "X-Other": "1"})
            assert "result" in await answer.response()
            assert (await call(wire, "echo", {"value": 1}, headers={"Authorization": None})).status == 401
    (sent,) = [request for request in upstream.report()["requests"] if request.get("tool") == "echo"]
    headers = dict(sent["headers"])
    assert (headers["x-ours"], headers["x-class"], headers["mcp-name"]) == ("1", "gold", "echo")
    assert not {"authorization", "x-other", "mcp-session-id"} & headers.keys()


async def test_a_server_that_comes_back_with_sessions_alone_is_found_out(key: str) -> None:
    with running_upstream("sdk2") as server, running_gateway(upstreams={"up": server.url}, eras=BOTH) as gateway:
        async with Wire(gateway.url()) as wire:
            assert (await call(wire, "echo", {"value": 1})).status == 200
            server.process.kill()
            away = await (await call(wire, "echo", {"value": 1})).response()
            assert away["error"]["code"] in (-31001, -31002)
            with running_upstream("sdk1", port=server.port):
                refused = await call(wire, "echo", {"value": 1})
                assert refused.status == 400
                error = (await refused.response())["error"]
                assert error["code"] == -32022
                assert "2025-11-25" in error["data"]["supported"]
                await wire.open()


async def test_l29_a_server_that_was_replaced_between_two_calls_is_found_out() -> None:
    with running_upstream("sdk2") as server, running_gateway(upstreams={"up": server.url}, eras=BOTH) as gateway:
        async with Wire(gateway.url()) as wire:
            assert (await call(wire, "echo", {"value": 1})).status == 200
            server.process.kill()
            with running_upstream("sdk1", port=server.port):
                first = (await (await call(wire, "echo", {"value": 1}, id=b'"mine"')).response())["error"]
                assert first["data"]["executed"] == "no"
                refused = await call(wire, "echo", {"value": 1})
                assert refused.status == 400
                assert "2025-11-25" in (await refused.response())["error"]["data"]["supported"]
                await wire.open()


async def test_l29_a_server_that_has_given_up_sessions_is_found_out_when_none_opens() -> None:
    spoken = {"supportedVersions": [MODERN], "resultType": "complete", "capabilities": {}}
    script = {"server/discover": [[Refuse(-32601)], [Reply(spoken)]]}
    async with ScriptedUpstream(script) as server:
        with running_gateway(upstreams={"up": server.url}, eras=BOTH) as gateway:
            async with Wire(gateway.url()) as wire:
                assert (await call(wire, "echo")).status == 400, "it speaks sessions"
                server.script["initialize"] = [[Refuse(-32022, data={"supported": [MODERN]})]]
                assert (await call(wire, "echo")).status == 400
                with pytest.raises(AssertionError, match="-32022"):
                    await wire.open()
                assert (await call(wire, "echo")).status == 200


async def test_g8_l28_a_worker_that_drains_waits_for_no_subscriptions_that_another_one_serves(
    upstream: Upstream, settings_file: Callable[[str], Path], key: str
) -> None:
    with redis_server() as redis:
        settings = (
            f'[directory]\nbackend = "redis"\nurl = "{redis.url}"\n'
            f"[gateway]\ndrain_timeout = {2 * PATIENCE}\n"
            f'[servers.up]\nurl = "{upstream.url}"\n'
        )
        with hosts(settings_file(settings)) as running:
            first, _ = running.complete()
            async with Wire(first.url()) as wire, anyio.create_task_group() as tasks:

                async def hold() -> None:
                    held = await (await call(wire, "hold", {"gate": key})).response()
                    assert text_of(held) == f"{key} is open"

                tasks.start_soon(hold)
                await upstream.saw("mark:holding")
                assert (await call(wire, "echo", {"value": 1})).status == 200
                first.process.send_signal(signal.SIGTERM)
                await until(lambda: http_status(first.port, "/readyz") == 503)
                params = {"notifications": {"toolsListChanged": True}, "_meta": META}
                listen = {"jsonrpc": "2.0", "id": 7, "method": "subscriptions/listen", "params": params}
                headers = {"MCP-Protocol-Version": MODERN, "Mcp-Method": "subscriptions/listen"}
                listening = await wire.post(listen, headers)
                event = await listening.next_event()
                assert event is not None
                assert "acknowledged" in event.data
                upstream.open(key)
                with anyio.fail_after(PATIENCE):
                    assert await anyio.to_thread.run_sync(first.process.wait, PATIENCE) == 0
                    assert not [message async for message in listening.messages()]
