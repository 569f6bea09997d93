"""One server, as the pool needs it: how it is reached, and what its settings say of the workflows on it."""

from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec

from .channel import Channel
from .limits import Pooling
from .ports import AdoptingConnector, Connector, Line
from .record import Terms, WorkflowRecord

ChannelMaker = Callable[..., Channel]
"""Makes a channel and starts its owner task; `listen=False` leaves out unasked messages that cost a request.

`ended` is told when nothing of its session is left.
"""

LineMaker = Callable[[ChannelMaker], Line]


@dataclass(frozen=True, slots=True)
class Upstream:
    """One configured server, as the pool needs it."""

    name: str
    connector: Connector
    pooling: Pooling = field(default_factory=Pooling)
    stateless: bool = False
    trust_annotations: bool = False
    """A call that may have run is sent again where the server says that its tool is read-only or idempotent (G6)."""
    generation: int = 0
    """Counts the changes of its settings while the gateway runs: workflows of two generations share no session."""
    place: str = ""
    """Names where it is, and as whom it is asked: elsewhere nobody knows its sessions, whatever else differs."""
    credential: str = ""
    """The identity of what the gateway proves itself with, never its value: a rotated token drops nothing."""
    make_line: LineMaker | None = None
    """The line for `reuse = "none"`, which lives outside of mux; None means the dedicated line."""

    @property
    def terms(self) -> Terms:
        """What others have to go by as well who serve a workflow of it."""
        return Terms(self.place, self.pooling.keeping)

    @property
    def keeps_sessions(self) -> bool:
        """Whether a workflow has a session of its own that any worker with these settings can go on with."""
        return self.pooling.reuse == "workflow" and isinstance(self.connector, AdoptingConnector)

    def leads_to(self, record: WorkflowRecord) -> bool:
        """Whether the upstream session of a record can be gone on with here; not where its server was another one."""
        is_there = record.settings is msgspec.UNSET or record.settings.place == self.place
        return is_there and isinstance(self.connector, AdoptingConnector)
