"""The program, run to its end as people run it: what it prints, and how it ends."""

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

from harness.gateways import command, environment

PATIENCE = 60.0
"""Seconds after which a program that does not end fails the test."""

Ended = subprocess.CompletedProcess[str]
_PAGE = Path(__file__).parents[2] / "docs" / "cli.md"


def run(*arguments: str | Path, environ: Mapping[str, str] | None = None) -> Ended:
    """Run the program to its end."""
    env = {**environment(), "COLUMNS": "400", **(environ or {})}
    ended = subprocess.run(
        command(*map(str, arguments)), env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert "Traceback" not in ended.stderr, ended.stderr
    return ended


def refused(*arguments: str | Path, environ: Mapping[str, str] | None = None, code: int = 2) -> str:
    """Run the program with something wrong; the one line that it says."""
    ended = run(*arguments, environ=environ)
    assert ended.returncode == code, ended
    assert ended.stdout == ""
    [line] = ended.stderr.splitlines()
    return line.removeprefix("trunkline: ")


def in_a_shell(lines: list[str], **environ: str) -> list[str]:
    """What each of these commands prints, as people run them."""
    env = {**environment(), "no_proxy": "*", **environ}
    return [
        subprocess.run(line, shell=True, env=env, check=True, capture_output=True, text=True).stdout for line in lines
    ]


def documented(command: str) -> set[str]:
    """The fields that the documents name for the JSON of a command."""
    [row] = [line for line in _PAGE.read_text().splitlines() if line.startswith(f"| `{command}`")]
    return set(re.findall(r"`(\w+)`", row.split("|")[2]))
