"""trunkline beside other proxies, by turns, before the same servers.

Run: `make proxies` once, then `python -m bench.peers [--rounds N] [--seconds S] [--output FOLDER]`. First the load,
before a lean server of Streamable HTTP and before one over stdio: each proxy has a core to itself, the client and the
server share the other. Then what becomes of what clients rely on, before a server of the SDK.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread
import uvloop
from rich.console import Console
from rich.progress import Progress

from bench.client import Target
from bench.load import COLUMNS, Bed, measure
from bench.peers import forge
from bench.peers.forge import FORGE
from bench.peers.manners import manners
from bench.peers.names import HTTP, HTTP_ONE, MANNER_COLUMNS, NGINX, STDIO
from bench.peers.proxies import BEFORE_HTTP, BEFORE_STDIO, Behind, Proxy
from bench.processes import ROOT, cores, free_port, process
from bench.results import LOCAL, Row, write_result
from bench.scenarios import DIRECT, TRUNKLINE, Scenario
from bench.tables import print_rows


@dataclass(frozen=True)
class Board:
    """Proxies that are compared with each other."""

    name: str
    about: str
    proxies: Mapping[str, Proxy]
    inflight: int
    is_stdio: bool = False
    is_latency: bool = False
    """True where it is asked what a proxy adds to a single call, and nothing else."""

    @property
    def names(self) -> tuple[str, ...]:
        """Who takes turns. A server over stdio cannot be called without a proxy."""
        if self.is_stdio:
            return tuple(self.proxies)
        return DIRECT, *self.proxies, *((FORGE,) if forge.is_there() and not self.is_latency else ())


class PeerBed(Bed):
    """The lean server, and the proxies of a board before it."""

    def __init__(self, board: Board) -> None:
        super().__init__()
        self._board = board
        self._targets: dict[str, Target] = {}

    async def place(self, name: str, note: Callable[[], object] = lambda: None) -> tuple[int, int]:
        """See `Bed.place`."""
        if name not in self._places:
            own = ["--stdio", "--core", str(cores().upstream)]
            behind = Behind(f"http://127.0.0.1:{self.port}/mcp", [sys.executable, "-m", "bench.upstream", *own])
            started = before(self._board, name, behind, "echo")
            pid, self._targets[name] = await anyio.to_thread.run_sync(self._stack.enter_context, started)
            self._places[name] = pid, self._targets[name].port
        return self._places[name]

    async def target(self, name: str, scenario: Scenario) -> Target:
        """See `Bed.target`."""
        await self.place(name)
        return self._targets.get(name, Target(self.port, "/mcp", own_ids=True))


@contextmanager
def before(board: Board, name: str, behind: Behind, tool: str) -> Iterator[tuple[int, Target]]:
    """A proxy before a server, for the length of the context: its pid, and where the tool is called."""
    if name == FORGE:
        with forge.forge(behind.url, tool) as started:
            yield started
        return
    proxy, port = board.proxies[name], free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = proxy.command(behind._replace(url="") if board.is_stdio else behind, port, Path(folder))
        with process(command, cores().gateway, f"http://127.0.0.1:{port}/") as pid:
            yield pid, Target(port, proxy.path, tool=tool, own_ids=True)


async def judge(board: Board, name: str) -> dict[str, bool | str]:
    """What becomes of what clients rely on, before a server of the SDK."""
    port = free_port()
    server = [sys.executable, "-m", "bench.peers.server"]
    behind = Behind(f"http://127.0.0.1:{port}/mcp", [*server, "--stdio"])
    with ExitStack() as stack:
        stack.enter_context(process([*server, "--port", str(port)], cores().upstream, f"http://127.0.0.1:{port}/"))
        started = before(board, name, behind, "")
        _, target = await anyio.to_thread.run_sync(stack.enter_context, started)
        return await manners(f"http://127.0.0.1:{target.port}{target.path}", target.tool, target.token)


def present(proxies: Mapping[str, Proxy]) -> dict[str, Proxy]:
    """Those that are installed; the others are named."""
    for name, proxy in proxies.items():
        if not proxy.needs.exists():
            print(f"{name} is not installed: `make proxies` brings it", file=sys.stderr)
    return {name: proxy for name, proxy in proxies.items() if proxy.needs.exists()}


def version(proxy: Proxy) -> str:
    """Which one it is, in its own words."""
    if not proxy.version:
        return ""
    told = subprocess.run(proxy.version, capture_output=True, text=True, check=False, timeout=60).stdout.split()
    return next((word for word in reversed(told) if any(char.isdigit() for char in word)), "")


async def compare(board: Board, rounds: int, seconds: float) -> list[Row]:
    """The rows of a board."""
    scenario = Scenario(
        board.about, board.names, board.inflight, server="stdio" if board.is_stdio else "bench", seconds=seconds
    )
    with PeerBed(board) as bed, Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task(board.about, total=rounds * len(board.names))
        rows = await measure(bed, scenario, rounds, lambda: progress.advance(task))
    for row in rows:
        name = row["variant"]
        if name in board.proxies:
            row["version"], row["settings"] = version(board.proxies[name]), board.proxies[name].about
        elif name == FORGE:
            row["version"], row["settings"] = forge.VERSION, forge.ABOUT
        if name != DIRECT and not board.is_latency:
            row |= await judge(board, name)
    return rows


async def run(rounds: int, seconds: float, output: Path) -> None:
    """Measure, judge, print and store."""
    http = "proxies before a server of Streamable HTTP"
    stdio = "proxies before a server over stdio, 16 calls in flight"
    lean = {name: proxy for name, proxy in present(BEFORE_HTTP).items() if name in (NGINX, TRUNKLINE)}
    boards = (
        Board(HTTP_ONE, f"{http}, 1 call in flight", lean, 1, is_latency=True),
        Board(HTTP, f"{http}, 64 calls in flight", present(BEFORE_HTTP), 64),
        Board(STDIO, stdio, present(BEFORE_STDIO), 16, is_stdio=True),
    )
    for board in boards:
        rows = await compare(board, rounds, seconds)
        print_rows(board.about, rows, COLUMNS if board.is_latency else {**COLUMNS, **MANNER_COLUMNS})
        command = f"python -m bench.peers --rounds {rounds} --seconds {seconds:g}"
        write_result(output, board.name, board.about, command, rows)


def main() -> None:
    """Compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    os.chdir(ROOT)
    uvloop.run(run(given.rounds, given.seconds, given.output))


if __name__ == "__main__":
    main()
