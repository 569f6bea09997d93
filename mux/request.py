"""A request on its way, a client's or the server's own: what it is, and what may happen to it.

Pure: what may happen to a client's request is the table `REQUESTS`, to one of the server's own the table
`SERVER_REQUESTS`. Whoever takes a move that a table does not hold raises `IllegalMove`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from .envelope import Envelope
from .ports import Caller

EXTENSIONS: Final = 12
"""Progress may extend a call to at most this many times `request_timeout` (rule E17: an absolute maximum)."""

SHOWN: Final = 64
"""Characters of a server's own words that are kept."""

RequestState = Literal["pending", "abandoned", "done"]
RequestInput = Literal["answer", "progress", "cancel", "expire", "fail"]
RequestEffect = Literal["deliver", "deliver_progress", "withdraw", "time_out", "report", "swallow", "ignore", "forget"]

REQUESTS: Final[Mapping[tuple[RequestState, RequestInput], tuple[RequestState, RequestEffect]]] = {
    ("pending", "answer"): ("done", "deliver"),
    ("pending", "progress"): ("pending", "deliver_progress"),
    ("pending", "cancel"): ("abandoned", "withdraw"),
    ("pending", "expire"): ("abandoned", "time_out"),
    ("pending", "fail"): ("done", "report"),
    ("abandoned", "answer"): ("done", "swallow"),
    ("abandoned", "progress"): ("abandoned", "ignore"),
    ("abandoned", "cancel"): ("abandoned", "ignore"),
    ("abandoned", "expire"): ("done", "forget"),
    ("abandoned", "fail"): ("done", "forget"),
    # A failure may be reported after the answer came: the exchange broke once it had carried everything.
    ("done", "fail"): ("done", "ignore"),
    ("done", "cancel"): ("done", "ignore"),
}

ServerRequestState = Literal["open", "done"]
ServerRequestInput = Literal["answer", "refuse", "cancel"]
ServerRequestEffect = Literal["relay", "reply", "retract", "ignore"]

SERVER_REQUESTS: Final[
    Mapping[tuple[ServerRequestState, ServerRequestInput], tuple[ServerRequestState, ServerRequestEffect]]
] = {
    ("open", "answer"): ("done", "relay"),
    ("open", "refuse"): ("done", "reply"),
    ("open", "cancel"): ("done", "retract"),
    # First answer wins (rule R4); what comes after it is dropped.
    ("done", "answer"): ("done", "ignore"),
    ("done", "refuse"): ("done", "ignore"),
}


class Request:
    """A client's request, from the minting of its upstream id to its answer or the end of its tombstone."""

    __slots__ = ("caller", "client_id", "deadline", "id", "is_held", "latest", "paused", "state", "token")

    def __init__(self, id: int, client_id: bytes, token: bytes, caller: Caller, now: float, timeout: float) -> None:
        self.id = id
        self.client_id = client_id
        self.token = token
        """The caller's progress token as it was spelled, empty where it asked for no progress."""
        self.caller = caller
        self.state: RequestState = "pending"
        self.deadline = now + timeout
        """When it is over unless something is heard of it, or a client is asked within it."""
        self.latest = now + timeout * EXTENSIONS
        """When it is over in any case."""
        self.paused = 0
        """Requests of the server's own that wait for a client's answer within this one."""
        self.is_held = False
        """True while its wire holds it back: nothing of it has reached the server, which need not hear of its end."""

    def __repr__(self) -> str:
        return f"Request({self.id}, {self.state})"

    def is_wanted(self) -> bool:
        """True while somebody waits for its answer."""
        return self.state == "pending"


class ServerRequest:
    """A request of the server's own: sampling, elicitation, roots."""

    __slots__ = ("deadline", "id", "method", "origin", "place", "state", "stream", "token")

    def __init__(self, message: Envelope, origin: Request | None, deadline: float) -> None:
        self.id = message.id
        """The server's id, as it was spelled."""
        self.method = message.method[:SHOWN]
        """Its beginning, for people: a server may make it as long as a message, and let it wait for an hour."""
        self.origin = origin
        """The client's request on whose stream it came, where the transport tells (rule R1.1)."""
        self.state: ServerRequestState = "open"
        self.token = b""
        """The server's progress token as it was spelled, where the downstream side minted another for it."""
        self.stream = 0
        """The number of the stream on which the downstream side asked its client."""
        self.place = 0
        """Its place there; 0 where another worker asked."""
        self.deadline = deadline

    def __repr__(self) -> str:
        return f"ServerRequest({self.id!r}, {self.method}, {self.state})"
