"""G9, G10: whoever sends as fast as it can, client or server, costs the others some time, and no answer."""

import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator

import anyio
import anyio.to_thread
import pytest
from harness.duplex_clients import initialize
from harness.gateways import Gateway
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.upstream_scripted import Forever, OpenStream, ScriptedUpstream
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from websockets.frames import CONT, PING, PONG, TEXT, Frame

pytestmark = pytest.mark.anyio

CALLS = 20
SECONDS = 10.0
"""In which they are answered beside a flood; they took longer while connections were read to their end."""

UPGRADE = (
    b"GET /servers/up/ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: mcp\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def masked(opcode: int, data: bytes = b"", *, fin: bool = True) -> bytes:
    return Frame(opcode, data, fin=fin).serialize(mask=True)


SOCKETS = {
    "pings": masked(PING) * 20_000,
    "pongs": masked(PONG) * 20_000,
    "fragments without end": masked(CONT, fin=False) * 20_000,
}
STREAMS = {
    "lines": b"\n" * 100_000,
    "comments": b": c\n\n" * 20_000,
    "ids": b"id: 1\n\n" * 20_000,
    "nonsense": b"data:[1]\n\n" * 20_000,
}


@pytest.fixture(scope="module")
def ports() -> dict[str, int]:
    """Where the servers listen that flood."""
    return {name: free_port() for name in STREAMS}


@pytest.fixture(scope="module")
def both(
    upstream_process: Upstream, ports: dict[str, int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Gateway]:
    settings = tmp_path_factory.mktemp("floods") / "trunkline.toml"
    urls = {"up": upstream_process.url} | {name: f"http://127.0.0.1:{port}/mcp" for name, port in ports.items()}
    settings.write_text("\n".join(f'[servers.{name}]\nurl = "{url}"\neras = ["legacy"]' for name, url in urls.items()))
    with running_gateway(toml=settings) as process:
        yield process


async def are_answered(gateway: Gateway) -> None:
    """Calls of somebody else, in time."""
    with anyio.fail_after(SECONDS):
        async with Wire(gateway.url()) as good:
            await good.open()
            for n in range(CALLS):
                assert text_of(await (await good.call("counter")).response()) == str(n + 1)


@contextlib.asynccontextmanager
async def flooded(gateway: Gateway, data: bytes, *begin: bytes) -> AsyncIterator[None]:
    """Send this on one connection, again and again and as fast as it is taken, and read what is answered."""
    with socket.create_connection(("127.0.0.1", gateway.port)) as flood:
        for one in begin:
            flood.sendall(one)
            assert flood.recv(65_536)

        def write() -> None:
            with contextlib.suppress(OSError):
                while True:
                    flood.sendall(data)

        def read() -> None:
            with contextlib.suppress(OSError):
                while flood.recv(1_048_576):
                    pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, write)
            tasks.start_soon(anyio.to_thread.run_sync, read)
            try:
                yield
            finally:
                flood.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("name", SOCKETS)
async def test_a_socket_that_floods_holds_nobody_up(both: Gateway, name: str) -> None:
    opening = masked(TEXT, json.dumps(initialize()).encode())
    async with flooded(both, SOCKETS[name], UPGRADE, opening + masked(TEXT, b"{", fin=False)):
        await are_answered(both)


@pytest.mark.parametrize("body", [b'{"jsonrpc":"2.0","id":1,"method":"ping"}', b"x"], ids=["pings", "nonsense"])
async def test_a_client_that_does_not_wait_for_answers_holds_nobody_up(both: Gateway, body: bytes) -> None:
    async with Wire(both.url()) as wire:
        await wire.open()
        head = (
            f"POST /servers/up/mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nMcp-Session-Id: {wire.session_id}\r\n"
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        request = head.encode() + body
        async with flooded(both, request * 2_000, request):
            await are_answered(both)


@pytest.mark.parametrize("name", STREAMS)
async def test_a_server_that_floods_holds_nobody_up(both: Gateway, ports: dict[str, int], name: str) -> None:
    script = {"tools/call": [[OpenStream(), Forever(STREAMS[name])]]}
    async with (
        ScriptedUpstream(script, port=ports[name]) as server,
        Wire(both.url(name)) as hostile,
        anyio.create_task_group() as tasks,
    ):
        await hostile.open()
        tasks.start_soon(hostile.call, "anything")
        await server.saw("tools/call", 1)
        await are_answered(both)
        await hostile.delete()
        tasks.cancel_scope.cancel()
