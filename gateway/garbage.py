"""When the process looks for garbage that refers to itself: Python's collector stops everything while it does.

A full collection takes some 90 µs for each workflow: the better part of a second for 10,000 of them, and under load the
collector's own rule has one every few seconds. So young objects are collected as ever, and all of them only when that
is worth it: when as many workflows have ended as there are, or after a long time.
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

from ..mux.pool import Pool

YOUNG: Final = 10_000
"""New objects between two collections of the youngest: about a millisecond's work."""
MIDDLE: Final = 10
NEVER: Final = 2**31 - 1

LOOK_SECONDS: Final = 1.0
ENOUGH_ENDED: Final = 500
"""Workflows that have ended, at least, before all is collected: some 20 MiB."""
LONG_SECONDS: Final = 600.0
"""What calls alone may leave behind waits no longer than this."""


class Schedule:
    """Decides when a full collection is worth its pause. `now` is in seconds."""

    def __init__(self, now: float) -> None:
        self._at = now
        self._ended = 0

    def is_due(self, now: float, *, ended: int, living: int) -> bool:
        """Whether to collect now, which is then taken as done. `ended` counts workflows since the start."""
        if ended - self._ended < max(living, ENOUGH_ENDED) and now - self._at < LONG_SECONDS:
            return False
        self._at, self._ended = now, ended
        return True


@contextmanager
def collected_by_schedule() -> Iterator[None]:
    """No full collection by the collector's own rule, for the length of the context; what was imported is left out."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, NEVER)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()


async def collect(pool: Pool, *, clock: Callable[[], float] = time.monotonic) -> None:
    """Collect what the workflows of this pool leave behind, until cancelled."""
    schedule = Schedule(clock())
    while True:
        await anyio.sleep(LOOK_SECONDS)
        ended = pool.statistics.total("workflows_closed")
        if schedule.is_due(clock(), ended=ended, living=len(pool.workflows)):
            gc.collect()
