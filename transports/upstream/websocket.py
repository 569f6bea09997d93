"""WebSocket to a server: subprotocol `mcp`, one JSON-RPC message in each text frame (rules W1-W4).

The session is the connection: where that closes, the session is lost.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from inspect import signature
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException
from websockets.typing import Subprotocol

from ...mux.demux import Request
from ...mux.errors import InvalidRequest, TrunklineError, UpstreamFault, UpstreamUnreachable
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.ports import Headers, Receiver, Wire
from ...mux.statistics import Statistics
from .http import CONNECT_SECONDS, HeaderBlock
from .http_proxied import proxy_of
from .one_stream import MAX_UNSENT_BYTES, OneStreamWire
from .pipe import writable

SUBPROTOCOL: Final = Subprotocol("mcp")

CLOSE_SECONDS: Final = 5.0
"""How long what is unsent and the closing handshake may take, together."""

PING_SECONDS: Final = 20.0
"""A ping goes out this often; a server that does not answer it for as long is gone."""

UNSUPPORTED_DATA: Final = 1003
INTERNAL_ERROR: Final = 1011
"""Close codes (RFC 6455, 7.4.1); the library closes with the second one where a ping is not answered."""

MAX_UNSENT: Final = 1024
"""Messages that may wait to be sent."""

MESSAGE_COST: Final = 512
"""What a message that waits takes beside its bytes."""

_TAKES_PROXY: Final = "proxy" in signature(connect.__init__).parameters
"""Older versions of the library know no proxies."""

_quiet = logging.getLogger(f"{__name__}.frames")
_quiet.setLevel(logging.WARNING)  # the library's debug lines hold headers and messages


class WebSocketConnector:
    """Opens sessions with one server by WebSocket. Implements `Connector`.

    `headers`, and those of the session, go with the opening handshake.

    Raises:
        ValueError: a URL or headers that cannot be used.
    """

    def __init__(
        self, server: str, url: str, statistics: Statistics, *, headers: Headers | None = None, ca: str = ""
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("ws", "wss") or not parts.hostname or parts.fragment:
            raise ValueError("the URL must be ws:// or wss:// with a host and without a fragment")
        self.server = server
        self._url = url
        self._options: dict[str, Any] = {}
        if parts.scheme == "wss":
            self._options["ssl"] = ssl.create_default_context(cafile=ca or None)
        if _TAKES_PROXY:
            self._options["proxy"] = proxy_of(parts._replace(scheme=parts.scheme.replace("ws", "http")).geturl())
        self._headers = HeaderBlock(headers or {})
        self._statistics = statistics

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`. Unasked messages come on the one connection, whether they are wanted or not.

        Raises:
            TrunklineError: the connection did not come about.
        """
        connection = await self._open(headers)
        wire = _WebSocketWire(self.server, receiver, self._statistics, connection)
        failure: Exception | None = None
        async with asyncio.TaskGroup() as tasks:
            reader, writer = tasks.create_task(wire.read()), tasks.create_task(wire.write())
            try:
                yield wire
            except Exception as error:  # kept out of the task group, which would wrap it
                failure = error
            finally:
                await wire.close(writer)
                reader.cancel()
                writer.cancel()
        if failure is not None:
            raise failure

    def rotate(self, headers: Headers) -> None:
        """See `RotatingConnector.rotate`: an open connection has proved who it is."""
        self._headers = self._headers.with_(headers)

    async def close(self) -> None:
        """Nothing outlives the sessions."""

    async def _open(self, headers: Headers) -> ClientConnection:
        try:
            block = self._headers.with_(headers)
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        try:
            connection = await connect(
                self._url,
                additional_headers=block.headers,
                user_agent_header="trunkline",
                subprotocols=[SUBPROTOCOL],
                compression=None,
                max_size=MAX_EVENT_BYTES,
                open_timeout=CONNECT_SECONDS,
                close_timeout=CLOSE_SECONDS,
                ping_interval=PING_SECONDS,
                ping_timeout=PING_SECONDS,
                create_connection=_Connection,
                logger=_quiet,
                **self._options,
            )
        except TrunklineError:
            raise
        except (OSError, TimeoutError) as error:
            raise UpstreamUnreachable(f"the server cannot be reached: {_words(error)}", executed="no") from error
        except WebSocketException as error:
            self._statistics.count("upstream_faults", self.server)
            raise UpstreamFault(f"the opening handshake failed: {type(error).__name__}") from error
        if connection.subprotocol != SUBPROTOCOL:
            connection.transport.abort()
            self._statistics.count("upstream_faults", self.server)
            raise UpstreamFault(f"the server does not speak the subprotocol {SUBPROTOCOL}")
        return connection


