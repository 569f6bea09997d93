"""The tables and plots of figures in the README and in docs/, made from the stored results.

Run: `python -m bench.figures` writes them; `python -m bench.figures --check` fails where the tables are others. Plots
need matplotlib, and are drawn only when they are written.
"""

import argparse
import re
import sys
from typing import Any

from bench import contextforge_figures, scale_figures
from bench.budget import budget
from bench.peers.names import HTTP, HTTP_ONE, MANNER_COLUMNS, STDIO
from bench.processes import ROOT
from bench.results import RESULTS, Row, result
from bench.scenarios import SCENARIOS, VARIANTS

IN_README = ("delay5", "http_16")

PICTURES = {
    "response-times": ("Response times without delay and with 5 and 50 ms", ("http_1", "delay5", "delay50")),
    "by-inflight": ("CPU and calls each second by calls in flight", ("http_1", "http_16", "http_64", "http_256")),
    "idle-memory": ("Memory of an idle workflow", ("memory",)),
    "soak": ("Memory and open descriptors in the course of a soak", ("soak",)),
}
"""What docs/images has, what it shows, and the results that it is drawn from."""


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
    if not given.check:
        from bench.plots import draw

        draw(pictures())
    return differ


def pages() -> dict[str, dict[str, str]]:
    """The tables of each page, by their names."""
    return {
        "README.md": {"figures": "\n\n".join([*map(scenario, IN_README), machine(IN_README[-1])])},
        "docs/performance.md": {
            "budget": dues(),
            "machine": machine(IN_README[-1]),
            "pictures": "\n\n".join(f"![{PICTURES[name][0]}](images/{name}.png)" for name in pictures()),
            "variants": variants(),
            "scenarios": "\n\n".join(scenario(name) for name in SCENARIOS if is_stored(name)),
            **{name: make() for name, make in BESIDE.items() if is_stored(name)},
        },
        "docs/comparison.md": {name: peers(name) for name in (HTTP_ONE, HTTP, STDIO) if is_stored(name)},
        "docs/migrating.md": {"contextforge": contextforge_figures.table()},
        "docs/scaling.md": {
            "operations": scale_figures.operations(),
            "plan": scale_figures.plan(),
            "simulation": scale_figures.simulation(),
            "seconds": scale_figures.seconds(),
        },
        "docs/workers.md": {"directories": directories(), "redis memory": scale_figures.memory()},
    }


def with_table(text: str, name: str, table: str) -> str:
    """A page's text with this table in its place."""
    begin, end = f"<!-- {name}: made by bench/figures.py -->", f"<!-- end of {name} -->"
    if begin not in text:
        raise SystemExit(f"there is no place for the table {name}")
    return re.sub(f"{begin}.*{end}", lambda _: f"{begin}\n{table}\n{end}", text, flags=re.DOTALL)


def is_stored(name: str) -> bool:
    """Whether there is a result of this name."""
    return (RESULTS / f"{name}.json").exists()


def pictures() -> list[str]:
    """Those that there are results for."""
    return [name for name, (_, needed) in PICTURES.items() if all(map(is_stored, needed))]


def table(columns: dict[str, str], rows: list[list[str]]) -> str:
    """A Markdown table; columns by name and alignment, `l` or `r`."""
    lines = [
        f"| {' | '.join(columns)} |",
        f"| {' | '.join('---' if side == 'l' else '---:' for side in columns.values())} |",
    ]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def scenario(name: str) -> str:
    """A scenario of the load."""
    found = result(name)
    extra = {"parallel": "in parallel", "offered_per_second": "offered/s"}
    more = {key: title for key, title in extra.items() if any(key in row for row in found["rows"])}
    columns = {
        "": "l",
        "calls/s": "r",
        "p50 ms": "r",
        "p99 ms": "r",
        "p99.9 ms": "r",
        "gateway CPU µs/call": "r",
        "RSS MiB": "r",
        "upstream requests/call": "r",
        "initializes/call": "r",
        "errors": "r",
        **dict.fromkeys(more.values(), "r"),
    }
    rows = [cells(row) + [number(row.get(key), 1) for key in more] for row in found["rows"]]
    return f"{caption(found)}\n\n{table(columns, rows)}"


