"""One client's conversation with one server: it outlives connections, and ends by DELETE, expiry or drain.

The workflow stands between the wires of its client and the line to its server. Its parts hold what the client asks
(`calls`), what the server asks (`questions`), and what is sent to the client (`streams`, `duplexes`); all but the calls
are made when they are first needed. What they have in common is here: the record, whether the client is there, when it
was last in use, and how it ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import NamedTuple

import msgspec

from .account import Account, Transport, What
from .annotations import Trust
from .burden import Burden
from .calls import Calls
from .channel import Channel
from .duplex import Duplex
from .duplexes import Duplexes
from .envelope import Envelope
from .errors import SessionLost, TrunklineError, WorkflowEnded
from .event_log import Budget, EventLog
from .exchange import asker_of
from .journal import Journal, KeptLog
from .ports import Answerable, Asker, Caller, Headers, Line, Opened
from .questions import Meant, Questions
from .record import WorkflowRecord
from .recovery import Kept, Known
from .request import EXTENSIONS, ServerRequest
from .routing import place
from .statistics import Statistics
from .streams import Streams
from .upstream import Upstream


class WorkflowPorts(NamedTuple):
    """What all workflows of a pool have in common, and what the pool does for each."""

    budget: Budget
    """What their event logs may hold together."""
    statistics: Statistics
    clock: Callable[[], float]
    end: Callable[[Workflow, str], None]
    """Ends one, with its record and everything, for a cause that arose within."""
    stir: Callable[[Workflow], None]
    """Hears that something happened to one, which has to be looked after."""
    burden: Burden
    """What clients' large messages may take together."""
    journal: Journal | None = None
    """The way to where their event logs are kept for other workers; None where there are none."""
    names: Iterator[int] | None = None
    wires: Iterator[int] | None = None
    """Numbers for their streams and questions, and those for streams of wires; None where each counts its own."""


