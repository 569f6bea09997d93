"""WebSocket to a server: subprotocol `mcp`, one JSON-RPC message in each text frame (rules W1-W4).

The session is the connection: where that closes, the session is lost.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any, Final

import anyio
from websockets.asyncio.client import ClientConnection
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.frames import Frame, Opcode
from websockets.protocol import CLOSED, CLOSING, OPEN

from ...mux.burden import LARGE_BYTES
from ...mux.errors import InvalidRequest, UpstreamFault, UpstreamUnreachable
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.ports import Headers, Receiver, Wire
from ...mux.request import Request
from ...mux.statistics import Statistics
from ..frames import Frames, text_frame
from ..portions import Portions
from ..unfinished import Part, Unfinished
from .http import CONNECT_SECONDS, HeaderBlock, words_of, words_of_status
from .http_client import Trusted, trusting
from .one_stream import MAX_UNSENT, MAX_UNSENT_BYTES, OneStreamWire
from .pipe import when_writable
from .upgrade import CLOSE_SECONDS, PING_SECONDS, OtherProtocol, Upgrade, quiet

NORMAL: Final = 1000
UNSUPPORTED_DATA: Final = 1003
TRY_AGAIN: Final = 1013
INTERNAL_ERROR: Final = 1011
"""Close codes (RFC 6455, 7.4.1); the last one where a ping is not answered."""

MAX_HEAD_LINES: Final = 256
"""Of the answer to an upgrade: the library takes half as many."""

WRITE_BYTES: Final = 65_536
"""Messages that are due at once are written together, up to this size."""

MESSAGE_COST: Final = 512
"""What a message that waits takes beside its bytes."""


class WebSocketConnector:
    """Opens sessions with one server by WebSocket. Implements `Connector`.

    `headers`, and those of the session, go with the opening handshake.

    Raises:
        ValueError: a URL or headers that cannot be used.
    """

    def __init__(
        self,
        server: str,
        url: str,
        statistics: Statistics,
        *,
        headers: Headers | None = None,
        ca: Trusted = "",
        unfinished: Unfinished | None = None,
    ) -> None:
        self.server = server
        self._upgrade = Upgrade(url, lambda: trusting(ca))
        self._headers = HeaderBlock(headers or {})
        self._statistics = statistics
        self.unfinished = unfinished or Unfinished()
        """What the server has sent of large messages that are not complete."""

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`. Unasked messages come on the one connection, whether they are wanted or not.

        Raises:
            TrunklineError: the connection did not come about.
        """
        opening = await self._open(headers)
        wire = _WebSocketWire(self.server, receiver, self._statistics, opening, self.unfinished)
        try:
            yield wire
        finally:
            await wire.close()

    def rotate(self, headers: Headers) -> None:
        """See `RotatingConnector.rotate`: an open connection has proved who it is."""
        self._headers = self._headers.with_(headers)

    async def close(self) -> None:
        """Nothing outlives the sessions."""

    async def _open(self, headers: Headers) -> _Opening:
        try:
            block = self._headers.with_(headers)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        try:
            return await self._upgrade.open(block, _Opening, patience=CONNECT_SECONDS, ping_seconds=None)
        except OSError as error:
            raise UpstreamUnreachable(f"the server cannot be reached: {words_of(error)}", executed="no") from error
        except WebSocketException as error:
            self._statistics.count("upstream_faults", self.server)
            raise UpstreamFault(f"the opening handshake failed: {type(error).__name__}") from error
        except OtherProtocol as error:
            self._statistics.count("upstream_faults", self.server)
            raise UpstreamFault(f"the server {error}") from None


class _Opening(ClientConnection):
    """A connection until the library's opening handshake is over, through proxies and TLS; a wire goes on with it.

    A redirect is taken for the refusal that it is: headers are for one server only.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.early = b""
        """What came right behind the server's answer, which the library has not seen."""
        self._lines_left = MAX_HEAD_LINES

    def data_received(self, data: bytes) -> None:
        """See `ClientConnection.data_received`."""
        at = 0
        while at < len(data) and self.response is None:
            stop = data.find(b"\n", at) + 1 if self._lines_left else 0
            self._lines_left -= stop > 0
            super().data_received(data[at : stop or len(data)])
            at = stop or len(data)
        self.early += data[at:]

    async def handshake(self, *arguments: Any, **options: Any) -> None:
        """See `ClientConnection.handshake`."""
        try:
            await super().handshake(*arguments, **options)
        except InvalidStatus as refused:
            status = refused.response.status_code
            raise UpstreamUnreachable(words_of_status(status), status=status, executed="no") from None


