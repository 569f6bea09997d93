"""What all HTTP connections of a listener have in common: their number, who takes whole requests, who takes too long.

uvicorn keeps the sockets, the signals and the end of the process.
"""

from __future__ import annotations

import asyncio
import resource
import ssl
from collections.abc import Callable, Coroutine, Mapping
from math import inf
from operator import itemgetter
from typing import Any, Final, cast

import anyio
import uvicorn
from uvicorn.server import ServerState

from ..mux.statistics import Statistics
from ..transports.asgi import WholeRequest
from ..transports.patience import Patience
from .http_connection import LAST_SECONDS, HTTPConnection
from .http_exchange import AnswerHeads
from .known_head import KnownHeads
from .tls_handshake import Accepted, TLSHandshake

LOOK_SECONDS: Final = 1.0
"""How often it is looked who takes too long."""

MAX_UNTAKEN_BYTES: Final = 268_435_456
"""Of answers, on all connections together: as much as is kept for resumption. Above it, who takes longest is cut."""

MAX_UNFINISHED_BYTES: Final = 67_108_864
"""Of heads that have not come to their end: nobody is authenticated before. Above it, the longest are cut."""

GIVE_WAY_SECONDS: Final = 1.0
"""A connection that has waited so long for its client gives way to one that comes, where there are too many."""

HOLD_SECONDS: Final = 0.2
"""How long a small body is waited for before its request is told of: many clients send it in a second packet."""

AtOnce = Callable[[WholeRequest], bool]
"""Takes a request that came whole, and answers it when it likes; False where the application has to be asked."""


