"""The multiplexer and the session pool: many calls over few upstream sessions, told apart by minted ids.

No sockets, no HTTP, no settings files. `Pool` is where to begin; `ports` says what it needs from the parts around it.
"""

from .lease import Lease, ToolResult
from .limits import EventLogLimits, Pooling
from .lines import Upstream
from .pool import Pool
from .principal import ANONYMOUS, Principal
from .statistics import Statistics

__all__ = [
    "ANONYMOUS",
    "EventLogLimits",
    "Lease",
    "Pool",
    "Pooling",
    "Principal",
    "Statistics",
    "ToolResult",
    "Upstream",
]
