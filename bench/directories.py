"""What a directory costs calls: the same calls with each backend, with one worker and with two, in the same run.

Run: `python -m bench.directories [--rounds N] [--calls N]`. It starts a redis-server and a PostgreSQL of its own,
prints a table and writes JSON to `bench/results/`. Variants take turns in each round, each round in another order;
ratios are those of one round, and their median is told. On four cores or more each of two workers has a core to itself;
on fewer they share one, where CPU for each call tells what calls/s cannot.
"""

import argparse
import asyncio
import contextlib
import os
import random
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path

from bench.client import Sample, open_session, run_calls
from bench.processes import ROOT, cores, cpu_seconds, gateway_process, pinned, server, tree, upstream
from bench.results import RESULTS, Row, median_ratio, write_result
from bench.tables import metered, print_rows

sys.path.append(str(ROOT / "tests"))

from harness.backends import Backends

PATH = "/servers/bench/mcp"
INFLIGHT = 16
ENOUGH_CORES = 4
SETTLE_SECONDS = 0.2
IDLE_SECONDS = 5.0
APART = "memory, apart"
VARIANTS = (
    ("memory", 1),
    (APART, 2),
    ("redis", 1),
    ("redis", 2),
    ("sqlite", 1),
    ("sqlite", 2),
    ("postgresql", 1),
    ("postgresql", 2),
)
"""Backends, and how many workers; `APART` are as many gateways that share nothing, each with its part of the calls:
what processes cost each other on the cores that they share."""


class Variant:
    """A gateway with a directory, and what was measured of it."""

    def __init__(self, backend: str, workers: int, gateways: dict[int, int]) -> None:
        self.backend = backend
        self.workers = workers
        self.rates: list[float] = []
        self.cpu: list[float] = []
        self.seconds: list[float] = []
        self.idle = 0.0
        """Seconds of CPU in a second without a call."""
        self._gateways = gateways
        """The process of each port."""
        self._sessions: dict[int, str] = {}

    def pids(self) -> list[int]:
        """Its processes: the only one, or the parents and their workers."""
        return [one for pid in self._gateways.values() for one in tree(pid)]

    def used(self) -> float:
        """Seconds of CPU of its processes so far."""
        return sum(map(cpu_seconds, self._gateways.values()))

    async def begin(self) -> None:
        """Open its session, and warm up."""
        for port in self._gateways:
            self._sessions[port] = await open_session(port, PATH)
        await self._run(INFLIGHT * 40)

    async def turn(self, calls: int) -> None:
        """So many calls, each in time and CPU."""
        before = self.used()
        samples = await self._run(calls)
        await asyncio.sleep(SETTLE_SECONDS)  # what is written beside the calls belongs to them
        self.cpu.append((self.used() - before) / calls)
        self.rates.append(calls / max(sample.elapsed for sample in samples))
        for sample in samples:
            self.seconds += sample.seconds

    async def _run(self, calls: int) -> list[Sample]:
        parts = len(self._sessions)
        return await asyncio.gather(
            *(
                run_calls(port, PATH, session, calls=calls // parts, inflight=INFLIGHT // parts)
                for port, session in self._sessions.items()
            )
        )


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=6000, help="of each variant in each round")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args()
    with started() as variants:
        asyncio.run(measure(variants, given.rounds, given.calls))
        rows = [row(variant, variants) for variant in variants]
    print_rows("calls with each directory", rows)
    if not given.no_store:
        about = f"calls with each directory, {INFLIGHT} in flight"
        command = f"python -m bench.directories --rounds {given.rounds} --calls {given.calls}"
        write_result(given.output, "directories", about, command, rows)


@contextlib.contextmanager
def started() -> Iterator[list[Variant]]:
    """All variants, before one server."""
    client_core, upstream_core, own_core = cores()
    backends = Backends()
    with contextlib.ExitStack() as stack:
        stack.callback(backends.close)
        stack.enter_context(pinned(client_core))
        behind = server(stack.enter_context(upstream(upstream_core)))
        variants: list[Variant] = []
        for backend, workers in VARIANTS:
            settings = "" if backend in ("memory", APART) else backends.settings(backend)
            gateways, each = (workers, 1) if backend == APART else (1, workers)
            settings += f"[gateway]\nworkers = {each}\n{behind}"
            started = [stack.enter_context(gateway_process(settings, own_core)) for _ in range(gateways)]
            variants.append(Variant(backend, workers, {port: pid for pid, port in started}))
            spread(variants[-1])
        yield variants


def spread(variant: Variant) -> None:
    """Give each of several workers a core to itself, where there are enough."""
    if (os.cpu_count() or 1) >= ENOUGH_CORES and variant.workers > 1:
        for pid, core in zip(variant.pids()[-variant.workers :], range(1, ENOUGH_CORES), strict=False):
            os.sched_setaffinity(pid, {core})


async def measure(variants: list[Variant], rounds: int, calls: int) -> None:
    """A warm-up, then rounds in which each variant has its turn."""
    for variant in variants:
        await variant.begin()
    before = [variant.used() for variant in variants]
    await asyncio.sleep(IDLE_SECONDS)
    for variant, used in zip(variants, before, strict=True):
        variant.idle = (variant.used() - used) / IDLE_SECONDS
    for _ in metered(range(rounds)):
        for variant in random.sample(variants, len(variants)):
            await variant.turn(calls)


def row(variant: Variant, variants: list[Variant]) -> Row:
    """The figures of one variant."""
    by_name = {(one.backend, one.workers): one for one in variants}
    base = by_name["memory" if variant.workers == 1 or variant.backend == APART else variant.backend, 1]
    cuts = statistics.quantiles(variant.seconds, n=100)
    return {
        "directory": variant.backend,
        "workers": variant.workers,
        "calls": len(variant.seconds),
        "calls_per_second": round(statistics.median(variant.rates)),
        "p50_ms": round(cuts[49] * 1000, 2),
        "p99_ms": round(cuts[98] * 1000, 2),
        "cpu_us_per_call": round(statistics.median(variant.cpu) * 1e6, 1),
        "idle_cpu_ms_per_s": round(variant.idle * 1000, 1),
        "beside": "" if base is variant else "memory" if base.backend == "memory" else "one worker",
        "calls_ratio": round(median_ratio(variant.rates, base.rates), 3),
        "cpu_ratio": round(median_ratio(variant.cpu, base.cpu), 3),
    }


if __name__ == "__main__":
    main()
