"""`trunkline explain`: what the pool did for one workflow, and why. No secret is in what it reads."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from .sessions import PIPED_WIDTH, Source, Unavailable, printable

WHAT: Final[Mapping[str, str]] = {
    "created": "began",
    "reset": "began anew",
    "taken_over": "was taken over from a worker that had ended, or let it go",
    "attached": "its client opened a stream",
    "left": "its client closed a stream",
    "cut": "a connection of its client was cut",
    "resumed": "its client came back",
    "moved": "moved to another transport",
    "lost": "the session with the server was lost",
    "reopened": "the session with the server was opened anew",
    "ended": "ended",
}
"""An entry of the timeline, for people."""

Told = Mapping[str, Any]


def show(source: Source, handle: str, *, as_json: bool, console: Console | None = None) -> None:
    """Print the account of a workflow.

    Raises:
        Unavailable: nobody answers, the token is wrong, or there is no such workflow.
    """
    console = console or Console()
    if not handle.strip("./ "):
        raise Unavailable("give a workflow's handle, as `trunkline sessions` names it")
    told = source.read(f"/api/sessions/{quote(handle, safe='')}")
    if as_json:
        console.file.write(json.dumps(told, indent=2) + "\n")
        return
    if not console.is_terminal:
        console.width = max(console.width, PIPED_WIDTH)
    try:
        shown = rendered(told)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Unavailable(f"{source.url} tells it in another way: is it of another version? Try --json") from None
    console.print(shown)


def rendered(told: Told) -> RenderableType:
    """The account as tables."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(told):
        facts.add_row(name, Text(printable(text)))
    return Group(facts, _timeline(told["timeline"]))


def _facts(told: Told) -> Iterator[tuple[str, str]]:
    row, channel = told["workflow"], told["channel"]
    idle = "" if row["idle"] is None or told["ended"] else f", idle for {row['idle']:.0f} s"
    worker = f", at worker {row['worker']}" if "worker" in row else ""
    yield "workflow", f"{row['workflow']} on {row['server']}, of principal {row['principal']}{worker}"
    yield "state", f"{row['state']} over {row['transport']}, {row['inflight']} calls in flight{idle}"
    if told["ended"] is not None:
        ended = told["ended"]
        yield "ended", f"{ended['cause']}: {ended['says']} ({_ago(ended['at'])})"
    if channel is not None:
        shared = f", shared with {channel['shared_with']} other workflows" if channel["shared_with"] else ""
        beside = f", one of {channel['sessions']}" if channel["sessions"] > 1 else ""
        yield (
            "channel",
            f"{channel['state']}, open for {channel['age']:.0f} s, {channel['inflight']} in flight{shared}{beside}",
        )
    if told["origin"] is not None:
        before = f" (before it: {told['origin']['before']})" if told["origin"]["before"] else ""
        yield "began anew", told["origin"]["says"] + before
    if told["initialize"] is not None:
        yield "initialize", f"{told['initialize']['result']}: {told['initialize']['says']}"
    if told["asked"] == "call":
        yield "last call", f"{told['pool']['result']}: {told['pool']['says']}"


def _timeline(events: Sequence[Told]) -> Table:
    table = Table("when", "ago", "what", "detail", box=SIMPLE_HEAD, pad_edge=False)
    for event in events:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["at"]))
        cells = (when, _ago(event["at"]), WHAT.get(event["what"], event["what"]), event["detail"])
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _ago(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
