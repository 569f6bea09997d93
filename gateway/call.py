"""`trunkline call`: one tool call with the SDK's client, over any of the three transports."""

import asyncio
import json
import re
import ssl
from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from ..transports.client import websocket_client
from ..transports.dialer import CannotConnect
from ..transports.headers import WORKFLOW, is_key
from ..transports.upstream.http import HeaderBlock, parts_of
from ..transports.upstream.proxy import proxy_of
from .console import Meter, add_row, meter, printable, table_for, write_json
from .console import show as print_shown
from .exits import Failure, WrongArgument, nobody_at, of_tls
from .loop import run_command

if TYPE_CHECKING:
    from mcp import types
    from mcp.shared.dispatcher import ProgressFnT
    from rich.console import Console

Kind = Literal["http", "sse", "ws"]

ANSWER_SECONDS: Final = 600.0
CONNECT_SECONDS: Final = 10.0
MAX_NAMES: Final = 20
"""Tools that an error lists."""

_GATEWAY_PATH: Final = re.compile(r"(.*/servers/[^/]+)(?:/(?:mcp|sse|ws))?/?")
_KINDS: Final[dict[str, Kind]] = {"http": "http", "sse": "sse", "ws": "ws"}
_LAST: Final[dict[Kind, str]] = {"http": "mcp", "sse": "sse", "ws": "ws"}

_HINTS: Final = {
    400: "the server does not take the request",
    **dict.fromkeys((301, 302, 303, 307, 308), "it leads elsewhere, and is not followed; give the URL there"),
    401: "send a token that counts there: --header 'Authorization: Bearer TOKEN'",
    403: "this token, or this address, may not",
    404: "there is no MCP server at this URL; those of a gateway are at /servers/NAME/mcp",
    405: "no MCP server speaks this transport here: try another --transport, or the URL that `trunkline serve` printed",
    421: "it is not served by this name, but by those of gateway.allowed_hosts",
    426: "a proxy between here and the gateway does not pass the WebSocket's Upgrade on",
    429: "too many sessions: try again later",
    **dict.fromkeys((502, 504), "a proxy before the gateway does not reach it"),
    503: "the gateway takes no new session now: try again later",
}

_IS_IT: Final = "is this the URL of an MCP server, and of this transport?"


class CallFailed(Failure):
    """There is no result."""


@dataclass(frozen=True, slots=True)
class Call:
    """What to call, and where."""

    url: str
    kind: Kind
    tool: str
    arguments: dict[str, object]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a tool gave back."""

    texts: list[str]
    """One for each content block; for what is no text, a word on what it is."""
    structured: object
    """Structured content; where there is none, the content blocks."""


def read_call(
    url: str, tool: str, arguments: str, *, kind: str | None, headers: Sequence[str], workflow: str | None
) -> Call:
    """The call that a command line describes.

    Raises:
        WrongArgument: the URL is none of an MCP server, the arguments are no JSON object, a header or key is none.
    """
    try:
        given = json.loads(arguments)
        # What can be spelled and not be sent: NaN, half of a surrogate pair.
        json.dumps(given, ensure_ascii=False, allow_nan=False).encode()
    except (ValueError, RecursionError) as error:
        raise WrongArgument(f"the tool's arguments are not JSON: {error}") from None
    if not isinstance(given, dict):
        raise WrongArgument("""the tool's arguments must be a JSON object, like '{"name": "value"}'""")
    if kind is not None and kind not in _KINDS:
        raise WrongArgument(f'--transport: expected http, sse or ws, got "{kind}"')
    named = dict(_header(text) for text in headers)
    if workflow is not None:
        if not is_key(workflow):
            raise WrongArgument("--workflow: expected 1-128 characters of A-Z a-z 0-9 . _ : -")
        named[WORKFLOW] = workflow
    endpoint, chosen = endpoint_of(url, _KINDS[kind] if kind is not None else None)
    return Call(endpoint, chosen, tool, given, named)


