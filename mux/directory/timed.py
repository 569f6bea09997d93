"""A directory that tells how long each of its operations takes, in front of any backend."""

import time
from collections.abc import Awaitable, Callable
from inspect import iscoroutinefunction
from typing import Any, TypeVar, cast

from ..statistics import Statistics
from . import Directory

D = TypeVar("D", bound=Directory)


def timed(directory: D, statistics: Statistics) -> D:
    """The same directory, which counts seconds as `directory_seconds{op}`; what lasts is not timed."""
    return cast(D, _Timed(directory, statistics))


class _Timed:
    """Implements what its directory does. Operations are coroutines; `watch` and `mailbox`, which last, are none."""

    def __init__(self, directory: Directory, statistics: Statistics) -> None:
        self._directory = directory
        self._statistics = statistics

    def __getattr__(self, op: str) -> Any:
        work: Callable[..., Awaitable[object]] = getattr(self._directory, op)
        if not iscoroutinefunction(work):
            return work

        async def timed(*arguments: Any, **options: Any) -> object:
            started = time.perf_counter()
            try:
                return await work(*arguments, **options)
            finally:
                self._statistics.observe("directory_seconds", time.perf_counter() - started, op)

        return timed
