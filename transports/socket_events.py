"""A WebSocket of a server that lends nothing but the events of ASGI, or its pings beside them."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import anyio

from .asgi import Receive, Send

if TYPE_CHECKING:
    from .websocket import Socket

COMING: Final = "trunkline.coming"
"""The type of an event that a server may tell besides: `size` bytes have come of a large message, and it goes on.

The application says by the same word in its `websocket.accept` that it hears of that: another would take it for a
message, as a worker of a build does that knows nothing of it.
"""

CLOSE_SECONDS: Final = 5.0
"""How long the last frame waits for a client that takes nothing."""

Ping = Callable[[], Awaitable[None]]


class EventsWire:
    """Implements `Wire` for the length of `run`. It has room for what is due again once all of the last was sent."""

    def __init__(self, receive: Receive, send: Send, ping: Ping | None, patience: float) -> None:
        """`patience` is how long the client may take for one message, in seconds."""
        self._patience = patience
        self._receive = receive
        self._send = send
        self._ping = ping
        self.lends_pings = ping is not None
        self.is_paused = False
        self._outgoing: list[bytes] = []
        self._due_pings: list[bytes] = []
        self._has_outgoing, self._has_pings, self._reads = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._reads.set()
        self._end: tuple[int, str] | None = None
        self._tasks: anyio.CancelScope

    async def run(self, socket: "Socket") -> None:
        """Serve until the end."""
        try:
            async with anyio.create_task_group() as tasks:
                self._tasks = tasks.cancel_scope
                socket.begin()
                for part in (self._take, self._give, self._await_pongs):
                    tasks.start_soon(part, socket)
        finally:
            socket.gone()  # where it was cancelled from outside
        if self._end is not None:
            await self._close(*self._end)

    def write(self, messages: Sequence[bytes], ping: bytes = b"") -> None:
        """See `Wire.write`."""
        if ping:
            self._due_pings.append(ping)
        self._outgoing += messages
        self.is_paused = True
        self._has_outgoing.set()

    def pause_reading(self) -> None:
        """See `Wire.pause_reading`."""
        self._reads.clear()

    def resume_reading(self) -> None:
        """See `Wire.resume_reading`."""
        self._reads.set()

    def close(self, code: int, reason: str) -> None:
        """See `Wire.close`."""
        self._end = code, reason
        self._tasks.cancel()

    async def _take(self, socket: "Socket") -> None:
        while True:
            await self._reads.wait()
            event = await self._receive()
            if event["type"] == "websocket.disconnect":
                socket.gone(event.get("code") or 0)
                return
            if event["type"] == COMING:
                socket.comes(event["size"])
                continue
            text = event.get("text")
            if text is None:
                socket.came_binary()
                return
            if socket.burden:
                socket.comes(0)  # whoever takes it counts it
            socket.came(text.encode())

    async def _give(self, socket: "Socket") -> None:
        while True:
            await self._has_outgoing.wait()
            self._has_outgoing.clear()
            outgoing, self._outgoing = self._outgoing, []
            for message in outgoing:
                try:
                    with anyio.move_on_after(self._patience) as patience:
                        await self._send({"type": "websocket.send", "text": message.decode()})
                except OSError:  # the client has gone
                    socket.gone()
                    return
                if patience.cancelled_caught:
                    socket.run_out()
                    return
            self._has_pings.set()
            if not self._outgoing:
                self.is_paused = False
                socket.drained()

    async def _await_pongs(self, socket: "Socket") -> None:
        while self._ping is not None:
            await self._has_pings.wait()
            self._has_pings.clear()
            while self._due_pings:
                payload = self._due_pings.pop(0)
                try:
                    await self._ping()
                except OSError:  # the client has gone
                    socket.gone()
                    return
                socket.ponged(payload)

    async def _close(self, code: int, reason: str) -> None:
        # The client may have closed it, or take nothing: what is left to send then goes before.
        with suppress(OSError, RuntimeError), anyio.move_on_after(CLOSE_SECONDS):
            await self._send({"type": "websocket.close", "code": code, "reason": reason})
