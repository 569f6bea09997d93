"""`trunkline explain`: what the pool did for one workflow, and why. No secret is in what it reads."""

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote

from rich.console import Console, RenderableType
from rich.table import Table

from .console import add_row, out, table_for, write_json
from .console import show as print_shown
from .exits import WrongArgument
from .sessions import Source, Unavailable

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
        WrongArgument: this is no handle.
    """
    console = console or out()
    if not handle.strip("./ "):
        raise WrongArgument("give a workflow's handle, as `trunkline sessions` names it")
    with source.meter().running():
        told = source.read(f"/api/sessions/{quote(handle, safe='')}")
    if as_json:
        write_json(told, console)
        return
    try:
        shown = rendered(told, console)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise Unavailable(f"{source.url} tells it in another way: is it of another version? Try --json") from None
    print_shown(console, *shown)


def rendered(told: Told, console: Console) -> list[RenderableType]:
    """The account as tables for this console."""
    facts = Table(show_header=False, box=None, pad_edge=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for name, text in _facts(told):
        add_row(facts, name, text)
    return [facts, "", _timeline(told["timeline"], console)]


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


def _timeline(events: Sequence[Told], console: Console) -> Table:
    table = table_for(console, "when", "ago", "what", "detail")
    for event in events:
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(event["at"]))  # as the log says it
        add_row(table, when, _ago(event["at"]), WHAT.get(event["what"], event["what"]), event["detail"])
    return table


def _ago(at: float) -> str:
    seconds = max(0.0, time.time() - at)
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"
