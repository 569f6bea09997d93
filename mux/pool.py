"""Finds or opens the workflow and the channel for a call, and ends what is no longer needed.

The pool decides with pure functions (`policy`) and acts in tasks of its own: nothing that a caller's cancellation could
leave half done. It holds no lock; what must happen once is a future that all who need it await.
"""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import anyio

from .account import MAX_ENDED, RETURNED, Ended, Origin, handshake_differences
from .breaker import Circuit
from .channel import Channel
from .cluster import Cluster, ClusterPorts, Read
from .directory import MAX_STALENESS, Directory, SharedDirectory
from .ending import Ending
from .envelope import Envelope
from .errors import DirectoryUnavailable, InvalidParams, Overloaded, UnknownSession, WorkflowEnded
from .event_log import Budget, Position
from .failures import Failure
from .generations import Generations
from .handshake import difference, read_handshake
from .leftovers import Leftovers
from .limits import Pooling
from .lines import Lines, Upstream
from .membership import Membership
from .opening import Newcomer, Opening, OpeningPorts
from .placement import WHOLE, Concern
from .ports import Headers, PoolResult
from .principal import Principal
from .record import Handshake, WorkflowRecord, WorkflowState, new_session_id
from .residents import Residents
from .statistics import Statistics
from .sweep import Sweep, SweepPorts
from .tasks import Tasks
from .workflow import Transport, Workflow

logger = logging.getLogger(__name__)

CLOSE_SECONDS: Final = 10.0
"""How long the channels may take to say goodbye to their servers when the pool stops."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a client comes with its `initialize`, and what it comes back to."""

    session_id: str | None = None
    key: str | None = None
    session_headers: Headers = field(default_factory=dict)
    transport: Transport = "http"
    new_id: str | None = None
    """The session id of a workflow that begins, where its client knows one already."""
    own_wires: int = 0
    """Wires of the workflow that are the asker's own: they do not keep it in use."""
    generation: int | None = None
    """The generation of the server's settings that the client was met under; None where that makes no difference."""


DIRECT: Final = Arrival()
"""A client that names nothing."""


class Begun(NamedTuple):
    """The answer to an `initialize`."""

    workflow: Workflow
    state: WorkflowState
    pool_result: PoolResult
    result: bytes
    """The InitializeResult, raw."""


