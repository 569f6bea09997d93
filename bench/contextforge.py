"""ContextForge as it is, and with trunkline inside: requests upstream, latency, concurrency, isolation, memory.

Run: `make contextforge`, then `python -m bench.contextforge`. For each version it starts both gateways beside each
other on loopback, each before a server that counts, and drives them by turns with the SDK's own clients, so that both
meet the same machine. `--version`, `--way`, `--cache`, `--calls` and `--sessions` make it shorter. The result is stored
in `bench/results/contextforge.json`.
"""

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

ROOT: Final = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from harness.contextforge import ADMIN, VERSIONS, Forge, Version, contextforge, token  # noqa: E402
from harness.ports import free_port  # noqa: E402
from harness.processes import ServerProcess, wait_for_status  # noqa: E402

from bench.processes import cpu_seconds  # noqa: E402

SETTLING: Final = ROOT / "bench" / "settling"
RESULT: Final = ROOT / "bench" / "results" / "contextforge.json"
SDK1: Final = os.environ.get("TRUNKLINE_SDK1_PYTHON", str(ROOT / ".venv-sdk1" / "bin" / "python"))
BOB: Final = "bob@example.com"
CACHES: Final = ("memory", "database", "redis")
CLIENT_SECONDS: Final = 900
SETTLE_SECONDS: Final = 60
WARMING: Final = 20, 50
"""Sessions before memory is measured; after each of these numbers the gateway settles, as after a round."""
ROUNDS: Final = 4
"""In which memory is measured, so that what is kept once can be told from what grows."""

Rows = Iterator[dict[str, Any]]


class Server:
    """The counting server."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.url = f"http://127.0.0.1:{port}/mcp"

    def recorder(self, method: str = "GET") -> dict[str, int]:
        """What it saw; DELETE forgets it."""
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/recorder", method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10) as answer:
            seen: dict[str, int] = json.load(answer)
        return seen


@contextmanager
def counting() -> Iterator[Server]:
    """The server, for as long as this is entered."""
    port = free_port()
    process = ServerProcess([sys.executable, "-m", "bench.contextforge_upstream", "--port", str(port)], cwd=ROOT)
    try:
        wait_for_status(process, port, "/recorder")
        yield Server(port)
    finally:
        process.kill()


@contextmanager
def redis() -> Iterator[str]:
    """A redis server of the run's own; its URL, without a database."""
    port = free_port()
    process = ServerProcess(["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"])
    try:
        yield f"redis://127.0.0.1:{port}"
    finally:
        process.kill()


def client(forge: Forge, scenario: str, way: Any, *more: str, user: str = ADMIN) -> dict[str, Any]:
    """What a client meets (see `bench/contextforge_client.py`)."""
    command = [SDK1, str(ROOT / "bench" / "contextforge_client.py"), scenario, forge.url("up", way), way]
    try:
        ended = subprocess.run(
            [*command, "--token", token(forge.version, user), *more],
            capture_output=True,
            timeout=CLIENT_SECONDS,
            env={**os.environ, "NO_PROXY": "*"},
        )
    except subprocess.TimeoutExpired:
        return {"failed": f"no end within {CLIENT_SECONDS} s"}
    found: dict[str, Any] = json.loads(ended.stdout or b'{"failed": "no output"}')
    return found


class Side(NamedTuple):
    """One of the two gateways that are compared, and the server behind it."""

    variant: str
    forge: Forge
    server: Server


def measure(sides: Sequence[Side], way: str, calls: int, *, users: bool) -> list[dict[str, Any]]:
    """One transport of both: what each costs, by turns, and then what each does with concurrency and state."""
    for side in sides:
        client(side.forge, "calls", way, "--count", "3")
        side.server.recorder("DELETE")
    before = [cpu_seconds(side.forge.process.pid) for side in sides]
    took = by_turns(sides, way, calls, "calls")
    used = [cpu_seconds(side.forge.process.pid) - since for side, since in zip(sides, before, strict=True)]
    floors = by_turns(sides, way, calls, "pings")
    rows = []
    for side, row, cpu, floor in zip(sides, took, used, floors, strict=True):
        rows.append({"variant": side.variant, "transport": way, **row})
        if "calls" in row:
            rows[-1]["cpu_ms_per_call"] = round(cpu / row["calls"] * 1000, 2)
            rows[-1]["ping_p50_ms"] = floor.get("p50_ms")
            rows[-1].update(state(side, way, row["calls"], users=users))
    return rows


def by_turns(sides: Sequence[Side], way: str, count: int, what: Literal["calls", "pings"]) -> list[dict[str, Any]]:
    """How long each takes, for as many of both: calls, or pings, which go the same way but ask no server."""
    stock, ours = sides
    more = ["--count", str(count), "--what", what]
    took = client(stock.forge, "paired", way, *more, "--other-url", ours.forge.url("up", way))
    if "failed" in took:  # the old path does not get there at all
        return [took, client(ours.forge, "calls", way, *more)]
    return [took["first"], took["second"]]


