"""What servers ask one workflow's client: under ids minted for it, until it answers or nobody waits for it. Pure.

The client is asked only what it declared that it can be asked (R3); its first answer counts (R4). What is open is
written down for other workers, and what another one asked is answered here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from math import inf
from typing import NamedTuple

from msgspec import Raw

from . import envelope as wire_format
from .directory import Entry
from .envelope import (
    Envelope,
    begins_task,
    lasting_token,
    members_of,
    minted,
    read_lasting_token,
    swap_progress_token,
    with_id,
)
from .errors import TimedOut, TrunklineError
from .ports import NONE, Answerable, Asker, Line
from .request import ServerRequest
from .routing import refusal

Meant = Callable[[ServerRequest], bool]
"""Whether a question is one of those that something is to happen to."""


class _Question(NamedTuple):
    request: ServerRequest
    via: Answerable
    """Where the answer goes."""
    asker: Asker | None
    """What carried it to the client; None for the stream that listens."""


class Questions:
    """The open questions of one workflow, by the numbers that its client knows them by.

    `capabilities` are the client's, raw. Numbers come from `names`; `write` keeps a line for other workers. `home` is
    asked for the number of the stream that listens.
    """

    __slots__ = ("_capabilities", "_home", "_names", "_open", "_write")

    def __init__(
        self,
        capabilities: bytes,
        names: Iterator[int] | None = None,
        write: Callable[[Entry], None] | None = None,
        home: Callable[[], int] = int,
    ) -> None:
        self._capabilities = members_of(Raw(capabilities)) or {}
        self._names = names or count(1)
        self._write = write
        self._home = home
        self._open: dict[int, _Question] = {}

    def __len__(self) -> int:
        return len(self._open)

    def ask(self, request: ServerRequest, message: Envelope, via: Answerable, asker: Asker | None = None) -> bytes:
        """The server's request under an id minted for this client (rule E5), its progress token too.

        `asker` is what will carry it to the client; None for the stream that listens.

        Raises:
            MethodNotFound: the client cannot be asked this; nothing was asked.
            InvalidParams: nor in this mode; or an illegal progress token; nothing was asked.
        """
        error = refusal(message, self._capabilities)
        if error is not None:
            raise error
        number = next(self._names)
        spelled = b"%d" % number
        members = message.members
        params = members.get("params")
        if params is not None:
            params, request.token = swap_progress_token(params, spelled)
            if request.token and begins_task(params):
                params, _ = swap_progress_token(params, lasting_token(number, request.token))
            members = {**members, "params": params}
        self._open[number] = _Question(request, via, asker)
        request.stream = self._home() if asker is None else asker.carrier()
        self._note(number, request)
        return with_id(members, spelled)

    # What the client says to them.

    def answer(self, message: Envelope) -> bool:
        """Send a client's response to who asked; False for an unknown or second answer (R4)."""
        number = minted(message.id)
        if number not in self._open:
            return False
        question = self._settle(number)
        question.via.respond(question.request, message)
        return True

    def progress(self, message: Envelope) -> bytes | None:
        """Send on a client's progress, under the server's own token; nothing where it names no question.

        What is returned is for the server, too: a task goes on in the client when the question is answered (rule E18).
        """
        params = message.params() or {}
        raw, token = params.get("progressToken", Raw(b"")), b""
        number = minted(bytes(raw))
        if not number:
            number, token = read_lasting_token(raw)
        question = self._open.get(number)
        if question is not None and question.request.token:
            question.via.tell(message.with_params({**params, "progressToken": Raw(question.request.token)}))
            return None
        return message.with_params({**params, "progressToken": Raw(token)}) if token else None

    # What else settles them.

    def retract(self, request: ServerRequest, message: Envelope) -> tuple[bytes, Asker | None] | None:
        """The server's `notifications/cancelled` in this client's ids, and what carried the question.

        None where it has been answered.
        """
        for number, question in self._open.items():
            if question.request is request:
                self._settle(number)
                told = {**(message.params() or {}), "requestId": Raw(b"%d" % number)}
                return message.with_params(told), question.asker
        return None

    def void(self, via: Answerable) -> None:
        """Nobody waits any longer for what was asked by this way."""
        for number in [number for number, question in self._open.items() if question.via is via]:
            self._settle(number)

    def refuse(self, error: TrunklineError, is_meant: Meant | None = None) -> None:
        """No client will answer these, or any: whoever asked is told."""
        meant = [number for number, one in self._open.items() if is_meant is None or is_meant(one.request)]
        for question in [self._settle(number) for number in meant]:
            question.via.refuse(question.request, error)

    def _settle(self, number: int) -> _Question:
        question = self._open.pop(number)  # first: what is written may have all that is open written again behind it
        if self._write is not None:
            self._write(Entry("settled", 0, number))
        return question

    def expire(self, now: float) -> list[bytes]:
        """Refuse what another worker asked and nobody answered in time; what its client is told of that.

        What is asked here is timed out where it was asked.
        """
        late = [number for number, request in self._inherited() if request.deadline <= now]
        for number in late:
            question = self._settle(number)
            question.via.refuse(question.request, TimedOut("no client answered in time"))
        why = {"reason": "timed out"}
        return [wire_format.notification("notifications/cancelled", {"requestId": one, **why}) for one in late]

    @property
    def due(self) -> float:
        """When `expire` is due next."""
        return min((request.deadline for _, request in self._inherited()), default=inf)

    # From one worker to the next.

    def _inherited(self) -> list[tuple[int, ServerRequest]]:
        """What another worker asked."""
        return [(number, one.request) for number, one in self._open.items() if isinstance(one.via, Inherited)]

    def knows(self, number: int) -> bool:
        """True while the question of this number waits for its answer."""
        return number in self._open

    def restore(self, asked: Entry, line: Line, deadline: float) -> None:
        """What another worker asked this client: of it, the server's own id and the stream are known."""
        request = ServerRequest(Envelope("request", {}, id=asked.message, method=""), None, deadline)
        request.stream = asked.stream
        self._open[asked.n] = _Question(request, Inherited(line), None)

    def repeat(self) -> None:
        """Note once more what is open."""
        for number, question in self._open.items():
            self._note(number, question.request)

    def let_go(self) -> None:
        """Drop what is open, which another worker will see answered."""
        self._open.clear()

    def _note(self, number: int, request: ServerRequest) -> None:
        if self._write is not None:
            self._write(Entry("asked", request.stream, number, request.id))


class Inherited:
    """Where the answer to a question goes that another worker asked: to the session, by the server's own id.

    Implements `Answerable`.
    """

    def __init__(self, line: Line) -> None:
        self._line = line

    def respond(self, request: ServerRequest, message: Envelope) -> None:
        """See `Answerable.respond`."""
        self._send(message.with_id(request.id))

    def refuse(self, request: ServerRequest, error: TrunklineError) -> None:
        """See `Answerable.refuse`."""
        self._send(wire_format.failure(request.id, error))

    def tell(self, message: bytes) -> None:
        """See `Answerable.tell`."""
        self._line.notify(message, NONE)

    def _send(self, text: bytes) -> None:
        for channel in self._line.channels[:1]:
            channel.say(text)
