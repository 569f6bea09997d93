"""One raw client over three transports: exact text out, exact text in.

    async with raw_client("ws", gateway.base + "/servers/up", name="me") as client:
        answer = await client.request(b'{"jsonrpc":"2.0","id":1,"method":"tools/list"}')

What comes in waits in `inbox`, in the order in which it came on each stream, until a test takes it: a test that ends
with an empty inbox was told nothing that it did not look at.
"""

import contextlib
import io
import json
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Final, Literal
from urllib.parse import urljoin

import aiohttp
import anyio
from anyio.abc import TaskGroup
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from harness.changing import Changing
from harness.raw_script import kind, members
from harness.sse import Parser
from harness.wire import Answer, Wire

Transport = Literal["http", "sse", "ws"]

PATIENCE: Final = 15.0
"""Seconds after which waiting for the peer fails the test."""

REVISION: Final = "2025-11-25"


class RawClient(Changing, ABC):
    """A connected client. `name` is what it calls itself in the handshake."""

    def __init__(self, url: str, name: str) -> None:
        super().__init__()
        self.url = url
        self.name = name
        self.inbox: list[bytes] = []
        """Messages that came and were not taken, oldest first."""
        self.revision = REVISION
        self.session_id = ""
        """Told by the transport, from the handshake on at the latest."""
        self.opened = b""
        """The answer to `initialize`."""
        self._closed = ""

    @abstractmethod
    def running(self) -> contextlib.AbstractAsyncContextManager[None]:
        """Be connected for as long as this is entered."""

    @abstractmethod
    async def send(self, text: bytes) -> None:
        """Send one message of any kind."""

    async def listen(self) -> None:  # one stream has everything
        """Take what belongs to no request, from here on, where that has a stream of its own."""

    async def open(self, capabilities: bytes = b"{}", revision: str = REVISION) -> None:
        """Do the handshake, under the id `"\\u006fpen"`."""
        self.revision = revision
        info = json.dumps({"name": self.name, "version": "1"}).encode()
        params = b'{"protocolVersion":"%s","capabilities":%s,"clientInfo":%s}' % (
            revision.encode(),
            capabilities,
            info,
        )
        self.opened = await self.request(
            b'{"jsonrpc":"2.0","id":"\\u006fpen","method":"initialize","params":%s}' % params
        )
        assert "result" in members(self.opened), self.opened
        await self.send(b'{"jsonrpc":"2.0","method":"notifications/initialized"}')
        await self.listen()

    async def end(self) -> None:
        """End the session, so that nothing of it is left at the server."""
        async with Wire(f"{self.url}/mcp", {"Mcp-Session-Id": self.session_id}) as wire:
            answer = await wire.delete()
            assert answer.status == 200, (answer.status, await answer.body())

    async def request(self, text: bytes) -> bytes:
        """Send a request; the response with its id, as it came."""
        await self.send(text)
        return await self.response(members(text)["id"])

    async def response(self, id: bytes) -> bytes:
        """Take the response whose id is spelled like this."""
        return await self.take(lambda text: kind(members(text)) == "response" and members(text).get("id") == id)

    async def told(self, method: str) -> bytes:
        """Take the next request or notification of this method."""
        return await self.take(lambda text: kind(members(text)) == method)

    async def next(self) -> bytes:
        """Take the next message."""
        return await self.take(lambda text: True)

    async def take(self, wanted: Callable[[bytes], bool]) -> bytes:
        """Take the first message that is wanted, as soon as it is there.

        Raises:
            AssertionError: it did not come in time, or the connection ended.
        """
        with anyio.move_on_after(PATIENCE):
            while True:
                for n, text in enumerate(self.inbox):
                    if wanted(text):
                        return self.inbox.pop(n)
                if self._closed:
                    break
                await self._changed.wait()
        what = [text[:500] for text in self.inbox]
        raise AssertionError(f"{self.name}: {self._closed or 'what was waited for did not come'}; there is {what}")

    def came(self, text: bytes) -> None:
        """A message came in."""
        self.inbox.append(text)
        self.happened()

    def ended(self, why: str) -> None:
        """The connection is over: who waits is told."""
        self._closed = why
        self.happened()


