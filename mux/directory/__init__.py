"""Where workflows, their event logs and the workers that hold them are recorded: any worker can go on with them.

The ports, declared here by their consumer, the pool. A backend beside it implements them all. Every method is async
because a backend may be remote; none is called on the hot path of a workflow whose record is younger than
`MAX_STALENESS`. Every method may raise `DirectoryUnavailable`; what it would have changed may have happened or not.
"""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, Literal, NamedTuple, Protocol

import msgspec

from ..limits import EventLogLimits
from ..principal import Principal
from ..record import WorkflowRecord, WorkflowState

MAX_STALENESS: Final = 5.0
"""Seconds for which a cached record may be used without asking the directory again."""

ID_BLOCK: Final = 1024
"""Request ids that a channel draws at once."""

SHARED: Final = "shared:"
"""How the names of sessions begin that workflows share."""

SHARED_SECONDS: Final = 86400
"""For how long what was drawn for one of these is known."""

KEY_MEMORY_SECONDS: Final = 6 * 3600
"""For how long, at least, it is known that a key named a workflow which has ended."""

WATCH_BUFFER: Final = 1024
"""Changes that are kept for a slow watcher; beyond that they give way to one word, that everything may have changed."""

MAILBOX_FRAMES: Final = 256
"""Frames that are kept for a worker that does not read its mailbox; beyond that they give way to an empty one."""

LEASE_SECONDS: Final = 1.5
"""How long a worker counts as alive after its last heartbeat was sent: so long its channels are its own."""


class Claimed(NamedTuple):
    """The outcome of `claim`: the record that stands, and how it came to."""

    record: WorkflowRecord
    state: WorkflowState


class Directory(Protocol):
    """Records of workflows, with compare-and-set by epoch.

    A record is forgotten `record.lifetime` seconds after it was stored, changed or touched last.
    """

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """Store a new record, unless (principal, server, key) names one already: then that one, `resumed`.

        `reset` where the key named a workflow that has ended, `created` otherwise. Without a key it is always stored.
        """

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """The record of that session id."""

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        """The record that this principal's key names on this server."""

    async def has_ended(self, principal: Principal, server: str, key: str) -> bool:
        """Whether this key named a workflow that has ended, and none now: what `claim` tells as `reset`."""

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """Store a changed record if the stored one still has its epoch; the new record, or None if it was overtaken."""

    async def remove(self, record: WorkflowRecord) -> bool:
        """Remove a record if the stored one still has its epoch; False if it was overtaken or is gone.

        Its event log goes with it. That it has ended is remembered for its lifetime (see `publish`).
        """

    async def draw_ids(self, name: str, above: int = 0) -> range:
        """A block of request ids, never given out before for this name; small integers first (rule E4).

        They are greater than `above`, the highest one that the asker knows of: a directory may have forgotten it. Those
        of a workflow begin where its record says.

        The name is a session id, or, for a session that workflows share, `SHARED` and a name of its own, which is
        forgotten a day after its last block.

        Raises:
            KeyError: no such session.
        """


class Entry(msgspec.Struct, frozen=True, array_like=True):
    """One line of a workflow's event log, as it is kept for the worker that comes after its writer.

    `opened`: the stream carries the answers to the requests whose raw ids are the elements of `message`, a JSON array;
    where it is empty, what belongs to no request, by the record of the epoch n.
    `event`: `message` was appended at position n; `last` if it is the last one.
    `tally`: how the client counts on the nth connection of a wire that carries everything: `message` is of `Tally`.
    `other`: of what it counts on the connection that `message` spells, the nth is a message of another stream.
    `asked`: the stream carries a request of the server's that the client knows by the integer n; `message` is the
    server's own raw id.
    `settled`: that question n is answered or void.
    """

    kind: Literal["opened", "event", "tally", "other", "asked", "settled"]
    stream: int
    n: int
    message: bytes = b""
    last: bool = False


class Logs(Protocol):
    """The event logs of workflows, beside those that live in their writers' memory."""

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        """Add entries at the end, all or none, and trim the oldest beyond `keep`; nothing where there is no record."""

    async def read(self, session_id: str) -> list[Entry]:
        """What is kept, oldest first."""


class Worker(msgspec.Struct, frozen=True):
    """One incarnation of a worker process."""

    id: str
    """Drawn at its start: a worker that is started again is another one."""
    host: str = ""
    """Equal for workers that can reach each other's `address`."""
    address: str = ""
    """The path of the Unix socket on which it takes what other workers forward."""
    number: int = 0
    """Given by `enroll`: unique, small, from 1 on."""
    drains: bool = False
    """Set by its heartbeats once it is to end: it is handed nothing that another one can take."""
    older: tuple[str, ...] | msgspec.UnsetType = msgspec.UNSET
    """Where servers were by settings that no longer hold and under which it has sessions open, by name and place: it
    can go on with others that began there. Not set where there are none."""


class Workers(Protocol):
    """The workers that live, by one heartbeat each; and the ways to one of them."""

    async def enroll(self, worker: Worker) -> Worker:
        """Note a worker that begins; it gets its number, and is alive for `LEASE_SECONDS`."""

    async def beat(self, worker: Worker) -> bool:
        """The worker is alive for another `LEASE_SECONDS` from now on.

        False where it had been taken for dead meanwhile: others may have taken over what it held.
        """

    async def retire(self, worker: Worker) -> None:
        """The worker has ended, in an orderly way or not: it is dead at once."""

    async def worker(self, id: str) -> Worker | None:
        """The worker of this id, if it lives."""

    async def workers(self) -> list[Worker]:
        """All that live."""

    async def settle(self, name: str, worker: Worker) -> str:
        """The id of the worker at which what this name stands for lives: who has it, lives and goes on, else this one.

        Who `drains` has it until another one asks.
        """

    async def send(self, worker: str, frame: bytes) -> bool:
        """Put a frame, of at most 64 KiB, into a worker's mailbox, in order; False where it surely has none."""

    def mailbox(self, worker: Worker) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """The frames that others send to this worker, from entering the context on.

        A mailbox that lost its connection, and maybe frames, hears an empty one.
        """


class SharedDirectory(Directory, Logs, Workers, Protocol):
    """A directory that several workers share."""

    async def at(self, event_token: str) -> WorkflowRecord | None:
        """The record whose event ids carry that token."""

    async def touch(self, session_ids: Collection[str]) -> None:
        """These workflows are in use: their records, keys and logs live on. Unknown ones are passed over."""

    async def untouched(self, session_id: str) -> float | None:
        """Seconds since the workflow's record was stored, changed or touched, by anyone; None where there is none."""

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """Session ids whose records were changed or removed, by anyone, from entering the context on.

        A change of just before may be told as well: the news of it can still be on its way.
        A watcher that falls behind or loses its connection hears an empty string: everything may have changed. It hears
        one more when it can hear changes again.
        """

    async def publish(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """Store a record again that was forgotten, or of which an older state stands (`WorkflowRecord.is_behind`).

        Nothing where it was removed within its lifetime: None. Else the record that stands then: this one, or what its
        session id or its key names already.
        """
