"""A program whose standard streams were closed by whoever started it."""

import signal
import subprocess
from pathlib import Path

import pytest
from harness.gateways import command, environment
from harness.ports import free_port
from harness.processes import ServerProcess, wait_for_status

CLOSED = ("0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-")


def without(closed: str, *arguments: str) -> list[str]:
    """The program's command line, with some of its streams closed."""
    return ["sh", "-c", f'exec "$@" {closed}', "sh", *command(*arguments)]


@pytest.mark.parametrize("closed", CLOSED)
@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_gateway_serves_and_ends_in_order(tmp_path: Path, closed: str, workers: str) -> None:
    toml, port = tmp_path / "trunkline.toml", free_port()
    toml.write_text(f'[directory]\nbackend = "database"\nurl = "sqlite+aiosqlite:///{tmp_path}/x.db"\n')
    arguments = ("serve", str(toml), "--demo", "--workers", workers, "--port", str(port))
    process = ServerProcess(without(closed, *arguments), env=environment())
    try:
        wait_for_status(process, port, "/readyz")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, process.log()
        assert "Assertion" not in process.log()
    finally:
        process.kill()


@pytest.mark.parametrize("closed", CLOSED)
def test_a_command_does_what_it_is_told(closed: str) -> None:
    done = subprocess.run(without(closed, "--version"), capture_output=True, text=True, timeout=60, env=environment())
    assert (done.returncode, done.stderr) == (0, "")
    assert ("1>&-" in closed) != ("trunkline" in done.stdout)
