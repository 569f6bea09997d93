"""ContextForge as it is, and with trunkline inside: requests upstream, latency, concurrency, isolation, memory.

Run: `make contextforge`, then `python -m bench.contextforge`. It starts both variants of both versions, one after
another, on loopback before a server that counts, and drives them with the SDK's own clients. `--version`, `--way`,
`--cache` and `--calls` make it shorter. The result is stored in `bench/results/contextforge.json`.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from harness.contextforge import ADMIN, VERSIONS, Forge, Version, contextforge, token  # noqa: E402
from harness.ports import free_port  # noqa: E402
from harness.processes import ServerProcess, wait_for_status  # noqa: E402

RESULT: Final = ROOT / "bench" / "results" / "contextforge.json"
SDK1: Final = os.environ.get("TRUNKLINE_SDK1_PYTHON", str(ROOT / ".venv-sdk1" / "bin" / "python"))
BOB: Final = "bob@example.com"
CACHES: Final = ("memory", "database", "redis")
CLIENT_SECONDS: Final = 900


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
    """A redis server of the run's own; its URL."""
    port = free_port()
    process = ServerProcess(["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"])
    try:
        yield f"redis://127.0.0.1:{port}/0"
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


def measure(forge: Forge, server: Server, way: str, calls: int, *, users: bool) -> dict[str, Any]:
    """One transport of one gateway."""
    client(forge, "calls", way, "--count", "3")
    server.recorder("DELETE")
    row = client(forge, "calls", way, "--count", str(calls))
    seen = server.recorder()
    if "calls" in row:
        total = sum(seen.values()) - seen["open"]
        row["upstream_requests_per_call"] = round(total / row["calls"], 3)
        row["calls_without_initialize"] = round(1 - seen.get("initialize", 0) / row["calls"], 3)
        row["eight_of_half_a_second"] = client(forge, "together", way, "--count", "8").get("seconds")
        row["two_clients_of_one_user"] = client(forge, "counters", way)
        if users:
            row["two_users"] = client(forge, "counters", way, "--other-token", token(forge.version, BOB))
    return row


def growth(forge: Forge, sessions: int, calls: int) -> dict[str, Any]:
    """How much the gateway's memory grows over so many sessions of so many calls, after some to warm up."""
    client(forge, "calls", "http", "--sessions", "20", "--count", str(calls))
    before = forge.process.rss_bytes()
    row = client(forge, "calls", "http", "--sessions", str(sessions), "--count", str(calls))
    row["grown_mib"] = round((forge.process.rss_bytes() - before) / 2**20, 2)
    return row


def run(
    version: Version, variant: str, given: argparse.Namespace, server: Server, redis_url: str
) -> list[dict[str, Any]]:
    """One variant of one version, with each cache."""
    rows: list[dict[str, Any]] = []
    stock = variant == "stock"
    for cache in given.caches:
        for open_door in (False, True) if stock and version == "0.9.0" and "ws" in given.ways else (False,):
            # The socket of 0.9.0 as it is asks its own /rpc without a token.
            ways = [way for way in given.ways if (way == "ws") is open_door or not (stock and version == "0.9.0")]
            env = {"CACHE_TYPE": cache, "REDIS_URL": redis_url, "AUTH_REQUIRED": "false" if open_door else "true"}
            with (
                tempfile.TemporaryDirectory() as folder,
                contextforge(version, Path(folder), stock=stock, env=env) as forge,
            ):
                forge.add_user(BOB)
                forge.register("up", server.url)
                about = {"version": version, "variant": variant, "cache": cache}
                for way in ways:
                    row = {**about, "transport": way}
                    row.update(measure(forge, server, way, given.calls, users=not open_door))
                    rows.append(row)
                    print(json.dumps(row), flush=True)
                if cache == "memory" and given.sessions and not open_door:
                    row = {**about, "memory": growth(forge, given.sessions, 10)}
                    rows.append(row)
                    print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="append", choices=VERSIONS)
    parser.add_argument("--variant", action="append", choices=["stock", "trunkline"])
    parser.add_argument("--way", dest="ways", action="append", choices=["http", "sse", "ws"])
    parser.add_argument("--cache", dest="caches", action="append", choices=CACHES)
    parser.add_argument("--calls", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=200, help="of 10 calls each, for the memory; 0 leaves it out")
    parser.add_argument("--output", type=Path, default=RESULT)
    given = parser.parse_args()
    given.ways = given.ways or ["http", "sse", "ws"]
    given.caches = given.caches or list(CACHES)
    rows: list[dict[str, Any]] = []
    with counting() as server, redis() as redis_url:
        for version in given.version or VERSIONS:
            for variant in given.variant or ("stock", "trunkline"):
                rows += run(version, variant, given, server, redis_url)
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
