"""Prometheus metrics, made from the statistics when they are asked for: counting costs the hot path one dictionary."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import product
from math import inf
from time import perf_counter
from typing import TYPE_CHECKING, Final, NamedTuple, get_args

import anyio
import anyio.to_thread
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from ..mux.account import Transport
from ..mux.pool import Pool
from ..mux.ports import PoolResult
from ..mux.statistics import BUCKETS, Gauges, Histogram, Statistics
from ..transports.upstream.http_connector import Kind

if TYPE_CHECKING:
    from .worker_metrics import WorkerMetrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
SERVERS: Final = ("server",)
"""Stands for the names of the configured servers among the fixed values of a label."""

CHANNEL_STATES: Final = ("opening", "active", "idle", "draining")

MAX_SHARE: Final = 0.1
"""How much of its time a process makes expositions, however many ask for one."""

InFlight = Callable[[], Counter[str]]
"""Calls in flight, by server."""


class Family(NamedTuple):
    """One metric: its name, labels and help, and the values of the labels where they are fixed.

    What is fixed is there from the start, at 0: a rate is told from the first event on.
    """

    metric: str
    labels: tuple[str, ...]
    text: str
    fixed: tuple[tuple[str, ...], ...] | None = None


FAULTS: Final = (
    "ambiguous_cancel",
    "cut_answers",
    "duplicate_server_id",
    "fenced",
    "malformed_trace_context",
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

ENDS: Final = (
    "abandoned",
    "deleted",
    "drained",
    "event_log_overflow",
    "event_log_trimmed",
    "evicted",
    "idle",
    "not_opened",
    "reconfigured",
    "removed",
    "reset",
    "revoked",
    "taken_over",
    "upstream_changed",
    "upstream_lost",
)
"""Why a workflow ends."""

COUNTERS: Final[dict[str, Family]] = {
    "calls": Family("trunkline_calls", ("server", "method", "outcome"), "Calls that ended, by outcome."),
    "pool_requests": Family(
        "trunkline_pool_requests",
        ("server", "result"),
        "What the pool did for an initialize or a call: hit, miss, spare, bypass.",
        (SERVERS, get_args(PoolResult)),
    ),
    "channels_closed": Family("trunkline_channels_closed", ("server", "reason"), "Upstream sessions that ended."),
    "workflows_closed": Family("trunkline_workflows_closed", ("reason",), "Workflows that ended.", (ENDS,)),
    "upstream_requests": Family(
        "trunkline_upstream_requests",
        ("server", "kind"),
        "What was sent to servers: requests of HTTP, or messages on a WebSocket or to a program.",
        (SERVERS, get_args(Kind)),
    ),
    "upstream_credentials": Family(
        "trunkline_upstream_credentials",
        ("server", "outcome"),
        "Tokens for servers: issued, not_issued, refused (and renewed), rejected (the renewed one as well).",
    ),
    "repeated_calls": Family(
        "trunkline_repeated_calls",
        ("server", "why"),
        "Calls that were sent a second time: not_run (surely), trusted (by the annotations of their tool).",
        (SERVERS, ("not_run", "trusted")),
    ),
    "resumes": Family(
        "trunkline_resumes",
        ("transport", "outcome"),
        "Streams that clients came back to.",
        (get_args(Transport), ("resumed", "trimmed")),
    ),
    "replayed_events": Family(
        "trunkline_replayed_events", (), "Events that were sent again to clients that came back.", ()
    ),
    "unattributed": Family(
        "trunkline_unattributed", ("method",), "Server messages that no single client could be found for."
    ),
    "late_response": Family("trunkline_late_responses", (), "Answers to calls that had been given up.", ()),
    "forwards": Family("trunkline_forwards", ("outcome",), "Requests that went on to the worker that holds a session."),
    "takeovers": Family(
        "trunkline_takeovers",
        ("outcome",),
        "Sessions taken over from a worker that ended; let_go are those of one that drained.",
        (("adopted", "gone", "let_go", "overtaken", "refused", "reopened"),),
    ),
    "reloads": Family(
        "trunkline_reloads",
        ("outcome",),
        "Times that the settings were read again: applied, or refused for a fault in them.",
        (("applied", "refused"),),
    ),
    "refused": Family("trunkline_refused", ("reason",), "Requests refused before they reached a workflow."),
    "dropped": Family(
        "trunkline_dropped", ("server", "reason"), "Messages that were dropped, and why.", (SERVERS, FAULTS)
    ),
}
"""By the name in the statistics."""

GAUGES: Final[dict[str, Family]] = {
    "channels": Family("trunkline_channels", ("server", "state"), "Upstream sessions, by state."),
    "workflows": Family("trunkline_workflows", ("server", "transport", "state"), "Workflows, by transport and state."),
    "inflight": Family("trunkline_inflight", ("server",), "Calls that wait for an answer."),
}

HISTOGRAMS: Final[dict[str, Family]] = {
    "call_seconds": Family(
        "trunkline_call_seconds", ("server",), "Seconds from the arrival of a call to its answer.", (SERVERS,)
    ),
    "directory_seconds": Family("trunkline_directory_seconds", ("op",), "Seconds of one operation of the directory."),
}


def gauges(pool: Pool, beside: InFlight) -> Gauges:
    """What a pool holds now; `beside` tells the calls in flight that have no session."""
    channels = Counter((server, channel.state) for server, channel in pool.channels)
    workflows = Counter((w.server, w.transport, "attached" if w.is_attached else "detached") for w in pool.workflows)
    inflight = beside() + pool.inflight
    found: Gauges = {}
    for server in {*pool.upstreams, *(server for server, _ in channels), *(server for server, *_ in workflows)}:
        for channel_state in CHANNEL_STATES:
            found["channels", server, channel_state] = channels[server, channel_state]
        for transport, state in product(get_args(Transport), ("attached", "detached")):
            found["workflows", server, transport, state] = workflows[server, transport, state]
        found["inflight", server] = inflight[server]
    return found


def exposition(pool: Pool, beside: InFlight = Counter, workers: WorkerMetrics | None = None) -> Callable[[], bytes]:
    """What writes the text that Prometheus scrapes, of how things stand now; it may be called in a thread.

    With `workers`, that of all processes of the gateway. `beside` as in `gauges`.
    """
    counted, held, servers = Statistics(), gauges(pool, beside), tuple(pool.upstreams)
    counted.add(pool.statistics)

    def write() -> bytes:
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Collected(*(workers.merged(counted, held) if workers else (counted, held)), servers))
        return generate_latest(registry)

    return write


class Expositions:
    """What `look` sees, written down once for all who ask before; that takes `MAX_SHARE` of the time at most.

    The path is open to everybody and takes no turns. A hundred servers make thousands of lines: they are written in a
    thread, and calls go on meanwhile.
    """

    def __init__(self, look: Callable[[], Callable[[], bytes]]) -> None:
        self._look = look
        self._making = anyio.Lock()
        self._looks = 0
        """How many have begun."""
        self._text = b""
        self._written = 0
        """Which of them that is of."""
        self._rests_until = -inf

    async def text(self) -> bytes:
        """How things stand; not before this was asked."""
        before = self._looks
        async with self._making:
            if self._written <= before:
                await anyio.sleep_until(self._rests_until)
                began = perf_counter()
                self._looks += 1
                self._text = await anyio.to_thread.run_sync(self._look())
                self._written = self._looks
                spent = perf_counter() - began
                self._rests_until = anyio.current_time() + spent / MAX_SHARE
            return self._text


class _Collected(Collector):
    """Everything that was counted and is held, as metric families; those without a value yet are there with none."""

    def __init__(self, statistics: Statistics, held: Gauges, servers: Sequence[str]) -> None:
        self._statistics = statistics
        self._held = held
        self._servers = servers

    def collect(self) -> Iterable[Metric]:
        """See `Collector.collect`."""
        sums = self._sums()
        for name, family in COUNTERS.items():
            counter = CounterMetricFamily(family.metric, family.text, labels=family.labels)
            for values, total in sums[name].items():
                counter.add_metric(values, total)
            yield counter
        for name, family in GAUGES.items():
            gauge = GaugeMetricFamily(family.metric, family.text, labels=family.labels)
            for (kind, *labels), value in sorted(self._held.items()):
                if kind == name:
                    gauge.add_metric(labels, value)
            yield gauge
        for name, family in HISTOGRAMS.items():
            yield self._histogram(name, family)

    def _sums(self) -> dict[str, dict[tuple[str, ...], int]]:
        sums: dict[str, dict[tuple[str, ...], int]] = {
            name: dict.fromkeys(self._fixed(family), 0) for name, family in COUNTERS.items()
        }
        for (name, *labels), value in self._statistics.counts.items():
            if name in FAULTS:
                name, labels = "dropped", [*labels[:1], name]
            if name in COUNTERS:
                values = tuple(labels[: len(COUNTERS[name].labels)])
                sums[name][values] = sums[name].get(values, 0) + value
        return sums

    def _fixed(self, family: Family) -> Iterator[tuple[str, ...]]:
        """The label values that are known before anything happened."""
        if family.fixed is not None:
            yield from product(*(self._servers if values is SERVERS else values for values in family.fixed))

    def _histogram(self, name: str, family: Family) -> Metric:
        metric = HistogramMetricFamily(family.metric, family.text, labels=family.labels)
        found = {values: Histogram() for values in self._fixed(family)}
        found.update({key[1:]: histogram for key, histogram in self._statistics.seconds.items() if key[0] == name})
        for values, histogram in found.items():
            buckets: list[tuple[str, float]] = []
            below = 0
            for bound, count in zip((*BUCKETS, float("inf")), histogram.counts, strict=True):
                below += count
                buckets.append(("+Inf" if bound == float("inf") else str(bound), below))
            metric.add_metric(values, buckets, histogram.total)
        return metric
