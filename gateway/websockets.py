"""uvicorn's WebSocket protocol, lending what it has: its pings, and the connection itself to `transports.websocket`."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any, Final, cast

from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN

from ..mux.burden import LARGE_BYTES
from ..transports.frames import Frames, text_frame
from ..transports.portions import Portions
from ..transports.socket_events import COMING
from ..transports.websocket import PING, WIRE, Socket
from .http_connection import REFUSED

LINGER_SECONDS: Final = 10.0
"""How long a connection whose application is done may take to send what is left, before it is dropped."""

LEAVING: Final = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
"""The answer to an upgrade that still waits for one when the worker leaves."""

MAX_UNTAKEN_BYTES: Final = 1_048_576
"""What a client may leave untaken while it goes on to ping."""


class PingingWebSocket(WebSocketsSansIOProtocol):
    """A connection whose application can ping and wait for the pong, or take it over. Implements `LentWire`."""

    lends_pings = True
    is_paused = False

    _pings: dict[bytes, asyncio.Future[None]]
    _socket: Socket | None = None
    """Who is told what happens, instead of an application."""
    _application: "_Application | None" = None
    """The application, from the answer to the upgrade to the end, as one who is told the same."""
    _frames: Frames
    _portions: Portions
    _early = b""
    """What came before the upgrade was answered: nobody reads it before it is known who does."""

    # The opening, and what an application does that takes events.

    def handle_connect(self, event: Request) -> None:
        """See the base class."""
        self._pings = {}
        self._portions = Portions()
        self._frames = Frames(self.conn, self.config.ws_max_size, is_masked=True)
        super().handle_connect(event)
        scope = getattr(self, "scope", None)
        if scope is not None:
            scope["extensions"].update({PING: self.ping, WIRE: self})

    def data_received(self, data: bytes) -> None:
        """See the base class."""
        if self._early or (self.handshake_initiated and not self.handshake_complete):
            self._early += data
            self.transport.pause_reading()
        elif self._socket is not None:
            self._portions.take(data, self._read, self.transport)
        elif self._application is not None:
            at = 0
            while at < len(data):
                at = self._read(data, at)
        else:
            super().data_received(data)
            if self.conn.handshake_exc is not None and not self.handshake_initiated:
                self._refuse()

    async def send(self, message: Any) -> None:
        """See the base class."""
        await super().send(message)
        if message["type"] == "websocket.accept" and self.handshake_complete:
            self._application = _Application(self, hears_of_coming=bool(message.get(COMING)))
        if self._early and self.handshake_complete:
            self.loop.call_soon(self._go_on)

    async def receive(self) -> Any:
        """See the base class."""
        event = await self.queue.get()
        if self.queue.empty():
            self.resume_reading()
        return event

    async def run_asgi(self) -> None:
        """See the base class; a connection that was taken over outlives its application."""
        try:
            await self.app(self.scope, self.receive, self.send)
        except ClientDisconnected:
            pass
        except BaseException:
            self.logger.exception("Exception in ASGI application\n")
            self.send_500_response()
        else:
            if not self.handshake_complete and self.initial_response is None:
                self.logger.error("ASGI callable returned without completing handshake.")
                self.send_500_response()
        if self._socket is None and self.close_timer is None:
            self.transport.close()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """See the base class; a client that takes nothing does not keep its connection."""
        super().on_task_complete(task)
        if self._socket is None:
            self._linger()

    def handle_pong(self, event: Frame) -> None:
        """See the base class; a pong of ours is answered here."""
        waiter = self._pings.pop(bytes(event.data), None)
        if waiter is None:
            super().handle_pong(event)
        elif not waiter.done():
            waiter.set_result(None)

    def handle_ping(self) -> None:
        """See the base class; a client that pings and takes no pong is cut, before its pongs pile up."""
        if self.transport.get_write_buffer_size() > MAX_UNTAKEN_BYTES:
            self.transport.abort()
        elif not self.transport.is_closing():
            super().handle_ping()

    def handle_parser_exception(self) -> None:
        """See the base class; a client that is gone is told nothing."""
        self.close_sent = True
        if not self.transport.is_closing():
            super().handle_parser_exception()

    async def ping(self) -> None:
        """Ping the client, and return when its pong has come; where the connection goes before, never."""
        payload = os.urandom(8)
        waiter = self._pings[payload] = self.loop.create_future()
        self.write((), payload)
        try:
            await waiter
        finally:
            self._pings.pop(payload, None)

    def shutdown(self) -> None:
        """See the base class; an upgrade that waits for its answer is told to come back (guarantee G8)."""
        if self.handshake_complete or self.initial_response is not None:
            super().shutdown()
            return
        self.stop_keepalive()
        self.transport.write(LEAVING)
        self.transport.close()

    # Lent.

    def take_over(self, socket: Socket) -> None:
        """See `LentWire.take_over`."""
        self._socket, self._application = socket, None
        self.queue = self.writable = NOWHERE  # type: ignore[assignment]
        del self.request, self.response, self.scope
        socket.begin()
        if self.disconnected:
            socket.gone()

    def write(self, messages: Sequence[bytes], ping: bytes = b"") -> None:
        """See `Wire.write`."""
        if self.close_sent or self.transport.is_closing():
            return
        frames = [text_frame(message) for message in messages]
        if ping:
            self.conn.send_ping(ping)
            frames += self.conn.data_to_send()
        self.transport.write(b"".join(frames))

    def pause_reading(self) -> None:
        """See `Wire.pause_reading`."""
        if not self.read_paused and not self.transport.is_closing():
            self.read_paused = True
            self._portions.hold(self.transport)

    def resume_reading(self) -> None:
        """See `Wire.resume_reading`."""
        if self.read_paused:
            self.read_paused = False
            self._portions.release(self.transport)

    def close(self, code: int, reason: str) -> None:
        """See `Wire.close`."""
        if self.close_sent or self.transport.is_closing() or self.conn.state is not OPEN:
            return  # the last: it is ended by what came behind, which is dealt with next
        self.conn.send_close(code, reason)
        self.transport.write(b"".join(self.conn.data_to_send()))
        self.close_sent = True
        self.resume_reading()
        self.close_timer = self.loop.call_later(self.close_timeout, self.transport.close)
        self._linger()

    def pause_writing(self) -> None:
        """See the base class."""
        super().pause_writing()
        self.is_paused = True

    def resume_writing(self) -> None:
        """See the base class."""
        super().resume_writing()
        self.is_paused = False
        if self._socket is not None:
            self._socket.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        """See the base class."""
        super().connection_lost(exc)
        if self._socket is not None or self._application is not None:
            self._portions.lost(self._lost)
        else:
            self.conn.receive_eof()

    # Inside.

    def _lost(self) -> None:
        if self._socket is not None:
            self._socket.gone()
        self._application = None
        self._frames.close()

    def _refuse(self) -> None:
        """End a connection whose upgrade the library does not read: it leaves its answer, if any, to be sent."""
        self.transport.write(b"".join(self.conn.data_to_send()) or REFUSED)
        self.transport.close()

    def _read(self, data: bytes, at: int) -> int:
        came: list[bytes | Frame] = []
        stop = self._frames.feed(data, at, came)
        socket, unfinished = self._socket or self._application, self._frames.unfinished
        if socket is not None:
            if socket.burden and any(isinstance(one, bytes) for one in came):
                socket.comes(0)  # whoever takes it counts it
            self._take(socket, came)
            if unfinished > LARGE_BYTES:
                socket.comes(unfinished)
        return stop

    def _take(self, socket: "Socket | _Application", came: list[bytes | Frame]) -> None:
        for one in came:
            if isinstance(one, bytes):
                socket.came(one)
            elif one.opcode is Opcode.PONG:
                self.handle_pong(one)
                socket.ponged(bytes(one.data))
            elif one.opcode is Opcode.PING:
                self.handle_ping()
            elif one.opcode is Opcode.CLOSE:
                self.handle_close(one)
                assert self.conn.close_rcvd is not None, "the frame was read"
                socket.gone(self.conn.close_rcvd.code)
            elif one.opcode is Opcode.BINARY:
                socket.came_binary()
        told = self.conn.close_sent
        if told is not None and self.conn.close_rcvd is None and not self.close_sent:
            # By the library: the client sent what is not legal.
            self.handle_parser_exception()
            socket.broke_off(told.code)

    def _go_on(self) -> None:
        early, self._early = self._early, b""
        if early and not self.transport.is_closing():
            self.transport.resume_reading()
            self.data_received(early)

    def _linger(self) -> None:
        if not self.disconnected:
            self.loop.call_later(LINGER_SECONDS, self._drop)

    def _drop(self) -> None:
        if not self.disconnected:
            self.transport.abort()


class _Application:
    """An application that takes events, told what comes as a `Socket` is; of the end uvicorn tells it."""

    __slots__ = ("_hears_of_coming", "_wire", "burden")

    def __init__(self, wire: PingingWebSocket, *, hears_of_coming: bool) -> None:
        self._wire = wire
        self._hears_of_coming = hears_of_coming
        self.burden = 0
        """What it was told of a message that is not complete."""

    def came(self, text: bytes) -> None:
        """See `Socket.came`."""
        self._tell({"type": "websocket.receive", "text": text.decode()})

    def came_binary(self) -> None:
        """See `Socket.came_binary`."""
        self._tell({"type": "websocket.receive", "bytes": b""})

    def comes(self, size: int) -> None:
        """See `Socket.comes`: told in steps, if it hears of it."""
        if not size:
            self.burden = 0
        elif self._hears_of_coming and size >= self.burden + LARGE_BYTES:
            self.burden = size
            self._wire.queue.put_nowait(cast("Any", {"type": COMING, "size": size}))

    def ponged(self, payload: bytes) -> None:
        """It is told by who pinged."""

    def gone(self, code: int = 0) -> None:
        """Uvicorn tells it."""

    def broke_off(self, code: int) -> None:
        """The same."""

    def _tell(self, event: Any) -> None:
        if not self._wire.close_sent:  # else nobody asks any longer, but for the client's own close
            self._wire.queue.put_nowait(event)
            self._wire.pause_reading()


class _Nowhere:
    """What a connection has for an application, where there is none: a queue of events, and an event."""

    def put_nowait(self, event: object) -> None:
        """Drop it."""

    def set(self) -> None:
        """Wake nobody."""

    def clear(self) -> None:
        """Let nobody wait."""


NOWHERE: Final = _Nowhere()
