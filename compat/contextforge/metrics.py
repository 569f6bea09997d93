"""The pool's figures at ContextForge's own Prometheus end point, under the names that the program uses."""

from collections import Counter
from collections.abc import Iterable
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .reuse import Reuse

STATES: Final = ("opening", "active", "idle", "draining")

COUNTERS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "pool_requests": (
        "trunkline_pool_requests",
        ("server", "result"),
        "What the pool did for a call or a session: hit, miss, bypass.",
    ),
    "channels_closed": ("trunkline_channels_closed", ("server", "reason"), "Upstream sessions that ended."),
    "workflows_closed": ("trunkline_workflows_closed", ("reason",), "Sessions of clients that ended."),
    "upstream_requests": ("trunkline_upstream_requests", ("server", "kind"), "HTTP requests to servers."),
    "calls": ("trunkline_calls", ("server", "method", "outcome"), "Calls that ended, by outcome."),
}
"""Name in the statistics to metric, labels and help."""


class ReuseCollector(Collector):
    """What was reused, and what is held now."""

    def __init__(self, reuse: Reuse) -> None:
        self._reuse = reuse

    def describe(self) -> Iterable[Metric]:
        """Nothing to look at before the first scrape."""
        return []

    def collect(self) -> Iterable[Metric]:
        """All metric families."""
        counts = self._reuse.statistics.counts
        for name, (metric, labels, text) in COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=labels)
            sums: Counter[tuple[str, ...]] = Counter()
            for key, value in counts.items():
                if key[0] == name:
                    sums[key[1 : 1 + len(labels)]] += value
            for values, total in sums.items():
                family.add_metric(values, total)
            yield family
        channels = GaugeMetricFamily("trunkline_channels", "Upstream sessions, by state.", labels=("server", "state"))
        held = Counter((server, channel.state) for server, channel in self._reuse.pool.channels)
        for server in self._reuse.pool.upstreams:
            for state in STATES:
                channels.add_metric((server, state), held[server, state])
        yield channels


def expose(reuse: Reuse, registry: CollectorRegistry = REGISTRY) -> None:
    """Add them to a registry; ContextForge's end point serves the default one."""
    registry.register(ReuseCollector(reuse))
