"""What is made of an HTTP answer as it comes: a body up to a limit, or the events of a stream."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import Callable
from typing import Final, TypeVar

from ...mux.burden import LARGE_BYTES
from ...mux.envelope import members_of, parse, string_of
from ...mux.errors import InvalidMessage, UpstreamFault
from ...mux.limits import MAX_EVENT_BYTES
from ..event_stream import EventParser
from ..media import STREAM_TYPE, content_type
from ..parts import keep
from ..patience import Patience
from ..unfinished import Part, Unfinished
from .http import Answer, ExchangeBroken, Headers

E = TypeVar("E", bound=Exception)

ERROR_BODY_BYTES: Final = 65_536
"""What is read of the body of an HTTP error, or of one that nobody needs."""

MAX_REFUSAL_BYTES: Final = 4_096
"""The largest body of a refusal that is looked into."""

FORGOTTEN: Final = re.compile(
    rb"(\b(no valid|no such|invalid|unknown|expired|missing)\b( or (missing|invalid|expired))? (mcp[- ])?session"
    rb"|\bsession\b( id)?( is| was| has)? ?(been )?(not found|unknown|invalid|expired|terminated|closed)"
    rb"|\bsession\b.{0,80}\b(not found|does not exist|no longer exists|expired|terminated)"
    rb"|\bserver not initialized)"
)
"""How servers say so, in lower case."""

FIRST_RETRY_SECONDS: Final = 1.0
SOONEST_RETRY_SECONDS: Final = 0.1
LAST_RETRY_SECONDS: Final = 30.0
"""A stream that broke is taken up again after what the server asked for, within these two; the first is for none."""

LISTEN_SECONDS: Final = 0.5
"""How long a request waits for the GET stream on which the server may tell of its progress."""

LINGER_SECONDS: Final = 1.0
"""How long a stream may stay open after its answer, before its connection is cut."""

NOT_NOW: Final = frozenset({408, 409, 425, 429})
"""Refusals that pass: a server that still has the stream of before, for one, answers 409."""

Ask = Callable[[str | None, Answer], Callable[[], None]]
"""Sends a GET for what followed an event, or comes from now on; returns what cuts it. It may raise `UpstreamFault`."""


def forgets_session(text: bytes, id: bytes = b"") -> bool:
    """Whether the body of a 400 says that the server does not know the session that the request named.

    Many servers answer 400 where the specification has 404. Believed are a few words in plain text, and in a JSON-RPC
    error that does not carry the request's own `id`: with it, a handler has run.
    """
    if len(text) > MAX_REFUSAL_BYTES:
        return False
    try:
        message = parse(text, limit=MAX_REFUSAL_BYTES)
    except InvalidMessage:
        return not text.lstrip().startswith((b"{", b"[", b"<")) and FORGOTTEN.search(text.lower()) is not None
    if not message.is_error or message.id == id:
        return False
    told = string_of((members_of(message.members["error"]) or {}).get("message"))
    return told is not None and FORGOTTEN.search(told.lower().encode(errors="replace")) is not None


def nothing() -> None:
    """Stands for the cut of an exchange that has not begun."""


def lingering() -> Patience:
    """Of one server: its streams that have brought their answer, and are to end by themselves."""
    return Patience(LINGER_SECONDS)


def bare(error: E) -> E:
    """The same without where it came from, which keeps what has come, and leads back to who keeps the error."""
    error.__traceback__ = error.__context__ = error.__cause__ = None
    return error


class Body:
    """The parts of a body, up to a limit; a large one counts to what is `unfinished` of its server."""

    __slots__ = ("_limit", "_part", "_parts", "_size", "_unfinished")

    def __init__(self, limit: int, unfinished: Unfinished | None = None) -> None:
        self._limit = limit
        self._unfinished = unfinished
        self._part: Part | None = None
        self._parts: list[bytes | bytearray] = []
        self._size = 0

    def add(self, chunk: bytes) -> None:
        """Some more.

        Raises:
            UpstreamFault: it is larger than the limit, or too much is unfinished.
        """
        self._size += len(chunk)
        if self._size > self._limit:
            raise UpstreamFault(f"the server sent a body larger than {self._limit} bytes")
        if self._size > LARGE_BYTES and self._unfinished is not None:
            self._part = self._unfinished.hold(self._part, self._size)
        if self._parts:
            keep(self._parts, chunk)
        else:
            self._parts.append(chunk)

    def joined(self) -> bytes:
        """All of it."""
        return b"".join(self._parts)


class Events:
    """The messages of one event stream, and where and when to take it up when it breaks.

    One that goes on after another has of that the event id and the `retry`, which hold until the server gives others.
    """

    __slots__ = ("_parser", "retry", "unfinished")

    def __init__(self, last_id: str | None, retry: float | None = None, unfinished: Unfinished | None = None) -> None:
        self.unfinished = unfinished
        """What its events count to before they are complete."""
        self._parser = EventParser(limit=MAX_EVENT_BYTES, unfinished=unfinished, last_id=last_id)
        self.retry = FIRST_RETRY_SECONDS if retry is None else retry
        """Seconds to wait before it is taken up again."""

    @property
    def last_id(self) -> str | None:
        """The event id to come back with, where the server gave one and did not take it back by an empty one."""
        return self._parser.last_id or None

    def add(self, chunk: bytes) -> list[bytes]:
        """Some more of the stream; the messages that it completes.

        Raises:
            UpstreamFault: what `EventParser.feed` says.
        """
        messages = []
        for event in self._parser.feed(chunk):
            if event.retry is not None:
                self.retry = min(max(event.retry / 1000, SOONEST_RETRY_SECONDS), LAST_RETRY_SECONDS)
            if event.data and event.name == "message":
                messages.append(event.data)
        return messages

    def anew(self) -> Events:
        """What goes on after it: an event that has begun is not complete, and comes again."""
        return Events(self.last_id, self.retry, self.unfinished)


class Unasked:
    """What a server tells unasked: a GET stream that is opened again whenever it ends (rules T8, T12).

    It ends for good where the server offers none, which `refused` is told. `ask` sends the GET that goes on after an
    event id, and returns what cuts it. Callbacks alone: of a session that only listens, no task is kept. Implements
    `Answer`.
    """

    __slots__ = (
        "_ask",
        "_cut",
        "_events",
        "_faulted",
        "_hand_on",
        "_heard",
        "_is_late",
        "_is_offered",
        "_is_stream",
        "_patience",
        "_pause",
        "_refusal",
        "_refused",
        "_timer",
        "_waiting",
    )

    def __init__(
        self,
        ask: Ask,
        hand_on: Callable[[bytes], None],
        faulted: Callable[[UpstreamFault], None],
        refused: Callable[[], None],
        unfinished: Unfinished | None = None,
    ) -> None:
        self._ask = ask
        self._hand_on = hand_on
        self._faulted = faulted
        self._refused = refused
        self._events = Events(None, unfinished=unfinished)
        """Of the stream that is heard, or was heard last."""
        self._cut: Callable[[], None] | None = None
        """Set while a stream is open, or asked for."""
        self._timer: asyncio.TimerHandle | None = None
        """Set while it waits before it asks again, or for the end of a refusal."""
        self._pause = FIRST_RETRY_SECONDS
        self._heard: str | None = None
        """The event that the stream was to go on after."""
        self._is_stream = False
        """True once the server has begun the stream."""
        self._refusal: int | None = None
        """Bytes that the server's refusal may still have, once it has begun."""
        self._is_offered = True
        self._is_late = False
        """True once it was waited for in vain: some servers show nothing of a stream before its first event."""
        self._waiting: list[Callable[[], None]] | None = None
        """What is to be done once it is known whether the stream is heard; None where there was never anything."""
        self._patience: asyncio.TimerHandle | None = None

    @property
    def is_blank(self) -> bool:
        """True where nothing was learned that whoever listens next has to know."""
        return self._events.last_id is None and not self._is_late

    @property
    def is_coming(self) -> bool:
        """True while the stream is asked for, and the server may answer any moment."""
        return self._cut is not None and not (self._is_stream or self._is_late) and self._refusal is None

    def when_known(self, go_on: Callable[[], None]) -> None:
        """Do this once it is no longer `is_coming`, which it is for `LISTEN_SECONDS` at most; in order."""
        self._waiting = self._waiting or []
        self._waiting.append(go_on)
        if self._patience is None:
            self._patience = asyncio.get_running_loop().call_later(LISTEN_SECONDS, self._lose_patience)

    def let_go(self) -> None:
        """Do now what waits."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        waiting, self._waiting = self._waiting, None
        for go_on in waiting or ():
            go_on()

    def _lose_patience(self) -> None:
        self._is_late = True
        self.let_go()

    def open(self) -> None:
        """Listen, after what was heard last; does nothing while it does, or where the server offers no stream."""
        if self._cut is not None or self._timer is not None or not self._is_offered:
            return
        self._is_stream, self._refusal = False, None
        try:
            self._cut = self._ask(self._events.last_id, self)
        except UpstreamFault as fault:
            self._ended(fault)

    def close(self) -> None:
        """Listen no longer; nothing more is told. It can be opened again."""
        self._stop_timer()
        if self._cut is not None:
            self._cut()
            self._cut = None
            self._events = self._events.anew()
        self.let_go()

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self._is_stream = status == 200 and content_type(headers) == STREAM_TYPE
        if self._is_stream:
            self._heard = self._events.last_id
            self.let_go()
            return
        # 405: the server offers none; what else there is a POST will tell.
        self._is_offered = status >= 500 or status in NOT_NOW
        self._refusal = ERROR_BODY_BYTES
        self._timer = asyncio.get_running_loop().call_later(LISTEN_SECONDS, self._give_up, None)
        self.let_go()
        if not self._is_offered:
            self._refused()

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`. A refusal is read so far that the connection can be used again."""
        if self._refusal is not None:
            self._refusal -= len(chunk)
            if self._refusal < 0:
                self._give_up(None)
            return
        try:
            messages = self._events.add(chunk)
        except UpstreamFault as fault:
            self._give_up(fault)
            return
        for text in messages:
            self._hand_on(text)

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        self._ended(None)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self, fault: UpstreamFault | None) -> None:
        if self._cut is not None:
            self._cut()
        self._ended(fault)

    def _ended(self, fault: UpstreamFault | None) -> None:
        """It is over: ask again after a pause, which grows while no stream brings an event to go on after."""
        self._cut, self._events = None, self._events.anew()
        self._stop_timer()
        self.let_go()
        if fault is not None:
            self._faulted(fault)
        if not self._is_offered:
            return
        if not self._is_stream or self._events.last_id == self._heard:
            self._pause = min(max(self._pause, FIRST_RETRY_SECONDS) * 1.5, LAST_RETRY_SECONDS)
        else:
            self._pause = self._events.retry
        pause = self._pause * random.uniform(0.8, 1.2)
        self._timer = asyncio.get_running_loop().call_later(pause, self._ask_again)

    def _ask_again(self) -> None:
        self._timer = None
        self.open()
