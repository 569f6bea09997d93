"""What was sent on a workflow's streams, by position, so that a client that drops can come back for it (G5).

One log serves all streams of one workflow: a ring, bounded in events and bytes. A position is (stream, n); n counts
from 1 within a stream, and 0 is "before everything". Trimming what was delivered is normal. Trimming what was not
delivered would lose it silently, so it raises `Overflow` instead, and the workflow is closed with that reason.

Pure: no clock, no waiting. The caller wakes its readers after `append`.
"""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from heapq import heapify, heappop, heappush
from itertools import count, takewhile
from math import inf
from typing import Final, NamedTuple

import msgspec

from .errors import TrunklineError
from .limits import EventLogLimits


class Trimmed(TrunklineError):
    """The position asked for is no longer held: what follows it cannot be replayed without a gap."""

    reason = "event_log_trimmed"


class Overflow(TrunklineError):
    """What was not delivered yet would have to be dropped."""

    reason = "event_log_overflow"


EPOCH: Final = 1 << 40
"""Places of a stream that one writer may fill: the next writer goes on at a multiple of it."""


MAX_EMPTY: Final = 16
"""Streams of other writers of which nothing is left, and that are kept all the same: clients can make such up."""


class Position(NamedTuple):
    """A place in a workflow's streams, as an event id spells it (rule T9): opaque to clients, and a secret.

    `token` stands for the workflow and cannot be guessed; `epoch` counts the writers that a stream has had.
    """

    token: str
    stream: int
    epoch: int
    n: int

    def spell(self) -> str:
        """The event id."""
        return f"{self.token}-{self.stream}-{self.epoch}-{self.n}"

    @property
    def place(self) -> int:
        """Its place in its stream: later ones are greater, also those of later writers."""
        return self.epoch * EPOCH + min(self.n, EPOCH - 1)

    @classmethod
    def at(cls, token: str, stream: int, place: int) -> "Position":
        """The position of this place."""
        return cls(token, stream, *divmod(place, EPOCH))

    @classmethod
    def read(cls, event_id: str) -> "Position | None":
        """The position that an event id spells; None for what is no event id of ours."""
        found = _EVENT_ID.fullmatch(event_id)
        return None if found is None else cls(found[1], int(found[2]), int(found[3]), int(found[4]))


_EVENT_ID: Final = re.compile(r"([0-9a-f]{32})-(\d{1,16})-(\d{1,15})-(\d{1,15})")


class Event(msgspec.Struct, frozen=True, gc=False):
    """One message of a stream."""

    n: int
    message: bytes
    at: float


SLACK: Final = 64
"""Above the bound of all logs, room is made for this part of it: to find who gives way, all are looked at."""


class Budget:
    """Bytes that all logs of one process hold together, against one bound."""

    __slots__ = ("_logs", "held", "limit")

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._logs: dict[EventLog, None] = {}

    def enter(self, log: "EventLog") -> None:
        """From now on it holds something."""
        self._logs[log] = None

    def leave(self, log: "EventLog") -> None:
        """It holds nothing any longer."""
        del self._logs[log]

    def make_room(self, newcomer: "EventLog") -> list["EventLog"]:
        """Let logs give way until all of them are within the bound; those that have lost something by it.

        Who holds most gives way, so that nobody pays for others; one that would lose by it, where nobody who would not
        holds half as much; before all, what has lost something already. The newest event of the newcomer stays.
        """
        lost, enough = list[EventLog](), self.limit - self.limit // SLACK
        ranked = [(-log.weight, number, log) for number, log in enumerate(self._logs) if log.bytes]
        heapify(ranked)
        while self.held > enough and ranked:
            _, number, log = heappop(ranked)
            keep = 1 if log is newcomer else 0
            if len(log) <= keep:
                continue
            if log.give_way(self.held - enough, keep=keep):
                lost.append(log)
            if log.bytes:
                heappush(ranked, (-log.weight, number, log))
        return lost


