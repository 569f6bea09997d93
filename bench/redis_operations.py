"""What the operations of the redis directory cost: CPU of redis, CPU of a worker, bytes of the append-only file.

Run: `python -m bench.redis_operations [--seconds S]`. It starts a redis-server with an append-only file, on one core,
and performs each operation, 32 at a time, from the other. It prints a table and writes JSON to `bench/results/`.
"""

import argparse
import asyncio
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import redis
import redis.asyncio
from rich.console import Console
from rich.table import Table
from trunkline.mux.directory import Worker
from trunkline.mux.directory.redis import CHANGES, MAX_CONCURRENCY, RedisDirectory, open_redis
from trunkline.mux.record import WorkflowRecord

from bench.processes import cores
from bench.redis_process import redis_process, redis_version
from bench.redis_records import EVENT, KEEP, event, record
from bench.results import RESULTS, write_result
from bench.tables import metered

PORT = 9342
WORKFLOWS = 4000
TOUCHED = 500
"""Workflows of one touch."""

READ = 100
"""Workflows whose logs are read: of ten events."""

WORKERS = 200
HEARERS = 100
"""Connections that hear the changes, where that is measured."""

TOLD = 500
PUBLISH = "for _ = 1, ARGV[1] do redis.call('PUBLISH', ARGV[2], ARGV[3]) end"

Operation = Callable[[int], Awaitable[object]]


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=1.5, help="of each operation")
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args()
    client_core, _, own_core = cores()
    os.sched_setaffinity(0, {own_core})
    with redis_process(PORT, "--appendonly", "yes", "--appendfsync", "everysec") as client:
        os.sched_setaffinity(0, {client_core})
        version = redis_version(client)
        rows = asyncio.run(measure(client, given.seconds))
    table = Table(title=f"operations of the directory in redis {version}")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "operation" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    if not given.no_store:
        about = f"operations of the directory in redis {version}, {MAX_CONCURRENCY} at a time"
        command = f"python -m bench.redis_operations --seconds {given.seconds:g}"
        write_result(RESULTS, "redis_operations", about, command, rows)


async def measure(client: "redis.Redis[Any]", seconds: float) -> list[dict[str, object]]:
    """All operations, one after the other."""
    async with open_redis(f"redis://127.0.0.1:{PORT}/0") as directory:
        known = [record(n, keyed=True) for n in range(WORKFLOWS)]
        for one in known:
            await directory.claim(one)
        for one in known[:READ]:
            await directory.append(one.session_id, [event(n) for n in range(10)], KEEP)
        workers = [await directory.enroll(Worker(f"{n:032x}", "host", f"/run/{n}")) for n in range(WORKERS)]
        rows = [
            await one_row(client, name, operation, seconds, each)
            for name, (operation, each) in metered(operations(directory, known, workers).items())
        ]
        async with AsyncExitStack() as stack:
            plain = redis.asyncio.Redis(port=PORT)
            for _ in range(HEARERS):
                hearer = await stack.enter_async_context(plain.pubsub())
                await hearer.subscribe(CHANGES)
            replace = operations(directory, known, workers)["replace"][0]
            rows.append(await one_row(client, f"replace, {HEARERS} hear of it", replace, seconds, 1))
            await plain.aclose()
        async with directory.watch() as changes:
            rows.append(await one_row(client, "hear of a change", hearing(client, changes), seconds, TOLD, at_once=1))
        return rows


def hearing(client: "redis.Redis[Any]", changes: AsyncIterator[str]) -> Operation:
    """Changes of others, as a worker hears them."""

    async def hear(n: int) -> None:
        client.eval(PUBLISH, 0, TOLD, CHANGES, record(n).session_id)
        for _ in range(TOLD):
            await anext(changes)

    return hear


def operations(
    directory: RedisDirectory, known: list[WorkflowRecord], workers: list[Worker]
) -> dict[str, tuple[Operation, int]]:
    """Each operation, given a number that grows, and for how many workflows it stands."""

    def of(n: int) -> WorkflowRecord:
        return known[n % len(known)]

    async def replace(n: int) -> None:
        changed = await directory.replace(of(n))
        if changed is not None:
            known[n % len(known)] = changed

    return {
        "get": (lambda n: directory.get(of(n).session_id), 1),
        "find by key": (lambda n: directory.find(of(n).principal, of(n).server, of(n).key or ""), 1),
        "claim, without a key": (lambda n: directory.claim(record(WORKFLOWS + n)), 1),
        "replace": (replace, 1),
        f"touch, {TOUCHED} in a batch": (
            lambda n: directory.touch([of(TOUCHED * n + i).session_id for i in range(TOUCHED)]),
            TOUCHED,
        ),
        "untouched": (lambda n: directory.untouched(of(n).session_id), 1),
        "draw_ids": (lambda n: directory.draw_ids(of(n).session_id), 1),
        "read, 10 events of 500 bytes": (lambda n: directory.read(of(n % READ).session_id), 1),
        "append, 1 event of 500 bytes": (lambda n: directory.append(of(n).session_id, [event(n)], KEEP), 1),
        "append, 10 events of 500 bytes": (
            lambda n: directory.append(of(n).session_id, [event(10 * n + i) for i in range(10)], KEEP),
            1,
        ),
        "beat": (lambda n: directory.beat(workers[n % WORKERS]), 1),
        f"workers, {WORKERS} of them": (lambda n: directory.workers(), 1),
        "worker": (lambda n: directory.worker(workers[n % WORKERS].id), 1),
        "send, 500 bytes": (lambda n: directory.send(workers[n % WORKERS].id, EVENT), 1),
    }


async def one_row(
    client: "redis.Redis[Any]",
    name: str,
    operation: Operation,
    seconds: float,
    each: int,
    at_once: int = MAX_CONCURRENCY,
) -> dict[str, object]:
    """Perform an operation for so long; what each cost."""
    count = 0

    async def work(until: float) -> None:
        nonlocal count
        while time.perf_counter() < until:
            count += 1
            await operation(count)

    async def run(seconds: float) -> None:
        until = time.perf_counter() + seconds
        await asyncio.gather(*(work(until) for _ in range(at_once)))

    await run(0.1)
    count, before, own = 0, usage(client), time.process_time()
    await run(seconds)
    own, after = time.process_time() - own, usage(client)
    done = count * each
    return {
        "operation": name,
        "redis_cpu_us": round((after[0] - before[0]) / done * 1e6, 1),
        "worker_cpu_us": round(own / done * 1e6, 1),
        "aof_bytes": round((after[1] - before[1]) / done),
    }


def usage(client: "redis.Redis[Any]") -> tuple[float, int]:
    """Seconds of CPU of redis, and bytes that it has appended to its file."""
    told: dict[str, Any] = client.info("everything")
    return told["used_cpu_sys"] + told["used_cpu_user"], told["aof_current_size"]


if __name__ == "__main__":
    main()
