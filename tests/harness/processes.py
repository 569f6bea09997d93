"""Server processes of the tests: started in a group of their own, waited for with a bound, ended by their id.

Everything here is synchronous, so that fixtures of any scope can use it beside any event loop.
"""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from harness.ports import LOOPBACK

HARNESS_PARENT = Path(__file__).resolve().parent.parent
"""What has to be on the path of a process that runs `-m harness.…`."""

LOG_TAIL_BYTES = 6000


class ProcessFailed(AssertionError):
    """A server process ended, or did not come up in time; the message carries the end of its log."""


class ServerProcess:
    """A child process in its own group, with its output kept for failure messages."""

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
        cwd: Path | None = None,
    ) -> None:
        self.command = list(command)
        self._log: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process is
        self._process = subprocess.Popen(
            self.command,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**(os.environ if env is None else env), "PYTHONUNBUFFERED": "1"},
            pass_fds=pass_fds,
            cwd=cwd,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """The exit status, or None while the process runs."""
        return self._process.poll()

    def log(self) -> str:
        """The end of what the process printed."""
        self._log.flush()
        size = os.fstat(self._log.fileno()).st_size
        start = max(0, size - LOG_TAIL_BYTES)
        return os.pread(self._log.fileno(), LOG_TAIL_BYTES, start).decode(errors="replace")

    def output(self) -> str:
        """All that the process printed."""
        self._log.flush()
        return os.pread(self._log.fileno(), os.fstat(self._log.fileno()).st_size, 0).decode(errors="replace")

    def rss_bytes(self) -> int:
        """Resident memory of the process, without its children."""
        for line in Path(f"/proc/{self.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) * 1024
        raise ProcessFailed(f"process {self.pid} has no resident memory; its log:\n{self.log()}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to the process alone, not to its group."""
        self._process.send_signal(number)

    def wait(self, timeout: float) -> int:
        """The exit status.

        Raises:
            ProcessFailed: the process still runs after `timeout` seconds.
        """
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise ProcessFailed(f"{self.command} still runs after {timeout} s; its log:\n{self.log()}") from None

    def kill(self) -> None:
        """End the process and whatever it started, at once. Does nothing to a process that was ended before."""
        # The group keeps the leader's id until the leader is reaped, so a reused id cannot be hit.
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._log.close()

    def fail(self, why: str) -> ProcessFailed:
        """An error that shows the log."""
        return ProcessFailed(f"{why}: {' '.join(self.command)}\n--- its log ---\n{self.log()}")


def http_status(port: int, path: str, *, timeout: float = 5, host: str = LOOPBACK) -> int | None:
    """The status that a GET of `path` gets, or None where nobody answers."""
    connection = http.client.HTTPConnection(host, port, timeout=timeout)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def wait_for_status(
    process: ServerProcess, port: int, path: str, *, status: int = 200, timeout: float = 60, host: str = LOOPBACK
) -> None:
    """Return once a GET of `path` gets `status`.

    The process binds the port itself, so there is nothing to wait on but another attempt.

    Raises:
        ProcessFailed: it ended before, or `timeout` seconds went by.
    """
    deadline = time.monotonic() + timeout
    seen: int | None = None
    while time.monotonic() < deadline:
        if process.returncode is not None:
            raise process.fail(f"ended with {process.returncode} before {path} gave {status}")
        seen = http_status(port, path, timeout=max(0.1, deadline - time.monotonic()), host=host)
        if seen == status:
            return
        time.sleep(0.02)
    raise process.fail(f"{path} gave {seen}, not {status}, for {timeout} s")


def module_command(module: str, *arguments: str, python: str = sys.executable) -> list[str]:
    """The command that runs a module of the harness."""
    return [python, "-m", module, *arguments]


@contextlib.contextmanager
def served_on(
    listener: socket.socket, module: str, *arguments: str, python: str = sys.executable, path: str = "/__recorder"
) -> Iterator[ServerProcess]:
    """A harness module that serves on `listener`, ready when this is entered and gone when it is left."""
    host, port = listener.getsockname()
    process = ServerProcess(
        module_command(module, "--fd", str(listener.fileno()), *arguments, python=python),
        env={**os.environ, "PYTHONPATH": str(HARNESS_PARENT)},
        pass_fds=(listener.fileno(),),
    )
    # Only the child holds the socket from here on: when it dies, connecting is refused instead of hanging.
    listener.close()
    try:
        wait_for_status(process, port, path, host=host)
        yield process
    finally:
        process.kill()
