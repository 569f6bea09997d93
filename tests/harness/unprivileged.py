"""Servers of Debian packages, run by the tests: as nobody where the tests run as root, in a directory of their own."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

USER = "nobody"


def as_nobody(command: list[str]) -> list[str]:
    """The command that runs without root's rights; PostgreSQL insists, redis does not need them."""
    if os.geteuid() != 0:
        return command
    return ["setpriv", f"--reuid={USER}", "--regid=nogroup", "--clear-groups", "--", *command]


@contextmanager
def own_directory() -> Iterator[Path]:
    """A directory that such a server may write; gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="trunkline-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(place, USER, "nogroup")
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def missing(program: str, package: str) -> NoReturn:
    """Skip the test that needs a program; where `TRUNKLINE_PEERS=required`, fail it."""
    reason = f"{program} is missing (Debian: apt-get install {package})"
    if os.environ.get("TRUNKLINE_PEERS") == "required":
        pytest.fail(reason)
    pytest.skip(reason)
