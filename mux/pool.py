"""All workflows and channels of one process: they begin here, are come back to, and end in an orderly way.

The pool decides with pure functions (`policy`) and acts in tasks of its own: nothing that a caller's cancellation could
leave half done. It holds no lock; what must happen once is a future that all who need it await.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import anyio

from .account import MAX_ENDED, RETURNED, Ended, Origin, Transport, handshake_differences
from .breaker import Circuit
from .burden import Burden
from .channel import Channel
from .channels import Channels
from .cluster import Cluster
from .directory import Directory, SharedDirectory
from .ending import Ending
from .envelope import Envelope
from .errors import DirectoryUnavailable, InvalidParams, Overloaded, WorkflowEnded
from .event_log import Budget
from .failures import Failure
from .generations import Generations
from .handshake import difference, read_handshake, repeats
from .leftovers import Leftovers
from .limits import Pooling
from .lines import Lines
from .lookup import Lookup
from .membership import Membership
from .opening import Newcomer, Opening
from .policy import Caps
from .ports import Headers, PoolResult
from .premises import Premises
from .principal import Principal
from .record import Handshake, WorkflowRecord, WorkflowState, new_session_id
from .residents import Residents
from .statistics import Statistics
from .sweep import Sweep
from .tasks import Tasks
from .upstream import Upstream
from .workflow import Workflow

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
        self.has_begun = False
        """True once it was run."""
        self._generations = Generations(upstreams)
        self._clock = clock
        self._residents = Residents(max_ended)
        self._budget = Budget(pooling.event_log.total_bytes)
        self._workflows = self._residents.held.by_id
        self._tasks = Tasks()
        self.burden = Burden()
        """What clients' large messages take here."""
        self.caps = Caps(pooling, _pooling_of(upstreams))
        """How many workflows there may be."""
        premises = Premises(
            directory,
            self._residents,
            self._generations,
            Leftovers(),
            self._tasks,
            self.statistics,
            clock,
            self.burden,
            self.caps,
            self._budget,
        )
        self._cluster = None if members is None or shared is None else Cluster(premises, members, shared)
        self._channels = Channels(premises)
        self._lines = Lines(
            premises,
            self._channels,
            end=lambda workflow, cause: self._ending.soon(workflow, cause),
            note=None if self._cluster is None else self._cluster.recording.note,
            members=members,
        )
        self._ending = Ending(premises, lines=self._lines, cluster=self._cluster)
        self.lookup = Lookup(premises, ending=self._ending, cluster=self._cluster)
        """Where workflows are found."""
        self._opening = Opening(premises, lines=self._lines, ending=self._ending, cluster=self._cluster)
        if self._cluster is not None:
            self._cluster.beginning = self._opening
        self._sweep = Sweep(
            premises, lines=self._lines, ending=self._ending, lookup=self.lookup, cluster=self._cluster, release=release
        )

    def __repr__(self) -> str:
        return f"Pool({len(self._workflows)} workflows, {len(self.channels)} channels)"

    @property
    def draining(self) -> bool:
        """True once nothing begins here any longer."""
        return self._opening.draining

    @property
    def pooling(self) -> Pooling:
        """What bounds the process."""
        return self.caps.common

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
        """The workflows that are held here."""
        return list(self._workflows.values())

    @property
    def served(self) -> list[Workflow]:
        """Those and the ones that are served here beside the workers that hold them."""
        return self._residents.served

    def now(self) -> float:
        """Seconds on the clock that everything here is measured by."""
        return self._clock()

    @property
    def channels(self) -> list[tuple[str, Channel]]:
        """Each channel that lives here, with its server's name."""
        return self._channels.all

    @property
    def failures(self) -> Mapping[str, Failure]:
        """What failed last with each server with which nothing has gone well since."""
        return self._channels.failures.last

    @property
    def circuits(self) -> list[Circuit]:
        """How the servers stand that failed lately, for each tenant."""
        return self._channels.circuits

    @property
    def inflight(self) -> Counter[str]:
        """Calls that wait for an answer here, by server: those of workflows that another worker holds included."""
        counted = Counter[str]()
        for workflow in self.served:
            counted[workflow.server] += workflow.inflight
        return counted

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Pool"]:
        """The pool with its tasks, for the length of the context; leaving it ends every workflow in an orderly way.

        Raises:
            RuntimeError: it was run before; what has ended does not begin again.
        """
        if self.has_begun:
            raise RuntimeError("it was run before, and runs once: make a new one")
        self.has_begun = True
        failure: Exception | None = None
        async with self._written(), anyio.create_task_group() as keepers, self._tasks.running(CLOSE_SECONDS):
            if self._cluster is not None:
                await keepers.start(self.lookup.watch, self._cluster.directory)
            keepers.start_soon(self._sweep.run)
            try:
                yield self
            except Exception as error:  # kept out of the task groups, which would wrap it
                failure = error
            finally:
                keepers.cancel_scope.cancel()
                self._opening.draining = True
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
        self.caps.replace(pooling, _pooling_of(upstreams))
        self._budget.limit = pooling.event_log.total_bytes
        for workflow in self.served:
            workflow.is_superseded = not self._generations.is_current(workflow.server, workflow.generation)
            workflow.stir()
        is_current = self._generations.is_current
        self._lines.supersede({name for name, upstream in before.items() if is_current(name, upstream.generation)})

    def revoke(self, knows: Callable[[Principal], bool]) -> None:
        """End the workflows of whoever is not known any longer, for the cause `revoked`; none of theirs begins."""
        self._opening.knows = knows
        for workflow in self.served:
            if not knows(workflow.principal):
                self._ending.soon(workflow, "revoked")

    def lapse(self, since: float) -> None:
        """Others may have taken over what lives here since then: compare it with the directory before it is used."""
        self.lookup.lapse(since)
        self._lines.lapse()

    # Beginning workflows, and coming back to them.

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
        known = await self.lookup.find_named(principal, server, arrival.session_id, key)
        origin: Origin | None = None
        if known is not None:
            differing = difference(known.record, handshake)
            if differing is None:
                return await self._return_to(known, by_key=arrival.session_id is None)
            own = arrival.own_wires + known.streams.by_key
            if known.wires > own or known.inflight or not known.opened.done():
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
        workflow = self.lookup.at_hand(principal, server, arrival.session_id, arrival.key)
        if workflow is None or not workflow.opened.done():
            return None
        if repeats(workflow.record.handshake, message, arrival.session_headers):
            return workflow
        handshake = read_handshake(message, arrival.session_headers)
        return workflow if difference(workflow.record, handshake) is None else None

    def resume(self, workflow: Workflow, *, by_key: bool) -> Begun:
        """Come back to what is `resumable`, and was named by its key alone, or by its session id."""
        workflow.account.opened = RETURNED["key" if by_key else "session_id"]
        if by_key:
            workflow.streams.settle()
        workflow.note("resumed")
        self.statistics.count("pool_requests", workflow.server, "hit")
        return Begun(workflow, "resumed", "hit", workflow.record.result)

    async def come_to_begin(self, principal: Principal, server: str, generation: int | None = None) -> None:
        """A client has a connection here on which a workflow is to begin: make sure that it may, and here.

        Raises:
            Elsewhere: what it will share with others of its principal lives at another worker.
            TrunklineError: there is no such server, or nothing may begin on it now; nobody can tell where that lives.
        """
        upstream = self._opening.check_open(server, generation)
        if self._cluster is not None and upstream.pooling.reuse == "user":
            await self._cluster.settle(principal, server)

    async def end(self, workflow: Workflow, cause: str) -> None:
        """End a workflow: its calls fail, its upstream session is closed, its record is removed. Idempotent."""
        await self._ending.end(workflow, cause)

    @property
    def number(self) -> int:
        """The number of this worker among those that share the directory; 0 where there is no other."""
        return 0 if self._cluster is None else self._cluster.number

    async def write_out(self, workflow: Workflow) -> None:
        """Wait a little until the worker that comes after this one would know what this one knows of a workflow."""
        if self._cluster is not None:
            await self._cluster.write_out(workflow.record.session_id)

    async def send_on(self, worker: int) -> None:
        """Send on a request that names what the worker of this number gave, if that is another one that lives.

        Raises:
            Elsewhere: it is.
        """
        if self._cluster is not None:
            await self._cluster.direct(worker)

    # Draining.

    async def hand_on(self) -> None:
        """Hand on a request that came to this worker itself, once that drains; nothing where no other can take it.

        Raises:
            Elsewhere: another worker is to take it.
        """
        if self.draining and self._cluster is not None:
            with suppress(DirectoryUnavailable):
                await self._cluster.members.hand_on()

    async def drain(self, timeout: float) -> bool:
        """Take nothing new; wait until every call has ended, at most `timeout` seconds; end what is left (G8).

        True if no call was cut.
        """
        self._opening.draining = True
        if self._cluster is not None:
            self._cluster.members.drain()
        quiet = [workflow.calls.drain() for workflow in self.served]
        with anyio.move_on_after(timeout):
            for event in quiet:
                await event.wait()
        complete = not self.inflight.total()
        self._end_all()
        return complete

    # Inside.

    def _end_all(self) -> None:
        cause = WorkflowEnded("drained")
        self._lines.close_unused(cause)
        for workflow in self.served:
            self._ending.soon(workflow, "drained")
        self._lines.close(cause)

    async def _return_to(self, workflow: Workflow, *, by_key: bool) -> Begun:
        await asyncio.shield(workflow.opened)
        return self.resume(workflow, by_key=by_key)

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
            workflow = await self.lookup.find(record.principal, record.server, record.session_id)
        if workflow is None:
            raise Overloaded("this session is being opened elsewhere; try again", limit="opening")
        differing = difference(record, handshake)
        if differing is not None:
            raise InvalidParams(f"the session is in use and was opened with another {differing}")
        return await self._return_to(workflow, by_key=True)


def _pooling_of(upstreams: Mapping[str, Upstream]) -> dict[str, Pooling]:
    return {name: upstream.pooling for name, upstream in upstreams.items()}
