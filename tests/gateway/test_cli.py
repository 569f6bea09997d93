"""The program as it is run: what it prints, and how it ends."""

import hashlib
import json
import shlex
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from harness.gateways import command, environment, until
from harness.gateways import gateway as running_gateway
from harness.ports import bound_socket, free_port
from harness.processes import ServerProcess, http_status, wait_for_status
from harness.raw_http import Peer, serving
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio

PATIENCE = 30.0
"""Seconds after which a program that does not end fails the test."""


def run(*arguments: str, environ: Mapping[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    """Run the program to its end."""
    env = {**environment(), "COLUMNS": "400", **(environ or {})}
    ended = subprocess.run(command(*arguments), env=env, capture_output=True, text=True, timeout=PATIENCE)
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def refused(*arguments: str, environ: Mapping[str, str] | None = None) -> str:
    """Run the program with something wrong; the one line that it says."""
    ended = run(*arguments, environ=environ)
    assert ended.returncode == 2, ended
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line.removeprefix("trunkline: ")


@pytest.fixture(scope="module")
def upstream() -> Iterator[Upstream]:
    with running_upstream("sdk2") as server:
        yield server


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


@pytest.mark.parametrize("arguments", [(), ("--help",), ("serve", "--help"), ("check", "--help")])
def test_it_explains_itself(arguments: tuple[str, ...]) -> None:
    assert "Usage" in run(*arguments).stdout


@pytest.mark.parametrize("arguments", [("serve", "--nothing"), ("nothing",), ("serve", "--port", "x")])
def test_a_wrong_argument_exits_2(arguments: tuple[str, ...]) -> None:
    assert run(*arguments).returncode == 2


@pytest.mark.parametrize("upstream", ["up", "up=", "http://127.0.0.1:9000/mcp"])
def test_a_malformed_upstream_is_named(upstream: str) -> None:
    assert refused("serve", "--upstream", upstream) == f"--upstream: expected NAME=URL, got {upstream!r}"


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
    assert told == "gateway.port: expected `int`, got `str`"


@pytest.mark.parametrize("program", ["serve", "check"])
def test_a_wrong_setting_of_a_file_is_named(program: str, file: Callable[[str], str]) -> None:
    text = '[servers.up]\nurl = "http://h/"\nheaders = { Authorization = "Bearer ${NO_SUCH_TOKEN}" }\n'
    told = refused(program, file(text))
    assert told == "servers.up.headers.Authorization: the environment has no NO_SUCH_TOKEN"
    assert refused(program, "/no/such.toml") == "there is no file /no/such.toml"


@pytest.mark.parametrize("demo", [True, False])
def test_a_port_that_is_taken_is_named(demo: bool) -> None:
    with bound_socket() as taken:
        port = str(taken.getsockname()[1])
        arguments = ["--demo"] if demo else ["--upstream", "up=http://127.0.0.1:1/"]
        told = refused("serve", "--port", port, *arguments)
    assert told.startswith(f"gateway.port: cannot listen on 127.0.0.1:{port}: ")


# Serving.


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


async def test_without_arguments_it_is_the_demo_and_says_what_to_try() -> None:
    port = free_port()
    process = ServerProcess(command("serve", "--port", str(port)), env=environment())
    try:
        await anyio.to_thread.run_sync(wait_for_status, process, port, "/readyz")
        welcome = process.log()
        assert [text_of(await tried(welcome)) for _ in range(2)] == ["1", "2"]
        assert f"http://127.0.0.1:{port}/servers/demo/mcp" in welcome
    finally:
        process.kill()


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


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_it_ends_by_a_signal_in_order(number: signal.Signals) -> None:
    with running_gateway("--demo") as gateway:
        gateway.process.send_signal(number)
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0
        assert f"{number.name}: draining" in gateway.process.log()
        assert "Traceback" not in gateway.process.log()


async def test_a_second_signal_does_not_wait_for_calls(upstream: Upstream) -> None:
    upstream.reset()
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            await wire.call("hold", {"gate": "never"})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            await until(lambda: http_status(gateway.port, "/readyz") == 503)
            gateway.process.send_signal(signal.SIGTERM)
            await anyio.to_thread.run_sync(gateway.process.wait, 15)
            assert "Traceback" not in gateway.process.log()


# Checking.


def test_the_table_of_a_check_tells_what_each_server_is(upstream: Upstream, file: Callable[[str], str]) -> None:
    away = f"http://user:s3cret@127.0.0.1:{free_port()}/mcp?key=s3cret"
    text = f'[servers.here]\nurl = "{upstream.url}"\n[servers.away]\nurl = "{away}"\n'
    ended = run("check", file(text))
    assert ended.returncode == 1
    here = next(line for line in ended.stdout.splitlines() if " here " in line)
    gone = next(line for line in ended.stdout.splitlines() if " away " in line)
    assert " ok " in here
    assert upstream.url in here
    assert "2025-11-25" in here
    assert " ok " not in gone
    assert "s3cret" not in ended.stdout + ended.stderr


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


def test_a_token_is_made_and_only_its_hash_is_kept() -> None:
    done = run("token", "alice", "--tenant", 'a"c', "--admin")
    assert done.returncode == 0
    made, _, entry = done.stdout.partition("\n\n")
    auth = tomllib.loads(f"tokens = [{entry.splitlines()[1]}]")["tokens"][0]
    assert auth == {
        "sha256": hashlib.sha256(made.encode()).hexdigest(),
        "tenant": 'a"c',
        "subject": "alice",
        "admin": True,
    }
    assert run("token", "alice").stdout != done.stdout