def endpoint_of(url: str, kind: Kind | None) -> tuple[str, Kind]:
    """The URL of a server's endpoint for this transport, and the transport; None: the one that the URL is of.

    On a gateway, any URL of a server names all three of its endpoints. Elsewhere only the scheme is changed.

    Raises:
        WrongArgument: no URL of HTTP or WebSocket.
    """
    parts = parts_of(url)
    if parts.scheme not in ("http", "https", "ws", "wss") or not parts.hostname:
        raise WrongArgument("that is no URL of a server; give one like http://127.0.0.1:8920/servers/demo/mcp")
    if kind is None:
        last = parts.path.rstrip("/").rpartition("/")[2]
        kind = "ws" if parts.scheme in ("ws", "wss") else _KINDS.get(last, "http")
    is_secure = parts.scheme in ("https", "wss")
    scheme = ("ws" if kind == "ws" else "http") + ("s" if is_secure else "")
    served = _GATEWAY_PATH.fullmatch(parts.path)
    path = f"{served[1]}/{_LAST[kind]}" if served else parts.path
    return parts._replace(scheme=scheme, path=path).geturl(), kind


async def perform(call: Call, told: Meter | None = None) -> Outcome:
    """Connect, call, close. Where somebody sees how far it is `told`, the server is asked for its progress.

    Raises:
        CallFailed: the server is not there, or refuses; the tool is not there, or failed.
    """
    try:
        from mcp import Client
        from mcp.shared.exceptions import MCPError
    except ImportError:
        raise CallFailed("this command needs the MCP SDK's 2.x line: pip install 'mcp>=2'") from None
    statuses: list[int] = []
    try:
        async with AsyncExitStack() as stack:
            transport = await _transport(call, statuses, stack)
            # A key names a session: where there are none, a call of the next run would not come back to this one's.
            is_keyed = any(name.lower() == WORKFLOW for name in call.headers)
            mode = "auto" if call.kind == "http" and not is_keyed else "legacy"
            client = await stack.enter_async_context(
                Client(transport, mode=mode, read_timeout_seconds=ANSWER_SECONDS, cache=None)
            )
            watched = _progress(told) if told is not None and told.is_shown else None
            result = await client.call_tool(call.tool, call.arguments, progress_callback=watched)
            if not result.is_error:
                return Outcome([_text(block) for block in result.content], _structured(result))
            names = [tool.name for tool in (await client.list_tools()).tools]
            raise CallFailed(_failed(call.tool, names, [_text(block) for block in result.content]))
    except Exception as error:
        task = asyncio.current_task()
        if task is not None and task.cancelling():  # by Ctrl-C: what is being ended may say anything
            raise asyncio.CancelledError from None
        cause = _leaf(error)
        if isinstance(cause, CallFailed):
            raise cause from None
        said = cause.error.message if isinstance(cause, MCPError) else ""
        raise CallFailed(_words(call.url, cause, said, statuses)) from error


def _progress(told: Meter) -> "ProgressFnT":
    async def tell(progress: float, total: float | None, message: str | None) -> None:
        told.tell(progress, total, message or "")

    return tell


async def _transport(call: Call, statuses: list[int], stack: AsyncExitStack) -> "AbstractAsyncContextManager[Any]":
    """The SDK's transport of that kind. Each status of HTTP is noted in `statuses`: the SDK does not tell them."""
    if call.kind == "ws":
        return websocket_client(call.url, headers=call.headers)
    import httpx2
    from mcp.client.sse import sse_client
    from mcp.client.streamable_http import streamable_http_client

    async def note(response: httpx2.Response) -> None:
        statuses.append(response.status_code)

    def make(
        headers: dict[str, str] | None = None,
        timeout: httpx2.Timeout | None = None,
        auth: httpx2.Auth | None = None,
    ) -> httpx2.AsyncClient:
        proxy = proxy_of(call.url)
        try:
            return httpx2.AsyncClient(
                headers=headers,
                auth=auth,
                timeout=httpx2.Timeout(CONNECT_SECONDS, read=ANSWER_SECONDS),
                verify=ssl.create_default_context(),  # as for WebSocket
                trust_env=False,
                proxy=proxy,
                event_hooks={"response": [note]},
            )
        except (ValueError, ImportError, httpx2.InvalidURL):  # it is no proxy, or one of SOCKS wants a package
            if proxy is None:
                raise
            raise httpx2.ProxyError("no proxy that can be used") from None

    if call.kind == "sse":
        return sse_client(call.url, headers=dict(call.headers), httpx_client_factory=make)
    http = await stack.enter_async_context(make(dict(call.headers)))
    return streamable_http_client(call.url, http_client=http)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not name.strip():
        raise WrongArgument("--header: expected 'Name: value', got one without a name and a colon")
    name, value = name.strip(), value.strip()
    try:
        HeaderBlock({name: value})
    except ValueError as error:
        raise WrongArgument(f"--header: {error}") from None
    return name, value


