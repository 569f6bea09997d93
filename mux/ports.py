"""What the multiplexer asks of the parts around it, declared by the side that uses them.

Downwards, a `Connector` opens a `Wire` to a server and reports to a `Receiver`, the channel. Upwards, a channel tells a
`Caller` about its request and an `Owner`, the workflow, about everything else. All calls between them are plain
functions that neither block nor raise: the reader of a wire never waits for a consumer.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    from .account import Decision
    from .channel import Channel
    from .envelope import Envelope, Text
    from .errors import TrunklineError
    from .request import Request, ServerRequest

Headers = Mapping[str, str]
SendKind = Literal["notification", "response"]
NONE: Final[Headers] = MappingProxyType({})
"""No headers."""

PoolResult = Literal["hit", "miss", "spare", "bypass"]


class Caller(Protocol):
    """Who waits for the answer to one request."""

    is_own: bool
    """True where the gateway itself asks: it takes no place of a client's call."""

    @property
    def owner(self) -> Owner:
        """The workflow that the request belongs to."""

    def sent(self, id: int) -> None:
        """The request goes to the server under this id; once more where it is sent again."""

    def answered(self, message: Text, *, is_error: bool) -> None:
        """The response, under the caller's own id. Nothing follows."""

    def progressed(self, message: bytes) -> None:
        """A message that belongs to this request, before its answer."""

    def failed(self, error: TrunklineError) -> None:
        """There will be no response from the server; why. Nothing follows."""


class Asker(Protocol):
    """What a client's request came on, and its answer goes to: an `Exchange`, or a `Duplex`."""

    @property
    def is_open(self) -> bool:
        """True while other messages may come on it."""

    @property
    def is_lost(self) -> bool:
        """True where no client can ever see what is added."""

    def admit(self, id: bytes) -> bool:
        """Take a request's id; False where it must be refused."""

    def carrier(self) -> int:
        """The number of the stream on which a message goes that is added next; 0 where it goes on none."""

    def add(self, message: bytes) -> None:
        """A message that is no answer."""

    def answer(self, message: Text, id: bytes) -> None:
        """The answer to the request of this id."""

    def fail(self, error: TrunklineError, id: bytes) -> None:
        """There is no answer of the server's to the request of this id; why."""


class Span(Protocol):
    """What is told to those who trace, of one call."""

    def ended(self, outcome: str) -> None:
        """The call is over: `ok`, `error`, or the reason why there is no response."""


class Owner(Protocol):
    """The workflow that a channel serves, for what is not the answer to a request."""

    @property
    def is_listening(self) -> bool:
        """True while its client waits for what its server tells unasked."""

    def asked(self, channel: Answerable, request: ServerRequest, message: Envelope) -> None:
        """The server asks this workflow's client something."""

    def retracted(self, request: ServerRequest, message: Envelope) -> None:
        """The server cancels what it asked."""

    def told(self, message: Envelope, origin: Caller | None) -> None:
        """The server tells this workflow's client something; `origin` is the call on whose stream it came."""

    def left(self, channel: Answerable) -> None:
        """The channel is closed: what was asked on it and nobody answered is void."""

    def lost(self, channel: Answerable, cause: TrunklineError) -> None:
        """The channel is closed, and not because the workflow asked for it."""


class Answerable(Protocol):
    """Where the answer to a server's request goes."""

    def respond(self, request: ServerRequest, message: Envelope) -> None:
        """Send a client's answer upstream; the first one counts (rule R4)."""

    def refuse(self, request: ServerRequest, error: TrunklineError) -> None:
        """Tell the server that no client will answer."""

    def tell(self, message: bytes) -> None:
        """Send a notification upstream."""


class Opened(NamedTuple):
    """The server's side of a handshake: the negotiated revision, its InitializeResult, raw, and what it took."""

    revision: str
    result: bytes
    pool_result: PoolResult = "miss"


