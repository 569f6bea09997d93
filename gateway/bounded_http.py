"""uvicorn's HTTP protocol, with bounds that it has not: on the head of a request, and on connections before one."""

import asyncio
import resource
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from ..mux.statistics import Statistics

MAX_HEAD_BYTES: Final = 131_072
"""The request line and the headers together; a client that sends more is cut."""

HEAD_SECONDS: Final = 30.0
"""How long a head may take, from the connection or its own first byte on; nobody is authenticated before."""

SMALL_BODY: Final = 65_536
"""Up to this size a body is copied behind its head."""

BODY_SECONDS: Final = 65.0
"""How long a body may take. Who reads it refuses it sooner, but for one of which nothing comes: that is cut."""

INTERIM: Final = b"HTTP/1.1 1"
"""How an answer begins that another one follows: 100 Continue, for which the client waits before it sends the body."""

CHUNKED: Final = b"\r\ntransfer-encoding: chunked\r\n"
"""What uvicorn writes into the head of an answer whose length nobody knows."""

FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"


def connection_limit() -> int:
    """Connections of clients that are held: half of what the process may open. The rest leads to servers."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if files == resource.RLIM_INFINITY else max(1, files // 2)


class JoiningTransport:
    """What one answer is written to: a head that says how long the body is goes out with it, in one packet.

    uvicorn writes them apart, which costs a second call to the system and a second packet. The head of a stream goes
    out at once: who knows when there is something to send.
    """

    __slots__ = ("_head", "_is_begun", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_begun = False
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write some of the answer: its head, and then the body, which may be empty."""
        if not self._is_begun:
            if data.startswith(INTERIM):
                self._transport.write(data)
                return
            self._is_begun = True
            if CHUNKED in data:
                self._transport.write(data)
            else:
                self._head = data
        elif not self._head:
            self._transport.write(data)
        else:
            head, self._head = self._head, b""
            if len(data) <= SMALL_BODY:
                self._transport.write(head + data)
            else:
                self._transport.writelines((head, data))

    def close(self) -> None:
        """Close the connection, after what was written."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)
        self._transport.close()

    def is_closing(self) -> bool:
        """True once the connection is closed, or about to be."""
        return self._transport.is_closing()


class BoundedHTTP(HttpToolsProtocol):
    """A connection whose requests have heads of bounded size, and come in bounded time."""

    statistics = Statistics()
    """Where it is counted who was cut; a subclass has that of its gateway."""
    max_connections = connection_limit()

    _head = 0
    _is_in_head = True
    _patience: asyncio.TimerHandle | None = None

    @classmethod
    def counting(cls, statistics: Statistics) -> "type[BoundedHTTP]":
        """The same, counted there under `refused`: `head`, `slow_head`, `slow_body`, `connections`."""
        return type(cls.__name__, (cls,), {"statistics": statistics})

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See the base class."""
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self.statistics.count("refused", "connections")
            transport.write(FULL)
            transport.close()
        else:
            self._patience = self.loop.call_later(HEAD_SECONDS, self._cut, "slow_head")

    def connection_lost(self, exc: Exception | None) -> None:
        """See the base class."""
        self._have_all()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See the base class."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self._is_in_head:
            self._head += len(data)
            if self._head > MAX_HEAD_BYTES:
                self._cut("head")
            elif self._patience is None:
                self._patience = self.loop.call_later(HEAD_SECONDS, self._cut, "slow_head")
        elif self.cycle is not None and self.cycle.more_body:
            if self._patience is None:
                self._patience = self.loop.call_later(BODY_SECONDS, self._cut, "slow_body")
        elif self._patience is not None:
            self._have_all()

    def on_message_begin(self) -> None:
        """See the base class."""
        self._head = 0
        self._is_in_head = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """See the base class."""
        self._is_in_head = False
        self._have_all()
        before = self.cycle
        super().on_headers_complete()
        if self.cycle is not before and self.scope["method"] != "HEAD":  # to which no body follows
            self.cycle.transport = JoiningTransport(self.transport)  # type: ignore[assignment]

    def _have_all(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _cut(self, why: str) -> None:
        if not self.transport.is_closing():
            self.statistics.count("refused", why)
            self.transport.abort()
