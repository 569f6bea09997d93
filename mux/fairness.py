"""Whose message is taken next when more come than can be taken at once: principals take turns.

Time is cut into rounds. In each, so many messages are taken; where more have come, the rest wait, and in the next round
every principal that waits has one message taken before any has a second one. Who floods waits for itself alone.
"""

from collections import deque
from typing import Final, Generic, TypeVar

from .errors import Overloaded
from .principal import Principal

MESSAGES_PER_ROUND: Final = 16
"""How many messages are taken in one round: more make a newcomer wait longer, fewer make rounds cost more."""

MAX_WAITING: Final = 4096
"""Messages of one principal that wait for their turn."""

T = TypeVar("T")


class Turnstile(Generic[T]):
    """Pure: `begin_round` is called by whoever measures out the rounds, and returns who may go on."""

    def __init__(self, *, per_round: int = MESSAGES_PER_ROUND, max_waiting: int = MAX_WAITING) -> None:
        self._per_round = per_round
        self._max_waiting = max_waiting
        self._left = per_round
        self._rest = 0
        """What a round has left in which some who waited went on."""
        self._waiting: dict[Principal, deque[T]] = {}
        """By principal; whose turn is next comes first."""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __repr__(self) -> str:
        return f"Turnstile({len(self)} of {len(self._waiting)} principals wait)"

    @property
    def is_fresh(self) -> bool:
        """True while nothing was taken in this round, and nobody waits."""
        return self._left == self._per_round

    def pass_at_once(self, *, in_order: bool = False) -> bool:
        """Take a message now. False where it has to wait: this round is used up, or others came before it.

        `in_order` tells that the messages of its wire are taken one after the other, so that it overtakes none.
        """
        if self._left:
            self._left -= 1
            return True
        if in_order and self._rest:
            self._rest -= 1
            return True
        return False

    def wait(self, principal: Principal, waiter: T) -> None:
        """Queue behind the principal's own.

        Raises:
            Overloaded: too many of them wait.
        """
        queue = self._waiting.setdefault(principal, deque())
        if len(queue) >= self._max_waiting:
            raise Overloaded("too many messages of one user wait for their turn", limit="max_waiting")
        queue.append(waiter)

    def begin_round(self) -> list[T]:
        """Who may go on, in order.

        Where anybody does, only what is `in_order` passes at once: what a client sends keeps its order.
        """
        gone: list[T] = []
        while self._waiting and len(gone) < self._per_round:
            principal = next(iter(self._waiting))
            queue = self._waiting.pop(principal)
            gone.append(queue.popleft())
            if queue:
                self._waiting[principal] = queue
        self._left, self._rest = (0, self._per_round - len(gone)) if gone else (self._per_round, 0)
        return gone

    def withdraw(self, principal: Principal, waiter: T) -> None:
        """Its client has gone; nothing where it does not wait."""
        queue = self._waiting.get(principal)
        if queue is not None and waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._waiting[principal]
