"""SIGHUP: the settings are read again. What began goes on, what begins meets the new ones, a fault changes nothing."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from harness.duplex_clients import initialize
from harness.gateways import Gateway, bearer, token_settings, until
from harness.gateways import gateway as running_gateway
from harness.operators import Operator, both
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire, text_of
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


@pytest.fixture
def operator(upstream: Upstream, settings_file: Callable[[str], Path]) -> Iterator[Operator]:
    """The operator of a gateway that knows Alice and Bob, before the servers `up` and `other`, which are the same."""
    path = settings_file(both(upstream))
    with running_gateway(toml=path) as gateway:
        yield Operator(gateway, path)


async def counted(wire: Wire, server: str = "") -> str:
    """What the counter of the wire's session says."""
    return text_of(await (await wire.call("counter")).response())


def sessions_of(upstream: Upstream) -> list[str]:
    """The upstream sessions of the calls of `counter`, in order."""
    return [request["session"] for request in upstream.report()["requests"] if request.get("tool") == "counter"]


async def test_a_server_goes_over_to_sharing_and_back_while_it_is_used(
    operator: Operator, upstream: Upstream, key: str
) -> None:
    gateway, alice = operator.gateway, bearer("alice")
    async with Wire(gateway.url(), alice) as first, Wire(gateway.url("other"), alice) as other:
        await first.open()
        await other.open()
        assert await counted(first) == await counted(other) == "1"
        waiting = await first.call("hold", {"gate": key}, id=b"2")
        await upstream.saw("mark:holding")

        await operator.reload(both(upstream, 'reuse = "user"'))
        assert operator.logged("reloaded: 1 changed (up), 1 unchanged") == 1
        assert gateway.metric("trunkline_channels", server="up", state="draining") == 1
        assert gateway.metric("trunkline_channels", server="other", state="draining") == 0
        async with Wire(gateway.url(), alice) as second, Wire(gateway.url(), alice) as third:
            await second.open()
            await third.open()
            assert [await counted(wire) for wire in (second, third, second)] == ["1", "2", "3"]
            assert [await counted(wire) for wire in (first, other)] == ["2", "2"]
            upstream.open(key)
            assert text_of(await waiting.response()) == f"{key} is open"

            await operator.reload(both(upstream, 'reuse = "workflow"'))
            assert gateway.metric("trunkline_channels", server="up", state="draining") == 2
            async with Wire(gateway.url(), alice) as fourth:
                await fourth.open()
                said = [await counted(wire) for wire in (fourth, third, first, other)]
                assert said == ["1", "4", "3", "3"]
                await fourth.delete()
            await third.delete()
            assert await counted(second) == "5"
            await second.delete()  # the last that had the shared session
        assert await counted(first) == "4"
        await first.delete()
        assert await counted(other) == "4"

    report = await upstream.saw("delete", 3)
    own, theirs, shared, fourth_session = report["sessions"]
    assert report["counts"]["initialize"] == 4
    called = sessions_of(upstream)
    assert called.count(own) == called.count(theirs) == 4
    assert (called.count(shared), called.count(fourth_session)) == (5, 1)
    await until(lambda: gateway.metric("trunkline_channels", server="up", state="draining") == 0)
    assert gateway.metric("trunkline_workflows_closed_total", reason="reconfigured") == 0


