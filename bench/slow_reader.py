"""A client that reads nothing while 10 MiB are due to it: what it costs in memory, and what it costs others.

Run: `python -m bench.slow_reader`. One client calls for some rounds with nobody beside it, and for as many with the
slow reader there; both in one run, taking turns. It prints a table and writes JSON to `bench/results/`.
"""

import asyncio
import contextlib
import socket
import statistics
import sys
from collections.abc import Coroutine
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.client import Connection, Sample, open_session, run_calls
from bench.load import FIRST_GATEWAY_PORT, ROOT, UPSTREAM_PORT, cores, gateway, process, write_result

PATH = "/servers/bench/mcp"
KIB = 10 * 1024
CALLS = 1000
ROUNDS = 5


def main() -> None:
    """Measure, print and store."""
    client_core, gateway_core = cores()
    settings = '[pooling]\nreuse = "workflow"\n'
    with contextlib.ExitStack() as stack:
        upstream = [sys.executable, "-m", "bench.upstream", "--port", str(UPSTREAM_PORT)]
        stack.enter_context(process(upstream, client_core, f"http://127.0.0.1:{UPSTREAM_PORT}/recorder"))
        pid = stack.enter_context(gateway(settings, FIRST_GATEWAY_PORT, gateway_core))
        row = asyncio.run(measure(FIRST_GATEWAY_PORT, pid))
    table = Table(title="a slow reader beside another client")
    for column in row:
        table.add_column(column.replace("_", " "), justify="right")
    table.add_row(*(str(value) for value in row.values()))
    Console(width=110).print(table)
    about = "10 MiB due to a client that reads nothing, beside one that calls, 1 call in flight"
    write_result(ROOT / "bench" / "results", "slow_reader", about, "python -m bench.slow_reader", [row])


async def measure(port: int, pid: int) -> dict[str, object]:
    """The other client's p99 without and with the slow reader, in turns, and the gateway's memory."""
    session = await open_session(port, PATH)
    await run_calls(port, PATH, session, calls=CALLS, inflight=1)
    before = resident(pid)
    alone: list[float] = []
    beside: list[float] = []
    peak = before
    for _ in range(ROUNDS):
        alone += (await run_calls(port, PATH, session, calls=CALLS, inflight=1)).seconds
        slow = await SlowReader.open(port)
        sample, highest = await watched(pid, run_calls(port, PATH, session, calls=CALLS, inflight=1))
        beside += sample.seconds
        peak = max(peak, highest)
        slow.close()
    return {
        "p99_alone_ms": round(p99(alone) * 1000, 3),
        "p99_beside_ms": round(p99(beside) * 1000, 3),
        "ratio": round(p99(beside) / p99(alone), 2),
        "memory_before_MiB": round(before / 1024, 1),
        "memory_at_most_MiB": round(peak / 1024, 1),
    }


class SlowReader:
    """A client that opens its GET stream, lets 10 MiB become due on it, and reads nothing."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    @classmethod
    async def open(cls, port: int) -> "SlowReader":
        """Open it, and ask the server for the flood."""
        connection = await Connection.open(port, PATH)
        connection.session = await open_session(port, PATH)
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.setblocking(False)
        await asyncio.get_running_loop().sock_connect(stream, ("127.0.0.1", port))
        head = (
            f"GET {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: text/event-stream\r\n"
            f"Mcp-Session-Id: {connection.session}\r\n\r\n"
        )
        await asyncio.get_running_loop().sock_sendall(stream, head.encode())
        await asyncio.get_running_loop().sock_recv(stream, 64)
        await connection.post(b'{"jsonrpc":"2.0","method":"notifications/flood","params":{"kib":%d}}' % KIB)
        connection.close()
        return cls(stream)

    def close(self) -> None:
        """Leave."""
        self._stream.close()


async def watched(pid: int, calls: Coroutine[object, object, Sample]) -> tuple[Sample, int]:
    """The sample, and the most memory that the process held meanwhile, KiB."""
    task = asyncio.ensure_future(calls)
    highest = 0
    while not task.done():
        highest = max(highest, resident(pid))
        await asyncio.wait([task], timeout=0.05)
    return task.result(), highest


def resident(pid: int) -> int:
    """The resident memory of a process, KiB."""
    fields = Path(f"/proc/{pid}/status").read_text()
    return int(fields.partition("VmRSS:")[2].split()[0])


def p99(seconds: list[float]) -> float:
    """The 99th percentile."""
    return statistics.quantiles(seconds, n=100)[98]


if __name__ == "__main__":
    main()
