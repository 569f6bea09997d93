"""`trunkline sessions`: which workflows a gateway holds, as a table that goes on. No secret is in what it reads."""

import json
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage
from typing import IO, Any, Final, TypeVar

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..transports.upstream.http import parts_of
from ..transports.upstream.proxy import proxy_of
from .completion import DEFAULT_URL
from .console import Meter, fitting, meter, out, printable, write_json
from .console import show as print_shown
from .exits import Failure, WrongArgument, nobody_at, of_tls
from .settings.spelling import fault_in_token

REFRESH_SECONDS: Final = 1.0
PATIENCE_SECONDS: Final = 10.0
MAX_BYTES: Final = 64 * 1024 * 1024
"""Largest answer that is read: some hundred bytes for each of the most workflows that a gateway holds."""

MAX_ERROR_BYTES: Final = 64 * 1024

COLUMNS: Final = (
    "workflow",
    "principal",
    "server",
    "transport",
    "state",
    "in flight",
    "idle",
    "reuse",
    "channel",
)

SPARE: Final = ("reuse", "principal", "channel", "transport", "worker", "idle", "in flight", "server")
"""Columns that a narrow terminal can do without, from the first one on."""

Row = Mapping[str, Any]
T = TypeVar("T")


class Unavailable(Failure):
    """The gateway's sessions cannot be had; the message is one line for people, which says what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """A gateway's operators' pages, and the token that opens them."""

    url: str
    token: str | None = None

    def fetch(self, *, patience: float = PATIENCE_SECONDS) -> list[Row]:
        """The rows as they are now, waited for at most so many seconds.

        Raises:
            Unavailable: nobody answers, the token is wrong, or this is no gateway.
        """
        rows = self.read("/api/sessions", patience=patience)
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise Unavailable(self._no_gateway())
        return rows

    def read(self, path: str, *, patience: float = PATIENCE_SECONDS) -> Any:
        """The JSON at a path of the gateway.

        Raises:
            Unavailable: as `fetch`; or the gateway says why it has nothing to tell.
        """
        request = urllib.request.Request(self.url + path)  # noqa: S310 - the scheme is checked
        if self.token:
            request.add_header("Authorization", f"Bearer {self.token}")
        proxy = proxy_of(self.url)
        handlers = (
            urllib.request.ProxyHandler({} if proxy is None else None),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            _NoRedirect(),
        )

        def ask() -> bytes:
            with urllib.request.build_opener(*handlers).open(request, timeout=patience) as answer:
                read: bytes = answer.read(MAX_BYTES)
                return read

        try:
            return json.loads(_apart(ask))
        except urllib.error.HTTPError as refused:
            with refused:
                raise Unavailable(self._refused(refused.code, refused.read(MAX_ERROR_BYTES))) from None
        except ConnectionResetError:  # where it was closed in order, as http.client has it, as well
            told = f"{self.url} closed the connection without an answer: it may want https, or be ending"
            raise Unavailable(told) from None
        except (OSError, HTTPException) as error:
            if tls := of_tls(error):
                raise Unavailable(f"{self.url}: {tls}") from None
            raise Unavailable(nobody_at(self.url)) from None
        except ValueError:
            raise Unavailable(self._no_gateway()) from None

    def meter(self) -> Meter:
        """What is shown while an answer is waited for."""
        return meter(f"{self.url} is asked")

    def _no_gateway(self) -> str:
        return f"{self.url} is no gateway of trunkline: give the URL that `trunkline serve` printed"

    def _refused(self, status: int, body: bytes) -> str:
        said = _reason_in(body)
        if said:
            return said
        if status in (401, 403):
            return f"{self.url} answered HTTP {status}: send its admin token (gateway.admin_token): --token TOKEN"
        if 300 <= status < 400:
            return f"{self.url} answered HTTP {status}: it leads elsewhere, and is not followed; give the URL there"
        if status == 421:
            return f"{self.url} answered HTTP 421: it has other names, those of gateway.allowed_hosts"
        if status == 404:
            return f"{self.url} has no /api/sessions: give the URL that `trunkline serve` printed"
        return f"{self.url} answered HTTP {status}"


def _apart(work: Callable[[], T]) -> T:
    """What comes of this in a thread that is left behind at Ctrl-C: who looks a name up heeds no signal."""
    outcome = Future[T]()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return outcome.result()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """The token is for one host only."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> None:
        """See the base class."""


