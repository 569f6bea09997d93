"""Calls through the gateway and through what it is measured against, in turns, before the same server.

Run: `python -m bench.load [SCENARIO...] [--quick] [--rounds N] [--seconds S] [--output FOLDER]`; `python -m bench`
lists the scenarios. Each scenario prints a table and is stored as JSON. In each round every variant has its turn, so
that a machine that drifts treats all alike. What is measured has one core to itself; client and server share the other,
where there are but two.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import statistics
import sys
import urllib.request
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress

from bench.client import Sample, Slot, Target, burst, closed_loop, open_loop, opened
from bench.connection import open_many
from bench.processes import (
    ROOT,
    Rank,
    awake,
    cores,
    cpu_seconds,
    free_port,
    gateway_process,
    in_real_time,
    pinned,
    process,
    resident,
    server,
    upstream,
)
from bench.results import LOCAL, Row, percentile, write_result
from bench.scenarios import CALL_MS, DIRECT, FLOOR, FORWARDER, SCENARIOS, SHARE_OF_MAXIMUM, VARIANTS, Scenario
from bench.tables import print_rows

PATHS = {"bench": "/mcp", "bench5": "/delay/5/mcp", "bench50": "/delay/50/mcp", "events": "/events/mcp"}
"""Of the lean server, as a server of Streamable HTTP: with a network delay before it, or answers as streams."""

SETTLE_SECONDS = 0.1
"""What a turn left running, such as DELETEs, belongs to it."""

OPEN_SLOTS = 256
"""Calls that may be in flight in the open loop; more wait, and their time counts."""


class Bed:
    """The server, and what stands before it, each started when it is first asked for; a context.

    `first` has all of them go before other processes of the machine.
    """

    def __init__(self, *, first: bool = False) -> None:
        self._is_first = first
        self._rank = Rank.BUSY if first else None
        self._stack = contextlib.ExitStack()
        self._started = contextlib.ExitStack()
        """What stands before the server."""
        self._places: dict[str, tuple[int, int]] = {}
        """The pid and the port of each variant."""
        self.port = 0
        """The server's."""

    def __enter__(self) -> "Bed":
        self._stack.enter_context(pinned(cores().client, self._rank))
        behind = Rank.PROMPT if self._is_first else None
        self.port = self._stack.enter_context(upstream(cores().upstream, rank=behind))
        self._stack.push(self._started)
        self._places[DIRECT] = 0, self.port
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def clear(self) -> None:
        """End all that stands before the server: what is asked for next is started anew."""
        self._started.close()
        self._places = {DIRECT: self._places[DIRECT]}

    async def place(self, name: str, note: Callable[[], object] = lambda: None) -> tuple[int, int]:
        """The pid and the port of a variant; `note` is called for each idle workflow that it is given."""
        if name not in self._places:
            self._places[name] = self._start(name)
            if VARIANTS[name].idle:
                quiet = Target(self._places[name][1], "/servers/quiet/mcp")
                await open_many(quiet, VARIANTS[name].idle, note)
        return self._places[name]

    async def target(self, name: str, scenario: Scenario) -> Target:
        """Where the calls of a variant go."""
        _, port = await self.place(name)
        transport = "http" if name == FORWARDER and scenario.transport != "modern" else scenario.transport
        if VARIANTS[name].settings is not None:
            path = f"/servers/{scenario.server}/{transport if transport in ('sse', 'ws') else 'mcp'}"
        elif transport == "ws":
            path = "/ws"
        else:
            path = PATHS.get(scenario.server, "/mcp")
        return Target(port, path, transport, key="bench" if scenario.anew else "")

    def counts(self, *, forget: bool = False) -> Counter[str]:
        """What the server has seen since it last forgot."""
        method = "DELETE" if forget else "GET"
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}/recorder", method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return Counter(json.load(answer))

    def _start(self, name: str) -> tuple[int, int]:
        settings, core, rank = VARIANTS[name].settings, cores().gateway, self._rank
        if settings is not None:
            return self._started.enter_context(gateway_process(settings + self._servers(), core, rank=rank))
        port = free_port()
        given = ["--floor"] if name == FLOOR else ["--url", f"http://127.0.0.1:{self.port}/mcp"]
        command = [sys.executable, "-m", "bench.forwarder", "--port", str(port), *given]
        ready = f"http://127.0.0.1:{port}/readyz"
        return self._started.enter_context(process(command, core, ready, rank=rank)), port

    def _servers(self) -> str:
        """The lean server as gateways know it: once for each transport and each path."""
        own = ["--stdio", "--core", str(cores().upstream)]
        paths = {"quiet": "/quiet/mcp", "ws": "/ws", **PATHS}
        sections = [server(self.port, path, name) for name, path in paths.items()]
        sections.append(f"[servers.stdio]\ncommand = {json.dumps([sys.executable, '-m', 'bench.upstream', *own])}\n")
        return "".join(sections)


