"""What was measured, as it is stored in `bench/results/`."""

import json
from typing import Any, NamedTuple

from bench.load import ROOT

RESULTS = ROOT / "bench" / "results"


class Seconds(NamedTuple):
    """CPU of one operation of the directory."""

    redis: float
    worker: float


def result(name: str) -> dict[str, Any]:
    """A stored result."""
    found: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return found


def row(name: str, column: str, value: str) -> dict[str, Any]:
    """The row of a stored result that has this value in a column."""
    [found] = [row for row in result(name)["rows"] if row[column] == value]
    return dict(found)


def operation_seconds(operation: str) -> Seconds:
    """CPU of an operation of the redis directory."""
    found = row("redis_operations", "operation", operation)
    return Seconds(found["redis_cpu_us"] / 1e6, found["worker_cpu_us"] / 1e6)


def call_seconds() -> float:
    """CPU of a worker for one call, with nothing to ask the directory."""
    return float(row("cpu", "variant", "trunkline")["gateway_cpu_us_per_call"]) / 1e6
