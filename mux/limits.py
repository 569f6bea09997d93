"""What bounds a session: the `[pooling]` section, as frozen values.

The program reads them from TOML; a library user constructs them. Every number has a unit in its docstring, and every
one of them bounds memory or time (guarantee G10).
"""

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

TEN_YEARS = 315_360_000
"""The longest time that can be set, in seconds: what is to be bounded is."""

Count = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0, le=TEN_YEARS, title="seconds")]
Wait = Annotated[float, Meta(ge=0, le=TEN_YEARS, title="seconds")]
Bytes = Annotated[int, Meta(ge=1, title="bytes")]

Reuse = Literal["none", "workflow", "user"]

MIB = 1024 * 1024

MAX_BODY_BYTES = 4 * MIB
"""Largest message a client may send; the MCP SDK's servers refuse the same size with 413."""

MAX_HANDSHAKE_BYTES = 64 * 1024
"""Longest `params` of an `initialize`: they are kept for as long as the session, and stored with its record."""

MAX_GREETING_BYTES = 256 * 1024
"""Longest answer of a server to an `initialize`: it is kept for as long as the session, and stored with its record."""

MAX_URI_BYTES = 8 * 1024
"""Longest URI that a shared session watches: it is kept for as long as somebody subscribes to it."""

MAX_EVENT_BYTES = 16 * MIB
"""Largest message an upstream may send, as one SSE event or one JSON body."""

MAX_BATCH = 256
"""Most messages of one batch: each costs much more than its bytes, and they have one turn together."""

MAX_ID_BYTES = 1024
"""Longest spelling of a request id or progress token: it is stored for as long as the request is in flight."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Values that are what their fields say, whoever makes them.

    Raises:
        ValueError: one is not, by the name of its field.
    """

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if isinstance(field.default, msgspec.Struct):
                if not isinstance(value, type(field.default)):
                    raise ValueError(f"{field.name}: expected {type(field.default).__name__}")
                continue
            try:
                msgspec.convert(value, field.type)
            except msgspec.ValidationError as error:
                raise ValueError(f"{field.name}: {error}") from None


class EventLogLimits(Limits, frozen=True, forbid_unknown_fields=True):
    """Bounds of the log that makes streams resumable."""

    events: Count = 1000
    """Events kept for one workflow."""
    bytes: Bytes = 4 * MIB
    """Bytes kept for one workflow."""
    total_bytes: Bytes = 256 * MIB
    """Bytes kept by one process."""


class Pooling(Limits, frozen=True, forbid_unknown_fields=True):
    """How far sessions are shared, and every limit on them. Times are seconds."""

    reuse: Reuse = "workflow"
    """How far a session with a server is shared: by one call, one conversation, or all of one user's."""
    idle_timeout: Seconds = 1800
    """A workflow without a wire ends this long after its last response ended."""
    resume_window: Seconds = 300
    """What was sent to a client that dropped is kept this long for its return."""
    request_timeout: Seconds = 300
    """A call without answer or progress for this long is cancelled and answered with -31004."""
    spares: Annotated[int, Meta(ge=0)] = 0
    """Sessions, initialized and never used, that are kept ready for clients like those that a server has now."""
    max_channel_age: Wait = 0
    """A session that workflows share is replaced after so long, without a break; 0 for never."""
    max_workflows: Count = 10_000
    """Workflows of all servers that have no such number of their own; a server's own counts what is on it alone.
    Over it, one that is idle and without a connection gives way, or the newcomer is refused."""
    max_workflows_per_user: Count = 100
    """Workflows of one principal, counted in the same way; anonymous has no such cap."""
    max_workflows_per_tenant: Count = 2_000
    """Workflows of all principals of one tenant, counted in the same way."""
    max_channels_per_user: Count = 16
    """Sessions with one server that one principal's workflows share, with `reuse = "user"`."""
    max_inflight_per_workflow: Count = 64
    """Calls of one workflow that wait for an answer."""
    max_inflight_per_channel: Count = 256
    """Calls on one session with a server that wait for an answer, those of all workflows that share it."""
    event_log: EventLogLimits = EventLogLimits()
    """What is kept so that clients can resume their streams."""

    @property
    def keeping(self) -> str:
        """Names how long a workflow is kept, and how much of its log: who serves it has to go by the same."""
        log = self.event_log
        return f"{self.idle_timeout:g} {self.resume_window:g} {log.events} {log.bytes}"
