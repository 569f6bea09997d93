"""What the directory is told of the workflows that live here: that they are in use, and what has changed of them."""

from typing import Final

from .directory import SharedDirectory
from .errors import DirectoryUnavailable
from .limits import Pooling
from .premises import Premises
from .workflow import Workflow

TOUCH_SECONDS: Final = 5.0
"""How soon the directory is told of a workflow that is in use again."""


class Recording:
    """The word of one worker to the directory, of what is held here and of what is served beside its holder."""

    def __init__(self, premises: Premises, directory: SharedDirectory) -> None:
        self._directory = directory
        self._residents = premises.residents
        self._tasks = premises.tasks
        self._statistics = premises.statistics
        self._clock = premises.clock
        self._touched = premises.clock()
        self._noting: set[Workflow] = set()

    def expire(self, now: float) -> None:
        """Tell what is in use, where that is due."""
        if now - self._touched >= TOUCH_SECONDS:
            self._touched = now
            used = [workflow for workflow in self._residents.served if workflow.was_used_since(workflow.touched)]
            due = [workflow for workflow in used if workflow.touched + touch_interval(workflow.pooling) <= now]
            if due:
                self._tasks.spawn(self.touch, due)

    def note(self, workflow: Workflow) -> None:
        """Record what has changed of a workflow that is held here, where something has."""
        if workflow.has_changed and workflow not in self._noting and self._residents.held.has(workflow):
            self._noting.add(workflow)
            self._tasks.spawn(self._note, workflow)

    async def _note(self, workflow: Workflow) -> None:
        try:
            while workflow.has_changed and self._residents.held.has(workflow):
                stored = await self._directory.replace(workflow.changed_record)
                if stored is None or stored.epoch <= workflow.record.epoch or not self._residents.held.has(workflow):
                    return  # another worker has it, or changes it: that will be heard; or it has ended as it is
                workflow.record = stored
        except DirectoryUnavailable:
            self._statistics.count("stale", "note")  # the sweep tries again
        finally:
            self._noting.discard(workflow)

    async def touch(self, workflows: list[Workflow]) -> None:
        """Tell that these are in use."""
        before = [workflow.touched for workflow in workflows]
        for workflow in workflows:
            workflow.touched = self._clock()
        try:
            await self._directory.touch([workflow.record.session_id for workflow in workflows])
        except DirectoryUnavailable:
            self._statistics.count("stale", "touch")
            for workflow, touched in zip(workflows, before, strict=True):
                workflow.touched = touched


def touch_interval(pooling: Pooling) -> float:
    """How often, in seconds, the directory is told of a workflow that stays in use.

    Its record lives many times as long, and so does the patience after which its holder ends it as idle: one that has
    not been told of for that long has not been used.
    """
    return max(TOUCH_SECONDS, min(pooling.idle_timeout / 10, pooling.resume_window / 2))
