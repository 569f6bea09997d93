"""WebSocket for clients: subprotocol `mcp`, one JSON-RPC message a text frame, both ways (rules W1-W4).

A socket that is cut can be taken up: the client says how many messages it received on it, or what it acknowledged
counts, by the pong that answers a ping sent after a message. Its calls go on meanwhile.
"""

import asyncio
import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from math import inf
from typing import Final, Protocol

import anyio

from ..mux.burden import LARGE_BYTES
from ..mux.errors import Elsewhere, Overloaded
from ..mux.limits import MAX_BODY_BYTES
from ..mux.principal import Principal
from ..mux.record import WorkflowState
from .asgi import (
    BODY_SECONDS,
    GRANT,
    IDENTITY_ENDED,
    SEND_SECONDS,
    UNBOUND,
    Receive,
    RequestHeaders,
    Scope,
    Send,
    headers_of,
)
from .endpoint import EndpointConfig, looking, picked
from .headers import asked, naming
from .link import Link
from .outgoing import Due
from .socket_events import COMING, EventsWire
from .status import Answer, HTTPRefusal, answer_to

logger = logging.getLogger(__name__)

SUBPROTOCOL: Final = "mcp"

PING: Final = "trunkline.ping"
"""The ASGI extension by which the server lends its pings: a coroutine function that returns when the pong came."""

WIRE: Final = "trunkline.wire"
"""The ASGI extension by which the server lends the connection, a `LentWire`: without an event for each message."""

NORMAL, GOING_AWAY, BINARY, POLICY, TOO_BIG, INTERNAL, TRY_AGAIN = 1000, 1001, 1003, 1008, 1009, 1011, 1013
SESSION_ENDED: Final = 4404
"""The workflow is gone: begin anew with `initialize`. The reason is a fixed word."""
TAKEN_OVER: Final = 4409
"""A newer connection goes on with this wire."""
SLOW: Final = 4408
EXPIRED: Final = 4401
"""The identity of the upgrade has expired, or was revoked: come back with a fresh one."""

_CODES: Final = {
    "taken_over": TAKEN_OVER,
    "drained": GOING_AWAY,
    "overloaded": TRY_AGAIN,
    "no_handshake": POLICY,
}

ENDED: Final = EXPIRED, "the identity has ended"

PINGS_APART: Final = 0.02
"""Seconds from a pong to the next ping: many messages are acknowledged together."""

WRITE_BYTES: Final = 65_536
"""Messages that are due at once are written together, up to this size."""


class WebSocketEndpoint:
    """The ASGI application of one server's `/ws`."""

    def __init__(self, config: EndpointConfig) -> None:
        self._config = config
        self._statistics = config.pool.statistics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        await receive()  # websocket.connect
        with ExitStack() as held:
            await self._serve(scope, receive, send, held)

    async def _serve(self, scope: Scope, receive: Receive, send: Send, held: ExitStack) -> None:
        headers = headers_of(scope)
        extensions = scope.get("extensions", {})
        try:
            principal = self._admit(scope, headers)
            self._config.admission.take_place(principal, self._config.server, self._config.pool.caps)
            held.callback(self._config.admission.give_up_place, principal, self._config.server)
            link = Link(self._config, principal, "websocket", pings=PING in extensions or WIRE in extensions)
            async with looking(self._config.pool, scope):
                state = await link.open(asked(headers, scope.get("query_string", b"")))
        except Elsewhere as elsewhere:
            elsewhere.identity = principal, headers.expires
            scope[GRANT] = headers.grant
            raise
        except Exception as error:
            await self._refuse(send, scope, error)
            return
        lent: LentWire | None = extensions.get(WIRE)
        try:
            await send(_accept(link, state))
        except BaseException:
            link.close()
            raise
        held.pop_all()  # the place is the socket's
        if lent is not None:
            lent.take_over(Socket(link, lent, headers, self._config))
        else:
            wire = EventsWire(receive, send, extensions.get(PING), SEND_SECONDS)
            await wire.run(Socket(link, wire, headers, self._config))

    def _admit(self, scope: Scope, headers: Mapping[str, str]) -> Principal:
        self._config.guard.check(headers)
        principal = self._config.authenticate(headers)
        if SUBPROTOCOL not in scope.get("subprotocols", ()):
            raise HTTPRefusal(400, "subprotocol", "Sec-WebSocket-Protocol must list mcp")
        return principal

    async def _refuse(self, send: Send, scope: Scope, error: Exception) -> None:
        answer = answer_to(error)
        if answer.refused:
            self._statistics.count("refused", answer.refused)
        if answer.status == 500:
            logger.exception("an upgrade failed", extra={"server": self._config.server})
        await deny(scope, send, answer)


