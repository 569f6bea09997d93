"""Which workflow a connection that carries everything asks for, and where in it goes on.

By the contract's headers: a session id, a key, an event id, or, on WebSocket, the count of what came on the socket that
was cut. Where the client says nothing of what it has, what it acknowledged counts.
"""

from typing import Final, NamedTuple

from ..mux.account import Transport
from ..mux.duplex import Duplex
from ..mux.errors import UnknownSession
from ..mux.event_log import Position
from ..mux.principal import Principal
from ..mux.streams import Reader
from ..mux.workflow import Workflow
from .endpoint import EndpointConfig
from .headers import Asked
from .status import HTTPRefusal

MAX_COUNT: Final = 10**15


class Place(NamedTuple):
    """A place on a wire of a workflow."""

    duplex: Duplex
    reader: Reader
    """What follows it."""


async def find(config: EndpointConfig, principal: Principal, asked: Asked) -> Workflow | None:
    """The workflow that a client asks for; None where one may begin.

    An event id goes first: of several workers, the one that has its stream need not be the one that holds the session.

    Raises:
        HTTPRefusal: what it names disagrees.
        TrunklineError: it names what is unknown, or no longer held.
    """
    lookup = config.pool.lookup
    if asked.last_event_id is not None and _count_in(asked.last_event_id) is None:
        found: Workflow | None = await lookup.find_position(principal, config.server, _position(asked.last_event_id))
    else:
        found = await lookup.find_named(principal, config.server, asked.session_id, asked.key)
    if found is None:
        return None
    if asked.key not in (None, found.record.key):
        raise HTTPRefusal(400, "disagree", "the session and Trunkline-Workflow disagree")
    if asked.session_id not in (None, found.record.session_id):
        raise HTTPRefusal(400, "disagree", "the session and Last-Event-ID disagree")
    return found


def place_after(workflow: Workflow, last_event_id: str, transport: Transport) -> Place | Reader:
    """Where a client says that it was: on a wire, or in the answer to an HTTP call, the rest of which is read.

    Raises:
        HTTPRefusal: it names no place of this workflow, or not one alone.
        Trimmed: what follows is no longer held.
        UnknownSession: it is no event id.
    """
    count = _count_in(last_event_id)
    if count is not None:
        if transport != "websocket" or workflow.duplexes.newest is None:
            raise HTTPRefusal(400, "last_event_id", "a count names what came on a WebSocket; this session keeps none")
        duplex = workflow.duplexes.cut
        if duplex is None:
            raise HTTPRefusal(400, "last_event_id", "more than one socket of this session could be meant")
        return Place(duplex, duplex.attach_after(count))
    position = _position(last_event_id)
    duplex = workflow.duplexes.find(position.stream)
    if duplex is None:
        return workflow.streams.resume(position)
    return Place(duplex, duplex.attach_at(position.place))


def place_left(workflow: Workflow, asked: Asked, transport: Transport) -> Place | None:
    """After what was acknowledged on a wire that lost its connection; on SSE only if its session is named.

    None where there is no such wire.

    Raises:
        Trimmed: what follows is no longer held.
    """
    duplex = workflow.duplexes.left
    if duplex is None or (transport == "sse" and asked.session_id is None):
        return None
    return Place(duplex, duplex.attach())


def _position(event_id: str) -> Position:
    position = Position.read(event_id)
    if position is None:
        raise UnknownSession("no such event; begin anew with initialize")
    return position


def _count_in(last_event_id: str) -> int | None:
    """The number of messages that a client says it received; None for an event id."""
    return min(int(last_event_id[:20]), MAX_COUNT) if last_event_id.isascii() and last_event_id.isdigit() else None
