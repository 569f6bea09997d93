"""One client exchange: a question of one message or a batch, and how its answer becomes JSON or a stream.

An exchange begins undecided. If every answer is there before anything else has to be said, it is answered as plain
messages; otherwise, or when it takes long, it turns into a stream of the workflow's event log, which the client can
resume. It goes on when its client leaves (rule E14).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from . import call_log
from . import envelope as wire_format
from .annotations import Listing
from .envelope import Envelope, Text
from .errors import Overloaded, SessionLost, TrunklineError, UpstreamFault
from .event_log import Stream
from .ports import Asker, Caller, Headers, Span
from .statistics import method_label

if TYPE_CHECKING:
    from .workflow import Workflow

Outcome = list[Text] | Stream
"""All answers as plain messages, or the stream that they come on."""


class Exchange:
    """The answers to the requests of one exchange, in the making."""

    __slots__ = (
        "_answers",
        "_ids",
        "_outcome",
        "_pending",
        "_ready",
        "_then",
        "_workflow",
        "cut",
        "stream",
    )

    def __init__(self, workflow: Workflow, requests: int) -> None:
        self._workflow = workflow
        self._pending = requests
        self._answers: list[Text] = []
        self._ids: list[bytes] | None = None if workflow.kept_log is None else []
        """Its requests without an answer, where another worker may have to tell what became of them."""
        self.stream: Stream | None = None
        self.cut = False
        """Set when the client left before a plain answer could be given: that answer is lost, and counted (G5)."""
        self._outcome: Outcome | None = None
        self._then: Callable[[Outcome], None] | None = None
        self._ready: asyncio.Future[Outcome] | None = None

    @property
    def ready(self) -> asyncio.Future[Outcome]:
        """Done when the form of the answer is decided: all answers as plain messages, or a stream."""
        if self._ready is None:
            self._ready = self._workflow.loop.create_future()
            if self._outcome is not None:
                self._ready.set_result(self._outcome)
        return self._ready

    def when_decided(self, then: Callable[[Outcome], None]) -> None:
        """Call this, which must not raise, when the form of the answer is decided; at once where it is."""
        if self._outcome is None:
            self._then = then
        else:
            then(self._outcome)

    @property
    def is_decided(self) -> bool:
        """True once the form of the answer is decided."""
        return self._outcome is not None

    def _decide(self, outcome: Outcome) -> None:
        self._outcome = outcome
        if self._ready is not None and not self._ready.done():
            self._ready.set_result(outcome)
        if self._then is not None:
            then, self._then = self._then, None
            then(outcome)

    @property
    def is_open(self) -> bool:
        """True while an answer is due, so that other messages may come before it."""
        return self._pending > 0

    @property
    def is_lost(self) -> bool:
        """True where no client can ever see what is added: it left while it held no event id."""
        return self.cut and self.stream is None

    @property
    def is_awaited(self) -> bool:
        """True where its client is there, as far as is known."""
        return self.stream is None or self.stream.is_read

    def add(self, message: bytes) -> None:
        """A message that comes before the last answer: it turns the exchange into a stream, unless that is lost."""
        if self.is_lost:
            return
        self._workflow.streams.append(self.turn_into_stream(), message)

    def admit(self, id: bytes) -> bool:
        """Over HTTP the answer belongs to the exchange: any id is taken (guarantee G1)."""
        if self._ids is not None:
            self._ids.append(id)
            if self.stream is not None:
                self._workflow.streams.note_opened(self.stream, [id])
        return True

    def carrier(self) -> int:
        """The number of its stream, which it is from now on."""
        return self.turn_into_stream().number

    def answer(self, message: Text, id: bytes) -> None:
        """One of the answers."""
        self._pending -= 1
        if self._ids is not None:
            self._ids.remove(id)
        if self._pending == 0:
            self._workflow.calls.exchange_over(self)
        if self.stream is not None:
            self._workflow.streams.append(self.stream, bytes(message), last=self._pending == 0)
            return
        self._answers.append(message)
        if self._pending == 0 and self._outcome is None:
            if self.cut:
                self._workflow.statistics.count("cut_answers", self._workflow.server)
            self._decide(self._answers)

    def decide_for_stream(self) -> None:
        """It takes long: turn into a stream, unless the form of the answer is decided already."""
        if self._outcome is None:
            self.turn_into_stream()

    def repeat(self) -> None:
        """Note once more what another worker would have to know of it."""
        if self.stream is not None and self._ids:
            self._workflow.streams.note_opened(self.stream, self._ids)

    def turn_into_stream(self) -> Stream:
        """Decide for a stream, primed where the client understands it (rule T7), and put in what is already there."""
        if self.stream is None:
            self.stream = self._workflow.streams.open()
            if self._ids is not None:
                self._workflow.streams.note_opened(self.stream, self._ids)
            self._workflow.streams.prime(self.stream)
            for message in self._answers:
                self._workflow.streams.append(self.stream, bytes(message))
            self._answers = []
            if self._outcome is None:
                self._decide(self.stream)
        return self.stream

    def fail(self, error: TrunklineError, id: bytes) -> None:
        """One of the answers: why there is none of the server's."""
        self.answer(wire_format.failure(id, error), id)