def cells(row: Row) -> list[str]:
    """The figures that every row of a load has."""
    return [
        row["variant"],
        number(row["calls_per_second"], 0),
        *(number(row[key], 2) for key in ("p50_ms", "p99_ms", "p999_ms")),
        number(row.get("cpu_us"), 0),
        number(row["rss_MiB"], 0),
        number(row["upstream_requests"], 2),
        number(row["upstream_initializes"], 2),
        str(row["errors"]),
    ]


def number(value: float | None, digits: int) -> str:
    """A number as it is shown; nothing for what is not known."""
    return "" if value is None else f"{value:,.{digits}f}"


def dues() -> str:
    """What trunkline may cost, and what was measured."""
    rows = [[line.what, line.due, line.measured, "yes" if line.is_met else "**no**"] for line in budget()]
    return table({"": "l", "due": "r", "measured": "r", "met": "r"}, rows)


def variants() -> str:
    """What is measured beside each other."""
    return table({"variant": "l", "": "l"}, [[name, variant.about] for name, variant in VARIANTS.items()])


def memory() -> str:
    """What an idle workflow costs."""
    found = result("memory")
    columns = {
        "": "l",
        "workflows": "r",
        "KiB each": "r",
        "streams and sockets of each": "r",
        "of the SDK's session": "r",
    }
    rows = [
        [
            row["variant"],
            f"{row['workflows']:,}",
            number(row["KiB"], 1),
            str(row["wires"]),
            "" if row["of_the_SDK"] is None else f"{row['of_the_SDK']:.0%}",
        ]
        for row in found["rows"]
    ]
    return f"{caption(found)}\n\n{table(columns, rows)}"


def soak() -> str:
    """What a process held over time."""
    found = result("soak")
    [row] = found["rows"]
    columns = {"": "l", "at the start": "r", "at the end": "r", "change after the first minute": "r"}
    rows = [
        ["RSS, MiB", number(row["rss_start_MiB"], 1), number(row["rss_end_MiB"], 1), f"{row['rss_drift']:+.1%}"],
        [
            "open descriptors",
            str(row["descriptors_start"]),
            str(row["descriptors_end"]),
            f"{row['descriptors_drift']:+.1%}",
        ],
    ]
    about = (
        f"{caption(found)}: {row['calls']:,} calls, {row['workflows_ended']:,} workflows ended, "
        f"{row['errors']} errors, the gateway's core busy for {row['cpu_busy']:.0%}."
    )
    return f"{about}\n\n{table(columns, rows)}"


def slow_reader() -> str:
    """What a client that reads nothing costs others."""
    found = result("slow_reader")
    [row] = found["rows"]
    columns = {
        "others' p99 ms alone": "r",
        "beside it": "r",
        "ratio": "r",
        "RSS MiB before": "r",
        "RSS MiB at most": "r",
    }
    keys = ("p99_alone_ms", "p99_beside_ms", "ratio", "memory_before_MiB", "memory_at_most_MiB")
    return f"{caption(found)}\n\n{table(columns, [[number(row[key], 2) for key in keys]])}"


