"""What was measured, as it is stored: the one door in and out of `bench/results/`.

A result is a JSON file: what was measured and by which command, when, on which machine, at which commit, with which
versions; and its rows. A row may hold `rounds`: the values of each round by metric, from which `compare` takes noise.
"""

import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench.processes import ROOT, is_ranked

RESULTS = ROOT / "bench" / "results"
"""Those that README and docs show."""

LOCAL = ROOT / ".bench"
"""Those of this machine, which are not kept with the sources."""

PACKAGES = ("trunkline", "aiohttp", "httptools", "msgspec", "uvicorn", "uvloop", "websockets")

Row = dict[str, Any]


class Seconds(NamedTuple):
    """CPU of one operation of the directory."""

    redis: float
    worker: float


def write_result(folder: Path, name: str, about: str, command: str, rows: Sequence[Row]) -> Path:
    """Store figures, with what is needed to judge them; the file."""
    result = {
        "scenario": name,
        "about": about,
        "command": command,
        "at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "machine": {
            "cores": os.cpu_count(),
            "cpu": cpu_model(),
            "python": platform.python_version(),
            "goes_first": is_ranked(),
        },
        "versions": {package: importlib.metadata.version(package) for package in PACKAGES},
        "rows": list(rows),
    }
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    file.write_text(as_text(result))
    return file


def as_text(result: dict[str, Any]) -> str:
    """JSON with a line for each value, but for lists of numbers, which stay in one."""
    text = json.dumps(result, indent=2)
    lines: list[str] = []
    in_list = False
    for line in text.split("\n"):
        if in_list:
            lines[-1] += line.strip() + (" " if line.endswith(",") else "")
            in_list = line.strip() not in ("]", "],")
        else:
            lines.append(line)
            in_list = line.endswith("[") and '"rows"' not in line
    return "\n".join(lines) + "\n"


def result(name: str, folder: Path = RESULTS) -> dict[str, Any]:
    """A stored result."""
    found: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return found


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """All results of a folder, or the one of a file, by name."""
    files = [folder] if folder.is_file() else sorted(folder.glob("*.json"))
    return {file.stem: json.loads(file.read_text()) for file in files}


def row(name: str, column: str, value: str, folder: Path = RESULTS) -> Row:
    """The row of a stored result that has this value in a column."""
    [found] = [row for row in result(name, folder)["rows"] if row[column] == value]
    return dict(found)


def operation_seconds(operation: str) -> Seconds:
    """CPU of an operation of the redis directory."""
    found = row("redis_operations", "operation", operation)
    return Seconds(found["redis_cpu_us"] / 1e6, found["worker_cpu_us"] / 1e6)


def call_seconds() -> float:
    """CPU of a worker for one call, with nothing to ask the directory."""
    return float(row("http_16", "variant", "trunkline")["cpu_us"]) / 1e6


def percentile(values: Sequence[float], percent: float) -> float | None:
    """The value that so many percent do not exceed; None where too few values could tell."""
    if len(values) < 2 or round(len(values) * (100 - percent), 6) < 100:
        return None
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(round(len(ordered) * percent / 100, 6)))]


def median_ratio(these: Sequence[float], those: Sequence[float]) -> float:
    """The median of what these are of those, round by round."""
    return statistics.median(one / other for one, other in zip(these, those, strict=True))


def commit() -> str:
    """The commit that is measured; marked where other files than results differ from it."""
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!bench/results")
    return _git("rev-parse", "--short", "HEAD") + ("-changed" if changed else "")


def _git(*arguments: str) -> str:
    """What git says; nothing where there is none."""
    try:
        told = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False, cwd=ROOT)
    except FileNotFoundError:
        return ""
    return told.stdout.strip()


def cpu_model() -> str:
    """The processor's name, as the kernel tells it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
