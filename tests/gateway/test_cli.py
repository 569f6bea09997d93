"""The program as it is run: what it prints, and how it ends."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import typer
from harness.gateways import command, environment, token_settings
from harness.gateways import gateway as running_gateway
from harness.ports import bound_socket, free_port
from harness.programs import PATIENCE, documented, in_a_shell, refused, run
from harness.upstreams import Upstream
from trunkline.gateway import cli
from trunkline.gateway.exits import DEBUG, MEANINGS

COMMANDS = ("serve", "init", "check", "token", "contextforge", "sessions", "explain", "call")


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
def test_a_setting_of_the_environment_with_one_underscore_is_named(
    program: str, settings_file: Callable[[str], Path]
) -> None:
    ended = subprocess.run(
        command(program, str(settings_file("[gateway]\nport = -1\n"))),  # so that it ends
        env={**environment(), "TRUNKLINE_POOLING_REUSE": "user"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    told = "trunkline: TRUNKLINE_POOLING_REUSE is not read; it is TRUNKLINE_POOLING__REUSE, with two underscores"
    assert (ended.returncode, ended.stderr.splitlines()[0]) == (2, told)


@pytest.mark.parametrize("program", ["serve", "check"])
def test_a_wrong_setting_of_a_file_is_named(program: str, settings_file: Callable[[str], Path]) -> None:
    text = '[servers.up]\nurl = "http://h/"\nheaders = { Authorization = "Bearer ${NO_SUCH_TOKEN}" }\n'
    told = refused(program, settings_file(text))
    path = "servers.up.headers.Authorization"
    assert told == f"{path}: the environment has no NO_SUCH_TOKEN; set it, or take ${{NO_SUCH_TOKEN}} out"
    told = refused(program, "/no/such.toml")
    assert told == "there is no file /no/such.toml; `trunkline init /no/such.toml` writes one"


def test_without_contextforge_it_says_where_to_install_trunkline() -> None:
    told = refused("contextforge", code=2)
    assert told.endswith("is not installed in this environment; install trunkline into the one that holds it")


@pytest.mark.parametrize("url", ["http://127.0.0.1:9000/mcp?key=s3cret", "stdio:uvx mcp-server-git"])
def test_a_url_in_place_of_a_file_is_told_where_it_goes(url: str) -> None:
    told = refused("serve", url, code=2)
    assert "--upstream NAME=URL" in told
    assert "s3cret" not in told


def test_a_file_that_cannot_be_read_is_named_with_the_reason(
    settings_file: Callable[[str], Path], tmp_path: Path
) -> None:
    told = refused("check", settings_file("[gateway]\nport 1"))
    assert re.fullmatch(r"/.*/trunkline\.toml is not TOML: .*\(at line 2, column \d+\)", told)
    told = refused("check", tmp_path)
    assert told == f"cannot read {tmp_path}: Is a directory; give a file that this user may read"
    (tmp_path / "latin.toml").write_bytes(b'[gateway]\nhost = "\xe4"')
    assert refused("check", tmp_path / "latin.toml").endswith("it is not UTF-8; save it as UTF-8")


def test_a_file_for_a_gateway_that_lets_everybody_in_is_checked_as_it_is_served(
    settings_file: Callable[[str], Path],
) -> None:
    text = '[gateway]\nhost = "0.0.0.0"\nallowed_hosts = ["h"]\n'
    assert "give --insecure if you mean it" in refused("check", settings_file(text))
    told = refused("check", settings_file(text), "--insecure")
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


def test_a_directory_that_is_away_is_named(settings_file: Callable[[str], Path]) -> None:
    port = free_port()
    text = f'[directory]\nbackend = "redis"\nurl = "redis://me:s3cret@127.0.0.1:{port}/0"\n'
    told = refused("serve", settings_file(text), "--demo", "--port", str(free_port()), code=3)
    assert told.startswith("directory.url: redis ")
    assert told.endswith(f", at redis://127.0.0.1:{port}/0; start it there, or correct the URL")


def test_a_call_to_a_server_that_is_away_is_one_line() -> None:
    with running_gateway(upstreams={"up": f"http://127.0.0.1:{free_port()}/mcp"}) as gateway:
        told = refused("call", gateway.url(), "counter", code=1)
    assert "/servers/up/mcp answered: " in told
    assert "cannot be reached" in told


def test_a_wrong_admin_token_is_one_line(settings_file: Callable[[str], Path]) -> None:
    text = '[gateway]\nadmin_token = "the-admin-token"\n' + token_settings(up="http://127.0.0.1:1/mcp")
    with running_gateway(toml=settings_file(text)) as gateway:
        for arguments in (("sessions", gateway.base), ("explain", "2b26b1df", gateway.base)):
            told = refused(*arguments, "--token", "wrong", code=1)
            assert told == (
                f"{gateway.base} answered HTTP 401: send its admin token (gateway.admin_token): --token TOKEN"
            )


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
