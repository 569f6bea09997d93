"""What a client that was cut must know to come back: what it has received, what still waits, what may be lost.

Nothing that may have reached the server is sent a second time. Which requests those are, the server says itself. Once
everything that it had sent is here again, each request that still waits is asked about with a `ping` of the same id:

- refused with -32600 as a duplicate: the request is in flight there, and its answer will come (guarantee G1);
- answered: it is not in flight, and its answer has not come, so it never arrived: it is sent again.

Where that proves nothing (other clients share the session by its key, and their ids are not ours; or the connection was
cut again amid the question), the request fails instead, and its error says that it may have run. The
answers to the server's own requests are repeated until they surely arrived, for it takes the first and drops the rest
(rule R4); cancellations likewise (rule E12). Other notifications that were under way are not repeated. Pure.
"""

from dataclasses import dataclass, field
from typing import Final, NamedTuple

from ..mux import envelope as wire_format
from ..mux.envelope import Envelope, IdKey, id_key, key_or_none
from ..mux.errors import InvalidMessage, InvalidRequest, SessionLost, TrunklineError
from ..mux.limits import MAX_BODY_BYTES, MAX_EVENT_BYTES
from .headers import LAST_EVENT_ID, SESSION_ID

MAX_REPEATED: Final = 64
"""Answers and cancellations that are kept until they surely arrived; older ones are taken to have."""


class Taken(NamedTuple):
    """What becomes of a message that came: what goes on to the session, and what is to be written."""

    deliver: list[bytes]
    write: list[bytes]


@dataclass(slots=True)
class _Waiting:
    """A request without an answer."""

    text: bytes
    socket: int
    """The number of the socket that it was written on."""
    heard: list[bytes] | None = None
    """While the server is asked about it: what may be its answer, or the answer to the question."""


