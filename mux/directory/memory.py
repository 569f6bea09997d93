"""The directory of one process: dictionaries. It ends with the process, and serves one worker."""

import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import Final

import msgspec

from ..principal import Principal
from ..record import WorkflowRecord
from . import ID_BLOCK, SHARED, WATCH_BUFFER, Claimed
from .feed import Feed

REMEMBERED_KEYS: Final = 10_000
"""Keys of ended workflows that are remembered, so that their return is told as `reset`; the oldest is forgotten."""

_Key = tuple[Principal, str, str]


class MemoryDirectory:
    """Implements `Directory`. Nothing is forgotten: what is recorded here lives in this process."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, remembered_keys: int = REMEMBERED_KEYS) -> None:
        self._clock = clock
        self._remembered_keys = remembered_keys
        self._by_token: dict[str, str] = {}
        self._touched: dict[str, float] = {}
        self._records: dict[str, WorkflowRecord] = {}
        self._by_key: dict[_Key, str] = {}
        self._ended: OrderedDict[_Key, None] = OrderedDict()
        self._next_id: dict[str, int] = {}
        self._watchers: set[Feed[str]] = set()

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """See `Directory.claim`."""
        key = _key_of(record)
        if key is not None and key in self._by_key:
            return Claimed(self._records[self._by_key[key]], "resumed")
        if record.session_id in self._records:
            raise ValueError("a session id is drawn once")
        self._records[record.session_id] = record
        self._next_id[record.session_id] = record.first_id
        self._by_token[record.event_token] = record.session_id
        self._touched[record.session_id] = self._clock()
        if key is None:
            return Claimed(record, "created")
        self._by_key[key] = record.session_id
        return Claimed(record, "reset" if self._ended.pop(key, 0) is None else "created")

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """See `Directory.get`."""
        return self._records.get(session_id)

    async def at(self, event_token: str) -> WorkflowRecord | None:
        """See `Directory.at`."""
        session_id = self._by_token.get(event_token)
        return None if session_id is None else self._records[session_id]

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        """See `Directory.find`."""
        session_id = self._by_key.get((principal, server, key))
        return None if session_id is None else self._records[session_id]

    async def has_ended(self, principal: Principal, server: str, key: str) -> bool:
        """See `Directory.has_ended`."""
        return (principal, server, key) in self._ended

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `Directory.replace`."""
        stored = self._records.get(record.session_id)
        if stored is None or stored.epoch != record.epoch:
            return None
        changed = msgspec.structs.replace(record, epoch=record.epoch + 1)
        self._records[record.session_id] = changed
        self._touched[record.session_id] = self._clock()
        self._tell(record.session_id)
        return changed

    async def remove(self, record: WorkflowRecord) -> bool:
        """See `Directory.remove`."""
        stored = self._records.get(record.session_id)
        if stored is None or stored.epoch != record.epoch:
            return False
        del self._records[record.session_id], self._next_id[record.session_id]
        del self._by_token[record.event_token], self._touched[record.session_id]
        key = _key_of(stored)
        if key is not None:
            del self._by_key[key]
            self._ended[key] = None
            if len(self._ended) > self._remembered_keys:
                self._ended.popitem(last=False)
        self._tell(record.session_id)
        return True

    async def touch(self, session_ids: Collection[str]) -> None:
        """See `Directory.touch`."""
        for session_id in session_ids:
            if session_id in self._touched:
                self._touched[session_id] = self._clock()

    async def untouched(self, session_id: str) -> float | None:
        """See `Directory.untouched`."""
        touched = self._touched.get(session_id)
        return None if touched is None else self._clock() - touched

    async def draw_ids(self, name: str, above: int = 0) -> range:
        """See `Directory.draw_ids`."""
        if name.startswith(SHARED):
            self._next_id.setdefault(name, 1)
        start = max(self._next_id[name], above + 1)
        self._next_id[name] = start + ID_BLOCK
        return range(start, start + ID_BLOCK)

    @asynccontextmanager
    async def watch(self) -> AsyncIterator[AsyncIterator[str]]:
        """See `Directory.watch`."""
        watcher = Feed(WATCH_BUFFER, "")
        self._watchers.add(watcher)
        try:
            yield watcher
        finally:
            self._watchers.remove(watcher)

    def _tell(self, session_id: str) -> None:
        for watcher in self._watchers:
            watcher.tell(session_id)


def _key_of(record: WorkflowRecord) -> _Key | None:
    return None if record.key is None else (record.principal, record.server, record.key)
