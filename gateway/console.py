"""What the commands print: tables for a terminal, plain lines for a pipe, JSON for programs, bars while it takes long.

Colours follow NO_COLOR and the terminal (`rich` does). Results go to standard output, all else to standard error.
"""

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

PATIENCE_SECONDS: Final = 2.0
"""What takes longer shows that it goes on."""

PLAIN_WIDTH: Final = 10_000
"""Where nobody sees how wide it is, nothing is cut."""


def printable(value: object, *, keep: str = "") -> str:
    """What a peer says, without what would steer the terminal; the characters to `keep` are left as they are."""
    return "".join(c if c.isprintable() or c in keep else "\ufffd" for c in str(value))


def table_for(console: Console, *columns: str, caption: str | None = None) -> Table:
    """A table without rows: with lines on a terminal, plain columns elsewhere."""
    box = SIMPLE_HEAD if console.is_terminal else None
    return Table(*columns, box=box, pad_edge=False, padding=(0, 2, 0, 0), caption=caption, caption_justify="left")


def add_row(table: Table, *cells: object) -> None:
    """A row of texts that peers may have said."""
    table.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in cells))


def fitting(
    console: Console,
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    spare: Sequence[str],
    caption: str | None = None,
) -> Table:
    """A table of rows. Where a terminal has no room for their words, columns of `spare` are left out, in its order.

    The caption says which: a name that is cut is worth nothing, since it cannot be copied.
    """
    longest = [max(_words(column, rows, number), key=cell_len, default="") for number, column in enumerate(columns)]
    left_out: list[str] = []
    kept = list(range(len(columns)))
    for column in filter(columns.__contains__, spare if console.is_terminal else ()):
        sample = table_for(console, *(longest[number] for number in kept))
        if Measurement.get(console, console.options.update(width=PLAIN_WIDTH), sample).minimum <= console.width:
            break
        left_out.append(column)
        kept = [number for number in kept if columns[number] != column]
    told = [caption, f"no room for: {', '.join(left_out)}" if left_out else None]
    table = table_for(console, *(columns[number] for number in kept), caption="\n".join(filter(None, told)) or None)
    for row in rows:
        add_row(table, *(row[number] for number in kept))
    return table


def _words(column: str, rows: Sequence[Sequence[object]], number: int) -> Iterator[str]:
    """What stands in a column, and is not to be broken."""
    yield from column.split()
    for row in rows:
        yield from str(row[number]).split()


def show(console: Console, *shown: RenderableType) -> None:
    """Print; where that is no terminal, each line in full and without blanks at its end."""
    if console.is_terminal:
        console.print(*shown, sep="\n")
        return
    console.width = PLAIN_WIDTH
    with console.capture() as capture:
        console.print(*shown, sep="\n")
    lines = (line.rstrip() for line in capture.get().splitlines())
    console.file.write("".join(f"{line}\n" for line in lines))


def write_json(value: object, console: Console) -> None:
    """Print a value for programs."""
    console.file.write(json.dumps(value, indent=2) + "\n")


class Meter:
    """How far a command has come, shown once it has taken `PATIENCE_SECONDS`, if standard error is a terminal."""

    def __init__(self, what: str, total: float | None, console: Console) -> None:
        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TextColumn("{task.fields[said]}"))
        self._progress = Progress(*columns, TimeElapsedColumn(), console=console, transient=True)
        self._task = self._progress.add_task(what, total=total, said=_share(0, total))
        self.is_shown = console.is_terminal

    def tell(self, done: float, total: float | None, said: str = "") -> None:
        """So much of it is done; without a `total`, nobody knows how much there is."""
        self._progress.update(self._task, completed=done, total=total, said=printable(said) or _share(done, total))

    @contextmanager
    def running(self) -> Iterator["Meter"]:
        """Show it while the context lasts."""
        if not self.is_shown:
            yield self
            return
        timer = threading.Timer(PATIENCE_SECONDS, self._progress.start)
        timer.daemon = True
        timer.start()
        try:
            yield self
        finally:
            timer.cancel()
            timer.join()
            self._progress.stop()


def _share(done: float, total: float | None) -> str:
    return f"{done:g}/{total:g}" if total is not None else f"{done:g}" if done else ""


def meter(what: str, total: float | None = None) -> Meter:
    """A meter on standard error."""
    return Meter(what, total, Console(stderr=True))


def out() -> Console:
    """Standard output."""
    return Console(highlight=False)
