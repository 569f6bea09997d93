"""A directory that tells how long each of its operations takes, in front of any backend."""

import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager

from ..limits import EventLogLimits
from ..principal import Principal
from ..record import WorkflowRecord
from ..statistics import Statistics
from . import Claimed, Directory, Entry, SharedDirectory, Worker


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

    async def has_ended(self, principal: Principal, server: str, key: str) -> bool:
        """See `Directory.has_ended`."""
        with self._timing("has_ended"):
            return await self._inner.has_ended(principal, server, key)

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

    async def draw_ids(self, name: str, above: int = 0) -> range:
        """See `Directory.draw_ids`."""
        with self._timing("draw_ids"):
            return await self._inner.draw_ids(name, above)

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


class TimedSharedDirectory(TimedDirectory):
    """Implements `SharedDirectory`; counts seconds as `TimedDirectory` does."""

    _inner: SharedDirectory

    def __init__(self, inner: SharedDirectory, statistics: Statistics) -> None:
        super().__init__(inner, statistics)

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        """See `Logs.append`."""
        with self._timing("append"):
            await self._inner.append(session_id, entries, keep)

    async def read(self, session_id: str) -> list[Entry]:
        """See `Logs.read`."""
        with self._timing("read"):
            return await self._inner.read(session_id)

    async def enroll(self, worker: Worker) -> Worker:
        """See `Workers.enroll`."""
        with self._timing("enroll"):
            return await self._inner.enroll(worker)

    async def beat(self, worker: Worker) -> bool:
        """See `Workers.beat`."""
        with self._timing("beat"):
            return await self._inner.beat(worker)

    async def retire(self, worker: Worker) -> None:
        """See `Workers.retire`."""
        with self._timing("retire"):
            await self._inner.retire(worker)

    async def worker(self, id: str) -> Worker | None:
        """See `Workers.worker`."""
        with self._timing("worker"):
            return await self._inner.worker(id)

    async def workers(self) -> list[Worker]:
        """See `Workers.workers`."""
        with self._timing("workers"):
            return await self._inner.workers()

    async def settle(self, name: str, worker: Worker) -> str:
        """See `Workers.settle`."""
        with self._timing("settle"):
            return await self._inner.settle(name, worker)

    async def send(self, worker: str, frame: bytes) -> bool:
        """See `Workers.send`."""
        with self._timing("send"):
            return await self._inner.send(worker, frame)

    async def publish(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `SharedDirectory.publish`."""
        with self._timing("publish"):
            return await self._inner.publish(record)

    def mailbox(self, worker: Worker) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `Workers.mailbox`; not timed, since it lasts."""
        return self._inner.mailbox(worker)
