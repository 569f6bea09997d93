"""The old path and the new path through the same gateway program, against the same upstream, in the same run.

Run: `python -m bench.load [--scenario delay5|cpu] [--rounds N] [--output FILE]`. It prints a table and writes JSON to
`bench/results/`. Variants take turns in each round, so that a machine that drifts treats them alike. The gateway has
one core to itself; client and upstream share the other.
"""

import argparse
import asyncio
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.client import open_session, run_calls

ROOT = Path(__file__).parent.parent
UPSTREAM_PORT = 9301
FIRST_GATEWAY_PORT = 9311

VARIANTS = {
    "old path, 6 requests": '[pooling]\nreuse = "none"\n[compat]\nsdk_habits = true\n',
    "old path, 4 requests": '[pooling]\nreuse = "none"\n',
    "trunkline": '[pooling]\nreuse = "workflow"\n',
}
"""What is compared, as settings. The old path: initialize, initialized, call, DELETE for each call; with the habits of
the SDK's clients also the GET stream and tools/list."""

DIRECT = "direct"
FORWARDER = "bare forwarder"
FLOOR = "bare uvicorn"
BESIDE = {FORWARDER: ["--url", f"http://127.0.0.1:{UPSTREAM_PORT}/mcp"], FLOOR: ["--floor"]}
"""What the gateway is measured against, as arguments of `bench.forwarder`."""


@dataclass(frozen=True)
class Scenario:
    """One condition of measurement."""

    about: str
    delay_ms: float
    inflight: int
    calls: int
    """Calls of one variant in one round; the old path makes a quarter of them."""


SCENARIOS = {
    "delay5": Scenario("5 ms network delay for each upstream request, 1 call in flight", 5, 1, 200),
    "delay5x16": Scenario("5 ms network delay for each upstream request, 16 calls in flight", 5, 16, 1600),
    "cpu": Scenario("no delay, 16 calls in flight", 0, 16, 8000),
}


@dataclass
class Measured:
    """All rounds of one variant."""

    name: str
    pid: int
    port: int
    path: str
    session: str
    seconds: list[float]
    rates: list[float]
    cpu: list[float]
    calls: int = 0
    upstream: dict[str, int] | None = None


def main() -> None:
    """Run the scenarios that were asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenario", choices=[*SCENARIOS, "all"], default="all")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results")
    given = parser.parse_args()
    os.chdir(ROOT)
    for name in SCENARIOS if given.scenario == "all" else [given.scenario]:
        rows = run(SCENARIOS[name], given.rounds)
        show(name, rows)
        store(given.output, name, rows, given.rounds)


def run(scenario: Scenario, rounds: int) -> list[dict[str, object]]:
    """Measure all variants in one condition."""
    client_core, gateway_core = cores()
    os.sched_setaffinity(0, {client_core})
    with contextlib.ExitStack() as stack:
        delay = ["--delay-ms", str(scenario.delay_ms)]
        upstream = [sys.executable, "-m", "bench.upstream", "--port", str(UPSTREAM_PORT), *delay]
        stack.enter_context(process(upstream, client_core, f"http://127.0.0.1:{UPSTREAM_PORT}/recorder"))
        variants = [Measured(DIRECT, 0, UPSTREAM_PORT, "/mcp", "", [], [], [])]
        for name, arguments in BESIDE.items():
            port = FIRST_GATEWAY_PORT + len(variants)
            command = [sys.executable, "-m", "bench.forwarder", "--port", str(port), *arguments]
            pid = stack.enter_context(process(command, gateway_core, f"http://127.0.0.1:{port}/readyz"))
            variants.append(Measured(name, pid, port, "/mcp", "", [], [], []))
        for name, settings in VARIANTS.items():
            port = FIRST_GATEWAY_PORT + len(variants)
            pid = stack.enter_context(gateway(settings, port, gateway_core))
            variants.append(Measured(name, pid, port, "/servers/bench/mcp", "", [], [], []))
        asyncio.run(measure(scenario, rounds, variants))
    return [row(variant) for variant in variants]


async def measure(scenario: Scenario, rounds: int, variants: list[Measured]) -> None:
    """A warm-up, then rounds in which each variant has its turn."""
    for variant in variants:
        variant.session = await open_session(variant.port, variant.path)
        await run_calls(
            variant.port, variant.path, variant.session, calls=scenario.inflight * 20, inflight=scenario.inflight
        )
    for _ in range(rounds):
        for variant in variants:
            await asyncio.sleep(0.2)  # what the last turn left running, such as DELETEs, is not this one's
            await one_turn(scenario, variant)


async def one_turn(scenario: Scenario, variant: Measured) -> None:
    """One variant's calls of one round."""
    calls = scenario.calls // 4 if variant.name.startswith("old") else scenario.calls
    recorder(method="DELETE")
    before = cpu_seconds(variant.pid)
    sample = await run_calls(variant.port, variant.path, variant.session, calls=calls, inflight=scenario.inflight)
    await asyncio.sleep(0.1)
    variant.cpu.append((cpu_seconds(variant.pid) - before) / calls)
    variant.seconds += sample.seconds
    variant.rates.append(calls / sample.elapsed)
    variant.calls += calls
    seen = recorder()
    variant.upstream = {
        key: (variant.upstream or {}).get(key, 0) + seen.get(key, 0) for key in {*(variant.upstream or {}), *seen}
    }


