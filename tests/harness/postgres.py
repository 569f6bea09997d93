"""A real PostgreSQL, from Debian's package, as an unprivileged user on a port of its own.

with postgres_server() as server:
    ...  # server.url, of an empty database; server.clear() makes another; server.restart()
"""

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from harness.ports import free_port
from harness.processes import ServerProcess
from harness.redis_server import PATIENCE, wait_for
from harness.unprivileged import as_nobody, missing, own_directory

USER = "trunkline"
FIRST = "postgres"
"""The database that is there from the beginning."""
OPTIONS = ("fsync=off", "synchronous_commit=off", "full_page_writes=off", "max_connections=60", "shared_buffers=16MB")


def binaries() -> Path:
    """Where the newest PostgreSQL of this machine is; skips the test where there is none."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        missing("PostgreSQL's initdb", "postgresql")
    return found[-1].parent


class PostgresServer:
    """One PostgreSQL on a port of its own. `start` it first."""

    def __init__(self, programs: Path, place: Path) -> None:
        self.port = free_port()
        self._programs = programs
        self._place = place
        self._database = FIRST
        self._process: ServerProcess | None = None

    @property
    def url(self) -> str:
        """Where it is, and the newest database of it."""
        return self.url_at(self.port)

    def url_at(self, port: int) -> str:
        """The same, reached by another port."""
        return f"postgresql+asyncpg://{USER}@127.0.0.1:{port}/{self._database}"

    def clear(self) -> None:
        """Go on with a new database. The one before is dropped: hundreds of them took minutes to remove in the end."""
        before, self._database = self._database, f"t{uuid.uuid4().hex}"
        self.say(f"CREATE DATABASE {self._database}")
        if before != FIRST:
            self.say(f"DROP DATABASE {before} WITH (FORCE)")

    def start(self) -> None:
        """Start it, and return when it answers."""
        command = [str(self._programs / "postgres"), "-D", str(self._place / "data"), "-p", str(self.port)]
        command += ["-h", "127.0.0.1", "-k", str(self._place)]
        for option in OPTIONS:
            command += "-c", option
        self._process = ServerProcess(as_nobody(command), cwd=self._place)
        ready = [str(self._programs / "pg_isready"), "-h", "127.0.0.1", "-p", str(self.port), "-q"]
        wait_for(lambda: subprocess.run(ready, check=False).returncode == 0, self._process)

    def stop(self) -> None:
        """SIGINT: it ends every connection, writes what it has, and ends."""
        assert self._process is not None, "it was not started"
        self._process.send_signal(signal.SIGINT)
        self._process.wait(PATIENCE)
        self._process.kill()

    def pause(self) -> None:
        """SIGSTOP: connections stay, nobody answers."""
        self._tell(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._tell(signal.SIGCONT)

    def _tell(self, number: signal.Signals) -> None:
        """Send a signal to its first process, and to those that serve connections."""
        assert self._process is not None, "it was not started"
        first = self._process.pid
        children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
        for pid in (first, *map(int, children)):
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def restart(self) -> None:
        """Stop and start it, on the same port with the same data."""
        self.stop()
        self.start()

    def close(self) -> None:
        """End it, if it runs."""
        if self._process is not None:
            self._process.kill()

    def say(self, statement: str) -> str:
        """Run a statement in the first database."""
        program = str(self._programs / "psql")
        said = subprocess.run(
            [program, "-h", "127.0.0.1", "-p", str(self.port), "-U", USER, "-AtXc", statement, FIRST],
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
    """A PostgreSQL, running, that trusts whoever connects on loopback."""
    programs = binaries()
    with own_directory() as place:
        made = subprocess.run(
            as_nobody(
                [str(programs / "initdb"), "-D", str(place / "data"), "-U", USER, "-A", "trust", "-E", "UTF8", "-N"]
            ),
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd=place,
        )
        if made.returncode:
            raise AssertionError(made.stdout + made.stderr)
        server = PostgresServer(programs, place)
        try:
            server.start()
            yield server
        finally:
            server.close()
