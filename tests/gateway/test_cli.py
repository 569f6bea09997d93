"""The program as it is run: what it prints, and how it ends."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import pytest
import typer
from harness.gateways import MODULE, TOKENS, command, environment, token_settings, until
from harness.gateways import gateway as running_gateway
from harness.ports import LOOPBACK, bound_socket, free_port
from harness.processes import ServerProcess, http_status, wait_for_status
from harness.raw_http import Peer, serving
from harness.terminal import on_terminal
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from trunkline.gateway import cli
from trunkline.gateway.exits import DEBUG, MEANINGS

pytestmark = pytest.mark.anyio

COMMANDS = ("serve", "init", "check", "token", "contextforge", "sessions", "explain", "call")
PATIENCE = 60.0
"""Seconds after which a program that does not end fails the test."""


def run(*arguments: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the program to its end."""
    env = {**environment(), "COLUMNS": "400", **(environ or {})}
    ended = subprocess.run(command(*arguments), env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def refused(*arguments: str, environ: Mapping[str, str] | None = None, code: int = 2) -> str:
    """Run the program with something wrong; the one line that it says."""
    ended = run(*arguments, environ=environ)
    assert ended.returncode == code, ended
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line.removeprefix("trunkline: ")


@pytest.fixture
def file(tmp_path: Path) -> Callable[[str], str]:
    """Writes a settings file; its path."""

    def write(text: str) -> str:
        path = tmp_path / "trunkline.toml"
        path.write_text(text)
        return str(path)

    return write


def test_it_tells_its_version() -> None:
    ended = run("--version")
    assert (ended.returncode, ended.stdout) == (0, f"trunkline {version('trunkline')}\n")


def test_it_is_installed_as_a_command() -> None:
    program = shutil.which("trunkline", path=str(Path(command()[0]).parent))
    assert program is not None
    ended = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=PATIENCE)
    assert ended.stdout == f"trunkline {version('trunkline')}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",)])
def test_it_explains_itself_and_its_exit_codes(arguments: tuple[str, ...]) -> None:
    told = run(*arguments)
    assert (told.returncode, told.stderr) == (0, "")
    assert all(name in told.stdout for name in COMMANDS)
    for code, meaning in MEANINGS.items():
        assert f"{code} {meaning}" in told.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example_that_it_would_take(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert cli.run([name, "--help"]) == 0
    told = capsys.readouterr().out
    assert "Usage" in told
    [example] = re.findall(rf"Example: (trunkline {name} .*?) *\n", told)
    assert not isinstance(parsed(shlex.split(example)[1:]), Exception)


def parsed(arguments: list[str]) -> Exception | None:
    """What is wrong with arguments; a command that they would run is not run."""
    command = typer.main.get_command(cli.app).commands[arguments[0]]  # type: ignore[attr-defined]
    try:
        command.make_context(arguments[0], arguments[1:])
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("chek",), "no such command 'chek'. Did you mean 'check'? See `trunkline --help`"),
        (("serve", "--nothing"), "no such option: --nothing; see `trunkline serve --help`"),
        (("call",), "missing argument 'URL'; see `trunkline call --help`"),
    ],
)
def test_a_wrong_argument_is_one_line_that_says_where_to_look(arguments: tuple[str, ...], told: str) -> None:
    assert refused(*arguments) == told


@pytest.mark.parametrize(
    "arguments", [("check",), ("explain",), ("init", "--upstream"), ("call", "http://127.0.0.1:1/mcp")]
)
def test_an_argument_that_is_no_text_is_named(arguments: tuple[str, ...]) -> None:
    told = refused(*arguments, "a\udcff", environ={"LC_ALL": "C.UTF-8"})
    assert told == "'a\\udcff' is no text in the encoding that is set here, utf-8"


