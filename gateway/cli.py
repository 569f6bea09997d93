"""The command line: `trunkline serve`, `init`, `check`, `sessions`, `explain`, `call`, `token`, `contextforge`.

What a command needs is imported when it runs, so that help and completion come at once. It ends as `exits` says.
"""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from .completion import DEFAULT_FILE, DEFAULT_URL, handles, server_names, server_urls
from .exits import DEBUG, MEANINGS, ExitCode, WrongArgument, tell
from .streams import open_standard_streams

if TYPE_CHECKING:
    from .logs import LogFormat
    from .settings import Read, Settings

GATEWAY, LOOK, USE = "Run a gateway", "Look into a gateway that runs", "Use a gateway"
CODES = "\n\n".join(("Exit codes:", *(f"{code} {text}" for code, text in MEANINGS.items())))

app = typer.Typer(
    name="trunkline",
    help="One persistent MCP session for each client workflow, and many calls at once over it.",
    epilog=CODES,
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


def _note_debug(wanted: bool) -> None:
    if wanted:
        os.environ[DEBUG] = "1"


def _complete_server(context: typer.Context) -> list[str]:
    # Before the option that is completed, the file has not been made a parameter yet.
    file = context.params.get("file") or next(iter(context.args), None)
    return server_names(Path(file) if file is not None else None)


def _complete_handle() -> list[str]:
    return handles(DEFAULT_URL, os.environ.get("TRUNKLINE_GATEWAY__ADMIN_TOKEN"))


Debug = Annotated[
    bool, typer.Option("--debug", help="Show where a failure came from.", callback=_note_debug, show_default=False)
]
AsJSON = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.", show_default=False)]
URL = Annotated[str, typer.Argument(metavar="URL", help="The gateway's URL.")]
DEMO_TAKEN: Final = "this name is the built-in demo server's; choose another, or leave --demo out"

AdminToken = Annotated[
    str | None,
    typer.Option(help="The gateway's admin token.", envvar="TRUNKLINE_GATEWAY__ADMIN_TOKEN", show_default=False),
]
File = Annotated[Path | None, typer.Argument(metavar="FILE", help="Settings, as TOML.", show_default=False)]
Insecure = Annotated[
    bool,
    typer.Option("--insecure", help="Allow a listener beyond loopback without authentication.", show_default=False),
]
Upstream = Annotated[
    list[str] | None, typer.Option(metavar="NAME=URL", help="A server to stand before; may be repeated.")
]


def main() -> None:
    """The program. What cannot be spelled where its output goes is replaced."""
    open_standard_streams()
    stream: Any = sys.stdout
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="replace")
    code = run(sys.argv[1:])
    if code == ExitCode.INTERRUPTED:  # no thread is waited for that was left behind
        os._exit(code)
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run the program with these arguments; its exit code."""
    try:
        _refuse_undecoded(arguments)
        returned = typer.main.get_command(app).main(arguments, prog_name="trunkline", standalone_mode=False)
        sys.stdout.flush()
    except (KeyboardInterrupt, typer.Abort):
        return ExitCode.INTERRUPTED
    except BrokenPipeError:  # who read it has gone
        return ExitCode.FAULT
    except Exception as error:
        return tell(error)
    finally:
        _drop_what_cannot_be_written()
    return returned if isinstance(returned, int) else ExitCode.DONE


def _drop_what_cannot_be_written() -> None:
    """What Python flushes at its end would fail again, and change the exit code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_undecoded(arguments: list[str]) -> None:
    """Refuse what could be written nowhere: bytes that are no text in the encoding of whoever started the program."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            encoding = sys.getfilesystemencoding()
            raise WrongArgument(f"{argument!r} is no text in the encoding that is set here, {encoding}") from None


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"trunkline {version('trunkline')}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_version, is_eager=True, show_default=False)
    ] = False,
    debug: Debug = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    rich_help_panel=GATEWAY,
    epilog="Example: trunkline serve --upstream web=http://127.0.0.1:9000/mcp --upstream git='stdio:mcp-server-git'",
)
def serve(
    file: File = None,
    upstream: Upstream = None,
    demo: Annotated[bool, typer.Option("--demo", help="Add the built-in demo server.", show_default=False)] = False,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default=False)] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.", show_default=False)] = None,
    workers: Annotated[int | None, typer.Option(help="Worker processes.", show_default=False)] = None,
    insecure: Insecure = False,
    log_format: Annotated[str, typer.Option(help="text or json.")] = "text",
    log_level: Annotated[str, typer.Option(help="debug, info, warning or error.")] = "info",
    debug: Debug = False,
) -> None:
    """Run a gateway. Without a file and without --upstream it is the demo, and says what to try."""
    from .signals import hold

    hold()
    from .settings import Settings, SettingsError, load
    from .workers.place import Place

    place = Place.take(os.environ)
    given = {"gateway.host": host, "gateway.port": port, "gateway.workers": workers}

    def read() -> Settings:
        settings = load(
            file,
            environ=os.environ,
            upstreams=upstream or (),
            overrides={path: value for path, value in given.items() if value is not None},
            insecure=insecure,
        )
        if (demo or (place is not None and place.demo)) and "demo" in settings.servers:
            raise SettingsError("servers.demo", DEMO_TAKEN)
        return settings

    if place is None:
        _tell_unread_variables()
    settings = read() if place is None else place.settings
    _configure_logs(log_format, log_level)
    if place is None and file is None and not settings.servers:
        _tell_unread_file()
    # Who has a parent has its demo, if any.
    demo = place is None and (demo or not settings.servers)

    def on_ready(url: str) -> None:
        from .welcome import welcome

        try:
            print(welcome(settings, url, demo=demo), flush=True)
        except OSError:  # nobody reads it, and a gateway is there for others
            _drop_what_cannot_be_written()

    if place is None and settings.gateway.workers > 1:
        _supervise(settings, read, demo, insecure, on_ready)
        return
    from .loop import run as run_to_end
    from .process import serve as run_gateway

    told = on_ready if place is None else place.tell_listening
    again = read if place is None else partial(place.read, read)
    run_to_end(run_gateway(settings, read=again, demo=demo, insecure=insecure, on_ready=told, place=place))


@app.command(rich_help_panel=GATEWAY, epilog="Example: trunkline init --upstream files=http://127.0.0.1:9000/mcp")
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")] = Path(DEFAULT_FILE),
    upstream: Upstream = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a file that is there.", show_default=False)] = False,
    debug: Debug = False,
) -> None:
    """Write a settings file with every setting, its default and its meaning, and say what to run next."""
    from .beginning import begin

    print(begin(file, upstream or (), is_forced=force))


@app.command(rich_help_panel=GATEWAY, epilog="Example: trunkline check trunkline.toml --server files")
def check(
    file: File = None,
    server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Probe this server alone; may be repeated.",
            autocompletion=_complete_server,
        ),
    ] = None,
    insecure: Insecure = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Validate the settings, probe each server, and print a table. Exit 1 on any fault."""
    from .settings import load

    _tell_unread_variables()
    settings = load(file, environ=os.environ, insecure=insecure)
    from .check import run as run_check
    from .console import out

    _configure_logs("text", "error")
    if not run_check(settings, server or (), as_json=as_json, console=out()):
        raise typer.Exit(ExitCode.FAULT)


