"""A gateway under a steady load for long: memory and descriptors over time, which must become level.

Run: `python -m bench.soak [--minutes M] [--idle N] [--churn N] [--rate R] [--output FOLDER]`. Idle workflows are opened
first, and stay. Then, for so many minutes: calls by HTTP and by WebSocket at a fixed rate, and beside them clients that
come, call once and end their workflow, spread evenly, as many as `--churn` says in all.

Memory is looked at all the time. Open descriptors under load are mostly the connections of the moment, a hundred or
twenty; whether one is ever left behind shows when nothing calls. So the load comes in stretches, and after each of
them, once its clients have closed their connections and those to the server were idle for too long to be kept, all
descriptors are counted: each moment must have as many as the others. The WebSocket, and the upstream session behind
it, are open in all of them.
"""

import argparse
import asyncio
import contextlib
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import Progress
from trunkline.transports.upstream.http import KEEP_ALIVE_SECONDS

from bench.client import Sample, Slot, Target, open_loop, opened
from bench.connection import open_many
from bench.processes import (
    cores,
    cpu_seconds,
    descriptors,
    gateway_process,
    pinned,
    resident,
    server,
    upstream,
)
from bench.results import LOCAL, Row, write_result
from bench.tables import print_rows
from bench.wires import HTTPSlot

FIRST_SECONDS = 60.0
"""From then on it must be level."""

LEVEL = 0.05
"""The part by which it may be off."""

SAMPLES = 120
"""Times at which the process is looked at."""


@dataclass(frozen=True)
class Plan:
    """What happens in a soak."""

    minutes: float = 10.0
    idle: int = 10_000
    churn: int = 100_000
    rate: float = 500.0
    """Calls each second on workflows that stay, half of them by WebSocket."""
    stretches: int = 10
    """What the load is cut into."""
    quiet: float = KEEP_ALIVE_SECONDS + 1.5
    """Seconds without a call after each of them."""

    @property
    def seconds(self) -> float:
        """How long there is load."""
        return self.minutes * 60


@dataclass
class Course:
    """What was seen, in the order of time."""

    seconds: list[float] = field(default_factory=list)
    rss_mib: list[float] = field(default_factory=list)
    descriptors: list[int] = field(default_factory=list)
    quiet: list[int] = field(default_factory=list)
    """Descriptors while nothing calls: before the load, and after each of its stretches."""

    def look(self, pid: int, seconds: float) -> None:
        """See how it stands."""
        self.seconds.append(round(seconds, 1))
        self.rss_mib.append(round(resident(pid) / 1024, 2))
        self.descriptors.append(descriptors(pid))

    def rss_drift(self, first: float) -> float:
        """By what part the last tenth of the looks is more than the first tenth after so many seconds."""
        after = [mib for second, mib in zip(self.seconds, self.rss_mib, strict=True) if second >= first]
        return _drift(after, 10)

    @property
    def descriptors_drift(self) -> float:
        """By what part the last third of the counts after a stretch is more than the first."""
        return _drift(self.quiet[1:], 3)


def _drift(values: Sequence[float], parts: int) -> float:
    """By what part the median of the last part of the values is more than that of the first of so many."""
    size = max(1, len(values) // parts)
    return statistics.median(values[-size:]) / statistics.median(values[:size]) - 1


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=Plan.minutes)
    parser.add_argument("--idle", type=int, default=Plan.idle, help="workflows without a connection beside")
    parser.add_argument("--churn", type=int, default=Plan.churn, help="workflows that come and go")
    parser.add_argument("--rate", type=float, default=Plan.rate, help="calls each second on workflows that stay")
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    plan = Plan(given.minutes, given.idle, given.churn, given.rate)
    with pinned(cores().client), Progress(console=Console(stderr=True)) as progress:
        rows = run(plan, progress)
    print_rows("soak", rows, {name: name.replace("_", " ") for name in rows[0] if name != "course"})
    about = (
        f"{plan.minutes:g} minutes, {plan.idle:,} idle workflows, {plan.churn:,} that come and go, "
        f"{plan.rate:g} calls/s on others"
    )
    command = f"python -m bench.soak --minutes {plan.minutes:g} --idle {plan.idle} --churn {plan.churn}"
    write_result(given.output, "soak", about, f"{command} --rate {plan.rate:g}", rows)


