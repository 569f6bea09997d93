"""One client's conversation with one server: it outlives connections, and ends by DELETE, expiry or drain.

The workflow stands between the wires of its client and the line to its server. It keeps the client's ids apart from
everybody else's, decides which of the client's streams carries a message, and logs what it sends for resumption.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from msgspec import Raw

from . import envelope as wire_format
from .demux import ServerRequest
from .envelope import Envelope, Members
from .errors import Overloaded, SessionLost, TrunklineError, WorkflowEnded
from .event_log import Budget, Event, EventLog, Overflow, Position, Stream, Trimmed
from .exchange import Call, Exchange
from .limits import Pooling
from .ports import Answerable, Caller, Headers, Line, Opened
from .principal import Principal
from .record import WorkflowRecord
from .routing import PRIMING, Desk, place, refusal
from .statistics import Statistics

WORST_FIRST: Final = ("bypass", "miss", "spare", "hit")


class Workflow:
    """One client conversation. Implements `Owner` for its channel and `Resident` for the pool's policy."""

    def __init__(
        self,
        record: WorkflowRecord,
        pooling: Pooling,
        *,
        budget: Budget,
        statistics: Statistics,
        clock: Callable[[], float],
        on_end: Callable[[Workflow, str], None],
    ) -> None:
        self.record = record
        self.pooling = pooling
        self.statistics = statistics
        self.line: Line
        """Set by the pool, at once: the line needs the workflow as its owner."""
        self.stateless = False
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        self.checked = clock()
        """When the record was last compared with the directory's."""
        self._clock = clock
        self._on_end = on_end
        self._desk: Desk[Call] = Desk()
        self._log = EventLog(pooling.event_log, budget)
        self._readers: dict[int, list[Reader]] = {}
        self._exchanges: dict[Exchange, None] = {}
        self._wires = 0
        self._touched = clock()
        self._capabilities: Members | None = None
        self._ended: WorkflowEnded | None = None
        self._quiet: asyncio.Event | None = None
        """While draining: set once no call is in flight."""

    def __repr__(self) -> str:
        return f"Workflow({self.record.handle} on {self.server}, {len(self._desk)} in flight, {self._wires} wires)"

    @property
    def principal(self) -> Principal:
        """Whose workflow it is."""
        return self.record.principal

    @property
    def server(self) -> str:
        """The name of its server."""
        return self.record.server

    @property
    def revision(self) -> str:
        """The negotiated protocol revision."""
        return self.record.revision

    @property
    def is_attached(self) -> bool:
        """True while the client has a wire: an exchange that it waits for, or a stream that it reads."""
        return self._wires > 0

    @property
    def inflight(self) -> int:
        """Calls that wait for an answer."""
        return len(self._desk)

    @property
    def idle_since(self) -> float | None:
        """When its last response ended or its last wire left; None while it has a wire or a call in flight."""
        return None if self._wires or len(self._desk) or not self.opened.done() else self._touched

    @property
    def ended(self) -> WorkflowEnded | None:
        """Why it ended; None while it lives."""
        return self._ended

    def row(self) -> dict[str, object]:
        """What pages and tables show of it: no secret, and no other than fixed words."""
        return {
            "workflow": self.record.handle,
            "principal": self.principal.digest(),
            "server": self.server,
            "state": "attached" if self.is_attached else "detached",
            "revision": self.revision,
            "reuse": self.pooling.reuse,
            "keyed": self.record.key is not None,
            "inflight": self.inflight,
            "idle": None if self.idle_since is None else round(self._clock() - self.idle_since, 1),
        }

    # What the client sends.

    def exchange(self, requests: int) -> Exchange:
        """A new exchange with so many requests; `call` each of them next."""
        exchange = Exchange(self, requests)
        self._exchanges[exchange] = None
        return exchange

    def call(self, message: Envelope, exchange: Exchange, headers: Headers) -> None:
        """Take one request of the client; its answer, or why there is none, reaches the exchange."""
        call = Call(self, exchange, message.id, message.method, self._clock())
        self._desk.enter(message.id, call)
        if message.method == "ping":
            call.answered(wire_format.result(message.id, Raw(b"{}")), is_error=False)
            return
        if self.stateless:
            call.again = (message, headers)
        self.carry(call, message, headers)

    def carry(self, call: Call, message: Envelope, headers: Headers) -> None:
        """Hand a call's request to the line; if it is not taken, the call fails."""
        try:
            if self._ended is not None:
                raise SessionLost(f"the session ended: {self._ended.cause}", executed="no")
            if self._quiet is not None:
                raise SessionLost("the gateway is shutting down", executed="no")
            if len(self._desk) > self.pooling.max_inflight_per_workflow:
                raise Overloaded("too many calls in flight in this session", limit="max_inflight_per_workflow")
            done = self.line.request(message, call, headers)
        except TrunklineError as error:
            call.failed(error)
            return
        self.statistics.count("pool_requests", self.server, done)
        call.exchange.pool_result = min(call.exchange.pool_result, done, key=WORST_FIRST.index)

    def notify(self, message: Envelope, headers: Headers) -> None:
        """Take one notification of the client. What names a request is translated, and dropped if it names none."""
        self._touched = self._clock()
        if message.method == "notifications/cancelled":
            call, reason = self._desk.withdraw(message)
            if call is None:
                self.statistics.count(reason, self.server)
            else:
                self.line.cancel(call, message)
        elif message.method == "notifications/progress":
            found = self._desk.progress(message)
            if found is not None:
                text, via = found
                via.tell(text)
        elif message.method != "notifications/initialized":  # sent upstream once, by the channel (rule L6)
            self.line.notify(message.encode(), headers)

    def respond(self, message: Envelope) -> None:
        """Take the client's answer to what a server asked; unknown and second answers are dropped (rule R4)."""
        self._touched = self._clock()
        question = self._desk.answer(message)
        if question is None:
            self.statistics.count("unknown_answers", self.server)
        else:
            question.via.respond(question.request, message)

    # What the server sends, as its channel tells.

    def asked(self, channel: Answerable, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.asked`."""
        if self._capabilities is None:
            self._capabilities = wire_format.members_of(Raw(self.record.handshake.capabilities)) or {}
        error = refusal(message, self._capabilities)
        if error is not None:
            self.statistics.count("refused_server_requests", self.server)
            channel.refuse(request, error)
            return
        text = self._desk.ask(request, message, channel)
        origin = self._exchange_of(request.origin.caller if request.origin is not None else None)
        newest = next((exchange for exchange in reversed(self._exchanges) if not exchange.is_lost), None)
        match place(
            origin_open=origin is not None,
            standalone_attached=bool(self._readers.get(0)),
            exchanges_open=newest is not None,
        ):
            case "exchange" if origin is not None:
                origin.add(text)
            case "newest" if newest is not None:
                newest.add(text)
            case _:
                self.append(self._log.standalone(), text)

    def retracted(self, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.retracted`."""
        text = self._desk.retract(request, message)
        if text is not None:
            self._deliver(text, request.origin.caller if request.origin is not None else None)

    def told(self, message: Envelope, origin: Caller | None) -> None:
        """See `Owner.told`."""
        self._deliver(message.encode(), origin)

    def lost(self, channel: Answerable, cause: TrunklineError) -> None:
        """See `Owner.lost`: a session that held state is not silently begun anew (rule L18)."""
        self._desk.forget(channel)
        if not self.stateless and self.opened.done():
            self._on_end(self, "upstream_lost")

    # Streams.

    def open_stream(self) -> Stream:
        """A new stream for an exchange, primed where the client understands it."""
        stream = self._log.open()
        if self.revision >= PRIMING:
            self.append(stream, b"")
        return stream

    def append(self, stream: Stream, message: bytes, *, last: bool = False) -> None:
        """Log one message on a stream and wake its reader; an overflow ends the workflow with that reason."""
        try:
            self._log.append(stream, message, self._clock(), last=last)
        except Overflow as overflow:
            self._on_end(self, overflow.reason)
        for reader in self._readers.get(stream.number, ()):
            reader.wake()

    def event_id(self, stream: Stream, n: int) -> str:
        """The event id of a position: what a client sends back to resume after it."""
        return Position(self.record.event_token, stream.number, 0, n).spell()

    def attach(self, stream: Stream, after: int) -> Reader:
        """A reader of this stream from a position on; on one stream the newest reader is the live one."""
        reader = Reader(self, stream, after)
        readers = self._readers.setdefault(stream.number, [])
        readers.append(reader)
        for older in readers:
            older.wake()
        stream.covered = True
        self.wire_came()
        return reader

    def attach_standalone(self) -> Reader:
        """A reader of what belongs to no request, from where the last one stopped."""
        stream = self._log.standalone()
        after = max(stream.sent, stream.trimmed)
        if self.revision >= PRIMING:
            self.append(stream, b"")
        return self.attach(stream, after)

    def resume(self, position: Position) -> Reader:
        """A reader that first repeats what followed this position, then goes on live.

        Raises:
            Trimmed: what followed is no longer held; the workflow is ended with that reason.
        """
        try:
            stream = self._log.find(position.stream)
            if position.epoch:
                raise Trimmed("this position of the stream is no longer held")
            repeated = sum(event.n <= stream.sent for event in stream.after(position.n))
        except Trimmed as trimmed:
            self._on_end(self, trimmed.reason)
            raise
        self.statistics.count("replayed_events", by=repeated)
        return self.attach(stream, position.n)

    def is_live(self, reader: Reader) -> bool:
        """True for the newest reader of its stream: the only one that new events go to."""
        readers = self._readers.get(reader.stream.number, ())
        return reader in readers[-1:]

    def detach(self, reader: Reader) -> None:
        """A reader's wire has gone; the next newest one goes on from where it stopped."""
        readers = self._readers.get(reader.stream.number, [])
        if reader in readers:
            readers.remove(reader)
            self.wire_left()
            if readers:
                readers[-1].wake()
            else:
                del self._readers[reader.stream.number]
        if self._ended is not None and not self._readers:
            self._log.clear()

    def wire_came(self) -> None:
        """The client has one wire more."""
        self._wires += 1

    def wire_left(self) -> None:
        """The client has one wire less."""
        self._wires -= 1
        self._touched = self._clock()

    # Ends.

    def close_exchange(self, exchange: Exchange) -> None:
        """An exchange has its last answer."""
        self._exchanges.pop(exchange, None)

    def leave(self, call: Call, outcome: str) -> None:
        """A call has ended."""
        now = self._clock()
        self._touched = now
        self._desk.leave(call.id, call)
        if self._quiet is not None and not len(self._desk):
            self._quiet.set()
        self.statistics.count("calls", self.server, call.method, outcome)
        self.statistics.observe("call_seconds", now - call.started, self.server)

    def drain(self) -> asyncio.Event:
        """Refuse calls from now on; the event is set when those in flight have ended (guarantee G8)."""
        if self._quiet is None:
            self._quiet = asyncio.Event()
            if not len(self._desk):
                self._quiet.set()
        return self._quiet

    def expire(self, now: float) -> None:
        """Time out calls, drop what was kept for resumption long enough, refuse questions that nobody is there for."""
        self.line.expire(now)
        self._log.expire(now - self.pooling.resume_window)
        if not self._wires and self._touched + self.pooling.resume_window <= now:
            self._refuse_questions("the client did not come back")

    def end(self, cause: str) -> bool:
        """End it: calls fail, the upstream session is closed, readers get what is left and stop. False if it had."""
        if self._ended is not None:
            return False
        self._ended = WorkflowEnded(cause)
        self._refuse_questions("the client's session ended")
        self.line.close(self._ended)
        for readers in self._readers.values():
            for reader in readers:
                reader.wake()
        if not self._readers:
            self._log.clear()
        return True

    def _refuse_questions(self, why: str) -> None:
        for question in self._desk.forget():
            question.via.refuse(question.request, SessionLost(why, executed="unknown"))

    def _exchange_of(self, caller: Caller | None) -> Exchange | None:
        exchange = caller.exchange if isinstance(caller, Call) else None
        return exchange if exchange is not None and exchange.is_open and not exchange.is_lost else None

    def _deliver(self, text: bytes, origin: Caller | None) -> None:
        exchange = self._exchange_of(origin)
        if exchange is not None:
            exchange.add(text)
        else:
            self.append(self._log.standalone(), text)


class Reader:
    """One wire's view of one stream: what follows a position, then what comes, as long as it is the live reader."""

    def __init__(self, workflow: Workflow, stream: Stream, position: int) -> None:
        self._workflow = workflow
        self._position = position
        self._passive = False
        self._waiter: asyncio.Future[None] | None = None
        self.stream = stream

    def wake(self) -> None:
        """Something may have changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def next(self, patience: float) -> list[Event] | None:
        """The events that are due on this wire; empty after `patience` seconds without any; None at its end.

        What is returned counts as sent. A stream that ended, a newer reader of an exchange's stream, and the end of
        the workflow end it.
        """
        events = self._due()
        if events is None or events:
            return events
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_later(patience, self.wake)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None
        return self._due()

    def close(self) -> None:
        """The wire has gone. Idempotent."""
        self._workflow.detach(self)

    def event_id(self, event: Event) -> str:
        """The id under which a client can come back to this event."""
        return self._workflow.event_id(self.stream, event.n)

    def _due(self) -> list[Event] | None:
        stream = self.stream
        if not self._workflow.is_live(self):
            self._passive = True
            return None if stream.number or self._workflow.ended else []
        if self._passive:
            self._passive = False
            self._position = max(self._position, stream.sent)
        events = stream.after(max(self._position, stream.trimmed))
        if events:
            self._position = events[-1].n
            stream.sent = max(stream.sent, self._position)
            return events
        return None if stream.ended or self._workflow.ended else []