def _reason_in(body: bytes) -> str:
    """What the gateway itself says of a refusal, with the handles that it names; empty where it is not its word."""
    try:
        told = json.loads(body)
    except ValueError:
        return ""
    if not isinstance(told, dict) or not isinstance(told.get("error"), str):
        return ""
    candidates = told.get("candidates")
    named = ": " + ", ".join(map(str, candidates)) if isinstance(candidates, list) else ""
    return printable(told["error"] + named)


def source_of(url: str, token: str | None) -> Source:
    """The gateway at a URL, which may be that of one of its servers.

    Raises:
        WrongArgument: no URL of HTTP; a token that cannot be sent.
    """
    if token and fault_in_token(token):
        raise WrongArgument(f"--token: {fault_in_token(token)}")
    parts = parts_of(url)
    scheme = {"ws": "http", "wss": "https"}.get(parts.scheme, parts.scheme)
    if scheme not in ("http", "https") or not parts.hostname:
        raise WrongArgument(f"that is no URL of a gateway; give one like {DEFAULT_URL}")
    path = parts.path.partition("/servers/")[0].rstrip("/")
    return Source(f"{scheme}://{parts.netloc.rpartition('@')[2]}{path}", token)


def table_of(rows: Sequence[Row], console: Console) -> Table:
    """The rows as a table for this console, those in use first."""
    columns = (*COLUMNS, "worker") if any("worker" in row for row in rows) else COLUMNS
    held = sorted((row for row in rows if not _is_missing(row)), key=_order)
    cells = [[_cell(row, column) for column in columns] for row in held]
    return fitting(console, columns, cells, spare=SPARE, caption=_caption(rows))


def show(source: Source, *, once: bool, as_json: bool, console: Console | None = None) -> None:
    """Print the sessions; on a terminal, again each second until it is interrupted.

    Raises:
        Unavailable: the first look failed. Later ones are told below the table.
    """
    console = console or out()
    with source.meter().running():
        rows = source.fetch()
    if as_json:
        write_json(rows, console)
    elif once or not console.is_terminal:
        print_shown(console, table_of(rows, console))
    else:
        _watch(source, rows, console)


def _watch(source: Source, rows: list[Row], console: Console) -> None:
    with Live(table_of(rows, console), console=console, auto_refresh=False, screen=False) as live:
        try:
            while True:
                time.sleep(REFRESH_SECONDS)
                try:
                    rows = source.fetch()
                    live.update(table_of(rows, console), refresh=True)
                except Unavailable as error:
                    live.update(Group(table_of(rows, console), Text(str(error), "red")), refresh=True)
        except KeyboardInterrupt:
            return


def _order(row: Row) -> tuple[bool, str, str]:
    return not row.get("inflight"), str(row.get("server")), str(row.get("workflow"))


def _cell(row: Row, column: str) -> str:
    value = row.get("inflight" if column == "in flight" else column)
    if column == "idle":
        return "" if value is None else f"{float(value):.0f} s"
    return "" if value is None else printable(value)


def _caption(rows: Sequence[Row]) -> str:
    attached = sum(row.get("state") == "attached" for row in rows)
    inflight = sum(int(row.get("inflight") or 0) for row in rows)
    missing = [_cell(row, "worker") for row in rows if _is_missing(row)]
    silent = f"; no answer from worker {', '.join(missing)}" if missing else ""
    return f"{len(rows) - len(missing)} workflows, {attached} attached, {inflight} calls in flight{silent}"


def _is_missing(row: Row) -> bool:
    """True for the row that stands for a worker which did not answer."""
    return row.get("state") == "missing"
