"""What happened, counted by fixed words: the one source for metrics, pages and tests.

A count is a name and its label values; the program turns them into Prometheus metrics. No label is a client's text:
method names go through `method_label`.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable
from typing import Final

METHODS: Final = frozenset(
    {
        "initialize",
        "ping",
        "tools/list",
        "tools/call",
        "resources/list",
        "resources/templates/list",
        "resources/read",
        "resources/subscribe",
        "resources/unsubscribe",
        "prompts/list",
        "prompts/get",
        "completion/complete",
        "logging/setLevel",
        "tasks/get",
        "tasks/result",
        "tasks/list",
        "tasks/cancel",
        "sampling/createMessage",
        "elicitation/create",
        "roots/list",
        "server/discover",
        "subscriptions/listen",
        "notifications/initialized",
        "notifications/cancelled",
        "notifications/progress",
        "notifications/message",
        "notifications/roots/list_changed",
        "notifications/tools/list_changed",
        "notifications/prompts/list_changed",
        "notifications/resources/list_changed",
        "notifications/resources/updated",
        "notifications/tasks/status",
        "notifications/elicitation/complete",
    }
)

BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
"""Upper bounds of the call histogram, seconds."""

Gauges = dict[tuple[str, ...], float]
"""What is held at one moment: by name and label values, as counts are."""


def method_label(method: str) -> str:
    """The method if it is one of MCP's, else `other`: a label must not grow with what clients send."""
    return method if method in METHODS else "other"


class Histogram:
    """Seconds, in the fixed `BUCKETS` and one above them all."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS) + 1)
        self.total = 0.0

    def observe(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.total += seconds

    def add(self, counts: Iterable[int], total: float) -> None:
        """Count what another has counted in the same buckets."""
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, counts, strict=True)]
        self.total += total


class Statistics:
    """Counts since the start of the process. Only ever grows; reading it costs nothing."""

    __slots__ = ("counts", "seconds")

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, ...]] = Counter()
        self.seconds: dict[tuple[str, ...], Histogram] = {}

    def count(self, *key: str, by: int = 1) -> None:
        """Add to the count of a name with label values; the name comes first."""
        self.counts[key] += by

    def observe(self, name: str, seconds: float, *labels: str) -> None:
        """Add one duration to the histogram of `name` with these label values."""
        key = (name, *labels)
        histogram = self.seconds.get(key)
        if histogram is None:
            histogram = self.seconds[key] = Histogram()
        histogram.observe(seconds)

    def add(self, other: "Statistics") -> None:
        """Count all that another has counted."""
        self.counts.update(other.counts)
        for key, histogram in other.seconds.items():
            self.seconds.setdefault(key, Histogram()).add(histogram.counts, histogram.total)

    def total(self, name: str, *labels: str) -> int:
        """The sum of all counts of `name` whose first label values are these."""
        prefix = (name, *labels)
        return sum(value for key, value in self.counts.items() if key[: len(prefix)] == prefix)
