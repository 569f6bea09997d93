"""What is written to event logs, on its way to the directory: beside the hot path, in batches, bounded.

What still holds of a workflow is written once more before its log, which keeps what came last, would trim it.
An entry may be written twice, where the directory failed over it; its place (stream, n) tells. Where the directory is
away for so long that too much waits, the oldest is dropped and counted: a gap in n tells.
"""

import logging
from collections import deque
from collections.abc import Callable, Iterable
from heapq import nlargest
from typing import Final

import anyio

from .directory import Entry, Logs
from .errors import DirectoryUnavailable
from .limits import MIB, EventLogLimits
from .statistics import Statistics

logger = logging.getLogger(__name__)

MAX_WAITING_BYTES: Final = 16 * MIB
"""What may wait for the directory, over all workflows."""

ENTRY_BYTES: Final = 100
"""What an entry counts beside its message."""

BATCH_BYTES: Final = MIB
"""What is handed on at once, with the entry that reaches it: a directory takes that within its time-out."""

WRITERS: Final = 16
"""Workflows whose entries are written at the same time."""

HEAVIEST: Final = 64
"""Workflows of which it is known that much waits for the directory, where too much does."""

RETRY_SECONDS: Final = 0.2


class _Waiting:
    """What waits for one workflow."""

    __slots__ = ("bytes", "entries", "is_written", "keep")

    def __init__(self, keep: EventLogLimits) -> None:
        self.keep = keep
        self.entries: deque[Entry] = deque()
        self.bytes = 0
        self.is_written = anyio.Event()
        """Set when nothing waits any longer."""


class Journal:
    """The way of one worker to the event logs. `run` it in a task for as long as it is used."""

    def __init__(self, logs: Logs, statistics: Statistics) -> None:
        self._logs = logs
        self._statistics = statistics
        self._waiting: dict[str, _Waiting] = {}
        self._written: set[str] = set()
        """The workflows that have a writer."""
        self._begun: deque[str] = deque()
        """Those of them whose writer is to begin."""
        self._bytes = 0
        self._drops = 0
        """How many entries were dropped."""
        self._heaviest: list[str] = []
        """The workflows of which the most waited when that was looked at last."""
        self._news = anyio.Event()

    def write(self, session_id: str, entry: Entry, keep: EventLogLimits) -> None:
        """Put an entry on its way, without waiting."""
        waiting = self._waiting.get(session_id)
        if waiting is None:
            waiting = self._waiting[session_id] = _Waiting(keep)
        waiting.entries.append(entry)
        self._count(waiting, _size(entry))
        while self._bytes > MAX_WAITING_BYTES:
            self._drop(session_id)
        if session_id not in self._written:
            self._written.add(session_id)
            self._begun.append(session_id)
            self._news.set()

    async def flush(self, session_id: str) -> None:
        """Wait until what was written of this workflow has arrived, or was dropped."""
        waiting = self._waiting.get(session_id)
        if waiting is not None:
            await waiting.is_written.wait()

    def forget(self, session_id: str) -> None:
        """The workflow has ended: what waits of it is of no use."""
        waiting = self._waiting.pop(session_id, None)
        if waiting is not None:
            self._count(waiting, -waiting.bytes)
            waiting.entries.clear()
            waiting.is_written.set()

    async def run(self) -> None:
        """Hand on what is written, until cancelled."""
        limiter = anyio.CapacityLimiter(WRITERS)
        async with anyio.create_task_group() as tasks:
            while True:
                await self._news.wait()
                self._news = anyio.Event()
                while self._begun:
                    tasks.start_soon(self._hand_on, self._begun.popleft(), limiter)

    async def _hand_on(self, session_id: str, limiter: anyio.CapacityLimiter) -> None:
        while (waiting := self._waiting.get(session_id)) is not None:
            async with limiter:  # for one batch: who has more waits for its turn
                await self._write_batch(session_id, waiting)
        self._written.discard(session_id)

    async def _write_batch(self, session_id: str, waiting: _Waiting) -> None:
        batch = _batch_of(waiting.entries)
        try:
            await self._logs.append(session_id, batch, waiting.keep)
        except DirectoryUnavailable:
            self._statistics.count("journal", "failed")
            await anyio.sleep(RETRY_SECONDS)
        else:
            self._arrived(session_id, waiting, batch)

    def _arrived(self, session_id: str, waiting: _Waiting, batch: tuple[Entry, ...]) -> None:
        for entry in batch:
            if waiting.entries and waiting.entries[0] is entry:  # else it was dropped meanwhile
                self._count(waiting, -_size(waiting.entries.popleft()))
        if not waiting.entries and self._waiting.get(session_id) is waiting:
            del self._waiting[session_id]
            waiting.is_written.set()

    def _drop(self, writer: str) -> None:
        """Make room: by an entry of the workflow of which the most waits, the one that has just written or another.

        Who that may be is looked for among all once in `HEAVIEST` times: there may be thousands, and each event drops.
        """
        self._heaviest = [name for name in self._heaviest if name in self._waiting]
        if not self._heaviest or not self._drops % HEAVIEST:
            self._heaviest = nlargest(HEAVIEST, self._waiting, key=self._bytes_of)
        self._drops += 1
        session_id = max((writer, *self._heaviest), key=self._bytes_of)
        waiting = self._waiting[session_id]
        self._count(waiting, -_size(waiting.entries.popleft()))
        self._statistics.count("journal", "dropped")
        if not waiting.entries:
            del self._waiting[session_id]
            waiting.is_written.set()

    def _bytes_of(self, session_id: str) -> int:
        waiting = self._waiting.get(session_id)
        return 0 if waiting is None else waiting.bytes

    def _count(self, waiting: _Waiting, size: int) -> None:
        waiting.bytes += size
        self._bytes += size


def _size(entry: Entry) -> int:
    return len(entry.message) + ENTRY_BYTES


def _batch_of(entries: Iterable[Entry]) -> tuple[Entry, ...]:
    batch, size = list[Entry](), 0
    for entry in entries:
        batch.append(entry)
        size += _size(entry)
        if size >= BATCH_BYTES:
            break
    return tuple(batch)


class KeptLog:
    """The event log of one workflow, as it is kept for the worker that comes after this one.

    `repeat` writes to it once more all that holds.
    """

    __slots__ = ("_bytes", "_entries", "_is_repeating", "_journal", "_limits", "_repeat", "_session_id")

    def __init__(self, journal: Journal, session_id: str, limits: EventLogLimits, repeat: Callable[[], None]) -> None:
        self._journal = journal
        self._session_id = session_id
        self._limits = limits
        self._entries = self._bytes = 0
        """What was written since all that holds was."""
        self._is_repeating = False
        self._repeat = repeat

    def write(self, entry: Entry) -> None:
        """Put a line on its way, without waiting; once half of what is kept may be newer, all that holds follows."""
        self._journal.write(self._session_id, entry, self._limits)
        self._entries += 1
        self._bytes += len(entry.message)
        is_due = self._entries * 2 >= self._limits.events or self._bytes * 2 >= self._limits.bytes
        if is_due and not self._is_repeating:
            self._is_repeating = True
            self._repeat()
            self._entries = self._bytes = 0
            self._is_repeating = False
