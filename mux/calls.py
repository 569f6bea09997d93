"""What one workflow's client asks: the calls that wait for their answers, and the exchanges that they came by.

A call is executed at most once, unless it surely did not run or may run twice (guarantee G6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import Raw

from . import call_log
from . import envelope as wire_format
from .burden import LARGE_BYTES, Burden
from .demux import TOMBSTONE_SECONDS
from .duplex import Duplex
from .envelope import Envelope
from .errors import Cancelled, InvalidRequest, Overloaded, SessionLost, TimedOut, TrunklineError
from .exchange import Call, Exchange
from .ports import Asker, Headers, PoolResult, Span
from .routing import InFlight

if TYPE_CHECKING:
    from .workflow import Workflow

TAKEN_BACK: Final = (Cancelled.reason, TimedOut.reason)
"""How calls end whose message may still wait for a server that does not read it."""


class Calls:
    """The calls of one workflow in flight: taken, handed to its line, counted when they end."""

    __slots__ = (
        "_burden",
        "_clock",
        "_exchanges",
        "_in_flight",
        "_quiet",
        "_stir",
        "_workflow",
        "had_exchange",
        "last_end",
    )

    def __init__(
        self, workflow: Workflow, clock: Callable[[], float], stir: Callable[[Workflow], None], burden: Burden
    ) -> None:
        self._workflow = workflow
        self._clock = clock
        self._stir = stir
        self._burden = burden
        self._in_flight: InFlight[Call] = InFlight()
        self._exchanges: dict[Exchange, None] = {}
        """Those that owe an answer, oldest first."""
        self.had_exchange = False
        """True once something was asked by an exchange: its client knows the session id."""
        self._quiet: asyncio.Event | None = None
        """While draining: set once no call is in flight."""
        self.last_end = float("-inf")
        """When the last one ended."""

    def __len__(self) -> int:
        return len(self._in_flight)

    def exchange(self, requests: int) -> Exchange:
        """A new exchange with so many requests; `take` each of them next."""
        exchange = Exchange(self._workflow, requests)
        self.had_exchange = True
        self._exchanges[exchange] = None
        return exchange

    def exchange_over(self, exchange: Exchange) -> None:
        """An exchange has its last answer."""
        self._exchanges.pop(exchange, None)

    @property
    def newest_exchange(self) -> Exchange | None:
        """The newest exchange on which other messages can still come: one that its client waits for, if any is."""
        newest = [exchange for exchange in reversed(self._exchanges) if not exchange.is_lost]
        return next((exchange for exchange in newest if exchange.is_awaited), newest[0] if newest else None)

    # From the request to its end.

    def take(self, message: Envelope, asker: Asker, headers: Headers, span: Span | None = None) -> PoolResult | None:
        """Take one request of the client; its answer, or why there is none, reaches who asked. `span` hears its end.

        What the pool did for it; None where it was not asked.
        """
        workflow = self._workflow
        if not asker.admit(message.id):
            call_log.end_span(span, "duplicate_id")
            workflow.statistics.count("refused", "duplicate_id")
            asker.add(wire_format.failure(message.id, InvalidRequest("a request with this id is in flight here")))
            return None
        self._stir(workflow)
        call = Call(workflow, asker, message.id, message.method, self._clock(), span)
        self._in_flight.enter(message.id, call)
        if message.method == "ping":
            call.answered(wire_format.result(message.id, Raw(b"{}")), is_error=False)
            return None
        trust = workflow.trust
        if workflow.stateless or trust is not None:
            call.again = (message, headers)
        if trust is not None and message.method == "tools/list":
            call.listing = trust.ask(message)
        return self.carry(call, message, headers)

    def carry(self, call: Call, message: Envelope, headers: Headers) -> PoolResult | None:
        """Hand a call's request to the line; what the pool did. None if it is not taken: the call fails."""
        workflow = self._workflow
        try:
            if workflow.ended is not None:
                raise SessionLost(f"the session ended: {workflow.ended.cause}", executed="no")
            if self._quiet is not None:
                raise SessionLost("the gateway is shutting down", executed="no")
            if len(self._in_flight) > workflow.pooling.max_inflight_per_workflow:
                raise Overloaded("too many calls in flight in this session", limit="max_inflight_per_workflow")
            if message.size > LARGE_BYTES and not call.burden:
                self._burden.take_up(workflow.principal, workflow.server, message.size)
                call.burden = message.size
            done = workflow.line.request(message, call, headers)
        except TrunklineError as error:
            workflow.account.refuse(error)
            call.failed(error)
            return None
        workflow.account.last = done
        workflow.statistics.count("pool_requests", workflow.server, done)
        if done != "hit":
            workflow.account.miss(workflow.line.why, self._clock())
        return done

    def may_repeat(self, message: Envelope, error: SessionLost) -> bool:
        """Whether a call that failed so is sent once more (guarantee G6): it did not run, or may run twice."""
        workflow = self._workflow
        if error.data["executed"] == "no":
            why, may = "not_run", workflow.stateless
        else:
            is_carried = workflow.ended is None and self._quiet is None and workflow.line.is_open
            why, may = "trusted", is_carried and workflow.trust is not None and workflow.trust.allows(message)
        if may:
            workflow.statistics.count("repeated_calls", workflow.server, why)
        return may

    def leave(self, call: Call, outcome: str) -> None:
        """A call has ended."""
        now = self._clock()
        self.last_end = now
        self._in_flight.leave(call.id, call)
        if call.burden:
            self._lay_down(call, outcome)
        if self._quiet is not None and not len(self._in_flight):
            self._quiet.set()
        statistics, server = self._workflow.statistics, self._workflow.server
        statistics.count("calls", server, call.method, outcome)
        statistics.observe("call_seconds", now - call.started, server)

    def _lay_down(self, call: Call, outcome: str) -> None:
        """A large message counts no longer; one that was sent and taken back, once its tombstone is over (see `Demux`).

        Then its exchange is cut. A wire of one stream (stdio, WebSocket) has none: what waits there has its own bound.
        """
        workflow = self._workflow
        lay_down = partial(self._burden.lay_down, workflow.principal, workflow.server, call.burden)
        is_session_shared = workflow.pooling.reuse == "user"  # it goes on where the workflow ends
        is_taken_back = outcome in TAKEN_BACK or (is_session_shared and workflow.ended is not None)
        if call.was_sent and is_taken_back:
            workflow.loop.call_later(TOMBSTONE_SECONDS, lay_down)
        else:
            lay_down()

    # What its client takes back.

    def cancel(self, message: Envelope, via: Duplex | None) -> None:
        """Withdraw the one call that a client's `notifications/cancelled` means, which came on this wire (rule E12)."""
        call, reason = self._in_flight.withdraw(message, lambda call: _is_of(call, via))
        if call is None:
            self._workflow.statistics.count(reason, self._workflow.server)
        else:
            self._workflow.line.cancel(call, message)

    def meant(self, cancelled: Envelope) -> int:
        """How many calls a client's `notifications/cancelled` can mean that came over plain HTTP."""
        return len(self._in_flight.meant(cancelled, lambda call: _is_of(call, None)))

    # Ends, and what outlasts them.

    def drain(self) -> asyncio.Event:
        """Refuse calls from now on; the event is set when those in flight have ended (guarantee G8)."""
        if self._quiet is None:
            self._quiet = asyncio.Event()
            if not len(self._in_flight):
                self._quiet.set()
        return self._quiet

    def trim(self) -> None:
        """Give back what tables once needed: an empty one that was used keeps its room."""
        self._in_flight.trim()
        if not self._exchanges:
            self._exchanges = {}

    def repeat(self) -> None:
        """Note once more what another worker would have to know of them."""
        for exchange in self._exchanges:
            exchange.repeat()


def _is_of(call: Call, via: Duplex | None) -> bool:
    """True where a cancellation that came on this wire can mean this call (rule E12: ids belong to the wire).

    What came over plain HTTP can also mean a call on a wire that lost its connection: its client may have moved.
    """
    asker = call.asker
    return asker is via if via is not None else not (isinstance(asker, Duplex) and asker.is_attached)
