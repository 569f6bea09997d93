"""One initialized upstream session, owned by one task from open to close.

The owner task (`run`) connects, does the handshake, waits, and disconnects. Everybody else only hands the channel
messages, by plain function calls that neither wait nor take a lock: a request mints its id without an await, and an
answer is given to its caller by the reader of the wire, at once.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from . import envelope as wire_format
from .demux import Abandon, Answered, Asked, Demux, Due, Failed, Ignored, Progressed, Retracted, Told, ToServer
from .envelope import Envelope
from .errors import (
    InvalidMessage,
    LeaseEnded,
    SessionLost,
    TrunklineError,
    Unattributable,
    UpstreamFault,
    WorkflowEnded,
)
from .generations import Version
from .id_supply import LOW_IDS, DrawIds, IdSupply
from .initialization import Adopted, connect, give_up_late, in_time, shake_hands, took_too_long
from .lifecycle import Life, Purpose
from .limits import MAX_EVENT_BYTES, Pooling
from .listening import Listening
from .mending import parse_upstream
from .ports import NONE, Caller, Connector, Headers, MovableWire, Opened, Owner, SendKind, Wire
from .record import Handshake
from .request import Request, ServerRequest
from .routing import attribute
from .statistics import Statistics, method_label

logger = logging.getLogger(__name__)

Recipients = Callable[[Envelope, Owner | None, Sequence[Owner]], Sequence[Owner] | None]
"""A server's notification, the workflow on whose call's stream it came, and all that share the channel: who is told, or
None where it cannot be attributed."""

ChannelState = Literal["opening", "active", "idle", "draining", "closed"]


@dataclass(frozen=True, slots=True)
class ChannelConfig:
    """What a channel is made of; none of it changes while it lives."""

    server: str
    connector: Connector
    handshake: Handshake
    draw_ids: DrawIds
    pooling: Pooling
    statistics: Statistics
    clock: Callable[[], float]
    generation: int
    """The generation of the server's settings that it belongs to."""
    on_lost: "Callable[[Channel, TrunklineError], None]"
    """Told when the server has ended the session, after the owners."""
    on_ended: "Callable[[Channel], None]"
    """Told when its task ends, and nothing of the session is left."""
    listen: bool = True
    may_rest: bool = False
    """Whether a server that has nothing to tell unasked is left alone while no client is there."""
    recipients: Recipients | None = None
    """Who is told what the server tells, where several workflows share the channel; None where there is one."""
    adopted: Adopted | None = None
    """The session to go on with; None to begin one."""
    may_write: Callable[[], bool] | None = None
    """Whether a session that cannot be moved is certainly this worker's own; None where there is no other worker."""
    purpose: Purpose = "lent"
    """What it is opened for."""
    first: "Callable[[Channel], Awaitable[None]] | None" = None
    """What its task does before it opens the session."""