class Workflow:
    """One client conversation. Implements `Owner` for its channel and `Resident` for the pool's policy.

    There are many. More than thirty attributes would take each a table of its own, which costs more than all the rest.
    """

    __slots__ = (
        "_duplexes",
        "_elsewhere",
        "_is_bound_to_wires",
        "_ports",
        "_questions",
        "_streams",
        "_touched",
        "account",
        "calls",
        "checked",
        "doubted_since",
        "ended",
        "generation",
        "handle",
        "is_superseded",
        "kept_log",
        "known",
        "line",
        "loop",
        "opened",
        "pooling",
        "principal",
        "record",
        "server",
        "stateless",
        "statistics",
        "stood_at",
        "touched",
        "transport",
        "trust",
        "wires",
        "wish",
    )

    def __init__(
        self,
        record: WorkflowRecord,
        upstream: Upstream,
        account: Account,
        ports: WorkflowPorts,
        make_line: Callable[[Workflow], Line],
    ) -> None:
        self._ports = ports
        self.statistics = ports.statistics
        self.record = record
        self.wish = record.wish
        """What it wants of a session that it shares."""
        self.principal = record.principal
        """Whose workflow it is."""
        self.server = record.server
        """The name of its server."""
        self.handle = record.handle
        """Its public name, for pages, logs and commands."""
        self.pooling = upstream.pooling
        self.stateless = upstream.stateless or upstream.pooling.reuse == "user"
        self.generation = upstream.generation
        """The generation of its server's settings under which it began."""
        self.is_superseded = False
        """True where other settings of its server hold by now: it goes on for as long as its client uses it."""
        self.trust: Trust | None = None
        """What its server's annotations allow, where they are trusted: set by who makes its line."""
        self.account = account
        self.transport: Transport = account.transport
        """What its client's newest wire is."""
        self._is_bound_to_wires = False
        self.loop = asyncio.get_running_loop()
        """Where it lives: to ask for the running one costs a call to the system."""
        self.opened: asyncio.Future[Opened] = self.loop.create_future()
        self.ended: WorkflowEnded | None = None
        """Why it ended; None while it lives."""
        self.wires = 0
        """Wires that the client has: exchanges that it waits for, streams that it reads."""
        self._touched = self.checked = self.stood_at = ports.clock()
        """When it was last in use; when its record was compared with the directory's; and when it last stood there."""
        self.doubted_since: float | None = None
        """When another worker could take it over: set until the record has been compared."""
        self.touched = self._elsewhere = float("-inf")
        """When the directory was told that it is in use; when another worker served its client, as far as is known."""
        self.known: Known | None = None
        """How much of its event log is known here; None where it was not read."""
        self.calls = Calls(self, ports.clock, ports.stir, ports.burden)
        """What its client asked and is not answered yet."""
        self._questions: Questions | None = None
        self._streams: Streams | None = None
        self._duplexes: Duplexes | None = None
        self.kept_log: KeptLog | None = None
        """Its event log, as it is kept for other workers; None where there are none."""
        if ports.journal is not None:
            self.kept_log = KeptLog(ports.journal, record.session_id, self.pooling.event_log, self._repeat)
        self.line = make_line(self)
        """What carries its calls: made last, since it has the workflow as its owner."""

    def __repr__(self) -> str:
        return f"Workflow({self.handle} on {self.server}, {len(self.calls)} in flight, {self.wires} wires)"

    @property
    def revision(self) -> str:
        """The negotiated protocol revision."""
        return self.record.revision

    @property
    def streams(self) -> Streams:
        """What it sends its client."""
        if self._streams is None:
            ports = self._ports
            self._streams = Streams(self, EventLog(self.pooling.event_log, ports.budget, ports.names, ports.wires))
        return self._streams

    @property
    def duplexes(self) -> Duplexes:
        """The wires of its client that carry everything."""
        if self._duplexes is None:
            self._duplexes = Duplexes(self)
        return self._duplexes

    @property
    def questions(self) -> Questions:
        """What its server asked and its client has not answered."""
        if self._questions is None:
            write = None if self.kept_log is None else self.kept_log.write
            capabilities, names = self.record.handshake.capabilities, self._ports.names
            self._questions = Questions(capabilities, names, write, lambda: self.streams.home.number)
        return self._questions

    @property
    def holds_events(self) -> bool:
        """True while anything is kept for resumption."""
        return self._streams is not None and self._streams.is_held

    @property
    def is_attached(self) -> bool:
        """True while the client has a wire: an exchange that it waits for, or a stream that it reads."""
        return self.wires > 0

    @property
    def is_listening(self) -> bool:
        """See `Owner.is_listening`."""
        return self._streams is not None and self._streams.listened is not None

    @property
    def inflight(self) -> int:
        """Calls that wait for an answer."""
        return len(self.calls)

    @property
    def idle_since(self) -> float | None:
        """When its last response ended or its last wire left; None while it has a wire or a call in flight."""
        if self.wires or len(self.calls) or not self.opened.done():
            return None
        return max(self._used, self._elsewhere)

    @property
    def _used(self) -> float:
        """When something was done with it last."""
        return max(self._touched, self.calls.last_end)

    @property
    def is_doubted(self) -> bool:
        """True while another worker may have taken it over."""
        return self.doubted_since is not None

    def was_used_since(self, then: float) -> bool:
        """True if it has a wire or a call in flight, or something was done with it since then."""
        return bool(self.wires or len(self.calls)) or self._used >= then

    def touched_elsewhere(self, then: float) -> None:
        """Another worker served its client at that time."""
        self._elsewhere = then

    @property
    def has_changed(self) -> bool:
        """True where its record does not say what another worker would have to know."""
        is_moved = self.upstream_session not in ("", self.record.upstream_session)
        return bool(self.record.revision) and (is_moved or self.wish != self.record.wish)

    @property
    def changed_record(self) -> WorkflowRecord:
        """Its record with what another worker would have to know."""
        session = self.upstream_session or self.record.upstream_session
        return msgspec.structs.replace(self.record, upstream_session=session, wish=self.wish)

    def about(self) -> dict[str, str]:
        """What log lines say of it."""
        return {"server": self.server, "handle": self.handle, "principal": self.principal.digest()}

    # What the client sends.

    def notify(self, message: Envelope, headers: Headers, via: Duplex | None = None) -> None:
        """Take one notification of the client. What names a request is translated, and dropped if it names none.

        `via` is the wire that carries everything on which it came: request ids are that wire's own.
        """
        self._touched = self._ports.clock()
        if message.method == "notifications/cancelled":
            self.calls.cancel(message, via)
        elif message.method == "notifications/progress":
            if (of_task := self.questions.progress(message)) is not None:
                self.line.notify(of_task, headers)
        elif message.method != "notifications/initialized":  # sent upstream once, by the channel (rule L6)
            self.line.notify(message.encode(), headers)

    def respond(self, message: Envelope) -> None:
        """Take the client's answer to what a server asked; unknown and second answers are dropped (rule R4)."""
        self._touched = self._ports.clock()
        if not self.questions.answer(message):
            self.statistics.count("unknown_answers", self.server)

    # What the server sends, as its channel tells.

    def asked(self, channel: Answerable, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.asked`."""
        asker = self._place(asker_of(request.origin.caller if request.origin is not None else None))
        try:
            text = self.questions.ask(request, message, channel, asker)
        except TrunklineError as refused:
            self.statistics.count("refused_server_requests", self.server)
            channel.refuse(request, refused)
            return
        self._ports.stir(self)
        self._deliver(text, asker)
        self.streams.place(request)

    def retracted(self, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.retracted`."""
        retracted = self.questions.retract(request, message)
        if retracted is not None:
            text, asker = retracted
            is_over = asker is not None and (asker.is_lost or not asker.is_open)
            self._deliver(text, self._place(None) if is_over else asker)

    def told(self, message: Envelope, origin: Caller | None) -> None:
        """See `Owner.told`."""
        if self.trust is not None and message.method == "notifications/tools/list_changed":
            self.trust.change()
        self._deliver(message.encode(), asker_of(origin))

    def left(self, channel: Answerable) -> None:
        """See `Owner.left`."""
        if self._questions is not None:
            self._questions.void(channel)

    def lost(self, channel: Answerable, cause: TrunklineError) -> None:
        """See `Owner.lost`: a session that held state is not silently begun anew (rule L18)."""
        if self.ended is None and self.opened.done():
            self.account.lose(self._ports.clock(), cause.reason, again=channel not in self.line.channels)
        if not self.opened.done():
            return
        if not self.line.is_open:
            self._ports.end(self, "upstream_lost")
        elif self.is_superseded:  # it would be opened anew under settings that no longer hold
            self._ports.end(self, "reconfigured")

    # Wires.

    def come_by(self, transport: Transport) -> None:
        """Its client has a wire of this transport."""
        if transport != self.transport:
            self.transport = transport
            self.account.note(self._ports.clock(), "moved", transport)

    def bind_to_wires(self) -> None:
        """It began without a key, on a wire that carries everything, or for who did not wait: nobody else knows its id.

        That holds until something is asked by an exchange, whose client must know the session id.
        """
        self._is_bound_to_wires = True

    @property
    def _ends_with_its_wires(self) -> bool:
        """True where nobody will come once its client has not come back to a wire within `resume_window`."""
        return self._is_bound_to_wires and not self.calls.had_exchange

    def note(self, what: What) -> None:
        """Something happened between it and its client."""
        if self.ended is None:
            self.account.note(self._ports.clock(), what)

    def wire_came(self) -> None:
        """The client has one wire more."""
        self.wires += 1

    def wire_left(self) -> None:
        """The client has one wire less."""
        self.wires -= 1
        self._touched = self._ports.clock()
        self._ports.stir(self)

    # Ends.

    def now(self) -> float:
        """Seconds on the clock that everything here is measured by."""
        return self._ports.clock()

    def fail(self, cause: str) -> None:
        """End it, with its record and everything, for a cause that arose within."""
        self._ports.end(self, cause)

    def expire(self, now: float) -> None:
        """Time out calls, drop what was kept for resumption long enough, refuse questions that nobody is there for."""
        self.line.expire(now)
        for text in () if self._questions is None else self._questions.expire(now):
            self._deliver(text, self._place(None))
        if not self.wires and not len(self.calls):
            for channel in self.line.channels:
                if channel.listening.rests_at(self._used) <= now:
                    channel.rest()
                    self.calls.trim()
        if self._streams is not None:
            before = now - self.pooling.resume_window
            self._streams.give_up(before)
            self._refuse_questions(is_meant=self._streams.is_out_of_reach)
            self._streams.expire(before)
        if self._duplexes is not None:
            self._duplexes.expire()
        if not self.wires and self._used + self.pooling.resume_window <= now:
            self._refuse_questions()
            if self._ends_with_its_wires and not len(self.calls):
                self.fail("abandoned")

    def stir(self) -> None:
        """Something happened that has to be looked after sooner than was thought."""
        self._ports.stir(self)

    def due(self) -> float:
        """When `expire` is due next, if nothing happens until then."""
        channels = self._own_channels()
        if len(self.calls) or not self.opened.done() or not all(channel.is_idle for channel in channels):
            return float("-inf")
        window = self.pooling.resume_window
        due = [inf if self._streams is None else self._streams.oldest + window]
        due.append(inf if self._questions is None else self._questions.due)
        if not self.wires:
            if self._questions or self._ends_with_its_wires:
                due.append(self._used + window)
            due += [channel.listening.rests_at(self._used) for channel in channels]
        return min(due)

    def settle(self, outcome: Opened | TrunklineError) -> None:
        """It is known whether it could be opened; the first word counts."""
        if self.opened.done():
            return
        if isinstance(outcome, TrunklineError):
            self.opened.set_exception(outcome)
            self.opened.exception()  # the client may have left
        else:
            self._touched = self._ports.clock()
            self.opened.set_result(outcome)

    def end(self, cause: str, *, release: bool = False) -> bool:
        """End it: calls fail, the upstream session is closed, readers get what is left and stop. False if it had.

        With `release`, another worker goes on: the upstream session stays open where it can, and so does what the
        server asked.
        """
        if self.ended is not None:
            return False
        self.ended = WorkflowEnded(cause)
        if release:
            if self._questions is not None:
                self._questions.let_go()
            for channel in self._own_channels():
                channel.release(self.ended)
        self._refuse_questions("the client's session ended")
        self.line.close(self.ended)
        if self.trust is not None:
            self.trust.end()
        if self._streams is not None:
            self._streams.end()
        return True

    # What another worker held.

    def knows(self, name: int) -> bool:
        """True where this is one of its streams, or a question that waits for its answer."""
        return any(part is not None and part.knows(name) for part in (self._questions, self._streams))

    def restore(self, kept: Kept, epoch: int, gave: Callable[[int], bool]) -> None:
        """Go on with what was kept of those streams and questions whose numbers `gave` takes, as the writer `epoch`.

        What was asked on such a stream comes with it. Its client is here: one of its requests is why.
        """
        self._touched = self._ports.clock()
        self._ports.stir(self)
        self.streams.make_room()
        for number, stream in kept.streams.items():
            if self.ended is not None:  # there was no room for the one before
                return
            if gave(number) and (not number or not self.streams.knows(number)):
                restored = self.streams.restore(stream, epoch, listens=number == kept.home)
                if stream.is_wire:
                    self.duplexes.restore(restored, stream.connections)
        for number, asked in kept.questions.items() if self.ended is None else ():
            if (gave(number) or gave(asked.stream)) and not self.questions.knows(number):
                self.questions.restore(asked, self.line, self.now() + self.pooling.request_timeout * EXTENSIONS)

    def _repeat(self) -> None:
        """Note once more what another worker would have to know of it."""
        for part in (self._streams, self._duplexes, self.calls, self._questions):
            if part is not None:
                part.repeat()

    @property
    def upstream_session(self) -> str:
        """What another worker needs to go on with the upstream session, a secret; empty where it cannot."""
        return next((channel.session for channel in self.line.channels), "")

    @property
    def highest_id(self) -> int:
        """The highest request id that was drawn here for it; 0 where none was."""
        return max((channel.ids.highest for channel in self.line.channels), default=0)

    def listen(self) -> None:
        """From now on what the server tells unasked comes here."""
        for channel in self._own_channels():
            channel.listening.begin()

    def _own_channels(self) -> Sequence[Channel]:
        return self.line.channels if self.pooling.reuse == "workflow" else ()

    def _refuse_questions(self, why: str = "the client did not come back", is_meant: Meant | None = None) -> None:
        if self._questions is not None:
            self._questions.refuse(SessionLost(why, executed="unknown"), is_meant)

    def _place(self, origin: Asker | None) -> Asker | None:
        """What carries a server's request to the client (R2)."""
        return place(origin, self.calls.newest_exchange, is_listening=self.is_listening)

    def _deliver(self, text: bytes, asker: Asker | None) -> None:
        if asker is not None:
            asker.add(text)
        else:
            self.streams.append(self.streams.home, text)
