"""A client that reads nothing while 10 MiB are due to it: what it costs in memory, and what it costs others.

Run: `python -m bench.slow_reader [--rounds N] [--seconds S] [--output FOLDER]`. One client calls for some rounds with
nobody beside it, and for as many with the slow reader there; both in one run, taking turns.
"""

import argparse
import asyncio
import socket
import statistics
from collections.abc import Coroutine
from pathlib import Path

import uvloop

from bench.client import Sample, Target, closed_loop, opened
from bench.connection import Connection
from bench.processes import cores, gateway_process, pinned, resident, server, upstream
from bench.results import LOCAL, Row, median_ratio, percentile, write_result
from bench.tables import metered, print_rows

KIB = 10 * 1024


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.0, help="of one turn")
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    with pinned(cores().client):
        row = run(given.rounds, given.seconds)
    print_rows("a slow reader beside another client", [row])
    about = "10 MiB due to a client that reads nothing, beside one that calls, 1 call in flight"
    command = f"python -m bench.slow_reader --rounds {given.rounds} --seconds {given.seconds:g}"
    write_result(given.output, "slow_reader", about, command, [row])


def run(rounds: int, seconds: float) -> Row:
    """Measure in a gateway of its own."""
    _, upstream_core, own_core = cores()
    settings = '[pooling]\nreuse = "workflow"\n'
    with upstream(upstream_core) as behind, gateway_process(settings + server(behind), own_core) as (pid, port):
        return uvloop.run(measure(Target(port, "/servers/bench/mcp"), pid, rounds, seconds))


async def measure(target: Target, pid: int, rounds: int, seconds: float) -> Row:
    """The other client's p99 without and with the slow reader, in turns, and the gateway's memory."""
    alone: list[Sample] = []
    beside: list[Sample] = []
    async with opened(target, inflight=1) as slots:
        await closed_loop(slots, seconds=seconds / 2)
        before = peak = resident(pid)
        for _ in metered(range(rounds)):
            alone.append(await closed_loop(slots, seconds=seconds))
            slow = await SlowReader.open(target)
            sample, highest = await watched(pid, closed_loop(slots, seconds=seconds))
            beside.append(sample)
            peak = max(peak, highest)
            slow.close()
    p99s = [[(percentile(one.seconds, 99) or max(one.seconds)) * 1000 for one in turns] for turns in (alone, beside)]
    return {
        "p99_alone_ms": round(statistics.median(p99s[0]), 3),
        "p99_beside_ms": round(statistics.median(p99s[1]), 3),
        "ratio": round(median_ratio(p99s[1], p99s[0]), 2),
        "memory_before_MiB": round(before / 1024, 1),
        "memory_at_most_MiB": round(peak / 1024, 1),
        "errors": sum(one.errors for one in (*alone, *beside)),
    }


class SlowReader:
    """A client that opens its GET stream, lets 10 MiB become due on it, and reads nothing."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream

    @classmethod
    async def open(cls, target: Target) -> "SlowReader":
        """Open it, and ask the server for the flood."""
        connection = await Connection.to(target)
        session = await connection.open_session()
        loop = asyncio.get_running_loop()
        stream = socket.socket()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stream.setblocking(False)
        await loop.sock_connect(stream, ("127.0.0.1", target.port))
        own = f"Accept: text/event-stream\r\nMcp-Session-Id: {session}\r\n\r\n"
        await loop.sock_sendall(stream, (target.head("GET") + own).encode())
        await loop.sock_recv(stream, 64)
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


if __name__ == "__main__":
    main()
