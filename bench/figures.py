"""The tables of figures in the README and in docs/, made from the stored results.

Run: `python -m bench.figures` writes them; `python -m bench.figures --check` fails where they are others.
"""

import argparse
import json
import re
import sys
from pathlib import Path

from bench import scale_figures

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
SCENARIOS = ("delay5", "delay5x16", "cpu")


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    differ = False
    for page, tables in pages().items():
        text = due = (ROOT / page).read_text()
        for name, table in tables.items():
            due = with_table(due, name, table)
        if text != due and given.check:
            print(f"{page} differs: python -m bench.figures", file=sys.stderr)
            differ = True
        elif text != due:
            (ROOT / page).write_text(due)
    return differ


def pages() -> dict[str, dict[str, str]]:
    """The tables of each page, by their names."""
    return {
        "README.md": {"figures": figures()},
        "docs/operating.md": {"redis memory": scale_figures.memory(), "directories": directories()},
        "docs/scaling.md": {
            "operations": scale_figures.operations(),
            "plan": scale_figures.plan(),
            "simulation": scale_figures.simulation(),
            "seconds": scale_figures.seconds(),
        },
    }


def with_table(text: str, name: str, table: str) -> str:
    """A page's text with this table in its place."""
    begin, end = f"<!-- {name}: made by bench/figures.py -->", f"<!-- end of {name} -->"
    if begin not in text:
        raise SystemExit(f"there is no place for the table {name}")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def figures() -> str:
    """The stored results as a Markdown table for each scenario."""
    parts = []
    for name in SCENARIOS:
        result = json.loads((RESULTS / f"{name}.json").read_text())
        machine, versions = result["machine"], result["versions"]
        lines = [
            f"**{result['about'].capitalize()}**: `{result['command']}`",
            "",
            "| | calls/s | p50 ms | p99 ms | gateway CPU µs/call | upstream requests/call | calls without initialize |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in result["rows"]:
            cpu = row["gateway_cpu_us_per_call"]
            lines.append(
                f"| {row['variant']} | {row['calls_per_second']:,.0f} | {row['p50_ms']:.2f} | {row['p99_ms']:.2f} | "
                f"{'' if cpu is None else f'{cpu:.0f}'} | {row['upstream_requests_per_call']:g} | "
                f"{row['skipped_initialize']:.1%} |"
            )
        parts.append("\n".join(lines))
    parts.append(memory())
    parts.append(
        f"Measured on {machine['cores']} cores ({machine['cpu']}), Python {machine['python']}, "
        f"uvloop {versions['uvloop']}; the gateway has one core, client and server share the other. "
        "What the old path is: [bench/README.md](bench/README.md)."
    )
    return "\n\n".join(parts)


def memory() -> str:
    """What an idle session costs, as a Markdown table."""
    result = json.loads((RESULTS / "memory.json").read_text())
    lines = [
        f"**{result['about'].capitalize()}**: `{result['command']}`",
        "",
        "| | sessions | KiB a session, least | KiB a session, median | less than the SDK's |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in result["rows"]:
        less = "" if row["less_than_sdk"] is None else f"{row['less_than_sdk']:.0%}"
        lines.append(
            f"| {row['variant']} | {row['sessions']:,} | {row['least_KiB']:.1f} | {row['median_KiB']:.1f} | {less} |"
        )
    return "\n".join(lines)


def directories() -> str:
    """What calls cost with each directory, as a Markdown table."""
    result = json.loads((RESULTS / "directories.json").read_text())
    machine = result["machine"]
    lines = [
        f"`{result['command']}`, {result['about']}, on {machine['cores']} cores ({machine['cpu']}):",
        "",
        "| directory | workers | calls/s | p50 ms | p99 ms | CPU, µs/call | CPU idle, ms/s | beside | calls/s | CPU |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    for row in result["rows"]:
        told = (
            row["directory"],
            row["workers"],
            f"{row['calls_per_second']:,}",
            f"{row['p50_ms']:.2f}",
            f"{row['p99_ms']:.2f}",
            f"{row['cpu_us_per_call']:.0f}",
            f"{row['idle_cpu_ms_per_s']:.0f}",
            row["beside"],
            f"{row['calls_ratio']:.0%}" if row["beside"] else "",
            f"{row['cpu_ratio']:.0%}" if row["beside"] else "",
        )
        lines.append(f"| {' | '.join(map(str, told))} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
