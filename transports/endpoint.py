"""What the endpoints of one server have in common, whatever the transport."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from ..mux import envelope as wire_format
from ..mux.envelope import Envelope
from ..mux.errors import InvalidRequest, TrunklineError
from ..mux.handshake import own_initialize
from ..mux.limits import MAX_BODY_BYTES
from ..mux.pool import Arrival, Begun, Pool
from ..mux.ports import NONE, Asker, Headers, PoolResult
from ..mux.principal import Principal
from ..mux.workflow import Workflow
from .admission import Admission
from .asgi import MEANT, Scope, WholeRequest
from .guard import Guard
from .status import HTTPRefusal
from .tracing import Tracer, begin_span, context_of

if TYPE_CHECKING:
    from .http_endpoint import HTTPRequest
    from .link import Link

DEFAULT_REVISION: Final = "2025-03-26"
"""What a request without version header means where nothing else tells (rule L3)."""

Authenticate = Callable[[Mapping[str, str]], Principal]
"""Request headers, by lower-case name, to the verified identity; raises `Unauthorized`."""


class Sessionless(Protocol):
    """Whoever answers requests of 2026-07-28, which have no session."""

    async def answer(self, request: HTTPRequest, body: bytes) -> bool:
        """Answer a POST. False where it is none of that revision, or the server does not speak it."""

    def take(self, whole: WholeRequest, request: HTTPRequest, turn: Callable[[], bool]) -> bool:
        """Take a whole request of that revision, to be answered by callbacks. False where `answer` is to be asked.

        `turn` is asked last: whether it is its turn.

        Raises:
            TrunklineError: it is to be refused, there.
        """


class Connections:
    """A server's open connections that carry everything. They outlive a change of its settings."""

    def __init__(self) -> None:
        self.links: dict[str, dict[str, Link]] = {}
        """SSE streams by the session id that their client knows, and by the name of each; the newest last."""


@dataclass(frozen=True, slots=True)
class EndpointConfig:
    """One server's endpoints. Header names are lower case."""

    server: str
    pool: Pool
    guard: Guard
    authenticate: Authenticate
    anonymous_keys: bool = True
    """False on a listener that is not loopback: there a key of anonymous would be everybody's."""
    forward_headers: Sequence[str] = ()
    session_headers: Sequence[str] = ()
    modern: Sessionless | None = None
    """None where only sessions are offered."""
    generation: int | None = None
    """The generation of the server's settings that all of this is of; None where they do not change."""
    connections: Connections = field(default_factory=Connections)
    admission: Admission = field(default_factory=Admission)
    """One for all servers of a gateway."""
    tracer: Tracer | None = None
    """None where nobody traces."""


def picked(headers: Mapping[str, str], names: Sequence[str]) -> Headers:
    """Those of the headers that are configured to go on to the server."""
    return {name: headers[name] for name in names if name in headers} if names else NONE


@asynccontextmanager
async def looking(pool: Pool, scope: Scope) -> AsyncIterator[None]:
    """What a request is about is found, or begun: where that fails, a drain that began meanwhile may be why.

    It has ended what was being opened, also for who was handed on to this worker, and nothing was done.

    Raises:
        Elsewhere: another worker is to take it.
    """
    try:
        yield
    except TrunklineError:
        if pool.draining and scope.get(MEANT) is None:
            await pool.hand_on()
        raise


def is_opening(message: Envelope) -> bool:
    """Whether a message begins a session, or comes back to one."""
    return message.method == "initialize" and message.kind == "request"


def read_batch(text: bytes) -> list[Envelope]:
    """The messages that a client sent as one array.

    Raises:
        InvalidMessage: it is none, or holds what must stand alone (rule E10).
    """
    messages = wire_format.parse_batch(text, limit=MAX_BODY_BYTES)
    if any(is_opening(message) for message in messages):
        raise InvalidRequest("initialize must not be part of a batch")
    return messages


def take_call(
    config: EndpointConfig,
    workflow: Workflow,
    message: Envelope,
    asker: Asker,
    forwarded: Headers,
    headers: Mapping[str, str],
) -> PoolResult | None:
    """Hand a client's request to its workflow, with the trace context of its own `headers` or of its body.

    What the pool did for it; None where it was not asked.
    """
    context = context_of(headers, message, config.server, config.pool.statistics)
    span, context = begin_span(config.tracer, config.server, message, context, workflow.principal, workflow)
    return workflow.calls.take(message, asker, {**forwarded, **context} if context else forwarded, span)


def admitted_key(config: EndpointConfig, principal: Principal, key: str | None) -> str | None:
    """The key that a client chose for its workflow.

    Raises:
        HTTPRefusal: 400, on this listener a key of anonymous would be everybody's.
    """
    if key is not None and principal.is_anonymous and not config.anonymous_keys:
        raise HTTPRefusal(400, "anonymous_key", "Trunkline-Workflow needs an authenticated client on this listener")
    return key


async def begin_unasked(
    config: EndpointConfig,
    principal: Principal,
    revision: str,
    arrival: Arrival,
) -> Begun:
    """A keyed workflow for a client that calls without a handshake: one without capabilities is made for it.

    Raises:
        TrunklineError: as `Pool.begin`.
    """
    message = own_initialize(revision, {}, {"name": "trunkline", "version": "0"})
    return await config.pool.begin(principal, config.server, message, arrival)
