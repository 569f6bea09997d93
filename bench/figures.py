"""The table of figures in the README, made from the stored results.

Run: `python -m bench.figures` writes it; `python -m bench.figures --check` fails where it is not what the results say.
"""

import argparse
import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
README = ROOT / "README.md"
SCENARIOS = ("delay5", "delay5x16", "cpu")
BEGIN, END = "<!-- figures: made by bench/figures.py -->", "<!-- end of figures -->"


def main() -> int:
    """Write or check the README."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    text = README.read_text()
    due = with_figures(text)
    if given.check:
        return 0 if text == due else print("README.md differs: python -m bench.figures", file=sys.stderr) or 1
    README.write_text(due)
    return 0


def with_figures(text: str) -> str:
    """The README's text with the figures of the stored results."""
    return re.sub(f"{BEGIN}.*{END}", lambda _: f"{BEGIN}\n{figures()}\n{END}", text, flags=re.DOTALL)


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


if __name__ == "__main__":
    sys.exit(main())
