"""One worker's part among several that share a directory: who serves what does not live here.

The record of a workflow names the worker that holds it. Others hand requests on to that one, serve calls beside it, or
take its place once it is dead or has let go (`placement` decides). What is served beside the holder is a workflow of
the same record: it has the upstream session, ids and streams of its own, and says nothing of its end.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from itertools import count
from typing import Final, Protocol

import anyio
import msgspec

from .comparison import Comparison
from .directory import SharedDirectory
from .errors import (
    DirectoryUnavailable,
    Elsewhere,
    Overloaded,
    SessionLost,
    TrunklineError,
    UnknownSession,
    WorkflowEnded,
)
from .journal import Journal
from .limits import Reuse
from .lines import Place
from .membership import Membership
from .placement import NAMES, WIRES, Concern, decide, may_have_parts
from .premises import Premises
from .principal import Principal
from .record import Terms, WorkflowRecord
from .recording import TOUCH_SECONDS, Recording, touch_interval
from .recovery import Kept, Known, recover
from .upstream import Upstream
from .workflow import Workflow

logger = logging.getLogger(__name__)

BESIDE_SECONDS: Final = 60.0
"""For how long nothing may happen on a workflow beside its holder before it ends."""

FLUSH_SECONDS: Final = 2.0
"""How long the last entries of an event log may take to arrive when its worker lets go of it."""

MAX_READS: Final = 8
"""How often a record is read for one request while it changes hands."""

Read = Callable[[], Awaitable[WorkflowRecord | None]]


class Beginning(Protocol):
    """How workflows begin here."""

    @property
    def draining(self) -> bool:
        """True once nothing begins any longer."""

    def make(self, record: WorkflowRecord, upstream: Upstream, place: Place) -> Workflow:
        """A workflow of a record, which lives nowhere yet."""

    async def admit(self, principal: Principal, server: str) -> None:
        """Find room for one more on a server; raises `Overloaded`."""

    async def open(self, workflow: Workflow) -> None:
        """Open one that lives here."""


class Cluster:
    """The workers that share a directory, as one of them sees them."""

    def __init__(self, premises: Premises, members: Membership, directory: SharedDirectory) -> None:
        self.beginning: Beginning
        """Set by who makes it, at once."""
        self.members = members
        members.older = self._older
        self.directory = directory
        self.journal = Journal(directory, premises.statistics)
        """What is on its way to the event logs."""
        self.comparison = Comparison(premises, members, directory)
        self.recording = Recording(premises, directory)
        self._leftovers = premises.leftovers
        self._residents = premises.residents
        self._caps = premises.caps
        self._generations = premises.generations
        self._tasks = premises.tasks
        self._statistics = premises.statistics
        self._clock = premises.clock
        self._names: Iterator[int] | None = None
        self._wires: Iterator[int] | None = None

    def __repr__(self) -> str:
        return f"Cluster(worker {self.members.worker.number}, {len(self._residents.beside.by_id)} beside)"

    @property
    def names(self) -> Iterator[int]:
        """The numbers of all streams and questions that begin here: none is given twice in any workflow."""
        if self._names is None:
            self._names = count(self.number * NAMES + 1)
        return self._names

    @property
    def wires(self) -> Iterator[int]:
        """Those of the streams of wires that carry everything: the number tells that the holder alone has it."""
        if self._wires is None:
            self._wires = count(self.number * NAMES + WIRES)
        return self._wires

    @property
    def number(self) -> int:
        """The number of this worker."""
        return self.members.worker.number

    @property
    def me(self) -> str:
        """The id of this worker."""
        return self.members.worker.id

    def own(self, record: WorkflowRecord, upstream: Upstream, beside: Workflow | None = None) -> WorkflowRecord:
        """The record of a workflow that begins here, or is taken over: as it was served `beside`, where it was."""
        pooling = upstream.pooling if beside is None else beside.pooling
        lifetime = max(pooling.idle_timeout + pooling.resume_window, TOUCH_SECONDS * 4)
        settings = {"reuse": pooling.reuse, "settings": Terms(upstream.place, pooling.keeping), "lifetime": lifetime}
        return msgspec.structs.replace(record, worker=self.me, **settings)

    async def settle(self, principal: Principal, server: str) -> None:
        """Make sure that what a principal's workflows share on a server lives here, from now on if nowhere yet.

        Raises:
            Elsewhere: it lives at another worker.
            DirectoryUnavailable: nobody can tell.
        """
        told = repr((server, principal)).encode()
        name = "user:" + hashlib.blake2b(told, digest_size=16).hexdigest()
        where = await self.members.settle(name)
        if where != self.me:
            raise Elsewhere(where)

    # Finding.

    async def find(self, read: Read, principal: Principal, server: str, concern: Concern) -> Workflow | None:
        """The workflow of the record that `read` finds, where it may be used here; None where there is none (any more).

        Raises:
            Elsewhere: another worker serves it.
            DirectoryUnavailable: nobody can tell.
            TrunklineError: it cannot be opened here.
        """
        for _ in range(MAX_READS):
            record = await read()
            if record is None:
                self.members.demand_settled()
            if record is None or record.principal != principal or record.server != server:
                return None
            if self._leftovers.has(record):
                await self._tasks.see_through(self._withdraw, record)  # others take this worker to hold it still
                return None
            here = self._residents.held.by_id.get(record.session_id)
            if here is not None:
                return here
            moving = self._moving(record)
            if moving is not None:
                await moving.wait()
                continue
            found = await self._place(record, concern)
            if found is not None:
                return found
        raise Overloaded("the session moves between workers; try again", limit="worker")

    async def _place(self, record: WorkflowRecord, concern: Concern) -> Workflow | None:
        """The workflow here that a request for this record may use; None where the record has to be read again."""
        holder = record.worker if record.worker != self.me else ""
        lives = bool(holder) and await self.members.find(holder) is not None
        upstream = self._settings_for(record)
        if not lives and (upstream is None or not upstream.leads_to(record)):
            await self._leave(record)
        if upstream is None:
            if lives:
                raise Elsewhere(holder)
            raise UnknownSession("no such session; begin anew with initialize")
        if not upstream.leads_to(record):
            record = msgspec.structs.replace(record, upstream_session="")
        decision = decide(
            msgspec.structs.replace(record, worker=holder),
            holder_lives=lives,
            is_call=concern.are_calls or concern.worker == self.number,
            stateless=upstream.stateless or upstream.pooling.reuse == "user",
            reuse=upstream.pooling.reuse,
            settings=upstream.terms,
        )
        match decision:
            case "beside" if self._has_room_beside(record.server) and not self.beginning.draining:
                return await self._stand_beside(record, upstream)
            case "beside" | "forward":
                raise Elsewhere(holder)
            case "take_over":
                if self.beginning.draining:
                    await self.members.hand_on()
                    raise _drained(concern)
                if upstream.pooling.reuse == "user":
                    await self._settle_for(record)
                return await self._take_over(record, upstream)
            case "gone":
                self._statistics.count("takeovers", "gone" if record.worker else "let_go")
                await self.directory.remove(record)
                return None

    def _settings_for(self, record: WorkflowRecord) -> Upstream | None:
        """The settings to serve a record under: those that hold, but where only older ones lead to its session."""
        current = self._generations.current.get(record.server)
        if current is None or not current.leads_to(record):
            for older in self._generations.superseded:
                if older.name == record.server and older.keeps_sessions and older.leads_to(record):
                    return older if record.reuse == "workflow" else current
        return current

    def _older(self) -> tuple[str, ...] | msgspec.UnsetType:
        places = {f"{it.name} {it.place}" for it in self._generations.superseded if it.keeps_sessions}
        return tuple(sorted(places)) or msgspec.UNSET

    async def _leave(self, record: WorkflowRecord) -> None:
        """Leave a session that cannot be gone on with here to another worker that can.

        Raises:
            Elsewhere: the other one.
        """
        if record.upstream_session and record.reuse == "workflow" and record.settings is not msgspec.UNSET:
            place = f"{record.server} {record.settings.place}"
            for other in await self.members.others():
                if place in (other.older or ()) and not other.drains:
                    raise Elsewhere(other.id)

    async def _settle_for(self, record: WorkflowRecord) -> None:
        """As `settle`; a record that is left with this worker, which does not hold it, goes with what is shared."""
        try:
            await self.settle(record.principal, record.server)
        except Elsewhere:
            if record.worker == self.me:
                await self.directory.replace(msgspec.structs.replace(record, worker=""))
            raise

    def _moving(self, record: WorkflowRecord) -> asyncio.Event | None:
        return self._residents.moving(record.principal, record.server, record.key, record.session_id)

    # Holding.

    async def _take_over(self, record: WorkflowRecord, upstream: Upstream) -> Workflow | None:
        """Become the worker that holds a workflow; None where another one was first."""
        if self._moving(record) is not None or record.session_id in self._residents.held.by_id:
            return None
        self._residents.unsettle(record)
        try:
            return await self._tasks.see_through(self._become_holder, record, upstream)
        except Overloaded:  # it may not have been begun
            self._residents.settle(record)
            raise

    async def _become_holder(self, record: WorkflowRecord, upstream: Upstream) -> Workflow | None:
        try:
            beside = await self._opened_beside(record)
            living, reading = await self._partners(record, upstream.pooling.reuse)
            kept = recover(await self.directory.read(record.session_id))
            await self.beginning.admit(record.principal, record.server)
            census, lapses = self._residents.held.census, self.members.lapses
            with ExitStack() as unused:
                census.add(record.principal, record.server)
                unused.callback(census.remove, record.principal, record.server)
                stored = await self.directory.replace(self.own(record, upstream, beside))
                if stored is None:
                    self._statistics.count("takeovers", "overtaken")
                    return None
                is_same = self._settings_for(record) is upstream
                may_stay = is_same and not self.beginning.draining and lapses == self.members.lapses
                if may_stay:
                    unused.pop_all()  # it has its place
            if not may_stay:
                await self.hand_back(stored)  # who asked for it meets what holds by now
                return None
            opened = "adopted" if record.upstream_session else "reopened"
            self._statistics.count("takeovers", opened if record.worker else "let_go")
            workflow = self._hold(stored, upstream, beside)
            workflow.account.take_over(self._clock())
            kept.stream(0)
            workflow.known = Known(reading, is_own=True)
            workflow.restore(kept, stored.epoch, lambda name: name // NAMES not in living or kept.is_wire(name))
            return workflow
        except TrunklineError:
            self._statistics.count("takeovers", "refused")
            raise
        finally:
            self._residents.settle(record)

    async def _living(self) -> set[int]:
        """The numbers of the other workers that live."""
        return {number for number in await self.members.numbers() if number != self.number}

    async def _partners(self, record: WorkflowRecord, reuse: Reuse) -> tuple[set[int], int]:
        """The numbers of those who live and may have parts of a workflow; since which reading others may leave more."""
        if may_have_parts(record, reuse):
            return await self._living(), self.members.reading
        self.members.demand_settled()  # whoever took it over may be about to say so once more
        return set(), self.members.reading + 1

    async def restore(self, workflow: Workflow, concern: Concern) -> None:
        """Make a stream or a question known to a workflow that its worker left behind, or this one.

        Where it is held, what other dead workers left since its event log was read comes with it; what lives here stays
        as it is, what ended here does not come back. Where no other worker may have parts of it, those that live count
        as dead, too: what they wrote late comes, and so may, once for each reading of who lives, what ended here.

        Raises:
            Elsewhere: its worker lives after all.
            DirectoryUnavailable: nobody can tell.
        """
        record, kept, before = workflow.record, Kept(), workflow.known
        is_own, living = concern.giver == self.number, set[int]()
        if self._may_have_left(concern.giver, before):
            living, reading = await self._partners(record, workflow.pooling.reuse)
            if concern.worker in living:
                await self.direct(concern.worker)
            await self.write_out(record.session_id)  # what was settled here is not found open there
            kept = recover(await self.directory.read(record.session_id))
            workflow.known = Known(reading, is_own=is_own or (before is not None and before.is_own))
        if concern.is_stream:  # its worker died before it could tell of it
            kept.stream(concern.name)

        def is_left(name: int) -> bool:
            worker = name // NAMES
            if worker == self.number or not self._residents.held.has(workflow):
                return is_own and worker == self.number
            return worker not in (0, *living) and not kept.is_wire(name) and self._may_have_left(worker, before)

        workflow.restore(kept, max(record.epoch, 1), lambda name: name == concern.name or is_left(name))

    def _may_have_left(self, number: int, known: Known | None) -> bool:
        """Whether the worker of this number may have left more of a workflow than is known of it."""
        if known is None:
            return True
        return not known.is_own if number == self.number else self.members.has_lived(number, known.reading)

    async def seek(self, concern: Concern, server: str, workflow: Workflow | None, read: Read) -> None:
        """As `direct`, unless no other one may have parts of what lives here as `workflow`: it would be sent back.

        So it would be by who let go of what nobody holds: that is taken over first.
        """
        upstream = self._generations.current.get(server)
        reuse = workflow.pooling.reuse if workflow else upstream.pooling.reuse if upstream else "workflow"
        if reuse == "user" or (workflow is not None and not may_have_parts(workflow.record, reuse)):
            return
        record = None if workflow is not None else await read()
        if record is None or record.worker or self.beginning.draining:
            await self.direct(concern.worker)

    async def direct(self, number: int) -> None:
        """Send on what names a thing that the worker of this number gave, if that is another one that lives.

        Raises:
            Elsewhere: it is.
            DirectoryUnavailable: nobody can tell.
        """
        if number in (0, self.number):
            return
        worker = await self.members.numbered(number)
        if worker is not None:
            raise Elsewhere(worker.id)

    async def _opened_beside(self, record: WorkflowRecord) -> Workflow | None:
        """The workflow of this record that lives here beside its holder, once it is open."""
        workflow = self._residents.beside.by_id.get(record.session_id)
        if workflow is None:
            return None
        await asyncio.wait([workflow.opened])
        return workflow if self._residents.beside.has(workflow) else None

    def _hold(self, record: WorkflowRecord, upstream: Upstream, beside: Workflow | None) -> Workflow:
        if beside is None or beside.ended is not None or beside.record.upstream_session != record.upstream_session:
            workflow = self.beginning.make(record, upstream, "held")
            self._residents.add(workflow)
            self._tasks.spawn(self.beginning.open, workflow)
            return workflow
        self._residents.beside.remove(beside)
        beside.record = record
        self._residents.add(beside)
        beside.listen()
        return beside

    async def hand_back(self, record: WorkflowRecord, workflow: Workflow | None = None) -> None:
        """Let any worker take over what lived here as `workflow`; where nobody can be told, once this one is dead."""
        highest_id = 0 if workflow is None else workflow.highest_id
        await self.write_out(record.session_id)
        try:
            if await self.directory.replace(msgspec.structs.replace(record, worker="")) is None:
                newer = await self.directory.get(record.session_id)
                if newer is None and workflow is not None and not self.comparison.may_be_forgotten(workflow):
                    return  # it was removed
                if newer is None or newer.is_behind(record):  # it has lost it, or what it was told last
                    record = await self.comparison.renumbered(record, highest_id)
                    newer = await self.directory.publish(record)
                # Else it was not heard (yet) that something was stored.
                if newer is not None and (newer == record or newer.follows(record)):
                    last = {"upstream_session": record.upstream_session, "wish": record.wish}
                    await self.directory.replace(msgspec.structs.replace(newer, worker="", **last))
        except DirectoryUnavailable:
            logger.warning("a workflow could not be let go", extra={"server": record.server, "handle": record.handle})

    async def write_out(self, session_id: str) -> None:
        """Wait until what is on its way to the event log of a workflow has arrived there, a little."""
        with anyio.move_on_after(FLUSH_SECONDS):
            await self.journal.flush(session_id)

    # Beside the holder.

    def _has_room_beside(self, server: str) -> bool:
        """Whether one more on a server may live here beside its holder: there may be as many as of those held here."""
        most, scope = self._caps.of(server, "max_workflows")
        return self._residents.beside.census.within(scope, lambda count: count.total) < most

    async def _stand_beside(self, record: WorkflowRecord, upstream: Upstream) -> Workflow:
        workflow = self._residents.beside.by_id.get(record.session_id)
        if workflow is None:
            workflow = self.beginning.make(record, upstream, "beside")
            self._residents.beside.census.add(record.principal, record.server)
            self._residents.beside.add(workflow)
            self._tasks.spawn(self._open_beside, workflow)
        await asyncio.shield(workflow.opened)
        return workflow

    async def _open_beside(self, workflow: Workflow) -> None:
        if workflow.opened.done():
            return
        try:
            workflow.settle(await workflow.line.open())
        except TrunklineError as error:
            workflow.settle(error)
            self.dismiss(workflow, "not_opened")

    def dismiss(self, workflow: Workflow, cause: str) -> bool:
        """End a workflow that lives beside its holder; False where it is none.

        What ends all of it (the server has forgotten the session or become another, the log is full) is told to the
        holder by the record.
        """
        if not self._residents.beside.remove(workflow):
            return False
        self._statistics.count("beside_ended", cause)
        workflow.end(cause, release=True)
        workflow.settle(WorkflowEnded(cause, executed="no"))
        if cause == "drained":  # the process stays until that is done
            self._tasks.spawn(self.write_out, workflow.record.session_id)
        if cause in ("upstream_lost", "upstream_changed", "event_log_overflow", "event_log_trimmed"):
            self._tasks.spawn(self._withdraw, workflow.record)
        elif workflow.was_used_since(workflow.touched):
            self._tasks.spawn(self.recording.touch, [workflow])
        return True

    async def _withdraw(self, record: WorkflowRecord) -> None:
        try:
            await self.directory.remove(record)
        except DirectoryUnavailable:
            logger.warning("a record could not be removed", extra={"server": record.server, "handle": record.handle})

    async def may_be_used_elsewhere(self, workflow: Workflow) -> bool:
        """Whether another worker may have served its client lately; then it counts as used until that is known.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        if not may_have_parts(workflow.record, workflow.pooling.reuse):
            return False
        seconds = await self.directory.untouched(workflow.record.session_id)
        # Who serves it tells the directory so often, and of what begins to be used at the next look.
        if seconds is None or seconds >= touch_interval(workflow.pooling) + 2 * TOUCH_SECONDS:
            return False
        # Among several, that the last word was this worker's own says nothing: the next one of others is yet to come.
        if self._clock() - seconds <= workflow.touched + TOUCH_SECONDS and not await self._living():
            return False
        workflow.touched_elsewhere(self._clock())
        return True

    # As time passes.

    def expire(self, now: float) -> None:
        """Look after what lives beside its holder, and tell the directory what is in use."""
        for workflow in tuple(self._residents.beside.by_id.values()):
            workflow.expire(now)
            idle_since = workflow.idle_since
            if idle_since is not None and idle_since + BESIDE_SECONDS <= now and not workflow.holds_events:
                self.dismiss(workflow, "idle")
        self.recording.expire(now)


def _drained(concern: Concern) -> TrunklineError:
    """Why a workflow is not gone on with that no worker may take over; calls are answered as where it is held (G8)."""
    why = "the gateway is shutting down"
    return SessionLost(why, executed="no") if concern.are_calls else Overloaded(why, limit="draining")