class _WebSocketWire(OneStreamWire, asyncio.Protocol):
    """One session: what comes is handed on at once, and what is sent within one turn of the loop goes out together."""

    def __init__(
        self, server: str, receiver: Receiver, statistics: Statistics, opening: _Opening, unfinished: Unfinished
    ) -> None:
        super().__init__(server, receiver, statistics)
        self._unfinished = unfinished
        self._part: Part | None = None
        """Of a large message that is not complete."""
        self._loop = asyncio.get_running_loop()
        self._transport = opening.transport
        self._protocol = opening.protocol
        self._protocol.logger = quiet  # the one that it has refers to what is left behind here
        self._frames = Frames(opening.protocol, MAX_EVENT_BYTES, is_masked=False)
        self._portions = Portions()
        self._early = opening.early
        self._queue: list[tuple[bytes, Request | None]] = []
        self._queued = 0
        """What the queue takes, in bytes."""
        self._is_flush_due = False
        self._is_paused = False
        self._is_fenced = False
        self._call_off_room: Callable[[], None] | None = None
        """Not None while it is waited for that the kernel takes something."""
        self._ping = b""
        """The payload of the ping that waits for its pong."""
        self._pinged = 0.0
        self._pong = b""
        """What answers the server's last ping, while nothing can be written."""
        self._timer: asyncio.TimerHandle | None = None
        """Of the next ping, or of the answer to the last one; once it is closing, of its end."""
        self._gone: asyncio.Future[None] | None = None
        """Done when the connection is; made by who waits for that."""
        self._is_gone = False
        self._is_ending = False
        """True once the closing handshake has begun."""
        self._transport.set_protocol(self)
        self._wait(PING_SECONDS, self._send_ping)
        if opening.early:
            self._loop.call_soon(self.data_received, b"")
        if self._protocol.state is CLOSED:
            self._loop.call_soon(self.connection_lost, None)

    # asyncio.Protocol

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        early, self._early = self._early, b""
        self._portions.take(early + data, self._read, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._portions.lost(self._end)

    def _end(self) -> None:
        if self._is_gone:
            return
        self._is_gone = True
        self._frames.close()
        self._part = None
        self._tell_closed()
        self._stop()
        if self._gone is not None and not self._gone.done():
            self._gone.set_result(None)

    def pause_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_paused = True

    def resume_writing(self) -> None:
        """See `asyncio.Protocol`."""
        self._is_paused = False
        pong, self._pong = self._pong, b""
        if pong and self._protocol.state is OPEN:
            self._transport.write(pong)
        self._flush()

    # What comes.

    def _read(self, data: bytes, at: int) -> int:
        came: list[bytes | Frame] = []
        stop = self._frames.feed(data, at, came)
        self._take(came)
        if self._part is not None or self._frames.unfinished > LARGE_BYTES:
            self._hold(self._frames.unfinished)
        return stop

    def _hold(self, size: int) -> None:
        """So much has come of a message that is not complete."""
        try:
            self._part = self._unfinished.hold(self._part, size)
        except UpstreamFault as fault:
            self.lose(fault.message, is_fault=True)
            self._begin_close(TRY_AGAIN)

    def _take(self, came: list[bytes | Frame]) -> None:
        for one in came:
            if isinstance(one, bytes):
                self._received(one)
            elif one.opcode is Opcode.PONG:
                self._take_pong(bytes(one.data))
            elif one.opcode is Opcode.BINARY:
                self.lose("the server sent a binary frame", is_fault=True)
                self._begin_close(UNSUPPORTED_DATA)
        self._send_out()

    def _tell_closed(self) -> None:
        received, sent = self._protocol.close_rcvd, self._protocol.close_sent
        if received is not None and self._protocol.close_rcvd_then_sent is not False:
            self.lose(f"the server closed the WebSocket ({received.code})")
        elif sent is None:
            self.lose("the connection was cut")
        elif sent.code == INTERNAL_ERROR:
            self.lose("the server did not answer pings")
        else:
            self.lose(f"the server sent what is not taken ({sent.code})", is_fault=True)

    # Pings: the server's are answered by the library.

    def _send_ping(self) -> None:
        if self._is_paused:  # it would wait behind what the server has not read yet, and its answer be due all the same
            self._wait(PING_SECONDS, self._send_ping)
            return
        self._ping, self._pinged = os.urandom(4), self._loop.time()
        self._protocol.send_ping(self._ping)
        self._wait(PING_SECONDS, self._miss_pong)
        self._send_out()

    def _take_pong(self, payload: bytes) -> None:
        if self._ping and payload == self._ping:
            self._ping = b""
            self._wait(PING_SECONDS - (self._loop.time() - self._pinged), self._send_ping)

    def _miss_pong(self) -> None:
        self._protocol.fail(INTERNAL_ERROR, "keepalive ping timeout")
        self._send_out()

    def _wait(self, seconds: float, then: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(seconds, then)

    # What goes out.

    def _put(self, text: bytes, request: Request | None) -> bool:
        cost = len(text) + MESSAGE_COST
        if len(self._queue) >= MAX_UNSENT or self._queued + cost > MAX_UNSENT_BYTES:
            return False
        self._queue.append((text, request))
        self._queued += cost
        if not self._is_flush_due:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)
        return True

    def _flush(self) -> None:
        """Write what waits, as far as the connection takes it."""
        self._is_flush_due = False
        while self._queue and self._has_room():
            self._transport.write(b"".join(self._next_frames()))
        if self._is_closed and not self._queue:
            self._begin_close(NORMAL)

    def _has_room(self) -> bool:
        if self._is_paused or self._call_off_room is not None or self._transport.is_closing():
            return False
        return self._protocol.state is OPEN and (self._receiver.fence is None or self._is_taken_at_once())

    def _is_taken_at_once(self) -> bool:
        """Whether the kernel takes something, so that nothing waits behind what may be asked of the receiver."""
        if not self._is_fenced:
            self._is_fenced = True
            self._transport.set_write_buffer_limits(high=0)  # a message has been sent once the kernel has all of it
            if self._is_paused:
                return False
        socket = self._transport.get_extra_info("socket")
        if socket is not None:
            self._call_off_room = when_writable(socket.fileno(), self._find_room)
        return self._call_off_room is None

    def _find_room(self) -> None:
        self._call_off_room = None
        self._flush()

    def _next_frames(self) -> list[bytes]:
        """Those of the messages that go out next: one where the receiver is asked before each, else some."""
        frames: list[bytes] = []
        taken = size = 0
        has_fence = self._receiver.fence is not None
        keys = os.urandom(4 if has_fence else 4 * len(self._queue))
        for text, request in self._queue:
            taken += 1
            self._queued -= len(text) + MESSAGE_COST
            if not self._may_begin(request):
                continue
            at = 4 * len(frames)
            frames.append(text_frame(text, keys[at : at + 4]))
            size += len(text)
            if has_fence or size >= WRITE_BYTES:
                break
        del self._queue[:taken]
        return frames

    def _send_out(self) -> None:
        """Write what the library has to say, and see to it that a connection that is closing comes to its end."""
        for data in self._protocol.data_to_send():
            if data:
                self._answer(data)
            elif self._transport.can_write_eof():
                with suppress(OSError, RuntimeError):  # it may be gone
                    self._transport.write_eof()
            else:
                self._transport.close()
        if self._protocol.state is CLOSING and not self._is_ending:
            self._is_ending = True
            self._ping = b""
            self._wait(CLOSE_SECONDS, self._transport.abort)

    def _answer(self, frame: bytes) -> None:
        """Write a pong, or a close. A server that reads nothing is owed the last pong alone (RFC 6455, 5.5.3)."""
        if self._transport.is_closing():
            return
        if self._is_paused and self._protocol.state is OPEN:
            self._pong = frame
        elif not (self._is_paused and self._is_ending):
            self._transport.write(frame)

    # Its end.

    async def close(self) -> None:
        """Send what waits, and close the connection, in bounded time."""
        self._is_closed = True
        if not self._is_gone:
            self._gone = self._loop.create_future()
            self._flush()
            with anyio.move_on_after(CLOSE_SECONDS, shield=True):
                await self._gone
        self._stop()
        self._transport.abort()

    def _begin_close(self, code: int) -> None:
        if self._protocol.state is OPEN:
            self._protocol.send_close(code)
            self._send_out()

    def _stop(self) -> None:
        """Wait for nothing more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._call_off_room is not None:
            self._call_off_room()
            self._call_off_room = None

    def _tell_lost(self) -> None:
        for _, request in self._queue:
            self._keep(request)
        self._queue.clear()
        super()._tell_lost()
