"""What lives here, compared with its record: whether another worker has it, or the directory has forgotten it."""

from contextlib import suppress
from typing import Final, Literal

import anyio
import msgspec

from .directory import SharedDirectory
from .membership import Membership
from .premises import Premises
from .record import WorkflowRecord
from .workflow import Workflow

ID_RANGE: Final = 1 << 24
"""Request ids that are given out before a directory may forget which: where it has, those of the next range follow."""

GONE_ON: Final = frozenset({"drained", "not_opened", "taken_over"})
"""Causes of an end after which another worker goes on, or may: its record is to stay."""

Verdict = Literal["same", "removed", "taken_over"]


class Comparison:
    """Compares the workflows of one worker with what the directory says of them."""

    def __init__(self, premises: Premises, members: Membership, directory: SharedDirectory) -> None:
        self._members = members
        self._directory = directory
        self._residents = premises.residents
        self._tasks = premises.tasks
        self._statistics = premises.statistics
        self._clock = premises.clock
        self._under_way: dict[str, anyio.Event] = {}
        """The comparisons of workflows in doubt, by session id."""

    async def compare(self, workflow: Workflow) -> Verdict:
        """Compare a workflow with its record.

        Raises:
            DirectoryUnavailable: nobody can tell.
        """
        lapses = self._members.lapses
        verdict = await self._verdict(workflow)
        if verdict == "same" and lapses == self._members.lapses:  # else it says nothing of what came after
            workflow.stood_at, workflow.doubted_since = self._clock(), None
        return verdict

    async def _verdict(self, workflow: Workflow) -> Verdict:
        if not workflow.is_doubted:
            stored = await self._directory.get(workflow.record.session_id)
            if stored is not None and stored.epoch >= workflow.record.epoch:
                return self._judged(workflow, stored)
        return await self._tasks.see_through(self._settle_doubt, workflow)

    def is_sure_of(self, workflow: Workflow) -> bool:
        """True while no other worker can have taken this workflow over."""
        return self._members.holds_lease and not workflow.is_doubted

    async def _settle_doubt(self, workflow: Workflow) -> Verdict:
        """One at a time: a record that is told again while its key is claimed must not be taken for one that stands."""
        session_id = workflow.record.session_id
        while (under_way := self._under_way.get(session_id)) is not None:
            await under_way.wait()
        self._under_way[session_id] = anyio.Event()
        try:
            return await self._compared(workflow)
        finally:
            self._under_way.pop(session_id).set()

    async def _compared(self, workflow: Workflow) -> Verdict:
        stored = await self._directory.get(workflow.record.session_id)
        if workflow.ended is not None:  # meanwhile: by its session id, another one may have begun
            return "removed"
        is_beside = self._residents.beside.has(workflow)
        if stored is None and is_beside:
            self._members.demand_settled()
        if stored is None:
            if is_beside or not self.may_be_forgotten(workflow):
                return "removed"
            return await self._publish(workflow, _renumbered(workflow.record, workflow.highest_id))
        if not is_beside and stored.is_behind(workflow.record):
            return await self._correct(workflow)
        if not is_beside and stored.epoch < workflow.record.epoch and self.is_sure_of(workflow):
            return await self._take_back(workflow, stored)
        return self._judged(workflow, stored)

    def _judged(self, workflow: Workflow, stored: WorkflowRecord) -> Verdict:
        is_beside = self._residents.beside.has(workflow)
        if stored.upstream_session != workflow.record.upstream_session if is_beside else not self._is_ours(stored):
            return "taken_over"
        if stored.epoch > workflow.record.epoch or stored.first_id > workflow.record.first_id:
            workflow.record = stored
        return "same"

    def _is_ours(self, record: WorkflowRecord) -> bool:
        return record.worker == self._members.worker.id

    def may_be_forgotten(self, workflow: Workflow) -> bool:
        """Whether the directory may have lost a record that is missing: it would know of one that was removed.

        It does not know of an end any more where this worker was not sure of a workflow for longer than a record lives.
        """
        since = workflow.stood_at if workflow.doubted_since is None else workflow.doubted_since
        return self.is_sure_of(workflow) or self._clock() - since < workflow.record.lifetime

    async def renumbered(self, record: WorkflowRecord, highest: int) -> WorkflowRecord:
        """The record as a directory is told of it again that has lost which ids were drawn: none is drawn once more.

        `highest` is the highest one that is known here. What stands of the record is numbered so at once.
        """
        told = _renumbered(record, highest)
        with suppress(KeyError):  # it may be removed already
            await self._directory.draw_ids(told.session_id, told.first_id - 1)
        return told

    async def _correct(self, workflow: Workflow) -> Verdict:
        """The directory has lost what changed of a workflow last, and which ids were drawn: tell it again."""
        return await self._publish(workflow, await self.renumbered(workflow.record, workflow.highest_id))

    async def _take_back(self, workflow: Workflow, stored: WorkflowRecord) -> Verdict:
        """The directory has lost that this worker took a workflow over from who is said there to hold it."""
        told = await self.renumbered(workflow.record, workflow.highest_id)
        standing = await self._directory.replace(msgspec.structs.replace(told, epoch=stored.epoch))
        if standing is None:
            return await self._compared(workflow)  # it has changed meanwhile
        return await self._publish(workflow, told)

    async def _publish(self, workflow: Workflow, told: WorkflowRecord) -> Verdict:
        """The directory has forgotten a workflow that lives here, or its last state: tell it again."""
        standing = await self._directory.publish(told)
        if standing is None:
            return "removed"
        if standing.session_id != told.session_id or not self._is_ours(standing):
            return "taken_over"
        if workflow.ended is not None:  # meanwhile: there was no record to be removed
            if standing == told and workflow.ended.cause not in GONE_ON:
                await self._directory.remove(standing)
            return "removed"
        if standing.epoch >= workflow.record.epoch:  # else it has changed meanwhile
            workflow.record = standing
        self._statistics.count("stale", "published")
        return "same"


def _renumbered(record: WorkflowRecord, highest: int) -> WorkflowRecord:
    first_id = (max(highest, record.first_id) // ID_RANGE + 1) * ID_RANGE
    return msgspec.structs.replace(record, first_id=first_id)
