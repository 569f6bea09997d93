"""Who gets what: the rules by which messages find their workflow and, in it, their stream. Pure.

Attribution (R1) finds the workflow; placement (R2) finds the stream; capabilities (R3) decide whether a client may be
asked at all. `Desk` keeps what one workflow's client sees: its request ids, which may collide, and the ids minted for
what servers ask it.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import count
from typing import Final, Generic, Literal, NamedTuple, TypeVar

from msgspec import Raw

from .demux import ServerRequest
from .envelope import Envelope, IdKey, Members, checked_id, id_key, members_of, string_of, swap_progress_token
from .errors import InvalidParams, InvalidRequest, MethodNotFound, TrunklineError
from .ports import Answerable

Owner = TypeVar("Owner")
Call = TypeVar("Call")

MODERN: Final = "2026-07-28"
LEGACY: Final = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
"""Revisions with a handshake, oldest first."""

BATCHES: Final = "2025-03-26"
"""The one revision with JSON-RPC batches (rule E10)."""

PRIMING: Final = "2025-11-25"
"""From this revision on clients understand an event with an id and empty data (SEP-1699, rule T7)."""


Note = Callable[[Literal["asked", "settled"], int, bytes], None]
"""Hears of a question: the number that the client knows, and the server's own id, raw."""


def attribute(origin: Owner | None, owners: Collection[Owner]) -> Owner | None:
    """The workflow that a server's message concerns: the asker's, else the only one there is, else none (R1)."""
    if origin is not None:
        return origin
    return next(iter(owners)) if len(owners) == 1 else None


Place = Literal["exchange", "home", "newest"]


def place(*, origin_open: bool, listening: bool, exchanges_open: bool) -> Place:
    """What carries a server's request to its client: exactly one stream (R2).

    The exchange or wire that asked; else the newest wire that listens for what belongs to no request; else the newest
    exchange that is open; else it waits for a wire that listens.
    """
    if origin_open:
        return "exchange"
    if listening or not exchanges_open:
        return "home"
    return "newest"


def refusal(message: Envelope, capabilities: Members) -> TrunklineError | None:
    """The error for a server that asks what the client did not declare, or None where it did (R3, R10)."""
    if message.method == "roots/list" and "roots" not in capabilities:
        return MethodNotFound("the client has no roots")
    if message.method == "sampling/createMessage" and "sampling" not in capabilities:
        return MethodNotFound("the client does not sample")
    if message.method == "elicitation/create":
        return _elicitation_refusal(message, capabilities)
    return None


def _elicitation_refusal(message: Envelope, capabilities: Members) -> TrunklineError | None:
    declared = capabilities.get("elicitation")
    if declared is None:
        return MethodNotFound("the client does not elicit")
    modes = members_of(declared) or {}
    mode = string_of((message.params() or {}).get("mode")) or "form"
    if mode in modes or (mode == "form" and "url" not in modes):
        return None
    return InvalidParams(f"the client did not declare elicitation of mode {mode[:32]}")


class Question(NamedTuple):
    """A server's request that waits for this client's answer, and the channel that the answer goes to."""

    request: ServerRequest
    via: Answerable


class Withdrawal(NamedTuple, Generic[Call]):
    """What a client's cancellation refers to: one call, or none with the reason."""

    call: Call | None
    reason: Literal["", "unknown_cancel", "ambiguous_cancel"]


