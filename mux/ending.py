"""Ends workflows: each leaves by one door, its calls fail, its record is removed, or goes to another worker."""

from __future__ import annotations

import logging
from typing import Final

from .cluster import Cluster
from .errors import WorkflowEnded
from .lines import Lines
from .placement import may_be_taken_over
from .premises import Premises
from .record import WorkflowRecord
from .workflow import Workflow

logger = logging.getLogger(__name__)

OVERTAKEN: Final = frozenset({"taken_over", "removed"})
"""Causes that lie in the record: there is nothing to be removed."""


class Ending:
    """How workflows of a pool end. What is begun is seen through, whatever becomes of who asked for it."""

    def __init__(self, premises: Premises, *, lines: Lines, cluster: Cluster | None) -> None:
        self._directory = premises.directory
        self._residents = premises.residents
        self._lines = lines
        self._leftovers = premises.leftovers
        self._tasks = premises.tasks
        self._cluster = cluster
        self._statistics = premises.statistics
        self._clock = premises.clock

    async def end(self, workflow: Workflow, cause: str) -> None:
        """End a workflow: its calls fail, its upstream session is closed, its record is removed. Idempotent."""
        if self._retire(workflow, cause):
            await self._tasks.see_through(self._forget, workflow)

    def soon(self, workflow: Workflow, cause: str) -> None:
        """The same, without waiting; one that is served beside the worker which holds it is only let go of."""
        if self._cluster is not None and self._cluster.dismiss(workflow, cause):
            return
        if self._retire(workflow, cause):
            self._tasks.spawn(self._forget, workflow)

    def _retire(self, workflow: Workflow, cause: str) -> bool:
        """The one door through which a workflow leaves the pool."""
        if not self._residents.leave(workflow):
            return False
        if cause in OVERTAKEN and self._is_elsewhere(workflow, cause):
            for other in self._lines.give_up(workflow):
                if self._retire(other, "taken_over"):
                    self._tasks.spawn(self._send_after, other)
        self._statistics.count("workflows_closed", cause)
        self._residents.note_end(workflow, cause, self._clock())
        self._residents.unsettle(workflow.record)
        if workflow.has_changed and self._is_released(workflow, cause):  # else it names a session that ends by now
            workflow.record = workflow.changed_record
        try:
            workflow.end(cause, release=self._is_released(workflow, cause))
        except Exception:  # of who waited for one of its calls: its record and its key must not stay for that
            logger.exception("a workflow did not end in order", extra=workflow.about())
        workflow.settle(WorkflowEnded(cause, executed="no"))
        logger.info("workflow ended: %s", cause, extra=workflow.about())
        return True

    def _is_released(self, workflow: Workflow, cause: str) -> bool:
        """Whether the upstream session outlives the workflow here: another worker goes on with it, or may have it.

        What its client wanted to end does not, whoever has it.
        """
        return cause != "deleted" and (self._is_movable(workflow, cause) or self._is_elsewhere(workflow, cause))

    def _is_elsewhere(self, workflow: Workflow, cause: str) -> bool:
        """Whether another worker may have its session: none has where this one was sure of what was removed."""
        cluster = self._cluster
        return cluster is not None and (cause == "taken_over" or not cluster.comparison.is_sure_of(workflow))

    def _is_movable(self, workflow: Workflow, cause: str) -> bool:
        """Whether another worker may go on after this end."""
        may_go_on = may_be_taken_over(workflow.record, workflow.pooling.reuse, stateless=workflow.stateless)
        return self._cluster is not None and may_go_on and cause in ("drained", "not_opened")

    async def _forget(self, workflow: Workflow) -> None:
        cause = workflow.ended.cause if workflow.ended is not None else ""
        try:
            if self._cluster is not None and cause in OVERTAKEN:
                self._cluster.journal.forget(workflow.record.session_id)
                return
            if self._cluster is not None and self._is_movable(workflow, cause):
                await self._cluster.hand_back(workflow.record, workflow)
            else:
                await self.remove(workflow.record, is_wanted=cause == "deleted")
        finally:
            self._residents.settle(workflow.record)

    async def _send_after(self, workflow: Workflow) -> None:
        """The session that it shares is another worker's: whoever is asked for it next goes on with it there."""
        try:
            if self._cluster is not None:
                await self._cluster.hand_back(workflow.record, workflow)
        finally:
            self._residents.settle(workflow.record)

    async def remove(self, record: WorkflowRecord, is_wanted: bool = False) -> None:
        """Remove the record of a workflow that has ended; where that fails, the sweep tries again, so many times.

        Where the client wanted its end, whatever worker has it by now.
        """
        try:
            is_gone = await self._directory.remove(record) or await self._remove_newer(record, is_wanted=is_wanted)
            why = "" if is_gone else "it changes"
        except Exception as error:
            why = type(error).__name__
        if not why:
            self._leftovers.removed(record)
            return
        again = self._leftovers.failed(record, self._clock(), is_wanted=is_wanted)
        self._statistics.count("leftovers", "kept" if again else "given_up")
        about = {"server": record.server, "handle": record.handle}
        logger.warning("a record could not be removed: %s", why, extra=about)

    async def _remove_newer(self, record: WorkflowRecord, *, is_wanted: bool) -> bool:
        """Remove what is stored instead of a record, where that is to end as well; False where it changed meanwhile."""
        newer = await self._directory.get(record.session_id)
        # It was not heard (yet) that this was stored; or the directory has lost what it was told last.
        if newer is not None and (is_wanted or newer.follows(record) or newer.is_behind(record)):
            return await self._directory.remove(newer)
        return True
