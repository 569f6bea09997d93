"""One request of 2026-07-28 on its way, and its answer: a body, a stream of events as they come, or why there is none.

The answer belongs to the exchange: it goes on under the id that was asked by, or not at all (guarantee G1). What comes
waits, within bounds, for its one reader. Cutting the exchange is its cancellation (rule E13).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, NamedTuple

from ...mux import envelope as wire_format
from ...mux import modern
from ...mux.envelope import Envelope
from ...mux.errors import (
    Cancelled,
    ParseError,
    SessionLost,
    TimedOut,
    TrunklineError,
    UpstreamFault,
)
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.mending import parse_served
from ...mux.ports import Headers
from ...mux.request import EXTENSIONS
from .. import event_stream
from ..event_stream import EventParser
from ..media import JSON_TYPE, STREAM_TYPE, content_type
from .answers import ERROR_BODY_BYTES, Body, bare, nothing
from .http import ExchangeBroken
from .http_call import failure_of, refusal

if TYPE_CHECKING:
    from .modern_http import ModernHTTPServer

UNREAD_BYTES: Final = MAX_EVENT_BYTES
"""What may wait for a client that takes it more slowly than the server sends; over it the exchange is cut."""


class Form(NamedTuple):
    """The form of an answer, once it is decided."""

    status: int
    whole: bytes | None = None
    """The body; None for a stream, whose pieces follow."""


class Passage:
    """One request on its way, and its answer as it comes. Implements `Answer`; one reader takes the pieces of a stream.

    The pieces are whole events, without ids of their own.
    """

    def __init__(self, upstream: ModernHTTPServer, message: Envelope) -> None:
        self._upstream = upstream
        self._asked = message
        self._loop = asyncio.get_running_loop()
        self._form: Form | None = None
        self._pieces: deque[bytes] = deque()
        self._unread = 0
        self._waiter: asyncio.Future[None] | None = None
        self.formed: Callable[[], None] = nothing
        """Called once the form of the answer is decided, or there will be none."""
        self._events: EventParser | None = None
        self._body: Body | None = None
        self._status = 0
        self._has_ended = False
        """The exchange with the server has come to its end."""
        self._error: TrunklineError | None = None
        self.cut: Callable[[], None] = nothing
        self.is_listening = message.method == modern.LISTEN
        """True for a stream of subscriptions, whose end needs no response."""
        self.outcome = ""
        """How it ended, once it did: `ok`, `error`, or the reason why there is no response."""
        now = self._loop.time()
        self.deadline = now + upstream.timeout
        self._latest = now + upstream.timeout * EXTENSIONS
        self._patience = self._loop.call_at(self.deadline, self._expire)

    @property
    def why(self) -> str:
        """What went wrong, for people; empty where nothing did."""
        return self._error.message if self._error is not None else ""

    @property
    def is_over(self) -> bool:
        """True when nothing more will come."""
        return bool(self.outcome)

    async def form(self) -> Form:
        """Wait for the form of the answer. Raises as `decided`."""
        while self._form is None and not self.is_over:
            await self._changed()
        return self.decided

    @property
    def decided(self) -> Form:
        """The form of the answer, once it is `formed`.

        Raises:
            TrunklineError: there will be none, and why.
        """
        if self._form is not None:
            return self._form
        raise self._error or Cancelled("the client left")

    async def next(self, patience: float) -> bytes | None:
        """The events of a stream that were not yet taken; empty if none came for so long, None at its end.

        Raises:
            TrunklineError: it broke, and why.
        """
        if not self._pieces and not self.is_over:
            await self._changed(patience)
        if self._pieces:
            taken = b"".join(self._pieces)
            self._pieces.clear()
            self._unread = 0
            return taken
        if self._error is not None:
            raise self._error
        return None if self.is_over else b""

    def close(self) -> None:
        """Nobody takes any more of it. What has not come to its end is cut: to the server, that cancels it."""
        self._finish("cancelled")
        if self._error is not None:
            bare(self._error)  # it was raised since
        if self._has_ended:
            return
        if self.outcome in ("ok", "error"):
            self._upstream.lingering.begin(self._loop, self.cut)
        else:
            self.cut()
        self.cut = nothing

    def stop(self, error: TrunklineError) -> None:
        """End it from this side: with this error, or a stream of subscriptions without a word (rule L28)."""
        if self.is_listening and self._form is not None:
            self._finish("ok")
        else:
            self._fail(error)

    # Answer

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self._status = status
        kind = content_type(headers)
        if status == 200 and kind == STREAM_TYPE:
            self._events = EventParser(limit=MAX_EVENT_BYTES, unfinished=self._upstream.unfinished)
            self._form = Form(200)
            self._wake()
        elif kind == JSON_TYPE and _declared(headers) > MAX_EVENT_BYTES:
            self._fail(UpstreamFault(f"the server sent a body larger than {MAX_EVENT_BYTES} bytes"))
        elif kind == JSON_TYPE and status != 202:
            self._body = Body(MAX_EVENT_BYTES if status == 200 else ERROR_BODY_BYTES, self._upstream.unfinished)
        else:
            self._fail(self._refusal())

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`."""
        if self.is_over:
            return
        try:
            if self._body is not None:
                self._body.add(chunk)
            elif self._events is not None:
                for event in self._events.feed(chunk):
                    self._take_event(event)
        except TrunklineError as error:
            self._fail(error if self._status == 200 else self._refusal())

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        self._has_ended = True
        self.cut = nothing  # which leads here: no passage, nor what was asked, waits for the garbage collector
        if self.is_over:
            return
        if error is not None:
            self._upstream.forget()
            self._fail(failure_of(error))
        elif self._body is not None:
            self._take_whole(self._body.joined())
        elif self.is_listening and self._events is not None:
            self._finish("ok")
        else:
            self._fail(SessionLost("the server's stream ended before its response", executed="unknown"))

    # Inside.

    def _take_event(self, event: event_stream.ServerEvent) -> None:
        """One event of the stream; after the response nothing more is passed on (rule H5).

        One of another type than that of messages is none, and passed on as it is.
        """
        if not event.data or self.is_over:
            return
        if event.name != "message":
            self._put(event_stream.encode(event.data.replace(b"\n", b"\ndata: "), name=event.name))
            return
        message = parse_served(event.data)
        text = self._own(message, event.data) if message.kind == "response" else event.data
        self._put(event_stream.encode(text.replace(b"\n", b"\ndata: ")))
        if message.kind == "response":
            self._finish("error" if message.is_error else "ok")
        elif message.method == "notifications/progress":
            self.deadline = min(self._loop.time() + self._upstream.timeout, self._latest)

    def _take_whole(self, text: bytes) -> None:
        """All of a body: the response, under the status that its error has in this era, if it is one (rule E20)."""
        try:
            message = parse_served(text)
            text = self._own(message, text)
        except UpstreamFault as fault:
            self._fail(fault if self._status == 200 else self._refusal())
            return
        code = modern.error_code(message)
        if code is None:
            if self._status != 200:
                self._fail(_no_response())
                return
            self._form = Form(200, text)
            self._finish("ok")
            return
        if modern.is_doubtful(self._status, code):
            self._upstream.forget()
        self._form = Form(modern.status_of(code), text)
        self._finish("error")

    def _own(self, message: Envelope, text: bytes) -> bytes:
        """The response to this request, under its own id; an error may lack one (rules E2, E8).

        Raises:
            UpstreamFault: it is none, or the response to another request.
        """
        asked = self._asked
        is_same = message.id == asked.id
        if message.kind != "response" or not (is_same or not message.id or _key(message.id) == _key(asked.id)):
            raise _no_response()
        offered = message
        if asked.method == modern.DISCOVER:
            try:
                offered = modern.offered(message, self._upstream.offers)
            except ParseError as error:
                raise UpstreamFault(f"the server's answer cannot be read: {error}") from None
        return text if is_same and offered is message else offered.with_id(asked.id)

    def _refusal(self) -> TrunklineError:
        """What an answer that is none of this era means. Its status is not copied (rule E21)."""
        self._upstream.forget()
        if self._status == 202:
            return UpstreamFault("the server accepted a request without answering it")
        return refusal(self._status)

    def _put(self, piece: bytes) -> None:
        if self._pieces and self._unread + len(piece) > UNREAD_BYTES:
            self._pieces.clear()
            raise SlowClient("the client takes the answer more slowly than the server sends it")
        self._unread += len(piece)
        self._pieces.append(piece)
        self._wake()

    def _fail(self, error: TrunklineError) -> None:
        if not self.is_over:
            if isinstance(error, (UpstreamFault, TimedOut)):
                error.data.setdefault("executed", "unknown")
            self._error = bare(error)
            self._finish(error.reason)
            if not self._has_ended:
                self._has_ended = True
                self.cut()
                self.cut = nothing

    def _finish(self, outcome: str) -> None:
        """It is over; the first cause wins."""
        if not self.is_over:
            self.outcome = outcome
            self._body = self._events = None
            self._patience.cancel()
            self._wake()

    def _expire(self) -> None:
        """What is not progress does not extend a request (rule E17); a stream of subscriptions is quiet by nature."""
        if self.is_listening and self._form is not None:
            return
        if self.deadline <= self._loop.time():
            self._fail(TimedOut("the server gave neither answer nor progress in time; the call may have run"))
        else:
            self._patience = self._loop.call_at(self.deadline, self._expire)

    async def _changed(self, patience: float | None = None) -> None:
        """Wait until something has come, at most so many seconds."""
        self._waiter = self._loop.create_future()
        try:
            async with asyncio.timeout(patience):
                await self._waiter
        except TimeoutError:
            pass
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._form is not None or self.is_over:
            formed, self.formed = self.formed, nothing
            formed()
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class SlowClient(TrunklineError):
    """What waits for a client has reached its limit."""

    reason = "slow_client"


def _declared(headers: Headers) -> int:
    length = headers.get("content-length", "")
    return int(length[:12]) if length.isascii() and length.isdigit() else 0


def _no_response() -> UpstreamFault:
    return UpstreamFault("the server's answer did not hold the response")


def _key(id: bytes) -> wire_format.IdKey:
    return wire_format.coerced_key(wire_format.id_key(id))
