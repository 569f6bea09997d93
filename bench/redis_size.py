"""What a workflow costs a redis: memory of its record, of its key and of its event log.

Run: `python -m bench.redis_size [--workflows N]`. It starts a redis-server, stores that many workflows by the gateway's
own directory, and divides what its memory has grown by. It prints a table and writes JSON to `bench/results/`.
"""

import argparse
import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from rich.console import Console
from rich.table import Table
from trunkline.mux.directory.redis import RedisDirectory, open_redis

from bench.redis_process import redis_process, redis_version
from bench.redis_records import EVENT, KEEP, event, record, size
from bench.results import RESULTS, write_result
from bench.tables import metered

PORT = 9341
AT_ONCE = 16
KIB = 1024


@dataclass(frozen=True)
class Variant:
    """What is stored of each workflow."""

    name: str
    keyed: bool = False
    events: int = 0
    share: float = 1.0
    """How many are stored, of those that were asked for."""


VARIANTS = (
    Variant("record"),
    Variant("record and key", keyed=True),
    Variant("record, 10 events of 500 bytes", events=10),
    Variant("record, 100 events of 500 bytes", events=100, share=0.1),
    Variant(f"record, a full log: {KEEP.events:,} events of 500 bytes", events=KEEP.events, share=0.01),
)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=20_000)
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args()
    with redis_process(PORT) as client:
        version = redis_version(client)
        rows = [measured(client, variant, given.workflows) for variant in metered(VARIANTS)]
    table = Table(title=f"memory of redis {version} for each workflow; records of {size(record(0))} bytes")
    for column in rows[0]:
        table.add_column(column.replace("_", " "), justify="left" if column == "variant" else "right")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=120).print(table)
    if not given.no_store:
        about = f"memory of redis {version} for workflows with records of {size(record(0))} bytes"
        command = f"python -m bench.redis_size --workflows {given.workflows}"
        write_result(RESULTS, "redis_size", about, command, rows)


def measured(client: "redis.Redis[Any]", variant: Variant, workflows: int) -> dict[str, object]:
    """What one more workflow of this kind costs."""
    client.flushall()
    asyncio.run(store(variant, range(AT_ONCE)))  # tables of scripts and connections are there before it counts
    before = used(client)
    count = max(AT_ONCE, round(workflows * variant.share))
    asyncio.run(store(variant, range(AT_ONCE, AT_ONCE + count)))
    grown = used(client) - before
    return {
        "variant": variant.name,
        "workflows": count,
        "bytes": round(grown / count),
        "MiB_per_1000": round(grown / count * 1000 / KIB / KIB, 2),
        "message_bytes": variant.events * len(EVENT),
    }


def used(client: "redis.Redis[Any]") -> int:
    """Bytes that hold data: without what connections need."""
    memory: dict[str, Any] = client.memory_stats()
    return int(memory["dataset.bytes"]) + sum(
        int(database["overhead.hashtable.main"]) + int(database["overhead.hashtable.expires"])
        for name, database in memory.items()
        if str(name).startswith("db.")
    )


async def store(variant: Variant, numbers: Sequence[int]) -> None:
    """Store workflows, several at once."""
    due = iter(numbers)

    async def work(directory: RedisDirectory) -> None:
        for n in due:
            kept = record(n, keyed=variant.keyed)
            await directory.claim(kept)
            for first in range(0, variant.events, 100):
                batch = [event(n) for n in range(first, min(first + 100, variant.events))]
                await directory.append(kept.session_id, batch, KEEP)

    async with open_redis(f"redis://127.0.0.1:{PORT}/0") as directory:
        await asyncio.gather(*(work(directory) for _ in range(AT_ONCE)))


if __name__ == "__main__":
    main()
