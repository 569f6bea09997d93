"""Sessions that wait, initialized and never used, for the next workflow of their kind (`spares`, `reuse = "workflow"`).

A spare was opened with exactly the handshake, the headers, the settings and the credential that a workflow of the same
principal has now; the next one that begins with the same takes it, and begins without a handshake. Once taken it is
that workflow's own, like any other. Spares are opened one at a time, only while workflows of their kind live and their
server is not held back, and never past a cap on workflows, before which they also give way.
"""

import asyncio
from collections.abc import Callable
from math import inf
from typing import Final, NamedTuple

import anyio

from .account import OWN
from .breaker import Backoff
from .channel import Channel
from .directory import ID_BLOCK, Directory
from .envelope import Envelope
from .errors import SessionLost, TrunklineError, Unattributable, WorkflowEnded
from .id_supply import DrawIds
from .lifecycle import Effect
from .limits import Pooling
from .line import DedicatedLine
from .own import NoClient, OwnCaller, own_request
from .policy import Cap, Census
from .ports import Answerable, Caller, Opened, Owner
from .principal import Principal
from .record import Handshake
from .request import ServerRequest
from .upstream import ChannelMaker

FIRST_IDS: Final = range(1, ID_BLOCK + 1)
"""The ids with which every session begins: those that its workflow's record will draw first."""

FRESH_SECONDS: Final = 1.0
"""A spare that has waited longer is asked whether it still lives, before a workflow depends on it."""

PING_SECONDS: Final = 2.0
"""How long a spare may take to answer that; then the workflow gets a session of its own."""

UNUSED_SECONDS: Final = 60.0
"""A key is in use for so long after its last workflow: clients come and go in sequence."""

MAX_UNUSED: Final = 256
"""Keys that were in use lately, and are remembered at once; the one that was left first is forgotten."""

MAX_HELD: Final = 16
MAX_HELD_BYTES: Final = 64 * 1024
"""What a server may tell a spare before it is taken; it is kept for whoever takes it."""

SpareMaker = Callable[[list[Owner], DrawIds, Callable[[Channel, Effect], None]], Channel]
"""Makes a channel and starts its owner task: its owners, its ids, and who performs what its life asks for."""


class SpareKey(NamedTuple):
    """What a workflow and a spare must have in common: everything that the server is told."""

    server: str
    generation: int
    principal: Principal
    credential: str
    handshake: Handshake


