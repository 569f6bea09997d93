"""What is told to a program that starts waits until it can be done."""

import os
import re
import signal
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from harness.gateways import command, environment, until
from harness.ports import free_port
from harness.processes import ServerProcess, wait_for_status
from harness.terminal import on_terminal
from trunkline.gateway.signals import HELD, received

pytestmark = pytest.mark.anyio


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    """Settings that several workers can have."""
    path = tmp_path / "trunkline.toml"
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    path.write_text(f'[directory]\nbackend = "database"\nurl = "{url}"\n[servers.up]\nurl = "http://127.0.0.1:1/"\n')
    return path


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory for temporary files, whose path is short enough for sockets."""
    with tempfile.TemporaryDirectory(prefix="t-") as made:
        yield Path(made)


@contextmanager
def starting(toml: Path, port: int, workers: int, place: Path) -> Iterator[ServerProcess]:
    """A gateway right after its start, whose temporary files are there."""
    arguments = command("serve", str(toml), "--port", str(port), "--workers", str(workers))
    process = ServerProcess(arguments, env={**environment(), "TMPDIR": str(place)})
    try:
        yield process
    finally:
        process.kill()


def holds(process: ServerProcess, number: signal.Signals) -> bool:
    """Whether a signal would wait."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    blocked = re.search(r"SigBlk:\s*([0-9a-f]+)", status)
    return blocked is not None and bool(int(blocked[1], 16) >> (number - 1) & 1)


async def test_a_reload_while_it_is_imported_does_not_end_it(place: Path) -> None:
    """What takes long of that is held here: the package of the command line."""
    (place / "typer.py").write_text(f"import time\nopen({str(place / 'reached')!r}, 'w')\ntime.sleep(600)\n")
    arguments = command("serve", "--port", str(free_port()), module="trunkline.gateway")
    process = ServerProcess(arguments, env={**environment(), "PYTHONPATH": str(place)})
    try:
        await until((place / "reached").exists)
        assert all(holds(process, number) for number in HELD)
    finally:
        process.kill()


async def test_commands_that_end_by_themselves_end_by_a_signal(place: Path) -> None:
    (place / "typer.py").write_text(f"import time\nopen({str(place / 'reached')!r}, 'w')\ntime.sleep(600)\n")
    arguments = command("--debug", "call", "serve", module="trunkline.gateway")
    process = ServerProcess(arguments, env={**environment(), "PYTHONPATH": str(place)})
    try:
        await until((place / "reached").exists)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM
    finally:
        process.kill()


HELD_UP = {
    "an import": ("typer.py", "hold()"),
    "what nobody can catch": ("typer.py", "class Freed:\n    def __del__(self): hold()\n\nFreed()"),
    "an end": ("sitecustomize.py", "import atexit\natexit.register(hold)"),
    "a thread at its end": ("sitecustomize.py", "import threading\nthreading.Thread(target=hold).start()"),
}
HOLD = "import sys, time\n\ndef hold():\n    print('reached', file=sys.stderr, flush=True)\n    time.sleep(600)\n\n"


@pytest.mark.parametrize("held_up", HELD_UP)
def test_ctrl_c_ends_a_command_at_any_time_and_nothing_is_told_of_it(held_up: str, place: Path) -> None:
    name, text = HELD_UP[held_up]
    (place / name).write_text(HOLD + text)
    arguments = command("--version", module="trunkline.gateway")
    with on_terminal(arguments, environment(), PYTHONPATH=str(place)) as terminal:
        terminal.read_until("reached" if name == "typer.py" else "trunkline 0")
        terminal.read_until("reached")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text


@pytest.mark.parametrize("kind", ["http", "sse", "ws"])
def test_a_call_that_has_failed_waits_for_no_name_server(kind: str, place: Path) -> None:
    haste = "from trunkline.gateway import call\nfrom trunkline.transports import client\n"
    haste += "call.CONNECT_SECONDS = client.CONNECT_SECONDS = 0.1\n"
    (place / "sitecustomize.py").write_text(
        f"{HOLD}{haste}import socket\nsocket.getaddrinfo = lambda *_, **__: hold()\n"
    )
    arguments = command("call", "http://mcp.example/mcp", "tool", "--transport", kind, module="trunkline.gateway")
    with on_terminal(arguments, environment(), PYTHONPATH=str(place)) as terminal:
        assert terminal.end() == 1
        assert "reached" in terminal.text


ASKING = {
    **{kind: ("call", "http://mcp.example/mcp", "tool", "--transport", kind) for kind in ("http", "sse", "ws")},
    "check": ("check", "x.toml"),
    "sessions": ("sessions", "http://mcp.example"),
    "explain": ("explain", "abcd", "http://mcp.example"),
}
DEAF = """
def deaf(*_, **__):  # as the system's own is: whatever signals come, it goes on
    while True:
        try:
            hold()
        except KeyboardInterrupt:
            pass

import socket
socket.getaddrinfo = deaf
"""


@pytest.mark.parametrize("kind", ASKING)
def test_ctrl_c_waits_for_no_name_server(kind: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    (place / "sitecustomize.py").write_text(HOLD + DEAF)
    (place / "x.toml").write_text('[servers.x]\nurl = "http://mcp.example/mcp"\n')
    arguments = command(*ASKING[kind], module="trunkline.gateway")
    with on_terminal(arguments, environment(), PYTHONPATH=str(place)) as terminal:
        terminal.read_until("reached")
        terminal.interrupt()
        assert terminal.end() == 130
        assert "Traceback" not in terminal.text


@pytest.mark.parametrize("workers", [1, 2])
async def test_a_reload_before_it_listens_is_done_once_it_does(toml: Path, place: Path, workers: int) -> None:
    port = free_port()
    with starting(toml, port, workers, place) as process:
        await until(lambda: holds(process, signal.SIGHUP))
        process.send_signal(signal.SIGHUP)
        wait_for_status(process, port, "/readyz")
        await until(lambda: "reloaded: 1 unchanged" in process.output())
        await until(lambda: not holds(process, signal.SIGHUP))  # so it is while the next worker is started


@pytest.mark.parametrize("workers", [1, 2])
async def test_one_that_is_told_to_end_before_it_listens_ends_in_order(toml: Path, place: Path, workers: int) -> None:
    with starting(toml, free_port(), workers, place) as process:
        await until(lambda: holds(process, signal.SIGTERM))
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert os.listdir(place) == []


@pytest.mark.parametrize("workers", [1, 2])
def test_one_that_is_told_again_and_again_ends_in_order(toml: Path, place: Path, workers: int) -> None:
    port = free_port()
    with starting(toml, port, workers, place) as process:
        wait_for_status(process, port, "/readyz")
        deadline = time.monotonic() + 60
        while process.returncode is None:
            assert time.monotonic() < deadline, process.log()
            process.send_signal(signal.SIGTERM)
        assert process.returncode == 0, process.log()
        assert [path.name for path in place.glob("trunkline-*")] == []


async def test_afterwards_all_is_as_it_was_before() -> None:
    numbers = (*HELD, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with received() as signals:
        assert [signal.getsignal(number) for number in numbers] != before
        for number in numbers:
            os.kill(os.getpid(), number)
        assert {await anext(signals) for _ in numbers} == set(numbers)
    assert [signal.getsignal(number) for number in numbers] == before
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & set(HELD)
