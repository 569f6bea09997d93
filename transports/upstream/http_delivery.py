"""Messages that a server answers with a status alone: each is a POST, sent once, in bounded time and number."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ...mux.errors import UpstreamFault, UpstreamUnreachable
from ...mux.limits import MIB
from ..media import STREAM_TYPE, content_type
from .answers import ERROR_BODY_BYTES, Body, nothing
from .http import Answer, ExchangeBroken, Headers
from .http_call import failure_of

DELIVER_SECONDS: Final = 30.0
"""How long a server may take to acknowledge a notification, the wait for its turn included."""

MAX_DELIVERIES: Final = 256
"""Messages without an answer that a server has not taken yet, for each session; more are dropped and counted."""

MAX_DELIVERY_BYTES: Final = 16 * MIB
"""What they may take together."""

MAX_AT_ONCE: Final = 16
"""So many of them are on their way, each on a connection of its own; the others wait for their turn."""

Send = Callable[[Answer], Callable[[], None]]
"""Puts a message on its way, and returns what cuts its exchange."""


class Receipt:
    """The answer to what needs none but its status. Implements `Answer`."""

    def __init__(self) -> None:
        self._status = 0
        self._body = Body(ERROR_BODY_BYTES)
        self.cut: Callable[[], None] = nothing
        self.is_sent = False
        """True once its message is on its way, where that has its turn."""
        self.over: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Done with the status, or fails with `ExchangeBroken`."""

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`. A stream of events, as some servers answer whatever it was, may have no end."""
        self._status = status
        if content_type(headers) == STREAM_TYPE:
            self._finish(None)
            self.cut()

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`. A body that nobody needs is read so far that the connection can be used again."""
        try:
            self._body.add(chunk)
        except UpstreamFault:
            self._finish(None)
            self.cut()

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`. Once there is a status, it makes no difference whether its body broke."""
        self._finish(None if self._status else error)

    def late(self) -> None:
        """Wait no longer: what its server has may have arrived, and what waits for its turn is not sent."""
        if self.is_sent:
            self.over.cancel()
        else:
            self._finish(ExchangeBroken("its turn did not come in time", sent=False))

    def let_go(self) -> None:
        """Cut the exchange if it is not over, and refer to it no longer: it refers to this."""
        cut, self.cut = self.cut, nothing
        cut()

    def _finish(self, error: ExchangeBroken | None) -> None:
        if self.over.done():
            return
        if error is None:
            self.over.set_result(self._status)
        else:
            self.over.set_exception(error)
            self.over.exception()  # nobody may be waiting any longer


class Deliveries:
    """What is on its way to one server, for one session."""

    __slots__ = ("_receipts", "_under_way", "_waiting")

    def __init__(self) -> None:
        self._receipts: dict[Receipt, int] = {}
        """Each with the size of its message."""
        self._waiting: list[tuple[Receipt, Send]] = []
        """Those whose turn has not come. A deque takes ten times the room while there are none."""
        self._under_way = 0

    def __len__(self) -> int:
        return len(self._receipts)

    def put(self, size: int, send: Send, over: Callable[[asyncio.Future[int]], None]) -> bool:
        """Send one message in its turn, never twice: it may have arrived. False where too much waits: it is not sent.

        `over` is given the status, or `ExchangeBroken`, as where its turn did not come in time; cancelled where the
        server took too long, or all were cut.
        """
        sizes = self._receipts.values()
        if len(sizes) >= MAX_DELIVERIES or sum(sizes) + size > MAX_DELIVERY_BYTES:
            return False  # a server that asks faster than it takes answers
        receipt = Receipt()
        self._receipts[receipt] = size
        patience = asyncio.get_running_loop().call_later(DELIVER_SECONDS, receipt.late)

        def delivered(status: asyncio.Future[int]) -> None:
            patience.cancel()
            receipt.let_go()
            self._receipts.pop(receipt, None)
            over(status)
            self._leave(receipt)

        receipt.over.add_done_callback(delivered)
        self._waiting.append((receipt, send))
        self._send_next()
        return True

    def cut(self) -> None:
        """Wait for none of them any longer."""
        self._waiting.clear()
        for receipt in self._receipts:
            receipt.over.cancel()

    def _send_next(self) -> None:
        while self._waiting and self._under_way < MAX_AT_ONCE:
            receipt, send = self._waiting.pop(0)
            if not receipt.over.done():
                self._under_way += 1
                receipt.is_sent = True
                receipt.cut = send(receipt)

    def _leave(self, receipt: Receipt) -> None:
        self._under_way -= receipt.is_sent
        self._send_next()


async def acknowledged(send: Send) -> int:
    """Send a message, and wait for the status that answers it.

    Raises:
        TrunklineError: none came, and whether the message may have arrived.
    """
    receipt = Receipt()
    receipt.cut = send(receipt)
    try:
        return await receipt.over
    except ExchangeBroken as error:
        raise failure_of(error) from error
    finally:
        receipt.let_go()


async def announce(send: Send) -> None:
    """Send `notifications/initialized`, and wait until the server has taken it.

    Raises:
        TrunklineError: it does not take it.
    """
    status = await acknowledged(send)
    if status >= 300:
        raise UpstreamUnreachable(
            f"the server answered notifications/initialized with HTTP {status}", status=status, executed="no"
        )