def _text(block: "types.ContentBlock") -> str:
    text = getattr(block, "text", None)
    if isinstance(text, str):
        return text
    media = getattr(block, "mime_type", None)
    return f"[{block.type}{f' {media}' if media else ''}]"


def _structured(result: "types.CallToolResult") -> object:
    if result.structured_content is not None:
        return result.structured_content
    return [block.model_dump(mode="json", by_alias=True, exclude_none=True) for block in result.content]


def _failed(tool: str, names: list[str], texts: list[str]) -> str:
    if tool not in names:
        more = ", …" if len(names) > MAX_NAMES else ""
        return f"there is no tool {tool!r} here; there are: {', '.join(names[:MAX_NAMES])}{more}"
    return f"the tool {tool!r} failed: {_line(' '.join(texts)) or 'it did not say why'}"


def _words(url: str, cause: BaseException, told: str, statuses: list[int]) -> str:
    """What went wrong, and what to do about it."""
    import httpx2

    shown = urlsplit(url)
    where = f"{shown.scheme}://{shown.netloc.rpartition('@')[2]}{shown.path}"
    status = cause.status if isinstance(cause, CannotConnect) else statuses[-1] if statuses else None
    if status is not None and status >= 300:
        said = _line(told) if status == 400 else ""
        return f"{where} answered HTTP {status}: {said or _HINTS.get(status, _IS_IT)}"
    if told:
        return f"{where} answered: {_line(told)}"
    if isinstance(cause, ValueError):
        return _line(str(cause))
    if tls := of_tls(cause):
        return f"{where}: {tls}"
    if isinstance(cause, OSError | httpx2.ConnectError | httpx2.ConnectTimeout | httpx2.ProxyError):
        return nobody_at(where)
    return f"{where} is not understood ({_line(str(cause)) or type(cause).__name__}): {_IS_IT}"


def _leaf(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


def _line(text: str) -> str:
    """A text of a server as one line, without what would steer the terminal."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:500]


def run(call: Call, *, as_json: bool, console: "Console") -> None:
    """Perform a call, and print what it gave.

    Raises:
        CallFailed: see `perform`.
    """
    _silence()
    with meter(f"{call.tool} runs").running() as told:
        outcome = run_command(perform(call, told))
    show(outcome, as_json=as_json, console=console)


def show(outcome: Outcome, *, as_json: bool, console: "Console") -> None:
    """Print what a tool gave."""
    if as_json:
        write_json(outcome.structured, console)
    elif console.is_terminal and (rows := _rows(outcome.structured)):
        table = table_for(console, *rows[0])
        for row in rows:
            add_row(table, *row.values())
        print_shown(console, table)
    else:
        for text in outcome.texts:
            console.file.write(printable(text, keep="\n\t") + "\n")


def _rows(structured: object) -> list[dict[str, object]]:
    """The rows of a result that is a list of records of the same plain fields; else none."""
    given = structured.get("result") if isinstance(structured, dict) and structured.keys() == {"result"} else structured
    if not isinstance(given, list) or not given:
        return []
    first = given[0]
    return given if isinstance(first, dict) and all(_is_plain(row, first) for row in given) else []


def _is_plain(row: object, first: dict[str, object]) -> bool:
    if not isinstance(row, dict) or row.keys() != first.keys():
        return False
    return not any(isinstance(value, dict | list) for value in row.values())


def _silence() -> None:
    """What libraries log of a failure is told once, by us, and in one line."""
    import logging

    for name in ("mcp", "client", "httpx2", "asyncio"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())
