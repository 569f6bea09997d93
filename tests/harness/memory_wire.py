"""A server in memory: a Connector whose sessions a test plays by hand, to the exact moment.

    server = MemoryServer()
    ...  # give it to a pool, or to a channel
    exchange = await server.got("tools/call")
    exchange.say(log)       # on the stream of that call
    exchange.answer({...})

The handshake goes well by itself. What a test does reaches the channel at once, within the call: nothing is scheduled.
Where `pause(stage)` was called, a session stops at that stage (connect, initialize, establish, close) until `let`.
"""

import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Literal

import anyio
from trunkline.mux.envelope import Members, parse
from trunkline.mux.errors import SessionLost, TrunklineError, UpstreamUnreachable
from trunkline.mux.limits import MAX_EVENT_BYTES
from trunkline.mux.ports import NONE, Headers, Receiver, SendKind, Wire
from trunkline.mux.request import Request

from harness.changing import Changing

"""Seconds after which waiting for a peer fails the test."""

Stage = Literal["connect", "initialize", "establish", "close"]


def message(method: str, params: Any = None, id: int | str | None = None) -> bytes:
    """A request of the server's own, or without `id` a notification."""
    members: dict[str, Any] = {"jsonrpc": "2.0", "method": method}
    if id is not None:
        members["id"] = id
    if params is not None:
        members["params"] = params
    return json.dumps(members).encode()


class Exchange:
    """One message that came to the server; for a request, what carries its answer."""

    def __init__(self, session: "Session", text: bytes, kind: str, request: Request | None, headers: Headers) -> None:
        self.session = session
        self.text = text
        self.kind = kind
        """Its method, or `response`."""
        self.request = request
        self.headers = {name.lower(): value for name, value in {**session.headers, **headers}.items()}
        """Those of the session and of this one call, by lower-case name."""
        self.is_over = request is None
        self.is_cut = False
        """True once the wire gave it up."""

    def __repr__(self) -> str:
        return f"Exchange({self.text!r})"

    @property
    def members(self) -> Members:
        """The first level of the message, raw."""
        return parse(self.text, limit=MAX_EVENT_BYTES).members

    @property
    def json(self) -> dict[str, Any]:
        """The message."""
        read: dict[str, Any] = json.loads(self.text)
        return read

    @property
    def id(self) -> bytes:
        """Its id, as it was spelled."""
        return bytes(self.members["id"])

    def answer(self, result: Any = None) -> None:
        """Give it its result; the exchange is over."""
        self.finish(b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (self.id, json.dumps(result or {}).encode()))

    def refuse(self, code: int = -32000, text: str = "no") -> None:
        """Give it an error; the exchange is over."""
        error = json.dumps({"code": code, "message": text}).encode()
        self.finish(b'{"jsonrpc":"2.0","id":%s,"error":%s}' % (self.id, error))

    def finish(self, text: bytes) -> None:
        """Send this as the last message of its stream."""
        self.say(text)
        self._end()

    def say(self, text: bytes) -> None:
        """Send this on its stream."""
        assert self.request is not None, "a message without an answer has no stream"
        if not self.is_over:
            self.session.deliver(text, self.request if self.session.server.binds else None)

    def cut(self, error: TrunklineError | None = None) -> None:
        """Break the exchange before its answer."""
        request = self.request
        assert request is not None
        if not self.is_over:
            self._end()
            if request.state != "done":
                lost = error or SessionLost("the stream ended before its answer", executed="unknown")
                self.session.receiver.failed(request, lost)

    def give_up(self) -> None:
        """The wire's side: nobody waits for it."""
        self.is_cut = True
        self._end()

    def _end(self) -> None:
        self.is_over = True
        self.session.server.happened()


