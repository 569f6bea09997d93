"""What an idle workflow costs a gateway: without a connection, with an open stream or socket; and a session of the SDK.

Run: `python -m bench.memory [--rounds N] [--workflows N] [--output FOLDER]`. The same handshakes everywhere, then one
call where there is a gateway; what the process has grown by after a warm-up, divided by their number, is what each
costs. Each round has processes of its own, since memory that was given back would be used again.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import uvloop
from rich.console import Console
from rich.progress import Progress
from trunkline.mux.listening import REST_SECONDS

from bench.client import Target
from bench.connection import Connection, open_many
from bench.processes import cores, free_port, gateway_process, pinned, process, resident, server, upstream
from bench.results import LOCAL, Row, write_result
from bench.shared_wires import SSEWire, WebSocketWire
from bench.tables import print_rows
from bench.wires import CALL, open_stream

WARM_UP = 500
"""Workflows that are opened before anything is measured, and kept."""

SETTLE_SECONDS = REST_SECONDS + 5
"""What was only needed to open and to call is gone by then: streams that nobody needs, and what was kept for them."""

AT_ONCE = 16


@dataclass(frozen=True)
class Variant:
    """A process with sessions, and how they are held open."""

    name: str
    share: float = 1.0
    """Of the workflows that were asked for: where each has connections, descriptors set the limit."""
    reuse: str = "workflow"
    """Of the gateway; empty for the SDK's server."""
    path: str = "/quiet/mcp"
    """Of the lean server."""
    wire: Literal["", "stream", "sse", "ws"] = ""
    """What the client holds open."""
    wires: int = 0
    """Streams and sockets that the gateway holds for one, on either side."""


SDK = Variant("SDK, StreamableHTTPSessionManager", 0.5, reuse="")
VARIANTS = (
    Variant("no connection on either side"),
    Variant('no connection, reuse = "user"', reuse="user"),
    Variant("the upstream session's GET stream", 0.4, path="/mcp", wires=1),
    Variant("the client's GET stream", 0.4, wire="stream", wires=1),
    Variant("HTTP+SSE client", 0.4, wire="sse", wires=1),
    Variant("WebSocket client", 0.4, wire="ws", wires=1),
    Variant("WebSocket client, WebSocket upstream", 0.2, path="/ws", wire="ws", wires=2),
    SDK,
)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workflows", type=int, default=10_000)
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    with pinned(cores().client), Progress(console=Console(stderr=True)) as progress:
        rows = measure(given.rounds, given.workflows, progress)
    print_rows("what an idle workflow costs", rows)
    command = f"python -m bench.memory --rounds {given.rounds} --workflows {given.workflows}"
    write_result(given.output, "memory", "memory of an idle workflow", command, rows)


def measure(rounds: int, workflows: int, progress: Progress, variants: tuple[Variant, ...] = VARIANTS) -> list[Row]:
    """The cost of each variant, in rounds."""
    task = progress.add_task("opening", total=rounds * sum(round(workflows * one.share) for one in variants))
    costs: dict[str, list[float]] = {one.name: [] for one in variants}
    for _ in range(rounds):
        for one in variants:
            progress.update(task, description=one.name)
            cost = one_round(one, round(workflows * one.share), lambda: progress.advance(task))
            costs[one.name].append(round(cost, 2))
    return [row(one, round(workflows * one.share), costs) for one in variants]


def one_round(variant: Variant, count: int, note: Callable[[], object] = lambda: None) -> float:
    """KiB that one more workflow costs a new process."""
    with serving(variant, count) as (pid, target):
        return uvloop.run(_grown(variant, pid, target, count, note))


async def _grown(variant: Variant, pid: int, target: Target, count: int, note: Callable[[], object]) -> float:
    async with opened(variant, target, min(WARM_UP, count)):
        await asyncio.sleep(SETTLE_SECONDS)
        before = resident(pid)
        async with opened(variant, target, count, note) as sessions:
            await asyncio.sleep(SETTLE_SECONDS)
            grown = resident(pid) - before
            await _check_alive(target, sessions)
            return grown / count


def row(variant: Variant, count: int, costs: dict[str, list[float]]) -> Row:
    """The figures of one variant."""
    mine = statistics.median(costs[variant.name])
    sdk = costs.get(SDK.name)
    return {
        "variant": variant.name,
        "workflows": count,
        "KiB": round(mine, 2),
        "wires": variant.wires,
        "KiB_per_wire": round(mine / variant.wires, 2) if variant.wires else None,
        "of_the_SDK": round(mine / statistics.median(sdk), 3) if sdk and variant is not SDK else None,
        "rounds": {"KiB": costs[variant.name]},
    }


@contextlib.contextmanager
def serving(variant: Variant, count: int) -> Iterator[tuple[int, Target]]:
    """The processes of one variant: the pid of the one that holds the sessions, and where they are opened."""
    _, upstream_core, own_core = cores()
    with contextlib.ExitStack() as stack:
        if not variant.reuse:
            port = free_port()
            command = [sys.executable, "-m", "bench.sdk_sessions", "--port", str(port)]
            pid = stack.enter_context(process(command, own_core, f"http://127.0.0.1:{port}/readyz"))
            yield pid, Target(port, "/mcp")
            return
        behind = stack.enter_context(upstream(upstream_core))
        settings = f'[pooling]\nreuse = "{variant.reuse}"\nmax_workflows = {count + WARM_UP}\n'
        pid, port = stack.enter_context(gateway_process(settings + server(behind, variant.path), own_core))
        transport = {"sse": "sse", "ws": "ws"}.get(variant.wire, "http")
        yield pid, Target(port, f"/servers/bench/{'mcp' if transport == 'http' else transport}", transport)


@contextlib.asynccontextmanager
async def opened(
    variant: Variant, target: Target, count: int, note: Callable[[], object] = lambda: None
) -> AsyncIterator[list[str]]:
    """So many workflows; their ids, where they have no wire of their own."""
    async with contextlib.AsyncExitStack() as stack:
        if variant.wire in ("sse", "ws"):
            numbers = iter(range(count))

            async def work() -> None:
                for _ in numbers:
                    wire = SSEWire(target) if variant.wire == "sse" else WebSocketWire(target)
                    await wire.open(1)
                    await wire.rest()
                    stack.callback(wire.close)
                    note()

            await asyncio.gather(*(work() for _ in range(AT_ONCE)))
            yield []
            return
        sessions = await open_many(target, count, note, body=CALL if variant.reuse else b"", at_once=AT_ONCE)
        if variant.wire == "stream":
            for session in sessions:
                stack.callback((await open_stream(target, session)).close)
        yield sessions


async def _check_alive(target: Target, sessions: list[str]) -> None:
    """What was measured is there: as many sessions as were opened, and they answer."""
    if len(set(sessions)) < len(sessions):
        raise RuntimeError("sessions share an id")
    if not sessions:
        return
    connection = await Connection.to(target)
    for connection.session in sessions[:: max(1, len(sessions) // 10)]:
        await connection.post(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    connection.close()


if __name__ == "__main__":
    main()
