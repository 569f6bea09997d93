"""10,000 workflows that are opened, called once and left: what is still there of them after `idle_timeout`.

Run: `python -m bench.leave [--workflows N] [--idle-timeout S] [--output FOLDER]`. With `reuse = "workflow"`, then with
`reuse = "user"`, they are opened and left twice. What the process held after the first time, which warms it up, is the
start; after the second time it must hold as much.
"""

import argparse
import asyncio
import time
import urllib.request
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from bench.connection import open_many
from bench.processes import cores, gateway_process, pinned, resident, server, upstream
from bench.results import LOCAL, Row, write_result
from bench.tables import print_rows
from bench.wires import CALL, Target

FIRST = 100
"""Workflows that are opened before the process is looked at for the first time."""
PATIENCE = 300.0
"""Seconds within which they must be gone, beyond twice `idle_timeout`: a shared session outlives its last workflow."""


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=10_000)
    parser.add_argument("--idle-timeout", type=float, default=60, help="longer than it takes to open them all")
    parser.add_argument("--output", type=Path, default=LOCAL)
    given = parser.parse_args()
    with pinned(cores().client), Progress(console=Console(stderr=True)) as progress:
        rows = [run(reuse, given.workflows, given.idle_timeout, progress) for reuse in ("workflow", "user")]
    print_rows("workflows that were opened and left", rows)
    about = f"{given.workflows} workflows opened, called once and left; memory after they are gone, beside the start"
    command = f"python -m bench.leave --workflows {given.workflows} --idle-timeout {given.idle_timeout:g}"
    write_result(given.output, "leave", about, command, rows)


def run(reuse: str, workflows: int, idle_timeout: float, progress: Progress) -> Row:
    """The figures of one reuse, in a gateway of its own."""
    _, upstream_core, own_core = cores()
    settings = f'[pooling]\nreuse = "{reuse}"\nidle_timeout = {idle_timeout}\nmax_workflows = {workflows + FIRST}\n'
    with upstream(upstream_core) as behind, gateway_process(settings + server(behind), own_core) as (pid, port):
        target = Target(port, "/servers/bench/mcp")
        asyncio.run(open_many(target, FIRST, body=CALL))
        at_ready = resident(pid)
        first, _ = once(pid, target, workflows, idle_timeout, progress, f"{reuse}: warm-up")
        second, gone_after = once(pid, target, workflows, idle_timeout, progress, f"{reuse}: measured")
        return {
            "reuse": reuse,
            "workflows": workflows,
            "held_at_ready_MiB": round(at_ready / 1024, 1),
            "held_with_them_MiB": round(second["with_them"] / 1024, 1),
            "start_MiB": round(first["after"] / 1024, 1),
            "end_MiB": round(second["after"] / 1024, 1),
            "end_to_start": round(second["after"] / first["after"], 3),
            "gone_after_s": round(gone_after, 1),
            "left_workflows": second["workflows"],
            "left_channels": second["channels"],
        }


def once(
    pid: int, target: Target, workflows: int, idle_timeout: float, progress: Progress, title: str
) -> tuple[dict[str, int], float]:
    """Open them, leave them, wait until they are gone; KiB with and after them, what is left, and the seconds."""
    opening = progress.add_task(title, total=workflows)
    asyncio.run(open_many(target, workflows, lambda: progress.advance(opening), body=CALL))
    with_them = resident(pid)
    left = time.monotonic()
    waiting = progress.add_task(f"{title}: waiting", total=workflows)
    while True:
        held = {kind: gauge(target.port, f"trunkline_{kind}") for kind in ("workflows", "channels")}
        progress.update(waiting, completed=workflows - held["workflows"])
        if not any(held.values()) or time.monotonic() - left > 2 * idle_timeout + PATIENCE:
            break
        time.sleep(1)
    gone_after = time.monotonic() - left
    time.sleep(3)  # their connections to the server are dropped after 4 s at most, and some are younger
    return {"with_them": with_them, "after": resident(pid), **held}, gone_after


def gauge(port: int, name: str) -> int:
    """The sum of a gauge's samples."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    return sum(int(float(line.rpartition(" ")[2])) for line in lines if line.startswith(name + "{"))


if __name__ == "__main__":
    main()
