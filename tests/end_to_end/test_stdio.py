"""A server that is a process: killed in mid-call, it costs its own calls an error at once, and comes back."""

import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import aiohttp
import anyio
import anyio.to_thread
import pytest
from harness.counting_process import PROGRAM
from harness.gateways import gateway as running_gateway
from harness.gateways import until
from harness.stream_peers import until_gone
from harness.wire import Wire, text_of

pytestmark = pytest.mark.anyio


async def pid_in(path: Path) -> int:
    """The server's pid, once it has told it."""
    told: list[str] = []

    def read() -> bool:
        told[:] = [path.read_text()] if path.exists() else []
        return any(told)

    await until(read)
    return int(told[0])


def is_gone(pid: int) -> bool:
    """True where no process has this pid."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


@pytest.mark.parametrize("stateless", [False, True])
async def test_a_server_killed_in_mid_call_is_an_error_at_once_and_started_again(
    tmp_path: Path, settings_file: Callable[[str], Path], stateless: bool
) -> None:
    text = f"[servers.up]\ncommand = ['{sys.executable}', '{PROGRAM}']\nstateless = {str(stateless).lower()}\n"
    with running_gateway(toml=settings_file(text)) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            assert text_of(await (await wire.call("counter")).response()) == "1"
            told = tmp_path / "pid"
            pending = await wire.call("hang", {"told": str(told)}, id=b"7")
            pid = await pid_in(told)
            os.kill(pid, signal.SIGKILL)
            with anyio.fail_after(10):  # a call that nobody answers has five minutes
                answer = await pending.response()
            assert answer["id"] == 7
            assert (answer["error"]["code"], answer["error"]["data"]) == (-31002, {"executed": "unknown"})
            if not stateless:
                assert (await wire.call("counter")).status == 404
                del wire.headers["Mcp-Session-Id"]
                await wire.open()
            assert text_of(await (await wire.call("counter")).response()) == "1"
            await wire.delete()
    assert is_gone(pid)


HANGING = """
import signal, subprocess, sys, threading
signal.signal(signal.SIGTERM, signal.SIG_IGN)
program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE)
child.stdout.readline()
open(sys.argv[1], "w").write(str(child.pid))
threading.Event().wait()
"""
"""Reads nothing, obeys no signal, and has started another of its kind, as wrappers such as `npx` do."""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_server_that_hangs_ends_with_the_gateway_however_that_ends(
    tmp_path: Path, settings_file: Callable[[str], Path], number: signal.Signals
) -> None:
    program, told = tmp_path / "server.py", tmp_path / "pid"
    program.write_text(HANGING)
    text = f"[servers.up]\ncommand = ['{sys.executable}', '{program}', '{told}']\n"
    with running_gateway(toml=settings_file(text)) as gateway:
        async with anyio.create_task_group() as tasks:

            async def begin() -> None:
                with suppress(aiohttp.ClientError, AssertionError):  # the gateway ends meanwhile
                    async with Wire(gateway.url()) as wire:
                        await wire.open()

            tasks.start_soon(begin)
            child = await pid_in(told)
            server = os.getpgid(child)
            gateway.process.send_signal(number)
            await anyio.to_thread.run_sync(gateway.process.wait, 30)
        for pid in (server, child):
            await until_gone(pid)


async def test_each_workflow_has_a_process_of_its_own_and_none_is_left() -> None:
    with running_gateway("--upstream", f"up=stdio:{sys.executable} {PROGRAM}") as gateway:
        pids = []
        for n in range(3):
            async with Wire(gateway.url(), {"Trunkline-Workflow": f"chat-{n}"}) as wire:
                for expected in ("1", "2"):
                    assert text_of(await (await wire.call("counter")).response()) == expected
                pids.append(int(text_of(await (await wire.call("pid")).response())))
        assert len(set(pids)) == 3
        gateway.process.send_signal(signal.SIGTERM)
        assert await anyio.to_thread.run_sync(gateway.process.wait, 15) == 0
    assert all(is_gone(pid) for pid in pids)


async def test_a_server_gets_the_variables_of_its_settings_and_none_of_the_gateways_secrets(
    settings_file: Callable[[str], Path],
) -> None:
    command = f"command = [{sys.executable!r}, {str(PROGRAM)!r}]"
    toml = settings_file(f"[servers.up]\n{command}\nenv = {{ TOKEN = '${{SECRET}}' }}\n")
    with running_gateway(toml=toml, within=lambda line: ["env", "SECRET=s3cret", *line]) as gateway:
        async with Wire(gateway.url()) as wire:
            await wire.open()
            asked = [await (await wire.call("variable", {"name": name})).response() for name in ("TOKEN", "SECRET")]
        assert [text_of(answer) for answer in asked] == ["s3cret", "none"]
        assert "s3cret" not in gateway.process.log()