class Desk(Generic[Call]):
    """One client's view of ids: its calls by the ids it chose, and the server's requests by ids minted for it.

    Over HTTP the same id may be in flight twice (guarantee G1); a cancellation that could mean either is ignored.
    """

    __slots__ = ("_asked", "_calls", "_names", "_note", "_size")

    def __init__(self, names: Iterator[int] | None = None, note: Note | None = None) -> None:
        self._calls: dict[IdKey, list[Call]] = {}
        self._size = 0
        self._asked: dict[int, Question] = {}
        self._names = names or count(1)
        """The numbers of questions to come."""
        self._note = note
        """Hears of each question that is asked or settled."""

    def __len__(self) -> int:
        return self._size

    @property
    def questions(self) -> Collection[Question]:
        """What servers asked and this client has not answered."""
        return tuple(self._asked.values())

    def enter(self, id: bytes, call: Call) -> None:
        """A call begins."""
        self._calls.setdefault(id_key(id), []).append(call)
        self._size += 1

    def leave(self, id: bytes, call: Call) -> None:
        """A call has ended; calling it again does nothing."""
        key = id_key(id)
        calls = self._calls.get(key, [])
        if call in calls:
            calls.remove(call)
            self._size -= 1
            if not calls:
                del self._calls[key]

    def trim(self) -> None:
        """Give back what the table of calls once needed."""
        if not self._calls:
            self._calls = {}

    def meant(self, message: Envelope, can_mean: Callable[[Call], bool]) -> list[Call]:
        """The calls in flight under the id that a client's `notifications/cancelled` names, of those it can mean."""
        key = _key_or_none((message.params() or {}).get("requestId"))
        return [call for call in self._calls.get(key, []) if can_mean(call)] if key is not None else []

    def withdraw(self, message: Envelope, can_mean: Callable[[Call], bool]) -> Withdrawal[Call]:
        """The one call that a client's `notifications/cancelled` means (rule E12)."""
        calls = self.meant(message, can_mean)
        if len(calls) == 1:
            return Withdrawal(calls[0], "")
        return Withdrawal(None, "ambiguous_cancel" if calls else "unknown_cancel")

    def ask(self, request: ServerRequest, message: Envelope, via: Answerable) -> bytes:
        """The server's request under an id minted for this client (rule E5), its progress token too.

        Raises:
            InvalidParams: an illegal progress token; nothing was asked.
        """
        number = next(self._names)
        spelled = b"%d" % number
        params = message.members.get("params")
        if params is None:
            text = message.with_id(spelled)
        else:
            params, request.token = swap_progress_token(params, spelled)
            text = Envelope("request", {**message.members, "params": params}).with_id(spelled)
        self._asked[number] = Question(request, via)
        if self._note is not None:
            self._note("asked", number, request.id)
        return text

    def restore(self, number: int, request: ServerRequest, via: Answerable) -> None:
        """What another worker asked this client under this number, and the client may answer here."""
        self._asked[number] = Question(request, via)

    def knows(self, number: int) -> bool:
        """True while the question of this number waits for its answer."""
        return number in self._asked

    def repeat(self) -> None:
        """Note once more what is asked and not settled."""
        if self._note is not None:
            for number, question in self._asked.items():
                self._note("asked", number, question.request.id)

    def let_go(self) -> None:
        """Drop the open questions, which another worker will see answered."""
        self._asked.clear()

    def _settle(self, number: int) -> Question:
        if self._note is not None:
            self._note("settled", number, b"")
        return self._asked.pop(number)

    def answer(self, message: Envelope) -> Question | None:
        """The question that a client's response answers; None for an unknown or second answer (R4)."""
        key = id_key(message.id) if message.id else None
        return self._settle(key) if isinstance(key, int) and key in self._asked else None

    def retract(self, request: ServerRequest, message: Envelope) -> bytes | None:
        """The server's `notifications/cancelled` in this client's ids, or None where it has been answered."""
        for number, question in self._asked.items():
            if question.request is request:
                self._settle(number)
                return message.with_params({**(message.params() or {}), "requestId": Raw(b"%d" % number)})
        return None

    def forget(self, via: Answerable | None = None) -> list[Question]:
        """Drop the open questions of one channel, or of all, and return them."""
        gone = {number: q for number, q in self._asked.items() if via is None or q.via is via}
        for number in gone:
            self._settle(number)
        return list(gone.values())

    def progress(self, message: Envelope) -> tuple[bytes, Answerable] | None:
        """A client's progress for what a server asked, under the server's own token; None where it names nothing."""
        params = message.params() or {}
        key = _key_or_none(params.get("progressToken"))
        question = self._asked.get(key) if isinstance(key, int) else None
        if question is None or not question.request.token:
            return None
        return message.with_params({**params, "progressToken": Raw(question.request.token)}), question.via


def _key_or_none(raw: Raw | None) -> IdKey | None:
    try:
        return None if raw is None else id_key(checked_id(raw))
    except InvalidRequest:
        return None