class _HTTPClient(RawClient):
    """Streamable HTTP: each message is a POST, and each POST of a request is read beside everything else."""

    _tasks: TaskGroup

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with Wire(f"{self.url}/mcp") as self._wire, anyio.create_task_group() as self._tasks:
            yield
            self._tasks.cancel_scope.cancel()

    async def send(self, text: bytes) -> None:
        message = members(text)
        if kind(message) != "response" and "id" in message:
            self._tasks.start_soon(self._request, text)
            return
        answer = await self._wire.post(text)
        assert answer.status == 202, (answer.status, await answer.body())

    async def listen(self) -> None:
        stream = await self._wire.get()
        assert stream.status == 200, await stream.body()
        self._tasks.start_soon(self._read, stream)

    async def _request(self, text: bytes) -> None:
        answer = await self._wire.post(text, timeout=PATIENCE)
        if answer.status != 200:
            self.ended(f"HTTP {answer.status}: {(await answer.body()).decode()}")
            return
        if kind(members(text)) == "initialize":
            self.session_id = answer.headers["Mcp-Session-Id"]
            self._wire.headers["Mcp-Session-Id"] = self.session_id
            if self.revision >= "2025-06-18":
                self._wire.headers["MCP-Protocol-Version"] = self.revision
        if answer.is_stream:
            await self._read(answer)
        else:
            self.came(await answer.body())

    async def _read(self, answer: Answer) -> None:
        while (event := await answer.next_event(timeout=PATIENCE * 4)) is not None:
            if event.data:
                self.came(event.data.encode())


class _SSEClient(RawClient):
    """HTTP+SSE: one stream for everything, and a POST for each message."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        timeout = aiohttp.ClientTimeout(total=None, connect=PATIENCE)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as self._http,
            self._http.get(f"{self.url}/sse", headers={"Accept": "text/event-stream"}) as stream,
            anyio.create_task_group() as tasks,
        ):
            assert stream.status == 200, await stream.text()
            self.session_id = stream.headers["Mcp-Session-Id"]
            self._endpoint = ""
            tasks.start_soon(self._read, stream)
            await self.until(lambda: self._endpoint, timeout=PATIENCE)
            yield
            tasks.cancel_scope.cancel()

    async def send(self, text: bytes) -> None:
        headers = {"Content-Type": "application/json"}
        with anyio.fail_after(PATIENCE):
            async with self._http.post(self._endpoint, data=io.BytesIO(text), headers=headers) as answer:
                assert answer.status == 202, (answer.status, await answer.text())

    async def _read(self, stream: aiohttp.ClientResponse) -> None:
        parser = Parser()
        while chunk := await stream.content.readany():
            for event in parser.feed(chunk):
                if event.event == "endpoint":
                    self._endpoint = urljoin(self.url, event.data)
                    self.happened()
                elif event.data:
                    self.came(event.data.encode())
        self.ended("the stream ended")


class _WebSocketClient(RawClient):
    """WebSocket: a text frame for each message."""

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        url = f"ws{self.url.removeprefix('http')}/ws"
        options: Mapping[str, Any] = {"max_size": None, "proxy": None, "open_timeout": PATIENCE, "compression": None}
        async with (
            connect(url, subprotocols=[Subprotocol("mcp")], **options) as self._socket,
            anyio.create_task_group() as tasks,
        ):
            assert self._socket.response is not None, "the handshake is done"
            self.session_id = self._socket.response.headers["Mcp-Session-Id"]
            tasks.start_soon(self._read, self._socket)
            yield
            tasks.cancel_scope.cancel()

    async def send(self, text: bytes) -> None:
        with anyio.fail_after(PATIENCE):
            await self._socket.send(text.decode())

    async def _read(self, socket: ClientConnection) -> None:
        try:
            async for frame in socket:
                assert isinstance(frame, str), "one message is one text frame"
                self.came(frame.encode())
        except ConnectionClosed:
            pass
        self.ended(f"closed with {socket.close_code} {socket.close_reason}")


_CLIENTS: Final[dict[Transport, Callable[[str, str], RawClient]]] = {
    "http": _HTTPClient,
    "sse": _SSEClient,
    "ws": _WebSocketClient,
}


@contextlib.asynccontextmanager
async def raw_client(transport: Transport, url: str, *, name: str) -> AsyncIterator[RawClient]:
    """A client of the server at `url` (without the path of the transport), connected while this is entered.

    Raises:
        AssertionError: the endpoint refused the connection.
    """
    client = _CLIENTS[transport](url, name)
    async with client.running():
        yield client
