"""What trunkline may cost, as ratios within one run, and what the stored results say of it."""

import statistics
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from bench.peers.names import FORGE_NAME, HTTP, HTTP_ONE, NGINX, STDIO
from bench.results import RESULTS, Row, median_ratio, result, row
from bench.scenarios import DIRECT, FEW_IDLE, FORWARDER, MANY_IDLE, OLD_6, TRUNKLINE
from bench.soak import LEVEL


class Due(NamedTuple):
    """One line of the budget, and what was measured."""

    what: str
    due: str
    measured: str
    is_met: bool


class Rows(NamedTuple):
    """Results of a folder."""

    folder: Path

    def rounds(self, scenario: str, variant: str, metric: str) -> list[float]:
        """The rounds of a metric."""
        return list(self.of(scenario, variant)["rounds"][metric])

    def of(self, scenario: str, variant: str) -> Row:
        """A row."""
        return row(scenario, "variant", variant, self.folder)

    def ratio(self, scenario: str, metric: str, variant: str = TRUNKLINE, beside: str = FORWARDER) -> float:
        """What a variant is of another, the median of the rounds."""
        return median_ratio(self.rounds(scenario, variant, metric), self.rounds(scenario, beside, metric))


def budget(folder: Path = RESULTS) -> Iterator[Due]:
    """Every line whose results are there."""
    rows = Rows(folder)
    for line in LINES:
        try:
            yield from line(rows)
        except (FileNotFoundError, KeyError, ValueError):
            continue


def _cpu(rows: Rows) -> Iterator[Due]:
    for scenario, inflight in (("http_16", 16), ("http_64", 64)):
        ratio, cpu = rows.ratio(scenario, "cpu_us"), rows.of(scenario, TRUNKLINE)["cpu_us"]
        what = f"gateway CPU a call, HTTP to HTTP, {inflight} in flight, of the bare forwarder's"
        yield Due(what, "≤ 1.8", f"{ratio:.2f} ({cpu:.0f} µs)", ratio <= 1.8)


def _rate(rows: Rows) -> Iterator[Due]:
    ratio, rate = rows.ratio("http_64", "calls_per_second"), rows.of("http_64", TRUNKLINE)["calls_per_second"]
    what = "calls/s at 64 in flight, one worker, of the bare forwarder's"
    yield Due(what, "≥ 0.55", f"{ratio:.2f} ({rate:,.0f}/s)", ratio >= 0.55)


WEBSOCKET = 60 / 47
"""Due over WebSocket, of the bare forwarder's CPU over HTTP: 60 µs where that takes 47."""


def _websocket(rows: Rows) -> Iterator[Due]:
    ratio, cpu = rows.ratio("ws_ws", "cpu_us"), rows.of("ws_ws", TRUNKLINE)["cpu_us"]
    what = "gateway CPU a call, WebSocket to WebSocket, 16 in flight, of the bare forwarder's over HTTP"
    yield Due(what, f"≤ {WEBSOCKET:.2f}", f"{ratio:.2f} ({cpu:.0f} µs)", ratio <= WEBSOCKET)


def _added(rows: Rows) -> Iterator[Due]:
    pairs = zip(rows.rounds("http_1", TRUNKLINE, "p50_ms"), rows.rounds("http_1", DIRECT, "p50_ms"), strict=True)
    added = statistics.median(mine - direct for mine, direct in pairs)
    yield Due("added p50 at 1 in flight, over direct", "≤ 0.35 ms", f"{added:.2f} ms", added <= 0.35)


def _open(rows: Rows) -> Iterator[Due]:
    ratio, direct = (
        median_ratio(rows.rounds("open", variant, "p99_ms"), rows.rounds("open", variant, "p50_ms"))
        for variant in (TRUNKLINE, DIRECT)
    )
    what = "p99 at 70 % of the maximum rate, open loop, of p50"
    yield Due(what, "≤ 5", f"{ratio:.1f} (direct {direct:.1f})", ratio <= 5)


def _burst(rows: Rows) -> Iterator[Due]:
    parallel, direct = (rows.of("burst", variant)["parallel"] for variant in (TRUNKLINE, DIRECT))
    what = "16 calls of 50 ms at once on one session: as if so many in parallel"
    yield Due(what, "≥ 15", f"{parallel:.1f} (direct {direct:.1f})", parallel >= 15)


