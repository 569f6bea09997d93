"""One-time tickets for browsers, whose EventSource and WebSocket can carry no header: good for one connection."""

import secrets
import time
from collections import Counter
from collections.abc import Callable
from typing import Final, NamedTuple

import msgspec

from ..mux.errors import Overloaded
from ..mux.principal import Principal
from ..transports.asgi import JSON, UNBOUND, Grant
from ..transports.endpoint import EndpointConfig
from ..transports.http_endpoint import HTTPEndpoint, HTTPRequest

TICKET_SECONDS: Final = 30.0
MAX_TICKETS: Final = 10_000
MAX_TICKETS_PER_USER: Final = 100


class Identity(NamedTuple):
    """Who somebody is, until when in wall time, and what may end it before."""

    principal: Principal
    expires: float
    grant: Grant


class _Ticket(NamedTuple):
    identity: Identity
    server: str
    expires: float


class Tickets:
    """Tickets that were given out and not used. `clock` is wall time."""

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.worker = 0
        """The number of the worker that gives them, which each says: that one alone takes it. 0 where it is alone."""
        self._clock = clock
        self._tickets: dict[str, _Ticket] = {}
        self._users: Counter[Principal] = Counter()

    def __len__(self) -> int:
        return len(self._tickets)

    def give(self, principal: Principal, server: str, identity_expires: float, grant: Grant = UNBOUND) -> str:
        """A ticket for one connection of this principal to this server; it is worth what it was given for.

        Raises:
            Overloaded: too many are out, of this principal or in all.
        """
        now = self._clock()
        while self._tickets and next(iter(self._tickets.values())).expires <= now:  # they are in order of time
            self._remove(next(iter(self._tickets)))
        if self._users[principal] >= MAX_TICKETS_PER_USER:
            raise Overloaded("too many tickets of one user wait to be used", limit="tickets_per_user")
        if len(self._tickets) >= MAX_TICKETS:
            raise Overloaded("too many tickets wait to be used", limit="tickets")
        ticket = f"{self.worker:x}.{secrets.token_urlsafe(24)}" if self.worker else secrets.token_urlsafe(24)
        self._users[principal] += 1
        self._tickets[ticket] = _Ticket(Identity(principal, identity_expires, grant), server, now + TICKET_SECONDS)
        return ticket

    def take(self, ticket: str, server: str) -> Identity | None:
        """Whose ticket this is; None for one that is unknown, used, another server's, or worth nothing any longer."""
        found, now = self._remove(ticket), self._clock()
        if found is None or found.server != server or min(found.expires, found.identity.expires) <= now:
            return None
        return None if found.identity.grant.is_withdrawn else found.identity

    def _remove(self, ticket: str) -> _Ticket | None:
        found = self._tickets.pop(ticket, None)
        if found is not None:
            principal = found.identity.principal
            self._users[principal] -= 1
            if not self._users[principal]:
                del self._users[principal]
        return found


class TicketEndpoint(HTTPEndpoint):
    """The ASGI application of one server's `/ticket`: a POST with the bearer token is answered with a ticket."""

    def __init__(self, config: EndpointConfig, tickets: Tickets) -> None:
        super().__init__(config, {"POST": self._post})
        self._tickets = tickets

    async def _post(self, request: HTTPRequest) -> None:
        headers = request.headers
        ticket = self._tickets.give(request.principal, self._config.server, headers.expires, headers.grant)
        answer = {"ticket": ticket, "expires_in": int(TICKET_SECONDS)}
        await request.respond(200, [JSON, (b"cache-control", b"no-store")], msgspec.json.encode(answer))
