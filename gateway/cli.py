"""The command line: `trunkline serve`, `check`, `call`, `sessions`, `explain`, `token`."""

import json
import os
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from .settings import Settings, SettingsError, load

if TYPE_CHECKING:
    from .logs import LogFormat

app = typer.Typer(
    name="trunkline",
    help="One persistent MCP session for each client workflow, and many calls at once over it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

URL = Annotated[str, typer.Argument(metavar="[URL]", help="The gateway's URL.")]
AdminToken = Annotated[
    str | None,
    typer.Option(help="The admin token.", envvar="TRUNKLINE_GATEWAY__ADMIN_TOKEN", show_default=False),
]
File = Annotated[Path | None, typer.Argument(metavar="[FILE]", help="Settings, as TOML.", show_default=False)]


def main() -> None:
    """The program. Exit codes: 0 done, 1 a fault was found, 2 a wrong setting or argument."""
    try:
        app()
    except SettingsError as error:
        print(f"trunkline: {error}", file=sys.stderr)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"trunkline {version('trunkline')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", callback=_version)] = False,
) -> None:
    pass


@app.command()
def serve(
    file: File = None,
    upstream: Annotated[
        list[str] | None, typer.Option(metavar="NAME=URL", help="A server to stand before; may be repeated.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Add the built-in demo server.")] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.")] = None,
    insecure: Annotated[bool, typer.Option(help="Allow a listener beyond loopback without authentication.")] = False,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
) -> None:
    """Run a gateway. Without a file and without --upstream it is the demo."""
    given = {"gateway.host": host, "gateway.port": port, "gateway.workers": workers}

    def read() -> Settings:
        settings = load(
            file,
            environ=os.environ,
            upstreams=upstream or (),
            overrides={path: value for path, value in given.items() if value is not None},
            insecure=insecure,
        )
        if demo and "demo" in settings.servers:
            raise SettingsError(
                "servers.demo", "this name is the built-in demo server's; choose another, or leave --demo out"
            )
        return settings

    settings = read()
    _configure_logs(log_format, log_level)
    demo = demo or not settings.servers

    def on_ready(url: str) -> None:
        print(_welcome(settings, url, demo=demo), flush=True)

    from .workers.place import Place

    place = Place.take(os.environ)
    if place is None and settings.gateway.workers > 1:
        _supervise(settings, demo, on_ready)
        return
    from .process import serve as run

    told = on_ready if place is None else place.tell_listening
    _run(run(settings, read=read, demo=demo, insecure=insecure, on_ready=told, place=place))


@app.command()
def check(file: File = None) -> None:
    """Validate the settings, probe each server, and print a table. Exit 1 on any fault."""
    settings = load(file, environ=os.environ)
    if not settings.servers:
        raise SettingsError("servers", "there is no server to check; add [servers.NAME] with a url")
    import anyio
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from .check import probe_all

    _configure_logs("text", "error")
    probes = anyio.run(probe_all, settings)
    table = Table("server", "url", "state", "what it is", "revision", "time")
    for probe in probes:
        state = Text(_printable(probe.fault), "red") if probe.fault else Text("ok", "green")
        took = f"{probe.seconds * 1000:.0f} ms"
        told = (probe.server, _shown(probe.url), state, _printable(probe.name), probe.revision, took)
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in told))
    Console().print(table)
    if any(probe.fault for probe in probes):
        raise typer.Exit(1)


@app.command()
def call(
    url: Annotated[str, typer.Argument(metavar="URL", help="A server's URL, as `trunkline serve` prints it.")],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name.")],
    arguments: Annotated[str, typer.Argument(metavar="[JSON]", help="The tool's arguments, as a JSON object.")] = "{}",
    transport: Annotated[
        str | None, typer.Option(help="http, sse or ws; else what the URL says.", show_default=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="'Name: value'", help="A header to send; may be repeated.")
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="KEY", help="A key: calls that give it share a session.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the structured content, as JSON.")] = False,
) -> None:
    """Call one tool of a server, and print what it says. Exit 1 if there is no result."""
    from .call import CallFailed, WrongArgument, read_call, run

    try:
        wanted = read_call(url, tool, arguments, kind=transport, headers=header or (), workflow=workflow)
        run(wanted, as_json=as_json, write=print)
    except (CallFailed, WrongArgument) as error:
        _fault(str(error), 2 if isinstance(error, WrongArgument) else 1)


@app.command()
def sessions(
    url: URL = "http://127.0.0.1:8920",
    token: AdminToken = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows once, as JSON.")] = False,
) -> None:
    """Show the workflows that a gateway holds; on a terminal, again each second."""
    from .sessions import Unavailable, show, source_of

    try:
        show(source_of(url, token), once=once, as_json=as_json)
    except Unavailable as error:
        _fault(str(error), 1)


