"""Who is called back after a fixed time, unless that is called off: one timer of the event loop for all who wait."""

import asyncio
from collections import deque
from collections.abc import Callable


class Waiting:
    """One who waits."""

    __slots__ = ("_then", "due")

    def __init__(self, due: float, then: Callable[[], None]) -> None:
        self.due = due
        self._then: Callable[[], None] | None = then

    @property
    def is_called_off(self) -> bool:
        """True where it is not called back any longer."""
        return self._then is None

    def cancel(self) -> None:
        """It is not called back any longer. Idempotent."""
        self._then = None

    def end(self) -> None:
        """The time is over."""
        if self._then is not None:
            self._then()


class Patience:
    """Waits of the same length, in seconds. Most are called off soon, which costs next to nothing."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: deque[Waiting] = deque()
        """In the order in which they are due; those that were called off stay until then."""
        self._is_timed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def begin(self, loop: asyncio.AbstractEventLoop, then: Callable[[], None]) -> Waiting:
        """Call this back when the time is over; what is returned calls it off."""
        waiting = Waiting(loop.time() + self._seconds, then)
        self._waiting.append(waiting)
        if not self._is_timed:
            self._is_timed = True
            loop.call_at(waiting.due, self._look, loop)
        return waiting

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._is_timed = False
        now = loop.time()
        while self._waiting and (self._waiting[0].due <= now or self._waiting[0].is_called_off):
            waiting = self._waiting.popleft()
            if not waiting.is_called_off:
                loop.call_soon(waiting.end)  # by itself: one that fails holds up nobody
        if self._waiting:
            self._is_timed = True
            loop.call_at(self._waiting[0].due, self._look, loop)
