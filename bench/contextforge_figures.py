"""The tables of docs/migrating.md: ContextForge as it is and with trunkline inside, from the stored result."""

from collections.abc import Iterator
from typing import Any

from bench.results import result

NAMES = {"http": "Streamable HTTP", "sse": "SSE", "ws": "WebSocket"}


def table() -> str:
    """Calls and memory as Markdown tables: what stands before an arrow is the gateway as it is."""
    found = result("contextforge")
    pairs = list(_pairs(found["rows"]))
    lines = [
        f"{found['about']}.",
        "",
        f"By `{found['command'].strip()}` on {found['machine']['cores']} cores: as it is → with trunkline.",
        "",
        "| ContextForge | cache | over | requests a call | p50 ms | p50 of a ping, ms | eight calls of 0.5 s, s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for stock, ours in pairs:
        if "transport" in ours:
            names = ("upstream_requests_per_call", "p50_ms", "ping_p50_ms", "eight_of_half_a_second")
            cells = " | ".join(_cell(stock, ours, name) for name in names)
            lines.append(f"| {ours['version']} | {ours['cache']} | {NAMES[ours['transport']]} | {cells} |")
    for stock, ours in pairs:
        if "memory" in ours:
            before, after = stock["memory"], ours["memory"]
            about = f"{after['sessions']} sessions with {after['calls']:,} calls that have ended"
            lines.append(
                f"\nKept in {ours['version']} after {about}: {before['grown_mib']} → {after['grown_mib']} MiB."
            )
    return "\n".join(lines)


def _pairs(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    for ours in rows:
        if ours["variant"] == "trunkline":
            same = ("version", "cache", "transport")
            stock = [row for row in rows if row["variant"] == "stock"]
            yield next(row for row in stock if all(row.get(name) == ours.get(name) for name in same)), ours


def _cell(stock: dict[str, Any], ours: dict[str, Any], name: str) -> str:
    return "" if ours.get(name) is None else f"{_shown(stock, name)} → {_shown(ours, name)}"


def _shown(row: dict[str, Any], name: str) -> str:
    return "hangs" if "failed" in row else "" if row.get(name) is None else f"{row[name]:g}"