@app.command()
def explain(
    handle: Annotated[
        str, typer.Argument(metavar="HANDLE", help="A workflow, as `trunkline sessions` names it; 4 characters may do.")
    ],
    url: URL = "http://127.0.0.1:8920",
    token: AdminToken = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print it as JSON.")] = False,
) -> None:
    """Tell why the last call of a workflow hit or missed, and what happened to it. Exit 1 if there is none."""
    from .explain import show
    from .sessions import Unavailable, source_of

    try:
        show(source_of(url, token), handle, as_json=as_json)
    except Unavailable as error:
        _fault(str(error), 1)


@app.command()
def token(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Whom the token stands for.")],
    tenant: Annotated[str, typer.Option(help="The subject's tenant.")] = "",
    admin: Annotated[bool, typer.Option("--admin", help="It also opens the operators' pages.")] = False,
) -> None:
    """Make a bearer token: it is printed once, and the settings hold only its hash."""
    import hashlib
    import secrets

    made = secrets.token_urlsafe(32)
    entry = [f'sha256 = "{hashlib.sha256(made.encode()).hexdigest()}"']
    entry += [f"{name} = {json.dumps(value)}" for name, value in (("tenant", tenant), ("subject", subject))]
    entry += ["admin = true"] if admin else []
    print(f"{made}\n\n# one entry of auth.tokens:\n{{ {', '.join(entry)} }}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def contextforge(context: typer.Context) -> None:
    """Run IBM ContextForge with trunkline inside; what follows `--` are uvicorn's arguments."""
    from ..compat.contextforge.launch import main as launch

    raise typer.Exit(launch(context.args))


def _fault(message: str, code: int) -> NoReturn:
    print(f"trunkline: {message}", file=sys.stderr)
    raise typer.Exit(code)


def _run(gateway: Coroutine[Any, Any, None]) -> None:
    import asyncio

    try:
        import uvloop
    except ImportError:  # works without, only slower
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    with runner:
        runner.run(gateway)


def _supervise(settings: Settings, demo: bool, on_ready: Callable[[str], None]) -> None:
    from .workers.supervisor import WorkersFailed, supervise, worker_command

    try:
        _run(supervise(settings, demo=demo, command=worker_command(), on_ready=on_ready))
    except WorkersFailed as error:
        if error.is_told:
            raise typer.Exit(2) from None
        _fault(str(error), 1)


def _configure_logs(log_format: str, log_level: str) -> None:
    from .logs import configure

    formats: dict[str, LogFormat] = {"text": "text", "json": "json"}
    if log_format not in formats:
        raise SettingsError("--log-format", f'expected text or json, got "{log_format}"')
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise SettingsError("--log-level", f'expected debug, info, warning or error, got "{log_level}"')
    configure(formats[log_format], log_level)


def _shown(url: str) -> str:
    """A URL without the password and the query that it may hold."""
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"


def _printable(text: str) -> str:
    """What a server says of itself, without what would steer the terminal."""
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _welcome(settings: Settings, url: str, *, demo: bool) -> str:
    names = [*settings.servers, *(["demo"] if demo else [])]
    lines = [f"trunkline listens on {url}", ""]
    lines += [f"  {url}/servers/{name}/mcp    ({_offered(settings, name)})" for name in names]
    lines += [
        "",
        *_tried(settings, f"{url}/servers/{names[-1]}/mcp", names[-1], demo=demo),
        "",
        f"Or point any MCP client to {url}/servers/{names[-1]}/mcp",
        f"Status: {url}/   Figures: {url}/metrics   Ready: {url}/readyz   Ctrl-C drains and stops.",
    ]
    return "\n".join(lines)


def _tried(settings: Settings, url: str, name: str, *, demo: bool) -> tuple[str, str]:
    """What to try, and how."""
    if _has_sessions(settings, name):
        return "Try this twice: the second call continues the session of the first.", _curl(url, demo=demo)
    return "Try this:", _curl_without_session(url)


def _curl_without_session(url: str) -> str:
    """The probe of 2026-07-28, which has no sessions."""
    from ..mux.modern import probe

    body, headers = probe()
    named = " ".join(f"-H '{header}: {value}'" for header, value in headers.items())
    return (
        f"  curl -s {url} {named} \\\n"
        "    -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\\n"
        f"    -d '{body.decode()}'"
    )


def _curl(url: str, *, demo: bool) -> str:
    """A whole MCP call in one request: the key names the session, and the gateway does the handshake."""
    call = '"method":"tools/call","params":{"name":"counter","arguments":{}}' if demo else '"method":"tools/list"'
    return (
        f"  curl -s {url} -H 'Trunkline-Workflow: me' \\\n"
        "    -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\\n"
        f'    -d \'{{"jsonrpc":"2.0","id":1,{call}}}\''
    )


def _offered(settings: Settings, name: str) -> str:
    if not _has_sessions(settings, name):
        return "2026-07-28 alone, which has no sessions"
    return f"reuse: {_reuse(settings, name)}; also /sse and /ws"


def _has_sessions(settings: Settings, name: str) -> bool:
    return name not in settings.servers or "legacy" in settings.servers[name].eras


def _reuse(settings: Settings, name: str) -> str:
    return settings.pooling_for(name).reuse if name in settings.servers else settings.pooling.reuse


if __name__ == "__main__":
    main()
