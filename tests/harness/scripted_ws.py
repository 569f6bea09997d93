"""A WebSocket server that does what a test says, connection by connection.

async with ScriptedServer() as server:
    async with websocket_client(server.url) as streams:
        peer = await server.next()
        await peer.send(...)
"""

import json
from collections.abc import Mapping
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self

import anyio
from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request, Response
from websockets.typing import Subprotocol

PATIENCE = 10.0
SESSION = "a-session-of-the-script"


class Peer:
    """One connection, as the server holds it."""

    def __init__(self, connection: ServerConnection) -> None:
        self._connection = connection
        self.over = anyio.Event()
        assert connection.request is not None
        self.headers = connection.request.headers

    async def send(self, message: Mapping[str, Any] | str | bytes) -> None:
        """One message, or a frame as it is given."""
        await self._connection.send(message if isinstance(message, str | bytes) else json.dumps(message))

    async def next(self) -> dict[str, Any]:
        """The next message of the client."""
        with anyio.fail_after(PATIENCE):
            message: dict[str, Any] = json.loads(await self._connection.recv())
        return message

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close it in order."""
        await self._connection.close(code, reason)
        self.over.set()

    def stop_reading(self) -> None:
        """What the client sends from here on does not arrive."""
        self._connection.transport.pause_reading()

    def cut(self) -> None:
        """End the TCP connection without a word."""
        self._connection.transport.abort()
        self.over.set()

    async def closed(self) -> int | None:
        """Wait until the client has closed it; the close code."""
        with anyio.fail_after(PATIENCE):
            await self._connection.wait_closed()
        self.over.set()
        return self._connection.close_code

    async def open_session(self) -> None:
        """Answer the client's `initialize`."""
        message = await self.next()
        assert message["method"] == "initialize"
        await self.send({"jsonrpc": "2.0", "id": message["id"], "result": {}})

    async def settle(self) -> None:
        """Answer the question by which a client that came back learns that nothing is missed."""
        message = await self.next()
        assert message["method"] == "ping"
        assert str(message["id"]).startswith("trunkline-")
        await self.send({"jsonrpc": "2.0", "id": message["id"], "result": {}})


class ScriptedServer:
    """`refusals` are the answers to the next upgrades: a status, and headers."""

    def __init__(self, *, session: str = SESSION) -> None:
        self._session = session
        self._send, self._peers = anyio.create_memory_object_stream[Peer](100)
        self._server: Server
        self.refusals: list[tuple[int, dict[str, str], bytes]] = []
        self.refuses_always: int | None = None
        self.asked: list[dict[str, str]] = []
        """The headers of each upgrade, by lower-case name."""
        self._was_asked = anyio.Event()
        self.url = ""

    async def next(self) -> Peer:
        """The next connection."""
        with anyio.fail_after(PATIENCE):
            return await self._peers.receive()

    async def was_asked(self, count: int) -> None:
        """Wait until there were so many upgrades."""
        with anyio.fail_after(PATIENCE):
            while len(self.asked) < count:
                await self._was_asked.wait()

    async def __aenter__(self) -> Self:
        self._server = await serve(
            self._serve,
            "127.0.0.1",
            0,
            subprotocols=[Subprotocol("mcp")],
            process_request=self._check,
            process_response=self._name,
            ping_interval=None,
        )
        port = self._server.sockets[0].getsockname()[1]
        self.url = f"ws://127.0.0.1:{port}/ws"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self._server.connections:
            connection.transport.abort()
        await self._server.wait_closed()
        self._send.close()
        self._peers.close()

    def _check(self, connection: ServerConnection, request: Request) -> Response | None:
        self.asked.append({name.lower(): value for name, value in request.headers.raw_items()})
        self._was_asked.set()
        self._was_asked = anyio.Event()
        if self.refusals:
            status, headers, body = self.refusals.pop(0)
        elif self.refuses_always is not None:
            status, headers, body = self.refuses_always, {}, b""
        else:
            return None
        response = connection.respond(HTTPStatus(status), body.decode())
        for name, value in headers.items():
            response.headers[name] = value
        return response

    def _name(self, connection: ServerConnection, request: Request, response: Response) -> None:
        if self._session:
            response.headers["Mcp-Session-Id"] = self._session

    async def _serve(self, connection: ServerConnection) -> None:
        peer = Peer(connection)
        await self._send.send(peer)
        await connection.wait_closed()