class Call:
    """One request of a client. Implements `Caller`."""

    __slots__ = (
        "_done",
        "_first",
        "_sent",
        "_span",
        "again",
        "asker",
        "burden",
        "id",
        "listing",
        "method",
        "owner",
        "started",
    )

    is_own = False

    def __init__(
        self, owner: Workflow, asker: Asker, id: bytes, method: str, started: float, span: Span | None = None
    ) -> None:
        self.owner = owner
        self.asker = asker
        self.id = id
        self.method = method_label(method)
        self.started = started
        self.again: tuple[Envelope, Headers] | None = None
        """What may be sent once more: set where the server is stateless, or its annotations are trusted (G6)."""
        self.listing: Listing | None = None
        """The list of tools that it asks for, where that is to be remembered."""
        self.burden = 0
        """What it has of the pool's `Burden`, in bytes."""
        self._first: TrunklineError | None = None
        """What became of it when it may have run and was sent once more."""
        self._span = span
        self._sent = 0
        self._done = False

    def sent(self, id: int) -> None:
        """See `Caller.sent`."""
        self._sent = id

    @property
    def was_sent(self) -> bool:
        """True once it was handed to an upstream session."""
        return self._sent != 0

    def answered(self, message: Text, *, is_error: bool) -> None:
        """See `Caller.answered`."""
        if self.listing is not None and self.owner.trust is not None and not is_error:
            self.owner.trust.learn(self.listing, bytes(message))
        if self._close("error" if is_error else "ok"):
            self.asker.answer(message, self.id)

    def progressed(self, message: bytes) -> None:
        """See `Caller.progressed`."""
        if not self._done:
            self.asker.add(message)

    def failed(self, error: TrunklineError) -> None:
        """See `Caller.failed`."""
        if self.owner.is_superseded:  # nothing is opened anew under settings that no longer hold
            self.again = None
        if self.again is not None and isinstance(error, SessionLost):
            (message, headers), self.again = self.again, None
            if self.owner.calls.may_repeat(message, error):
                self._first = error if error.data["executed"] == "unknown" else None
                self.owner.calls.carry(self, message, headers)
                return
        if isinstance(error, UpstreamFault):  # what came does not say what became of it
            error.data.setdefault("executed", "unknown" if self._sent else "no")
        if self._first is not None and (error.data.get("executed") == "no" or isinstance(error, Overloaded)):
            error = self._first  # the first time it may have run, which is what its client has to know
        if self._close(error.reason, error.message):
            self.asker.fail(error, self.id)

    def _close(self, outcome: str, why: str = "") -> bool:
        """It is over; False where it was before."""
        if self._done:
            return False
        self._done = True
        self.owner.calls.leave(self, outcome)
        call_log.end_span(self._span, outcome)
        if call_log.is_told(outcome):
            seconds = self.owner.now() - self.started
            about = self.owner.about()
            call_log.tell(outcome, why, about, method=self.method, id=self.id, seconds=seconds, sent=self._sent)
        return True


def asker_of(caller: Caller | None) -> Asker | None:
    """What a request came on, where other messages can still come on it."""
    asker = caller.asker if isinstance(caller, Call) else None
    return asker if asker is not None and asker.is_open and not asker.is_lost else None