class _Connection(ClientConnection):
    """A connection that takes a redirect for the refusal that it is: headers are for one server only."""

    async def handshake(self, *arguments: Any, **options: Any) -> None:
        """See `ClientConnection.handshake`."""
        try:
            await super().handshake(*arguments, **options)
        except InvalidStatus as refused:
            status = refused.response.status_code
            raise UpstreamUnreachable(f"the server answered HTTP {status}", status=status, executed="no") from None


class _WebSocketWire(OneStreamWire):
    """One session. `read` and `write` each run as a task from its opening to its close."""

    def __init__(self, server: str, receiver: Receiver, statistics: Statistics, connection: ClientConnection) -> None:
        super().__init__(server, receiver, statistics)
        self._connection = connection
        self._queue: deque[tuple[bytes, Request | None]] = deque()
        self._queued = 0
        """What the queue takes, in bytes."""
        self._filled = asyncio.Event()
        """Set while there is something to write, or nothing more will come."""

    async def read(self) -> None:
        """Hand on what comes, until the connection closes."""
        try:
            while isinstance(frame := await self._connection.recv(), str):
                self._received(frame.encode())
        except ConnectionClosed as closed:
            self._tell_closed(closed)
        else:
            self.lose("the server sent a binary frame", is_fault=True)
            await self._connection.close(UNSUPPORTED_DATA)

    async def write(self) -> None:
        """Send what was put into the queue, until the session ends."""
        while True:
            await self._filled.wait()
            while self._queue:
                if self._receiver.fence is not None:
                    await self._until_taken()
                if not self._queue:
                    break
                text, request = self._queue.popleft()
                self._queued -= len(text) + MESSAGE_COST
                if not self._may_begin(request):
                    continue
                try:
                    await self._connection.send(text.decode())
                except ConnectionClosed:
                    return  # the reader tells
            if self._is_closed:
                return
            self._filled.clear()

    async def _until_taken(self) -> None:
        """Wait until the kernel takes something, so that nothing waits behind what may be asked of the receiver."""
        transport = self._connection.transport
        transport.set_write_buffer_limits(high=0)  # a message has been sent once the kernel has all of it
        socket = transport.get_extra_info("socket")
        if socket is not None and not transport.is_closing():
            await writable(socket.fileno())

    async def close(self, writer: asyncio.Task[None]) -> None:
        """Send what waits, and close the connection, in bounded time."""
        self._is_closed = True
        self._filled.set()
        with anyio.move_on_after(CLOSE_SECONDS, shield=True):
            await asyncio.wait([writer])
            await self._connection.close()
        self._connection.transport.abort()

    def _tell_closed(self, closed: ConnectionClosed) -> None:
        if closed.rcvd is not None and closed.rcvd_then_sent is not False:
            self.lose(f"the server closed the WebSocket ({closed.rcvd.code})")
        elif closed.sent is None:
            self.lose("the connection was cut")
        elif closed.sent.code == INTERNAL_ERROR:
            self.lose("the server did not answer pings")
        else:
            self.lose(f"the server sent what is not taken ({closed.sent.code})", is_fault=True)

    def _put(self, text: bytes, request: Request | None) -> bool:
        cost = len(text) + MESSAGE_COST
        if len(self._queue) >= MAX_UNSENT or self._queued + cost > MAX_UNSENT_BYTES:
            return False
        self._queue.append((text, request))
        self._queued += cost
        self._filled.set()
        return True

    def _tell_lost(self) -> None:
        for _, request in self._queue:
            self._keep(request)
        self._queue.clear()
        super()._tell_lost()


def _words(error: OSError) -> str:
    """What went wrong, without the address: an error must not tell a client what lies behind us."""
    if isinstance(error, TimeoutError):
        return "no connection in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return "its certificate does not verify"
    if isinstance(error, ssl.SSLError):
        return "TLS could not be set up"
    return os.strerror(error.errno) if error.errno is not None and error.errno > 0 else "no connection"
