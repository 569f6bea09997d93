"""When what failed may be tried again. Pure: times are seconds of any one clock."""

import random
from collections.abc import Callable
from typing import Final

FIRST_SECONDS: Final = 0.5
LAST_SECONDS: Final = 30.0

JITTER: Final = 0.2
"""By how much of itself a wait may be shorter, so that gateways do not come in step."""


class Backoff:
    """Attempts that failed in a row: after the first there may be another one at once, then ever later."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self.failures = 0
        """How many failed in a row."""
        self._last = float("-inf")
        self._not_before = float("-inf")

    def failed(self, began: float, now: float) -> None:
        """An attempt failed. One that began before the last failure says nothing new: many may have one cause."""
        if began >= self._last:
            self.failures += 1
            self._last = now
            self._not_before = now + _seconds_after(self.failures) * (1 - JITTER * self._draw())

    def succeeded(self, began: float) -> None:
        """One went well. If it began before the last failure, that says nothing of now."""
        if began >= self._last:
            self.failures = 0

    def wait(self, now: float) -> float:
        """Seconds until it may be tried; 0 if it may be now."""
        return max(0.0, self._not_before - now)


def _seconds_after(failures: int) -> float:
    if failures < 2:
        return 0.0
    return min(FIRST_SECONDS * 2.0 ** min(failures - 2, 10), LAST_SECONDS)
