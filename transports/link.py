"""One connection of a client that carries everything both ways, and the workflow that it belongs to.

What SSE and WebSocket have in common: which workflow a connection asks for, what becomes of its messages, and what is
due on it. The bytes are theirs.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
from msgspec import Raw

from ..mux import envelope as wire_format
from ..mux import modern
from ..mux.account import Transport
from ..mux.duplex import Duplex
from ..mux.envelope import Envelope
from ..mux.errors import (
    Elsewhere,
    InvalidMessage,
    InvalidRequest,
    Overloaded,
    TrunklineError,
    UnknownSession,
    UnsupportedRevision,
)
from ..mux.event_log import Trimmed
from ..mux.limits import MAX_BODY_BYTES
from ..mux.pool import Arrival, Begun
from ..mux.ports import NONE
from ..mux.principal import Principal
from ..mux.record import WorkflowState, new_session_id
from ..mux.routing import BATCHES, LEGACY, MODERN
from ..mux.streams import Reader
from ..mux.workflow import Workflow
from .endpoint import (
    DEFAULT_REVISION,
    EndpointConfig,
    admitted_key,
    begin_unasked,
    is_opening,
    picked,
    read_batch,
    take_call,
)
from .headers import Asked
from .outgoing import Due, Outgoing
from .resumption import Place, find, place_after, place_left
from .status import HTTPRefusal

HANDSHAKE_SECONDS: Final = 30.0
"""How long a connection may stay without a workflow."""

MAX_EARLY: Final = 32
"""Refusals that wait for a client which has no workflow yet and reads nothing."""

BEGINNINGS: Final = frozenset({"initialize", modern.DISCOVER})
"""Requests that no workflow answers."""

HOLD_SECONDS: Final = 1.0
"""How long what is due to a connection that came back without saying where is held: if its first message is
`initialize`, it is a client that began anew and counts its ids from the start, and must not meet old answers. Also how
long a client that counts has to show itself where the server lends no pings."""


class Link:
    """One such connection. `open` it first; then `take` what comes, and send what `next` brings, until it is over."""

    def __init__(
        self, config: EndpointConfig, principal: Principal, transport: Transport, *, pings: bool = False
    ) -> None:
        self._config = config
        self._pool = config.pool
        self.principal = principal
        """Whose connection it is."""
        self._transport: Transport = transport
        self._pings = pings
        """Whether `meet` will be called when a pong of the client has come."""
        self._key: str | None = None
        self._workflow: Workflow | None = None
        self._duplex: Duplex | None = None
        self.outgoing = Outgoing()
        """What the client is due."""
        self._beginning = asyncio.Lock()
        """Held while the handshake is under way: what comes meanwhile waits for its outcome."""
        self._waiting = 0
        """What holds that, and what waits for it."""
        self.deadline = asyncio.get_running_loop().time() + HANDSHAKE_SECONDS
        """When it is over unless its client has begun a workflow, by the loop's clock."""
        self.accepted = 0
        """Messages that were accepted and are yet to be received: none is taken at once before them."""
        self._is_late = False
        self._is_elsewhere = False
        """True once what it asks for was found at another worker."""
        self._is_closed = False
        self._is_met = transport != "websocket"
        self._hold: asyncio.TimerHandle | None = None
        self.name = f"{self._pool.number:x}.{secrets.token_hex(8)}" if self._pool.number else secrets.token_hex(8)
        """What its client may call it by, with each message: for a transport whose messages come beside it."""
        self.session_id = ""
        """The workflow's, known to the client from the start: the workflow that begins here will have it."""

    @property
    def is_met(self) -> bool:
        """True once the client has shown that it knows of this connection, or where that makes no difference."""
        return self._is_met or self._workflow is None

    @property
    def end_reason(self) -> str:
        """Why nothing more will come, in a fixed word."""
        if self._workflow is None:
            return "no_handshake" if self._is_late else "overloaded"
        ended = self._workflow.ended
        return ended.cause if ended is not None else "taken_over"

    @classmethod
    def of(cls, config: EndpointConfig, workflow: Workflow, transport: Transport, name: str) -> "Link":
        """For a message that came while its connection is cut, or has become another: the answer goes to its wire.

        Raises:
            UnknownSession: no connection of this name, or without a name no single one, is known.
        """
        link = cls(config, workflow.principal, transport)
        link._key = workflow.record.key
        link.session_id = workflow.record.session_id
        duplex = workflow.duplexes.named(name) if name else workflow.duplexes.cut
        link._workflow, link._duplex, link._is_closed = workflow, duplex, True
        if link._duplex is None:
            raise UnknownSession("no such stream of this session; connect again")
        return link

    async def open(self, asked: Asked) -> WorkflowState | None:
        """Find the workflow that the client asks for, or a name for one to begin; and how its key came to it.

        Raises:
            HTTPRefusal: what it names disagrees.
            TrunklineError: it names what is unknown or no longer held, or nothing may begin here.
        """
        self._key = admitted_key(self._config, self.principal, asked.key)
        workflow = await find(self._config, self.principal, asked)
        if workflow is None:
            await self._pool.come_to_begin(self.principal, self._config.server, self._config.generation)
            self.session_id = new_session_id()
            return None if self._key is None else await self._state_of(self._key)
        if not workflow.opened.done():
            await asyncio.shield(workflow.opened)
        self._key = workflow.record.key
        is_guess = self._return(workflow, asked)
        try:
            await self._pool.write_out(workflow)  # from here on its client counts what comes on this connection
        except BaseException:
            self.close()
            raise
        self._await_client(is_guess=is_guess)
        return "resumed" if asked.key is not None else None

    async def _state_of(self, key: str) -> WorkflowState:
        """How a workflow that is to begin comes to its key: the client is told before it does."""
        return "reset" if await self._pool.lookup.has_ended(self.principal, self._config.server, key) else "created"

    def check_agreement(self, asked: Asked) -> None:
        """Make sure that a message for this connection names no other workflow's key.

        Raises:
            HTTPRefusal: 400, it does.
        """
        if asked.key is not None and asked.key != self._key:
            raise HTTPRefusal(400, "disagree", "the session and Trunkline-Workflow disagree")

    async def take(self, text: bytes, headers: Mapping[str, str], taken: Callable[[], None] | None = None) -> None:
        """One message of the client as it was sent; what is wrong with it is said on the connection. See `receive`."""
        try:
            message = wire_format.parse(text, limit=MAX_BODY_BYTES)
        except InvalidMessage as error:
            self._pool.statistics.count("refused", error.word)
            with suppress(Overloaded):
                await self._wait_for_turn()
            self.meet()
            self._say(wire_format.failure(b"", error))
            return
        await self.receive(message, headers, taken)

    def read(self, text: bytes) -> list[Envelope]:
        """The messages that a client sent at once: a batch is split where the session's revision has them (rule E11).

        Raises:
            InvalidMessage: it is no message, or no batch that may be sent here.
        """
        if not wire_format.is_batch(text):
            return [wire_format.parse(text, limit=MAX_BODY_BYTES)]
        if self._workflow is None or self._workflow.revision != BATCHES:
            raise InvalidRequest("this revision has no batches")
        return read_batch(text)

    def take_at_once(self, text: bytes, headers: Mapping[str, str]) -> bool:
        """The same, without waiting. False where there is something to wait for: nothing was done then."""
        workflow, duplex = self._workflow, self._duplex
        if workflow is None or duplex is None or self._hold is not None or self.accepted:
            return False
        try:
            message = wire_format.parse(text, limit=MAX_BODY_BYTES)
        except InvalidMessage:
            return False
        if message.kind == "request" and message.method in BEGINNINGS:
            return False
        if not self._config.admission.pass_at_once(in_order=self._transport == "websocket"):
            return False
        if not self.outgoing.tally.is_met:
            self.meet()
        self._dispatch(workflow, duplex, message, headers)
        return True

    async def receive(
        self, message: Envelope, headers: Mapping[str, str], taken: Callable[[], None] | None = None
    ) -> None:
        """One message of the client. Where it goes on, `taken` is called before: whoever takes it counts it."""
        try:
            await self._wait_for_turn()
            self.meet()
            if message.kind == "request":
                self._check_era(message)
            if self._hold is not None and message.method != "initialize":
                self._release()
            if is_opening(message):
                await self._initialize(message, headers)
                return
            workflow = self._workflow or await self._begin_unasked(message, headers)
        except TrunklineError as error:
            self._refuse(message, error)
            error.__traceback__ = None  # whoever keeps it, as what was not opened does, keeps no message
            return
        except Elsewhere:  # it came about since the connection did, which cannot be moved
            gone = Overloaded("this session is served by another worker by now; connect again", limit="worker")
            self._refuse(message, gone)
            self._is_elsewhere = True
            self.outgoing.change()
            return
        if workflow is not None and self._duplex is not None:
            if taken is not None:
                taken()
            self._dispatch(workflow, self._duplex, message, headers)

    def _refuse(self, message: Envelope, error: TrunklineError) -> None:
        self._pool.statistics.count("refused", error.word)
        if message.kind == "request":
            self._say(wire_format.failure(message.id, error))

    async def next(self, patience: float) -> list[Due] | None:
        """What is due; empty after `patience` seconds without anything; None when the connection is over.

        It is over, too, where the client has begun no workflow within `HANDSHAKE_SECONDS`.
        """
        loop = asyncio.get_running_loop()
        until = loop.time() + patience
        while True:
            due = self.due()
            if due != [] or loop.time() >= until:
                return due
            await self.outgoing.changed(min(until, self.deadline) if self._is_early else until)

    def meet(self) -> None:
        """The client has shown that it knows of this connection."""
        if self._is_closed:
            return
        if not self.is_met:
            self._is_met = True
            self.outgoing.change()
        if self._duplex is not None:
            self._duplex.meet(self.outgoing.tally)

    def acknowledge(self, position: int) -> None:
        """The client surely has everything up to this position."""
        if self._duplex is not None:
            self._duplex.acknowledge(position)

    def run_out(self) -> None:
        """Its client has taken nothing for too long, and is treated as gone."""
        self._pool.statistics.count("slow_clients", self._config.server)

    def close(self, *, goodbye: bool = False) -> None:
        """The connection has gone; the workflow goes on. With `goodbye`, the client closed it in order."""
        if self._is_late and not self._is_closed:
            self._pool.statistics.count("refused", self.end_reason)
        self._is_closed = True
        self.outgoing.on_change = None
        if self._hold is not None:
            self._hold.cancel()
        if goodbye and self._duplex is not None:
            self._duplex.say_goodbye()
        self._detach()

    def _detach(self) -> None:
        if self._transport == "sse" and self._duplex is not None:
            self._duplex.acknowledge_sent()
        for reader in self.outgoing.readers:
            if self._duplex is not None and reader.stream is self._duplex.stream:
                self._duplex.detach(reader)
            else:
                reader.close()
        self.outgoing.readers.clear()

    async def _wait_for_turn(self) -> None:
        if not self._config.admission.pass_at_once(in_order=self._transport == "websocket"):
            await self._config.admission.wait(self.principal)

    def _check_era(self, message: Envelope) -> None:
        """Make sure that a request is not of an era without sessions: its client is to fall back, or to stop.

        Raises:
            UnsupportedRevision: it is.
        """
        asked = MODERN if message.method == modern.DISCOVER else None
        if asked is None and self._workflow is None:
            asked = modern.revision_in(message)
        if asked is not None:
            raise UnsupportedRevision("begin with initialize", supported=list(LEGACY), requested=asked[:64])

    # Which workflow.

    def _return(self, workflow: Workflow, asked: Asked) -> bool:
        """Come back to a workflow: where the client says, else to what lost its connection, else to begin on it.

        True for what lost its connection: whether the client means that is a guess.
        """
        self.session_id = workflow.record.session_id
        workflow.come_by(self._transport)
        place = None
        try:
            if asked.last_event_id is not None:
                self._go_on(workflow, place_after(workflow, asked.last_event_id, self._transport))
            else:
                place = place_left(workflow, asked, self._transport)
                self._enter(workflow, place)
        except Trimmed:
            self._pool.statistics.count("resumes", self._transport, "trimmed")
            raise
        if asked.last_event_id is not None or place is not None:
            self._pool.statistics.count("resumes", self._transport, "resumed")
        return place is not None

    def _go_on(self, workflow: Workflow, place: Place | Reader) -> None:
        if isinstance(place, Reader):
            self.outgoing.read(place)
            self._enter(workflow)
        else:
            self._enter(workflow, place)

    def _await_client(self, *, is_guess: bool) -> None:
        """Its moment to show itself begins: before it does, nothing is sent, so that its next count has one meaning."""
        loop = asyncio.get_running_loop()
        if is_guess:
            self._hold = loop.call_later(HOLD_SECONDS, self._release)
        if not self._is_met and not self._pings:
            loop.call_later(HOLD_SECONDS, self.meet)

    def _release(self) -> None:
        """The connection goes on where another was cut."""
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
            self.outgoing.change()

    def _begin_on(self, workflow: Workflow) -> None:
        """The client began anew on a connection that would have gone on with another: leave that where it was."""
        if self._hold is not None:
            self._detach()
            self._release()
            self._enter(workflow)
            self.meet()

    def _enter(self, workflow: Workflow, place: Place | None = None) -> None:
        """Belong to a workflow from here on; without a place, as a wire of its own."""
        self._workflow = workflow
        if place is None:
            duplex = self._duplex = workflow.duplexes.new()
            if self._is_closed:  # what its client is due waits for another connection
                duplex.name(self.name)
                return
            place = Place(duplex, duplex.attach())
        workflow.come_by(self._transport)
        self._duplex = place.duplex
        self._duplex.name(self.name)
        self.outgoing.count_by(self._duplex.tally)
        self.outgoing.read(place.reader)

    # What the client sends.

    @asynccontextmanager
    async def _alone(self) -> AsyncIterator[None]:
        """Begin, or find what has begun: one message at a time.

        Raises:
            Overloaded: so many wait as may be in flight on one session; over HTTP+SSE nothing else bounds them.
        """
        upstream = self._pool.upstreams.get(self._config.server)
        limits = self._pool.pooling if upstream is None else upstream.pooling
        if self._waiting > limits.max_inflight_per_workflow:
            raise Overloaded("too many messages wait for this session to begin", limit="max_inflight_per_workflow")
        self._waiting += 1
        try:
            async with self._beginning:
                yield
        finally:
            self._waiting -= 1

    async def _initialize(self, message: Envelope, headers: Mapping[str, str]) -> None:
        async with self._alone():
            known = self._workflow
            arrival = self._arrival(headers, known)
            try:
                # Seen through although the client leaves: what begins must be somebody's. The channel bounds it.
                with anyio.CancelScope(shield=True):
                    begun = await self._pool.begin(self.principal, self._config.server, message, arrival)
                    self._move(begun)
            finally:
                self.outgoing.change()
        self._say(wire_format.result(message.id, Raw(begun.result)))

    async def _begin_unasked(self, message: Envelope, headers: Mapping[str, str]) -> Workflow | None:
        """The workflow of a keyed client that begins without a handshake; nothing for what needs none."""
        if message.kind == "request" and message.method == "ping":
            self._say(wire_format.result(message.id, Raw(b"{}")))
            return None
        async with self._alone():
            if self._workflow is None and self._key is None:
                raise InvalidRequest("begin with initialize")
            if self._workflow is None:
                arrival = self._arrival(headers, None)
                with anyio.CancelScope(shield=True):
                    self._move(await begin_unasked(self._config, self.principal, DEFAULT_REVISION, arrival))
            return self._workflow

    def _arrival(self, headers: Mapping[str, str], known: Workflow | None) -> Arrival:
        return Arrival(
            session_id=known.record.session_id if known is not None else None,
            key=self._key,
            session_headers=picked(headers, self._config.session_headers),
            transport=self._transport,
            new_id=self.session_id,
            own_wires=len(self.outgoing.readers),
            generation=self._config.generation,
        )

    def _move(self, begun: Begun) -> None:
        workflow = begun.workflow
        if workflow is self._workflow:
            self._begin_on(workflow)
        else:
            self._detach()
            self.session_id = workflow.record.session_id
            self._enter(workflow)
            self.meet()
            if begun.state != "resumed" and self._key is None:
                workflow.bind_to_wires()

    def _dispatch(self, workflow: Workflow, duplex: Duplex, message: Envelope, headers: Mapping[str, str]) -> None:
        forwarded = picked(headers, self._config.forward_headers)
        if message.kind == "request":
            # The headers of a socket are those of its upgrade, and not of this call.
            own = NONE if self._transport == "websocket" else headers
            take_call(self._config, workflow, message, duplex, forwarded, own)
        elif message.kind == "response":
            workflow.respond(message)
        else:
            try:
                workflow.notify(message, forwarded, duplex)
            except InvalidMessage as error:  # only its first level could be read
                self._pool.statistics.count("refused", error.word)

    # What the client is due.

    def _say(self, message: bytes) -> None:
        if self._duplex is not None and self._hold is None:
            self._duplex.add(message)
        elif not self._is_flooded:
            self.outgoing.say(message)

    @property
    def _is_flooded(self) -> bool:
        """True where more waits than may: the connection ends as soon as its client takes something."""
        return len(self.outgoing.early) > MAX_EARLY

    @property
    def _is_early(self) -> bool:
        """True while no workflow is there, and none is being opened."""
        return self._workflow is None and not self._beginning.locked()

    def due(self) -> list[Due] | None:
        """What is due now; None when the connection is over. What is returned counts as sent."""
        is_alone = self._workflow is None
        self._is_late = is_alone and self._is_early and asyncio.get_running_loop().time() >= self.deadline
        if self._is_late or self._is_flooded or (is_alone and self._is_elsewhere and not self.outgoing.early):
            return None
        own = self._duplex.stream if self._duplex is not None else None
        is_held = self._hold is not None or not (self._is_met or is_alone)
        due = self.outgoing.due(own, is_held=is_held)
        return [] if due is None and self._beginning.locked() else due
