"""Where workflows are recorded, so that any worker can find them.

The port, declared here by its consumer, the pool. Backends beside it implement it. Every method is async because a
backend may be remote; none is called on the hot path of a workflow whose record is younger than `MAX_STALENESS`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple, Protocol

from ..principal import Principal
from ..record import WorkflowRecord, WorkflowState

MAX_STALENESS: Final = 5.0
"""Seconds for which a cached record may be used without asking the directory again."""

ID_BLOCK: Final = 1024
"""Request ids that a channel draws at once."""


class Claimed(NamedTuple):
    """The outcome of `claim`: the record that stands, and how it came to."""

    record: WorkflowRecord
    state: WorkflowState


class Directory(Protocol):
    """Records of workflows, with compare-and-set by epoch."""

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """Store a new record, unless (principal, server, key) names one already: then that one, `resumed`.

        `reset` where the key named a workflow that has ended, `created` otherwise. Without a key it is always stored.
        """

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """The record of that session id."""

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        """The record that this principal's key names on this server."""

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """Store a changed record if the stored one still has its epoch; the new record, or None if it was overtaken."""

    async def remove(self, record: WorkflowRecord) -> bool:
        """Remove a record if the stored one still has its epoch; False if it was overtaken or is gone."""

    async def draw_ids(self, session_id: str) -> range:
        """A block of request ids, never given out before for this session; small integers first (rule E4).

        Raises:
            KeyError: no such session.
        """

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Session ids whose records were changed or removed, by anyone, from entering the context on.

        A watcher that falls behind hears an empty string: everything may have changed.
        """