@app.command(rich_help_panel=LOOK, epilog="Example: trunkline sessions http://127.0.0.1:8920 --once")
def sessions(
    url: URL = DEFAULT_URL,
    token: AdminToken = None,
    once: Annotated[bool, typer.Option("--once", help="Print the table once.", show_default=False)] = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Show the workflows that a gateway holds; on a terminal, again each second."""
    from .sessions import show, source_of

    show(source_of(url, token), once=once, as_json=as_json)


@app.command(rich_help_panel=LOOK, epilog="Example: trunkline explain 2b26b1df")
def explain(
    handle: Annotated[
        str,
        typer.Argument(
            metavar="HANDLE",
            help="A workflow, as `trunkline sessions` names it; 4 characters may do.",
            autocompletion=_complete_handle,
        ),
    ],
    url: URL = DEFAULT_URL,
    token: AdminToken = None,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Tell why the last call of a workflow hit or missed, and what happened to it. Exit 1 if there is none."""
    from .explain import show
    from .sessions import source_of

    show(source_of(url, token), handle, as_json=as_json)


@app.command(
    rich_help_panel=USE,
    epilog='Example: trunkline call http://127.0.0.1:8920/servers/demo/mcp echo \'{"text": "hello"}\' --transport ws',
)
def call(
    url: Annotated[
        str,
        typer.Argument(
            metavar="URL", help="A server's URL, as `trunkline serve` prints it.", autocompletion=lambda: server_urls()
        ),
    ],
    tool: Annotated[str, typer.Argument(metavar="TOOL", help="The tool's name.")],
    arguments: Annotated[str, typer.Argument(metavar="JSON", help="The tool's arguments, as a JSON object.")] = "{}",
    transport: Annotated[
        str | None, typer.Option(help="http, sse or ws; else what the URL says.", show_default=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(metavar="'Name: value'", help="A header to send; may be repeated.")
    ] = None,
    workflow: Annotated[
        str | None, typer.Option(metavar="KEY", help="A key: calls that give it share a session.")
    ] = None,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Call one tool of a server, and print what it says. Exit 1 if there is no result."""
    from .call import read_call
    from .call import run as run_call
    from .console import out

    wanted = read_call(url, tool, arguments, kind=transport, headers=header or (), workflow=workflow)
    run_call(wanted, as_json=as_json, console=out())


@app.command(rich_help_panel=GATEWAY, epilog="Example: trunkline token alice --tenant acme")
def token(
    subject: Annotated[str, typer.Argument(metavar="SUBJECT", help="Whom the token stands for.")],
    tenant: Annotated[str, typer.Option(help="The subject's tenant.", show_default=False)] = "",
    admin: Annotated[
        bool, typer.Option("--admin", help="It also opens the operators' pages.", show_default=False)
    ] = False,
    as_json: AsJSON = False,
    debug: Debug = False,
) -> None:
    """Make a bearer token: it is printed once, and the settings hold only its hash."""
    from .console import out
    from .tokens import make, show

    show(make(subject, tenant, admin=admin), as_json=as_json, console=out())


@app.command(
    rich_help_panel=GATEWAY,
    context_settings={"ignore_unknown_options": True, "allow_extra_args": True},
    epilog="Example: trunkline contextforge -- --host 127.0.0.1 --port 4444",
)
def contextforge(context: typer.Context, debug: Debug = False) -> None:
    """Run IBM ContextForge with trunkline inside; what follows `--` are uvicorn's arguments."""
    from ..compat.contextforge.launch import main as launch

    raise typer.Exit(launch(context.args))


def _supervise(settings: "Settings", read: "Read", demo: bool, insecure: bool, on_ready: Callable[[str], None]) -> None:
    from .loop import run as run_to_end
    from .workers.supervisor import WorkersFailed, supervise, worker_command

    try:
        command = worker_command()
        run_to_end(supervise(settings, read=read, demo=demo, insecure=insecure, command=command, on_ready=on_ready))
    except WorkersFailed as error:
        if error.told is None:
            raise
        raise typer.Exit(error.told) from None


def _tell_unread_file() -> None:
    if Path(DEFAULT_FILE).is_file():
        sys.stderr.write(
            f"trunkline: the file {DEFAULT_FILE} that is here is not read; name it: serve {DEFAULT_FILE}\n"
        )


def _tell_unread_variables() -> None:
    from .settings import unread

    for name, meant in unread(os.environ).items():
        sys.stderr.write(f"trunkline: {name} is not read; it is {meant}, with two underscores\n")


def _configure_logs(log_format: str, log_level: str) -> None:
    from .logs import configure

    formats: dict[str, LogFormat] = {"text": "text", "json": "json"}
    if log_format not in formats:
        raise WrongArgument(f'--log-format: expected text or json, got "{log_format}"')
    if log_level.lower() not in ("debug", "info", "warning", "error"):
        raise WrongArgument(f'--log-level: expected debug, info, warning or error, got "{log_level}"')
    configure(formats[log_format], log_level)


if __name__ == "__main__":  # as earlier builds were run: people wrote it down, and a parent of then runs its workers so
    main()
