"""What clients pass on their way in, whatever the server and the transport: a turn for each message, room to connect.

One of these is shared by all servers of a gateway, so that what one principal does anywhere is weighed as a whole.
"""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final

from ..mux.errors import Overloaded
from ..mux.fairness import Turnstile
from ..mux.policy import Caps, Census, cap_reached
from ..mux.principal import Principal

logger = logging.getLogger(__name__)

CONNECTIONS_PER_WORKFLOW: Final = 2
"""Streams and sockets for each workflow that there may be: one that goes may be noticed after one that comes."""


GoOn = Callable[[], None]
"""Takes a message whose turn has come."""


class Admission:
    """Turns for messages, where a round is a turn of the event loop; and places for connections that stay."""

    def __init__(self, turnstile: Turnstile[GoOn] | None = None) -> None:
        self._turnstile = Turnstile() if turnstile is None else turnstile
        self._is_round_due = False
        self._loop: asyncio.AbstractEventLoop | None = None
        """The one that it lives on, once it is known."""
        self._connections = Census()

    @property
    def connections(self) -> int:
        """Connections that are open."""
        return self._connections.total

    @property
    def waiting(self) -> int:
        """Messages that wait for their turn."""
        return len(self._turnstile)

    def pass_at_once(self, *, in_order: bool = False) -> bool:
        """Take a message without waiting. False where it has to `wait`: more have come than one round takes.

        `in_order` as in `Turnstile.pass_at_once`.
        """
        if not self._is_round_due:
            self._await_round()
        return self._turnstile.pass_at_once(in_order=in_order)

    async def wait(self, principal: Principal) -> None:
        """Return when it is this principal's turn.

        Raises:
            Overloaded: too many messages of it wait.
        """
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        go_on = partial(_has_come, turn)
        self.queue(principal, go_on)
        try:
            await turn
        except asyncio.CancelledError:
            self.withdraw(principal, go_on)
            raise

    def queue(self, principal: Principal, go_on: GoOn) -> None:
        """Call this when it is this principal's turn; `withdraw` it where nobody waits for that any longer.

        Raises:
            Overloaded: too many messages of it wait.
        """
        self._turnstile.wait(principal, go_on)
        if not self._is_round_due:
            self._await_round()

    def withdraw(self, principal: Principal, go_on: GoOn) -> None:
        """It waits no longer. Does nothing where its turn has come."""
        self._turnstile.withdraw(principal, go_on)

    @contextmanager
    def place(self, principal: Principal, server: str, caps: Caps) -> Iterator[None]:
        """Hold a place while this is entered. Raises as `take_place`."""
        self.take_place(principal, server, caps)
        try:
            yield
        finally:
            self.give_up_place(principal, server)

    def take_place(self, principal: Principal, server: str, caps: Caps) -> None:
        """Take a place for a stream or a socket: of one user and tenant, and in all, twice as many as workflows.

        Raises:
            Overloaded: there is none; `limit` names the cap that it follows from.
        """
        cap = cap_reached(self._connections, principal, server, caps, times=CONNECTIONS_PER_WORKFLOW)
        if cap is not None:
            raise Overloaded("too many connections are open", limit=cap.limit)
        self._connections.add(principal, server)

    def give_up_place(self, principal: Principal, server: str) -> None:
        """Somebody else may have it."""
        self._connections.remove(principal, server)

    def _await_round(self) -> None:
        self._is_round_due = True
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._loop.call_soon(self._begin_round)

    def _begin_round(self) -> None:
        self._is_round_due = False
        for go_on in self._turnstile.begin_round():
            try:
                go_on()
            except Exception:
                logger.exception("a message whose turn had come could not be taken")
        if not self._turnstile.is_fresh:
            self._await_round()


def _has_come(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)
