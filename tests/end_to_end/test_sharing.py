"""How far an upstream session is shared: by server, over all transports, and never beyond a principal."""

import asyncio
import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from harness.gateways import TOKENS, Gateway, token_settings
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from websockets.asyncio.client import connect

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
CALL = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"counter","arguments":{}}}'
INITIALIZE = json.dumps(
    {
        "jsonrpc": "2.0",
        "id": 0,
        "method": "initialize",
        "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
    }
)


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {TOKENS[name]}"}


async def over_http(gateway: Gateway, server: str, headers: dict[str, str]) -> str:
    """One call on a connection and a session of its own; what the counter says."""
    async with Wire(gateway.url(server), headers) as wire:
        await wire.open()
        text = text_of(await (await wire.call("counter")).response())
        await wire.delete()
    return text


async def over_websocket(gateway: Gateway, server: str, headers: dict[str, str]) -> str:
    """The same on a socket."""
    url = gateway.url(server).replace("http:", "ws:").removesuffix("mcp") + "ws"
    async with connect(url, subprotocols=["mcp"], additional_headers=headers) as socket, asyncio.timeout(PATIENCE):
        await socket.send(INITIALIZE)
        await socket.recv()
        await socket.send(CALL)
        return text_of(json.loads(await socket.recv()))


async def over_sse(gateway: Gateway, server: str, headers: dict[str, str]) -> str:
    """The same on an SSE stream."""
    base = gateway.url(server).removesuffix("/mcp")
    async with Wire(base, headers) as wire:
        stream = await wire.request("GET", path="/sse", headers={"Accept": "text/event-stream"})
        endpoint = await stream.next_event()
        assert endpoint is not None
        path = endpoint.data.partition(f"/servers/{server}")[2]
        said = ""
        for text in (INITIALIZE, CALL):
            assert (
                await wire.request("POST", text.encode(), {"Content-Type": "application/json"}, path=path)
            ).status == 202
            event = await stream.next_event()
            assert event is not None
            said = event.data
        stream.cut()
    return text_of(json.loads(said))


async def test_separate_connections_of_one_user_share_a_session_over_every_transport(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = token_settings(up=upstream.url) + '\n[pooling]\nreuse = "user"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        alice = bearer("alice")
        said = [await over(gateway, "up", alice) for over in (over_http, over_websocket, over_sse, over_http)]
        assert said == ["1", "2", "3", "4"]
        assert upstream.report()["counts"]["initialize"] == 1
        assert await over_websocket(gateway, "up", bearer("bob")) == "1"
        assert upstream.report()["counts"]["initialize"] == 2
        assert gateway.metric("trunkline_pool_requests_total", result="miss") == 2
        assert gateway.metric("trunkline_channels", server="up", state="idle") == 2
        gateway.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(gateway.process.wait, 15) == 0
    assert (await upstream.saw("delete", 2))["counts"]["delete"] == 2


@pytest.mark.parametrize(("default", "own", "shared"), [("user", "workflow", "plain"), ("workflow", "user", "own")])
async def test_a_servers_own_reuse_wins_over_the_default(
    upstream: Upstream, settings_file: Callable[[str], Path], default: str, own: str, shared: str
) -> None:
    text = token_settings(plain=upstream.url, own=upstream.url) + f'\nreuse = "{own}"\n[pooling]\nreuse = "{default}"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        for server in ("plain", "own"):
            said = [await over_http(gateway, server, bearer("alice")) for _ in range(3)]
            assert said == (["1", "2", "3"] if server == shared else ["1", "1", "1"])


async def test_workflows_that_share_are_told_apart_by_their_own_calls(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = token_settings(up=upstream.url) + '\n[pooling]\nreuse = "user"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url(), bearer("alice")) as one, Wire(gateway.url(), bearer("alice")) as two:
            await one.open()
            await two.open()
            waiting = await one.call("hold", {"gate": "sharing"}, id=b"1")
            await upstream.saw("mark:holding")
            assert text_of(await (await two.call("counter", id=b"1")).response()) == "1"
            await two.delete()
            upstream.open("sharing")
            assert text_of(await waiting.response()) == "sharing is open"
    report = upstream.report()
    assert report["counts"]["initialize"] == 1
