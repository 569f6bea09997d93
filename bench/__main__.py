"""The benchmark suite.

python -m bench                  what there is
python -m bench compare A B      what has changed between two folders or files of results, beyond noise
python -m bench budget [FOLDER]  what trunkline may cost, and what the results say of it
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from bench.budget import budget
from bench.compare import changes
from bench.results import LOCAL, RESULTS, results
from bench.scenarios import SCENARIOS

PROGRAMS = {
    "bench.load": "calls through the gateway and what it is measured against, interleaved; scenarios below",
    "bench.micro": "codec, demultiplexer, pool policy, framing, directories: time and allocations of each operation",
    "bench.memory": "what an idle workflow costs, with and without connections, beside a session of the SDK",
    "bench.soak": "10 minutes of load and churn beside 10,000 idle workflows: memory and descriptors over time",
    "bench.servers": "what a request costs by uvicorn, other servers, and a bare protocol",
    "bench.slow_reader": "a client that reads nothing: its memory, and what others' calls take",
    "bench.fairness": "a principal that is greedy: what others' calls take",
    "bench.leave": "10,000 workflows opened and left: what is still held",
    "bench.directories": "calls with each directory, with one worker and with two",
    "bench.redis_size": "what workflows need of redis",
    "bench.redis_operations": "what each operation of the directory costs redis and a worker",
    "bench.scale": "a million workflows, simulated: workers that die at once",
    "bench.peers": "other proxies beside trunkline: what a call costs, and what becomes of what clients rely on",
    "bench.contextforge": "ContextForge as it is and with trunkline inside",
    "bench.figures": "puts the stored results into README and docs, as tables and plots",
}


def main() -> int:
    """Do what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="The benchmark suite.")
    commands = parser.add_subparsers(dest="command")
    comparing = commands.add_parser("compare", help="what has changed between two measurements, beyond noise")
    comparing.add_argument("before", type=Path)
    comparing.add_argument("after", type=Path)
    comparing.add_argument("--all", action="store_true", help="also what has not changed")
    judging = commands.add_parser("budget", help="what trunkline may cost, and what the results say of it")
    judging.add_argument("folder", type=Path, nargs="?", default=LOCAL if LOCAL.is_dir() else RESULTS)
    given = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if given.command == "compare":
        return compare(console, given.before, given.after, show_all=given.all)
    if given.command == "budget":
        return judge(console, given.folder)
    console.print(contents())
    return 0


def contents() -> Table:
    """What there is to run."""
    table = Table(title="python -m …", show_lines=False)
    table.add_column("program")
    table.add_column("what it measures")
    for program, about in PROGRAMS.items():
        table.add_row(program, about)
        if program == "bench.load":
            for name, scenario in SCENARIOS.items():
                table.add_row(f"  bench.load {name}", f"  {scenario.about}{'; quick' if scenario.is_quick else ''}")
    table.caption = "`make bench` runs what is quick in two minutes, `make bench-full` everything. --help says more."
    return table


def compare(console: Console, before: Path, after: Path, *, show_all: bool) -> int:
    """Print what has changed; 1 where something got worse."""
    missing = [str(place) for place in (before, after) if not place.exists()]
    if missing:
        console.print(f"there is no {' and no '.join(missing)}")
        return 2
    one, other = results(before), results(after)
    if before.is_file() and after.is_file():  # two files are of the same scenario, whatever they are called
        one, other = ({result["scenario"]: result for result in some.values()} for some in (one, other))
    found = sorted(changes(one, other))
    real = [change for change in found if change.is_real]
    table = Table(title=f"{before} → {after}")
    for column in ("scenario", "variant", "metric", "in", "before", "after", "change", "noise"):
        table.add_column(column, justify="right" if column in ("before", "after", "change", "noise") else "left")
    for change in found if show_all else real:
        colour = ("green" if change.is_better else "red") if change.is_real else "dim"
        beside = f"of {change.beside}" if change.beside else ""
        cells = (change.scenario, escape(change.variant), change.metric, beside)
        numbers = (f"{change.before:.4g}", f"{change.after:.4g}", f"{change.by:+.1%}", f"± {change.noise:.1%}")
        table.add_row(*cells, *numbers, style=colour)
    console.print(table)
    worse = sum(not change.is_better for change in real)
    console.print(f"{len(found)} compared, {len(real)} changed beyond noise, {worse} of them for the worse")
    if not found:
        console.print("nothing that both have was measured in rounds")
        return 2
    return int(worse > 0)


def judge(console: Console, folder: Path) -> int:
    """Print the budget; 1 where a line is not met."""
    lines = list(budget(folder))
    if not lines:
        console.print(f"{folder} holds no results: make bench")
        return 2
    table = Table(title=str(folder))
    for column in ("what", "due", "measured", ""):
        table.add_column(column, justify="left" if column == "what" else "right")
    for line in lines:
        table.add_row(
            line.what, line.due, line.measured, "met" if line.is_met else "missed", style="" if line.is_met else "red"
        )
    console.print(table)
    return int(not all(line.is_met for line in lines))


if __name__ == "__main__":
    sys.exit(main())
