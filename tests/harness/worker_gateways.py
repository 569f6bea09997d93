"""A gateway of several worker processes, as a test holds it."""

import os
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from harness.gateways import Gateway, gateway, until
from harness.wire import Wire

ESTABLISHED = "01"
"""A connection's state, as /proc/net/tcp spells it."""


class WorkerGateway:
    """A running gateway of several workers."""

    def __init__(self, running: Gateway, count: int) -> None:
        self.running = running
        self._count = count

    def url(self, name: str = "up") -> str:
        """The Streamable HTTP endpoint of a server."""
        return self.running.url(name)

    def pids(self) -> list[int]:
        """The processes of its workers, oldest first."""
        parent = self.running.process.pid
        return sorted(map(int, Path(f"/proc/{parent}/task/{parent}/children").read_text().split()))

    def connections(self, pid: int) -> int:
        """How many connections of clients a worker has accepted and not closed."""
        accepted = set()
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == ESTABLISHED and int(local.partition(":")[2], 16) == self.running.port:
                accepted.add(f"socket:[{inode}]")
        return sum(link in accepted for link in _links(Path(f"/proc/{pid}/fd")))

    async def complete(self, without: int = 0) -> None:
        """Wait until all workers listen, and none of them is the process `without`."""

        def is_complete() -> bool:
            pids, log = self.pids(), self.running.process.output()
            return without not in pids and self._count == sum(f"a worker listens pid={pid}\n" in log for pid in pids)

        await until(is_complete, timeout=60)

    def end(self, pid: int, number: signal.Signals) -> None:
        """Send a signal to one worker."""
        assert pid in self.pids()
        os.kill(pid, number)

    async def open(self, name: str = "up") -> dict[str, str]:
        """Begin a session; the headers that go on with it, from any connection."""
        async with Wire(self.url(name)) as wire:
            await wire.open()
            return dict(wire.headers)

    async def call(
        self, session: Mapping[str, str], tool: str, arguments: Mapping[str, Any] | None = None, name: str = "up"
    ) -> dict[str, Any]:
        """The answer to one call, on a connection of its own."""
        async with Wire(self.url(name), session) as wire:
            answer = await wire.call(tool, arguments)
            assert answer.status == 200, (answer.status, await answer.body())
            return await answer.response()


@contextmanager
def worker_gateway(toml: Path, count: int, *arguments: str) -> Iterator[WorkerGateway]:
    """`trunkline serve --workers COUNT` with a settings file that names a directory."""
    with gateway("--workers", str(count), *arguments, toml=toml) as running:
        yield WorkerGateway(running, count)


def _links(descriptors: Path) -> Iterator[str]:
    """What the descriptors of a process stand for."""
    for descriptor in descriptors.iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield os.readlink(descriptor)
