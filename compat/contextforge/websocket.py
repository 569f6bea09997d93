"""WebSocket as ContextForge has it: a transport object for each socket, and the relay at `/ws`."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from ...mux.errors import ParseError
from ...transports.base import Message, Transport
from .asked import Incoming, read_headers
from .conversation import Conversation
from .rpc import RPC, failure

logger = logging.getLogger(__name__)

SUBPROTOCOL = "mcp"
POLICY_VIOLATION = 1008

Ended = Callable[[str], Awaitable[None]]


class WebSocketTransport(Transport):
    """One socket: each text frame is one message."""

    ping_interval: ClassVar[float] = 30.0
    """Seconds. Pings are the server's own; uvicorn sends them (`WEBSOCKET_PING_INTERVAL`)."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._session_id = secrets.token_urlsafe(24)
        self._is_connected = False

    @property
    def session_id(self) -> str:
        """See `Transport.session_id`."""
        return self._session_id

    async def connect(self) -> None:
        """Accept the socket, with the subprotocol `mcp` where the client offers it."""
        offered = self._websocket.scope.get("subprotocols") or ()
        await self._websocket.accept(subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None)
        self._is_connected = True

    async def disconnect(self) -> None:
        """See `Transport.disconnect`."""
        if self._is_connected:
            self._is_connected = False
            if self._websocket.application_state is WebSocketState.CONNECTED:
                await self._websocket.close()

    async def send_message(self, message: Message, *, request_id: int | None = None) -> None:
        """See `Transport.send_message`. Of one socket there is nothing to choose, so `request_id` changes nothing."""
        if not self._is_connected:
            raise RuntimeError("Transport not connected")
        try:
            await self._websocket.send_text(json.dumps(message))
        except WebSocketDisconnect:
            self._is_connected = False
            raise RuntimeError("Transport not connected") from None

    async def receive_message(self) -> AsyncIterator[dict[str, Any]]:
        """See `Transport.receive_message`. What is no JSON is answered as such, and the socket goes on."""
        if not self._is_connected:
            raise RuntimeError("Transport not connected")
        try:
            while True:
                text = await self._websocket.receive_text()
                try:
                    message = json.loads(text)
                except (ValueError, RecursionError):
                    await self.send_message(failure(None, ParseError.code, "Parse error"))
                    continue
                yield message
        except (WebSocketDisconnect, RuntimeError, KeyError):  # it has gone; or a binary frame, which has no text
            self._is_connected = False

    async def is_connected(self) -> bool:
        """See `Transport.is_connected`."""
        return self._is_connected


async def relay(websocket: WebSocket, rpc: RPC, *, max_inflight: int, ended: Ended, takes_query_token: bool) -> None:
    """Serve one socket of `/ws`: its messages go to `/rpc` as whom its client has proved to be, many at once.

    `ended` hears of the session id when the socket is gone. With `takes_query_token`, `?token=` stands for a header
    that is not there: ContextForge 0.9 takes it, 1.0 refuses it because URLs are logged. A client that `/rpc` would not
    let in is refused with 1008 before the socket is accepted. No cookie goes with its messages, as ContextForge itself
    takes none here: browsers send it with what a page of another port asks for, which may read what a socket says.
    """
    headers = read_headers(websocket.scope)
    headers.pop("cookie", None)
    token = websocket.query_params.get("token") if takes_query_token else None
    if token and "authorization" not in headers:
        headers["authorization"] = f"Bearer {token}"
    sent_by = Incoming(websocket.scope, headers)
    transport = WebSocketTransport(websocket)
    if 300 <= await rpc.check(sent_by, transport.session_id) < 500:  # 1.0 leads some to its login page
        await websocket.close(code=POLICY_VIOLATION, reason="Authentication required")
        return
    await transport.connect()
    writing = asyncio.Lock()

    async def answer(message: dict[str, Any]) -> None:
        async with writing:
            await transport.send_message(message)

    conversation = Conversation(rpc, transport.session_id, answer, max_inflight=max_inflight)
    try:
        async for message in transport.receive_message():
            await conversation.take(message, sent_by)
    finally:
        await conversation.close()
        await ended(transport.session_id)
        await transport.disconnect()