@dataclass(slots=True)
class Ledger:
    """The books of one session, over all its sockets. `wrote` and `took` each message; `came_back` after a cut."""

    keyed: bool = False
    """True where other clients may have wires on the same session: what a server says of an id may mean theirs."""
    session_id: str = ""
    """The server's name for the session; empty where it has none, and there is nothing to come back to."""
    received: int = 0
    """Messages that came on the newest socket."""
    is_settled: bool = True
    """True once the server has answered on the newest socket."""
    _opening: IdKey | None = None
    _is_open: bool = False
    _socket: int = 0
    _fences: int = 0
    _missing: IdKey | None = None
    """The id of the ping whose answer says that nothing is missed any more."""
    _asking: IdKey | None = None
    """The id of the ping whose answer says that what was asked of requests before it is answered, on any socket."""
    _waiting: dict[IdKey, _Waiting] = field(default_factory=dict)
    _repeated: dict[bytes, None] = field(default_factory=dict)

    @property
    def can_come_back(self) -> bool:
        """True once there is a session that the server knows by an id."""
        return self._is_open and bool(self.session_id)

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._waiting)

    def wrote(self, text: bytes) -> bool:
        """Note a message that is about to be written; True if it is worth to learn when it has arrived.

        Raises:
            InvalidMessage: nothing that a server would take.
        """
        message = wire_format.parse(text, limit=MAX_BODY_BYTES)
        if message.kind == "request":
            if message.method == "initialize":
                self._opening = id_key(message.id)
            self._waiting[id_key(message.id)] = _Waiting(text, self._socket)
            return False
        if message.kind == "notification":
            if message.method != "notifications/cancelled":
                return False
            self._withdraw(message)
        self._repeated[text] = None
        if len(self._repeated) > MAX_REPEATED:
            del self._repeated[next(iter(self._repeated))]
        return True

    def arrived(self, text: bytes) -> None:
        """The server surely has this message."""
        self._repeated.pop(text, None)

    def took(self, text: bytes) -> Taken:
        """Note a message that came, and decide what becomes of it."""
        self.received += 1
        try:
            message = wire_format.parse(text, limit=MAX_EVENT_BYTES)
        except InvalidMessage:
            return Taken([text], [])  # the session has its own word on what is no message
        if message.kind != "response" or not message.id:
            return Taken([text], [])
        key = id_key(message.id)
        if key in (self._missing, self._asking):
            return self._settle(key)
        entry = self._waiting.get(key)
        if entry is not None and entry.heard is not None and _is_refusal_or_empty(message):
            entry.heard.append(text)
            return Taken([], [])
        if entry is not None:
            del self._waiting[key]
        if key == self._opening and not self._is_open:
            self._is_open = not message.is_error
        return Taken([text], [])

    def headers(self) -> dict[str, str]:
        """What names the session, and where to go on in it."""
        return {SESSION_ID: self.session_id, LAST_EVENT_ID: str(self.received)}

    def came_back(self) -> list[bytes]:
        """The session goes on on another socket; what to write on it first."""
        self.received, self.is_settled = 0, False
        self._socket += 1
        self._missing, ping = self._fence()
        return [*self._repeated, ping]

    def fail(self, error: TrunklineError) -> list[bytes]:
        """The session is over: the answers to everything that waits."""
        waiting, self._waiting = self._waiting, {}
        return [_refused(entry, error) for entry in waiting.values()]

    # Coming back: first all that was missed, then the question what is in flight, then what to do about it.

    def _fence(self) -> tuple[IdKey, bytes]:
        """A ping of the client's own: what the server did before it answers is here once the answer is."""
        self._fences += 1
        name = f"trunkline-{self._fences}"
        return name, wire_format.request("ping", {}, f'"{name}"'.encode())

    def _settle(self, fence: IdKey) -> Taken:
        """What had to come before this answer is here: what was missed, or what was asked about requests."""
        taken = Taken([], [])
        is_answered = fence == self._asking
        for key, entry in tuple(self._waiting.items()):
            heard, entry.heard = entry.heard, None
            if heard:
                self._decide(key, entry, heard, is_answered, taken)
        self._asking = None
        if fence == self._missing:
            self._missing, self.is_settled = None, True
            taken.write.extend(self._ask())
        return taken

    def _ask(self) -> list[bytes]:
        """The question which of the requests of earlier sockets are in flight."""
        earlier = [entry for entry in self._waiting.values() if entry.socket < self._socket]
        if not earlier:
            return []
        for entry in earlier:
            entry.heard = []
        self._asking, ping = self._fence()
        return [*(_ping(entry.text) for entry in earlier), ping]

    def _decide(self, key: IdKey, entry: _Waiting, heard: list[bytes], is_answered: bool, taken: Taken) -> None:
        """What was heard of a request that was asked about.

        Not `is_answered`: the socket was cut meanwhile, and what came may be the request's own answer.
        """
        refused = [_is_error(text) for text in heard]
        if len(heard) > 1:  # the request's answer, and that to the question, which says whether it was still in flight
            del self._waiting[key]
            taken.deliver.append(heard[1] if refused[0] else heard[0])
        elif refused[0]:
            return  # in flight
        elif is_answered and not self.keyed:
            entry.socket = self._socket
            taken.write.append(entry.text)
        else:
            del self._waiting[key]
            error = SessionLost("the connection was cut, and whether the call ran is not known", executed="unknown")
            taken.deliver.append(_refused(entry, error))

    def _withdraw(self, message: Envelope) -> None:
        """Nobody waits for the request that a cancellation names."""
        key = key_or_none((message.params() or {}).get("requestId"))
        if key is not None:
            self._waiting.pop(key, None)


def _ping(request: bytes) -> bytes:
    return wire_format.request("ping", {}, wire_format.parse(request, limit=MAX_BODY_BYTES).id)


def _refused(entry: _Waiting, error: TrunklineError) -> bytes:
    return wire_format.failure(wire_format.parse(entry.text, limit=MAX_BODY_BYTES).id, error)


def _is_refusal_or_empty(message: Envelope) -> bool:
    if not message.is_error:
        return bytes(message.members["result"]).replace(b" ", b"") == b"{}"
    error = wire_format.members_of(message.members["error"]) or {}
    return bytes(error.get("code", b"")) == str(InvalidRequest.code).encode()


def _is_error(text: bytes) -> bool:
    return wire_format.parse(text, limit=MAX_EVENT_BYTES).is_error
