"""G10: large bodies that do not come to their end take so much memory of each user, and cost the others nothing."""

import contextlib
import json
import select
import socket
from collections.abc import Iterator

import anyio
import pytest
from harness.gateways import TOKENS, Gateway, token_settings
from harness.gateways import gateway as running_gateway
from harness.upstreams import Upstream
from harness.wire import Wire

pytestmark = pytest.mark.anyio

MIB = 1024 * 1024
LARGEST = 4 * MIB
BODIES = 16
"""So many of the largest may be one user's."""


@pytest.fixture(scope="module")
def known(upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    settings = tmp_path_factory.mktemp("bodies") / "trunkline.toml"
    settings.write_text(token_settings(up=upstream_process.url))
    with running_gateway(toml=settings) as process:
        yield process


def wire_of(gateway: Gateway, user: str) -> Wire:
    return Wire(gateway.url(), headers={"Authorization": f"Bearer {TOKENS[user]}"})


async def status_of_large(wire: Wire) -> int:
    """Of a call with 1 MiB, which come back where it is answered."""
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call"}
    answer = await wire.post(body | {"params": {"name": "echo", "arguments": {"value": "x" * MIB}}})
    text = await answer.body()
    if answer.status != 200:
        assert json.loads(text)["error"]["data"] == {"limit": "max_large_bytes_per_user"}
        assert answer.headers["retry-after"] == "10"
    return answer.status


class Slow:
    """Bodies of one user that do not come to their end, as many as are taken."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._head = (
            f"POST /servers/up/mcp HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
            "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n"
            f"Content-Length: {LARGEST}\r\n\r\n"
        ).encode()
        self._coming: list[socket.socket] = []

    async def fill(self) -> None:
        """Send more for those that were refused, since others came meanwhile."""
        refused, _, _ = select.select(self._coming, [], [], 0)
        for one in refused:
            self._coming.remove(one)
            one.close()
        while len(self._coming) < BODIES:
            self._coming.append(socket.create_connection(("127.0.0.1", self._port)))
            await anyio.to_thread.run_sync(self._coming[-1].sendall, self._head + b" " * (LARGEST - 1))

    def close(self) -> None:
        for one in self._coming:
            one.close()


async def test_g10_who_sends_large_bodies_slowly_is_refused_more_of_them(known: Gateway) -> None:
    first, second = list(TOKENS)[:2]
    slow = Slow(known.port, TOKENS[first])
    async with wire_of(known, first) as wire, wire_of(known, second) as other:
        await wire.open()
        await other.open()
        with contextlib.closing(slow), anyio.fail_after(60):
            await slow.fill()
            while await status_of_large(wire) != 429:
                await slow.fill()
            assert known.metric("trunkline_refused_total", reason="max_large_bytes_per_user") >= 1
            assert "result" in await (await wire.call("echo", {"value": "small"})).response()
            assert await status_of_large(other) == 200
        with anyio.fail_after(60):
            while await status_of_large(wire) != 200:  # noqa: ASYNC110 - nothing tells that it has heard of their end
                await anyio.sleep(0.02)
