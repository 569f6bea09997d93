"""How often and how long one tries again: ever later, never in step with others, and not for ever. Pure."""

import random
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.1
LAST_SECONDS: Final = 10.0


class Retries:
    """The tries between one success and the next: at most `attempts` of them, in at most `seconds`.

    Raises:
        ValueError: one of the two is negative.
    """

    def __init__(self, attempts: int, seconds: float, draw: Callable[[], float] = random.random) -> None:
        if attempts < 0 or seconds < 0:
            raise ValueError("attempts and seconds must not be negative")
        self._attempts = attempts
        self._seconds = seconds
        self._draw = draw
        self.made = 0
        """Tries since the last success."""
        self._until: float | None = None

    def next(self, now: float, at_least: float = 0.0) -> float | None:
        """Seconds to wait before the next try; None where there is none left.

        The wait doubles with each try and is drawn from its upper half, so that the clients of a server that comes
        back do not all come at once. It is `at_least` as long as the server asked for.
        """
        if self._until is None:
            self._until = now + self._seconds
        full = min(FIRST_SECONDS * 2.0 ** min(self.made, 16), LAST_SECONDS)
        wait = max(full * (0.5 + 0.5 * self._draw()), at_least)
        if self.made >= self._attempts or now + wait > self._until:
            return None
        self.made += 1
        return wait

    def left(self, now: float) -> float:
        """Seconds in which a try has to succeed."""
        return self._seconds if self._until is None else max(0.0, self._until - now)

    def succeeded(self) -> None:
        """What is tried next has nothing to do with these."""
        self.made = 0
        self._until = None
