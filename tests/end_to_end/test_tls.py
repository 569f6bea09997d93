"""A gateway that speaks HTTPS itself: each transport over it, and a stop that waits for no handshake."""

import asyncio
import json
import re
import signal
import socket
import ssl
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import pytest
import websockets
from harness.certificates import Certificate, certificate
from harness.gateways import command, environment, until
from harness.ports import free_port
from harness.processes import ServerProcess
from harness.upstreams import Upstream
from mcp import Client
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from trunkline.gateway.call import CallFailed, Outcome, perform, read_call
from trunkline.gateway.sessions import Unavailable, source_of

pytestmark = pytest.mark.anyio


class TLSGateway(NamedTuple):
    """A gateway that runs, the files of its certificate, and a client's side that trusts what these held first."""

    process: ServerProcess
    port: int
    certificate: Certificate
    trusting: ssl.SSLContext

    def is_ready(self) -> bool:
        """Whether it answers."""
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=self.trusting)
        )
        try:
            with opener.open(f"https://127.0.0.1:{self.port}/readyz", timeout=5) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    @asynccontextmanager
    async def client(self, transport: str) -> AsyncIterator[Client]:
        """The SDK's."""
        base, context = f"https://127.0.0.1:{self.port}/servers/up", self.trusting

        def http(headers: Any = None, timeout: Any = None, auth: Any = None) -> httpx2.AsyncClient:
            return httpx2.AsyncClient(headers=headers, timeout=timeout, auth=auth, verify=context, trust_env=False)

        async with http() as shared:
            streams: Any = (
                sse_client(f"{base}/sse", httpx_client_factory=http)
                if transport == "sse"
                else streamable_http_client(f"{base}/mcp", http_client=shared)
            )
            async with Client(streams, mode="legacy") as client:
                yield client


@pytest.fixture
async def gateway(upstream: Upstream, tmp_path: Path) -> AsyncIterator[TLSGateway]:
    made = certificate(tmp_path)
    toml = tmp_path / "trunkline.toml"
    toml.write_text(
        f'[gateway.tls]\ncert = "{made.cert}"\nkey = "{made.key}"\n'
        f'[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n'
    )
    port = free_port()
    process = ServerProcess(command("serve", str(toml), "--port", str(port)), env=environment())
    at = TLSGateway(process, port, made, made.trusting())
    try:
        await until(at.is_ready, timeout=60)
        yield at
    finally:
        process.kill()


@pytest.mark.parametrize("transport", ["http", "sse"])
async def test_a_session_goes_on_over_https(gateway: TLSGateway, transport: str) -> None:
    async with gateway.client(transport) as client:
        for count in (1, 2):
            result = await client.call_tool("counter", {})
            assert [block.text for block in result.content if block.type == "text"] == [str(count)]


async def test_a_session_goes_on_over_a_secured_websocket(gateway: TLSGateway) -> None:
    params = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "me", "version": "1"}}
    async with websockets.connect(
        f"wss://127.0.0.1:{gateway.port}/servers/up/ws",
        subprotocols=[websockets.Subprotocol("mcp")],
        ssl=gateway.trusting,
        proxy=None,
    ) as socket:
        for message in (
            {"id": 0, "method": "initialize", "params": params},
            {"method": "notifications/initialized"},
            *({"id": n, "method": "tools/call", "params": {"name": "counter", "arguments": {}}} for n in (1, 2)),
        ):
            await socket.send(json.dumps({"jsonrpc": "2.0", **message}))
            if "id" in message:
                answer = json.loads(await socket.recv())
                assert answer["id"] == message["id"]
                if message["id"]:
                    assert answer["result"]["content"][0]["text"] == str(message["id"])


async def test_commands_say_that_a_certificate_is_not_trusted_and_take_another_to_trust(
    gateway: TLSGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = f"https://127.0.0.1:{gateway.port}"

    async def count(kind: str) -> Outcome:
        return await perform(
            read_call(f"{base}/servers/up/mcp", "counter", "{}", kind=kind, headers=(), workflow="one")
        )

    for kind in ("http", "sse", "ws"):
        with pytest.raises(CallFailed, match=r"up/\w+: its certificate is not trusted here \(.*SSL_CERT_FILE"):
            await count(kind)
    with pytest.raises(Unavailable, match=rf"^{base}: its certificate is not trusted here \(.*SSL_CERT_FILE"):
        source_of(base, None).fetch()
    with pytest.raises(Unavailable, match="without an answer: it may want https"):
        source_of(base.replace("https:", "http:"), None).fetch()
    monkeypatch.setenv("SSL_CERT_FILE", str(gateway.certificate.cert))
    assert [(await count(kind)).texts for kind in ("http", "sse", "ws")] == [["1"], ["2"], ["3"]]
    assert len(source_of(base, None).fetch()) == 1


async def test_of_a_certificate_for_another_name_nobody_is_told_to_trust_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(made.cert))
    shown = made.showing()
    async with await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.2", 0, ssl=shown) as server:
        base = f"https://127.0.0.2:{server.sockets[0].getsockname()[1]}"
        with pytest.raises(Unavailable) as told:
            await asyncio.to_thread(source_of(base, None).fetch)
    assert re.fullmatch(rf"{base}: its certificate does not verify: .* '127\.0\.0\.2'", str(told.value))


async def test_a_stop_does_not_wait_for_a_client_that_never_says_anything(gateway: TLSGateway) -> None:
    with socket.create_connection(("127.0.0.1", gateway.port)) as silent:
        gateway.process.send_signal(signal.SIGTERM)
        assert gateway.process.wait(10) == 0
        silent.settimeout(5)
        with suppress(ConnectionResetError):  # either is an end
            assert silent.recv(1) == b""


async def test_a_reload_shows_the_certificate_that_is_in_the_files_by_then(gateway: TLSGateway, tmp_path: Path) -> None:
    (tmp_path / "renewed").mkdir()
    renewed = certificate(tmp_path / "renewed")
    after = gateway._replace(trusting=renewed.trusting())
    async with gateway.client("http") as client:
        await client.call_tool("counter", {})
        renewed.key.replace(gateway.certificate.key)
        gateway.process.send_signal(signal.SIGHUP)
        await until(lambda: "not reloaded" in gateway.process.log())
        assert "gateway.tls" in gateway.process.log()
        assert gateway.is_ready(), "a key that is not the certificate's changes nothing"
        renewed.cert.replace(gateway.certificate.cert)
        gateway.process.send_signal(signal.SIGHUP)
        await until(after.is_ready)
        assert not gateway.is_ready()
        result = await client.call_tool("counter", {})
        assert [block.text for block in result.content if block.type == "text"] == ["2"]
