"""The tables of docs/scaling.md and of what redis needs, from stored results; the plan, by arithmetic on them."""

from typing import Final

from trunkline.mux.directory import ID_BLOCK, LEASE_SECONDS, MAX_STALENESS
from trunkline.mux.limits import Pooling
from trunkline.mux.membership import BEAT_SECONDS
from trunkline.mux.recording import touch_interval

from bench.results import call_seconds, operation_seconds, result, row

WORKFLOWS: Final = 1_000_000
WORKERS: Final = 200
NODES: Final = 16
CALL_SECONDS: Final = 60.0
"""Between two calls of a workflow."""

LIFETIME_SECONDS: Final = 1800.0
"""Of a workflow, on the average."""

ATTACHED: Final = 0.3
"""Of the workflows: those whose client holds a stream."""

STREAMED: Final = 0.5
"""Of the calls: those whose answer becomes a stream, which is journaled: it begins, and it ends."""

EVENT_SECONDS: Final = 60.0
"""Between two events on a stream."""

GIB: Final = 1024**3

Line = tuple[str, str, float, str]
"""What, how it follows, operations each second, and the measured operation it costs."""


def memory() -> str:
    """What workflows need of redis."""
    found = result("redis_size")
    lines = [
        f"Redis, by `{found['command']}` ({found['about'].partition(' for ')[0].removeprefix('memory of ')}):",
        "",
        "| a workflow with | bytes | MiB for 1,000 workflows |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {one['variant']} | {one['bytes']:,} | {one['MiB_per_1000']:,.1f} |" for one in found["rows"]]
    return "\n".join(lines)


def operations() -> str:
    """What operations cost."""
    found = result("redis_operations")
    lines = [
        f"`{found['command']}`, on {found['machine']['cores']} cores ({found['machine']['cpu']}):",
        "",
        "| operation | CPU of redis, µs | CPU of the worker, µs | bytes of the append-only file |",
        "| --- | ---: | ---: | ---: |",
    ]
    for one in found["rows"]:
        costs = f"{one['redis_cpu_us']:.0f} | {one['worker_cpu_us']:.0f} | {one['aof_bytes']:,}"
        lines.append(f"| {one['operation']} | {costs} |")
    return "\n".join(lines)


def directory_load() -> list[Line]:
    """Operations of the plan each second."""
    calls = WORKFLOWS / CALL_SECONDS
    interval = touch_interval(Pooling())
    begun = WORKFLOWS / LIFETIME_SECONDS
    return [
        ("heartbeats", f"{WORKERS} workers, each {BEAT_SECONDS:g} s", WORKERS / BEAT_SECONDS, "beat"),
        (
            "records read",
            f"each call: the last one is {CALL_SECONDS:g} s ago, more than {MAX_STALENESS:g}",
            calls,
            "get",
        ),
        (
            "who lives",
            f"{WORKERS} workers, each {BEAT_SECONDS:g} s: the whole list",
            WORKERS / BEAT_SECONDS,
            "workers, 200 of them",
        ),
        ("blocks of ids drawn", f"each call: nobody served this workflow here; {ID_BLOCK:,} ids", calls, "draw_ids"),
        (
            "touches",
            f"{ATTACHED:.0%} hold a stream: each {interval:g} s, in batches; others after a call at a new worker",
            WORKFLOWS * ATTACHED / interval + calls,
            "touch, 500 in a batch",
        ),
        (
            "appends to journals",
            f"{STREAMED:.0%} of the answers are streams: they begin, they end",
            calls * STREAMED * 2,
            "append, 1 event of 500 bytes",
        ),
        ("workflows begun", f"{LIFETIME_SECONDS:g} s each: claimed", begun, "claim, without a key"),
        ("records changed and removed", "opened, ended", begun * 2, "replace"),
    ]


