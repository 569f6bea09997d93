"""The servers of `stream_server` as a test holds them."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import anyio
import websockets

from harness.clients import peer
from harness.ports import bound_socket
from harness.processes import HARNESS_PARENT, ServerProcess, module_command, wait_for_status

Line = Literal["sdk1", "sdk2"]
PATIENCE = 10.0


def python_of(line: Line) -> str:
    """The interpreter that has this line of the SDK; skips or fails the test where there is none."""
    return str(peer("TRUNKLINE_SDK1_PYTHON")) if line == "sdk1" else sys.executable


def stdio_command(line: Line) -> tuple[list[str], dict[str, str]]:
    """The command of the server over stdio, and the environment that it needs."""
    return module_command("harness.stream_server", "stdio", python=python_of(line)), {"PYTHONPATH": str(HARNESS_PARENT)}


@contextlib.contextmanager
def sdk_over_sse(line: Line) -> Iterator[str]:
    """The URL of a server over HTTP+SSE."""
    with _serving("sse", line, str(HARNESS_PARENT)) as (_, port):
        yield f"http://127.0.0.1:{port}/sse"


@contextlib.contextmanager
def sdk_over_websocket() -> Iterator[tuple[str, ServerProcess]]:
    """The URL of a server of the 1.x line over WebSocket, and its process."""
    with TemporaryDirectory() as folder:
        # Its uvicorn needs the library; the copy beside the tests does as well as another.
        Path(folder, "websockets").symlink_to(Path(websockets.__file__).parent)
        with _serving("websocket", "sdk1", f"{HARNESS_PARENT}{os.pathsep}{folder}") as (process, port):
            yield f"ws://127.0.0.1:{port}/ws", process


@contextlib.contextmanager
def _serving(transport: str, line: Line, path: str) -> Iterator[tuple[ServerProcess, int]]:
    python = python_of(line)
    listener = bound_socket()
    port = listener.getsockname()[1]
    process = ServerProcess(
        module_command("harness.stream_server", transport, str(listener.fileno()), python=python),
        env={**os.environ, "PYTHONPATH": path},
        pass_fds=(listener.fileno(),),
    )
    listener.close()
    try:
        wait_for_status(process, port, "/health")
        yield process, port
    finally:
        process.kill()


async def until_gone(pid: int) -> None:
    """Wait until a process is gone, or waits for another than us to be reaped."""

    def is_there() -> bool:
        try:
            state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:
            return False
        return state != "Z" or int(parent) == os.getpid()

    with anyio.fail_after(PATIENCE):
        while is_there():  # noqa: ASYNC110 - no event tells of another's child
            await anyio.sleep(0.01)