def peers(name: str) -> str:
    """Other proxies beside trunkline: what each was, what it carried, and what became of what clients rely on."""
    found = result(name)
    manners = {key: title for key, title in MANNER_COLUMNS.items() if any(key in row for row in found["rows"])}
    sides = ("calls/s", "p50 ms", "p99 ms", "CPU µs/call", "RSS MiB", "upstream requests/call", "errors")
    columns = {"": "l", "version": "l", **dict.fromkeys(sides, "r"), **dict.fromkeys(manners.values(), "l")}
    rows = [
        [
            row["variant"],
            row.get("version", ""),
            number(row["calls_per_second"], 0),
            number(row["p50_ms"], 2),
            number(row["p99_ms"], 2),
            number(row.get("cpu_us"), 0),
            number(row["rss_MiB"], 0),
            number(row["upstream_requests"], 2),
            str(row["errors"]),
            *(kept(row.get(key)) for key in manners),
        ]
        for row in found["rows"]
    ]
    settings = [f"- {row['variant']}: {row['settings']}" for row in found["rows"] if row.get("settings")]
    return "\n\n".join([caption(found), table(columns, rows), "\n".join(settings)])


def kept(manner: bool | str | None) -> str:
    """What became of one manner, in a word."""
    return "" if manner is None else "yes" if manner is True else "**no**" if manner is False else f"**no**: {manner}"


def caption(found: dict[str, Any]) -> str:
    """What was measured, by which command, at which commit, and where."""
    about, there = found["about"], found["machine"]
    place = f"at commit {found['commit']}, {there['cores']} cores ({there['cpu']}), Python {there['python']}"
    return f"**{about[0].upper()}{about[1:]}**: `{found['command']}`, {place}"


def parts() -> str:
    """What the parts of the hot path cost by themselves."""
    found = result("micro")
    columns = {"": "l", "operations/s": "r", "µs": "r", "bytes at once": "r", "blocks returned": "r"}
    rows = [
        [
            row["variant"],
            number(row["operations_per_second"], 0),
            number(row["us"], 2),
            number(row["peak_bytes"], 0),
            number(row["blocks"], 0),
        ]
        for row in found["rows"]
    ]
    return f"{caption(found)}\n\n{table(columns, rows)}"


def servers() -> str:
    """What a request costs whoever serves it."""
    found = result("servers")
    columns = {"": "l", "version": "l", "CPU µs/request": "r", "requests/s": "r"}
    rows = [
        [row["variant"], row["version"], number(row["cpu_us"], 1), number(row["calls_per_second"], 0)]
        for row in found["rows"]
    ]
    return f"{caption(found)}\n\n{table(columns, rows)}"


def directories() -> str:
    """What calls cost with each directory."""
    found = result("directories")
    there = found["machine"]
    sides = dict.fromkeys(("workers", "calls/s", "p50 ms", "p99 ms", "CPU, µs/call", "CPU idle, ms/s"), "r")
    columns = {"directory": "l", **sides, "beside": "l", "its calls/s": "r", "its CPU": "r"}
    rows = [
        [
            row["directory"],
            str(row["workers"]),
            number(row["calls_per_second"], 0),
            number(row["p50_ms"], 2),
            number(row["p99_ms"], 2),
            number(row["cpu_us_per_call"], 0),
            number(row["idle_cpu_ms_per_s"], 0),
            row["beside"],
            f"{row['calls_ratio']:.0%}" if row["beside"] else "",
            f"{row['cpu_ratio']:.0%}" if row["beside"] else "",
        ]
        for row in found["rows"]
    ]
    about = f"`{found['command']}`, {found['about']}, on {there['cores']} cores ({there['cpu']}):"
    return f"{about}\n\n{table(columns, rows)}"


def machine(name: str) -> str:
    """Where it was measured."""
    found = result(name)
    there, versions = found["machine"], found["versions"]
    listed = ", ".join(f"{package} {version}" for package, version in versions.items() if package != "trunkline")
    first = ", and all three go before other processes of the machine" if there.get("goes_first") else ""
    return (
        f"The load was measured on {there['cores']} cores ({there['cpu']}), Python {there['python']}, {listed}, "
        f"at commit {found['commit']}; the gateway has one core, client and server share the other{first}."
    )


BESIDE = {"memory": memory, "soak": soak, "slow_reader": slow_reader, "micro": parts, "servers": servers}
"""Results that have a table of their own, in places of the same name."""


if __name__ == "__main__":
    sys.exit(main())
