"""Looks after what is due in a pool: workflows in their turn, sessions, leftovers, settings that serve nobody now."""

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator
from math import inf
from typing import Any, Final

import anyio

from .cluster import Cluster
from .directory import SharedDirectory
from .ending import Ending
from .errors import DirectoryUnavailable
from .lines import Lines
from .lookup import Lookup
from .premises import Premises
from .upstream import Upstream
from .workflow import Workflow

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 1.0
"""How often what is due is looked for, at most; short time-outs are looked at more often."""

SWEEP_SLICE: Final = 100
"""Workflows that are looked after at a stretch: half a millisecond. 10,000 of them would hold calls up for 50."""


class Sweep:
    """Looks after what is due, again and again, until `run` is cancelled. `cluster` and `release` as in the pool."""

    def __init__(
        self,
        premises: Premises,
        *,
        lines: Lines,
        ending: Ending,
        lookup: Lookup,
        cluster: Cluster | None,
        release: Callable[[Upstream], Coroutine[Any, Any, None]] | None,
    ) -> None:
        self._residents = premises.residents
        self._caps = premises.caps
        self._lines = lines
        self._ending = ending
        self._lookup = lookup
        self._release = release
        self._generations = premises.generations
        self._leftovers = premises.leftovers
        self._tasks = premises.tasks
        self._cluster = cluster
        self._clock = premises.clock
        self._asking: set[Workflow] = set()
        """Those of which the directory is being asked whether another worker has touched them."""

    async def run(self) -> None:
        """Look for what is due, and do it."""
        while True:
            await anyio.sleep(self._pause())
            try:
                for _ in self.look_after(self._clock()):
                    await asyncio.sleep(0)
            except Exception:  # a defect must not end the pool
                logger.exception("the pool could not be looked after")

    def _pause(self) -> float:
        """Seconds to the next look: a quarter of the shortest time-out that holds for anybody."""
        upstreams = (*self._generations.current.values(), *self._generations.superseded)
        limits = [self._caps.common, *(upstream.pooling for upstream in upstreams)]
        shortest = min(min(p.idle_timeout, p.resume_window, p.request_timeout) for p in limits)
        return max(0.02, min(SWEEP_SECONDS, shortest / 4))

    def look_after(self, now: float) -> Iterator[None]:
        """Do what is due, with a pause wherever calls may go on meanwhile."""
        rota = self._residents.rota
        for number, workflow in enumerate(rota.due(now), 1):
            try:
                if not workflow.ended:
                    rota.put_off(workflow, self._expire(workflow, now), now)
            except Exception:
                logger.exception("a workflow could not be looked after", extra=workflow.about())
            if number % SWEEP_SLICE == 0:
                yield
        self._lines.expire(now)
        if self._cluster is not None:
            self._cluster.expire(now)
            self._lookup.go_on()
        for record, is_wanted in self._leftovers.due(now):
            self._tasks.spawn(self._ending.remove, record, is_wanted)
        self._release_superseded()

    def _expire(self, workflow: Workflow, now: float) -> float:
        """Do what is due for a workflow; when there will be more, if nothing happens to it until then."""
        workflow.expire(now)
        if self._cluster is not None and not workflow.ended:
            self._cluster.recording.note(workflow)
        patience, cause = workflow.pooling.idle_timeout, "idle"
        if workflow.is_superseded and workflow.pooling.resume_window < patience:
            patience, cause = workflow.pooling.resume_window, "reconfigured"
        idle_since = workflow.idle_since
        if idle_since is None or idle_since + patience > now:
            if self._cluster is not None and workflow.has_changed:  # until it is recorded
                return now
            return min(workflow.due(), inf if idle_since is None else idle_since + patience)
        if self._cluster is None:
            self._ending.soon(workflow, cause)
        elif not (workflow.is_doubted or workflow in self._asking or self._cluster.members.is_away):
            self._asking.add(workflow)
            self._tasks.spawn(self._end_if_unused, self._cluster.directory, workflow, patience, cause)
        return now

    async def _end_if_unused(self, directory: SharedDirectory, workflow: Workflow, patience: float, cause: str) -> None:
        """End a workflow that no worker has touched for so long."""
        try:
            seconds = await directory.untouched(workflow.record.session_id)
        except DirectoryUnavailable:
            return
        finally:
            self._asking.discard(workflow)
        now = self._clock()
        if seconds is None:
            await self._lookup.compare(workflow)  # it was removed, or has to be told again
        elif seconds < patience:
            workflow.touched_elsewhere(now - seconds)
        elif workflow.idle_since is not None and workflow.idle_since + patience <= now:
            self._ending.soon(workflow, cause)

    def _release_superseded(self) -> None:
        """Give up settings that were superseded, once no workflow has them and nothing is open under them."""
        if not self._generations.superseded:
            return
        had = {(workflow.server, workflow.generation) for workflow in self._residents.served}
        for upstream in self._generations.release((had | self._lines.versions).__contains__):
            if self._release is not None:
                self._tasks.spawn(self._release, upstream)