class Channel:
    """One upstream session with its demultiplexer. Implements `Receiver` for its wire and `Answerable` upwards."""

    __slots__ = (
        "__weakref__",
        "_config",
        "_demux",
        "_draining",
        "_has_warned",
        "_may_write",
        "_movable",
        "_owners",
        "_wire",
        "born",
        "ids",
        "is_closing",
        "is_superseded",
        "life",
        "listening",
        "opened",
    )

    def __init__(self, config: ChannelConfig, owners: list[Owner]) -> None:
        self._config = config
        self._owners = owners
        self.born = config.clock()
        """When it was made, in seconds of the pool's clock."""
        self._demux = Demux(
            max_inflight=config.pooling.max_inflight_per_channel, timeout=config.pooling.request_timeout
        )
        self._wire: Wire | None = None
        self._movable: MovableWire | None = None
        """The wire, where it is one: looked at once, since Python takes its time to tell."""
        self._may_write: Callable[[], bool] | None = None
        """Asked before each message for the server, once the session is open; None where it may always be sent."""
        self.is_closing = False
        """True once it was told to close."""
        self._draining: TrunklineError | None = None
        self._has_warned = False
        """True once its server sent what is no message and names no call: one that prints may do so all the time."""
        self.ids = IdSupply(self._demux, config.draw_ids, config.server)
        """Where the ids of its requests come from."""
        self.listening = Listening(config.clock, is_begun=config.listen, may_rest=config.may_rest)
        """Whether what its server tells unasked is fetched."""
        self.life = Life(config.purpose)
        """Where it stands in the pool, which moves it."""
        self.is_superseded = False
        """True where other settings of its server hold by now: it serves those who have it, and no newcomer."""
        self.opened: asyncio.Future[Opened] = asyncio.get_running_loop().create_future()
        """Done when the handshake is: with what the server said, or with why there is no session."""

    def __repr__(self) -> str:
        return f"Channel({self._config.server}, {self.state}, {self._demux!r})"

    @property
    def version(self) -> Version:
        """The settings that it was opened under."""
        return self._config.server, self._config.generation

    @property
    def owners(self) -> Sequence[Owner]:
        """The workflows that it serves."""
        return tuple(self._owners)

    @property
    def state(self) -> ChannelState:
        """Where the channel stands, for metrics and pages."""
        if self.is_closing:
            return "closed" if self._wire is None else "draining"
        if not self.opened.done():
            return "opening"
        if self._draining is not None or self.is_superseded:
            return "draining"
        return "idle" if self._demux.is_idle else "active"

    @property
    def is_open(self) -> bool:
        """True while requests are taken."""
        return not self.is_closing and self._draining is None and self.opened.done()

    @property
    def close_reason(self) -> str:
        """Why it was closed, in a fixed word; empty while it lives."""
        cause = self._demux.cause
        return "" if cause is None else cause.cause if isinstance(cause, WorkflowEnded) else cause.reason

    @property
    def session(self) -> str:
        """What another worker needs to go on with the upstream session, a secret; empty where it cannot."""
        return "" if self._movable is None else self._movable.session

    def release(self, cause: TrunklineError) -> None:
        """Close without ending the upstream session, where another worker can go on with it."""
        if self._movable is not None:
            self._movable.release()
        self.close(cause)

    def rest(self) -> None:
        """Until a client is there, or a call is sent, hold no more than an idle session with a mute server needs."""
        if self.is_idle:
            self._demux.trim()
            self.listening.rest()

    @property
    def is_adopted(self) -> bool:
        """True for a session that was open before."""
        return self._config.adopted is not None

    @property
    def is_idle(self) -> bool:
        """True when nothing is owed in either direction."""
        return self._demux.is_idle

    @property
    def load(self) -> int:
        """Places that are taken of `max_inflight_per_channel`: calls in flight, and those given up but not over."""
        return self._demux.load

    @property
    def inflight(self) -> int:
        """Requests that wait for an answer."""
        return self._demux.inflight

    async def run(self) -> None:
        """Own the session: open it, keep it until `close`, end it. Never raises what the server caused."""
        try:
            if self._config.first is not None:
                await self._config.first(self)
            if self.is_closing:
                return
            give_up_late(self.opened, self.lost)
            config = self._config
            async with connect(config.connector, self, config.handshake, config.adopted, listen=config.listen) as wire:
                self._wire, self._movable = wire, wire if isinstance(wire, MovableWire) else None
                self.listening.wire = self._movable
                try:
                    await self._begin(wire)
                    while not self.is_closing:
                        await self.ids.due
                        await self.ids.refill()
                except Exception as error:
                    self._fail(error)  # told before the wire says good-bye, which may take seconds
        except Exception as error:
            self._fail(error)
        finally:
            self.close(SessionLost("the gateway stopped", executed="unknown"))
            self._wire = self._movable = self.listening.wire = None
            self._config.on_ended(self)

    async def _begin(self, wire: Wire) -> None:
        adopted, handshake = self._config.adopted, self._config.handshake
        async with in_time():
            await self.ids.draw()
            if adopted is None:
                opened = await shake_hands(wire, handshake, self._owners, self.request)
            else:
                opened = adopted.opened
        self._may_write = None if self.session else self._config.may_write
        self.listening.opened(opened.result, handshake.capabilities)
        if not self.opened.done():
            self.opened.set_result(opened)

    def _fail(self, error: Exception) -> None:
        """The session ends by what went wrong in its own task."""
        if isinstance(error, TrunklineError):
            self.lost(error)
        elif isinstance(error, TimeoutError):
            self.lost(took_too_long())
        else:
            logger.error("the channel failed", exc_info=error, extra={"server": self._config.server})
            self.lost(UpstreamFault(f"the channel failed: {type(error).__name__}"))

    def request(self, message: Envelope, caller: Caller, headers: Headers) -> None:
        """Send one request; its outcome reaches the caller, exactly once.

        Raises:
            LeaseEnded: the session may be another worker's.
            TrunklineError: it was not sent: a limit, an illegal token, or the channel is closed.
        """
        if self._may_write is not None and not self._may_write():
            raise LeaseEnded
        if self._demux.ids_left <= LOW_IDS:
            self.ids.ask()
        if self.listening.is_resting:
            self.listening.attend()
        request, text = self._demux.open(message, caller, self._config.clock())
        assert self._wire is not None, "an open channel has a wire"
        caller.sent(request.id)
        self._wire.send(text, request=request, headers=headers)

    def cancel(self, caller: Caller, message: Envelope) -> None:
        """Withdraw the request of this caller, by its client's notification; nothing if it has ended."""
        request = self._demux.find(caller)
        if request is not None:
            self._perform(self._demux.cancel(request, message.params(), self._config.clock()))
            self._close_if_drained()

    def withdraw(self, owner: Owner, cause: TrunklineError) -> None:
        """Withdraw every request of this workflow, which ends for this cause; others go on."""
        self._perform(self._demux.withdraw(owner, cause, self._config.clock()))
        self._close_if_drained()

    def tell(self, message: bytes, headers: Headers = NONE) -> None:
        """Send a notification."""
        self._write(message, "notification", headers)

    def respond(self, request: ServerRequest, message: Envelope) -> None:
        """Send a client's answer to what the server asked; the first one counts."""
        self._perform(self._demux.respond(request, message, self._config.clock()))

    def say(self, response: bytes) -> None:
        """Send the answer to what the server asked while another worker had the session."""
        self._write(response, "response")

    def refuse(self, request: ServerRequest, error: TrunklineError) -> None:
        """Tell the server that no client will answer."""
        self._perform(self._demux.refuse(request, error, self._config.clock()))

    def expire(self, now: float) -> None:
        """Time out what is due. A handshake has a time of its own, and may not be cancelled (rule E12)."""
        if self.opened.done():
            self._perform(self._demux.expire(now))
            self._close_if_drained()

    def drain(self, cause: TrunklineError) -> None:
        """Close, for this cause, as soon as no call waits for an answer."""
        self._draining = self._draining or cause
        self._close_if_drained()

    def close(self, cause: TrunklineError) -> None:
        """End the session: every waiter hears of the cause, then the owner task disconnects. Idempotent."""
        if self.is_closing:
            return
        self.is_closing = True
        self.ids.end()
        self._perform(list(self._demux.close(cause)))
        for owner in tuple(self._owners):
            owner.left(self)
        if not self.opened.done():
            self.opened.set_exception(cause)
            self.opened.exception()  # somebody may not be waiting any longer

    def received(self, text: bytes, origin: Request | None) -> None:
        """See `Receiver.received`."""
        if self.is_closing:
            return
        messages: Sequence[Envelope] = ()
        try:
            messages = parse_upstream(text)
        except UpstreamFault as fault:
            self._config.statistics.count("upstream_faults", self._config.server)
            self._fail_named(text, origin, fault)
        for message in messages:
            try:
                self._receive(message, origin)
            except InvalidMessage:  # nested so deeply that only its first level could be read
                self._config.statistics.count("upstream_faults", self._config.server)
        self._close_if_drained()

    def failed(self, request: Request, error: TrunklineError) -> None:
        """See `Receiver.failed`."""
        self._perform(self._demux.fail(request, error))
        self._close_if_drained()

    @property
    def fence(self) -> Callable[[], bool] | None:
        """See `Receiver.fence`."""
        return self._may_write

    def withheld(self, request: Request | None) -> None:
        """See `Receiver.withheld`."""
        if request is not None:
            self.failed(request, LeaseEnded())
        else:
            self._config.statistics.count("fenced", self._config.server)

    def lost(self, cause: TrunklineError, refused: Collection[Request] = ()) -> None:
        """See `Receiver.lost`."""
        if self.is_closing:
            return
        self._draining = self._draining or cause  # a caller that tries once more must not come back to this session
        what = "lost" if self.opened.done() else "not opened"
        if self.is_adopted and not self.opened.done() and self._movable is not None:
            self._movable.release()  # it was open before, and is not this worker's to end
        logger.warning("upstream session %s: %s", what, cause.message, extra={"server": self._config.server})
        gone = SessionLost(cause.message, executed="no")
        surely_not_run = [due for request in refused for due in self._demux.fail(request, gone)]
        self.close(cause)
        for owner in tuple(self._owners):
            owner.lost(self, cause)
        self._config.on_lost(self, cause)
        self._perform(surely_not_run)  # who tries once more opens a session only if this loss lets it

    def _write(self, text: bytes, kind: SendKind, headers: Headers = NONE) -> None:
        """The one door for what has no answer: dropped, and counted, where the session may be another worker's."""
        if self._wire is None or self.is_closing:
            return
        if self._may_write is None or self._may_write():
            self._wire.send(text, kind=kind, headers=headers)
        else:
            self._config.statistics.count("fenced", self._config.server)

    def _close_if_drained(self) -> None:
        if self._draining is not None and not self._demux.inflight:
            self.close(self._draining)

    def _receive(self, message: Envelope, origin: Request | None) -> None:
        event = self._demux.receive(message, origin, self._config.clock())
        if isinstance(event, Answered):  # nearly always, and cheaper to find so
            event.request.caller.answered(event.message, is_error=event.is_error)
            if event.request is not origin and self._movable is not None:
                self._let_go(event.request)
            return
        if origin is None and isinstance(event, (Asked, Told, ToServer)):
            self.listening.told()
        match event:
            case Progressed(request, text):
                request.caller.progressed(text)
            case ToServer() | Retracted():
                self._perform([event])
            case Asked(asked, question):
                self._ask(asked, question)
            case Told(notification, source):
                self._tell_owner(notification, source.caller if source is not None else None)
            case Ignored(reason, request):
                self._config.statistics.count(reason, self._config.server)
                if request is not None and request is not origin:
                    self._let_go(request)

    def _fail_named(self, text: bytes, origin: Request | None, fault: UpstreamFault) -> None:
        """What is no message ends the call that it names, as its answer would; else the one on whose stream it came."""
        request = self._demux.named(wire_format.answered(text, limit=MAX_EVENT_BYTES)) or origin
        if request is not None:
            self._perform(self._demux.fail(request, fault))
            if request is not origin:
                self._let_go(request)
        elif not self._has_warned:  # nobody else is told, and who waits for what was lost in it may wait for long
            self._has_warned = True
            logger.warning("%s; it names no call", fault.message, extra={"server": self._config.server})

    def _let_go(self, request: Request) -> None:
        """The answer to a request came another way than on its own exchange, which may have no end."""
        if self._movable is not None and self._movable.session:
            self._movable.abandon(request)

    def _ask(self, asked: ServerRequest, question: Envelope) -> None:
        origin = asked.origin.caller.owner if asked.origin is not None else None
        owner = attribute(origin, self._owners)
        if owner is None:
            self._config.statistics.count("unattributed", method_label(question.method))
            refusal = Unattributable(f"{method_label(question.method)} could concern more than one client here")
            self.refuse(asked, refusal)
        else:
            owner.asked(self, asked, question)

    def _tell_owner(self, notification: Envelope, origin: Caller | None) -> None:
        asker = origin.owner if origin is not None else None
        told: Sequence[Owner] | None
        if self._config.recipients is not None:
            told = self._config.recipients(notification, asker, self._owners)
        else:
            owner = attribute(asker, self._owners)
            told = None if owner is None else (owner,)
        if told is None:
            self._config.statistics.count("unattributed", method_label(notification.method))
            return
        for owner in tuple(told):
            owner.told(notification, origin if owner is asker else None)

    def _perform(self, due: list[Due]) -> None:
        for event in due:
            match event:
                case Failed(request, error):
                    request.caller.failed(error)
                case ToServer(text, kind):
                    self._write(text, kind)
                case Abandon(request):
                    if self._wire is not None:
                        self._wire.abandon(request)
                case Retracted(asked, notification):
                    for owner in tuple(self._owners):
                        owner.retracted(asked, notification)