def test_where_a_failure_came_from_is_told_to_who_debugs_and_to_nobody_else() -> None:
    arguments = ("check", "/no/such.toml")
    line = refused(*arguments)
    for given, environ in (((*arguments, "--debug"), {}), (("--debug", *arguments), {}), (arguments, {DEBUG: "1"})):
        told = subprocess.run(
            command(*given), env=environment() | environ, capture_output=True, text=True, timeout=PATIENCE
        )
        assert told.returncode == 2
        assert "Traceback" in told.stderr
        assert told.stderr.endswith(f"\ntrunkline: {line}\n")


def test_who_reads_only_the_beginning_brings_about_no_traceback() -> None:
    with subprocess.Popen(
        command("--help"), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        program.stdout.close()
        assert program.stderr.read() == b""
        assert program.wait(PATIENCE) in (0, 1)


def test_output_that_cannot_be_written_is_no_fault_of_the_program() -> None:
    buffered = {name: value for name, value in environment().items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            command("--version"), env=buffered, stdout=full, stderr=subprocess.PIPE, text=True, timeout=PATIENCE
        )
    assert ended.returncode == 1
    assert ended.stderr == "trunkline: No space left on device; --debug shows what was tried\n"


@pytest.mark.parametrize("upstream", ["up", "up=", "http://127.0.0.1:9000/mcp"])
def test_a_malformed_upstream_is_named(upstream: str) -> None:
    says = "--upstream: expected NAME=URL, such as files=http://127.0.0.1:9000/mcp"
    assert refused("serve", "--upstream", upstream) == says


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        (("--upstream", "up=ftp://h/"), "servers.up.url"),
        (("--upstream", "a b=http://h/"), "servers.a b"),
        (("--port", "65536"), "gateway.port"),
        (("--workers", "2"), "gateway.workers"),
        (("--host", "0.0.0.0"), "gateway.allowed_hosts"),
        (("--host", "0.0.0.0", "--insecure"), "gateway.allowed_hosts"),
        (("--log-format", "xml"), "--log-format"),
        (("--log-level", "loud"), "--log-level"),
        (("--demo", "--upstream", "demo=http://127.0.0.1:1/"), "servers.demo"),
    ],
)
def test_a_wrong_setting_of_the_command_line_is_named(arguments: tuple[str, ...], path: str) -> None:
    assert refused("serve", *arguments).startswith(f"{path}: ")


def test_a_wrong_setting_of_the_environment_is_named() -> None:
    told = refused("serve", environ={"TRUNKLINE_GATEWAY__PORT": "x"})
    assert told == "gateway.port: expected whole number, 0 to 65535, got text (it comes from TRUNKLINE_GATEWAY__PORT)"


