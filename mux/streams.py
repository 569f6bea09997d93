"""What one workflow sends its client: the streams of its event log, and the wires that read them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING

from . import envelope as wire_format
from .directory import Entry
from .errors import SessionLost
from .event_log import EPOCH, Event, EventLog, Overflow, Position, Stream, Trimmed
from .recovery import KeptStream
from .request import ServerRequest
from .routing import PRIMING
from .tally import Note

if TYPE_CHECKING:
    from .workflow import Workflow


class Streams:
    """The streams of one workflow. On each the newest reader is the live one."""

    def __init__(self, workflow: Workflow, log: EventLog) -> None:
        self._workflow = workflow
        self._log = log
        log.on_overflow = partial(workflow.fail, Overflow.reason)
        self._readers: dict[int, list[Reader]] = {}
        self._listened: dict[int, Stream] = {}
        """Streams that carry what belongs to no request, the one that a wire came to last at the end."""
        self._noted: int | None = None
        """The home that other workers know of, by its number; None where no wire has listened here."""

    def open(self, *, is_wire: bool = False) -> Stream:
        """A new stream, for an exchange or for a wire that carries everything."""
        return self._log.open(is_wire=is_wire)

    def knows(self, number: int) -> bool:
        """True where this stream is held."""
        return self._log.knows(number)

    def note_opened(self, stream: Stream, ids: Sequence[bytes]) -> None:
        """A stream owes the answers to these requests."""
        if self._workflow.kept_log is not None:
            self._workflow.kept_log.write(Entry("opened", stream.number, 0, b"[%b]" % b",".join(ids)))

    def noting(self, stream: Stream) -> Note | None:
        """What notes how the client of a wire that carries everything counts, for another worker."""
        log = self._workflow.kept_log
        return None if log is None else lambda kind, n, text: log.write(Entry(kind, stream.number, n, text))

    def make_room(self) -> None:
        """Streams of another worker come: those of which nothing is left give way, but for the last ones."""
        self._log.forget_empty()

    def restore(self, kept: KeptStream, epoch: int, *, listens: bool) -> Stream:
        """A stream of another worker; its owed answers are told as lost. An overflow ends the workflow, as `append`.

        With `listens`, what belongs to no request went there: its client is about to come back.
        """
        last = max(epoch * EPOCH, kept.last)
        now = self._workflow.now()
        try:
            stream = self._log.restore(kept.number, kept.events, trimmed=kept.trimmed, last=last, now=now)
        except Overflow as overflow:
            stream = self._log.find(kept.number)
            self._workflow.fail(overflow.reason)
        gone = SessionLost("the worker that carried this call is gone", executed="unknown")
        owed = list(kept.waiting.values())
        for place, raw in enumerate(owed, 1):
            self.append(stream, wire_format.failure(raw, gone), last=place == len(owed) and not kept.is_wire)
        stream.ended = bool(stream.number) and not kept.is_wire
        stream.covered = bool(stream.number or kept.events)
        if listens:
            self._listened[stream.number], self._noted = stream, stream.number
        return stream

    def prime(self, stream: Stream) -> None:
        """Let a client that understands it learn an event id on this stream (rule T7)."""
        if self._workflow.revision >= PRIMING:
            self.append(stream, b"")

    def append(self, stream: Stream, message: bytes, *, last: bool = False) -> None:
        """Log one message on a stream and wake its readers; an overflow ends the workflow with that reason."""
        if self.is_over and not self._readers:  # nobody will read it, and nothing would clear it
            return
        self._workflow.stir()
        if stream.left == inf and not stream.is_read:
            stream.left = self._workflow.now()
        try:
            if self._workflow.kept_log is not None:
                self._workflow.kept_log.write(Entry("event", stream.number, stream.last + 1, message, last))
            self._log.append(stream, message, self._workflow.now(), last=last)
        except Overflow as overflow:
            self._workflow.fail(overflow.reason)
        for reader in self._readers.get(stream.number, ()):
            reader.wake()

    def event_id(self, stream: Stream, n: int) -> str:
        """The event id of a position: what a client sends back to resume after it."""
        return Position.at(self._workflow.record.event_token, stream.number, n).spell()

    # Readers.

    def attach(self, stream: Stream, after: int, *, listens: bool = False, by_key: bool = False) -> Reader:
        """A reader of this stream from a position on. With `listens`, what belongs to no request goes there, too."""
        reader = Reader(self, stream, after, by_key=by_key)
        readers = self._readers.setdefault(stream.number, [])
        readers.append(reader)
        for older in readers:
            older.wake()
        if listens:
            self._listened.pop(stream.number, None)
            self._listened[stream.number] = stream
            for channel in self._workflow.line.channels:
                channel.listening.attend()
        stream.covered = stream.is_read = True
        stream.is_given_up = False
        if listens:
            self._note_home()
        self._workflow.wire_came()
        return reader

    def attach_standalone(self, *, by_key: bool = False) -> Reader:
        """A reader of what belongs to no request, from where the last one stopped. See `by_key`."""
        stream = self._log.standalone()
        after = max(stream.sent, stream.trimmed)
        self.prime(stream)
        self._workflow.note("attached")
        return self.attach(stream, after, listens=True, by_key=by_key)

    @property
    def by_key(self) -> int:
        """Readers whose wires named the key alone: their clients may be about to begin, with another handshake."""
        return sum(reader.by_key for readers in self._readers.values() for reader in readers)

    def settle(self) -> None:
        """A client has begun by the key: the wires that named it alone keep the workflow in use, as any others."""
        for readers in self._readers.values():
            for reader in readers:
                reader.by_key = False

    def resume(self, position: Position) -> Reader:
        """A reader that first repeats what followed this position, then goes on live.

        Raises:
            Trimmed: what followed is no longer held; the workflow is ended with that reason.
        """
        try:
            stream = self._log.find(position.stream)
            return self.replay(stream, position.place, listens=position.stream in self._listened or not position.stream)
        except Trimmed as trimmed:
            self._workflow.fail(trimmed.reason)
            raise

    def replay(self, stream: Stream, after: int, *, listens: bool) -> Reader:
        """A reader of this stream from a position that a client named; what it had been sent before is counted.

        That counts as not sent from here on: the client does not have it.

        Raises:
            Trimmed: what followed is no longer held.
        """
        repeated = sum(event.n <= stream.sent for event in stream.after(after))
        self._workflow.statistics.count("replayed_events", by=repeated)
        self._workflow.note("resumed" if stream.sent else "attached")
        stream.sent = min(stream.sent, after)
        return self.attach(stream, after, listens=listens)

    def is_live(self, reader: Reader) -> bool:
        """True for the newest reader of its stream: the only one that new events go to."""
        return reader in self._readers.get(reader.stream.number, ())[-1:]

    @property
    def is_held(self) -> bool:
        """True while anything is kept for resumption."""
        return len(self._log) > 0

    @property
    def oldest(self) -> float:
        """Since when the oldest of that waits, or somebody is waited for; never where neither is."""
        return self._log.oldest

    @property
    def is_over(self) -> bool:
        """True once the workflow has ended."""
        return self._workflow.ended is not None

    def detach(self, reader: Reader) -> None:
        """A reader's wire has gone; the next newest one goes on from where it stopped."""
        readers = self._readers.get(reader.stream.number, [])
        if reader in readers:
            readers.remove(reader)
            self._workflow.wire_left()
            if not reader.stream.ended:
                self._workflow.note("cut" if reader.stream.covered else "left")
            if readers:
                readers[-1].wake()
            else:
                del self._readers[reader.stream.number]
            reader.stream.is_read = any(other.stream is reader.stream for other in readers)
            reader.stream.left = self._workflow.now()
            if reader.stream.number in self._listened:
                self._note_home()
        if self.is_over and not self._readers:
            self._log.clear()

    # Where what belongs to no request goes.

    @property
    def listened(self) -> Stream | None:
        """The stream of the newest wire that listens."""
        return next((stream for stream in reversed(self._listened.values()) if stream.is_read), None)

    @property
    def home(self) -> Stream:
        """Where what belongs to no request goes: to the newest wire that listens, or waits for the last one."""
        return self._home or self._log.standalone()

    @property
    def _home(self) -> Stream | None:
        return self.listened or next(reversed(self._listened.values()), None)

    def _note_home(self) -> None:
        """Write down where what belongs to no request goes, for another worker, where that has changed."""
        home = self._home
        number = 0 if home is None else home.number
        if number != (self._noted or 0) and not self.is_over:
            self._noted = number
            self.repeat()

    def repeat(self) -> None:
        """Note once more what another worker would have to know of them."""
        if self._noted is not None and self._workflow.kept_log is not None:
            self._workflow.kept_log.write(Entry("opened", self._noted, self._workflow.record.epoch, b"[]"))

    def forget(self, stream: Stream) -> None:
        """No wire will come back to this stream: what it holds is no loss."""
        stream.ended = stream.is_given_up = True
        stream.covered = False
        self._listened.pop(stream.number, None)
        self._note_home()

    # Ends.

    def give_up(self, before: float) -> None:
        """Wait no longer for who left a stream before that time: what belongs to no request goes elsewhere."""
        for stream in self._log.give_up(before):
            self._listened.pop(stream.number, None)
        self._note_home()

    def place(self, request: ServerRequest) -> None:
        """What a server asks has just been put at the end of its stream."""
        request.place = self._log.last_of(request.stream)

    def is_out_of_reach(self, request: ServerRequest) -> bool:
        """True where what a server asks was never sent, or on a wire, and nobody is waited for who could have it."""
        return self._log.is_out_of_reach(request.stream, request.place)

    def expire(self, before: float) -> None:
        """Drop what was kept for resumption long enough."""
        self._log.expire(before)

    def end(self) -> None:
        """The workflow has ended: readers get what is left, and stop."""
        for reader in [reader for readers in self._readers.values() for reader in readers]:
            reader.wake()  # some leave at once
        if not self._readers:
            self._log.clear()


