"""Where a workflow is found: here, or by what the directory says at another worker; and how long that is believed.

Among several workers, what lives here is believed for `MAX_STALENESS`, or until the directory tells of a change; then
it is compared with its record when it is used next. What comes while others may have taken it over, but for calls at
hand, waits until that is known, or the directory is away. A workflow is found by its own principal alone, on its own
server (guarantee G4).
"""

from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from math import inf
from typing import Final

import anyio

from .cluster import Cluster, Read
from .directory import MAX_STALENESS, SharedDirectory
from .ending import Ending
from .envelope import Envelope
from .errors import DirectoryUnavailable, UnknownSession
from .event_log import Position
from .placement import WHOLE, Concern
from .premises import Premises
from .principal import Principal
from .workflow import Workflow

COMPARED_AT_ONCE: Final = 16
"""Workflows that are compared at a time where all are: the directory may be far, and others look there meanwhile."""


class Lookup:
    """Finds the workflows of a pool. `cluster` is None where there is no other worker."""

    def __init__(self, premises: Premises, *, ending: Ending, cluster: Cluster | None) -> None:
        self._directory = premises.directory
        self._residents = premises.residents
        self._workflows = premises.residents.held.by_id
        self._cluster = cluster
        self._ending = ending
        self._tasks = premises.tasks
        self._statistics = premises.statistics
        self._clock = premises.clock
        self._comparing = 0
        """How many tasks compare what is left."""
        self._left: OrderedDict[Workflow, None] = OrderedDict()
        """What is to be compared in its turn, whether it is used or not: there may be news of it."""

    def at_hand(
        self,
        principal: Principal,
        server: str,
        session_id: str | None,
        key: str | None = None,
        concern: Concern = WHOLE,
    ) -> Workflow | None:
        """What `find`, or by a key alone `find_key`, would find, where that needs nobody to be asked.

        None tells nothing.
        """
        if session_id is not None:
            workflow = self._workflows.get(session_id)
        else:
            workflow = None if key is None else self._residents.held.by_key.get((principal, server, key))
        if workflow is None or not _is_theirs(workflow, principal, server):
            return None
        cluster = self._cluster
        if cluster is not None and (concern.name or self._clock() - workflow.checked > MAX_STALENESS):
            return None
        if cluster is not None and not concern.are_calls and (workflow.is_doubted or cluster.members.is_late):
            return None
        return workflow

    async def find(self, principal: Principal, server: str, session_id: str, concern: Concern = WHOLE) -> Workflow:
        """The workflow of that session id, if it is this principal's, on this server (guarantee G4).

        Raises:
            UnknownSession: it is not; the reason is not told.
            Elsewhere: another worker serves what the request is about.
        """
        workflow = self._workflows.get(session_id)
        if self._cluster is not None and (workflow is None or concern.name):
            here = self._residents.served_as(session_id)
            return await self._found(lambda: self._directory.get(session_id), principal, server, here, concern)
        return await self._live(workflow, principal, server)

    async def find_position(self, principal: Principal, server: str, position: Position) -> Workflow:
        """The workflow that an event id belongs to, under the same rule as `find`.

        Raises:
            DirectoryUnavailable: who wrote that came after this worker, and nobody can tell who it was.
        """
        workflow = self._residents.held.by_token.get(position.token)
        if workflow is not None and self._cluster is not None and position.epoch > workflow.record.epoch:
            workflow = workflow if await self._stands(workflow) else None
        if self._cluster is not None and (workflow is None or position.stream):
            known = workflow or self._residents.beside.by_token.get(position.token)
            here = [] if known is None else self._residents.served_as(known.record.session_id)
            concern = Concern(name=position.stream, is_stream=True)
            read = partial(self._cluster.directory.at, position.token)
            return await self._found(read, principal, server, here, concern)
        return await self._live(workflow, principal, server)

    async def find_key(self, principal: Principal, server: str, key: str, concern: Concern = WHOLE) -> Workflow | None:
        """The workflow that this principal's key names on this server; None where it names nothing yet.

        Raises:
            Elsewhere: another worker serves what the request is about.
        """
        read = partial(self._directory.find, principal, server, key)
        if self._cluster is not None and concern.name:
            here = self._residents.served_by(principal, server, key)
            with suppress(UnknownSession):
                return await self._found(read, principal, server, here, concern)
        known = self._residents.held.by_key.get((principal, server, key))
        if known is not None:
            with suppress(UnknownSession):
                return await self._live(known, principal, server)
        if self._cluster is None:
            return None
        return await self._cluster.find(read, principal, server, concern)

    async def has_ended(self, principal: Principal, server: str, key: str) -> bool:
        """Whether a key that names nothing (`find_key`) named a workflow before."""
        return await self._directory.has_ended(principal, server, key)

    async def find_named(
        self, principal: Principal, server: str, session_id: str | None, key: str | None
    ) -> Workflow | None:
        """What `find` finds by the session id, else `find_key` by the key; None where neither is named."""
        if session_id is not None:
            return await self.find(principal, server, session_id)
        return await self.find_key(principal, server, key) if key is not None else None

    def find_calls(
        self, principal: Principal, server: str, session_id: str | None, key: str | None, cancelled: Envelope
    ) -> list[Workflow]:
        """Where the calls are in flight here that a client's `notifications/cancelled` can mean: one entry for each.

        The client names its workflow by the session id, the key, or both.
        """
        named: list[Workflow] = []
        if session_id is not None:
            named = self._residents.served_as(session_id)
        elif key is not None:
            named = self._residents.served_by(principal, server, key)
        found: list[Workflow] = []
        for workflow in named:
            record = workflow.record
            if record.principal == principal and record.server == server and key in (None, record.key):
                found += [workflow] * workflow.calls.meant(cancelled)
        return found

    # What is believed.

    async def watch(
        self, directory: SharedDirectory, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
    ) -> None:
        """Hear of what changes in the directory, until this is cancelled."""
        async with directory.watch() as changes:
            task_status.started()
            async for session_id in changes:
                self._doubt(session_id)

    def lapse(self, since: float) -> None:
        """Others may have taken over what lives here since then: it counts again once it was compared."""
        for workflow in self._workflows.values():
            if workflow.doubted_since is None:
                workflow.doubted_since = since
            workflow.checked = -inf
        self._compare_all()

    async def compare(self, workflow: Workflow) -> bool:
        """Compare a workflow with its record; False where it has ended here by that, and may be found elsewhere.

        While nobody can tell, it is used as it is, but for what must be certain.
        """
        try:
            return await self._stands(workflow)
        except DirectoryUnavailable:
            self._statistics.count("stale", "check")
            return True

    async def _stands(self, workflow: Workflow) -> bool:
        """As `compare`.

        Raises:
            DirectoryUnavailable: nobody can tell; it is compared again in its turn.
        """
        assert self._cluster is not None, "without other workers nothing is compared so"
        self._left.pop(workflow, None)  # news that comes meanwhile puts it there again
        try:
            verdict = await self._cluster.comparison.compare(workflow)
        except BaseException:
            self._left[workflow] = None
            raise
        if verdict != "same":
            self._ending.soon(workflow, verdict)
        return verdict == "same"

    def _doubt(self, session_id: str) -> None:
        """Compare with the directory again, when it is needed next: one workflow.

        Without a session id all, and at once: a directory that comes back may have lost what others look for there.
        """
        residents = self._residents
        for workflow in residents.served_as(session_id) if session_id else residents.served:
            workflow.checked = -inf
        if not session_id and self._cluster is not None:
            self._cluster.members.interrupted()
            self._compare_all()

    def _compare_all(self) -> None:
        """Compare all that is held here, the newest first: what was lost is what was recorded last."""
        for workflow in reversed(self._workflows.values()):
            self._left[workflow] = None
        self.go_on()

    def go_on(self) -> None:
        """Compare what is left, `COMPARED_AT_ONCE` at a time; nothing where nothing is."""
        for _ in range(self._comparing, min(len(self._left), COMPARED_AT_ONCE)):
            self._comparing += 1
            self._tasks.spawn(self._compare_left)

    async def _compare_left(self) -> None:
        """One after the other, until all that is left was compared, or nobody can tell."""
        try:
            while self._left:
                workflow, _ = self._left.popitem(last=False)
                if workflow.ended is None:
                    workflow.checked = self._clock()
                    await self._stands(workflow)
        except DirectoryUnavailable:
            workflow.checked = -inf
            self._statistics.count("stale", "check")
        finally:
            self._comparing -= 1

    # Inside.

    async def _live(self, workflow: Workflow | None, principal: Principal, server: str) -> Workflow:
        if workflow is None or not _is_theirs(workflow, principal, server):
            raise UnknownSession("no such session; begin anew with initialize")
        if self._cluster is None:
            return workflow
        members = self._cluster.members
        if members.is_late:
            await members.catch_up()
        is_believed = self._clock() - workflow.checked <= MAX_STALENESS and (not workflow.is_doubted or members.is_away)
        if is_believed and workflow.ended is None:
            return workflow
        workflow.checked = self._clock()
        try:
            if await self.compare(workflow) and workflow.ended is None:
                return workflow
        except BaseException:
            workflow.checked = -inf
            raise
        session_id = workflow.record.session_id
        here = self._residents.served_as(session_id)
        return await self._found(lambda: self._directory.get(session_id), principal, server, here, WHOLE)

    async def _found(
        self, read: Read, principal: Principal, server: str, here: Sequence[Workflow], concern: Concern
    ) -> Workflow:
        """What does not live here, or not all of it, where it may be used here; `here` is what does."""
        cluster = self._cluster
        assert cluster is not None, "without other workers all that there is lives here"
        standing = next(iter(here), None)
        here = [found for found in here if found.opened.done()]
        known = next((found for found in here if concern.name and found.knows(concern.name)), None)
        if known is None and concern.worker:
            await cluster.seek(concern, server, standing, read)
        is_any = concern.are_calls or concern.worker == cluster.number
        fit = (found for found in here if is_any or self._residents.held.has(found))
        found = known or next(fit, None) or await cluster.find(read, principal, server, concern)
        live = await self._live(found, principal, server)
        if concern.giver and not live.knows(concern.name):
            await cluster.restore(live, concern)
        return live


def _is_theirs(workflow: Workflow, principal: Principal, server: str) -> bool:
    """Whether it lives, is this principal's and on this server (guarantee G4)."""
    return workflow.principal == principal and workflow.server == server and workflow.ended is None
