"""The multiplexer and the session pool: many calls over few upstream sessions, told apart by minted ids.

No sockets, no HTTP, no settings files. `Pool` is where to begin; `ports` says what it needs from the parts around it.
"""

import logging

from .lease import Lease, ToolResult
from .limits import EventLogLimits, Pooling
from .pool import Pool
from .principal import ANONYMOUS, Principal
from .statistics import Statistics
from .upstream import Upstream

# A library says nothing unless its program wants to hear: without this, Python would print warnings by itself.
logging.getLogger("trunkline").addHandler(logging.NullHandler())

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
