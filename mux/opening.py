"""Begins workflows: finds room for one, stores its record, makes it of that, and opens it in a task of its own."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import Final, NamedTuple

import msgspec

from .account import SPARE, Account, Transport, refusal
from .cluster import Cluster
from .directory import Claimed
from .ending import Ending
from .errors import DirectoryUnavailable, Overloaded, SessionLost, TrunklineError, UnknownSession, WorkflowEnded
from .line import not_run
from .lines import Lines, Place
from .policy import Cap, GivingWay, cap_reached
from .ports import Opened
from .premises import Premises
from .principal import Principal
from .record import WorkflowRecord
from .upstream import Upstream
from .workflow import Workflow, WorkflowPorts

logger = logging.getLogger(__name__)


MAX_ASKED: Final = 8
"""Workflows that seem idle here and of which the directory is asked for one newcomer: who is refused may come again."""


class Newcomer(NamedTuple):
    """A workflow that is to begin."""

    record: WorkflowRecord
    transport: Transport
    generation: int | None


class Opening:
    """How workflows of a pool begin. What is begun is seen through, whatever becomes of who asked for it."""

    def __init__(self, premises: Premises, *, lines: Lines, ending: Ending, cluster: Cluster | None) -> None:
        self.draining = False
        """True once nothing begins any longer."""
        self.knows: Callable[[Principal], bool] = lambda principal: True
        """Whether an identity still counts."""
        self._directory = premises.directory
        self._residents = premises.residents
        self._census = premises.residents.held.census
        self._caps = premises.caps
        self._giving_way = GivingWay()
        self._leftovers = premises.leftovers
        self._lines = lines
        self._generations = premises.generations
        self._budget = premises.budget
        self._tasks = premises.tasks
        self._cluster = cluster
        self._ending = ending
        self._statistics = premises.statistics
        self._clock = premises.clock
        self._burden = premises.burden
        self._numbers = itertools.count(1)

    def check_open(self, server: str, generation: int | None = None) -> Upstream:
        """The server, if a workflow may begin on it under this generation of its settings.

        Raises:
            UnknownServer: there is no such server, or not any longer.
            Overloaded: the gateway is draining, or the settings have changed.
        """
        if self.draining:
            raise Overloaded("the gateway is shutting down", limit="draining")
        return self._generations.find(server, generation)

    async def begin(self, new: Newcomer) -> tuple[Claimed, Workflow | None]:
        """Begin to open a workflow; None where its key names one already.

        Raises:
            Overloaded: a cap is reached, the gateway is draining, or the server's settings have just changed.
            UnknownSession: there is no such server; or the identity no longer counts.
        """
        self._residents.unsettle(new.record)
        try:
            return await self._tasks.see_through(self._claim, new)
        except Overloaded:  # it may not have been begun
            self._residents.settle(new.record)
            raise

    async def _claim(self, new: Newcomer) -> tuple[Claimed, Workflow | None]:
        """Find room for a workflow, store its record and begin to open it; None where its key names one already."""
        record, transport, generation = new
        try:
            upstream = self._generations.find(record.server, generation)
            if self._cluster is not None and upstream.pooling.reuse == "user":
                await self._cluster.settle(record.principal, record.server)
            await self.admit(record.principal, record.server)
            with ExitStack() as unused:
                self._census.add(record.principal, record.server)
                unused.callback(self._census.remove, record.principal, record.server)
                if self._cluster is not None:
                    record = self._cluster.own(record, upstream)
                claimed = await self._directory.claim(record)
                if claimed.state == "resumed":
                    return claimed, None
                await self._check_still_open(record, upstream.generation)
                unused.pop_all()  # it has its place
            self._leftovers.removed(record)  # of one before it, which had this session id
            workflow = self.make(record, upstream, transport=transport)
            self._residents.add(workflow)
            self._tasks.spawn(self.open, workflow)
            return claimed, workflow
        finally:
            self._residents.settle(record)

    async def _check_still_open(self, record: WorkflowRecord, generation: int) -> None:
        """Take a record back that was stored while the server, or the gateway, went."""
        try:
            self.check_open(record.server, generation)
            if not self.knows(record.principal):
                raise UnknownSession("this identity no longer counts")
        except TrunklineError:
            await self._ending.remove(record)
            raise

    async def admit(self, principal: Principal, server: str) -> None:
        """Find room for one more workflow on a server: one that nobody uses gives way.

        Raises:
            Overloaded: there is none, or the gateway is draining.
        """
        asked = 0
        while not self.draining:
            cap = cap_reached(self._census, principal, server, self._caps)
            if cap is None:
                return
            leaves = self._giving_way.next(cap, self._residents.held.by_id, self._clock())
            since = leaves.idle_since
            if await self._may_be_used_elsewhere(leaves, cap):
                asked += 1
                if asked == MAX_ASKED:
                    raise Overloaded(f"no further session: {cap.limit} is reached", limit=cap.limit)
            elif leaves.idle_since == since:  # else it was used meanwhile
                await self._ending.end(leaves, "evicted")
        raise Overloaded("the gateway is shutting down", limit="draining")

    async def _may_be_used_elsewhere(self, workflow: Workflow, cap: Cap) -> bool:
        """Whether another worker may serve one that is to give way; where nobody can tell, it stays the next one."""
        since = workflow.idle_since
        try:
            return self._cluster is not None and await self._cluster.may_be_used_elsewhere(workflow)
        except DirectoryUnavailable:
            self._giving_way.put_back(cap, workflow.record.session_id, since)
            raise

    def make(
        self, record: WorkflowRecord, upstream: Upstream, place: Place = "new", *, transport: Transport = "http"
    ) -> Workflow:
        """A workflow of a record, which lives nowhere yet."""
        settings = upstream.generation, upstream.credential
        account = Account(next(self._numbers), self._clock(), transport, settings)
        workflow = Workflow(
            record,
            upstream,
            account,
            self._workflow_ports,
            lambda workflow: self._lines.line(workflow, upstream, place),
        )
        workflow.is_superseded = not self._generations.is_current(upstream.name, upstream.generation)
        if place != "new" and upstream.pooling.reuse == "none":  # there is no session that would have to be open
            workflow.settle(Opened(record.revision, record.result))
        return workflow

    @cached_property
    def _workflow_ports(self) -> WorkflowPorts:
        """What the pool does for its workflows. Among several workers it is known once this one has its number."""
        cluster = self._cluster
        return WorkflowPorts(
            budget=self._budget,
            statistics=self._statistics,
            clock=self._clock,
            end=self._ending.soon,
            stir=self._residents.rota.stir,
            burden=self._burden,
            journal=None if cluster is None else cluster.journal,
            names=None if cluster is None else cluster.names,
            wires=None if cluster is None else cluster.wires,
        )

    async def open(self, workflow: Workflow) -> None:
        """Open a workflow that lives here, and note what its server said; it ends where that fails."""
        if workflow.ended or workflow.opened.done():
            return
        cause = "not_opened"
        try:
            opened = await workflow.line.open()
            stored = await self._note_opened(workflow, opened)
            if stored is not None and workflow.ended and self._cluster is None:  # else what ended it looks again
                await self._ending.remove(stored)
            if stored is None or workflow.ended:
                raise workflow.ended or WorkflowEnded("removed")
            workflow.record = stored
            if not workflow.line.is_open:  # lost while that was recorded: as long as it opens, nobody else hears of it
                cause = "upstream_lost"
                raise SessionLost("the upstream session was lost as soon as it was open", executed="no")
        except TrunklineError as error:
            workflow.account.opened = refusal(error)
            workflow.settle(not_run(error) if isinstance(error, SessionLost) else error)
            await self._ending.end(workflow, cause)
            return
        except Exception:
            await self._ending.end(workflow, "not_opened")
            raise
        workflow.account.opened = SPARE if opened.pool_result == "spare" else workflow.line.why
        workflow.settle(opened)
        logger.info("workflow opened", extra=workflow.about())

    async def _note_opened(self, workflow: Workflow, opened: Opened) -> WorkflowRecord | None:
        """Record what is known now; None where the record was overtaken, or is gone."""
        before = workflow.record
        if before.revision:
            changed = before
        else:
            changed = msgspec.structs.replace(before, revision=opened.revision, result=opened.result)
        if self._cluster is not None:
            changed = msgspec.structs.replace(changed, upstream_session=workflow.upstream_session)
        return before if changed == before else await self._directory.replace(changed)