async def test_a_session_under_old_settings_that_nobody_uses_ends_after_the_window(
    operator: Operator, upstream: Upstream
) -> None:
    gateway = operator.gateway
    await operator.reload(both(upstream, more="[pooling]\nresume_window = 0.5\n"))
    async with Wire(gateway.url(), {**bearer("alice"), "Trunkline-Workflow": "chat"}) as keyed:
        assert await counted(keyed) == "1"
        async with Wire(gateway.url(), bearer("bob")) as listening:
            await listening.open()
            stream = await listening.get()
            await operator.reload(both(upstream, "stateless = true", "[pooling]\nresume_window = 0.5\n"))
            await until(lambda: gateway.metric("trunkline_workflows_closed_total", reason="reconfigured") == 1)
            again = await keyed.call("counter")
            assert again.headers["Trunkline-Workflow-State"] == "reset"
            assert text_of(await again.response()) == "1"
            assert await counted(listening) == "1", "a client that listens keeps its session"
            stream.cut()
    assert (await upstream.saw("delete"))["counts"]["initialize"] == 3


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("[servers.up]\nurl = 'ftp://x'\n", "servers.up.url"),
        ("[pooling]\nreuse = 'all'\n", "pooling.reuse"),
        ("[gateway]\nprot = 1\n", "gateway.prot: unknown key; did you mean port?"),
        ("not toml", "is not TOML"),
        (
            "[servers.up]\nurl = 'http://127.0.0.1:1/'\nheaders = { A = '${TRUNKLINE_NO_SUCH}' }\n",
            "servers.up.headers.A",
        ),
    ],
)
async def test_a_file_with_a_fault_changes_nothing(
    operator: Operator, upstream: Upstream, fault: str, told: str
) -> None:
    gateway = operator.gateway
    async with Wire(gateway.url(), bearer("alice")) as wire:
        await wire.open()
        assert await counted(wire) == "1"
        await operator.reload(fault, "refused")
        assert operator.logged("not reloaded") == operator.logged(told) == 1
        assert "Traceback" not in gateway.process.log()
        assert await counted(wire) == "2"
        async with Wire(gateway.url("other"), bearer("bob")) as other:
            await other.open()
            assert await counted(other) == "1"
        assert gateway.metric("trunkline_channels", state="draining") == 0
        await operator.reload(both(upstream))
        assert operator.logged("reloaded: 2 unchanged") == 1
        assert await counted(wire) == "3"
    assert gateway.metric("trunkline_reloads_total", outcome="refused") == 1


async def test_a_server_that_is_taken_out_takes_nobody_and_keeps_whom_it_has(
    operator: Operator, upstream: Upstream, key: str
) -> None:
    gateway, alice = operator.gateway, bearer("alice")
    keyed = {**alice, "Trunkline-Workflow": "chat"}
    async with Wire(gateway.url(), alice) as wire, Wire(gateway.url(), keyed) as chat:
        await wire.open()
        assert await counted(chat) == "1"
        waiting = await wire.call("hold", {"gate": key})
        await upstream.saw("mark:holding")
        await operator.reload(token_settings(other=upstream.url))
        assert operator.logged("reloaded: 1 removed (up), 1 unchanged") == 1

        for transport in ("mcp", "sse", "ws", "modern"):
            await nothing_begins(gateway, transport)
        upstream.open(key)
        assert text_of(await waiting.response()) == f"{key} is open"
        assert await counted(wire) == "1"
        assert await counted(chat) == "2"
        async with connect(
            ws(gateway) + f"?session_id={wire.session_id}", subprotocols=["mcp"], additional_headers=alice
        ) as socket:
            await socket.send(
                '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"counter","arguments":{}}}'
            )
            async with asyncio.timeout(PATIENCE):
                assert text_of(json.loads(await socket.recv())) == "2"
        assert gateway.metric("trunkline_channels", server="up", state="draining") == 2
        await wire.delete()
        assert (await wire.call("counter")).status == 404
        await chat.delete({"Trunkline-End": "workflow"})
    await upstream.saw("delete", 2)
    await until(lambda: gateway.metric("trunkline_channels", server="up") == 0)
    await operator.reload(token_settings(other=upstream.url))
    await nothing_begins(gateway, "mcp")

    await operator.reload(both(upstream))
    async with Wire(gateway.url(), alice) as back:
        await back.open()
        assert await counted(back) == "1"


async def nothing_begins(gateway: Gateway, transport: str) -> None:
    """The server `up` is answered with 404 by its name, over this transport."""
    if transport == "ws":
        url = ws(gateway).replace("ws:", "http:")
        upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        headers = {**upgrade, "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "mcp"}
        async with aiohttp.ClientSession() as http, http.get(url, headers={**headers, **bearer("alice")}) as answer:
            status, told = answer.status, await answer.text()
    else:
        async with Wire(gateway.url(), bearer("alice")) as wire:
            if transport == "modern":
                asked = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}
                refused = await wire.post(asked, {"MCP-Protocol-Version": "2026-07-28"})
            elif transport == "sse":
                refused = await wire.request("GET", path="/../sse", headers={"Accept": "text/event-stream"})
            else:
                refused = await wire.post(initialize())
            status, told = refused.status, (await refused.body()).decode()
    assert status == 404
    assert "there is no server up" in told


