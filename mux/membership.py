"""One worker among others: its heartbeat, its lease, and who else lives.

A worker is taken for dead when `LEASE_SECONDS` have passed since its last heartbeat. It knows so first: by its own
clock its lease ends that long after it *sent* the last heartbeat that was taken. What only one worker may do, it does
while the lease holds (guarantee G7). Whoever sees that its process has ended need not wait for that, and tells the
directory.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
import msgspec

from .directory import LEASE_SECONDS, Worker, Workers
from .errors import DirectoryUnavailable, Elsewhere

logger = logging.getLogger(__name__)

BEAT_SECONDS: Final = LEASE_SECONDS / 3
KNOWN_SECONDS: Final = LEASE_SECONDS / 2
"""For how long the list of those that live is believed. It is read as often as a heartbeat is sent."""

LATE_SECONDS: Final = LEASE_SECONDS / 3
"""For how long a heartbeat may be on its way before it says that those of others may not arrive either."""

DOUBT_SECONDS: Final = 0.2
"""The same, where one of them did not answer."""

RETIRE_SECONDS: Final = 2.0

MAX_LISTED: Final = 1024
"""Workers of which it is known when they were listed last."""


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
        self.older: Callable[[], tuple[str, ...] | msgspec.UnsetType] = lambda: msgspec.UNSET
        """What its heartbeats tell as `Worker.older`."""
        self._workers = workers
        self._on_lapse = on_lapse
        self._clock = clock
        self._deadline = float("-inf")
        self.lapses = 0
        """How often others may have taken over what this worker held."""
        self._sent_at = float("inf")
        """When the heartbeat that is on its way was sent."""
        self._must_beat = asyncio.Event()
        """Set when a heartbeat is due sooner."""
        self._has_beaten = asyncio.Event()
        """Set when the next one was taken, or was not."""
        self.is_away = False
        """True while the directory does not take heartbeats."""
        self._back_at = float("-inf")
        """When the directory took a heartbeat again after one that it had not taken, or was heard again."""
        self._living: dict[str, Worker] = {}
        """All that live, by their ids, as it was when the list was read."""
        self._dead: dict[str, Worker] = {}
        """Those that have surely died, by their ids, for as long as the directory lists them."""
        self._has_died = asyncio.Event()
        self._read_at = float("-inf")
        self._is_doubted = False
        self._asked = asyncio.Event()
        self._begun: asyncio.Future[None] | None = None
        """The reading that is under way."""
        self._next: asyncio.Future[None] | None = None
        """The reading that all wait for who need one that begins from now on."""
        self._soon: asyncio.TimerHandle | None = None
        """Set while that has a moment's time."""
        self._readings = 0
        """How many have begun."""
        self._listed_by = 0
        """Which of them `_living` is from."""
        self._listed_last: dict[int, int] = {}
        """By number, in which reading each of those who lived was listed last; the `MAX_LISTED` that were lately."""
        self._unseen = 0
        """Up to which reading workers may have lived that none has listed: this one stood still."""
        self._began_at = float("-inf")
        """When the last one began."""
        self._is_running = False

    @property
    def holds_lease(self) -> bool:
        """True while no other worker can take this one for dead."""
        return self._clock() < self._deadline

    @property
    def is_late(self) -> bool:
        """True where its lease is over, and whether others could take over what it holds is about to show."""
        return self._is_running and not (self.holds_lease or self.is_away)

    async def catch_up(self) -> None:
        """Wait until it is not late: a heartbeat is sent at once, and taken, or the directory is away."""
        with anyio.move_on_after(LEASE_SECONDS):
            while self.is_late:
                self._must_beat.set()
                await self._has_beaten.wait()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Membership"]:
        """Be a member, for the length of the context.

        Raises:
            DirectoryUnavailable: the directory cannot be reached at the start.
        """
        sent = self._clock()
        self.worker = await self._workers.enroll(self.worker)
        self._deadline = sent + LEASE_SECONDS
        self._is_running = True
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._beat_on)
            tasks.start_soon(self._look_on)
            tasks.start_soon(self._retire_dead)
            try:
                yield self
            finally:
                tasks.cancel_scope.cancel()
                with suppress(DirectoryUnavailable), anyio.move_on_after(RETIRE_SECONDS, shield=True):
                    await self._workers.retire(self.worker)

    async def find(self, id: str) -> Worker | None:
        """The worker of this id, if it lives: as it was at most `KNOWN_SECONDS` ago; None for one that is dead by now.

        Raises:
            DirectoryUnavailable: nobody can tell. So it is for a lease after the directory was away: that another one
                has not been heard there says nothing yet.
        """
        if id in self._dead:
            return None
        return await self._sought(lambda living: living.get(id))

    async def numbered(self, number: int) -> Worker | None:
        """The worker of this number, as `find`; one that is not known is looked for `DOUBT_SECONDS` after another one.

        Clients choose numbers: however many they make up, who lives is not read more often for them.

        Raises:
            DirectoryUnavailable: nobody can tell, as for `find`.
        """

        def of_number(living: Mapping[str, Worker]) -> Worker | None:
            return next((worker for worker in living.values() if worker.number == number), None)

        return await self._sought(of_number, pause=DOUBT_SECONDS)

    async def _sought(self, pick: Callable[[Mapping[str, Worker]], Worker | None], pause: float = 0.0) -> Worker | None:
        """The one that is picked of those that live; who is not among them was not there when this was asked."""
        before = self._readings
        found = pick(await self._listed())
        if found is None and self._listed_by <= before:  # it may have begun since, or have come back
            found = pick(await self._reread(pause))
        if found is None:
            self.demand_settled()
        return found

    async def numbers(self) -> Collection[int]:
        """The numbers of all that live, as it is now: who is not among them is dead.

        Raises:
            DirectoryUnavailable: nobody can tell, as for `find`.
        """
        living = await self._reread()
        self.demand_settled()
        return {worker.number for worker in living.values()}

    @property
    def reading(self) -> int:
        """Which reading of those who live is the newest; the one that `numbers` has just told from."""
        return self._listed_by

    def has_lived(self, number: int, since: int) -> bool:
        """Whether the worker of this number was listed in that reading or a later one, or may have been.

        Clients make numbers up: of one that no worker had this is not true for long.
        """
        return self._listed_last.get(number, self._unseen) >= since

    def interrupted(self) -> None:
        """The directory may have lost what it knew: its word was interrupted, or does not fit a lease."""
        self._back_at = self._clock()

    def demand_settled(self) -> None:
        """Nobody is called dead, and nothing unknown, before those who live had the time to be heard again.

        Raises:
            DirectoryUnavailable: they had not, since the directory was away.
        """
        now = self._clock()
        if self.is_away or now > self._sent_at + LATE_SECONDS or now < self._back_at + LEASE_SECONDS:
            raise DirectoryUnavailable("the directory was away, and what lives shows in a moment")

    async def settle(self, name: str) -> str:
        """The id of the worker at which what this name stands for lives: another one that has it, else this one.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return await self._workers.settle(name, self.worker)

    async def others(self) -> list[Worker]:
        """All others that live, as it is now.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        return [worker for worker in (await self._reread()).values() if worker.id != self.worker.id]

    @property
    def going_on(self) -> list[Worker]:
        """The other workers that lived, and were not to end, when who lives was read last."""
        return [worker for worker in self._living.values() if worker.id != self.worker.id and not worker.drains]

    @property
    def drains(self) -> bool:
        """True once this worker is to end."""
        return self.worker.drains

    def drain(self) -> None:
        """Tell the others, by a heartbeat at once, that this worker is to end."""
        self.worker = msgspec.structs.replace(self.worker, drains=True)
        self._must_beat.set()

    async def hand_on(self) -> None:
        """Leave a request to any other worker that goes on; nothing where there is none.

        Raises:
            Elsewhere: the other one.
            DirectoryUnavailable: nobody can tell.
        """
        going_on = [worker.id for worker in await self.others() if not worker.drains]
        if going_on:
            raise Elsewhere(secrets.choice(going_on))

    def bury(self, worker: Worker) -> None:
        """The process of another worker has ended for sure: it is dead here at once, and soon for all."""
        self._dead[worker.id] = worker
        self._living.pop(worker.id, None)
        self._has_died.set()

    def doubt(self, id: str) -> None:
        """A worker did not answer: who lives is asked sooner."""
        self._is_doubted = self._is_doubted or id in self._living

    async def beat(self) -> None:
        """Send one heartbeat, and extend the lease if it was taken."""
        sent = self._sent_at = self._clock()
        if self.worker.older != (older := self.older()):
            self.worker = msgspec.structs.replace(self.worker, older=older)
        try:
            with anyio.fail_after(LEASE_SECONDS):
                was_alive = await self._workers.beat(self.worker)
        except (DirectoryUnavailable, TimeoutError) as error:
            if not self.is_away:
                why = _told(error)
                logger.warning("the directory does not take heartbeats: %s", why, extra={"worker": self.worker.id})
            self.is_away = True
            return
        finally:
            self._sent_at = float("inf")
            self._has_beaten.set()
            self._has_beaten = asyncio.Event()
        if self.is_away:
            self._back_at = self._clock()
            logger.info("the directory takes heartbeats again", extra={"worker": self.worker.id})
        self.is_away = False
        if not was_alive and self.holds_lease:  # its clock went forth, or it lost whom it knew: others as well
            self.interrupted()
        if not was_alive or not self.holds_lease:
            self._unseen = self._listed_by
            self.lapses += 1
            self._on_lapse(self._deadline - LEASE_SECONDS)
        self._deadline = sent + LEASE_SECONDS

    async def _beat_on(self) -> None:
        while True:
            with anyio.move_on_after(BEAT_SECONDS):
                await self._must_beat.wait()
            self._must_beat.clear()
            await self.beat()

    async def _look_on(self) -> None:
        """Read who lives, as often as a heartbeat is sent and when somebody asks; no heartbeat waits for it.

        No caller reads: one that is cancelled takes the reading of the others with it in no case.
        """
        try:
            while True:
                with anyio.move_on_after(BEAT_SECONDS):
                    await self._asked.wait()
                self._asked.clear()
                self._readings += 1
                self._began_at = self._clock()
                self._begun, self._next = self._next or asyncio.get_running_loop().create_future(), None
                try:
                    with anyio.fail_after(LEASE_SECONDS):
                        await self._read()
                except (DirectoryUnavailable, TimeoutError):
                    _fail(self._begun, "the directory does not tell who lives")
                else:
                    self._begun.set_result(None)
                self._begun = None
        finally:
            self._is_running = False
            if self._soon is not None:
                self._soon.cancel()
            for reading in (self._begun, self._next):
                if reading is not None:
                    _fail(reading, "this worker is ending")

    async def _retire_dead(self) -> None:
        """Tell the directory who has died; one that does not take it knows it by the heartbeats that do not come."""
        while True:
            await self._has_died.wait()
            self._has_died.clear()
            for worker in tuple(self._dead.values()):
                with suppress(DirectoryUnavailable):
                    await self._workers.retire(worker)

    async def _listed(self) -> dict[str, Worker]:
        """Those that live; read once for all that ask meanwhile."""
        if self._is_due:
            await asyncio.shield(self._begun or self._coming())
        return self._living

    async def _reread(self, pause: float = 0.0) -> dict[str, Worker]:
        """Those that live, by a reading that begins from now on; one for all that ask before it does.

        It need not begin before so many seconds have passed since the last one did.
        """
        await asyncio.shield(self._coming(pause))
        return self._living

    def _coming(self, pause: float = 0.0) -> asyncio.Future[None]:
        if not self._is_running:
            raise DirectoryUnavailable("this worker is no member")
        loop = asyncio.get_running_loop()
        if self._next is None:
            self._next = loop.create_future()
        wait = self._began_at + pause - self._clock()
        if not pause or wait <= 0:
            self._asked.set()
        elif self._soon is None:
            self._soon = loop.call_later(wait, self._ask)
        return self._next

    def _ask(self) -> None:
        """The moment has passed: read, if somebody still waits for it."""
        self._soon = None
        if self._next is not None:
            self._asked.set()

    @property
    def _is_due(self) -> bool:
        believed = DOUBT_SECONDS if self._is_doubted else KNOWN_SECONDS
        return self._clock() - self._read_at >= believed

    async def _read(self) -> None:
        deadline = self._deadline
        listed = {worker.id: worker for worker in await self._workers.workers()}
        if self.worker.id not in listed and self._clock() < deadline:  # nor need others be dead who are not there
            self.interrupted()
        self._dead = {worker.id: worker for worker in self._dead.values() if worker.id in listed}
        self._living = {worker.id: worker for worker in listed.values() if worker.id not in self._dead}
        for worker in self._living.values():
            self._listed_last.pop(worker.number, None)
            self._listed_last[worker.number] = self._readings
        for number in [*self._listed_last][:-MAX_LISTED]:
            del self._listed_last[number]
        self._read_at, self._listed_by, self._is_doubted = self._began_at, self._readings, False


def _fail(reading: asyncio.Future[None], why: str) -> None:
    reading.set_exception(DirectoryUnavailable(why))
    reading.exception()  # nobody may be waiting


def _told(error: DirectoryUnavailable | TimeoutError) -> str:
    """Why, and what to do where that is known."""
    if not isinstance(error, DirectoryUnavailable):
        return "it does not answer in time"
    return f"{error.message}; {error.remedy}" if error.remedy else error.message