@dataclass
class Measured:
    """All rounds of one variant."""

    name: str
    pid: int = 0
    """Of its process, where it has one."""
    slots: list[Slot] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    """Seconds of each round, for each call."""
    offered: list[float] = field(default_factory=list)
    """Calls each second that an open loop made."""
    counts: Counter[str] = field(default_factory=Counter)
    resident_kib: int = 0

    @property
    def calls(self) -> int:
        """Of all rounds."""
        return sum(sample.calls for sample in self.samples)


async def measure(bed: Bed, scenario: Scenario, rounds: int, note: Callable[[], object] = lambda: None) -> list[Row]:
    """Rounds in which each variant has its turn; `note` is called after each of `steps(scenario, rounds)`."""
    measured = [Measured(name) for name in scenario.variants]
    if scenario.has_own_processes:
        for _ in range(rounds):
            bed.clear()
            await _take_turns(bed, scenario, measured, scenario.turns, note)
        bed.clear()
    else:
        await _take_turns(bed, scenario, measured, rounds * scenario.turns, note)
    return [row(one, scenario) for one in measured]


async def _take_turns(
    bed: Bed, scenario: Scenario, measured: list[Measured], turns: int, note: Callable[[], object]
) -> None:
    """So many turns of each, with the same processes."""
    async with contextlib.AsyncExitStack() as stack:
        for one in measured:
            one.pid, _ = await bed.place(one.name, note)
            one.slots = await stack.enter_async_context(_slots(bed, one.name, scenario))
        for one in measured:
            await closed_loop(one.slots[: scenario.inflight], seconds=min(0.3, scenario.seconds), asks=scenario.asks)
        gc.collect()
        gc.freeze()
        for _ in range(turns):
            for one in measured:
                await asyncio.sleep(SETTLE_SECONDS)
                await _turn(bed, scenario, one)
                note()
        gc.unfreeze()


def steps(scenario: Scenario, rounds: int) -> int:
    """How often `measure` notes that it went on, if nothing has been started before."""
    starts = rounds if scenario.has_own_processes else 1
    return rounds * scenario.turns * len(scenario.variants) + starts * sum(
        VARIANTS[name].idle for name in scenario.variants
    )


