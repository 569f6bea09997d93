"""The program as it is run: upstreams that are away, the end of a process, wrong settings."""

import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio.to_thread
import pytest
from harness.duplex_clients import initialize
from harness.gateways import Gateway, command, environment, until
from harness.gateways import gateway as running_gateway
from harness.ports import free_port
from harness.processes import http_status
from harness.redis_server import redis_server
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio


async def until_draining(gateway: Gateway) -> int | None:
    """Wait until the gateway drains: 503 while the listener is open, None (nobody answers) when it is closed."""
    await until(lambda: http_status(gateway.port, "/readyz") != 200)
    return http_status(gateway.port, "/readyz")


async def test_an_upstream_that_is_away_at_start_is_a_status_and_is_used_once_it_is_there() -> None:
    port = free_port()
    with running_gateway(upstreams={"up": f"http://127.0.0.1:{port}/mcp"}) as gateway:
        assert http_status(gateway.port, "/healthz") == 200
        assert http_status(gateway.port, "/readyz") == 200
        async with Wire(gateway.url()) as wire:
            answer = await wire.post(initialize(1))
            message = await answer.response()
            assert answer.status == 200
            assert message["id"] == 1
            assert message["error"]["code"] == -31001
            assert "Mcp-Session-Id" not in answer.headers
            assert gateway.process.returncode is None

            with running_upstream("sdk2", port=port):
                await wire.open()
                assert text_of(await (await wire.call("counter")).response()) == "1"
                for n in range(2, 5):
                    assert text_of(await (await wire.call("counter")).response()) == str(n)


async def test_sigterm_lets_a_running_call_complete(upstream: Upstream, key: str) -> None:
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with Wire(gateway.url()) as wire, Wire(gateway.url()) as idle:
            await wire.open()
            await idle.open()
            standalone = await idle.get()
            answer = await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")

            gateway.process.send_signal(signal.SIGTERM)
            await until_draining(gateway)
            assert gateway.process.returncode is None

            upstream.open(key)
            assert text_of(await answer.response()) == f"{key} is open"
            # A stream that only listens does not hold the process up.
            async for _ in standalone.events():
                pass
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0

    # The upstream is told that its sessions are over.
    report = await upstream.saw("delete", 2)
    assert report["counts"]["initialize"] == 2
    assert "mark:cancelled" not in report["counts"]


async def test_sigterm_refuses_what_is_new(upstream: Upstream, key: str) -> None:
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            answer = await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            assert await until_draining(gateway) is not None
            async with Wire(gateway.url()) as newcomer:
                refused = await newcomer.post(initialize())
                assert refused.status == 503
                assert refused.headers["Retry-After"]
            later = await (await wire.call("counter", id=b"2")).response()
            assert later["error"]["code"] == -31002
            upstream.open(key)
            assert text_of(await answer.response()) == f"{key} is open"
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0
    assert upstream.counts()["initialize"] == 1


async def test_g8_where_nobody_else_is_connections_are_kept_while_calls_are_in_flight(
    upstream: Upstream, key: str
) -> None:
    """A client that is asked something answers in a request of its own; a balancer lets it make no connection."""
    with running_gateway(upstreams={"up": upstream.url}) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            answer = await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            assert await until_draining(gateway) is not None
            later = await wire.call("counter", id=b"2")
            assert (await later.response())["error"]["code"] == -31002
            assert "Connection" not in later.headers
            upstream.open(key)
            assert text_of(await answer.response()) == f"{key} is open"
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0


async def test_a_drain_ends_although_a_call_does_not(
    upstream: Upstream, key: str, settings_file: Callable[[str], Path]
) -> None:
    text = f'[gateway]\ndrain_timeout = 0.5\n[servers.up]\nurl = "{upstream.url}"\n'
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            gateway.process.send_signal(signal.SIGTERM)
            assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ('[gateway]\nport = "x"', "gateway.port"),
        ("[gateway]\nprot = 1", "gateway.prot"),
        ("[pooling]\nreuse = 'all'", "pooling.reuse"),
        ("[servers.up]\nurl = 'ftp://x'", "servers.up.url"),
        ("[auth]\nmode = 'tokens'\ntokens = [{ sha256 = 'x', tenant = 't', subject = 's' }]", "auth.tokens"),
        ("[gateway]\nhost = '0.0.0.0'", "gateway."),
        ("[gateway]\nworkers = 2", "gateway.workers"),
    ],
)
def test_a_wrong_setting_names_its_path_and_exits_2(settings_file: Callable[[str], Path], text: str, path: str) -> None:
    ended = subprocess.run(
        command("serve", str(settings_file(text))), env=environment(), capture_output=True, text=True, timeout=60
    )

    assert ended.returncode == 2
    assert path in ended.stderr
    assert "Traceback" not in ended.stderr


def test_check_tells_which_server_is_away(settings_file: Callable[[str], Path], upstream: Upstream) -> None:
    text = f'[servers.here]\nurl = "{upstream.url}"\n[servers.away]\nurl = "http://127.0.0.1:{free_port()}/mcp"\n'
    good = f'[servers.here]\nurl = "{upstream.url}"\n'

    def check(settings: str) -> subprocess.CompletedProcess[str]:
        arguments = command("check", str(settings_file(settings)))
        return subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60)

    fault = check(text)
    assert fault.returncode == 1
    assert "here" in fault.stdout
    assert "away" in fault.stdout
    assert check(good).returncode == 0


async def test_nobody_is_ready_while_the_directory_is_away(settings_file: Callable[[str], Path]) -> None:
    with redis_server() as redis:
        text = f'[directory]\nbackend = "redis"\nurl = "{redis.url}"\n'
        with running_gateway("--demo", toml=settings_file(text)) as gateway:
            assert http_status(gateway.port, "/readyz") == 200
            redis.stop()
            await until(lambda: http_status(gateway.port, "/readyz") == 503)
            assert http_status(gateway.port, "/healthz") == 200
            redis.start()
            await until(lambda: http_status(gateway.port, "/readyz") == 200)
