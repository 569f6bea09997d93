"""What the documents take from the code, so that they cannot miss any of it: a name of a region to its Markdown.

`TRUNKLINE_WRITE_DOCS=1 pytest tests/test_docs.py` writes them.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import trunkline.gateway
import trunkline.mux
import trunkline.transports
import typer
from trunkline.gateway import cli
from trunkline.gateway.exits import MEANINGS
from trunkline.gateway.metrics import COUNTERS, GAUGES, HISTOGRAMS, SERVERS, Family
from trunkline.gateway.settings.reference import Setting, tables
from trunkline.mux import errors
from trunkline.mux.breaker import CIRCUIT
from trunkline.mux.errors import TrunklineError
from trunkline.mux.event_log import Overflow
from trunkline.mux.lifecycle import LIFE
from trunkline.mux.modern import status_of
from trunkline.mux.request import REQUESTS, SERVER_REQUESTS
from trunkline.transports.headers import HEADERS
from trunkline.transports.status import AT_ADMISSION, PER_PRINCIPAL, HTTPRefusal, answer_to
from trunkline.transports.upstream.modern_passage import SlowClient

SCOPES: Final = {"pooling": "each server, unless it has its own", "servers": "that server"}
PROCESS_WIDE: Final = {"pooling.event_log.total_bytes"}
NOT_RUN: Final = "<!-- not run: it is an example; tests/gateway/test_cli.py holds that the program would take it -->"
RULES: Final = re.compile(r" \((rule|guarantee|HTTP)[^)]*\)")
MADE: Final[Mapping[type[TrunklineError], TrunklineError]] = {
    errors.UpstreamFault: errors.UpstreamFault("no response", executed="unknown"),
    errors.UpstreamRefused: errors.UpstreamRefused(b"{}"),
    errors.UpstreamUnreachable: errors.UpstreamUnreachable("away", executed="no"),
    errors.HandshakeTimedOut: errors.HandshakeTimedOut("late", executed="no"),
    errors.CredentialRefused: errors.CredentialRefused("refused"),
    errors.CircuitOpen: errors.CircuitOpen("files", 1.0),
    errors.SessionLost: errors.SessionLost("lost", executed="unknown"),
    errors.Overloaded: errors.Overloaded("full", limit="max_inflight_per_workflow"),
    errors.DirectoryUnavailable: errors.DirectoryUnavailable("away"),
    errors.LeaseEnded: errors.LeaseEnded(),
    errors.TimedOut: errors.TimedOut("late", executed="unknown"),
    errors.UnknownServer: errors.UnknownServer("files"),
    errors.WorkflowEnded: errors.WorkflowEnded("idle"),
}
"""One of each error that wants more than a message."""

NEVER_TOLD: Final = {HTTPRefusal, Overflow, SlowClient, errors.InvalidMessage, errors.ServerError}
"""Errors of another table, of the inside, and the one that only its kinds are raised of."""


def diagram(title: str, table: Mapping[tuple[str, str], tuple[str, str]]) -> str:
    """A table of what may happen, (state, input) to (state, effect), as a state diagram."""
    lines = ["```mermaid", "---", f"title: {title}", "---", "stateDiagram-v2"]
    lines += [f"    {old} --> {new}: {given} / {effect}" for (old, given), (new, effect) in table.items()]
    return "\n".join([*lines, "```", ""])


def requests_as_mermaid() -> str:
    """What may happen to a request: a client's, and the server's own."""
    return "\n".join((diagram("request", REQUESTS), diagram("server request", SERVER_REQUESTS)))


def life_as_mermaid() -> str:
    """What may happen to a channel."""
    return diagram("channel in the pool", LIFE)


def circuit_as_mermaid() -> str:
    """What may happen to a circuit."""
    return diagram("circuit of a server and a tenant", CIRCUIT)


def settings_as_markdown() -> str:
    """Every setting, a table for each section."""
    parts = []
    for table in tables():
        title = f"[{table.section}]" if "." not in table.section or table.section == "servers.NAME" else table.section
        rows = ((f"`{s.key}`", _kind(s), _default(s), _scope(s), s.meaning) for s in table.settings)
        parts.append(
            f"## `{title}`\n\n{table.meaning[:1].upper()}{table.meaning[1:]}\n\n"
            + _table(("key", "value", "default", "holds for", "what it means"), rows)
        )
    return "\n".join(parts)


def _kind(setting: Setting) -> str:
    return re.sub(r'"[^"]*"', lambda text: f"`{text[0]}`", setting.kind)


def _default(setting: Setting) -> str:
    if setting.is_inherited:
        return "that of `[pooling]`"
    if setting.default is None:
        return "none" if setting.kind == "table" else "has to be given"
    return f"`{setting.default}`" if setting.kind != "table" else "see there"


def _scope(setting: Setting) -> str:
    return (
        "the gateway" if setting.path in PROCESS_WIDE else SCOPES.get(setting.section.partition(".")[0], "the gateway")
    )


def headers_as_markdown() -> str:
    """Every header of the contract."""
    rows = ((f"`{h.name}`", h.on, f"`?{h.query}=`" if h.query else "", h.meaning) for h in HEADERS)
    return _table(("header", "on", "in a browser's URL", "what it means"), rows)


def errors_as_markdown() -> str:
    """Every JSON-RPC error that a client may get from the gateway itself."""
    rows = []
    for error in sorted((_made(kind) for kind in told()), key=lambda e: (-e.code < 32000, -e.code, e.reason)):
        meaning = RULES.sub("", " ".join((type(error).__doc__ or "").split("\n\n")[0].split()))
        carried = ", ".join(f"`data.{name}`" for name in error.data)
        code = "the server's own" if isinstance(error, errors.UpstreamRefused) else f"`{error.code}`"
        statuses = (str(answer_to(error).status), str(status_of(error.code)))
        rows.append((code, f"`{error.reason}`", *statuses, meaning, carried))
    return _table(("code", "counted as", "HTTP", "HTTP, 2026-07-28", "when", "carries"), rows)


def told() -> Iterator[type[TrunklineError]]:
    """The kinds of errors that a client may get."""
    seen = [TrunklineError]
    for kind in seen:
        seen += kind.__subclasses__()
    yield from (kind for kind in seen[1:] if kind not in NEVER_TOLD)


def _made(kind: type[TrunklineError]) -> TrunklineError:
    return MADE[kind] if kind in MADE else kind("")


def limits_as_markdown() -> str:
    """Every value of `data.limit`, with the status where it is met at the door."""
    rows = []
    for limit in sorted(set(_limits())):
        status = 429 if limit in PER_PRINCIPAL else 503 if limit in AT_ADMISSION else 200
        rows.append((f"`{limit}`", f"{status} with Retry-After" if status != 200 else "200"))
    return _table(("`data.limit`", "HTTP"), rows)


def _limits() -> Iterator[str]:
    for node in _calls():
        yield from (word.value.value for word in node.keywords if word.arg == "limit" and _is_text(word.value))  # type: ignore[attr-defined]
        if _name(node) == "Cap" and _is_text(node.args[0]):
            yield node.args[0].value  # type: ignore[attr-defined]


def refusals_as_markdown() -> str:
    """Every refusal of HTTP itself, with its message."""
    rows = set()
    for node in _calls():
        if _name(node) == "HTTPRefusal" and len(node.args) == 3:
            status, word, message = node.args
            assert isinstance(status, ast.Constant)
            assert isinstance(word, ast.Constant)
            rows.add((str(status.value), f"`{word.value}`", _text(message)))
        if _name(node) == "Unauthorized" and (_is_text(node.args[0])):
            rows.add(("401", "`unauthorized`", _text(node.args[0])))
    return _table(("HTTP", "counted as", "message"), sorted(rows))


def _calls() -> Iterator[ast.Call]:
    for package in (trunkline.mux, trunkline.transports, trunkline.gateway):
        for path in sorted(Path(package.__path__[0]).rglob("*.py")):
            yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call))


def _name(node: ast.Call) -> str:
    return node.func.id if isinstance(node.func, ast.Name) else ""


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values)
    assert isinstance(node, ast.Constant)
    return str(node.value)


def metrics_as_markdown() -> str:
    """Every metric."""
    kinds = (("counter", "_total", COUNTERS), ("gauge", "", GAUGES), ("histogram", "", HISTOGRAMS))
    rows = (
        (f"`{family.metric}{suffix}`", kind, ", ".join(f"`{label}`" for label in family.labels), _values(family))
        for kind, suffix, families in kinds
        for family in families.values()
    )
    return _table(("metric", "type", "labels", "what it tells"), rows)


def _values(family: Family) -> str:
    known = [
        f"`{label}`: {', '.join(f'`{value}`' for value in values)}"
        for label, values in zip(family.labels, family.fixed or (), strict=False)
        if values is not SERVERS
    ]
    return " ".join((family.text, *(f"{one}." for one in known)))


def exits_as_markdown() -> str:
    """Every exit code."""
    return _table(("exit code", "meaning"), ((str(int(code)), text) for code, text in MEANINGS.items()))


def commands_as_markdown() -> str:
    """Every command, as its help tells it."""
    parts = []
    for name, command in typer.main.get_command(cli.app).commands.items():  # type: ignore[attr-defined]
        rows = [_parameter(one) for one in command.params if "--debug" not in one.opts]
        example = command.epilog.removeprefix("Example: ")
        block = f"{NOT_RUN}\n```sh\n{example}\n```\n"
        heading = f"## `trunkline {name}`\n\n{command.help}\n\n{block}"
        parts.append(heading + (f"\n{_table(('', 'what it is', 'default'), rows)}" if rows else ""))
    return "\n".join(parts)


def _parameter(one: Any) -> tuple[str, str, str]:
    is_option = one.param_type_name == "option"
    is_flag = getattr(one, "is_flag", False)
    metavar = one.metavar or ("" if is_flag else one.name.upper())
    spelled = f"{one.opts[0]} {'' if is_flag else metavar}".strip() if is_option else metavar
    default = "" if one.default in (None, "", False, ()) or callable(one.default) else f"`{one.default}`"
    told = f"{one.help} Or `{one.envvar}` in the environment." if one.envvar else one.help
    return f"`{spelled}`", told, "required" if one.required else default


def _table(columns: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(columns), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |\n" for line in lines)


REGIONS: Final = {
    ("design.md", "tables"): requests_as_mermaid,
    ("design.md", "life"): life_as_mermaid,
    ("design.md", "circuit"): circuit_as_mermaid,
    ("settings.md", "settings"): settings_as_markdown,
    ("cli.md", "exits"): exits_as_markdown,
    ("cli.md", "commands"): commands_as_markdown,
    ("reference/headers.md", "headers"): headers_as_markdown,
    ("reference/errors.md", "errors"): errors_as_markdown,
    ("reference/errors.md", "limits"): limits_as_markdown,
    ("reference/errors.md", "refusals"): refusals_as_markdown,
    ("reference/metrics.md", "metrics"): metrics_as_markdown,
}
"""A page under docs/ and the name of a region in it, to what stands there."""