def plan() -> str:
    """What a million workflows need."""
    lines = [
        "| each second | how it follows | operations | cores of redis | cores of workers |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    total = redis = workers = 0.0
    for what, why, rate, operation in directory_load():
        cost = operation_seconds(operation)
        total, redis, workers = total + rate, redis + rate * cost.redis, workers + rate * cost.worker
        lines.append(f"| {what} | {why} | {rate:,.0f} | {rate * cost.redis:.2f} | {rate * cost.worker:.2f} |")
    for what, why, rate, on_redis, on_worker in _told():
        redis, workers = redis + rate * on_redis, workers + rate * on_worker
        lines.append(f"| {what} | {why} | {rate:,.0f} | {rate * on_redis:.2f} | {rate * on_worker:.2f} |")
    calls, call = WORKFLOWS / CALL_SECONDS, call_seconds()
    lines.append(f"| calls themselves | {call * 1e6:.0f} µs each | {calls:,.0f} | | {calls * call:.2f} |")
    lines += [f"| **together** | | | **{redis:.1f}** | **{workers + calls * call:.1f}** |", "", *_sizes()]
    return "\n".join(lines)


def _told() -> list[tuple[str, str, float, float, float]]:
    """What is published: what, how it follows, how often a second, and the seconds that it costs redis and workers."""
    changes = WORKFLOWS / LIFETIME_SECONDS * 2
    frames = WORKFLOWS * ATTACHED / EVENT_SECONDS
    hear, send, replace = map(operation_seconds, ("hear of a change", "send, 500 bytes", "replace"))
    deliver = (operation_seconds("replace, 100 hear of it").redis - replace.redis) / 100
    return [
        (
            "frames between hosts",
            f"{ATTACHED:.0%} hold a stream that came to another worker, with an event each {EVENT_SECONDS:g} s",
            frames,
            send.redis,
            send.worker + hear.worker,
        ),
        (
            "the same and changes, from node to node",
            f"a cluster tells each of {NODES} nodes; each as costly as a frame",
            (frames + changes) * (NODES - 1),
            send.redis,
            0.0,
        ),
        ("changes heard", f"{changes:,.0f} changes, by {WORKERS} workers", changes * WORKERS, deliver, hear.worker),
    ]


def _sizes() -> list[str]:
    kept, logged = (
        row("redis_size", "variant", name)["bytes"] for name in ("record and key", "record, 10 events of 500 bytes")
    )
    session = row("memory", "variant", "the upstream session's GET stream")["KiB"] * 1024
    file = sum(
        rate * row("redis_operations", "operation", operation)["aof_bytes"]
        for _, _, rate, operation in directory_load()
    )
    held = WORKFLOWS / WORKERS
    return [
        "| size | how it follows | |",
        "| --- | --- | ---: |",
        f"| memory of redis: records and keys | {kept:,} bytes each | {WORKFLOWS * kept / GIB:.1f} GiB |",
        f"| with ten events of 500 bytes in each log | {logged:,} bytes each | {WORKFLOWS * logged / GIB:.1f} GiB |",
        f"| append-only files, and what replicas are sent | the operations above | {file / 1e6:.0f} MB/s |",
        f"| workflows of a worker | of `max_workflows` = {Pooling().max_workflows:,} | {held:,.0f} |",
        f"| memory of a worker for what it holds | {session / 1024:.1f} KiB each | {held * session / GIB:.2f} GiB |",
        f"| upstream streams of a worker | one for each workflow it holds | {held:,.0f} |",
        f"| client streams of a worker, and as many that it hands on or serves for others | {ATTACHED:.0%} | "
        f"{held * ATTACHED:,.0f} |",
        f"| a workflow's ids | 2³¹ in blocks of {ID_BLOCK:,}, one for each call that meets a new worker | "
        f"{2**31 // ID_BLOCK:,} calls |",
    ]


def simulation() -> str:
    """The simulation's scenarios."""
    found = result("scale")
    lines = [
        f"`{found['command']}`; a lease of {LEASE_SECONDS:g} s, a heartbeat each {BEAT_SECONDS:g} s:",
        "",
        "| | streams cut | peak of operations/s | take-over p50 s | p99 s | all served s | refused | "
        "heartbeats that came too late | taken from the living | changes each hears |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for one in found["rows"]:
        done = "" if one["all_served_s"] is None else f"{one['all_served_s']:.1f}"
        lines.append(
            f"| {one['scenario']} | {one['streams_broken']:,} | {one['peak_per_second']:,} | "
            f"{one['takeover_p50_s']:.1f} | {one['takeover_p99_s']:.1f} | {done} | {one['refused']:,} | "
            f"{one['taken_for_dead']:,} | {one['taken_from_the_living']:,} | {one['changes_heard_by_each']:,} |"
        )
    return "\n".join(lines)


def seconds() -> str:
    """Operations in each second, of each scenario."""
    rows = result("scale")["rows"]
    width = max(len(one["operations_in_each_second"]) for one in rows)
    names = ["before", *(f"{n}-{n + 1} s" for n in range(width - 1))]
    lines = ["| operations in the second | " + " | ".join(names) + " |", "| --- |" + " ---: |" * width]
    for one in rows:
        values = [f"{value:,}" for value in one["operations_in_each_second"]]
        lines.append(f"| {one['scenario']} | " + " | ".join(values + [""] * (width - len(values))) + " |")
    return "\n".join(lines)
