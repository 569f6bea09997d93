"""The directory of one process: dictionaries. It ends with the process, and serves one worker."""

from collections import OrderedDict
from typing import Final

import msgspec

from ..principal import Principal
from ..record import WorkflowRecord
from . import ID_BLOCK, SHARED, Claimed

REMEMBERED_KEYS: Final = 10_000
"""Keys of ended workflows that are remembered, so that their return is told as `reset`; the oldest is forgotten."""

_Key = tuple[Principal, str, str]


class MemoryDirectory:
    """Implements `Directory`. Nothing is forgotten: what is recorded here lives in this process."""

    def __init__(self, remembered_keys: int = REMEMBERED_KEYS) -> None:
        self._remembered_keys = remembered_keys
        self._records: dict[str, WorkflowRecord] = {}
        self._by_key: dict[_Key, str] = {}
        self._ended: OrderedDict[_Key, None] = OrderedDict()
        self._next_id: dict[str, int] = {}

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """See `Directory.claim`."""
        key = _key_of(record)
        if key is not None and key in self._by_key:
            return Claimed(self._records[self._by_key[key]], "resumed")
        if record.session_id in self._records:
            raise ValueError("a session id is drawn once")
        self._records[record.session_id] = record
        self._next_id[record.session_id] = record.first_id
        if key is None:
            return Claimed(record, "created")
        self._by_key[key] = record.session_id
        return Claimed(record, "reset" if self._ended.pop(key, 0) is None else "created")

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """See `Directory.get`."""
        return self._records.get(session_id)

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
        return changed

    async def remove(self, record: WorkflowRecord) -> bool:
        """See `Directory.remove`."""
        stored = self._records.get(record.session_id)
        if stored is None or stored.epoch != record.epoch:
            return False
        del self._records[record.session_id], self._next_id[record.session_id]
        key = _key_of(stored)
        if key is not None:
            del self._by_key[key]
            self._ended[key] = None
            if len(self._ended) > self._remembered_keys:
                self._ended.popitem(last=False)
        return True

    async def draw_ids(self, name: str, above: int = 0) -> range:
        """See `Directory.draw_ids`."""
        if name.startswith(SHARED):
            self._next_id.setdefault(name, 1)
        start = max(self._next_id[name], above + 1)
        self._next_id[name] = start + ID_BLOCK
        return range(start, start + ID_BLOCK)


def _key_of(record: WorkflowRecord) -> _Key | None:
    return None if record.key is None else (record.principal, record.server, record.key)