def ws(gateway: Gateway, server: str = "up") -> str:
    """The WebSocket endpoint of a server."""
    return gateway.url(server).replace("http:", "ws:").removesuffix("mcp") + "ws"


async def test_a_token_that_is_taken_out_ends_its_streams_and_sessions_and_no_others(
    operator: Operator, upstream: Upstream
) -> None:
    gateway, alice, bob = operator.gateway, bearer("alice"), bearer("bob")
    async with Wire(gateway.url(), alice) as hers, Wire(gateway.url(), bob) as his:
        for wire in (hers, his):
            await wire.open()
            assert await counted(wire) == "1"
        theirs = [await wire.get() for wire in (hers, his)]
        sse = await hers.request("GET", path="/../sse", headers={"Accept": "text/event-stream"})
        async with (
            connect(ws(gateway), subprotocols=["mcp"], additional_headers=alice) as her_socket,
            connect(ws(gateway), subprotocols=["mcp"], additional_headers=bob) as his_socket,
        ):
            await operator.reload(without_alice(both(upstream)))
            assert operator.logged("reloaded: 2 unchanged, auth") == 1
            for stream in (theirs[0], sse):
                async for _ in stream.events():
                    pass
            with pytest.raises(ConnectionClosed) as closed:
                async with asyncio.timeout(PATIENCE):
                    await her_socket.recv()
            assert closed.value.rcvd is not None
            assert closed.value.rcvd.code == 4401
            assert gateway.metric("trunkline_refused_total", reason="identity_ended") == 3
            assert (await hers.call("counter")).status == 401
            assert await counted(his) == "2"
            await his_socket.send(json.dumps(initialize()))
            async with asyncio.timeout(PATIENCE):
                assert "result" in json.loads(await his_socket.recv())
        assert gateway.metric("trunkline_workflows_closed_total", reason="revoked") == 1
        await operator.reload(both(upstream))
        assert (await hers.call("counter")).status == 404
        assert await counted(his) == "3"


def without_alice(text: str) -> str:
    """These settings without her token."""
    start = text.index("tokens = [") + len("tokens = [")
    return text[:start] + text[text.index("}, ", start) + len("}, ") :]


async def test_a_rotated_secret_drops_nothing(operator: Operator, upstream: Upstream) -> None:
    gateway = operator.gateway

    def with_secret(value: str) -> str:
        return both(upstream, f'headers = {{ Authorization = "Bearer {value}" }}')

    await operator.reload(with_secret("secret-1"))
    async with Wire(gateway.url(), bearer("alice")) as wire:
        await wire.open()
        assert await counted(wire) == "1"
        await operator.reload(with_secret("secret-2"))
        assert operator.logged("reloaded: 1 rotated (up), 1 unchanged") == 1
        assert await counted(wire) == "2"
        assert gateway.metric("trunkline_channels", state="draining") == 0
    calls = [request for request in upstream.report()["requests"] if request.get("tool") == "counter"]
    assert [dict(call["headers"])["authorization"] for call in calls] == ["Bearer secret-1", "Bearer secret-2"]
    assert len({call["session"] for call in calls}) == 1
    assert "secret-" not in gateway.process.log()


