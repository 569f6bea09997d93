"""ContextForge as it is, with the sessions that it keeps itself, before a server."""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.client import Target
from bench.peers.names import FORGE_NAME
from bench.processes import ROOT, cores

sys.path.append(str(ROOT / "tests"))

from harness.contextforge import contextforge, python_of, token

VERSION: Final = "1.0.7"
FORGE: Final = f"{FORGE_NAME} {VERSION}"
ABOUT: Final = "one worker, USE_STATEFUL_SESSIONS=true, plugins off, SQLite, log level ERROR"


def is_there() -> bool:
    """Whether it is installed; `make contextforge` does that."""
    return python_of(VERSION) is not None


@contextmanager
def forge(url: str, tool: str) -> Iterator[tuple[int, Target]]:
    """It, for the length of the context, on its own core: its pid, and where a tool of the server is called."""
    with tempfile.TemporaryDirectory() as folder, contextforge(VERSION, Path(folder), stock=True) as running:
        os.sched_setaffinity(running.process.pid, {cores().gateway})
        running.register("up", url)
        path = running.url("up", "http").removeprefix(running.base)
        yield running.process.pid, Target(running.port, path, token=token(VERSION), tool=f"up-{tool}", own_ids=True)
