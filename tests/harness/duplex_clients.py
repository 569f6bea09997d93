"""Raw clients of the transports that carry everything on one connection: HTTP+SSE and WebSocket.

They check nothing and repair nothing. What came stays in `heard`; `cut` is what a peer sees of a client that vanishes.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import anyio
from aiohttp import ClientError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidMessage
from websockets.typing import Subprotocol

from harness.wire import Answer, Wire

PATIENCE = 20.0
"""Seconds after which waiting for the peer fails the test."""


class ConnectionCut(Exception):
    """The connection is over."""


def initialize(
    id: Any = 0, revision: str = "2025-11-25", capabilities: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The first message of a client."""
    params = {
        "protocolVersion": revision,
        "capabilities": dict(capabilities or {}),
        "clientInfo": {"name": "raw", "version": "1"},
    }
    return {"jsonrpc": "2.0", "id": id, "method": "initialize", "params": params}


class DuplexClient(ABC):
    """One client; entered, it can connect, again and again."""

    def __init__(self, headers: Mapping[str, str] | None = None) -> None:
        self.headers = dict(headers or {})
        """Sent with every request."""
        self.session_id = ""
        self.heard: list[dict[str, Any]] = []
        """Every message that has come, over all connections."""

    @abstractmethod
    async def __aenter__(self) -> Self: ...

    @abstractmethod
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    @abstractmethod
    async def connect(self, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Connect for the first time, or beside."""

    @abstractmethod
    async def resume(self) -> None:
        """Connect again, and say what was received."""

    @abstractmethod
    async def send(self, message: Mapping[str, Any] | bytes) -> None:
        """Send one message, or any bytes."""

    @abstractmethod
    async def next(self) -> dict[str, Any]:
        """The next message.

        Raises:
            ConnectionCut: there will be none.
        """

    @abstractmethod
    def cut(self) -> None:
        """Break the connection."""

    async def hear(self, count: int = 1) -> list[dict[str, Any]]:
        """So many messages."""
        return [await self.next() for _ in range(count)]

    async def over(self) -> None:
        """Read until the connection is over."""
        try:
            while True:
                await self.next()
        except ConnectionCut:
            pass

    async def begin(self, **options: Any) -> dict[str, Any]:
        """Do the handshake, under an id that no call has; the answer to `initialize`."""
        await self.send(initialize(**{"id": "open", **options}))
        [answer] = await self.hear()
        assert "result" in answer, answer
        await self.send({"jsonrpc": "2.0", "method": "notifications/initialized"})
        return answer

    async def open(self, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Connect for the first time, or beside, and do the handshake."""
        await self.connect(query, headers)
        await self.begin()

    async def call(
        self, tool: str, arguments: Mapping[str, Any] | None = None, *, id: Any = 1, token: Any = None
    ) -> None:
        """Call a tool; with `token`, progress is asked for."""
        params: dict[str, Any] = {"name": tool, "arguments": dict(arguments or {})}
        if token is not None:
            params["_meta"] = {"progressToken": token}
        await self.send({"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params})

    async def answer(self, id: Any = 1) -> dict[str, Any]:
        """Read until the answer of this id."""
        while True:
            message = await self.next()
            if message.get("id") == id and "method" not in message:
                return message


class SSEClient(DuplexClient):
    """HTTP+SSE. `base` is the URL of the server without its last part."""

    def __init__(self, base: str, headers: Mapping[str, str] | None = None, *, posts_to: str = "") -> None:
        super().__init__(headers)
        self.base = base
        self._origin = base.partition("/servers")[0]
        self.posts_to = posts_to or self._origin
        """The origin that messages are sent to."""
        self.stream: Answer | None = None
        self.endpoint = ""
        self.last_event_id = ""
        self.events = 0
        """Those with an id."""

    async def __aenter__(self) -> Self:
        self._wire = await Wire(self.base, self.headers).__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._wire.__aexit__(kind, error, trace)

    async def get(self, query: str = "", headers: Mapping[str, str] | None = None) -> Answer:
        """The GET alone."""
        sent = {"Accept": "text/event-stream", **(headers or {})}
        return await self._wire.request("GET", headers=sent, path=f"/sse{query}")

    async def connect(self, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        try:
            self.stream = await self.get(query, headers)
            assert self.stream.status == 200, (self.stream.status, await self.stream.body())
            first = await self.stream.next_event()
        except ClientError as error:
            raise ConnectionCut from error
        if first is None:
            raise ConnectionCut
        assert first.event == "endpoint", first
        self.endpoint = first.data
        self.session_id = self.stream.headers["Mcp-Session-Id"]

    async def resume(self) -> None:
        await self.connect(headers={"Last-Event-ID": self.last_event_id})

    async def post(
        self, body: Mapping[str, Any] | bytes, headers: Mapping[str, str | None] | None = None, endpoint: str = ""
    ) -> Answer:
        """The POST alone."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        async with Wire(self.posts_to, self.headers) as wire:
            sent = {"Content-Type": "application/json", **(headers or {})}
            answer = await wire.request("POST", raw, sent, path=endpoint or self.endpoint)
            await answer.body()
            return answer

    async def send(self, message: Mapping[str, Any] | bytes) -> None:
        try:
            answer = await self.post(message)
        except ClientError as error:
            raise ConnectionCut from error
        if answer.status == 404:  # the session ended before its stream did
            raise ConnectionCut
        assert answer.status == 202, (answer.status, await answer.body())

    async def next(self) -> dict[str, Any]:
        assert self.stream is not None
        try:
            event = await self.stream.next_event(timeout=PATIENCE)
            while event is not None and event.event != "message":
                event = await self.stream.next_event(timeout=PATIENCE)
        except ClientError as error:
            raise ConnectionCut from error
        if event is None or (not event.data and event.retry is not None):
            raise ConnectionCut
        if event.id is not None:
            self.last_event_id = event.id
            self.events += 1
        message: dict[str, Any] = json.loads(event.data)
        self.heard.append(message)
        return message

    def cut(self) -> None:
        assert self.stream is not None
        self.stream.cut()


class SocketClient(DuplexClient):
    """WebSocket. `base` is the URL of the server without its last part."""

    def __init__(self, base: str, headers: Mapping[str, str] | None = None, *, counts: bool = True) -> None:
        super().__init__(headers)
        self.base = base.replace("http", "ws", 1)
        self.counts = counts
        """Whether it says, when it comes back, how many messages it received on the socket that was cut."""
        self.count = 0
        self.socket: ClientConnection | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.socket is not None:
            self.cut()
            await self.socket.wait_closed()

    async def connect(self, query: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Connect.

        Raises:
            ConnectionCut: the upgrade was cut.
            InvalidStatus: it was refused.
        """
        before = self.socket
        if before is not None:
            before.transport.abort()
            await before.wait_closed()
        try:
            self.socket = await connect(
                f"{self.base}/ws{query}",
                subprotocols=[Subprotocol("mcp")],
                additional_headers={**self.headers, **(headers or {})},
                proxy=None,
                compression=None,
                ping_interval=None,
                open_timeout=PATIENCE,
                max_size=None,
            )
        except (EOFError, OSError, ConnectionClosed, InvalidMessage) as error:
            raise ConnectionCut from error
        assert self.socket.response is not None
        self.session_id = self.socket.response.headers["Mcp-Session-Id"]
        self.count = 0

    async def resume(self) -> None:
        said = {"Last-Event-ID": str(self.count)} if self.counts else {}
        await self.connect(headers={"Mcp-Session-Id": self.session_id, **said})

    async def send(self, message: Mapping[str, Any] | bytes) -> None:
        assert self.socket is not None
        text = message.decode() if isinstance(message, bytes) else json.dumps(message)
        try:
            await self.socket.send(text)
        except ConnectionClosed as error:
            raise ConnectionCut from error

    async def next(self) -> dict[str, Any]:
        assert self.socket is not None
        try:
            with anyio.fail_after(PATIENCE):
                text = await self.socket.recv()
        except ConnectionClosed as error:
            raise ConnectionCut from error
        self.count += 1
        message: dict[str, Any] = json.loads(text)
        self.heard.append(message)
        return message

    async def closed(self) -> tuple[int | None, str | None]:
        """Read until the server closes; its code and reason."""
        await self.over()
        assert self.socket is not None
        return self.socket.close_code, self.socket.close_reason

    def cut(self) -> None:
        assert self.socket is not None
        self.socket.transport.abort()
