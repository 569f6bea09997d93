"""Who is served: tokens of an issuer, a trusted proxy, tickets for browsers, and what happens when an identity ends."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import jwt
import pytest
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.raw_http import Peer, serving
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from trunkline.gateway.app import Gateway as App
from trunkline.gateway.settings import AuthSection, Settings
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.anyio

SECRET = "a secret that is long enough for HS256, as a test has it"
ISSUER = "https://issuer.example"
PAGE = "https://app.example"
PATIENCE = 10.0


def token(subject: str = "alice", *, seconds: float = 600, **changes: Any) -> str:
    claims = {
        "iss": ISSUER,
        "aud": "gateway",
        "sub": subject,
        "tenant": "acme",
        "exp": time.time() + seconds,
        **changes,
    }
    return jwt.encode(claims, SECRET, "HS256")


def bearer(text: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {text}"}


@pytest.fixture(scope="module")
def guarded(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that believes the tokens of an issuer."""
    path = tmp_path_factory.mktemp("jwt") / "trunkline.toml"
    path.write_text(
        f'[auth]\nmode = "jwt"\nissuer = "{ISSUER}"\naudience = "gateway"\nsecret = "{SECRET}"\n'
        f'algorithms = ["HS256"]\n[gateway]\nallowed_origins = ["{PAGE}"]\n'
        f'[servers.up]\nurl = "{upstream_process.url}"\neras = ["legacy"]\n'
    )
    with running_gateway(toml=path) as process:
        yield process


async def test_x2_every_request_needs_a_valid_token_and_is_told_where_to_get_one(guarded: Gateway) -> None:
    async with Wire(guarded.url(), bearer(token())) as wire:
        await wire.open()
        for headers in ({"Authorization": None}, bearer("x"), bearer(token(seconds=-60)), bearer(token(aud="other"))):
            answer = await wire.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}, headers)
            assert answer.status == 401
            challenge = answer.headers["WWW-Authenticate"]
            assert challenge.startswith("Bearer ")
            where = challenge.partition('resource_metadata="')[2].partition('"')[0]
            assert where == f"{guarded.base}/.well-known/oauth-protected-resource/servers/up/mcp"
    assert json.loads(guarded.fetch("/.well-known/oauth-protected-resource/servers/up/mcp")) == {
        "resource": guarded.url(),
        "authorization_servers": [ISSUER],
        "bearer_methods_supported": ["header"],
    }


async def test_a_page_that_may_speak_here_may_learn_who_gives_tokens(guarded: Gateway) -> None:
    asking = {"Access-Control-Request-Method": "GET", "Access-Control-Request-Headers": "mcp-protocol-version"}
    async with Wire(f"{guarded.base}/.well-known/oauth-protected-resource/servers/up/mcp") as wire:
        for method, headers, status in (("GET", {}, 200), ("OPTIONS", asking, 204)):
            answer = await wire.request(method, headers={"Origin": PAGE, **headers})
            assert answer.status == status
            assert answer.headers["Access-Control-Allow-Origin"] == PAGE
            assert (await wire.request(method, headers={"Origin": "https://evil.example", **headers})).status == 403
        assert "MCP-Protocol-Version" in answer.headers["Access-Control-Allow-Headers"]
        assert "Access-Control-Allow-Origin" not in (await wire.request("GET")).headers


async def test_a_refreshed_token_of_the_same_subject_keeps_the_session_and_another_subject_has_none(
    guarded: Gateway,
) -> None:
    async with Wire(guarded.url(), bearer(token())) as wire:
        await wire.open()
        assert text_of(await (await wire.call("counter")).response()) == "1"
        fresh = bearer(token(seconds=1200))
        assert text_of(await (await wire.call("counter", headers=fresh)).response()) == "2"
        for stranger in (token("bob"), token(tenant="other")):
            assert (await wire.call("counter", headers=bearer(stranger))).status == 404
        assert text_of(await (await wire.call("counter")).response()) == "3"


@pytest.mark.parametrize("kind", ["GET", "SSE"])
async def test_a_stream_ends_when_its_identity_does_and_goes_on_with_a_fresh_one(guarded: Gateway, kind: str) -> None:
    async with Wire(guarded.url(), bearer(token())) as wire:
        await wire.open()
        short = bearer(token(seconds=2))
        if kind == "GET":
            stream = await wire.get(headers=short)
        else:
            stream = await wire.request("GET", path="/../sse", headers={"Accept": "text/event-stream", **short})
        assert stream.status == 200
        async for _ in stream.events():
            pass
        assert text_of(await (await wire.call("counter")).response()) == "1"


