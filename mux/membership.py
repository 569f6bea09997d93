"""One worker among others: its heartbeat, its lease, and who else lives.

A worker is taken for dead when `LEASE_SECONDS` have passed since its last heartbeat. It knows so first: by its own
clock its lease ends that long after it *sent* the last heartbeat that was taken. What only one worker may do, it does
while the lease holds (guarantee G7).
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio

from .directory import LEASE_SECONDS, Worker, Workers
from .errors import DirectoryUnavailable

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = LEASE_SECONDS / 3
KNOWN_SECONDS: Final = LEASE_SECONDS / 3
"""For how long a worker that was found alive is believed to be."""

RETIRE_SECONDS: Final = 2.0


class Membership:
    """The part of one worker among `workers`. It counts between entering and leaving `running`.

    `on_lapse` is called when others may have taken over what this worker holds, with the time since when they could:
    all of it must be compared with the directory before it is used again.
    """

    def __init__(
        self,
        workers: Workers,
        worker: Worker,
        *,
        on_lapse: Callable[[float], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker = worker
        self._workers = workers
        self._on_lapse = on_lapse
        self._clock = clock
        self._deadline = float("-inf")
        self._known: dict[str, tuple[float, Worker]] = {}
        self._is_away = False
        self._back_at = float("-inf")
        """When the directory took a heartbeat again after one that it had not taken."""
        self._listed: tuple[float, dict[int, Worker]] = (float("-inf"), {})
        """All that live, by number, and how long that is believed."""

    @property
    def holds_lease(self) -> bool:
        """True while no other worker can take this one for dead."""
        return self._clock() < self._deadline

    @property
    def is_away(self) -> bool:
        """True while the directory does not take heartbeats."""
        return self._is_away

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Membership"]:
        """Be a member, for the length of the context.

        Raises:
            DirectoryUnavailable: the directory cannot be reached at the start.
        """
        sent = self._clock()
        self.worker = await self._workers.enroll(self.worker)
        self._deadline = sent + LEASE_SECONDS
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat_on)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()
                with suppress(DirectoryUnavailable), anyio.move_on_after(RETIRE_SECONDS, shield=True):
                    await self._workers.retire(self.worker)

    async def find(self, id: str) -> Worker | None:
        """The worker of this id, if it lives; as it was at most `KNOWN_SECONDS` ago.

        Raises:
            DirectoryUnavailable: nobody can tell. So it is for a lease after the directory was away: that another one
                has not been heard there says nothing yet.
        """
        now = self._clock()
        known = self._known.get(id)
        if known is not None and now < known[0]:
            return known[1]
        self._known.pop(id, None)
        found = await self._workers.worker(id)
        if found is not None:
            self._known[id] = now + KNOWN_SECONDS, found
        elif self._is_away or now < self._back_at + LEASE_SECONDS:
            raise DirectoryUnavailable("the directory was away, and who lives shows in a moment")
        return found

    async def numbered(self, number: int) -> Worker | None:
        """The worker of this number, if it lives; as it was at most `KNOWN_SECONDS` ago.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return (await self._list()).get(number)

    async def numbers(self) -> Collection[int]:
        """The numbers of all that live; as it was at most `KNOWN_SECONDS` ago.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return (await self._list()).keys()

    async def _list(self) -> dict[int, Worker]:
        now = self._clock()
        if now >= self._listed[0]:
            self._listed = now + KNOWN_SECONDS, {worker.number: worker for worker in await self._workers.workers()}
        return self._listed[1]

    async def settle(self, name: str) -> str:
        """The id of the worker at which what this name stands for lives: another one that has it, else this one.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return await self._workers.settle(name, self.worker)

    async def others(self) -> list[Worker]:
        """All others that live; as it was at most `KNOWN_SECONDS` ago.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return [worker for worker in (await self._list()).values() if worker.id != self.worker.id]

    async def another(self) -> Worker | None:
        """Some other worker that lives; None where there is none.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return next((worker for worker in await self._workers.workers() if worker.id != self.worker.id), None)

    def doubt(self, id: str) -> None:
        """A worker did not answer: ask the directory when it is looked for again."""
        self._known.pop(id, None)

    async def beat(self) -> None:
        """Send one heartbeat, and extend the lease if it was taken."""
        sent = self._clock()
        try:
            with anyio.fail_after(LEASE_SECONDS):
                was_alive = await self._workers.beat(self.worker)
        except (DirectoryUnavailable, TimeoutError):
            if not self._is_away:
                logger.warning("the directory does not take heartbeats", extra={"worker": self.worker.id})
            self._is_away = True
            return
        if self._is_away:
            self._back_at = self._clock()
            logger.info("the directory takes heartbeats again", extra={"worker": self.worker.id})
        self._is_away = False
        if not was_alive or not self.holds_lease:
            self._on_lapse(self._deadline - LEASE_SECONDS)
        self._deadline = sent + LEASE_SECONDS

    async def _beat_on(self) -> None:
        while True:
            await anyio.sleep(BEAT_SECONDS)
            await self.beat()
