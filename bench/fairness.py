"""One principal that sends ten times its share, and one that floods: what the others' calls take beside it.

Run: `python -m bench.fairness [--rounds N] [--seconds S] [--load calm|full|all] [--reuse workflow|user]`. 200
principals in 10 tenants have 50 workflows each. 199 of them make one call at a time, each call in another workflow;
alone, and beside the 200th, in turns in one run. It prints a table and writes JSON to `bench/results/`.

The gateway has one core to itself; the callers, the flooder (a process of its own) and the server share the other.
"""

import argparse
import asyncio
import contextlib
import hashlib
import json
import random
import re
import signal
import statistics
import sys
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import uvloop
from rich.console import Console
from rich.progress import Progress

from bench.client import REVISION, Target
from bench.connection import open_session_at
from bench.processes import cores, cpu_seconds, gateway_process, pinned, server, upstream
from bench.results import LOCAL, Row, write_result
from bench.tables import print_rows

PRINCIPALS, TENANTS, WORKFLOWS = 200, 10, 50
INFLIGHT_OF_WORKFLOW = 64
SETTLE_SECONDS = 2.0

LOADS = {"calm": 0.06, "full": 0.0}
"""Seconds that a principal waits between two calls, on average. In `full`, the gateway has no time to spare."""

FORMS = {"alone": 0, "ten times": 10, "flood": WORKFLOWS * INFLIGHT_OF_WORKFLOW}
"""Calls that the 200th principal has in flight; in `flood` all that it may have, as fast as it can."""


@dataclass
class Counted:
    """What some callers got: seconds of each answer, and how many were refused."""

    seconds: list[float] = field(default_factory=list)
    refused: int = 0


class Caller(asyncio.Protocol):
    """A connection with one call in flight after another, each in the next of its sessions."""

    def __init__(self, requests: list[bytes], pause: float, counted: Counted) -> None:
        self._requests = requests
        self._next = random.randrange(len(requests))
        self._pause = pause
        self.counted = counted
        self._answer = b""
        self._started = 0.0
        self._transport: asyncio.Transport
        self._loop = asyncio.get_running_loop()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._loop.call_later(random.uniform(0, self._pause), self._call)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._answer += data
        head, found, body = self._answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head) if found else None
        if length is None or len(body) < int(length[1]):
            return
        if not head.startswith(b"HTTP/1.1 200"):
            raise RuntimeError(f"{head!r}: {body[:200]!r}")
        if b'"isError":false' in body:
            self.counted.seconds.append(time.perf_counter() - self._started)
        else:
            self.counted.refused += 1
        self._answer, self._started = b"", 0.0
        if self._pause:
            self._loop.call_later(random.expovariate(1 / self._pause), self._call)
        else:
            self._call()

    def close(self) -> None:
        """Leave; a call without an answer counts with what it has taken."""
        if self._started:
            self.counted.seconds.append(time.perf_counter() - self._started)
        self._transport.abort()

    def _call(self) -> None:
        if not self._transport.is_closing():
            self._started = time.perf_counter()
            self._next = (self._next + 1) % len(self._requests)
            self._transport.write(self._requests[self._next])


@dataclass
class Turns:
    """All turns of one form: what the others got, and what the 200th did."""

    others: Counted = field(default_factory=Counted)
    p99s: list[float] = field(default_factory=list)
    seconds: float = 0.0
    cpu: float = 0.0
    greedy_calls: int = 0
    greedy_refused: int = 0