class Line(Protocol):
    """What carries a workflow's messages to its server: one channel for all, or the old path, one for each."""

    async def open(self) -> Opened:
        """Do the handshake with the server, and return what it said.

        Raises:
            TrunklineError: the server cannot be reached, or refused.
        """

    @property
    def is_open(self) -> bool:
        """True while a request would be carried."""

    @property
    def why(self) -> Decision:
        """Why the last `open`, or the last request that was no hit, met what it met."""

    @property
    def channels(self) -> Sequence[Channel]:
        """The upstream sessions that it holds between two calls, the first one first."""

    def request(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        """Carry one request; its outcome reaches the caller.

        Raises:
            TrunklineError: it was not carried, and will not be.
        """

    def cancel(self, caller: Caller, message: Envelope) -> None:
        """Withdraw the request of this caller (rule E12); nothing if it has ended."""

    def notify(self, message: bytes, headers: Headers) -> None:
        """Carry one notification; best effort, as notifications are.

        Raises:
            InvalidRequest: it could be read as another client's.
        """

    def expire(self, now: float) -> None:
        """Time out what is due."""

    def close(self, cause: TrunklineError) -> None:
        """End the upstream session; idempotent, the first cause wins."""


class Receiver(Protocol):
    """The channel, as its wire sees it."""

    @property
    def fence(self) -> Callable[[], bool] | None:
        """Whether a message may still go to the server: asked right before its first byte does; None where any may."""

    def withheld(self, request: Request | None) -> None:
        """A message waited until the fence was closed, and was dropped; of a request, nothing reached the server."""

    def received(self, text: bytes, origin: Request | None) -> None:
        """One frame of the server; `origin` is the request on whose stream it came, where the transport tells."""

    def failed(self, request: Request, error: TrunklineError) -> None:
        """The exchange that carried this request is over, and its answer did not come on it."""

    def lost(self, cause: TrunklineError, refused: Collection[Request] = ()) -> None:
        """The upstream session is dead: nothing more will be carried. The `refused` requests surely did not run."""


class Wire(Protocol):
    """One live upstream session on some transport."""

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """Put one message on its way, without waiting; for a request, `request` binds its exchange to it.

        `kind` tells what a message without an answer is. `headers` are those of this one call; transports that have
        none leave them out.
        """

    def abandon(self, request: Request) -> None:
        """Cut the exchange of a request whose answer nobody waits for; nothing if there is none."""

    async def establish(self, revision: str, initialized: bytes) -> None:
        """Finish the handshake: send `notifications/initialized` and begin to listen for unasked messages.

        Raises:
            TrunklineError: the server did not accept it.
        """


class Connector(Protocol):
    """Opens upstream sessions with one server."""

    def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AbstractAsyncContextManager[Wire]:
        """A wire for the length of the context; leaving it ends the upstream session, in order and in bounded time.

        `headers` are fixed for the session. With `listen` false, unasked messages of the server are not fetched where
        that costs a request of its own. Entering and leaving happen in one task.
        """


@runtime_checkable
class MovableWire(Wire, Protocol):
    """A wire whose session does not depend on this process: another one can go on with it."""

    @property
    def session(self) -> str:
        """What another process needs for it, an opaque secret; empty where it cannot be moved after all."""

    def release(self) -> None:
        """Another process has the session: leaving the context does not end it at the server."""

    def listen(self) -> None:
        """From now on the server's unasked messages come here; nothing where they do."""

    def rest(self) -> None:
        """They are not fetched any longer; `listen` goes on after the last one, where the server can."""


@runtime_checkable
class AdoptingConnector(Connector, Protocol):
    """A connector whose wires are movable."""

    def adopt(
        self, receiver: Receiver, headers: Headers, session: str, revision: str, *, listen: bool
    ) -> AbstractAsyncContextManager[Wire]:
        """As `connect`, with a session that is open: by what its wire said of it, and the negotiated revision."""