def run(plan: Plan, progress: Progress) -> list[Row]:
    """One soak, in a gateway of its own."""
    _, upstream_core, own_core = cores()
    with contextlib.ExitStack() as stack:
        behind = stack.enter_context(upstream(upstream_core))
        servers = server(behind) + server(behind, "/quiet/mcp", "quiet") + server(behind, "/ws", "ws")
        settings = f"[pooling]\nmax_workflows = {plan.idle + 5_000}\n"
        pid, port = stack.enter_context(gateway_process(settings + servers, own_core))
        return [uvloop.run(_soak(plan, pid, port, progress))]


async def _soak(plan: Plan, pid: int, port: int, progress: Progress) -> Row:
    opening = progress.add_task("opening idle workflows", total=plan.idle)
    empty = resident(pid)
    await open_many(Target(port, "/servers/quiet/mcp"), plan.idle, lambda: progress.advance(opening))
    kept = resident(pid)
    course = Course()
    http, ws = Target(port, "/servers/bench/mcp"), Target(port, "/servers/ws/ws", "ws")
    rates = (plan.rate / 2, plan.rate / 2, plan.churn / plan.seconds)
    samples: list[Sample] = []
    busy = 0.0
    async with (
        opened(http, inflight=64) as by_http,
        opened(ws, inflight=64) as by_ws,
        opened(http, inflight=64, anew=True) as anew,
        _watching(plan, pid, course, progress),
    ):
        loads = list(zip((by_http, by_ws, anew), rates, strict=True))
        await _rest(by_http, plan)
        course.quiet.append(descriptors(pid))
        for _ in range(plan.stretches):
            before = cpu_seconds(pid)
            seconds = plan.seconds / plan.stretches
            samples += await asyncio.gather(*(open_loop(slots, rate=rate, seconds=seconds) for slots, rate in loads))
            busy += cpu_seconds(pid) - before
            await _rest(by_http, plan)
            course.quiet.append(descriptors(pid))
    first = min(FIRST_SECONDS, plan.seconds / 4)
    drifts = {"rss": course.rss_drift(first), "descriptors": course.descriptors_drift}
    return {
        "calls": sum(sample.calls for sample in samples),
        "workflows_ended": sum(sample.calls for sample in samples[2::3]),
        "errors": sum(sample.errors for sample in samples),
        "cpu_busy": round(busy / plan.seconds, 3),
        "idle_KiB": round((kept - empty) / plan.idle, 2) if plan.idle else None,
        "rss_start_MiB": course.rss_mib[0],
        "rss_end_MiB": course.rss_mib[-1],
        "rss_drift": round(drifts["rss"], 4),
        "descriptors_start": course.quiet[0],
        "descriptors_end": course.quiet[-1],
        "descriptors_most": max(course.descriptors),
        "descriptors_drift": round(drifts["descriptors"], 4),
        "is_level": all(abs(drift) <= LEVEL for drift in drifts.values()),
        "course": vars(course),
    }


async def _rest(slots: list[Slot], plan: Plan) -> None:
    """Close the connections of these, which will open others, and wait until nothing is kept of what was called."""
    for slot in slots:
        if isinstance(slot, HTTPSlot):
            slot.close()
    await asyncio.sleep(plan.quiet)


@contextlib.asynccontextmanager
async def _watching(plan: Plan, pid: int, course: Course, progress: Progress) -> AsyncIterator[None]:
    """Look at the process now and then, for the length of the context."""
    total = plan.seconds + plan.quiet * (plan.stretches + 1)
    soaking = progress.add_task("soaking", total=total)
    began = time.monotonic()

    async def watch() -> None:
        while True:
            course.look(pid, time.monotonic() - began)
            progress.update(soaking, completed=time.monotonic() - began)
            await asyncio.sleep(total / SAMPLES)

    task = asyncio.create_task(watch())
    try:
        yield
    finally:
        task.cancel()


if __name__ == "__main__":
    main()
