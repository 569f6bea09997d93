"""A real PostgreSQL, from Debian's package, as an unprivileged user on a port of its own.

with postgres_server() as server:
    ...  # server.url, of an empty database; server.clear() makes another
"""

import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.ports import free_port
from harness.processes import ServerProcess
from harness.redis_server import PATIENCE, wait_for
from harness.unprivileged import as_nobody, missing, own_directory

USER = "trunkline"
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=60", "shared_buffers=16MB")


def binaries() -> Path:
    """Where the newest PostgreSQL of this machine is; skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        missing("PostgreSQL's initdb", "postgresql")
    return found[-1].parent


class PostgresServer:
    """A running server."""

    def __init__(self, programs: Path, port: int) -> None:
        self.port = port
        self._programs = programs
        self._database = "postgres"

    @property
    def url(self) -> str:
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{self.port}/{self._database}"

    def clear(self) -> None:
        """Go on with a new database."""
        name = f"t{uuid.uuid4().hex}"
        self.say(f"CREATE DATABASE {name}")
        self._database = name

    def say(self, statement: str) -> str:
        """Run a statement in the first database."""
        program = str(self._programs / "psql")
        said = subprocess.run(
            [program, "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-AtXc", statement, "postgres"],
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        if said.returncode:
            raise AssertionError(said.stderr)
        return said.stdout


@contextmanager
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL, running, that trusts whoever connects on loopback and keeps nothing."""
    programs = binaries()
    with own_directory() as place:
        data = place / "data"
        made = subprocess.run(
            as_nobody([str(programs / "initdb"), "-D", str(data), "-U", USER, "-A", "trust", "-E", "UTF8", "-N"]),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=place,
        )
        if made.returncode:
            raise AssertionError(made.stdout + made.stderr)
        port = free_port()
        command = [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-h", "127.0.0.1", "-k", str(place)]
        for option in OPTIONS:
            command += "-c", option
        process = ServerProcess(as_nobody(command), cwd=place)
        server = PostgresServer(programs, port)
        ready = [str(programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(port), "-q"]
        try:
            wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, process)
            yield server
        finally:
            process.kill()
