"""`trunkline serve` as it is run: what it says once it listens, that this works, and how it ends."""

import json
import re
import shlex
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
import pytest
from harness.gateways import MODULE, TOKENS, command, environment, token_settings, until
from harness.gateways import gateway as running_gateway
from harness.ports import LOOPBACK, free_port
from harness.processes import ServerProcess, http_status, wait_for_status
from harness.programs import in_a_shell
from harness.upstreams import Upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio


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
    host: str, gateway: str, auth: str, settings_file: Callable[[str], Path]
) -> None:
    toml = settings_file(f'[gateway]\nadmin_token = "{ADMIN}"\n{gateway}\n{auth}')
    with running_gateway("--demo", toml=toml, host=host) as running:
        call, curl, look = commands_in(running.process.log())
        first, second, looked = in_a_shell([call, curl, look], TOKEN=TOKENS["alice"], ADMIN_TOKEN=ADMIN)
        assert first == "1\n"
        assert text_of(json.loads(second)) == "2"
        assert "demo" in looked
        assert ADMIN not in running.process.log()


def test_it_serves_where_the_terminal_cannot_spell_all_that_it_says(settings_file: Callable[[str], Path]) -> None:
    toml = settings_file(f'[gateway]\nadmin_token = "{ADMIN}"\n{token_settings()}')
    with running_gateway("--demo", toml=toml, within=lambda line: ["env", "PYTHONIOENCODING=ascii", *line]) as running:
        assert "export TOKEN=?" in running.process.log()


def test_where_everybody_may_come_from_anywhere_it_names_no_session(settings_file: Callable[[str], Path]) -> None:
    toml = settings_file('[gateway]\nallowed_hosts = ["localhost"]\n')
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
    upstream: Upstream, settings_file: Callable[[str], Path]
) -> None:
    toml = settings_file(f'[servers.one]\nurl = "{upstream.url}"\n')
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