def main() -> None:
    """Measure, print and store; or be the flooder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of one turn")
    parser.add_argument("--load", choices=[*LOADS, "all"], default="all")
    parser.add_argument("--reuse", choices=["workflow", "user"], default="workflow")
    parser.add_argument("--output", type=Path, default=LOCAL)
    parser.add_argument("--greedy", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.greedy is not None:
        uvloop.run(be_greedy(json.loads(given.greedy)))
        return
    loads = list(LOADS) if given.load == "all" else [given.load]
    rows = run(loads, given.rounds, given.seconds, given.reuse)
    print_rows("199 principals beside one that is greedy", rows)
    about = f"{PRINCIPALS} principals with {WORKFLOWS} workflows each; one sends ten times its share, or floods"
    command = f"python -m bench.fairness --rounds {given.rounds} --seconds {given.seconds:g} --reuse {given.reuse}"
    write_result(given.output, "fairness", about, command, rows)


def run(loads: list[str], rounds: int, seconds: float, reuse: str) -> list[Row]:
    """Measure the forms under each load."""
    client_core, upstream_core, own_core = cores()
    with contextlib.ExitStack() as stack:
        stack.enter_context(pinned(client_core))
        behind = server(stack.enter_context(upstream(upstream_core)), "/quiet/mcp")
        pid, port = stack.enter_context(gateway_process(settings(reuse) + behind, own_core))
        progress = stack.enter_context(Progress(console=Console(stderr=True)))
        return uvloop.run(measure(pid, port, loads, rounds, seconds, progress))


def settings(reuse: str) -> str:
    """200 tokens in 10 tenants; the caps on workflows are the defaults."""
    entries = ", ".join(
        f'{{ sha256 = "{hashlib.sha256(token(n).encode()).hexdigest()}", tenant = "tenant-{n % TENANTS}", '
        f'subject = "user-{n}" }}'
        for n in range(PRINCIPALS)
    )
    return f'[auth]\nmode = "tokens"\ntokens = [{entries}]\n[pooling]\nreuse = "{reuse}"\n'


def token(number: int) -> str:
    """The token of a principal."""
    return f"bench-{number}"


async def measure(pid: int, port: int, loads: list[str], rounds: int, seconds: float, progress: Progress) -> list[Row]:
    """Open the workflows, then rounds in which each form has its turn."""
    opening = progress.add_task("opening workflows", total=PRINCIPALS * WORKFLOWS)
    requests: dict[int, list[bytes]] = {n: [] for n in range(PRINCIPALS)}
    numbers = iter([n for _ in range(WORKFLOWS) for n in range(PRINCIPALS)])

    async def open_some() -> None:
        for n in numbers:
            target = Target(port, "/servers/bench/mcp", token=token(n))
            requests[n].append(request(target, await open_session_at(target)))
            progress.advance(opening)

    await asyncio.gather(*(open_some() for _ in range(16)))
    measuring = progress.add_task("measuring", total=len(loads) * rounds * len(FORMS))
    rows: list[Row] = []
    for load in loads:
        turns = {form: Turns() for form in FORMS}
        for _ in range(rounds):
            for form in FORMS:
                await one_turn(pid, port, turns[form], requests, LOADS[load], form, seconds)
                progress.advance(measuring)
        rows += [row(load, form, turns[form], turns["alone"]) for form in FORMS]
    return rows


def request(target: Target, session: str) -> bytes:
    """A call in this session of this principal, as it stands on the wire."""
    body = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"t":"%b"}}}' % (
        b"y" * 300
    )
    own = f"Mcp-Session-Id: {session}\r\nMCP-Protocol-Version: {REVISION}\r\nContent-Length: {len(body)}\r\n\r\n"
    return (target.head() + own).encode() + body


async def one_turn(
    pid: int, port: int, turns: Turns, requests: dict[int, list[bytes]], pause: float, form: str, seconds: float
) -> None:
    """The others' calls of one turn, beside the 200th principal's."""
    callers = [await connect(port, own, pause, Counted()) for n, own in requests.items() if n]
    async with contextlib.AsyncExitStack() as stack:
        report = await stack.enter_async_context(greedy(port, requests[0], form, pause)) if FORMS[form] else {}
        await asyncio.sleep(SETTLE_SECONDS)
        counted = Counted()
        for caller in callers:
            caller.counted = counted
        began, before = time.perf_counter(), cpu_seconds(pid)
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        turns.cpu += cpu_seconds(pid) - before
        for caller in callers:
            caller.close()
    turns.seconds += took
    turns.others.seconds += counted.seconds
    turns.others.refused += counted.refused
    turns.p99s.append(percentile(counted.seconds, 99))
    turns.greedy_calls += round(report.get("rate", 0) * took)
    turns.greedy_refused += round(report.get("refused", 0) * took)
    await asyncio.sleep(SETTLE_SECONDS)


async def connect(port: int, requests: list[bytes], pause: float, counted: Counted) -> Caller:
    """A caller of a principal."""
    _, caller = await asyncio.get_running_loop().create_connection(
        lambda: Caller(requests, pause, counted), "127.0.0.1", port
    )
    return caller


@contextlib.asynccontextmanager
async def greedy(port: int, requests: list[bytes], form: str, pause: float) -> AsyncIterator[dict[str, float]]:
    """The 200th principal's process, filled in at the end: answers and refusals in a second."""
    asked = {"port": port, "lanes": FORMS[form], "pause": 0.0 if form == "flood" else pause}
    command = [sys.executable, "-m", "bench.fairness", "--greedy", json.dumps(asked)]
    pipe = asyncio.subprocess.PIPE
    started = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert started.stdin is not None
    assert started.stdout is not None
    report: dict[str, float] = {}
    try:
        started.stdin.write(json.dumps([one.decode() for one in requests]).encode() + b"\n")
        await started.stdout.readline()
        yield report
    finally:
        started.terminate()
        report.update(json.loads(await started.stdout.readline()))
        await started.wait()


async def be_greedy(asked: dict[str, float]) -> None:
    """So many calls in flight, spread over the sessions, until SIGTERM."""
    requests = [one.encode() for one in json.loads(sys.stdin.readline())]
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    counted = Counted()
    for lane in range(int(asked["lanes"])):
        await connect(int(asked["port"]), [requests[lane % len(requests)]], asked["pause"], counted)
    print("ready", flush=True)
    counted.seconds.clear()
    counted.refused = 0
    began = time.perf_counter()
    await ended.wait()
    took = time.perf_counter() - began
    print(json.dumps({"rate": len(counted.seconds) / took, "refused": counted.refused / took}), flush=True)


def row(load: str, form: str, turns: Turns, alone: Turns) -> Row:
    """The figures of one form under one load. Ratios are of p99, median over the rounds."""
    calls = len(turns.others.seconds)
    ratios = [mine / base for mine, base in zip(turns.p99s, alone.p99s, strict=True)]
    return {
        "load": load,
        "form": form,
        "others_calls_per_second": round(calls / turns.seconds),
        "others_p50_ms": round(percentile(turns.others.seconds, 50) * 1000, 3),
        "others_p99_ms": round(percentile(turns.others.seconds, 99) * 1000, 3),
        "p99_ratio": round(statistics.median(ratios), 2),
        "others_refused": turns.others.refused,
        "its_calls_per_second": round(turns.greedy_calls / turns.seconds),
        "its_refused_per_second": round(turns.greedy_refused / turns.seconds),
        "gateway_busy": round(turns.cpu / turns.seconds, 3),
    }


def percentile(seconds: list[float], percent: int) -> float:
    """So many percent took no longer."""
    return statistics.quantiles(seconds, n=100)[percent - 1]


if __name__ == "__main__":
    main()
