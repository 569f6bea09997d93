"""One server, as the pool needs it: how it is reached, and what its settings say of the workflows on it."""

from collections.abc import Callable
from dataclasses import dataclass, field

from .channel import Channel
from .limits import Pooling
from .ports import Connector, Line

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
    """Counts the changes of its settings while the gateway runs: sessions of two generations are never mixed."""
    place: str = ""
    """Names where it is, and as whom it is asked: elsewhere nobody knows its sessions, whatever else differs."""
    credential: str = ""
    """The identity of what the gateway proves itself with, never its value: a rotated token drops nothing."""
    make_line: LineMaker | None = None
    """The line for `reuse = "none"`, which lives outside of mux; None means the dedicated line."""
