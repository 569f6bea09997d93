"""The WebSocket protocol of the gateway lends its pings, and keeps nothing of a client that takes nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from harness.listening import serving
from trunkline.gateway import websockets
from trunkline.gateway.websockets import PingingWebSocket
from trunkline.transports.websocket import PING
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


class Application:
    """Accepts a socket, pings when it is told to, and says when the pong has come."""

    def __init__(self) -> None:
        self.pongs = 0
        self.is_waiting = anyio.Event()
        self.ended = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        ping = scope["extensions"][PING]
        await receive()
        await send({"type": "websocket.accept"})
        try:
            async with anyio.create_task_group() as tasks:
                while (event := await receive())["type"] == "websocket.receive":
                    if event["text"] == "flood":
                        await send({"type": "websocket.send", "text": "." * 10_000_000})
                        break
                    tasks.start_soon(self._ping, ping, send)
                tasks.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def _ping(self, ping: Any, send: Any) -> None:
        self.is_waiting.set()
        await ping()
        self.pongs += 1
        await send({"type": "websocket.send", "text": f"pong {self.pongs}"})


@asynccontextmanager
async def socket(app: Application, **options: Any) -> AsyncIterator[ClientConnection]:
    async with (
        serving(app, ws=PingingWebSocket, **options) as port,
        connect(f"ws://127.0.0.1:{port}/", proxy=None, ping_interval=None, max_size=None) as client,
    ):
        with anyio.fail_after(PATIENCE):
            yield client


async def test_a_ping_returns_when_its_pong_has_come() -> None:
    app = Application()
    async with socket(app) as client:
        for n in (1, 2):
            await client.send("ping")
            assert await client.recv() == f"pong {n}"


async def test_pings_at_once_are_told_apart_and_a_pong_that_nobody_asked_for_is_none() -> None:
    app = Application()
    async with socket(app) as client:
        await client.pong(b"unasked")
        for _ in range(3):
            await client.send("ping")
        assert {await client.recv() for _ in range(3)} == {"pong 1", "pong 2", "pong 3"}


async def test_the_servers_own_keep_alive_goes_on() -> None:
    app = Application()
    async with socket(app, ws_ping_interval=0.05, ws_ping_timeout=PATIENCE) as client:
        seen = 0
        original = client.protocol.events_received

        def counting() -> Any:
            nonlocal seen
            events = original()
            seen += sum(event.opcode.name == "PING" for event in events)
            return events

        client.protocol.events_received = counting  # type: ignore[method-assign]
        while seen < 3:
            await client.send("ping")
            await client.recv()
        assert app.pongs >= 1


async def test_a_ping_whose_connection_goes_does_not_return() -> None:
    app = Application()
    async with socket(app) as client:
        client.transport.pause_reading()
        await client.send("ping")
        await app.is_waiting.wait()
        client.transport.abort()
        await app.ended.wait()
        assert app.pongs == 0


async def test_a_connection_that_takes_nothing_is_dropped_when_its_application_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websockets, "LINGER_SECONDS", 0.1)
    app = Application()
    async with socket(app) as client:
        client.transport.pause_reading()
        await client.send("flood")
        await app.ended.wait()
        await anyio.sleep(0.2)
        client.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1006


async def test_g10_a_client_that_pings_and_takes_no_pong_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Application()
    async with socket(app) as client:
        await client.ping()
        monkeypatch.setattr(websockets, "MAX_UNTAKEN_BYTES", -1)  # as if so much were waiting already
        pong = await client.ping()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert pong.done()
        await app.ended.wait()
