"""`trunkline check` as it is run; and what a terminal is shown while somebody is asked."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import pytest
from harness.gateways import command, environment
from harness.ports import free_port
from harness.programs import documented, refused, run
from harness.raw_http import Peer, serving
from harness.terminal import on_terminal
from harness.upstreams import Upstream

pytestmark = pytest.mark.anyio


def test_the_table_of_a_check_tells_what_each_server_is(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    away = f"http://user:s3cret@127.0.0.1:{free_port()}/mcp?key=s3cret"
    text = f'[servers.here]\nurl = "{upstream.url}"\n[servers.away]\nurl = "{away}"\n'
    ended = run("check", settings_file(text))
    assert ended.returncode == 1
    here = next(line for line in ended.stdout.splitlines() if line.startswith("here "))
    gone = next(line for line in ended.stdout.splitlines() if line.startswith("away "))
    assert " ok " in here
    assert upstream.url in here
    assert "2025-11-25" in here
    assert " ok " not in gone
    assert ended.stdout.isascii(), "in a pipe there are no lines"
    rows = run("check", settings_file(text), "--json")
    assert rows.returncode == 1
    told = {row["server"]: row for row in json.loads(rows.stdout)}
    assert [told[name]["ok"] for name in ("here", "away")] == [True, False]
    assert documented("check --json") == told["here"].keys() == told["away"].keys()
    assert "s3cret" not in ended.stdout + ended.stderr + rows.stdout


def test_a_check_shows_what_a_command_wrote_before_it_failed(settings_file: Callable[[str], Path]) -> None:
    program = "import sys; sys.exit('no API_KEY')"
    text = f'[servers.up]\ncommand = ["{sys.executable}", "-c", "{program}"]\n'
    ended = run("check", settings_file(text))
    assert ended.stderr == "up wrote to its standard error:\n  no API_KEY\n"
    [row] = json.loads(run("check", settings_file(text), "--json").stdout)
    assert row["said"] == ["no API_KEY"]


def test_a_check_without_a_fault_exits_0(upstream: Upstream, settings_file: Callable[[str], Path]) -> None:
    assert run("check", settings_file(f'[servers.here]\nurl = "{upstream.url}"\n')).returncode == 0
    assert run("check", environ={"TRUNKLINE_SERVERS__HERE__URL": upstream.url}).returncode == 0


def test_a_check_of_no_server_is_refused() -> None:
    assert refused("check").startswith("servers: ")


@pytest.mark.parametrize("name", ["[/nonsense]", "[red]x", "\x1b[2J", "a\r\nb"])
async def test_what_a_server_says_of_itself_is_shown_as_text(name: str, settings_file: Callable[[str], Path]) -> None:
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
        ended = await anyio.to_thread.run_sync(run, "check", settings_file(f'[servers.up]\nurl = "{server.url}"\n'))
    assert ended.returncode == 0
    assert "".join(c if c.isprintable() else "\ufffd" for c in name) in ended.stdout
    assert "\x1b" not in ended.stdout


def test_one_server_of_many_can_be_checked_alone(upstream: Upstream, settings_file: Callable[[str], Path]) -> None:
    away = f"http://127.0.0.1:{free_port()}/mcp"
    toml = settings_file(f'[servers.here]\nurl = "{upstream.url}"\n[servers.away]\nurl = "{away}"\n')
    alone = run("check", toml, "--server", "here")
    assert alone.returncode == 0
    assert "away" not in alone.stdout
    assert refused("check", toml, "--server", "none") == "servers.none: there is none; there are: here, away"


def test_on_a_terminal_a_check_has_colours_unless_they_are_not_wanted(
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    toml = settings_file(f'[servers.here]\nurl = "{upstream.url}"\n')
    for variables, has_colours in (({}, True), ({"NO_COLOR": "1"}, False)):
        with on_terminal(command("check", str(toml)), environment(), **variables) as terminal:
            assert terminal.end() == 0
        assert "here" in terminal.text
        assert "\u2500" in terminal.text, "a line under the names of the columns"
        assert terminal.has_colours is has_colours


async def hang(peer: Peer) -> None:
    await anyio.sleep_forever()


async def test_a_check_that_takes_long_shows_how_far_it_is(settings_file: Callable[[str], Path]) -> None:
    def watch(url: str) -> None:
        with on_terminal(
            command("check", str(settings_file(f'[servers.up]\nurl = "{url}"\n'))), environment()
        ) as terminal:
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
