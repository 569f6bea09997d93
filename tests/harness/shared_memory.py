"""A directory that several workers of one process share: what redis is to workers of several, without a network."""

import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

import anyio
import msgspec
from trunkline.mux.directory import LEASE_SECONDS, WATCH_BUFFER, Claimed, Entry, Worker
from trunkline.mux.directory.feed import Feed
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.record import WorkflowRecord


class SharedMemoryDirectory(MemoryDirectory):
    """Implements `SharedDirectory`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self.is_away = False
        """Set by a test: no heartbeat is taken, no log kept, no worker found."""
        self.logs: dict[str, list[Entry]] = {}
        self._ends: dict[str, float] = {}
        self._now = clock
        self._by_token: dict[str, str] = {}
        self._touched: dict[str, float] = {}
        self._watchers: set[Feed[str]] = set()
        self._alive_until: dict[str, float] = {}
        self._enrolled: dict[str, Worker] = {}
        self._settled: dict[str, str] = {}
        self._mailboxes: dict[str, anyio.abc.ObjectSendStream[bytes]] = {}

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """See `Directory.claim`."""
        claimed = await super().claim(record)
        if claimed.record is record:
            self._ends.pop(record.session_id, None)
            self._by_token[record.event_token] = record.session_id
            self._touched[record.session_id] = self._now()
        return claimed

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `Directory.replace`."""
        changed = await super().replace(record)
        if changed is not None:
            self._touched[record.session_id] = self._now()
            self._tell(record.session_id)
        return changed

    async def remove(self, record: WorkflowRecord) -> bool:
        """See `Directory.remove`."""
        removed = await super().remove(record)
        if removed:
            self._ends[record.session_id] = self._now() + record.lifetime
            del self._by_token[record.event_token], self._touched[record.session_id]
            self._tell(record.session_id)
        return removed

    async def at(self, event_token: str) -> WorkflowRecord | None:
        """See `SharedDirectory.at`."""
        session_id = self._by_token.get(event_token)
        return None if session_id is None else self._records[session_id]

    async def touch(self, session_ids: Collection[str]) -> None:
        """See `SharedDirectory.touch`."""
        for session_id in session_ids:
            if session_id in self._touched:
                self._touched[session_id] = self._now()

    async def untouched(self, session_id: str) -> float | None:
        """See `SharedDirectory.untouched`."""
        touched = self._touched.get(session_id)
        return None if touched is None else self._now() - touched

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[str]]:
        """See `SharedDirectory.watch`."""
        watcher = Feed(WATCH_BUFFER, "")
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    @contextmanager
    def unheard(self) -> Iterator[None]:
        """What changes meanwhile is told to no watcher: the news is on its way."""
        watchers, self._watchers = self._watchers, set()
        try:
            yield
        finally:
            self._watchers |= watchers

    def _tell(self, session_id: str) -> None:
        for watcher in self._watchers:
            watcher.tell(session_id)

    async def publish(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `SharedDirectory.publish`."""
        standing = await self.get(record.session_id)
        if standing is not None and standing.is_behind(record):
            self.go_back(record)
            self._tell(record.session_id)
            return record
        if standing is not None:
            return standing
        if self._now() < self._ends.get(record.session_id, float("-inf")):
            return None
        return (await self.claim(record)).record

    def forget(self, session_id: str) -> None:
        """Lose a record as a directory does that keeps nothing over its restart."""
        record = self._records.pop(session_id)
        del self._next_id[session_id], self._by_token[record.event_token], self._touched[session_id]
        self._by_key = {key: named for key, named in self._by_key.items() if named != session_id}
        self.logs.pop(session_id, None)

    def go_back(self, record: WorkflowRecord) -> None:
        """Have this state of a record that stands, as a directory does that lost what it was told last."""
        assert record.session_id in self._records
        self._records[record.session_id] = record
        self._touched[record.session_id] = self._now()

    # Logs

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        """See `Logs.append`."""
        self._check()
        if session_id not in self._records:
            return
        log = self.logs.setdefault(session_id, [])
        log.extend(entries)
        while len(log) > keep.events or sum(len(entry.message) for entry in log) > keep.bytes:
            del log[0]

    async def read(self, session_id: str) -> list[Entry]:
        """See `Logs.read`."""
        self._check()
        return list(self.logs.get(session_id, ())) if session_id in self._records else []

    # Workers

    async def enroll(self, worker: Worker) -> Worker:
        """See `Workers.enroll`."""
        self._check()
        enrolled = msgspec.structs.replace(worker, number=len(self._enrolled) + 1)
        self._enrolled[worker.id] = enrolled
        self._alive_until[worker.id] = self._now() + LEASE_SECONDS
        return enrolled

    async def beat(self, worker: Worker) -> bool:
        """See `Workers.beat`."""
        self._check()
        was_alive = self._lives(worker.id)
        self._enrolled[worker.id] = worker
        self._alive_until[worker.id] = self._now() + LEASE_SECONDS
        return was_alive

    async def retire(self, worker: Worker) -> None:
        """See `Workers.retire`."""
        self._check()
        self._alive_until.pop(worker.id, None)

    async def worker(self, id: str) -> Worker | None:
        """See `Workers.worker`."""
        self._check()
        return self._enrolled[id] if self._lives(id) else None

    async def workers(self) -> list[Worker]:
        """See `Workers.workers`."""
        self._check()
        return [worker for worker in self._enrolled.values() if self._lives(worker.id)]

    async def settle(self, name: str, worker: Worker) -> str:
        """See `Workers.settle`."""
        self._check()
        home = self._settled.get(name, "")
        if home != worker.id and not (self._lives(home) and not self._enrolled[home].drains):
            self._settled[name] = worker.id
        return self._settled[name]

    async def send(self, worker: str, frame: bytes) -> bool:
        """See `Workers.send`."""
        self._check()
        mailbox = self._mailboxes.get(worker)
        if mailbox is None:
            return False
        await mailbox.send(frame)
        return True

    @asynccontextmanager
    async def mailbox(self, worker: Worker) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Workers.mailbox`."""
        sent, received = anyio.create_memory_object_stream[bytes](1024)
        self._mailboxes[worker.id] = sent
        try:
            with sent, received:
                yield received
        finally:
            del self._mailboxes[worker.id]

    def _lives(self, id: str) -> bool:
        return self._now() < self._alive_until.get(id, float("-inf"))

    def _check(self) -> None:
        if self.is_away:
            raise DirectoryUnavailable("a test has taken the directory away")
