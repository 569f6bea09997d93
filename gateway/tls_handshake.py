"""The beginning of a connection that speaks TLS: it counts as one from its first packet on, and has so long.

A server of the event loop makes TLS handshakes by itself, in any number, and tells nobody before one is done. Here it
accepts bare connections, and is asked for the handshake of each.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from math import inf
from typing import TYPE_CHECKING, Final, cast

from .http_connection import LAST_SECONDS, HTTPConnection
from .settings import TLS

if TYPE_CHECKING:
    from .http_listening import HTTPListening

HANDSHAKE_SECONDS: Final = 10.0
"""How long a handshake may take; nobody is authenticated before."""


def server_context(tls: TLS) -> ssl.SSLContext | None:
    """The listener's side of TLS, with what these files hold now; None for plain HTTP.

    Raises:
        OSError: a file cannot be read, or does not hold what it should; an `ssl.SSLError` among them.
    """
    if not tls.cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(tls.cert, tls.key, password="")  # without one, OpenSSL would ask the terminal
    context.set_alpn_protocols(["http/1.1"])
    return context


class Accepted(asyncio.Protocol):
    """A bare connection that has come. Its socket goes to a handshake, before anything is read of it."""

    def __init__(self, listening: HTTPListening, context: ssl.SSLContext) -> None:
        self._listening = listening
        self._context = context

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See the base class."""
        bare = cast("asyncio.Transport", transport)
        try:
            taken = socket.socket(fileno=os.dup(bare.get_extra_info("socket").fileno()))
        except OSError:  # there are no more files
            self._listening.statistics.count("refused", "connections")
        else:
            TLSHandshake(self._listening).begin(taken, self._context)
        bare.abort()


class TLSHandshake(asyncio.Protocol):
    """A connection until its handshake is done; from then on it is an `HTTPConnection`."""

    def __init__(self, listening: HTTPListening) -> None:
        self._listening = listening
        self._taken: socket.socket | None = None
        """Its socket, until the event loop has that."""
        self.waits_since = listening.loop.time()
        """As of an `HTTPConnection`."""
        self._task: asyncio.Task[None]
        self._end: asyncio.TimerHandle | None = None
        """Set once the server ends."""

    def begin(self, taken: socket.socket, context: ssl.SSLContext) -> None:
        """Make the handshake on this socket, unless there are too many connections: then it is closed."""
        self._taken = taken
        if self._listening.enter(self):
            self._task = self._listening.begin(self._make(context))
            self._task.add_done_callback(self._over)
        else:
            self._over()
            self._listening.statistics.count("refused", "connections")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It is done."""
        connection = HTTPConnection(self._listening)
        self._listening.hand_over(self, connection)
        cast("asyncio.Transport", transport).set_protocol(connection)
        connection.connection_made(transport)
        if self._end is not None:
            self._end.cancel()
            connection.shutdown()

    def shutdown(self) -> None:
        """See `HTTPConnection.shutdown`: it has as long, and then the connection has."""
        self._end = self._listening.loop.call_later(LAST_SECONDS, self._task.cancel)

    def cut(self, why: str) -> None:
        """See `HTTPConnection.cut`."""
        self._listening.statistics.count("refused", why)
        self.waits_since = inf
        self._task.cancel()

    async def _make(self, context: ssl.SSLContext) -> None:
        taken, self._taken = self._taken, None
        assert taken is not None, "it has begun"
        try:
            await self._listening.loop.connect_accepted_socket(
                lambda: self, taken, ssl=context, ssl_handshake_timeout=HANDSHAKE_SECONDS
            )
        except (ssl.SSLError, ConnectionAbortedError):  # it is no TLS, or takes too long
            self._listening.statistics.count("refused", "tls")
        except OSError:  # the client has gone
            pass

    def _over(self, task: asyncio.Task[None] | None = None) -> None:
        """It is done or given up, perhaps before its task had a turn."""
        self._listening.leave(self)
        if self._taken is not None:
            self._taken.close()
