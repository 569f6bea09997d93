"""Prometheus metrics, made from the statistics when they are asked for: counting costs the hot path one dictionary."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Final, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..mux.pool import Pool
from ..mux.statistics import BUCKETS, Histogram
from ..mux.workflow import Transport

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

COUNTERS: Final[dict[str, tuple[str, tuple[str, ...], str]]] = {
    "calls": ("trunkline_calls", ("server", "method", "outcome"), "Calls that ended, by outcome."),
    "pool_requests": (
        "trunkline_pool_requests",
        ("server", "result"),
        "What the pool did for an initialize or a call: hit, miss, spare, bypass.",
    ),
    "channels_closed": ("trunkline_channels_closed", ("server", "reason"), "Upstream sessions that ended."),
    "workflows_closed": ("trunkline_workflows_closed", ("reason",), "Workflows that ended."),
    "upstream_requests": ("trunkline_upstream_requests", ("server", "kind"), "HTTP requests to servers."),
    "resumes": ("trunkline_resumes", ("transport", "outcome"), "Streams that clients came back to."),
    "replayed_events": ("trunkline_replayed_events", (), "Events that were sent again to clients that came back."),
    "unattributed": (
        "trunkline_unattributed",
        ("method",),
        "Server messages that no single client could be found for.",
    ),
    "late_response": ("trunkline_late_responses", (), "Answers to calls that had been given up."),
    "refused": ("trunkline_refused", ("reason",), "Requests refused before they reached a workflow."),
}
"""Name in the statistics to metric, labels and help."""

FAULTS: Final = (
    "ambiguous_cancel",
    "cut_answers",
    "duplicate_server_id",
    "refused_server_requests",
    "slow_clients",
    "undelivered",
    "unknown_answers",
    "unknown_cancel",
    "unknown_progress",
    "unknown_response",
    "upstream_faults",
)
"""Statistics that together make `trunkline_dropped_total{server,reason}`: what was dropped, and why."""


InFlight = Callable[[str], int]
"""A server's name to its calls in flight."""


def _none(server: str) -> int:
    return 0


class PoolCollector(Collector):
    """Everything that a pool counts, and what it holds now."""

    def __init__(self, pool: Pool, beside: InFlight) -> None:
        self._pool = pool
        self._beside = beside

    def collect(self) -> Iterable[Metric]:
        """All metric families; those without a value yet are there with none."""
        yield from self._counters()
        yield from self._gauges()
        yield _histogram(
            "trunkline_call_seconds",
            "Seconds from the arrival of a call to its answer.",
            "server",
            {key[1]: h for key, h in self._pool.statistics.seconds.items() if key[0] == "call_seconds"},
        )
        yield _histogram(
            "trunkline_directory_seconds",
            "Seconds of one operation of the directory.",
            "op",
            {key[1]: h for key, h in self._pool.statistics.seconds.items() if key[0] == "directory_seconds"},
        )

    def _counters(self) -> Iterator[Metric]:
        counts = self._pool.statistics.counts
        for name, (metric, labels, text) in COUNTERS.items():
            family = CounterMetricFamily(metric, text, labels=labels)
            sums: Counter[tuple[str, ...]] = Counter()
            for key, value in counts.items():
                if key[0] == name:
                    sums[key[1 : 1 + len(labels)]] += value
            for values, total in sums.items():
                family.add_metric(values, total)
            if not labels and not sums:
                family.add_metric((), 0)
            yield family
        dropped = CounterMetricFamily(
            "trunkline_dropped", "Messages that were dropped, and why.", labels=("server", "reason")
        )
        for key, value in counts.items():
            if key[0] in FAULTS and len(key) == 2:
                dropped.add_metric((key[1], key[0]), value)
        yield dropped

    def _gauges(self) -> Iterator[Metric]:
        pool = self._pool
        channels = GaugeMetricFamily("trunkline_channels", "Upstream sessions, by state.", labels=("server", "state"))
        held = Counter((server, channel.state) for server, channel in pool.channels)
        for server in pool.upstreams:
            for state in ("opening", "active", "idle", "draining"):
                channels.add_metric((server, state), held[server, state])
        yield channels
        workflows = GaugeMetricFamily(
            "trunkline_workflows", "Workflows, by transport and state.", labels=("server", "transport", "state")
        )
        living = Counter((w.server, w.transport, "attached" if w.is_attached else "detached") for w in pool.workflows)
        inflight: Counter[str] = Counter()
        for workflow in pool.workflows:
            inflight[workflow.server] += workflow.inflight
        for server in pool.upstreams:
            for transport in get_args(Transport):
                for state in ("attached", "detached"):
                    workflows.add_metric((server, transport, state), living[server, transport, state])
        yield workflows
        calls = GaugeMetricFamily("trunkline_inflight", "Calls that wait for an answer.", labels=("server",))
        for server in pool.upstreams:
            calls.add_metric((server,), inflight[server] + self._beside(server))
        yield calls


def exposition(pool: Pool, beside: InFlight = _none) -> bytes:
    """The text that Prometheus scrapes. `beside` tells a server's calls in flight that have no session."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(PoolCollector(pool, beside))
    return generate_latest(registry)


def _histogram(name: str, text: str, label: str, found: dict[str, Histogram]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=(label,))
    for value, histogram in found.items():
        buckets: list[tuple[str, float]] = []
        below = 0
        for bound, count in zip((*BUCKETS, float("inf")), histogram.counts, strict=True):
            below += count
            buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
        family.add_metric((value,), buckets, histogram.total)
    return family
