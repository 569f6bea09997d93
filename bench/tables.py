"""Rows of a measurement, printed; and how far it is, while it runs."""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track
from rich.table import Table

from bench.results import Row

Part = TypeVar("Part")


def metered(parts: Collection[Part], what: str = "measuring") -> Iterable[Part]:
    """The parts of a measurement, one after the other, with a bar on standard error."""
    return track(parts, what, console=Console(stderr=True))


def print_rows(title: str, rows: Sequence[Row], columns: Mapping[str, str] | None = None) -> None:
    """Print a table; with `columns`, those of them that a row has, by the names that they give. Text stands left."""
    if columns is None:
        columns = {name: name.replace("_", " ") for name, value in rows[0].items() if not isinstance(value, dict)}
    shown = [name for name in columns if any(name in row for row in rows)]
    table = Table(title=title)
    for name in shown:
        is_text = any(isinstance(row.get(name), str) for row in rows)
        table.add_column(columns[name], justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in shown))
    Console(width=None if sys.stdout.isatty() else 150).print(table)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