class Session:
    """One session, and the wire that it is to its channel. Implements `Wire`."""

    def __init__(
        self, server: "MemoryServer", receiver: Receiver, headers: Headers, *, listen: bool, id: str = ""
    ) -> None:
        self.server = server
        self.id = id or str(next(server.ids))
        """Equal for wires of one session."""
        self.is_released = False
        self.receiver = receiver
        self.headers = dict(headers)
        """Those fixed for the session."""
        self.is_listening = listen
        self.exchanges: list[Exchange] = []
        self.revision = ""
        """The negotiated revision, once the handshake is done."""
        self.initialized: list[bytes] = []
        self.is_forgotten = False
        self.is_closed = False
        self._refused: list[Request] = []
        self._opener = anyio.get_current_task().id
        """A channel is owned by one task: who enters must leave."""

    def __repr__(self) -> str:
        return f"Session({len(self.exchanges)} messages, closed={self.is_closed})"

    def of(self, kind: str) -> list[Exchange]:
        """What came in, by method, or `response`."""
        return [exchange for exchange in self.exchanges if exchange.kind == kind]

    def tell(self, text: bytes) -> None:
        """The server says this unasked."""
        if self.is_listening:
            self.deliver(text, None)

    def deliver(self, text: bytes, origin: Request | None) -> None:
        """Hand one frame to the channel, as the reader of a wire does."""
        if not self.is_closed and not self.is_forgotten:
            self.receiver.received(text, origin)

    def forget(self) -> None:
        """The server no longer knows the session: its next request is refused, unexecuted."""
        for wire in self.server.sessions:
            if wire.id == self.id:
                wire.is_forgotten = True

    def vanish(self) -> None:
        """The process that this wire belongs to is gone: nothing passes any longer, and nobody says good-bye."""
        self.is_closed = self.is_released = True
        self._end_exchanges()

    # What the channel does.

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        if self.is_closed:
            return
        read = parse(text, limit=MAX_EVENT_BYTES)
        exchange = Exchange(self, text, read.method or "response", request, headers)
        if self.is_forgotten:
            self._refuse(request)
            return
        assert (request is None) == (read.kind != "request"), "a request is bound to its exchange, and nothing else is"
        assert request is not None or (kind == "response") == (read.kind == "response"), "`kind` tells what it is"
        self.exchanges.append(exchange)
        self.server.happened()
        if request is not None:
            self.server.tasks.start_soon(self.server.play, exchange)

    def abandon(self, request: Request) -> None:
        """See `Wire.abandon`."""
        for exchange in self.exchanges:
            if exchange.request is request and not exchange.is_over:
                exchange.give_up()

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        self.revision = revision
        self.initialized.append(initialized)
        self.exchanges.append(Exchange(self, initialized, "notifications/initialized", None, NONE))
        await self.server.stand("establish")
        if self.server.refuses_initialized:
            raise UpstreamUnreachable("notifications/initialized was not accepted", status=400, executed="no")

    @property
    def session(self) -> str:
        """See `MovableWire.session`."""
        return f":{self.id}" if self.server.is_movable else ""

    def release(self) -> None:
        """See `MovableWire.release`."""
        self.is_released = True

    def listen(self) -> None:
        """See `MovableWire.listen`."""
        self.is_listening = True
        self.server.happened()

    def rest(self) -> None:
        """See `MovableWire.rest`."""
        self.is_listening = False
        self.server.happened()

    async def close(self) -> None:
        """Leaving the context: the session ends."""
        self.server.closing.append(self)
        self.server.owners.append((self._opener, anyio.get_current_task().id))
        with anyio.CancelScope(shield=True):
            with anyio.move_on_after(self.server.goodbye_seconds):
                await self.server.stand("close")
        self.is_closed = True
        if not self.is_released:
            self.server.deleted.append(self.id)
            self.forget()
        self._end_exchanges()
        self.server.happened()

    def _end_exchanges(self) -> None:
        for exchange in self.exchanges:
            if not exchange.is_over:
                exchange.give_up()

    def _refuse(self, request: Request | None) -> None:
        first = not self._refused
        if request is not None:
            self._refused.append(request)
        if first:
            self.server.tasks.start_soon(self._tell_lost)

    async def _tell_lost(self) -> None:
        if not self.is_closed:
            gone = SessionLost("the server no longer knows the session", executed="unknown")
            self.receiver.lost(gone, tuple(self._refused))


