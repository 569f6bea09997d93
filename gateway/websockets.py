"""uvicorn's WebSocket protocol, lending its pings: `transports.websocket` learns from a pong what a client has."""

import asyncio
import os
from typing import Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame
from websockets.http11 import Request

from ..transports.websocket import PING

LINGER_SECONDS: Final = 10.0
"""How long a connection whose application is done may take to send what is left, before it is dropped."""


MAX_UNTAKEN_BYTES: Final = 1_048_576
"""What a client may leave untaken while it goes on to ping."""


class PingingWebSocket(WebSocketsSansIOProtocol):
    """A connection whose application can ping and wait for the pong."""

    _pings: dict[bytes, asyncio.Future[None]]

    def handle_connect(self, event: Request) -> None:
        """See the base class."""
        self._pings = {}
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"][PING] = self.ping

    def handle_pong(self, event: Frame) -> None:
        """See the base class; a pong of ours is answered here."""
        waiter = self._pings.pop(bytes(event.data), None)
        if waiter is None:
            super().handle_pong(event)
        elif not waiter.done():
            waiter.set_result(None)

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """See the base class; a client that takes nothing does not keep its connection."""
        super().on_task_complete(task)
        if not self.disconnected:
            self.loop.call_later(LINGER_SECONDS, self._drop)

    def _drop(self) -> None:
        if not self.disconnected:
            self.transport.abort()

    def handle_ping(self) -> None:
        """See the base class; a client that pings and takes no pong is cut, before its pongs pile up."""
        if self.transport.get_write_buffer_size() > MAX_UNTAKEN_BYTES:
            self.transport.abort()
        else:
            super().handle_ping()

    async def ping(self) -> None:
        """Ping the client, and return when its pong has come; where the connection goes before, never."""
        payload = os.urandom(8)
        waiter = self._pings[payload] = self.loop.create_future()
        if not self.close_sent and not self.transport.is_closing():
            self.conn.send_ping(payload)
            self.transport.write(b"".join(self.conn.data_to_send()))
        try:
            await waiter
        finally:
            self._pings.pop(payload, None)
