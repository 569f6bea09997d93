"""A directory that tells how long each of its operations takes, in front of any backend."""

import time
from collections.abc import AsyncIterator, Collection, Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

from ..principal import Principal
from ..record import WorkflowRecord
from ..statistics import Statistics
from . import Claimed, Directory


class TimedDirectory:
    """Implements `Directory`; counts seconds as `directory_seconds{op}`."""

    def __init__(self, inner: Directory, statistics: Statistics) -> None:
        self._inner = inner
        self._statistics = statistics

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """See `Directory.claim`."""
        with self._timing("claim"):
            return await self._inner.claim(record)

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """See `Directory.get`."""
        with self._timing("get"):
            return await self._inner.get(session_id)

    async def at(self, event_token: str) -> WorkflowRecord | None:
        """See `Directory.at`."""
        with self._timing("at"):
            return await self._inner.at(event_token)

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        """See `Directory.find`."""
        with self._timing("find"):
            return await self._inner.find(principal, server, key)

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `Directory.replace`."""
        with self._timing("replace"):
            return await self._inner.replace(record)

    async def remove(self, record: WorkflowRecord) -> bool:
        """See `Directory.remove`."""
        with self._timing("remove"):
            return await self._inner.remove(record)

    async def touch(self, session_ids: Collection[str]) -> None:
        """See `Directory.touch`."""
        with self._timing("touch"):
            await self._inner.touch(session_ids)

    async def untouched(self, session_id: str) -> float | None:
        """See `Directory.untouched`."""
        with self._timing("untouched"):
            return await self._inner.untouched(session_id)

    async def draw_ids(self, name: str) -> range:
        """See `Directory.draw_ids`."""
        with self._timing("draw_ids"):
            return await self._inner.draw_ids(name)

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """See `Directory.watch`; not timed, since it lasts."""
        return self._inner.watch()

    @contextmanager
    def _timing(self, op: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self._statistics.observe("directory_seconds", time.perf_counter() - started, op)
