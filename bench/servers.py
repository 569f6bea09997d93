"""What serves HTTP for less: uvicorn and others with the same application, and a bare protocol without one.

Run: `python -m bench.servers [--rounds N] [--seconds S] [--output FOLDER]`. Each answers at once with what it was
asked, on a core of its own, by turns. What one costs less than uvicorn is the most that the gateway could gain by it.
"""

import argparse
import asyncio
import importlib.metadata
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import anyio.to_thread
import httptools
import uvloop
from rich.console import Console
from rich.progress import Progress

from bench.client import Target
from bench.load import COLUMNS, Bed, measure
from bench.processes import ROOT, cores, free_port, process
from bench.results import LOCAL, write_result
from bench.scenarios import Scenario
from bench.tables import print_rows

APPLICATION: Final = "bench.forwarder:floor"
PROTOCOL: Final = "bare asyncio.Protocol on httptools"

SERVERS: Final[dict[str, list[str]]] = {
    "uvicorn": ["bench.forwarder", "--floor", "--port"],
    "hypercorn": ["hypercorn", APPLICATION, "--worker-class", "uvloop", "--log-level", "ERROR", "--bind"],
    "granian": [
        "granian",
        APPLICATION,
        "--interface",
        "asginl",
        "--loop",
        "uvloop",
        "--http",
        "1",
        "--no-ws",
        "--port",
    ],
    PROTOCOL: ["bench.servers", "--serve"],
}
"""The module that serves, and its arguments but for the port."""


class Answering(asyncio.Protocol):
    """Answers each request at once with its body."""

    def __init__(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._body = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        """What the parser tells."""
        self._body = b""

    def on_body(self, body: bytes) -> None:
        """What the parser tells."""
        self._body += body

    def on_message_complete(self) -> None:
        """What the parser tells."""
        head = (
            b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nmcp-session-id: floor\r\ncontent-length: %d\r\n\r\n"
        )
        self._transport.write(head % len(self._body) + self._body)


class ServerBed(Bed):
    """The servers that are compared."""

    async def place(self, name: str, note: Callable[[], object] = lambda: None) -> tuple[int, int]:
        """See `Bed.place`."""
        if name not in self._places:
            port = free_port()
            last = f"127.0.0.1:{port}" if name == "hypercorn" else str(port)
            started = process(
                [sys.executable, "-m", *SERVERS[name], last], cores().gateway, f"http://127.0.0.1:{port}/"
            )
            self._places[name] = await anyio.to_thread.run_sync(self._stack.enter_context, started), port
        return self._places[name]

    async def target(self, name: str, scenario: Scenario) -> Target:
        """See `Bed.target`."""
        return Target((await self.place(name))[1], "/mcp")


async def compare(rounds: int, seconds: float, output: Path) -> None:
    """Measure, print and store."""
    scenario = Scenario("what a request costs whoever serves it, 16 in flight", tuple(SERVERS), 16, seconds=seconds)
    with ServerBed() as bed, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("servers", total=rounds * len(SERVERS))
        rows = await measure(bed, scenario, rounds, lambda: progress.advance(task))
    for row in rows:
        name = row["variant"]
        row["version"] = importlib.metadata.version("httptools" if name == PROTOCOL else name)
    print_rows(scenario.about, rows, COLUMNS)
    write_result(
        output, "servers", scenario.about, f"python -m bench.servers --rounds {rounds} --seconds {seconds:g}", rows
    )


async def serve(port: int) -> None:
    """Be the bare protocol, until the process is ended."""
    server = await asyncio.get_running_loop().create_server(Answering, "127.0.0.1", port)
    await server.serve_forever()


def main() -> None:
    """Compare, or be what is compared."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--output", type=Path, default=LOCAL)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.chdir(ROOT)
    uvloop.run(serve(given.serve) if given.serve else compare(given.rounds, given.seconds, given.output))


if __name__ == "__main__":
    main()
