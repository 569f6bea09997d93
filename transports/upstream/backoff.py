"""When a server that exits by itself may be started again. Pure: times are seconds of any one clock."""

import random
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.5
LAST_SECONDS: Final = 30.0
SOUND_SECONDS: Final = 60.0
"""A session that lived longer shows that the server can be started."""

JITTER: Final = 0.2
"""By how much of itself a wait may be shorter, so that gateways do not come in step."""


class Backoff:
    """The exits of one server that nobody asked for: after the first it may start at once, then ever later."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self.exits = 0
        """How often in a row it exited."""
        self._last = float("-inf")
        self._not_before = float("-inf")

    def ended(self, started: float, now: float, *, expected: bool) -> None:
        """A session ended. One that began before the last exit says nothing new: many may end of one cause."""
        if started < self._last:
            return
        if now - started > SOUND_SECONDS:
            self.exits = 0
        if not expected:
            self.exits += 1
            self._last = now
            self._not_before = now + _seconds_after(self.exits) * (1 - JITTER * self._draw())

    def wait(self, now: float) -> float:
        """Seconds until it may be started; 0 if it may be now."""
        return max(0.0, self._not_before - now)


def _seconds_after(exits: int) -> float:
    if exits < 2:
        return 0.0
    return min(FIRST_SECONDS * 2.0 ** min(exits - 2, 10), LAST_SECONDS)