class MemoryServer(Changing):
    """Implements `Connector`: opens sessions in memory, and keeps them for the test to look at."""

    def __init__(self, *, revision: str = "2025-11-25", binds: bool = True) -> None:
        super().__init__()
        self.binds = binds
        """Whether messages come bound to the request on whose stream they came, as over HTTP."""
        self.result: dict[str, Any] = {
            "protocolVersion": revision,
            "capabilities": {"tools": {"listChanged": True}, "logging": {}},
            "serverInfo": {"name": "memory", "version": "1"},
        }
        self.on_request: Callable[[Exchange], None] | None = None
        """Called with each request but `initialize`, soon after it came in."""
        self.answers_initialize: Callable[[Exchange], None] = lambda exchange: exchange.answer(self.result)
        """What becomes of the handshake."""
        self.unreachable: TrunklineError | None = None
        """What `connect` raises."""
        self.refuses_initialized = False
        self.goodbye_seconds = 0.2
        """How long the end of a session may take."""
        self.is_movable = False
        """Whether another process can go on with a session."""
        self.ids = itertools.count(1)
        self.deleted: list[str] = []
        """The ids of sessions that clients ended."""
        self.sessions: list[Session] = []
        self.closing: list[Session] = []
        """Sessions in the order in which they began to end."""
        self.owners: list[tuple[int, int]] = []
        """For each session that ended: the task that opened it, and the one that closed it."""
        self.tasks: anyio.abc.TaskGroup
        self._paused: set[str] = set()
        self._at: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["MemoryServer"]:
        """The server with its tasks; leave it after the sessions have ended."""
        async with anyio.create_task_group() as self.tasks:
            yield self
            self.tasks.cancel_scope.cancel()

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`."""
        await self.stand("connect")
        if self.unreachable is not None:
            raise self.unreachable
        async with self._wire(Session(self, receiver, headers, listen=listen)) as session:
            yield session

    @asynccontextmanager
    async def adopt(
        self, receiver: Receiver, headers: Headers, session: str, revision: str, *, listen: bool
    ) -> AsyncIterator[Wire]:
        """See `AdoptingConnector.adopt`."""
        wire = Session(self, receiver, headers, listen=listen, id=session[1:])
        wire.revision, wire.is_forgotten = revision, wire.id in self.deleted
        async with self._wire(wire):
            yield wire

    @asynccontextmanager
    async def _wire(self, session: Session) -> AsyncIterator[Session]:
        self.sessions.append(session)
        self.happened()
        try:
            yield session
        finally:
            await session.close()

    @property
    def session(self) -> Session:
        """The newest session."""
        return self.sessions[-1]

    @property
    def live(self) -> list[Session]:
        """Sessions that have not ended."""
        return [session for session in self.sessions if not session.is_closed]

    def of(self, kind: str) -> list[Exchange]:
        """What came in over all sessions, by method, or `response`."""
        return [exchange for session in self.sessions for exchange in session.of(kind)]

    # Timing.

    def pause(self, stage: Stage) -> None:
        """Let sessions stop at this stage from now on."""
        self._paused.add(stage)

    def let(self, stage: Stage) -> None:
        """Let them go on."""
        self._paused.discard(stage)
        self.happened()

    async def stand(self, stage: Stage) -> None:
        """Wait while the stage is paused."""
        self._at[stage] += 1
        self.happened()
        while stage in self._paused:
            await self._changed.wait()

    async def reached(self, stage: Stage, times: int = 1) -> None:
        """Wait until so many sessions came to this stage, whether they had to stop or not."""
        await self.until(lambda: self._at[stage] >= times)

    async def got(self, kind: str, count: int = 1) -> Exchange:
        """Wait until so many of a kind came in, over all sessions; the last of them."""
        await self.until(lambda: len(self.of(kind)) >= count)
        return self.of(kind)[count - 1]

    async def play(self, exchange: Exchange) -> None:
        """What the server does with a request."""
        if exchange.kind == "initialize":
            await self.stand("initialize")
            self.answers_initialize(exchange)
        elif self.on_request is not None:
            self.on_request(exchange)


def echo(exchange: Exchange) -> None:
    """Answer a call with its own arguments: for `MemoryServer.on_request`."""
    params: Mapping[str, Any] = exchange.json.get("params") or {}
    exchange.answer({"content": [], "structuredContent": params.get("arguments")})