class Pool:
    """All workflows and channels of this process.

    `release` hears of a server's settings that were superseded, once nothing is open under them.

    With `members` and `shared`, it is that of one worker among several that share the directory: its membership, whose
    `on_lapse` is `lapse`, and which counts for as long as the pool runs; and the directory, as they share it.

    What became of the `max_ended` workflows that ended last is remembered, for whoever asks why.
    """

    def __init__(
        self,
        upstreams: Mapping[str, Upstream],
        directory: Directory,
        *,
        pooling: Pooling,
        statistics: Statistics | None = None,
        clock: Callable[[], float] = time.monotonic,
        release: Callable[[Upstream], Coroutine[Any, Any, None]] | None = None,
        members: Membership | None = None,
        shared: SharedDirectory | None = None,
        max_ended: int = MAX_ENDED,
    ) -> None:
        self.statistics = statistics or Statistics()
        self.draining = False
        self._knows: Callable[[Principal], bool] = lambda principal: True
        self.pooling = pooling
        """What bounds the process."""
        self._directory = directory
        self._generations = Generations(upstreams)
        self._leftovers = Leftovers()
        self._clock = clock
        self._residents = Residents(max_ended)
        self._census = self._residents.census
        self._budget = Budget(pooling.event_log.total_bytes)
        self._workflows = self._residents.by_id
        self._by_token = self._residents.by_token
        self._tasks = Tasks()
        self._cluster = None if members is None or shared is None else self._clustering(members, shared)
        self._lines = Lines(
            directory,
            self.statistics,
            clock,
            generations=self._generations,
            census=self._census,
            spawn=self._tasks.spawn,
            end=lambda workflow, cause: self._ending.soon(workflow, cause),
            note=self._note,
            members=members,
        )
        self._ending = Ending(
            directory=directory,
            residents=self._residents,
            lines=self._lines,
            leftovers=self._leftovers,
            tasks=self._tasks,
            cluster=self._cluster,
            statistics=self.statistics,
            clock=clock,
        )
        self._opening = self._beginning()
        self._sweep = self._sweeping(release)

    def __repr__(self) -> str:
        return f"Pool({len(self._workflows)} workflows, {len(self.channels)} channels)"

    @property
    def upstreams(self) -> dict[str, Upstream]:
        """The servers on which workflows begin, by name."""
        return self._generations.current

    @property
    def ended(self) -> Sequence[Ended]:
        """The workflows that ended last, so that it can be told why; the newest at the end."""
        return self._residents.ended

    @property
    def workflows(self) -> list[Workflow]:
        """The workflows that live here."""
        return list(self._workflows.values())

    def now(self) -> float:
        """Seconds on the clock that everything here is measured by."""
        return self._clock()

    @property
    def channels(self) -> list[tuple[str, Channel]]:
        """Each channel that lives here, with its server's name."""
        return self._lines.channels

    @property
    def failures(self) -> Mapping[str, Failure]:
        """What failed last with each server with which nothing has gone well since."""
        return self._lines.failures

    @property
    def circuits(self) -> list[Circuit]:
        """How the servers stand that failed lately, for each tenant."""
        return self._lines.circuits

    @property
    def inflight(self) -> int:
        """Calls that wait for an answer, over all workflows."""
        return sum(workflow.inflight for workflow in self._served)

    @property
    def _served(self) -> list[Workflow]:
        """Those that live here, and those that are served here beside the workers that hold them."""
        beside = () if self._cluster is None else self._cluster.beside.values()
        return [*self._workflows.values(), *beside]

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Pool"]:
        """The pool with its tasks, for the length of the context; leaving it ends every workflow in an orderly way."""
        failure: Exception | None = None
        async with self._written(), anyio.create_task_group() as keepers, self._tasks.running(CLOSE_SECONDS):
            await keepers.start(self._watch)
            keepers.start_soon(self._sweep.run)
            try:
                yield self
            except Exception as error:  # kept out of the task groups, which would wrap it
                failure = error
            finally:
                keepers.cancel_scope.cancel()
                self.draining = True
                self._end_all()
        if failure is not None:
            raise failure

    @asynccontextmanager
    async def _written(self) -> AsyncIterator[None]:
        """Event logs are kept for other workers, for the length of the context."""
        async with anyio.create_task_group() as writers:
            if self._cluster is not None:
                writers.start_soon(self._cluster.journal.run)
            yield
            writers.cancel_scope.cancel()

    def reconfigure(self, upstreams: Mapping[str, Upstream], pooling: Pooling) -> None:
        """Begin workflows on these servers from now on; `pooling` bounds the process.

        What began on a server that is gone, or under another generation of its settings, goes on as it was for as long
        as its client uses it: detached and idle, it ends after `resume_window`, for the cause `reconfigured`.
        """
        before = self.upstreams
        self._generations.replace(upstreams)
        self.pooling = pooling
        self._budget.limit = pooling.event_log.total_bytes
        for workflow in self._served:
            workflow.is_superseded = not self._generations.is_current(workflow.server, workflow.generation)
            workflow.stir()
        is_current = self._generations.is_current
        self._lines.supersede({name for name, upstream in before.items() if is_current(name, upstream.generation)})

    def revoke(self, knows: Callable[[Principal], bool]) -> None:
        """End the workflows of whoever is not known any longer, for the cause `revoked`; none of theirs begins."""
        self._knows = knows
        for workflow in self._served:
            if not knows(workflow.principal):
                self._ending.soon(workflow, "revoked")

    def lapse(self, since: float) -> None:
        """Others may have taken over what lives here since then: compare it with the directory before it is used."""
        for workflow in self.workflows:
            if workflow.doubted_since is None:
                workflow.doubted_since = since
            workflow.checked = float("-inf")
        self._lines.lapse()
        self._tasks.spawn(self._compare_doubted, None)

    # Beginning and finding workflows.

    async def begin(
        self,
        principal: Principal,
        server: str,
        message: Envelope,
        arrival: Arrival = DIRECT,
    ) -> Begun:
        """Answer an `initialize`: open a workflow, or come back to the one that the session id or the key names.

        Coming back costs no upstream request: the server's answer is the one it gave when the session was opened,
        under the same revision, capabilities and principal (rules L7-L14).

        Raises:
            UnknownSession: the session id names nothing of this principal on this server; or there is no such server.
            InvalidParams: another handshake than the one the workflow was opened with, while it is in use.
            Overloaded: a cap is reached, the gateway is draining, or the server's settings have just changed.
            TrunklineError: the server cannot be reached, or refused.
        """
        handshake = read_handshake(message, arrival.session_headers)
        key = arrival.key
        known = await self._known(principal, server, arrival.session_id, key)
        origin: Origin | None = None
        if known is not None:
            differing = difference(known.record, handshake)
            if differing is None:
                return await self._return_to(known, _named_by(arrival))
            if known.wires > arrival.own_wires or known.inflight or not known.opened.done():
                raise InvalidParams(f"the session is in use and was opened with another {differing}")
            self._generations.find(server, arrival.generation)  # nothing ends for what cannot begin
            await self.end(known, "reset")
            key = known.record.key
            origin = Origin("reset", known.handle, handshake_differences(known.record.handshake, handshake))
        elif (moving := self._residents.moving(principal, server, key, arrival.new_id)) is not None:
            await moving.wait()
            return await self.begin(principal, server, message, arrival)
        record = WorkflowRecord(arrival.new_id or new_session_id(), principal, server, key, handshake)
        return await self._create(Newcomer(record, arrival.transport, arrival.generation), origin)

    def resumable(self, principal: Principal, server: str, message: Envelope, arrival: Arrival) -> Workflow | None:
        """The workflow that `begin` would come back to, where that needs nothing to be waited for; None tells nothing.

        Raises:
            InvalidParams: as `begin`.
        """
        workflow = self.at_hand(principal, server, arrival.session_id, arrival.key)
        if workflow is None or not workflow.opened.done():
            return None
        handshake = read_handshake(message, arrival.session_headers)
        return workflow if difference(workflow.record, handshake) is None else None

    def resume(self, workflow: Workflow, arrival: Arrival) -> Begun:
        """Come back to what is `resumable`."""
        return self._returned(workflow, _named_by(arrival))

    def check_open(self, server: str, generation: int | None = None) -> Upstream:
        """The server, if a workflow may begin on it under this generation of its settings.

        Raises:
            UnknownServer: there is no such server, or not any longer.
            Overloaded: the gateway is draining, or the settings have changed.
        """
        if self.draining:
            raise Overloaded("the gateway is shutting down", limit="draining")
        return self._generations.find(server, generation)

    def at_hand(
        self,
        principal: Principal,
        server: str,
        session_id: str | None,
        key: str | None = None,
        concern: Concern = WHOLE,
    ) -> Workflow | None:
        """What `find`, or by a key alone `find_key`, would find, where that needs nobody to be asked.

        None tells nothing. What lives here is believed for `MAX_STALENESS`.
        """
        if session_id is not None:
            workflow = self._workflows.get(session_id)
        else:
            workflow = None if key is None else self._residents.by_key.get((principal, server, key))
        if (
            workflow is None
            or (concern.name and self._cluster is not None)
            or not _is_theirs(workflow, principal, server)
        ):
            return None
        return None if self._clock() - workflow.checked > MAX_STALENESS else workflow

    async def find(self, principal: Principal, server: str, session_id: str, concern: Concern = WHOLE) -> Workflow:
        """The workflow of that session id, if it is this principal's, on this server (guarantee G4).

        Raises:
            UnknownSession: it is not; the reason is not told.
            Elsewhere: another worker serves what the request is about.
        """
        workflow = self._workflows.get(session_id)
        if self._cluster is not None and (workflow is None or concern.name):
            return await self._found(lambda: self._directory.get(session_id), principal, server, session_id, concern)
        return await self._live(workflow, principal, server)

    async def find_position(self, principal: Principal, server: str, position: Position) -> Workflow:
        """The workflow that an event id belongs to, under the same rule as `find`."""
        workflow = self._by_token.get(position.token)
        if self._cluster is not None and (workflow is None or position.stream):
            session_id = (
                self._cluster.tokens.get(position.token, "") if workflow is None else workflow.record.session_id
            )
            concern = Concern(name=position.stream, is_stream=True)
            token = position.token
            return await self._found(lambda: self._directory.at(token), principal, server, session_id, concern)
        return await self._live(workflow, principal, server)

    async def find_key(self, principal: Principal, server: str, key: str, concern: Concern = WHOLE) -> Workflow | None:
        """The workflow that this principal's key names on this server; None where it names nothing yet.

        Raises:
            Elsewhere: another worker serves what the request is about.
        """
        if self._cluster is not None:
            return await self._find_key_anywhere(self._cluster, principal, server, key, concern)
        record = await self._directory.find(principal, server, key)
        workflow = self._workflows.get(record.session_id) if record is not None else None
        if record is None or workflow is None:
            return None
        if not workflow.opened.done():  # and its record is yet to be written anew
            return workflow
        if record.epoch > workflow.record.epoch:
            self._ending.soon(workflow, "taken_over")
            return None
        return await self._live(workflow, principal, server)

    async def _find_key_anywhere(
        self, cluster: Cluster, principal: Principal, server: str, key: str, concern: Concern
    ) -> Workflow | None:
        """As `find_key`, among several workers: what lives here is believed for `MAX_STALENESS`, as by its id."""
        known = self._residents.by_key.get((principal, server, key))
        if known is not None:
            with suppress(UnknownSession):
                return await self._live(known, principal, server)
        record = await self._directory.find(principal, server, key)
        if record is None:
            return None
        workflow = self._workflows.get(record.session_id)
        if workflow is not None:
            return await self._live(workflow, principal, server)
        return await cluster.find(lambda: self._directory.find(principal, server, key), principal, server, concern)

    async def end(self, workflow: Workflow, cause: str) -> None:
        """End a workflow: its calls fail, its upstream session is closed, its record is removed. Idempotent."""
        await self._ending.end(workflow, cause)

    async def send_on(self, worker: int) -> None:
        """Send on a request that names what the worker of this number gave, if that is another one that lives.

        Raises:
            Elsewhere: it is.
        """
        if self._cluster is not None:
            await self._cluster.direct(worker)

    def find_calls(
        self, principal: Principal, server: str, session_id: str | None, key: str | None, cancelled: Envelope
    ) -> list[Workflow]:
        """Where the calls are in flight here that a client's `notifications/cancelled` can mean: one entry for each.

        The client names its workflow by the session id, the key, or both.
        """
        found = []
        for workflow in self._served if session_id is None else self._served_as(session_id):
            record = workflow.record
            is_theirs = record.principal == principal and record.server == server
            is_named = key == record.key if session_id is None else key in (None, record.key)
            if is_theirs and is_named and (session_id, key) != (None, None):
                found += [workflow] * workflow.calls.meant(cancelled)
        return found

    @property
    def number(self) -> int:
        """The number of this worker among those that share the directory; 0 where there is no other."""
        return 0 if self._cluster is None else self._cluster.number

    # Draining.

    async def drain(self, timeout: float) -> bool:
        """Take nothing new; wait until every call has ended, at most `timeout` seconds; end what is left (G8).

        True if no call was cut.
        """
        self.draining = True
        quiet = [workflow.calls.drain() for workflow in self._served]
        with anyio.move_on_after(timeout):
            for event in quiet:
                await event.wait()
        complete = not self.inflight
        self._end_all()
        return complete

    # Inside.

    def _clustering(self, members: Membership, shared: SharedDirectory) -> Cluster:
        """How the workers that share the directory meet here."""
        ports = ClusterPorts(
            lambda record, upstream, place: self._opening.make(record, upstream, place),
            lambda principal, limits: self._opening.admit(principal, limits),
            lambda workflow: self._opening.open(workflow),
            lambda: self.draining,
            self._leftovers.has,
        )
        return Cluster(
            members,
            shared,
            ports,
            residents=self._residents,
            generations=self._generations,
            tasks=self._tasks,
            statistics=self.statistics,
            clock=self._clock,
        )

    def _beginning(self) -> Opening:
        """How workflows begin here."""
        ports = OpeningPorts(
            self.check_open,
            lambda principal: self._knows(principal),
            lambda: self.draining,
        )
        return Opening(
            ports,
            directory=self._directory,
            residents=self._residents,
            lines=self._lines,
            generations=self._generations,
            budget=self._budget,
            tasks=self._tasks,
            cluster=self._cluster,
            ending=self._ending,
            statistics=self.statistics,
            clock=self._clock,
        )

    def _sweeping(self, release: Callable[[Upstream], Coroutine[Any, Any, None]] | None) -> Sweep:
        """What looks after everything here."""
        return Sweep(
            SweepPorts(lambda: self.pooling, self._ending.soon, self._compare_doubted, self._ending.remove, release),
            directory=self._directory,
            residents=self._residents,
            lines=self._lines,
            generations=self._generations,
            leftovers=self._leftovers,
            tasks=self._tasks,
            cluster=self._cluster,
            clock=self._clock,
        )

    def _end_all(self) -> None:
        for workflow in self._served:
            self._ending.soon(workflow, "drained")
        self._lines.close(WorkflowEnded("drained"))

    async def _known(
        self, principal: Principal, server: str, session_id: str | None, key: str | None
    ) -> Workflow | None:
        if session_id is not None:
            return await self.find(principal, server, session_id)
        return await self.find_key(principal, server, key) if key is not None else None

    async def _live(self, workflow: Workflow | None, principal: Principal, server: str) -> Workflow:
        if workflow is None or not _is_theirs(workflow, principal, server):
            raise UnknownSession("no such session; begin anew with initialize")
        if self._clock() - workflow.checked > MAX_STALENESS and not await self._check(workflow):
            session_id = workflow.record.session_id
            return await self._found(lambda: self._directory.get(session_id), principal, server, session_id, WHOLE)
        return workflow

    async def _found(
        self, read: Read, principal: Principal, server: str, session_id: str, concern: Concern
    ) -> Workflow:
        """What does not live here, where it may be used here."""
        cluster = self._cluster
        assert cluster is not None, "without other workers all that there is lives here"
        here = [found for found in self._served_as(session_id) if found.opened.done()]
        known = next((found for found in here if concern.name and found.knows(concern.name)), None)
        if known is None and concern.name:
            await cluster.direct(concern.worker)
        fit = (found for found in here if concern.are_calls or concern.worker == cluster.number or cluster.holds(found))
        found = known or next(fit, None) or await cluster.find(read, principal, server, concern)
        live = await self._live(found, principal, server)
        if concern.worker and not live.knows(concern.name):
            await cluster.restore(live, concern)
        return live

    async def _check(self, workflow: Workflow) -> bool:
        """Compare a workflow with its record; False where it has ended here by that, and may be found elsewhere.

        Raises:
            UnknownSession: it has ended, and there is no other worker.
        """
        workflow.checked = self._clock()
        if self._cluster is not None:
            return await self._compare(workflow)
        try:
            stored = await self._directory.get(workflow.record.session_id)
        except BaseException:
            workflow.checked = float("-inf")
            raise
        if stored is None or stored.epoch != workflow.record.epoch:
            self._ending.soon(workflow, "taken_over" if stored else "removed")
            raise UnknownSession("no such session; begin anew with initialize")
        return True

    async def _compare(self, workflow: Workflow) -> bool:
        """The same among several workers. While nobody can tell, it is used as it is, but for what must be certain."""
        assert self._cluster is not None, "without other workers nothing is compared so"
        try:
            verdict = await self._cluster.compare(workflow)
        except DirectoryUnavailable:
            self.statistics.count("stale", "check")
            return True
        if verdict != "same":
            self._ending.soon(workflow, verdict)
        return verdict == "same"

    async def _compare_doubted(self, _: None) -> None:
        for workflow in [workflow for workflow in self.workflows if workflow.is_doubted]:
            await self._compare(workflow)

    async def _return_to(self, workflow: Workflow, named_by: str) -> Begun:
        await asyncio.shield(workflow.opened)
        return self._returned(workflow, named_by)

    def _returned(self, workflow: Workflow, named_by: str) -> Begun:
        workflow.account.opened = RETURNED[named_by]
        workflow.note("resumed")
        self.statistics.count("pool_requests", workflow.server, "hit")
        return Begun(workflow, "resumed", "hit", workflow.record.result)

    async def _create(self, new: Newcomer, origin: Origin | None) -> Begun:
        record = new.record
        claimed, workflow = await self._opening.begin(new)
        if workflow is None:
            return await self._join(claimed.record, record.handshake)
        if origin is None and claimed.state == "reset":
            origin = self._residents.before(record)
        workflow.account.origin = origin
        opened = await asyncio.shield(workflow.opened)
        done: PoolResult = "bypass" if workflow.pooling.reuse == "none" else opened.pool_result
        self.statistics.count("pool_requests", record.server, done)
        return Begun(workflow, "reset" if origin is not None else claimed.state, done, workflow.record.result)

    async def _join(self, record: WorkflowRecord, handshake: Handshake) -> Begun:
        """Another exchange was first with this key: wait for what it opens."""
        workflow = self._workflows.get(record.session_id)
        if workflow is None and self._cluster is not None:
            session_id, server = record.session_id, record.server
            workflow = await self._found(lambda: self._directory.get(session_id), record.principal, server, "", WHOLE)
        if workflow is None:
            raise Overloaded("this session is being opened elsewhere; try again", limit="opening")
        differing = difference(record, handshake)
        if differing is not None:
            raise InvalidParams(f"the session is in use and was opened with another {differing}")
        return await self._return_to(workflow, "key")

    def _note(self, workflow: Workflow) -> None:
        if self._cluster is not None:
            self._cluster.note(workflow)

    async def _watch(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        async with self._directory.watch() as changes:
            task_status.started()
            async for session_id in changes:
                self._doubt(session_id)

    def _doubt(self, session_id: str) -> None:
        """Compare with the directory again, when it is needed next: one workflow, or all without a session id."""
        for workflow in self._served_as(session_id) if session_id else self._served:
            workflow.checked = float("-inf")

    def _served_as(self, session_id: str) -> list[Workflow]:
        beside = {} if self._cluster is None else self._cluster.beside
        return [workflows[session_id] for workflows in (self._workflows, beside) if session_id in workflows]


def _named_by(arrival: Arrival) -> str:
    """What names the workflow that is come back to."""
    return "key" if arrival.session_id is None else "session_id"


def _is_theirs(workflow: Workflow, principal: Principal, server: str) -> bool:
    """Whether it lives, is this principal's and on this server (guarantee G4)."""
    return workflow.principal == principal and workflow.server == server and workflow.ended is None