async def test_a_ticket_opens_one_socket_for_a_browser_and_it_ends_with_its_identity(guarded: Gateway) -> None:
    async with Wire(guarded.url().removesuffix("/mcp") + "/ticket", bearer(token(seconds=4))) as wire:
        given = await (await wire.request("POST")).json()
        refused = await wire.request("POST", headers={"Authorization": None})
    assert refused.status == 401
    assert given["expires_in"] == 30
    url = guarded.url().replace("http:", "ws:").removesuffix("/mcp") + f"/ws?workflow=tab&ticket={given['ticket']}"
    async with connect(url, subprotocols=["mcp"]) as socket:
        await socket.send('{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"counter","arguments":{}}}')
        async with asyncio.timeout(PATIENCE):
            assert text_of(json.loads(await socket.recv())) == "1"
        with pytest.raises(InvalidStatus) as used:
            async with connect(url, subprotocols=["mcp"]):
                pass
        assert used.value.response.status_code == 401
        with pytest.raises(ConnectionClosed) as closed:
            async with asyncio.timeout(PATIENCE):
                await socket.recv()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 4401


async def test_a_gateway_does_not_serve_before_it_has_asked_for_the_keys_of_tokens() -> None:
    asked, release, entered, leave = (anyio.Event() for _ in range(4))

    async def serve(peer: Peer) -> None:
        await peer.request()
        asked.set()
        await release.wait()
        await peer.say(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")

    async def run(settings: Settings) -> None:
        async with App(settings).running():
            entered.set()
            await leave.wait()

    with anyio.fail_after(PATIENCE):
        async with serving(serve) as issuer, anyio.create_task_group() as tasks:
            tasks.start_soon(run, Settings(auth=AuthSection(mode="jwt", issuer="i", audience="a", jwks=issuer.url)))
            await asked.wait()
            await anyio.wait_all_tasks_blocked()
            assert not entered.is_set()
            release.set()
            await entered.wait()  # whatever came of it
            leave.set()


async def test_while_the_keys_of_tokens_are_away_a_client_is_asked_to_come_again(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    text = (
        f'[auth]\nmode = "jwt"\nissuer = "{ISSUER}"\naudience = "gateway"\njwks = "http://127.0.0.1:{free_port()}/"\n'
        f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n'
    )
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url(), bearer(token())) as wire:
            for answer in (await wire.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}), await wire.get()):
                assert (answer.status, answer.headers["Retry-After"]) == (503, "10")
        assert gateway.metric("trunkline_refused_total", reason="issuer_keys") == 2


async def test_a_trusted_proxy_names_the_user(upstream: Upstream, settings_file: Callable[[str], Path]) -> None:
    text = (
        '[auth]\nmode = "proxy"\n[gateway]\ntrusted_proxies = ["127.0.0.1"]\n'
        f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n'
    )
    with running_gateway(toml=settings_file(text)) as gateway:
        for subject in ("alice", "bob"):
            async with Wire(gateway.url(), {"X-Auth-Subject": subject, "Trunkline-Workflow": "chat"}) as wire:
                for n in (1, 2):
                    assert text_of(await (await wire.call("counter")).response()) == str(n)
        async with Wire(gateway.url(), {"Trunkline-Workflow": "chat"}) as nobody:
            assert (await nobody.call("counter")).status == 401
    with anyio.fail_after(PATIENCE):
        assert (await upstream.saw("initialize", 2))["counts"]["initialize"] == 2


async def test_who_only_says_that_it_comes_from_a_trusted_proxy_is_nobody(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    """The peer is the socket's, whatever uvicorn would make of `X-Forwarded-For`."""
    text = f'[auth]\nmode = "proxy"\n[gateway]\ntrusted_proxies = ["192.0.2.1"]\n[servers.up]\nurl = "{upstream.url}"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url(), {"X-Auth-Subject": "alice", "X-Forwarded-For": "192.0.2.1"}) as wire:
            for answer in (await wire.post({"jsonrpc": "2.0", "id": 1, "method": "ping"}), await wire.get()):
                assert answer.status == 401


async def test_nothing_secret_is_told(guarded: Gateway) -> None:
    secret = token("whistle-blower")
    async with Wire(guarded.url(), bearer(secret)) as wire:
        await wire.open()
        await (await wire.call("counter")).response()
        session = wire.session_id
    log = guarded.process.log()
    for hidden in (secret, session, SECRET, "whistle-blower"):
        assert hidden is not None
        assert hidden not in log
        assert hidden not in guarded.fetch("/metrics")
