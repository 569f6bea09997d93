"""What the parts of a pool stand on, all of them on the same."""

from collections.abc import Callable
from typing import NamedTuple

from .burden import Burden
from .directory import Directory
from .event_log import Budget
from .generations import Generations
from .leftovers import Leftovers
from .policy import Caps
from .residents import Residents
from .statistics import Statistics
from .tasks import Tasks
from .upstream import Upstream


class Premises(NamedTuple):
    """Where workflows are recorded, what is known of those that live in one process, and what they take of it."""

    directory: Directory
    residents: Residents
    generations: Generations[Upstream]
    leftovers: Leftovers
    tasks: Tasks
    statistics: Statistics
    clock: Callable[[], float]
    burden: Burden
    caps: Caps
    budget: Budget