class Spare(NoClient):
    """A session without a workflow, and the owner of its channel until it has one.

    What the server tells is kept for the workflow to come. What it asks nobody could answer: `on_spoilt` is told, and
    whether every other spare of its kind would be asked the same.
    """

    def __init__(self, key: SpareKey, directory: Directory, on_spoilt: "Callable[[Spare, bool], None]") -> None:
        self.principal = key.principal
        self.server = key.server
        self.channel: Channel
        """Set by who makes it, at once."""
        self.owners: list[Owner] = [self]
        """The owners of the channel, by reference."""
        self._directory = directory
        self._on_spoilt = on_spoilt
        self._session_id: str | None = None
        self._held: list[Envelope] = []
        self._bytes = 0

    @property
    def idle_since(self) -> float | None:
        """Since when it waits."""
        return self.channel.life.since

    async def draw_ids(self, above: int) -> range:
        """The first block of any session, and after that the next ones of its workflow's record."""
        if self._session_id is None:
            return FIRST_IDS
        return await self._directory.draw_ids(self._session_id, above)

    def hand_over(self, owner: Owner, session_id: str, now: float) -> None:
        """From now on it is the session of this workflow."""
        self.channel.life.step("lent", now)
        self._session_id = session_id
        self.owners[:] = [owner]
        for message in self._held:
            owner.told(message, None)
        self._held.clear()

    # The owner of its channel.

    def asked(self, channel: Answerable, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.asked`."""
        channel.refuse(request, Unattributable("no client is there yet"))
        self._on_spoilt(self, True)

    def told(self, message: Envelope, origin: Caller | None) -> None:
        """See `Owner.told`."""
        self._held.append(message)
        self._bytes += len(message.encode())
        if len(self._held) > MAX_HELD or self._bytes > MAX_HELD_BYTES:
            self._on_spoilt(self, False)


class Shelf:
    """The spares of one key; the one that was put there last is taken first."""

    def __init__(self, key: SpareKey, limits: Pooling, spares: "Spares", make: SpareMaker) -> None:
        self.key = key
        self.limits = limits
        self.users = 0
        """Workflows of this key."""
        self._spares = spares
        self._make = make
        self._live: dict[Spare, None] = {}
        """All of them: the one that is being opened, those that are ready, and those that are about to be taken."""
        self._opening: Spare | None = None
        self._ready: list[Spare] = []
        self._tried: dict[Owner, Spare] = {}
        """What a workflow is about to take."""
        self._is_proven = False
        """True once a workflow has opened a session of this kind."""
        self._backoff = Backoff()
        self._is_asked = False
        """True where the server asks its clients before they have said anything: nobody could answer for a spare."""
        self._left = 0.0

    @property
    def idle(self) -> list[Spare]:
        """Those that can be done without."""
        return [*self._ready, *([self._opening] if self._opening is not None else [])]

    def is_unused(self, now: float) -> bool:
        """True where no workflow of this key is there, or was lately."""
        return not self.users and self._left + min(UNUSED_SECONDS, self.limits.idle_timeout) <= now

    def join(self) -> None:
        """A workflow of this key begins."""
        self.users += 1
        self._spares.unused.pop(self.key, None)

    def leave(self, owner: Owner) -> None:
        """A workflow of this key has ended."""
        self.users -= 1
        self._left = self._spares.now()
        if owner in self._tried:
            self.close(self._tried.pop(owner), "unused")
        if not self.users:
            self._spares.leave(self.key)

    async def take(self, owner: Owner, session_id: str) -> Channel | None:
        """A session for this workflow; None where there is none that can be had.

        Raises:
            TrunklineError: the directory cannot be reached.
            KeyError: the workflow's record is gone.
        """
        if not self._ready or await self._spares.directory.draw_ids(session_id, 0) != FIRST_IDS or not self._ready:
            return None
        spare = self._tried[owner] = self._ready.pop()
        is_alive = False
        try:
            is_alive = await self._is_alive(spare) and spare.channel.is_open
        finally:
            is_wanted = self._tried.pop(owner, None) is not None
            if not is_alive:
                self.close(spare, "session_lost")
        if not is_alive:
            if is_wanted:
                self.dismiss("session_lost")  # what has become of one has become of the others
            return None
        self._forget(spare)
        self._backoff.succeeded()
        spare.hand_over(owner, session_id, self._spares.now())
        return spare.channel

    def opened(self) -> None:
        """A workflow of this key has its session."""
        self._is_proven = True
        self.refill(self._spares.now())

    def refill(self, now: float) -> None:
        """Open one more, where one is due and may be opened."""
        is_due = self.users and self._is_proven and not self._is_asked and self._opening is None
        if not is_due or len(self._live) >= self.limits.spares or self._backoff.until > now:
            return
        if not self._spares.may_open(self.key):
            return
        spare = Spare(self.key, self._spares.directory, self._spoil)
        try:
            spare.channel = self._make(spare.owners, spare.draw_ids, self._perform)
        except TrunklineError:
            self._backoff.failed(now)
        else:
            self._opening = spare
            self._live[spare] = None
            self._spares.census.add(self.key.principal, self.key.server)

    def expire(self, now: float) -> None:
        """Close those that have waited too long, and open what is missing."""
        for spare in tuple(self._ready):
            spare.channel.expire(now)
            if spare.channel.listening.rests_at(-inf) <= now:
                spare.channel.rest()
            happening = spare.channel.life.due(0, now, self.limits, may_end=True)
            if happening is not None:
                spare.channel.life.step(happening, now)
                self._forget(spare)
                spare.channel.close(WorkflowEnded("aged" if happening == "aged" else "idle"))
        self.refill(now)

    def dismiss(self, cause: str) -> None:
        """Close all that no workflow is about to take."""
        for spare in self.idle:
            self.close(spare, cause)

    def make_room(self) -> None:
        """A workflow of this key opens a session of its own."""
        self._spares.make_room(self.key.principal, self.key.server)

    def close(self, spare: Spare, cause: str) -> None:
        """Close this one, for a cause."""
        self._forget(spare)
        spare.channel.life.step("dismissed", self._spares.now())
        spare.channel.close(WorkflowEnded(cause))

    # Inside.

    def _perform(self, channel: Channel, effect: Effect) -> None:
        """Do what the life of one of its channels asks for."""
        spare = next((spare for spare in self._live if spare.channel is channel), None)
        now = self._spares.now()
        if spare is None:
            return
        if effect == "offer":
            self._opening = None
            self._ready.append(spare)
            self.refill(now)
        elif effect == "back_off":
            self._forget(spare)
            self._backoff.failed(now)

    async def _is_alive(self, spare: Spare) -> bool:
        if spare.channel.life.opened + FRESH_SECONDS > self._spares.now():
            return True
        answered: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

        def over(is_answer: bool) -> None:
            if not answered.done():
                answered.set_result(is_answer)

        try:
            spare.channel.request(own_request("ping", {}), OwnCaller(over), {})
        except TrunklineError:
            return False
        with anyio.move_on_after(PING_SECONDS):
            return await answered
        return False

    def _spoil(self, spare: Spare, is_always_so: bool) -> None:
        self._is_asked = self._is_asked or is_always_so
        self._backoff.failed(self._spares.now())
        self.close(spare, "spoilt")

    def _forget(self, spare: Spare) -> None:
        if spare in self._ready:
            self._ready.remove(spare)
        if self._opening is spare:
            self._opening = None
        if spare in self._live:
            del self._live[spare]
            self._spares.census.remove(self.key.principal, self.key.server)


class Spares:
    """All shelves of one pool.

    `may_open` tells whether one more spare of a key may be opened now, `exceeded` the cap that workflows and spares
    together exceed.
    """

    def __init__(
        self,
        directory: Directory,
        *,
        may_open: Callable[[SpareKey], bool],
        exceeded: Callable[[Principal, str], Cap | None],
        clock: Callable[[], float],
    ) -> None:
        self.directory = directory
        self.may_open = may_open
        self._exceeded = exceeded
        self.now = clock
        self.census = Census()
        """How many there are, by user and tenant."""
        self.unused: dict[SpareKey, None] = {}
        """Keys that no workflow has any longer; the one that was left first comes first."""
        self._shelves: dict[SpareKey, Shelf] = {}

    def shelf(self, key: SpareKey, limits: Pooling, make: SpareMaker) -> Shelf:
        """Where spares of this key are found."""
        if key not in self._shelves:
            self._shelves[key] = Shelf(key, limits, self, make)
        return self._shelves[key]

    def make_room(self, principal: Principal, server: str) -> None:
        """Close as many as a workflow of this principal needs on a server: the longest waiting first."""
        while self.census.total and (cap := self._exceeded(principal, server)):
            counted = [(spare, shelf) for shelf in self._shelves.values() for spare in shelf.idle if cap.counts(spare)]
            if not counted:
                return
            spare, shelf = min(counted, key=lambda entry: entry[0].idle_since or 0.0)
            shelf.close(spare, "evicted")

    def expire(self, now: float) -> None:
        """Look after all."""
        for key, shelf in list(self._shelves.items()):
            if shelf.is_unused(now):
                self._remove(key)
            else:
                shelf.expire(now)

    def leave(self, key: SpareKey) -> None:
        """No workflow of this key is there any longer: clients choose keys, and only so many are remembered."""
        if key in self._shelves:
            self.unused[key] = None
        if len(self.unused) > MAX_UNUSED:
            self._remove(next(iter(self.unused)))

    def _remove(self, key: SpareKey) -> None:
        self.unused.pop(key, None)
        self._shelves.pop(key).dismiss("unused")

    def supersede(self, is_current: Callable[[str, int], bool]) -> None:
        """Settings have changed: spares under old ones are of no use to anybody."""
        for key, shelf in self._shelves.items():
            if not is_current(key.server, key.generation):
                shelf.dismiss("reconfigured")

    def close(self, cause: str) -> None:
        """Close all."""
        for shelf in self._shelves.values():
            shelf.dismiss(cause)
        self._shelves.clear()
        self.unused.clear()


class SparedLine(DedicatedLine):
    """The dedicated line of a workflow that takes a spare where one waits for it."""

    def __init__(
        self,
        make_channel: ChannelMaker,
        *,
        shelf: Shelf,
        owner: Owner,
        session_id: str,
        stateless: bool,
        max_waiting: int,
    ) -> None:
        super().__init__(make_channel, stateless=stateless, max_waiting=max_waiting, why=OWN)
        self._shelf = shelf
        self._owner = owner
        self._session_id = session_id
        shelf.join()

    async def open(self) -> Opened:
        """See `Line.open`."""
        try:
            channel = await self._shelf.take(self._owner, self._session_id)
        except KeyError:
            raise SessionLost("the record of the session is gone", executed="unknown") from None
        if channel is None:
            self._shelf.make_room()
            opened = await super().open()
        elif self._cause is not None:  # it ended meanwhile
            channel.close(self._cause)
            raise SessionLost(self._cause.message, executed="no")
        else:
            self.channel = channel
            opened = channel.opened.result()._replace(pool_result="spare")
        self._shelf.opened()
        return opened

    def close(self, cause: TrunklineError) -> None:
        """See `Line.close`."""
        is_first = self._cause is None
        super().close(cause)
        if is_first:
            self._shelf.leave(self._owner)
