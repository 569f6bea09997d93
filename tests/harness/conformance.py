"""The official conformance suite, run against an endpoint."""

import json
import re
import shlex
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import anyio

from harness.clients import node

PATIENCE = 180.0
REVISION = "2025-11-25"

_STAMP = re.compile(r"^(?:server-)?(.*)-\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d-\d{3}Z$")


@dataclass(frozen=True)
class Verdict:
    """What the suite found. `checks` maps `scenario/check` to its status; `printed` is for failure messages."""

    checks: dict[str, str]
    printed: str

    @property
    def scenarios(self) -> dict[str, bool]:
        """Whether each scenario passed: no check failed, and one succeeded."""
        found: dict[str, list[str]] = {}
        for check, status in self.checks.items():
            found.setdefault(check.partition("/")[0], []).append(status)
        return {scenario: "SUCCESS" in statuses and "FAILURE" not in statuses for scenario, statuses in found.items()}

    def having(self, status: str) -> set[str]:
        """The checks with that status (SUCCESS, FAILURE, WARNING, INFO), by their ids alone."""
        return {check.partition("/")[2].rpartition(".")[0] for check, found in self.checks.items() if found == status}

    @property
    def passed(self) -> int:
        """How many scenarios passed."""
        return sum(self.scenarios.values())


async def run(url: str, *, revision: str = REVISION) -> Verdict:
    """Run all scenarios of a revision against an MCP endpoint.

    Raises:
        AssertionError: the suite did not run.
        TimeoutError: it did not end within `PATIENCE` seconds.
    """
    return await _run("server", "--url", url, "--suite", "all", "--spec-version", revision)


async def run_client(scenario: str, *, revision: str = REVISION) -> Verdict:
    """Run one of the suite's scenarios for clients, on a gateway's upstream leg: see `conformance_client.py`.

    Raises:
        AssertionError: the suite did not run.
        TimeoutError: it did not end within `PATIENCE` seconds.
    """
    command = shlex.join([sys.executable, str(Path(__file__).with_name("conformance_client.py"))])
    return await _run("client", "--command", command, "--scenario", scenario, "--spec-version", revision)


async def _run(*arguments: str) -> Verdict:
    binary, modules = node()
    package = modules / "@modelcontextprotocol" / "conformance"
    program = package / json.loads((package / "package.json").read_text())["bin"]["conformance"]
    with tempfile.TemporaryDirectory() as folder, anyio.fail_after(PATIENCE):
        ended = await anyio.run_process(
            [str(binary), str(program), *arguments, "--output-dir", folder], check=False, stderr=subprocess.STDOUT
        )
        printed = ended.stdout.decode()
        checks = _read(Path(folder))
    assert checks, f"the conformance suite found nothing:\n{printed}"
    return Verdict(checks, printed)


def _read(folder: Path) -> dict[str, str]:
    checks: dict[str, str] = {}
    for file in sorted(folder.glob("*/checks.json")):
        named = _STAMP.match(file.parent.name)
        assert named, file.parent.name
        for n, check in enumerate(json.loads(file.read_text())):
            # A scenario may make the same check more than once.
            checks[f"{named[1]}/{check['id']}.{n}"] = check["status"]
    return checks
