"""The stream of a request that broke before its answer, taken up where it was (rules T12, T13)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, NamedTuple

import anyio

from ...mux.errors import SessionLost, TrunklineError, UpstreamFault
from ...mux.request import Request
from ..media import STREAM_TYPE, content_type
from ..unfinished import Unfinished
from .answers import NOT_NOW, Ask, Events, bare, nothing
from .http import ExchangeBroken, Headers

RESUME_ATTEMPTS: Final = 5
"""Attempts to take up a broken stream that bring no event, before its request is given up."""


LATER: Final = NOT_NOW | {502, 503, 504}
"""Refusals after which it is tried again: those that pass, and those of what stands before a server."""


async def resume(
    request: Request, events: Events, ask: Ask, hand_on: Callable[[bytes], None], *, may_end: bool
) -> TrunklineError | None:
    """Hear the rest of a stream until its request is answered; why it will not be, else.

    `events` is what was heard of it, and `ask` sends the GET that goes on after an event id. Where the server `may_end`
    a stream to be asked again (rule T7), it is, for as long as the request waits.
    """

    def take(text: bytes) -> bool:
        hand_on(text)
        return request.state == "done"

    attempts = 0
    while events.last_id is not None and attempts < RESUME_ATTEMPTS:
        await anyio.sleep(events.retry)
        resumed = ResumedStream(take, events.last_id, events.retry, events.unfinished)
        heard = await _heard(resumed, ask, events.last_id)
        if request.state == "done":
            return None
        if isinstance(heard.error, UpstreamFault):
            return heard.error
        if heard.events is None and heard.status and heard.status not in LATER:
            break
        attempts += 1
        if heard.events is not None:
            is_well = heard.events.last_id != events.last_id or (may_end and heard.error is None)
            attempts, events = 0 if is_well else attempts, heard.events
    return SessionLost("the server's stream ended before its answer and cannot be taken up", executed="unknown")


async def _heard(resumed: ResumedStream, ask: Ask, last_id: str) -> Heard:
    """Take a stream up after its last event id, and hear it to its end."""
    try:
        resumed.cut = ask(last_id, resumed)
        return await resumed.over
    except UpstreamFault as fault:
        return Heard(0, None, fault)
    finally:
        resumed.cut()
        resumed.cut = nothing  # which leads here: no stream waits for the garbage collector


class Heard(NamedTuple):
    """What became of a stream that was asked for."""

    status: int
    """0 where no answer came."""
    events: Events | None
    """What goes on after it; None where the answer was no stream."""
    error: ExchangeBroken | UpstreamFault | None


class ResumedStream:
    """A stream that is taken up where it broke, by a GET. Implements `Answer`.

    Its messages are handed on; who takes them returns true once nothing more is needed.
    """

    def __init__(
        self,
        hand_on: Callable[[bytes], object],
        last_id: str | None,
        retry: float | None = None,
        unfinished: Unfinished | None = None,
    ) -> None:
        self._hand_on = hand_on
        self._events = Events(last_id, retry, unfinished)
        self._status = 0
        self._is_stream = False
        self.cut: Callable[[], None] = nothing
        self.over: asyncio.Future[Heard] = asyncio.get_running_loop().create_future()
        """Done when the stream has ended, broke, or is none."""

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self._status = status
        self._is_stream = status == 200 and content_type(headers) == STREAM_TYPE
        if not self._is_stream:
            self._finish(None)

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`."""
        if not self.over.done():
            try:
                messages = self._events.add(chunk)
            except UpstreamFault as fault:
                self._finish(bare(fault))
                return
            for text in messages:
                if self._hand_on(text):
                    self._finish(None)

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        self._finish(error)

    def _finish(self, error: ExchangeBroken | UpstreamFault | None) -> None:
        if not self.over.done():
            self._events = self._events.anew()
            self.over.set_result(Heard(self._status, self._events if self._is_stream else None, error))