class Stream:
    """The events of one stream that are still held, and where its delivery stands."""

    __slots__ = (
        "covered",
        "ended",
        "events",
        "is_given_up",
        "is_read",
        "is_wire",
        "last",
        "left",
        "number",
        "restored",
        "sent",
        "trimmed",
    )

    def __init__(self, number: int, *, covered: bool) -> None:
        self.number = number
        self.events: deque[Event] = deque()
        self.last = 0
        """Position of the newest event."""
        self.sent = 0
        """Position of the newest event that was handed to a wire."""
        self.trimmed = 0
        """Position of the newest event that is no longer held."""
        self.covered = covered
        """True while a client may come for it that holds an event id of it: losing an event ends the workflow then."""
        self.is_read = False
        """True while a wire reads it."""
        self.is_wire = False
        """True where it is all that a wire carries: whoever does not come back to that has not what it was handed."""
        self.left = inf
        """When its last reader went, or it first had something for one to come; `inf` where neither has been."""
        self.is_given_up = False
        """True once nobody came back to it for so long that nobody is waited for."""
        self.ended = False
        """True after the last event was appended."""
        self.restored = -inf
        """When it was made of what another writer had left; its client is yet to come for it."""

    @property
    def is_over(self) -> bool:
        """True where nothing is left of it, nor will be; never of what belongs to no request."""
        return self.ended and not self.events and self.number > 0

    @property
    def is_waiting(self) -> bool:
        """True while somebody may come back to it."""
        return not self.is_read and not self.is_given_up

    @property
    def is_awaited(self) -> bool:
        """True where its oldest event is yet to be sent to a client that is there."""
        return self.is_read and self.events[0].n > self.sent

    def after(self, n: int) -> list[Event]:
        """Events that follow position n, oldest first.

        Raises:
            Trimmed: some of them are gone, or n lies ahead of the stream.
        """
        if n < self.trimmed or n > self.last:
            raise Trimmed("this position of the stream is no longer held")
        newest_first = takewhile(lambda event: event.n > n, reversed(self.events))
        return list(newest_first)[::-1]

    def leaps_after(self, n: int) -> list[tuple[int, int]]:
        """Where what follows position n leaves places out: after so many events, and the place from which it goes on.

        Raises:
            Trimmed: as `after`.
        """
        leaps = []
        for events, place in enumerate([*(event.n - 1 for event in self.after(n)), self.last]):
            if place != n:
                leaps.append((events, place))
            n = place + 1
        return leaps


