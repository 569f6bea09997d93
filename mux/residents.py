"""Who lives here: the workflows of one process, those that ended last, and the keys that are in motion.

Most are held here. Among several workers some are served here *beside* the worker that holds them.

What a directory says of a key is in motion while its record is being claimed or removed. Who comes meanwhile waits.
"""

import asyncio
from collections import deque
from typing import NamedTuple

from .account import MAX_ENDED, Ended, Origin
from .policy import Census
from .principal import Principal
from .record import WorkflowRecord
from .rota import Rota
from .workflow import Workflow

_Key = tuple[Principal, str, str]


class _Unsettled(NamedTuple):
    """A key in motion, until `settled`."""

    session_id: str
    settled: asyncio.Event


class Standing:
    """The workflows of one standing, by session id, event token and key, and how many they are."""

    def __init__(self) -> None:
        self.census = Census()
        self.by_id: dict[str, Workflow] = {}
        self.by_token: dict[str, Workflow] = {}
        self.by_key: dict[_Key, Workflow] = {}
        """Those that a key names."""

    def has(self, workflow: Workflow) -> bool:
        """True for one of them."""
        return self.by_id.get(workflow.record.session_id) is workflow

    def add(self, workflow: Workflow) -> None:
        """It is one of them from now on. The census counts it already."""
        self.by_id[workflow.record.session_id] = workflow
        self.by_token[workflow.record.event_token] = workflow
        if workflow.record.key is not None:
            self.by_key[_name_of(workflow.record)] = workflow

    def remove(self, workflow: Workflow) -> bool:
        """It is none of them any longer; False where it was none."""
        if not self.has(workflow):
            return False
        del self.by_id[workflow.record.session_id], self.by_token[workflow.record.event_token]
        if self.by_key.get(name := _name_of(workflow.record)) is workflow:
            del self.by_key[name]
        self.census.remove(workflow.principal, workflow.server)
        return True


class Residents:
    """The workflows that live here, and the `max_ended` that ended last."""

    def __init__(self, max_ended: int = MAX_ENDED) -> None:
        self.held = Standing()
        self.beside = Standing()
        """Those that are served beside the workers that hold them."""
        self.rota: Rota[Workflow] = Rota()
        """When those that are held here are looked after."""
        self.ended: deque[Ended] = deque(maxlen=max_ended)
        """Those that ended last, so that it can be told why; the newest at the end."""
        self._unsettled: dict[_Key, _Unsettled] = {}

    def add(self, workflow: Workflow) -> None:
        """A workflow is held here from now on. The census counts it already."""
        self.rota.add(workflow)
        self.held.add(workflow)

    def leave(self, workflow: Workflow) -> bool:
        """A workflow is held here no longer; False where it was not."""
        if not self.held.remove(workflow):
            return False
        self.rota.remove(workflow)
        return True

    @property
    def served(self) -> list[Workflow]:
        """All: those that are held here, and those that are served beside their holders."""
        return [*self.held.by_id.values(), *self.beside.by_id.values()]

    def served_as(self, session_id: str) -> list[Workflow]:
        """Those of this session id, the one that is held here first."""
        return [those.by_id[session_id] for those in (self.held, self.beside) if session_id in those.by_id]

    def served_by(self, principal: Principal, server: str, key: str) -> list[Workflow]:
        """Those that this key names, the one that is held here first."""
        name = (principal, server, key)
        return [those.by_key[name] for those in (self.held, self.beside) if name in those.by_key]

    def note_end(self, workflow: Workflow, cause: str, now: float) -> None:
        """Remember what became of one that has left."""
        name = hash(_name_of(workflow.record))
        account, row = workflow.account, row_of(workflow)
        account.note(now, "ended", cause)
        self.ended.append(Ended(workflow.handle, cause, now, name, row, workflow.pooling, account))

    def before(self, record: WorkflowRecord) -> Origin:
        """What became of the workflow that the key of this one named before."""
        name = hash(_name_of(record))
        for ended in reversed(self.ended):
            if ended.name == name:
                return Origin(ended.cause, ended.handle)
        return Origin("")

    # Keys in motion.

    def moving(
        self, principal: Principal, server: str, key: str | None, session_id: str | None
    ) -> asyncio.Event | None:
        """Set when what the directory says of this key, or else of this session id, is settled; None where it is."""
        moving = self._unsettled.get(_name(principal, server, key, session_id))
        return None if moving is None else moving.settled

    def unsettle(self, record: WorkflowRecord) -> None:
        """A record begins to be claimed, or removed."""
        name = _name_of(record)
        before = self._unsettled.get(name)
        self._unsettled[name] = _Unsettled(record.session_id, asyncio.Event())
        if before is not None:
            before.settled.set()

    def settle(self, record: WorkflowRecord) -> None:
        """That is done, or given up."""
        name = _name_of(record)
        moving = self._unsettled.get(name)
        if moving is not None and moving.session_id == record.session_id:
            del self._unsettled[name]
            moving.settled.set()


def _name_of(record: WorkflowRecord) -> _Key:
    return _name(record.principal, record.server, record.key, record.session_id)


def _name(principal: Principal, server: str, key: str | None, session_id: str | None) -> _Key:
    """What a client knows its workflow by: its key, else the session id."""
    return principal, server, key if key is not None else f"\n{session_id}"


def row_of(workflow: Workflow) -> dict[str, object]:
    """What pages and tables show of a workflow: no secret, and no other than fixed words."""
    idle_since = workflow.idle_since
    return {
        "workflow": workflow.handle,
        "principal": workflow.principal.digest(),
        "server": workflow.server,
        "transport": workflow.transport,
        "state": "attached" if workflow.is_attached else "detached",
        "revision": workflow.revision,
        "reuse": workflow.pooling.reuse,
        "keyed": workflow.record.key is not None,
        "inflight": workflow.inflight,
        "idle": None if idle_since is None else round(workflow.now() - idle_since, 1),
    }