class Reader:
    """One wire's view of one stream: what follows a position, then what comes, as long as it is the live reader."""

    def __init__(self, streams: Streams, stream: Stream, position: int, *, by_key: bool = False) -> None:
        self._streams = streams
        self._position = position
        self._passive = False
        self._waiter: asyncio.Future[None] | None = None
        self.stream = stream
        self.by_key = by_key
        self.on_wake: Callable[[], None] | None = None
        """Called when something may have changed: for a wire that waits for more than this reader."""

    def wake(self) -> None:
        """Something may have changed."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_wake is not None:
            self.on_wake()

    async def next(self, patience: float) -> list[Event] | None:
        """The events that are due on this wire; empty after `patience` seconds without any; None at its end.

        What is returned counts as sent. A stream that ended, a newer reader of a stream that is not the standalone
        one, and the end of the workflow end it.
        """
        events = self.due()
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
        return self.due()

    def close(self) -> None:
        """The wire has gone. Idempotent."""
        self.on_wake = None
        self._streams.detach(self)

    def event_id(self, event: Event) -> str:
        """The id under which a client can come back to this event."""
        return self._streams.event_id(self.stream, event.n)

    def due(self) -> list[Event] | None:
        """The same as `next`, at this moment."""
        stream = self.stream
        if not self._streams.is_live(self):
            self._passive = True
            return None if stream.number or self._streams.is_over else []
        if self._passive:
            self._passive = False
            self._position = max(self._position, stream.sent)
        events = stream.after(max(self._position, stream.trimmed))
        if events:
            self._position = events[-1].n
            stream.sent = max(stream.sent, self._position)
            return events
        return None if stream.ended or self._streams.is_over else []