async def test_a_rotated_secret_is_carried_under_older_settings_too_and_nowhere_else(
    operator: Operator, upstream: Upstream
) -> None:
    gateway = operator.gateway

    def with_secret(value: str, seconds: int, url: str = upstream.url) -> str:
        own = f'headers = {{ Authorization = "Bearer {value}" }}\nrequest_timeout = {seconds}'
        return f"{token_settings(up=url)}\n{own}\n"

    await operator.reload(with_secret("secret-1", 10))
    with running_upstream("sdk2") as moved:
        async with Wire(gateway.url(), bearer("alice")) as wire:
            await wire.open()
            assert await counted(wire) == "1"
            await operator.reload(with_secret("secret-1", 11))
            await operator.reload(with_secret("secret-2", 11))
            assert await counted(wire) == "2"
            await operator.reload(with_secret("secret-3", 12))
            assert await counted(wire) == "3"
            await operator.reload(with_secret("secret-4", 12, moved.url))
            assert await counted(wire) == "4"
    calls = [request for request in upstream.report()["requests"] if request.get("tool") == "counter"]
    assert [dict(call["headers"])["authorization"] for call in calls] == [f"Bearer secret-{n}" for n in (1, 2, 3, 3)]
    assert len({call["session"] for call in calls}) == 1


async def test_what_only_a_restart_changes_is_named_and_the_rest_holds(operator: Operator, upstream: Upstream) -> None:
    gateway = operator.gateway
    listener = '[gateway]\nhost = "127.0.0.2"\nallowed_origins = ["https://app.example"]\n[gateway.tls]\n'
    origin = {**bearer("alice"), "Origin": "https://app.example"}
    async with Wire(gateway.url(), origin) as wire:
        assert (await wire.post(initialize())).status == 403
        await operator.reload(both(upstream, more=listener))
        assert operator.logged("only a restart changes it: gateway.host") == 1
        assert operator.logged("reloaded: 2 unchanged, gateway.allowed_origins") == 1
        assert (await wire.post(initialize())).status == 200


@pytest.mark.parametrize("is_changed", [False, True])
async def test_a_stream_that_was_opened_before_begins_where_its_server_is_as_it_was(
    operator: Operator, upstream: Upstream, is_changed: bool
) -> None:
    base = operator.gateway.url().removesuffix("/mcp")
    async with Wire(base, bearer("alice")) as wire:
        stream = await wire.request("GET", path="/sse", headers={"Accept": "text/event-stream"})
        endpoint = await stream.next_event()
        assert endpoint is not None
        own = "stateless = true" if is_changed else ""
        await operator.reload(f"{token_settings(up=upstream.url)}\n{own}")
        path = endpoint.data.partition("/servers/up")[2]
        body, headers = json.dumps(initialize()).encode(), {"Content-Type": "application/json"}
        assert (await wire.request("POST", body, headers, path=path)).status == 202
        event = await stream.next_event()
        assert event is not None
        answer = json.loads(event.data)
        if is_changed:
            assert (answer["error"]["code"], answer["error"]["data"]) == (-31003, {"limit": "reconfigured"})
        else:
            assert "result" in answer
        stream.cut()


async def test_requests_without_a_session_end_where_they_began(
    upstream: Upstream, settings_file: Callable[[str], Path], key: str
) -> None:
    def settings(url: str) -> str:
        return f'[servers.up]\nurl = "{url}"\neras = ["modern"]\n'

    path = settings_file(settings(upstream.url))
    with running_upstream("sdk2") as moved, running_gateway(toml=path) as gateway:
        operator = Operator(gateway, path)
        async with Wire(gateway.url()) as wire:
            waiting = asyncio.create_task(modern_call(wire, "hold", gate=key))
            await upstream.saw("mark:holding")
            await operator.reload(settings(moved.url))
            assert "result" in await modern_call(wire, "echo", value=1)
            assert (moved.counts()["method:tools/call"], upstream.counts()["method:tools/call"]) == (1, 1)
            upstream.open(key)
            assert text_of(await waiting) == f"{key} is open"
    assert upstream.counts().get("mark:cancelled", 0) == 0


async def modern_call(wire: Wire, tool: str, **arguments: Any) -> dict[str, Any]:
    """A call of 2026-07-28."""
    revision = "2026-07-28"
    meta = {
        "io.modelcontextprotocol/protocolVersion": revision,
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": {"name": "t", "version": "1"},
    }
    body = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": tool, "arguments": arguments, "_meta": meta},
    }
    headers = {"MCP-Protocol-Version": revision, "Mcp-Method": "tools/call", "Mcp-Name": tool}
    return await (await wire.post(body, headers)).response()
