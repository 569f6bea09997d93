"""Who is called back after a fixed time, unless that is called off: one timer of the event loop for all who wait."""

import asyncio
from collections import deque
from collections.abc import Callable


class Waiting:
    """One who waits."""

    __slots__ = ("due", "is_over")

    def __init__(self, due: float, is_over: Callable[[], None]) -> None:
        self.due = due
        self.is_over: Callable[[], None] | None = is_over

    def cancel(self) -> None:
        """It need not be called back any longer. Idempotent."""
        self.is_over = None


class Patience:
    """Waits of the same length, in seconds. Most are called off soon, which costs next to nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[Waiting] = deque()
        """In the order in which they are due; those that were called off stay until then."""
        self._is_timed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, loop: asyncio.AbstractEventLoop, is_over: Callable[[], None]) -> Waiting:
        """Call this back when the time is over; what is returned calls it off."""
        waiting = Waiting(loop.time() + self._seconds, is_over)
        self._waiting.append(waiting)
        if not self._is_timed:
            self._is_timed = True
            loop.call_at(waiting.due, self._look, loop)
        return waiting

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_timed = False
        now = loop.time()
        while self._waiting and (self._waiting[0].due <= now or self._waiting[0].is_over is None):
            is_over = self._waiting.popleft().is_over
            if is_over is not None:
                loop.call_soon(is_over)
        if self._waiting:
            self._is_timed = True
            loop.call_at(self._waiting[0].due, self._look, loop)
