"""What an idle session costs: a workflow of the gateway, and a session of the SDK's own session manager.

Run: `python -m bench.memory [--rounds N]`. The same client opens the same sessions everywhere, with equal handshakes,
one after the other on a connection that it then closes; what the process has grown by, divided by their number, is what
one costs. Each round has processes of its own, since memory that was given back would be used again. It prints a table
and writes JSON to `bench/results/`.
"""

import argparse
import asyncio
import contextlib
import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from bench.client import Connection
from bench.load import ROOT, cores, gateway, process, write_result
from bench.slow_reader import resident

SDK_PORT = 9321
UPSTREAM_PORT = 9322
GATEWAY_PORT = 9323
WARM_UP = 500
"""Sessions that are opened before anything is measured, and kept."""
SETTLE_SECONDS = 2.5
"""What was only needed to open them is gone by then: the gateway looks at its workflows every second."""


@dataclass(frozen=True)
class Variant:
    """A process with sessions, and how many of them are opened."""

    name: str
    settings: str | None
    """Those of a gateway; None stands for the SDK's server."""
    sessions: int


SDK = "SDK, StreamableHTTPSessionManager"
VARIANTS = (
    Variant('trunkline, reuse = "user"', '[pooling]\nreuse = "user"\n', 5000),
    Variant(SDK, None, 5000),
    Variant(
        'trunkline, reuse = "workflow", with its upstream session and GET stream',
        '[pooling]\nreuse = "workflow"\n',
        1000,
    ),
)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args()
    costs: dict[str, list[float]] = {variant.name: [] for variant in VARIANTS}
    for _ in range(given.rounds):
        for variant in VARIANTS:
            costs[variant.name].append(one_round(variant))
    rows = [row(variant, costs) for variant in VARIANTS]
    table = Table(title="what an idle session costs, KiB")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "variant" else "right")
    for one in rows:
        table.add_row(*("" if value is None else str(value) for value in one.values()))
    Console(width=120).print(table)
    if not given.no_store:
        about = "memory of an idle session without a connection, equal handshakes"
        command = f"python -m bench.memory --rounds {given.rounds}"
        write_result(ROOT / "bench" / "results", "memory", about, command, rows)


def one_round(variant: Variant) -> float:
    """KiB that one more session costs a new process."""
    with serving(variant) as (pid, port, path):
        asyncio.run(open_sessions(port, path, WARM_UP))
        before = resident(pid)
        opened = asyncio.run(open_sessions(port, path, variant.sessions))
        grown = resident(pid) - before
        asyncio.run(check_alive(port, path, opened))
        return grown / variant.sessions


def row(variant: Variant, costs: dict[str, list[float]]) -> dict[str, object]:
    """The figures of one variant."""
    mine, theirs = statistics.median(costs[variant.name]), statistics.median(costs[SDK])
    return {
        "variant": variant.name,
        "sessions": variant.sessions,
        "least_KiB": round(min(costs[variant.name]), 2),
        "median_KiB": round(mine, 2),
        "less_than_sdk": None if variant.name == SDK else round(1 - mine / theirs, 3),
    }


@contextlib.contextmanager
def serving(variant: Variant) -> Iterator[tuple[int, int, str]]:
    """The processes of one variant: the pid of the one that holds the sessions, its port, and its path."""
    client_core, own_core = cores()
    if variant.settings is None:
        command = [sys.executable, "-m", "bench.sdk_sessions", "--port", str(SDK_PORT)]
        with process(command, own_core, f"http://127.0.0.1:{SDK_PORT}/readyz") as pid:
            yield pid, SDK_PORT, "/mcp"
        return
    upstream = [sys.executable, "-m", "bench.upstream", "--port", str(UPSTREAM_PORT)]
    with (
        process(upstream, client_core, f"http://127.0.0.1:{UPSTREAM_PORT}/recorder"),
        gateway(variant.settings, GATEWAY_PORT, own_core, UPSTREAM_PORT) as pid,
    ):
        yield pid, GATEWAY_PORT, "/servers/bench/mcp"


async def open_sessions(port: int, path: str, count: int) -> list[str]:
    """Open so many, leave them, and wait until what is left is what they cost; their ids."""
    connection = await Connection.open(port, path)
    opened = [await connection.open_session() for _ in range(count)]
    connection.close()
    await asyncio.sleep(SETTLE_SECONDS)
    return opened


async def check_alive(port: int, path: str, opened: list[str]) -> None:
    """What was measured is there: as many sessions as were opened, and they answer."""
    if len(set(opened)) < len(opened):
        raise RuntimeError("sessions share an id")
    connection = await Connection.open(port, path)
    for connection.session in opened[:: len(opened) // 10]:
        await connection.post(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
    connection.close()


if __name__ == "__main__":
    main()