async def not_found(scope: Scope, receive: Receive, send: Send) -> None:
    """The ASGI application of a path where no socket is served."""
    await receive()  # websocket.connect
    await deny(scope, send, answer_to(HTTPRefusal(404, "path", "no MCP server is served at this path")))


class Wire(Protocol):
    """The server's side of one connection, as its `Socket` sees it. Nothing here waits."""

    lends_pings: bool
    is_paused: bool
    """True while the client has not taken what was written; `Socket.drained` tells when it has."""

    def write(self, messages: Sequence[bytes], ping: bytes = b"") -> None:
        """Send each in a frame, and a ping with this payload behind them; dropped where the connection is gone."""

    def pause_reading(self) -> None:
        """Let what the client sends wait."""

    def resume_reading(self) -> None:
        """Go on."""

    def close(self, code: int, reason: str) -> None:
        """Close it, in bounded time; nothing more is told. Nothing where it is gone."""


class LentWire(Wire, Protocol):
    """A wire that a server lends: it goes on when the application has returned."""

    def take_over(self, socket: "Socket") -> None:
        """Tell this one what happens from here on, and nobody else."""


class Socket:
    """One connection: what comes is taken, what is due is written, until one side ends it. Told by its `Wire`.

    It has a place of its principal, and gives it up at its end. A large message counts to the pool's `Burden` while it
    comes, and while it waits to be taken.
    """

    __slots__ = (
        "_burdens",
        "_count_refused",
        "_deadline",
        "_expires",
        "_expiry",
        "_give_up_place",
        "_grant",
        "_headers",
        "_is_flush_due",
        "_is_over",
        "_late",
        "_link",
        "_loop",
        "_ping",
        "_pinged",
        "_rest",
        "_said_goodbye",
        "_sent",
        "_server",
        "_slow",
        "_taking",
        "_unwritten",
        "_waiting",
        "_waits",
        "_watch",
        "_wire",
        "_work",
        "_work_scope",
        "burden",
    )

    def __init__(self, link: Link, wire: Wire, headers: RequestHeaders, config: EndpointConfig) -> None:
        self._link = link
        self._wire = wire
        self._headers = picked(headers, (*config.forward_headers, *config.session_headers))
        """Those of the upgrade that go on to the server."""
        self._expires = headers.expires
        self._grant = headers.grant
        self._watch: AbstractContextManager[None] | None = None
        self._count_refused = partial(config.pool.statistics.count, "refused")
        self._give_up_place = partial(config.admission.give_up_place, link.principal, config.server)
        self._burdens = config.pool.burden
        self._server = config.server
        self.burden = 0
        """What a large message that is not complete has of the pool's `Burden`, in bytes."""
        self._late: asyncio.TimerHandle | None = None
        """Of its end."""
        self._loop = asyncio.get_running_loop()
        self._waiting: list[bytes] | None = None
        """What came behind a message that has to wait; None while none has to."""
        self._waits = 0
        """What large messages among them, and the one that has to wait, have of the pool's `Burden`."""
        self._taking = 0
        """What the one that is being taken has of that."""
        self._work: asyncio.Task[None] | None = None
        self._work_scope: anyio.CancelScope | None = None
        self._unwritten: list[Due] = []
        """What is due to a client that takes nothing."""
        self._is_flush_due = False
        self._sent = 0
        """Position of the newest message that was written."""
        self._pinged = -1
        """What the pong that is waited for will acknowledge."""
        self._ping = b""
        """The payload of that one."""
        self._rest: asyncio.TimerHandle | None = None
        """Of the time until the next ping."""
        self._is_over = False
        self._said_goodbye = False
        """True once the client has closed it in order."""
        self._slow: asyncio.TimerHandle | None = None
        self._deadline = self._loop.call_at(link.deadline, self._flush)
        self._expiry: asyncio.TimerHandle | None = None

    def begin(self) -> None:
        """The connection is open."""
        if self._expires < inf:
            self._expiry = self._loop.call_later(self._expires - time.time(), self._withdraw)
        if self._grant is not UNBOUND:
            self._watch = self._grant.watched(self._withdraw)
            self._watch.__enter__()
            if self._is_over:  # it was withdrawn before
                return
        self._link.outgoing.on_change = self._change
        if self._wire.lends_pings and not self._link.is_met:
            self._send_ping([])
        self._change()

    # What the wire tells.

    def came(self, text: bytes) -> None:
        """A message of the client."""
        if self._is_over:
            return
        if len(text) > MAX_BODY_BYTES:
            self._refuse("body", TOO_BIG, f"a message may have {MAX_BODY_BYTES} bytes")
        elif self._waiting is not None:
            self._wait(text, self._waiting)
        elif not self._link.take_at_once(text, self._headers):
            self._waiting = []
            self._wait(text, self._waiting)
            if self._is_over:  # there was no room for it: only the client's close is still to be read
                return
            self._wire.pause_reading()
            self._work = self._loop.create_task(self._take_waiting(self._waiting))

    def comes(self, size: int) -> None:
        """So much has come of a large message that is not complete; 0 once it is."""
        if self._is_over or (size > self.burden and not self._take_up(size - self.burden)):
            return
        if size < self.burden:
            self._lay_down(self.burden - size)
        self.burden = size
        if not size and self._late is not None:
            self._late.cancel()
            self._late = None
        elif size and self._late is None:
            self._late = self._loop.call_later(BODY_SECONDS, self._lose_patience)

    def came_binary(self) -> None:
        """A message that is no text."""
        self._refuse("frame", BINARY, "text frames only")

    def broke_off(self, code: int) -> None:
        """The client sent what is not legal or too long, and was told so by this code; it is treated as gone."""
        self._refuse("body" if code == TOO_BIG else "frame", code, "")

    def ponged(self, payload: bytes) -> None:
        """A pong of the client."""
        if self._is_over or not self._ping or payload != self._ping:
            return
        self._ping = b""
        self._link.meet()
        self._link.acknowledge(self._pinged)
        self._rest = self._loop.call_later(PINGS_APART, self._end_rest)

    def drained(self) -> None:
        """The client has taken what was written."""
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None
        if not self._is_over:
            self._flush()

    def run_out(self) -> None:
        """The client has taken nothing for too long."""
        if not self._is_over:
            self._link.run_out()
        self.finish(SLOW, "nothing was read for too long")

    def gone(self, code: int = 0) -> None:
        """The client has gone, and closed it with this code where it did so in order."""
        self._said_goodbye = code in (NORMAL, GOING_AWAY)
        self.finish(NORMAL, "")

    def finish(self, code: int, reason: str) -> None:
        """End it. Idempotent."""
        if self._is_over:
            return
        self._is_over = True
        for timer in (self._slow, self._deadline, self._expiry, self._rest, self._late):
            if timer is not None:
                timer.cancel()
        self._unwritten.clear()
        if self._work is None or self._work.done():
            self._leave()
        else:
            self._work.add_done_callback(lambda _: self._leave())
            if self._work_scope is not None:
                self._work_scope.cancel()
        self._wire.close(code, reason)

    # Inside.

    def _wait(self, text: bytes, waiting: list[bytes]) -> None:
        if len(text) > LARGE_BYTES and self._take_up(len(text)):
            self._waits += len(text)
        waiting.append(text)

    def _withdraw(self) -> None:
        self._refuse(IDENTITY_ENDED, *ENDED)

    def _lose_patience(self) -> None:
        self._refuse("slow_body", POLICY, "the message took too long to come")

    def _take_up(self, size: int) -> bool:
        """False where that is too much: then the connection is over."""
        try:
            self._burdens.take_up(self._link.principal, self._server, size)
        except Overloaded as error:
            self._refuse(error.word, TRY_AGAIN, f"{error.limit}: {error.message}")
            return False
        return True

    def _lay_down(self, size: int) -> None:
        self._burdens.lay_down(self._link.principal, self._server, size)

    def _refuse(self, word: str, code: int, reason: str) -> None:
        if not self._is_over:
            self._count_refused(word)
        self.finish(code, reason)

    def _leave(self) -> None:
        self._link.close(goodbye=self._said_goodbye)
        self._give_up_place()
        self._lay_down(self.burden + self._waits)
        self._waiting = None
        if self._watch is not None:
            # Not at once: it may be withdrawn just as it is entered.
            self._loop.call_soon(self._watch.__exit__, None, None, None)

    async def _take_waiting(self, waiting: list[bytes]) -> None:
        """Take, one after the other, a message that has to wait for something and what came behind it."""
        try:
            with anyio.CancelScope() as self._work_scope:
                if self._is_over:
                    return
                while waiting:
                    text = waiting.pop(0)
                    self._taking = len(text) if len(text) > LARGE_BYTES else 0
                    await self._link.take(text, self._headers, self._taken)
                    self._taken()
                self._waiting = None
                self._wire.resume_reading()
        except Exception:
            logger.exception("a message could not be taken")
            self._loop.call_soon(self.finish, INTERNAL, "internal error")

    def _taken(self) -> None:
        """The message that is being taken does not wait any longer. Idempotent."""
        self._lay_down(self._taking)
        self._waits -= self._taking
        self._taking = 0

    def _change(self) -> None:
        """Something may be due: it is written once for all that happens within one turn of the loop."""
        if not self._is_flush_due and not self._is_over:
            self._is_flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_due = False
        while not self._is_over:
            if not self._unwritten:
                due = self._link.due()
                if due is None:
                    self.finish(_CODES.get(self._link.end_reason, SESSION_ENDED), self._link.end_reason)
                    return
                if not due:
                    return
                self._unwritten = due
            if self._wire.is_paused:
                if self._slow is None:
                    self._slow = self._loop.call_later(SEND_SECONDS, self.run_out)
                return
            self._write()

    def _write(self) -> None:
        """Write some of what is due, with a ping behind it: its pong says that the client has it."""
        messages, taken, size = [], 0, 0
        for one in self._unwritten:
            taken += 1
            if one.position > self._sent:
                self._sent = one.position
            if one.message:  # an event that only primes a stream has none
                messages.append(one.message)
                size += len(one.message)
                if size >= WRITE_BYTES:
                    break
        del self._unwritten[:taken]
        if self._wire.lends_pings and not self._ping and self._rest is None and self._sent > self._pinged:
            self._send_ping(messages)
        elif messages:
            self._wire.write(messages)

    def _end_rest(self) -> None:
        self._rest = None
        if self._sent > self._pinged:
            self._send_ping([])

    def _send_ping(self, messages: list[bytes]) -> None:
        self._ping, self._pinged = os.urandom(8), self._sent
        self._wire.write(messages, self._ping)


def _accept(link: Link, state: WorkflowState | None) -> dict[str, object]:
    headers = naming(link.session_id, state)
    return {"type": "websocket.accept", "subprotocol": SUBPROTOCOL, "headers": headers, COMING: True}


async def deny(scope: Scope, send: Send, answer: Answer) -> None:
    """Answer the upgrade with a status; where the server cannot, with a close that the client sees as 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": POLICY})
        return
    status = 503 if answer.status == 200 else answer.status  # what fails in a session is said in it, and here is none
    head = {"type": "websocket.http.response.start", "status": status, "headers": answer.headers}
    await send(head)
    await send({"type": "websocket.http.response.body", "body": answer.body})