def _old_path(rows: Rows) -> Iterator[Due]:
    for scenario, delay, due in (("http_1", 0, -0.70), ("delay5", 5, -0.75), ("delay50", 50, -0.80)):
        if not (rows.folder / f"{scenario}.json").exists():
            continue
        less = round(rows.ratio(scenario, "p50_ms", beside=OLD_6) - 1, 2)  # to the whole per cent, as it is due
        what = f"response time at {delay} ms network delay, less than the old path's with six requests"
        yield Due(what, f"{due:.0%}", f"{less:.0%}", less <= due)
    mine, old = rows.of("http_1", TRUNKLINE)["upstream_requests"], rows.of("http_1", OLD_6)["upstream_requests"]
    yield Due("upstream requests, of the old path's", "-83 %", f"{mine / old - 1:.1%}", mine / old - 1 <= -0.83)
    cpu = rows.ratio("http_16", "cpu_us", beside=OLD_6) - 1
    yield Due("gateway CPU a call at 16 in flight, of the old path's", "-70 %", f"{cpu:.1%}", cpu <= -0.70)


def _anew(rows: Rows) -> Iterator[Due]:
    one = rows.of("anew", TRUNKLINE)
    own = f"{one['upstream_requests']:g} a call"
    what = "clients that come anew with each call: upstream requests, but for the call none"
    yield Due(what, "1 a call", own, abs(one["upstream_requests"] - 1) < 0.005)
    for scenario, delay in (("anew", 0), ("anew5", 5)):
        if (rows.folder / f"{scenario}.json").exists():
            times = rows.ratio(scenario, "calls_per_second", beside=OLD_6)
            what = f"their calls/s at {delay} ms network delay, of the old path's with six requests"
            yield Due(what, "≥ 4", f"{times:.1f}", times >= 4)


def _large(rows: Rows) -> Iterator[Due]:
    ratio = rows.ratio("large", "cpu_us")
    yield Due("gateway CPU for an answer of 1 MiB, of the bare forwarder's", "≤ 1.3", f"{ratio:.2f}", ratio <= 1.3)


def _idle(rows: Rows) -> Iterator[Due]:
    for one in result("memory", rows.folder)["rows"]:
        if "SDK" in one["variant"]:
            continue
        due = 40 * one["wires"] if one["wires"] else 8
        what = f"memory of an idle workflow: {one['variant']}, {one['workflows']:,} of them"
        yield Due(what, f"≤ {due} KiB", f"{one['KiB']:.1f} KiB", one["KiB"] <= due)


def _growth(rows: Rows) -> Iterator[Due]:
    ratio = rows.ratio("growth", "calls_per_second", MANY_IDLE, FEW_IDLE)
    yield Due("calls/s at 10,000 idle workflows, of those at 10", "≥ 0.95", f"{ratio:.2f}", ratio >= 0.95)


def _nginx(rows: Rows) -> Iterator[Due]:
    found = {name: rows.rounds(HTTP_ONE, name, "p50_ms") for name in (TRUNKLINE, NGINX, DIRECT)}
    added = [
        (mine - direct) / (other - direct)
        for mine, other, direct in zip(found[TRUNKLINE], found[NGINX], found[DIRECT], strict=True)
    ]
    times = statistics.median(added)
    yield Due("added p50 at 1 in flight, of nginx's", "≤ 2", f"{times:.2f}", times <= 2)


def _peers(rows: Rows) -> Iterator[Due]:
    for board, due, where in (
        (HTTP, 20, "an HTTP server, 64 in flight"),
        (STDIO, 2, "a server over stdio, 16 in flight"),
    ):
        others = [one["variant"] for one in result(board, rows.folder)["rows"]]
        forge = next((name for name in others if name.startswith(FORGE_NAME)), None)
        if forge is not None:
            times = rows.ratio(board, "calls_per_second", beside=forge)
            yield Due(f"calls/s before {where}, of {forge} with kept sessions", "≥ 70", f"{times:.1f}", times >= 70)
        proxies = [name for name in others if name not in (TRUNKLINE, DIRECT, NGINX, forge)]
        fastest = max(proxies, key=lambda name: float(rows.of(board, name)["calls_per_second"]))
        times = rows.ratio(board, "calls_per_second", beside=fastest)
        what = f"calls/s before {where}, of the fastest other MCP proxy ({fastest})"
        yield Due(what, f"≥ {due}", f"{times:.1f}", times >= due)


def _soak(rows: Rows) -> Iterator[Due]:
    found: dict[str, Any] = result("soak", rows.folder)
    for metric, what in (("rss", "RSS"), ("descriptors", "open descriptors")):
        drift = found["rows"][0][f"{metric}_drift"]
        yield Due(f"{found['about']}: {what} after the first minute", "± 5 %", f"{drift:+.1%}", abs(drift) <= LEVEL)


LINES: tuple[Callable[[Rows], Iterator[Due]], ...] = (
    _cpu,
    _rate,
    _websocket,
    _added,
    _open,
    _burst,
    _old_path,
    _anew,
    _large,
    _idle,
    _growth,
    _soak,
    _nginx,
    _peers,
)