def row(variant: Measured) -> dict[str, object]:
    """The figures of one variant."""
    cuts = statistics.quantiles(variant.seconds, n=100)
    upstream = variant.upstream or {}
    return {
        "variant": variant.name,
        "calls": variant.calls,
        "calls_per_second": round(statistics.median(variant.rates), 1),
        "p50_ms": round(cuts[49] * 1000, 3),
        "p99_ms": round(cuts[98] * 1000, 3),
        "gateway_cpu_us_per_call": round(statistics.median(variant.cpu) * 1e6, 1) if variant.pid else None,
        "upstream_requests_per_call": round(sum(upstream.values()) / variant.calls, 3),
        "upstream_sessions": upstream.get("initialize", 0),
        "skipped_initialize": round(1 - upstream.get("initialize", 0) / variant.calls, 4),
        "upstream_requests": dict(sorted(upstream.items())),
    }


def show(name: str, rows: list[dict[str, object]]) -> None:
    """Print a table: gateway CPU and upstream requests are for each call."""
    table = Table(title=f"{name}: {SCENARIOS[name].about}")
    for column in ("variant", "calls/s", "p50 ms", "p99 ms", "CPU µs", "requests", "sessions"):
        table.add_column(column, justify="left" if column == "variant" else "right", no_wrap=True)
    keys = (
        "calls_per_second",
        "p50_ms",
        "p99_ms",
        "gateway_cpu_us_per_call",
        "upstream_requests_per_call",
        "upstream_sessions",
    )
    for one in rows:
        table.add_row(str(one["variant"]), *("-" if one[key] is None else str(one[key]) for key in keys))
    Console(width=100).print(table)


def store(folder: Path, name: str, rows: list[dict[str, object]], rounds: int) -> None:
    """Write the figures of one scenario."""
    command = f"python -m bench.load --scenario {name} --rounds {rounds}"
    write_result(folder, name, SCENARIOS[name].about, command, rows)


def write_result(folder: Path, name: str, about: str, command: str, rows: list[dict[str, object]]) -> None:
    """Write figures, with what is needed to judge them."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    packages = ("trunkline", "aiohttp", "httptools", "msgspec", "uvicorn", "uvloop")
    result = {
        "scenario": name,
        "about": about,
        "command": command,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "machine": {"cores": os.cpu_count(), "cpu": cpu_model(), "python": platform.python_version()},
        "versions": {package: importlib.metadata.version(package) for package in packages},
        "rows": rows,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n")


@contextlib.contextmanager
def gateway(settings: str, port: int, core: int, upstream_port: int = UPSTREAM_PORT) -> Iterator[int]:
    """A gateway process with these settings; its pid."""
    text = f'{settings}[servers.bench]\nurl = "http://127.0.0.1:{upstream_port}/mcp"\n'
    with tempfile.NamedTemporaryFile("w", suffix=".toml") as file:
        file.write(text)
        file.flush()
        command = [sys.executable, "-m", "trunkline.gateway.cli", "serve", file.name, "--port", str(port)]
        with process([*command, "--log-level", "error"], core, f"http://127.0.0.1:{port}/readyz") as pid:
            yield pid


@contextlib.contextmanager
def process(command: list[str], core: int, ready: str) -> Iterator[int]:
    """A process on one core, from when it answers until it is ended; its pid."""
    started = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    try:
        for _ in range(1200):
            with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=1):
                break
            if started.poll() is not None:
                raise RuntimeError(f"{command} ended with {started.returncode}")
            time.sleep(0.05)
        else:
            raise RuntimeError(f"{command} does not answer at {ready}")
        yield started.pid
    finally:
        started.terminate()
        started.wait(timeout=60)


def recorder(method: str = "GET") -> dict[str, int]:
    """What the upstream has seen since it last forgot."""
    asked = urllib.request.Request(f"http://127.0.0.1:{UPSTREAM_PORT}/recorder", method=method)
    with urllib.request.urlopen(asked, timeout=10) as answer:
        counts: dict[str, int] = json.load(answer)
    return counts


def cpu_seconds(pid: int) -> float:
    """User and system time of a process so far; 0 for none."""
    if not pid:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def cores() -> tuple[int, int]:
    """The client's core and the gateway's."""
    available = sorted(os.sched_getaffinity(0) | set(range(os.cpu_count() or 1)))
    return available[0], available[-1]


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