def _slots(bed: Bed, name: str, scenario: Scenario) -> contextlib.AbstractAsyncContextManager[list[Slot]]:
    @contextlib.asynccontextmanager
    async def opening() -> AsyncIterator[list[Slot]]:
        target = await bed.target(name, scenario)
        inflight = OPEN_SLOTS if scenario.shape == "open" else scenario.inflight
        workflows = max(scenario.workflows, inflight // 64)
        async with opened(target, inflight=inflight, workflows=workflows, anew=scenario.anew) as slots:
            yield slots

    return opening()


async def _turn(bed: Bed, scenario: Scenario, one: Measured) -> None:
    """One variant's calls of one round."""
    asks, seconds = scenario.asks, scenario.seconds
    if scenario.shape == "open":
        most = await closed_loop(one.slots[: scenario.inflight], seconds=seconds / 2, asks=asks)
        one.offered.append(SHARE_OF_MAXIMUM * most.rate)
        await asyncio.sleep(SETTLE_SECONDS)
    bed.counts(forget=True)
    before = cpu_seconds(one.pid)
    if scenario.shape == "open":
        with in_real_time(os.getpid(), one.pid or os.getpid()):
            sample = await open_loop(one.slots, rate=one.offered[-1], seconds=seconds, asks=asks)
    elif scenario.shape == "burst":
        sample = await _bursts(scenario, one.slots)
    else:
        sample = await closed_loop(one.slots, seconds=seconds, asks=asks)
    await asyncio.sleep(SETTLE_SECONDS)
    one.cpu.append((cpu_seconds(one.pid) - before) / max(1, sample.calls))
    one.samples.append(sample)
    one.counts += bed.counts()
    one.resident_kib = resident(one.pid)


async def _bursts(scenario: Scenario, slots: list[Slot]) -> Sample:
    """Bursts, one after the other, for so long."""
    total = Sample()
    while total.elapsed < scenario.seconds:
        sample = await burst(slots, asks=scenario.asks)
        total = Sample(total.seconds + sample.seconds, total.elapsed + sample.elapsed, total.errors + sample.errors)
    return total


def row(one: Measured, scenario: Scenario) -> Row:
    """The figures of one variant. What is `None` is not known, or is told by too few calls."""
    seconds = [second for sample in one.samples for second in sample.seconds]
    if not seconds:
        raise RuntimeError(f"{one.name}: no call was answered")
    rounds: dict[str, list[float]] = {
        "calls_per_second": [round(sample.rate, 1) for sample in one.samples],
        "p50_ms": [round(statistics.median(sample.seconds) * 1000, 4) for sample in one.samples if sample.seconds],
    }
    if all(percentile(sample.seconds, 99) is not None for sample in one.samples):
        rounds["p99_ms"] = [milliseconds(sample.seconds, 99) or 0.0 for sample in one.samples]
    if one.pid:
        rounds["cpu_us"] = [round(cpu * 1e6, 2) for cpu in one.cpu]
    if scenario.shape == "burst":
        rounds["parallel"] = [round(sample.rate * CALL_MS / 1000, 2) for sample in one.samples]
    if one.offered:
        rounds["offered_per_second"] = [round(rate, 1) for rate in one.offered]
    known = scenario.server != "stdio"
    return {
        "variant": one.name,
        "calls": one.calls,
        **{metric: round(statistics.median(values), 3) for metric, values in rounds.items()},
        "p50_ms": round(statistics.median(seconds) * 1000, 3),
        "p99_ms": milliseconds(seconds, 99),
        "p999_ms": milliseconds(seconds, 99.9),
        "rss_MiB": round(one.resident_kib / 1024, 1) if one.pid else None,
        "upstream_requests": round(one.counts.total() / one.calls, 4) if known else None,
        "upstream_initializes": round(one.counts["initialize"] / one.calls, 4) if known else None,
        "errors": sum(sample.errors for sample in one.samples),
        "rounds": rounds,
    }


def milliseconds(seconds: list[float], percent: float) -> float | None:
    """What so many percent of these do not exceed."""
    found = percentile(seconds, percent)
    return None if found is None else round(found * 1000, 3)


COLUMNS = {
    "variant": "variant",
    "calls_per_second": "calls/s",
    "p50_ms": "p50 ms",
    "p99_ms": "p99 ms",
    "p999_ms": "p99.9 ms",
    "cpu_us": "CPU µs",
    "rss_MiB": "RSS MiB",
    "upstream_requests": "requests",
    "upstream_initializes": "initializes",
    "errors": "errors",
    "parallel": "parallel",
    "offered_per_second": "offered/s",
}


def main() -> None:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", metavar="SCENARIO", help="all of them, where none is named")
    parser.add_argument("--quick", action="store_true", help="those of `make bench`, in shorter turns")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn, by which longer ones are longer")
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    unknown = [name for name in given.scenario if name not in SCENARIOS]
    if unknown:
        parser.error(f"there is no {unknown[0]}; there are {', '.join(SCENARIOS)}")
    names = given.scenario or [name for name in SCENARIOS if SCENARIOS[name].is_quick or not given.quick]
    factor = given.seconds * (0.3 if given.quick else 1.0)
    os.chdir(ROOT)
    uvloop.run(run(names, given.rounds, factor, given.output, given.quick))


async def run(names: list[str], rounds: int, factor: float, output: Path, is_quick: bool) -> None:
    """Measure, print and store them, one after the other."""
    total = sum(steps(SCENARIOS[name], rounds) for name in names)
    with Bed(first=True) as bed, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("measuring", total=total)
        for name in names:
            progress.update(task, description=name)
            scenario = replace(SCENARIOS[name], seconds=SCENARIOS[name].seconds * factor)
            with awake() if scenario.has_pauses else contextlib.nullcontext():
                rows = await measure(bed, scenario, rounds, lambda: progress.advance(task))
            print_rows(f"{name}: {scenario.about}", rows, COLUMNS)
            quick = " --quick" if is_quick else ""
            command = f"python -m bench.load {name}{quick} --rounds {rounds} --seconds {factor:g}"
            write_result(output, name, scenario.about, command, rows)
    print(f"stored in {output}; `python -m bench compare A B` says what differs between two such folders")


if __name__ == "__main__":
    main()
