"""The server's side of one HTTP/1.1 connection: one exchange at a time, in order; bounds on how long anything takes.

A request that comes whole and that somebody takes at once costs no task, and an answer of known length one packet.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from ..transports.asgi import ASGIApp
from ..transports.patience import Waiting
from .http_exchange import HTTPExchange
from .request_reader import MAX_READ, ChangeAsked, HeadTooLong, NotHTTP, RequestReader

if TYPE_CHECKING:
    from .http_listening import HTTPListening

logger = logging.getLogger(__name__)

HEAD_SECONDS: Final = 30.0
"""How long a head may take, from the connection or its own first byte on; nobody is authenticated before."""

BODY_SECONDS: Final = 65.0
"""How long a body may take. Who reads it refuses it sooner, but for one of which nothing comes: that is cut."""

IDLE_SECONDS: Final = 75.0
"""How long a connection is kept between two requests: longer than clients keep theirs, so that they end it."""

LAST_SECONDS: Final = 1.0
"""How long a request has to come whose client could not know that the server ends: from when it could be sent on."""

MAX_STEPS: Final = 16
"""Requests that are told of, and pieces that are read, in a turn of the event loop: others have their turn, too."""

TAKE_SECONDS: Final = 65.0
"""How long an answer may stay untaken. Who gives one that comes in parts gives up sooner."""

FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

REFUSED: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: 30\r\n\r\nInvalid HTTP request received."
)

ASGI: Final = {"version": "3.0", "spec_version": "2.3"}

Overdue = Literal["slow_head", "slow_body", "idle", "untaken"]

UNASKED: Final[Mapping[Overdue | None, float]] = {
    "idle": IDLE_SECONDS,
    "slow_head": HEAD_SECONDS,
    "slow_body": BODY_SECONDS,
}
"""How long is waited for what a client has to send before there is something to do for it."""


class HTTPConnection(asyncio.Protocol):
    """One connection. Implements `Carrier`."""

    __slots__ = (
        "_active",
        "_drained",
        "_hold",
        "_is_broken",
        "_is_going_on",
        "_is_reading",
        "_is_resting",
        "_listening",
        "_reader",
        "_waits_behind",
        "_waits_for",
        "answer_heads",
        "due",
        "has_left",
        "is_leaving",
        "is_lost",
        "is_write_paused",
        "transport",
    )

    def __init__(self, listening: HTTPListening) -> None:
        self._listening = listening
        self.answer_heads = listening.answer_heads
        self.transport: asyncio.Transport
        self._reader: RequestReader
        self.is_lost = False
        self.has_left = False
        self.is_leaving = listening.is_ending
        self.is_write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self.due = inf
        """When it is ended, in the event loop's time, unless it goes on before."""
        self._waits_for: Overdue | None = None
        self._waits_behind = 0
        """How many heads had been read when a wait for a head or a body began: behind another, it begins anew."""
        self._is_reading = True
        self._is_broken = False
        """True once something came that is no HTTP: nothing more is read."""
        self._hold: Waiting | None = None
        """While the small body of the only one that came since is waited for."""
        self._active: HTTPExchange | None = None
        """The one that is being answered."""
        self._is_going_on = False
        self._is_resting = False
        """Until the next turn of the event loop, since so much came at once."""

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See the base class."""
        self.transport = transport = cast("asyncio.Transport", transport)
        common = {
            "type": "http",
            "asgi": ASGI,
            "scheme": "http" if transport.get_extra_info("sslcontext") is None else "https",
            "root_path": self._listening.config.root_path,
            "client": _address(transport.get_extra_info("peername")),
        }
        self._reader = RequestReader(self, common, self._listening.known_heads)
        if not self._listening.add(self):
            self._listening.statistics.count("refused", "connections")
            transport.write(FULL)
            transport.close()
        self._wait_for("slow_head", HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """See the base class."""
        self.is_lost = True
        self._listening.remove(self)
        self.resume_writing()
        exchanges = self._reader.queue if self._active is None else [self._active, *self._reader.queue]
        self._active = None
        self._reader.close()
        for exchange in exchanges:
            exchange.lost()
        if self._hold is not None:
            self._hold.cancel()

    def data_received(self, data: bytes) -> None:
        """See the base class."""
        if not self._is_broken and not self.transport.is_closing():
            self._reader.receive(data)
            self._go_on()

    def eof_received(self) -> bool:
        """The client sends nothing more: it has gone, or waits for answers behind its half of the connection.

        Nothing tells which, so that it is heard where the answer that is next has not begun and nobody would be told of
        its leaving.
        """
        reader = self._reader
        waiting = reader.queue if self._active is None else [self._active, *reader.queue]
        is_due = bool(waiting) and waiting[0].is_whole and not waiting[0].is_watched and not self._is_broken
        if not is_due or self.transport.get_extra_info("sslcontext") is not None:
            return False
        if not reader.unread:
            waiting[-1].is_kept = False
        self.has_left = True
        return True

    def pause_writing(self) -> None:
        """See the base class."""
        self.is_write_paused = True
        self._wait_for("untaken", TAKE_SECONDS)

    def resume_writing(self) -> None:
        """See the base class."""
        self.is_write_paused = False
        self._listening.took(self)
        if self._waits_for == "untaken" and not self.transport.is_closing():
            self.due, self._waits_for = inf, None
            self.settle()
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    # uvicorn

    def shutdown(self) -> None:
        """The server ends: so does the connection, once it has waited for `LAST_SECONDS`, or an answer was its last."""
        self.is_leaving = True
        if self.transport.is_closing():
            return
        rest = self.waits_since + LAST_SECONDS - self._listening.loop.time()
        if rest > 0:
            self._listening.loop.call_later(min(rest, LAST_SECONDS), self.shutdown)
        else:
            self.transport.close()

    # Carrier

    @property
    def app(self) -> ASGIApp:
        """See `Carrier.app`."""
        return cast("ASGIApp", self._listening.config.loaded_app)

    async def drained(self) -> None:
        """See `Carrier.drained`."""
        while self.is_write_paused:
            if self._drained is None:
                self._drained = self._listening.loop.create_future()
            await asyncio.shield(self._drained)

    def is_over(self, exchange: HTTPExchange) -> None:
        """See `Carrier.is_over`."""
        if self._active is exchange:
            self._active = None
            self._go_on()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """See `Carrier.begin`."""
        self._listening.begin(work)

    # Which request is answered, and what is waited for.

    def _go_on(self) -> None:
        """Have the next request answered, once the one before is, and read on: many may come without waiting."""
        if self._is_going_on or self._is_resting:
            return
        self._is_going_on, steps = True, 0
        try:
            reader = self._reader
            while not self.transport.is_closing():
                queue = reader.queue
                is_due = self._active is None and queue and (queue[0].is_whole or not self._holds())
                if not is_due and not (reader.unread and (not queue or self._hold is not None)):
                    break
                if steps == MAX_STEPS:
                    self._is_resting = True
                    self._listening.loop.call_soon(self._next_turn)
                    break
                steps += 1
                if is_due:
                    self._tell(queue.pop(0))
                else:
                    self._read(reader)
        finally:
            self._is_going_on = False
        self.settle()

    def _next_turn(self) -> None:
        self._is_resting = False
        if not self.is_lost:
            self._go_on()

    def _holds(self) -> bool:
        """Whether nobody is told of a request yet, since its small body is waited for."""
        if self._is_broken:
            return False
        if self._hold is None:
            if not self._reader.has_small_body:
                return False
            self._hold = self._listening.hold.begin(self._listening.loop, self._end_hold)
        return not self._hold.is_called_off

    def _end_hold(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._go_on()

    def _tell(self, exchange: HTTPExchange) -> None:
        """Have a request answered."""
        self._active = exchange
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if not self._take(exchange):
            exchange.decline()

    def _read(self, reader: RequestReader) -> None:
        """Read some of what came."""
        try:
            reader.read()
        except NotHTTP:
            self._break()
        except HeadTooLong:
            self.cut("head")
        except ChangeAsked as asked:
            is_free = self._active is None and not reader.queue and not self.is_write_paused and not self.has_left
            if asked.protocol == b"websocket" and is_free:
                self._become_websocket()
            else:
                reader.without_wish()

    def settle(self) -> None:
        """See `Carrier.settle`: read on or not, and wait for what is due next."""
        reader, active = self._reader, self._active
        newest = reader.newest
        if active is None and not reader.queue and not reader.unread:
            if self._is_broken:
                self._refuse()
            elif self.has_left:
                self.transport.close()
        if self.transport.is_closing():
            self._wait_for("untaken", TAKE_SECONDS)
            return
        is_ahead = reader.queue and self._hold is None and len(reader.unread) >= MAX_READ
        reads = not self._is_resting and not is_ahead  # who reads is told when its client leaves
        if newest is not None and not newest.is_whole and newest.is_full:
            reads = False
        if reads != self._is_reading and not self.has_left:
            self._is_reading = reads
            if reads:
                if self._waits_for != "untaken":
                    self._waits_for = None  # it could not come
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()
        if self.is_write_paused:
            self._wait_for("untaken", TAKE_SECONDS)  # whatever it asks meanwhile
        elif active is not None and active.is_whole:
            self.due, self._waits_for = inf, None
        elif reader.is_in_head:
            self._wait_for("slow_head", HEAD_SECONDS)
        elif newest is not None and not newest.is_whole:
            self._wait_for("slow_body", BODY_SECONDS)
        elif newest is not None:
            reader.newest = self._waits_for = None
            self._wait_for("idle", IDLE_SECONDS)

    def _take(self, exchange: HTTPExchange) -> bool:
        """Have a request answered without a task, where that can be."""
        if not exchange.is_whole or self.is_write_paused:
            return False
        try:
            return self._listening.at_once(exchange)
        except Exception:
            logger.exception("a request failed")
            exchange.fail()
            return True

    def _wait_for(self, what: Overdue, seconds: float) -> None:
        behind = self._reader.heads if what in ("slow_head", "slow_body") else 0
        if self._waits_for != what or self._waits_behind != behind:
            self._waits_for, self._waits_behind = what, behind
            self.due = self._listening.loop.time() + seconds

    def end_overdue(self) -> None:
        """What was waited for did not come in time, or is not taken."""
        waited_for, self.due = self._waits_for, inf
        if self.transport.is_closing() or (waited_for == "idle" and self.transport.get_write_buffer_size()):
            waited_for = "untaken"
        if not self._is_reading and waited_for != "untaken":
            return  # it could not come
        if waited_for == "idle":
            self.transport.close()
        elif waited_for is not None:
            self.cut(waited_for)

    @property
    def untaken(self) -> int:
        """How much of its answers the client has not taken, in bytes."""
        return self.transport.get_write_buffer_size()

    @property
    def unfinished(self) -> int:
        """How much of a head has come that has not come to its end, in bytes."""
        return 0 if self.is_lost else self._reader.unfinished

    @property
    def waits_since(self) -> float:
        """Since when it waits for its client, and nothing is done for that; infinite while something is."""
        reader, patience = self._reader, UNASKED.get(self._waits_for)
        is_busy = self._active is not None or reader.queue or reader.unread or self.transport.get_write_buffer_size()
        return inf if patience is None or is_busy or self.transport.is_closing() else self.due - patience

    def cut(self, why: str) -> None:
        """End it at once, and count why."""
        self._listening.statistics.count("refused", why)
        self.transport.abort()

    def _break(self) -> None:
        """What came is no HTTP. Who asked before is answered first."""
        self._is_broken = True
        self._listening.statistics.count("refused", "not_http")
        unfinished = self._reader.abandon()
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if unfinished is None:
            return
        if unfinished is not self._active:  # it has its answer
            self.transport.close()
        else:
            self._active = None
            self.is_lost = True  # to the one who reads it, and would answer
            unfinished.lost()
            if unfinished.has_begun:
                self.transport.close()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            logger.info("a client sent what is no HTTP request")
            self.transport.write(REFUSED)
            self.transport.close()

    def _become_websocket(self) -> None:
        """Leave the connection to who speaks WebSocket, and the request with it."""
        listening, (head, behind) = self._listening, self._reader.with_wish()
        listening.remove(self)
        self.due = inf
        protocol = cast("Any", listening.config.ws_protocol_class)(
            config=listening.config, server_state=listening.state, app_state={}
        )
        protocol.connection_made(self.transport)
        protocol.data_received(head)
        if self.transport.is_closing():  # nothing but a refusal was said so far
            listening.statistics.count("refused", "upgrade")
        elif behind:
            protocol.data_received(behind)
        self.transport.set_protocol(protocol)
        self._reader.close()


def _address(info: Any) -> tuple[str, int] | None:
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) else None