def state(side: Side, way: str, calls: int, *, users: bool) -> dict[str, Any]:
    """What the server saw of so many calls, and what else a client meets."""
    seen = side.server.recorder()
    found: dict[str, Any] = {
        "upstream_requests_per_call": round((sum(seen.values()) - seen["open"]) / calls, 3),
        "calls_without_initialize": round(1 - seen.get("initialize", 0) / calls, 3),
        "eight_of_half_a_second": client(side.forge, "together", way, "--count", "8").get("seconds"),
        "two_clients_of_one_user": client(side.forge, "counters", way),
    }
    if users:
        found["two_users"] = client(side.forge, "counters", way, "--other-token", token(side.forge.version, BOB))
    return found


def growth(side: Side, sessions: int, calls: int) -> dict[str, Any]:
    """How much more the gateway keeps after so many sessions of so many calls that have ended, over rounds of them.

    What it keeps is its resident memory once its garbage is collected and free pages are given back, those of SQLite's
    cache with them: ContextForge writes to its database for each call, in both variants, and each connection caches up
    to 2 MiB of it. Sessions before the first round warm it up. The 2 MiB or so that both gain once, between the first
    time that they settle and the second, are no objects: pages that the allocator has opened again, in part in use.
    """
    kept = []
    for number in (*WARMING, *[sessions // ROUNDS] * ROUNDS):
        row = client(side.forge, "calls", "http", "--sessions", str(number), "--count", str(calls))
        if "failed" in row:
            return row
        kept.append(settled(side.forge) / 2**20)
    del kept[: len(WARMING) - 1]
    rounds = [round(after - before, 2) for before, after in pairwise(kept)]
    grown = round(kept[-1] - kept[0], 2)
    return {"sessions": sessions, "calls": sessions * calls, "grown_mib": grown, "rounds_mib": rounds}


def settled(forge: Forge) -> int:
    """Resident memory of a gateway that has collected its garbage (see `bench/settling`), in bytes."""
    done = forge.database.parent / "settled"
    forge.process.send_signal(signal.SIGUSR2)
    deadline = time.monotonic() + SETTLE_SECONDS
    while not done.exists():
        if time.monotonic() > deadline:
            raise forge.process.fail("it does not settle")
        time.sleep(0.05)
    done.unlink()
    return forge.process.rss_bytes()


def run(version: Version, cache: str, ways: Sequence[str], given: argparse.Namespace, redis_url: str) -> Rows:
    """Both gateways of one version with one cache, beside each other."""
    # The socket of 0.9.0 as it is asks its own /rpc without a token.
    is_open = version == "0.9.0" and "ws" in ways
    env = {"CACHE_TYPE": cache, "AUTH_REQUIRED": "false" if is_open else "true", "PYTHONPATH": str(SETTLING)}
    about = {"version": version, "cache": cache}
    with ExitStack() as stack:
        sides = []
        for number, variant in enumerate(("stock", "trunkline")):
            env["REDIS_URL"] = f"{redis_url}/{number}"
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = stack.enter_context(counting())
            forge = stack.enter_context(contextforge(version, folder, stock=variant == "stock", env=env))
            forge.add_user(BOB)
            forge.register("up", server.url)
            sides.append(Side(variant, forge, server))
        for way in ways:
            for row in measure(sides, way, given.calls, users=not is_open):
                yield {**about, **row}
        if given.sessions and cache == "memory" and "http" in ways:
            with ThreadPoolExecutor() as both:
                grown = list(both.map(lambda side: growth(side, given.sessions, 10), sides))
            for side, memory in zip(sides, grown, strict=True):
                yield {**about, "variant": side.variant, "memory": memory}


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="append", choices=VERSIONS)
    parser.add_argument("--way", dest="ways", action="append", choices=["http", "sse", "ws"])
    parser.add_argument("--cache", dest="caches", action="append", choices=CACHES)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=200, help="of 10 calls each, for the memory; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    if given.output.is_dir():
        parser.error(f"--output is a file, and {given.output} is a folder")
    given.ways = given.ways or ["http", "sse", "ws"]
    given.caches = given.caches or list(CACHES)
    rows: list[dict[str, Any]] = []
    with redis() as redis_url:
        for version in given.version or VERSIONS:
            for cache in given.caches:
                doors = [[way for way in given.ways if way != "ws"], [way for way in given.ways if way == "ws"]]
                for ways in doors if version == "0.9.0" else [given.ways]:
                    for row in run(version, cache, ways, given, redis_url) if ways else ():
                        rows.append(row)
                        print(json.dumps(row), flush=True)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    result = {
        "about": "ContextForge as it is and with trunkline inside",
        "command": "python -m bench.contextforge " + " ".join(sys.argv[1:]),
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.system()},
        "commit": commit.stdout.strip(),
        "rows": rows,
    }
    given.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