class EventLog:
    """The ring over all streams of one workflow."""

    def __init__(
        self,
        limits: EventLogLimits,
        budget: Budget,
        names: Iterator[int] | None = None,
        wires: Iterator[int] | None = None,
    ) -> None:
        self._limits = limits
        self._budget = budget
        self._streams: dict[int, Stream] = {}
        self._order: deque[Stream] | None = None
        """The streams of all events, oldest first; None while there are none, as in most logs at most times."""
        self._names = names or count(1)
        """The numbers of streams to come."""
        self._wires = wires or self._names
        """The same for wires that carry everything."""
        self.on_overflow: Callable[[], None] = _nothing
        """Called where something is lost that was not delivered, since all logs hold too much and this one most."""
        self.bytes = 0
        self.has_lost = False
        """True once something was lost, and its workflow ends: nothing more can be, and nobody makes room for it."""

    def __len__(self) -> int:
        return len(self._order) if self._order is not None else 0

    @property
    def oldest(self) -> float:
        """Since when the oldest waits of what is kept for a while: events, streams without a reader; `inf` for none."""
        left = (stream.left for stream in self._streams.values() if stream.is_waiting or stream.is_over)
        return min(self._order[0].events[0].at if self._order else inf, min(left, default=inf))

    def standalone(self) -> Stream:
        """Stream 0: what belongs to no request (the GET stream)."""
        stream = self._streams.get(0)
        if stream is None:
            stream = self._streams[0] = Stream(0, covered=False)
        return stream

    def open(self, *, is_wire: bool = False) -> Stream:
        """A new stream, for the answer to one exchange, or for a wire that carries everything."""
        stream = Stream(next(self._wires if is_wire else self._names), covered=True)
        self._streams[stream.number] = stream
        return stream

    def knows(self, number: int) -> bool:
        """True where this stream is held."""
        return number in self._streams

    def restore(
        self, number: int, events: Iterable[tuple[int, bytes]], *, trimmed: int, last: int, now: float
    ) -> Stream:
        """A stream that another writer began, with what was kept of it; what follows comes after the place `last`.

        Whatever place up to there a client names, it has seen what was written until then.
        """
        stream = Stream(number, covered=True)
        stream.trimmed, stream.last, stream.sent = trimmed, last, last
        stream.restored = stream.left = now
        self._streams[number] = stream
        for n, message in events:
            self._queue(stream, Event(n, message, now))
        self._bound()
        return stream

    def find(self, number: int) -> Stream:
        """The stream of that number.

        Raises:
            Trimmed: it was never opened, or has been forgotten.
        """
        if number == 0:
            return self.standalone()
        stream = self._streams.get(number)
        if stream is None:
            raise Trimmed("this stream is no longer held")
        return stream

    def append(self, stream: Stream, message: bytes, now: float, *, last: bool = False) -> Event:
        """Add one message to a stream and trim the ring to its bounds.

        A message larger than the whole log is still appended: it is delivered live, and trimmed by the next one.

        Raises:
            Overflow: an undelivered event of a covered stream would have to go. The message was appended all the same.
        """
        stream.last += 1
        event = Event(stream.last, message, now)
        stream.ended = stream.ended or last
        self._queue(stream, event)
        if self._is_over() or self._budget.held > self._budget.limit:
            self._bound()
        return event

    def give_up(self, before: float) -> list[Stream]:
        """Nobody is waited for any longer where the last reader went before that time; which streams those are."""
        left = [stream for stream in self._streams.values() if stream.is_waiting and stream.left <= before]
        for stream in left:
            stream.is_given_up, stream.covered = True, False
        return left

    def last_of(self, number: int) -> int:
        """The place of the newest event of a stream; 0 where it is not held."""
        stream = self._streams.get(number)
        return 0 if stream is None else stream.last

    def is_out_of_reach(self, number: int, place: int) -> bool:
        """True for what was not sent from this place of a stream, or on a wire, and nobody is waited for there."""
        stream = self._streams.get(number)
        return stream is not None and stream.is_given_up and (stream.is_wire or stream.sent < place)

    def expire(self, before: float) -> None:
        """Drop events appended before that time, and ended streams of which nothing is left, unless restored since.

        What a client that is there was not sent yet stays, and so does what came after it.
        """
        while self._order and self._order[0].events[0].at < before and not self._order[0].is_awaited:
            self._drop_oldest(self._order)
        over = [number for number, stream in self._streams.items() if stream.is_over]
        for number in over:
            if self._streams[number].restored <= before:
                del self._streams[number]

    def forget_empty(self) -> None:
        """Forget ended streams of which nothing is left, but for the `MAX_EMPTY` that came last."""
        over = [number for number, stream in self._streams.items() if stream.is_over]
        for number in over[: max(0, len(over) - MAX_EMPTY)]:
            del self._streams[number]

    def clear(self) -> None:
        """Drop everything and give the bytes back to the process's budget."""
        while self._order:
            self._drop_oldest(self._order)
        self._streams.clear()

    @property
    def would_lose(self) -> bool:
        """True where its oldest event was not delivered, and a client may come for it."""
        stream = self._oldest_first[0]
        return stream.covered and stream.events[0].n > stream.sent and not self.has_lost

    @property
    def weight(self) -> float:
        """How much it has to give way before others: its bytes, by half where it would lose; at most where it has."""
        if self.has_lost:
            return inf
        return self.bytes / 2 if self.would_lose else self.bytes

    def give_way(self, size: int, *, keep: int) -> bool:
        """Drop the oldest, of this size or half of all, but so many events; True where one was lost, the last.

        Nothing more is dropped then: who is told ends the workflow. Nor is anything lost after what was not lost.
        """
        least, would_lose = max(self.bytes - size, self.bytes // 2), self.would_lose
        while self.bytes > least and len(self) > keep and self.would_lose == would_lose:
            if self._give_up_oldest():
                return True
        return False

    def _queue(self, stream: Stream, event: Event) -> None:
        stream.events.append(event)
        if self._order is None:
            self._order = deque()
            self._budget.enter(self)
        self._order.append(stream)
        size = len(event.message)
        self.bytes += size
        self._budget.held += size

    @property
    def _oldest_first(self) -> deque[Stream]:
        assert self._order is not None, "it holds something"
        return self._order

    def _bound(self) -> None:
        """Trim it to its own bounds, and all logs to theirs.

        Raises:
            Overflow: it has lost what was not delivered.
        """
        had_lost = self.has_lost
        while self._is_over():
            self._give_up_oldest()
        if self._budget.held > self._budget.limit and not self.has_lost:
            for log in self._budget.make_room(self):
                if log is not self:
                    log.on_overflow()
        if self.has_lost and not had_lost:
            raise Overflow("the client did not read what was sent to it")

    def _give_up_oldest(self) -> bool:
        """Drop the oldest event; True where that is a loss."""
        is_lost = self.would_lose
        self.has_lost = self.has_lost or is_lost
        self._drop_oldest(self._oldest_first)
        return is_lost

    def _is_over(self) -> bool:
        """True while there is something to trim for its own bounds: never the newest event."""
        order, limits = self._order, self._limits
        if order is None or len(order) < 2:
            return False
        return len(order) > limits.events or self.bytes > limits.bytes

    def _drop_oldest(self, order: deque[Stream]) -> None:
        stream = order.popleft()
        event = stream.events.popleft()
        stream.trimmed = event.n
        size = len(event.message)
        self.bytes -= size
        self._budget.held -= size
        if not order:
            self._order = None
            self._budget.leave(self)


def _nothing() -> None:
    """Nobody is told."""