def connection_limit() -> int:
    """Connections of clients that are held: half of what the process may open. The rest leads to servers."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return 1_000_000 if files == resource.RLIM_INFINITY else max(1, files // 2)


def nothing_at_once(whole: WholeRequest) -> bool:
    """Leave every request to the application."""
    return False


class HTTPListening:
    """What the connections of one listener have in common. It is uvicorn's `http`: called, it makes a connection.

    With a `tls` context, its connections speak TLS. Who is cut is counted in `statistics`, under `refused`: `head`,
    `slow_head`, `slow_body`, `untaken`, `connections`, `gave_way`, `tls`, `not_http`.
    """

    def __init__(
        self, statistics: Statistics, at_once: AtOnce = nothing_at_once, tls: ssl.SSLContext | None = None
    ) -> None:
        self.statistics = statistics
        self.at_once = at_once
        self.tls = tls
        """Of the connections that come from now on."""
        self.max_connections = connection_limit()
        self.hold = Patience(HOLD_SECONDS)
        self.known_heads = KnownHeads()
        self.answer_heads = AnswerHeads()
        self._defaults: list[tuple[bytes, bytes]] = []
        self.is_ending = False
        """True once each answer is to be the last one of its connection."""
        self._last_at = inf
        self._all_left = asyncio.Event()
        self._handshakes: set[TLSHandshake] = set()
        self._connections: dict[HTTPConnection, None] = {}
        self._untaken: dict[HTTPConnection, int] = {}
        """What of their answers clients had not taken when they were looked at last, and have not taken since."""
        self._is_looking = False
        self._waiting: list[tuple[float, HTTPConnection | TLSHandshake]] = []
        """Those that may give way, and since when they wait, as they were found: the one that waits longest is last."""
        self._is_none_waiting = False
        """True where none was found, until the next look."""
        self.config: uvicorn.Config
        self.state: ServerState
        self.loop: asyncio.AbstractEventLoop

    @property
    def protocol(self) -> type[asyncio.Protocol]:
        """The same, as uvicorn declares what it takes."""
        return cast("type[asyncio.Protocol]", self)

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> HTTPConnection | Accepted:
        """A connection that has come."""
        self.config, self.state = config, server_state
        self.loop = _loop or asyncio.get_running_loop()
        return HTTPConnection(self) if self.tls is None else Accepted(self, self.tls)

    def enter(self, handshake: TLSHandshake) -> bool:
        """Count a connection that is in its handshake; False as `add` says."""
        self._handshakes.add(handshake)
        return self._count(handshake)

    def leave(self, handshake: TLSHandshake) -> None:
        """Its handshake is over."""
        self._handshakes.discard(handshake)
        self._discount(handshake)

    def hand_over(self, handshake: TLSHandshake, connection: HTTPConnection) -> None:
        """The handshake is done: the connection that begins with it has its place."""
        self._connections[connection] = None
        self.leave(handshake)
        self.state.connections.add(cast("Any", connection))

    def add(self, connection: HTTPConnection) -> bool:
        """Count a connection, and look after it; False where there are too many and none gives way.

        Those of WebSocket are among them.
        """
        if connection in self._connections:
            return True
        self._connections[connection] = None
        return self._count(connection)

    def remove(self, connection: HTTPConnection) -> None:
        """It has gone, or is no longer HTTP."""
        self._connections.pop(connection, None)
        self._discount(connection)

    def took(self, connection: HTTPConnection) -> None:
        """Its client has taken what was left: how long it takes for what comes next is not known."""
        self._untaken.pop(connection, None)

    def end(self) -> None:
        """The server is to end: what is answered from now on is the last of its connection, and tells the client so."""
        if self.is_ending:
            return
        self.is_ending = True
        self._last_at = asyncio.get_running_loop().time() + LAST_SECONDS
        for connection in self._connections:
            connection.is_leaving = True

    async def ended(self) -> None:
        """After `end`: wait until no client has a connection, or each has had the time to ask and to be told."""
        with anyio.CancelScope(deadline=self._last_at):
            while self._connections or self._handshakes:
                self._all_left.clear()
                await self._all_left.wait()

    def begin(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run this in a task, for which the end of the server waits."""
        task = self.loop.create_task(work)
        self.state.tasks.add(task)
        task.add_done_callback(self.state.tasks.discard)
        return task

    def _count(self, connection: HTTPConnection | TLSHandshake) -> bool:
        self.state.connections.add(cast("Any", connection))
        if not self._is_looking:
            self._is_looking = True
            self._look()
        return len(self.state.connections) <= self.max_connections or self._make_room()

    def _discount(self, connection: HTTPConnection | TLSHandshake) -> None:
        self.state.connections.discard(cast("Any", connection))
        if not (self._connections or self._handshakes):
            self._all_left.set()

    def _make_room(self) -> bool:
        """End the connection that waits longest for its client: between two requests, in a head, in a handshake."""
        while not self._is_none_waiting:
            while self._waiting:
                since, longest = self._waiting.pop()
                if longest.waits_since == since and cast("Any", longest) in self.state.connections:
                    longest.cut("gave_way")
                    return True
            self._find_waiting()
        return False

    def _find_waiting(self) -> None:
        """Not for each that comes: where there are very many connections, it takes milliseconds."""
        latest = self.loop.time() - GIVE_WAY_SECONDS
        open_ones: list[HTTPConnection | TLSHandshake] = [*self._connections, *self._handshakes]
        ranked = [(one.waits_since, one) for one in open_ones]
        self._waiting = sorted((pair for pair in ranked if pair[0] <= latest), key=itemgetter(0), reverse=True)
        self._is_none_waiting = not self._waiting

    def _bound(
        self, held: Mapping[HTTPConnection, int], limit: int, why: str, rank: Mapping[HTTPConnection, float]
    ) -> None:
        """End connections, the one of the highest rank first, until what all hold is no longer too much."""
        total = sum(held.values())
        if total > limit:
            for connection in sorted(held, key=rank.__getitem__, reverse=True):
                if total <= limit:
                    break
                total -= held[connection]
                connection.cut(why)

    def _bound_untaken(self) -> None:
        """End the connections of who would take longest for what is left, as they went on since they were looked at."""
        untaken = {connection: connection.untaken for connection in self._connections if connection.is_write_paused}
        before, self._untaken = self._untaken, untaken
        seconds = {one: size / max(1, before.get(one, 2 * size) - size) for one, size in untaken.items()}
        self._bound(untaken, MAX_UNTAKEN_BYTES, "untaken", seconds)

    def _bound_unfinished(self) -> None:
        """End the connections of the longest heads that have not come to their end."""
        unfinished = {connection: size for connection in self._connections if (size := connection.unfinished)}
        self._bound(unfinished, MAX_UNFINISHED_BYTES, "head", unfinished)

    def _look(self) -> None:
        """End what takes too long; and take over what uvicorn says of headers, the date among them."""
        if self.state.default_headers is not self._defaults:
            self._defaults = self.state.default_headers
            self.answer_heads.default = b"".join([b"%b: %b\r\n" % header for header in self._defaults])
        now = self.loop.time()
        for connection in [one for one in self._connections if one.due <= now]:
            connection.end_overdue()
        self._bound_untaken()
        self._bound_unfinished()
        self._waiting, self._is_none_waiting = [], False
        self._is_looking = bool(self.state.connections)
        if self._is_looking:
            self.loop.call_later(LOOK_SECONDS, self._look)