@pytest.mark.parametrize("program", ["serve", "check"])
def test_a_setting_of_the_environment_with_one_underscore_is_named(program: str, file: Callable[[str], str]) -> None:
    ended = subprocess.run(
        command(program, file("[gateway]\nport = -1\n")),  # so that it ends
        env={**environment(), "TRUNKLINE_POOLING_REUSE": "user"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = "trunkline: TRUNKLINE_POOLING_REUSE is not read; it is TRUNKLINE_POOLING__REUSE, with two underscores"
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, told)


@pytest.mark.parametrize("program", ["serve", "check"])
def test_a_wrong_setting_of_a_file_is_named(program: str, file: Callable[[str], str]) -> None:
    text = '[servers.up]\nurl = "http://h/"\nheaders = { Authorization = "Bearer ${NO_SUCH_TOKEN}" }\n'
    told = refused(program, file(text))
    path = "servers.up.headers.Authorization"
    assert told == f"{path}: the environment has no NO_SUCH_TOKEN; set it, or take ${{NO_SUCH_TOKEN}} out"
    told = refused(program, "/no/such.toml")
    assert told == "there is no file /no/such.toml; `trunkline init /no/such.toml` writes one"


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/mcp?key=s3cret", "stdio:uvx mcp-server-git"])
def test_a_url_in_place_of_a_file_is_told_where_it_goes(url: str) -> None:
    told = refused("serve", url, code=2)
    assert "--upstream NAME=URL" in told
    assert "s3cret" not in told


def test_a_file_that_cannot_be_read_is_named_with_the_reason(file: Callable[[str], str], tmp_path: Path) -> None:
    told = refused("check", file("[gateway]\nport 1"))
    assert re.fullmatch(r"/.*/trunkline\.toml is not TOML: .*\(at line 2, column \d+\)", told)
    told = refused("check", str(tmp_path))
    assert told == f"cannot read {tmp_path}: Is a directory; give a file that this user may read"
    (tmp_path / "latin.toml").write_bytes(b'[gateway]\nhost = "\xe4"')
    assert refused("check", str(tmp_path / "latin.toml")).endswith("it is not UTF-8; save it as UTF-8")


def test_a_file_for_a_gateway_that_lets_everybody_in_is_checked_as_it_is_served(file: Callable[[str], str]) -> None:
    text = '[gateway]\nhost = "0.0.0.0"\nallowed_hosts = ["h"]\n'
    assert "give --insecure if you mean it" in refused("check", file(text))
    told = refused("check", file(text), "--insecure")
    assert told == "servers: there is no server to check; name a file, and add [servers.NAME] with a url to it"


def test_a_file_of_another_user_is_named() -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    told = refused("check", "/etc/shadow")
    assert told == "cannot read /etc/shadow: Permission denied; give a file that this user may read"


@pytest.mark.parametrize("demo", [True, False])
def test_a_port_that_is_taken_is_named(demo: bool) -> None:
    with bound_socket() as taken:
        port = str(taken.getsockname()[1])
        arguments = ["--demo"] if demo else ["--upstream", "up=http://127.0.0.1:1/"]
        told = refused("serve", "--port", port, *arguments, code=3)
    way_out = "Address already in use; end what listens there, or choose another port (--port)"
    assert told == f"gateway.port: cannot listen on 127.0.0.1:{port}: {way_out}"


@pytest.mark.parametrize("is_there", [True, False])
def test_a_file_that_is_there_and_not_read_is_named(is_there: bool, tmp_path: Path) -> None:
    if is_there:
        (tmp_path / "trunkline.toml").touch()
    with bound_socket() as taken:  # so that it ends
        port = str(taken.getsockname()[1])
        ended = subprocess.run(
            command("serve", "--port", port),
            env=environment(),
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert ended.returncode == 3
    assert ("the file trunkline.toml that is here is not read" in ended.stderr) is is_there


def test_a_directory_that_is_away_is_named(file: Callable[[str], str]) -> None:
    port = free_port()
    text = f'[directory]\nbackend = "redis"\nurl = "redis://me:s3cret@127.0.0.1:{port}/0"\n'
    told = refused("serve", file(text), "--demo", "--port", str(free_port()), code=3)
    assert told.startswith("directory.url: redis ")
    assert told.endswith(f", at redis://127.0.0.1:{port}/0; start it there, or correct the URL")


def test_a_call_to_a_server_that_is_away_is_one_line() -> None:
    with running_gateway(upstreams={"up": f"http://127.0.0.1:{free_port()}/mcp"}) as gateway:
        told = refused("call", gateway.url(), "counter", code=1)
    assert "/servers/up/mcp answered: " in told
    assert "cannot be reached" in told


def test_a_wrong_admin_token_is_one_line(file: Callable[[str], str]) -> None:
    text = '[gateway]\nadmin_token = "the-admin-token"\n' + token_settings(up="http://127.0.0.1:1/mcp")
    with running_gateway(toml=Path(file(text))) as gateway:
        for arguments in (("sessions", gateway.base), ("explain", "2b26b1df", gateway.base)):
            told = refused(*arguments, "--token", "wrong", code=1)
            assert told == (
                f"{gateway.base} answered HTTP 401: send its admin token (gateway.admin_token): --token TOKEN"
            )


# Serving.


def in_a_shell(lines: list[str], **environ: str) -> list[str]:
    """What each of these commands prints, as people run them."""
    env = {**environment(), "no_proxy": "*", **environ}
    return [
        subprocess.run(line, shell=True, env=env, check=True, capture_output=True, text=True).stdout for line in lines
    ]


def commands_in(welcome: str) -> list[str]:
    """What the welcome says to try, and to look into it with, in its order."""
    told = welcome.replace("\\\n", "")
    return re.findall(r"^(?:  |Look into it: )(curl .*|.* call .*|.* sessions .*)$", told, re.MULTILINE)


async def tried(welcome: str) -> dict[str, Any]:
    """Do what the welcome says with curl; the answer."""
    _, _, line = welcome.replace("\\\n", "").partition("  curl -s ")
    url, *options = shlex.split(line.splitlines()[0])
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for option, value in given if option == "-H")
    [body] = [value for option, value in given if option == "-d"]
    async with Wire(url) as wire:
        answer = await wire.request("POST", body.encode(), headers)
        return await answer.response()


@pytest.mark.parametrize("own", [(), ("-u", "PYTHONUNBUFFERED")], ids=["at once", "buffered"])
async def test_a_gateway_serves_though_nobody_reads_what_it_says(own: tuple[str, ...]) -> None:
    def unread(command: Sequence[str]) -> list[str]:
        return ["env", *own, "sh", "-c", 'exec "$0" "$@" > /dev/full', *command]

    with running_gateway("--demo", within=unread) as gateway:
        async with Wire(gateway.url("demo")) as wire:
            await wire.open()
        gateway.process.send_signal(signal.SIGTERM)
        await until(lambda: gateway.process.returncode is not None)
        assert gateway.process.returncode == 0


async def test_without_arguments_it_is_the_demo_and_says_what_to_try() -> None:
    port = free_port()
    process = ServerProcess(command("serve", "--port", str(port)), env=environment())
    try:
        await anyio.to_thread.run_sync(wait_for_status, process, port, "/readyz")
        welcome = process.log()
        assert [text_of(await tried(welcome)) for _ in range(2)] == ["1", "2"]
        assert f"http://127.0.0.1:{port}/servers/demo/mcp" in welcome
        [call] = re.findall(r"^  (.* call .*)$", welcome, re.MULTILINE)
        assert await anyio.to_thread.run_sync(in_a_shell, [call, call]) == ["3\n", "4\n"]
        [look] = re.findall(r"^Look into it: (.*)$", welcome, re.MULTILINE)
        [looked] = await anyio.to_thread.run_sync(in_a_shell, [look])
        assert "demo" in looked
        pages = re.findall(r"(?:Status|Figures|Ready): (\S+)", welcome)
        assert [urlsplit(url).path for url in pages] == ["/", "/metrics", "/readyz"]
        for url in pages:
            assert await anyio.to_thread.run_sync(http_status, port, urlsplit(url).path) == 200
    finally:
        process.kill()


ADMIN = "the-admin-token"
PROXY = '[auth]\nmode = "proxy"\nsubject_header = "X-User"\n'


@pytest.mark.parametrize(
    ("host", "gateway", "auth"),
    [
        pytest.param(LOOPBACK, "", token_settings(), id="tokens"),
        pytest.param("0.0.0.0", 'allowed_hosts = ["localhost"]', token_settings(), id="tokens, beyond loopback"),
        pytest.param(LOOPBACK, 'trusted_proxies = ["127.0.0.1"]', PROXY, id="from the address of the proxy"),
    ],
)
def test_where_not_everybody_may_come_it_says_what_to_send(
    host: str, gateway: str, auth: str, file: Callable[[str], str]
) -> None:
    toml = Path(file(f'[gateway]\nadmin_token = "{ADMIN}"\n{gateway}\n{auth}'))
    with running_gateway("--demo", toml=toml, host=host) as running:
        call, curl, look = commands_in(running.process.log())
        first, second, looked = in_a_shell([call, curl, look], TOKEN=TOKENS["alice"], ADMIN_TOKEN=ADMIN)
        assert first == "1\n"
        assert text_of(json.loads(second)) == "2"
        assert "demo" in looked
        assert ADMIN not in running.process.log()


def test_it_serves_where_the_terminal_cannot_spell_all_that_it_says(file: Callable[[str], str]) -> None:
    toml = Path(file(f'[gateway]\nadmin_token = "{ADMIN}"\n{token_settings()}'))
    with running_gateway("--demo", toml=toml, within=lambda line: ["env", "PYTHONIOENCODING=ascii", *line]) as running:
        assert "export TOKEN=?" in running.process.log()


def test_where_everybody_may_come_from_anywhere_it_names_no_session(file: Callable[[str], str]) -> None:
    toml = Path(file('[gateway]\nallowed_hosts = ["localhost"]\n'))
    with running_gateway("--demo", "--insecure", toml=toml, host="0.0.0.0") as running:
        call, curl = commands_in(running.process.log())
        first, began = in_a_shell([call, curl])
        assert first == "1\n"
        assert "mcp-session-id: " in began.lower()
        assert "gateway.admin_token" in running.process.log()


async def test_where_no_session_is_offered_it_says_what_can_be_tried(upstream: Upstream) -> None:
    with running_gateway(upstreams={"up": upstream.url}, eras=("modern",)) as gateway:
        welcome = gateway.process.log()
        assert "no sessions" in welcome
        assert "twice" not in welcome
        assert "2026-07-28" in (await tried(welcome))["result"]["supportedVersions"]


async def test_it_serves_the_servers_of_the_file_the_command_line_and_the_demo(
    upstream: Upstream, file: Callable[[str], str]
) -> None:
    toml = Path(file(f'[servers.one]\nurl = "{upstream.url}"\n'))
    with running_gateway("--demo", toml=toml, upstreams={"two": upstream.url}) as gateway:
        welcome = gateway.process.log()
        for name in ("one", "two", "demo"):
            assert gateway.url(name) in welcome
            async with Wire(gateway.url(name)) as wire:
                await wire.open()
                assert text_of(await (await wire.call("counter")).response()) == "1"
        gateway.process.send_signal(signal.SIGHUP)
        await until(lambda: "reloaded: " in gateway.process.output())
        assert [row["server"] for row in gateway.fetch_json("/api/servers")] == ["one", "two", "demo"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_by_a_signal_in_order(number: signal.Signals) -> None:
    with running_gateway("--demo") as gateway:
        gateway.process.send_signal(number)
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0
        assert f"{number.name}: draining" in gateway.process.log()
        assert "Traceback" not in gateway.process.log()


@pytest.mark.parametrize("module", [MODULE, "harness.without_uvloop"])
async def test_a_second_signal_does_not_wait_for_calls(module: str, upstream: Upstream) -> None:
    with running_gateway(upstreams={"up": upstream.url}, module=module) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            await wire.call("hold", {"gate": "never"})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            await until(lambda: http_status(gateway.port, "/readyz") == 503)
            gateway.process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(gateway.process.wait, 15)
            assert "Traceback" not in gateway.process.log()
            assert "timeout graceful shutdown exceeded" not in gateway.process.log()


# Checking.


def test_the_table_of_a_check_tells_what_each_server_is(upstream: Upstream, file: Callable[[str], str]) -> None:
    away = f"http://user:s3cret@127.0.0.1:{free_port()}/mcp?key=s3cret"
    text = f'[servers.here]\nurl = "{upstream.url}"\n[servers.away]\nurl = "{away}"\n'
    ended = run("check", file(text))
    assert ended.returncode == 1
    here = next(line for line in ended.stdout.splitlines() if line.startswith("here "))
    gone = next(line for line in ended.stdout.splitlines() if line.startswith("away "))
    assert " ok " in here
    assert upstream.url in here
    assert "2025-11-25" in here
    assert " ok " not in gone
    assert ended.stdout.isascii(), "in a pipe there are no lines"
    rows = run("check", file(text), "--json")
    assert rows.returncode == 1
    told = {row["server"]: row for row in json.loads(rows.stdout)}
    assert [told[name]["ok"] for name in ("here", "away")] == [True, False]
    assert documented("check --json") == told["here"].keys() == told["away"].keys()
    assert "s3cret" not in ended.stdout + ended.stderr + rows.stdout


def test_a_check_shows_what_a_command_wrote_before_it_failed(file: Callable[[str], str]) -> None:
    program = "import sys; sys.exit('no API_KEY')"
    text = f'[servers.up]\ncommand = ["{sys.executable}", "-c", "{program}"]\n'
    ended = run("check", file(text))
    assert ended.stderr == "up wrote to its standard error:\n  no API_KEY\n"
    [row] = json.loads(run("check", file(text), "--json").stdout)
    assert row["said"] == ["no API_KEY"]


def test_a_check_without_a_fault_exits_0(upstream: Upstream, file: Callable[[str], str]) -> None:
    assert run("check", file(f'[servers.here]\nurl = "{upstream.url}"\n')).returncode == 0
    assert run("check", environ={"TRUNKLINE_SERVERS__HERE__URL": upstream.url}).returncode == 0


def test_a_check_of_no_server_is_refused() -> None:
    assert refused("check").startswith("servers: ")


@pytest.mark.parametrize("name", ["[/nonsense]", "[red]x", "\x1b[2J", "a\r\nb"])
async def test_what_a_server_says_of_itself_is_shown_as_text(name: str, file: Callable[[str], str]) -> None:
    async def serve(peer: Peer) -> None:
        while True:
            _, _, body = await peer.request()
            info = {"name": name, "version": "1"}
            result = {"protocolVersion": "2025-11-25", "capabilities": {}, "serverInfo": info}
            text = (
                json.dumps({"jsonrpc": "2.0", "id": 1, "result": result}).encode() if b'"initialize"' in body else b""
            )
            head = b"HTTP/1.1 %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
            await peer.say(head % (b"200 OK" if text else b"202 Accepted", len(text)) + text)

    async with serving(serve) as server:
        ended = await anyio.to_thread.run_sync(run, "check", file(f'[servers.up]\nurl = "{server.url}"\n'))
    assert ended.returncode == 0
    assert "".join(c if c.isprintable() else "\ufffd" for c in name) in ended.stdout
    assert "\x1b" not in ended.stdout


def test_one_server_of_many_can_be_checked_alone(upstream: Upstream, file: Callable[[str], str]) -> None:
    away = f"http://127.0.0.1:{free_port()}/mcp"
    toml = file(f'[servers.here]\nurl = "{upstream.url}"\n[servers.away]\nurl = "{away}"\n')
    alone = run("check", toml, "--server", "here")
    assert alone.returncode == 0
    assert "away" not in alone.stdout
    assert refused("check", toml, "--server", "none") == "servers.none: there is none; there are: here, away"


def test_on_a_terminal_a_check_has_colours_unless_they_are_not_wanted(
    upstream: Upstream, file: Callable[[str], str]
) -> None:
    toml = file(f'[servers.here]\nurl = "{upstream.url}"\n')
    for variables, has_colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        with on_terminal(command("check", toml), environment(), **variables) as terminal:
            assert terminal.end() == 0
        assert "here" in terminal.text
        assert "\u2500" in terminal.text, "a line under the names of the columns"
        assert terminal.has_colours is has_colours


async def hang(peer: Peer) -> None:
    await anyio.sleep_forever()


async def test_a_check_that_takes_long_shows_how_far_it_is(file: Callable[[str], str]) -> None:
    def watch(url: str) -> None:
        with on_terminal(command("check", file(f'[servers.up]\nurl = "{url}"\n')), environment()) as terminal:
            terminal.read_until("servers are asked")
            terminal.read_until("0/1")

    async with serving(hang) as server:
        await anyio.to_thread.run_sync(watch, server.url)


@pytest.mark.parametrize("asking", [("sessions",), ("sessions", "--once"), ("explain", "2b26b1df")])
async def test_a_gateway_that_takes_long_to_answer_is_said_to_be_asked(asking: tuple[str, ...]) -> None:
    def watch(url: str) -> None:
        base = url.removesuffix("/mcp")
        with on_terminal(command(*asking, base), environment()) as terminal:
            terminal.read_until(f"{base} is asked")
            assert terminal.end() == 1
            assert f"nobody answers at {base}" in terminal.text

    async with serving(hang) as server:
        await anyio.to_thread.run_sync(watch, server.url)


# Beginning.


def test_the_file_of_init_is_taken_as_it_is(tmp_path: Path, upstream: Upstream) -> None:
    path = str(tmp_path / "new.toml")
    begun = run("init", path, "--upstream", f"up={upstream.url}")
    assert (begun.returncode, begun.stderr) == (0, "")
    check, _ = re.findall(r"^  (.*)$", begun.stdout, re.MULTILINE)
    assert "ok" in in_a_shell([check])[0]
    assert "--force" in refused("init", path)
    assert run("init", path, "--force").returncode == 0
    assert refused("check", path) == (
        "servers: there is no server to check; name a file, and add [servers.NAME] with a url to it"
    )


def test_a_token_is_made_as_text_and_as_json() -> None:
    done = run("token", "alice", "--tenant", "acme", "--admin")
    assert done.returncode == 0
    assert 'subject = "alice", admin = true }' in done.stdout
    made = json.loads(run("token", "alice", "--json").stdout)
    assert made["token"] not in done.stdout
    assert documented("token --json") == made.keys()


def test_it_is_run_by_the_name_of_its_module_as_well() -> None:
    """Earlier builds told people to: it did nothing, and said that all was well."""
    ended = subprocess.run(command("--version", module="trunkline.gateway.cli"), capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"trunkline {version('trunkline')}\n")


# Completing.


def in_bash(script: str, home: Path) -> str:
    """What bash prints, where `trunkline` is this program."""
    program = home / "bin" / "trunkline"
    if not program.exists():
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m trunkline.gateway "$@"\n')
        program.chmod(0o755)
    env = {**environment(), "HOME": str(home), "PATH": f"{program.parent}:{os.environ['PATH']}"}
    ended = subprocess.run(
        ["bash", "-c", script], env=env, cwd=home, capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    assert ended.stderr == ""
    return ended.stdout


@pytest.mark.skipif(not shutil.which("bash"), reason="bash is missing")
def test_bash_completes_commands_options_and_servers_of_the_file(tmp_path: Path) -> None:
    in_bash("trunkline --install-completion; :", tmp_path)
    assert "_trunkline_completion" in in_bash("trunkline --show-completion; :", tmp_path)
    (tmp_path / "trunkline.toml").write_text('[servers.files]\nurl = "http://h/"\n[servers.git]\nurl = "http://h/"\n')
    (tmp_path / "mine.toml").write_text('[servers.other]\nurl = "http://h/"\n')

    def completed(*words: str) -> set[str]:
        line = " ".join(f"'{word}'" for word in words)
        script = f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _trunkline_completion trunkline; "
        found = in_bash(f'. ~/.bashrc; {script} printf "%s\\n" "${{COMPREPLY[@]}}"', tmp_path)
        return set(found.split())

    assert completed("trunkline", "ex") == {"explain"}
    assert completed("trunkline", "check", "--js") == {"--json"}
    assert completed("trunkline", "check", "--server", "") == {"files", "git"}
    assert completed("trunkline", "check", "mine.toml", "--server", "o") == {"other"}
    assert completed("trunkline", "call", "http") == {
        "http://127.0.0.1:8920/servers/files/mcp",
        "http://127.0.0.1:8920/servers/git/mcp",
    }


def documented(command: str) -> set[str]:
    """The fields that the documents name for the JSON of a command."""
    page = Path(__file__).parents[2] / "docs" / "cli.md"
    [row] = [line for line in page.read_text().splitlines() if line.startswith(f"| `{command}`")]
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))
