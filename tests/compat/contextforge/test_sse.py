"""A transport object for each SSE stream, read by a client over the loopback of ASGI."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import pytest
from harness.sse import Parser
from starlette.background import BackgroundTask
from trunkline.compat.contextforge import sse
from trunkline.compat.contextforge.sse import SSETransport, StreamSettings
from trunkline.transports import Transport

pytestmark = pytest.mark.anyio


class Quick(SSETransport):
    settings = StreamSettings("http://gateway/", retry=7, keepalive=None)


class Client:
    """Reads one response, as uvicorn would send it."""

    def __init__(self, transport: SSETransport, callback: Any = None) -> None:
        self._transport = transport
        self._callback = callback
        self._leave = asyncio.Event()
        self.events: asyncio.Queue[Any] = asyncio.Queue()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.background = asyncio.Event()
        self.takes = True
        self._parser = Parser()

    async def __aenter__(self) -> "Client":
        response = await self._transport.create_sse_response(None, on_disconnect_callback=self._callback)
        response.background = BackgroundTask(self._in_background)
        self.serving = asyncio.create_task(response({"type": "http"}, self._receive, self._send))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._leave.set()
        await asyncio.wait_for(self.serving, 10)

    async def next(self) -> Any:
        return await asyncio.wait_for(self.events.get(), 10)

    async def _in_background(self) -> None:
        self.background.set()

    async def _receive(self) -> dict[str, str]:
        await self._leave.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Any) -> None:
        if event["type"] == "http.response.start":
            self.status = event["status"]
            self.headers = {name.decode(): value.decode() for name, value in event["headers"]}
            return
        if not self.takes:
            await asyncio.Event().wait()
        for parsed in self._parser.feed(event["body"]):
            self.events.put_nowait(parsed)


async def test_the_shape_is_the_one_that_contextforge_has() -> None:
    transport = SSETransport()
    assert isinstance(transport, Transport)
    assert not await transport.is_connected()
    assert transport.session_id != SSETransport().session_id
    with pytest.raises(RuntimeError, match="Transport not connected"):
        await transport.send_message({})
    with pytest.raises(RuntimeError, match="Transport not connected"):
        await anext(transport.receive_message())


async def test_the_stream_begins_with_the_endpoint_and_carries_messages_in_order() -> None:
    transport = Quick("http://gateway/servers/1")
    await transport.connect()
    async with Client(transport) as client:
        first = await client.next()
        assert (first.event, first.data) == (
            "endpoint",
            f"http://gateway/servers/1/message?session_id={transport.session_id}",
        )
        for n in range(200):  # many at once are no fault
            await transport.send_message({"n": n})
        assert [json.loads((await client.next()).data)["n"] for _ in range(200)] == list(range(200))
        assert client.headers["x-mcp-sse"] == "true"
        assert client.headers["content-type"].startswith("text/event-stream")


async def test_a_client_that_goes_ends_the_transport_and_what_waits_for_that_runs_once() -> None:
    called: list[str] = []

    async def gone() -> None:
        called.append("gone")

    transport = Quick()
    await transport.connect()
    async with Client(transport, gone) as client:
        await client.next()
    assert called == ["gone"]
    assert client.background.is_set()
    assert not await transport.is_connected()
    await transport.connect()
    assert not await transport.is_connected()


async def test_disconnect_ends_the_stream_and_may_be_called_twice() -> None:
    transport = Quick()
    await transport.connect()
    async with Client(transport) as client:
        await client.next()
        waiting = asyncio.create_task(anext(transport.receive_message(), None))
        await asyncio.sleep(0)
        await transport.disconnect()
        await transport.disconnect()
        await asyncio.wait_for(client.serving, 10)
        assert await asyncio.wait_for(waiting, 10) is None
    assert client.background.is_set()


async def test_a_quiet_stream_is_kept_alive() -> None:
    class Alive(SSETransport):
        settings = StreamSettings(retry=7, keepalive=0.01)

    transport = Alive()
    await transport.connect()
    async with Client(transport) as client:
        assert [(await client.next()).event for _ in range(3)] == ["endpoint", "keepalive", "keepalive"]


@pytest.mark.parametrize(("name", "most"), [("MAX_UNSENT", 3), ("MAX_UNSENT_BYTES", 300)])
async def test_a_client_that_does_not_read_is_given_up(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sse, name, most)
    transport = Quick()
    await transport.connect()
    async with Client(transport) as client:
        await transport.send_message({"text": "x" * 1000})  # however long, one by itself
        assert [(await client.next()).event, (await client.next()).event] == ["endpoint", "message"]
        for _ in range(3):
            await transport.send_message({"text": "x" * 80})
        with pytest.raises(RuntimeError, match="does not read"):
            await transport.send_message({"text": "x" * 80})
        assert not await transport.is_connected()
    assert [record.getMessage() for record in caplog.records] == ["a client does not read: its stream is ended"]


async def test_a_client_that_takes_nothing_keeps_nothing_of_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is open, so that nobody says that it has left, and what it is sent first is never taken."""
    monkeypatch.setattr(sse, "MAX_UNSENT", 3)
    monkeypatch.setattr(sse, "LEAVE_SECONDS", 0.01)
    transport, left = Quick(), asyncio.Event()
    await transport.connect()
    async with Client(transport, callback=lambda: asyncio.sleep(0, left.set())) as client:
        client.takes = False
        while await transport.is_connected():
            with suppress(RuntimeError):  # the client does not read
                await transport.send_message({"text": "x"})
        await asyncio.wait_for(left.wait(), 10)
        await asyncio.wait_for(client.background.wait(), 10)


async def test_a_message_that_cannot_be_spelled_is_the_fault_of_who_sends_it() -> None:
    transport = Quick()
    await transport.connect()
    async with Client(transport) as client:
        with pytest.raises(TypeError, match="object cannot be sent"):
            await transport.send_message({"x": object()})
        await transport.send_message({"n": 1})
        assert [(await client.next()).event, (await client.next()).data] == ["endpoint", '{"n": 1}']
