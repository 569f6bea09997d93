"""Every directory that workers share keeps the whole contract, on real servers."""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import anyio
import pytest
from harness.backends import Backends
from harness.directory_processes import SMALL_BUFFER, DirectoryProcess, directory_process
from harness.shared_memory import SharedMemoryDirectory
from trunkline.mux.directory import SharedDirectory
from trunkline.mux.directory.timed import timed
from trunkline.mux.record import WorkflowRecord
from trunkline.mux.statistics import Statistics

from contract.directory import CHECKS, EXPIRY_CHECKS, SHARED_CHECKS, every_watcher_hears
from contract.logs import LOG_CHECKS, LOG_EXPIRY_CHECKS
from contract.publishing import PUBLISH_CHECKS
from contract.workers import WORKER_CHECKS

pytestmark = pytest.mark.anyio

Check = Callable[[SharedDirectory], Awaitable[None]]
MORE_CHECKS = (*SHARED_CHECKS, *LOG_CHECKS, *WORKER_CHECKS)
ALL_CHECKS = (*CHECKS, *EXPIRY_CHECKS, *LOG_EXPIRY_CHECKS, *PUBLISH_CHECKS, *MORE_CHECKS)
SERVED = ("redis", "cluster", "sentinel", "sqlite", "postgresql")


@asynccontextmanager
async def in_memory() -> AsyncIterator[SharedDirectory]:
    yield SharedMemoryDirectory()


@asynccontextmanager
async def timing() -> AsyncIterator[SharedDirectory]:
    yield timed(SharedMemoryDirectory(), Statistics())


@pytest.mark.parametrize("maker", [in_memory, timing], ids=lambda maker: maker.__name__)
@pytest.mark.parametrize("check", MORE_CHECKS, ids=lambda check: check.__name__)
async def test_the_one_in_memory_keeps_it(maker: Callable[[], object], check: Check) -> None:
    async with maker() as directory:  # type: ignore[attr-defined]
        with anyio.fail_after(20):
            await check(directory)


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", SERVED)
async def test_it_keeps_the_contract(backends: Backends, backend: str, check: Check) -> None:
    async with backends.empty(backend) as directory:
        with anyio.fail_after(20):
            await check(directory)


@pytest.fixture(autouse=True)
def small_buffers(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Databases and other processes need long for thousands of changes: their watchers fall behind sooner."""
    if any(word in request.node.name for word in ("sqlite", "postgresql", "processes")):
        for module in ("redis", "database_news"):
            monkeypatch.setattr(f"trunkline.mux.directory.{module}.WATCH_BUFFER", SMALL_BUFFER)
        monkeypatch.setattr("contract.directory.LATENESS", 100)


@pytest.fixture(scope="module")
def processes() -> Iterator[list[DirectoryProcess]]:
    """Other workers' processes."""
    with directory_process() as one, directory_process() as two:
        yield [one, two]


class SeveralProcesses:
    """Each call goes to the directory of another process."""

    def __init__(self, directories: list[SharedDirectory]) -> None:
        self._directories = directories

    def __getattr__(self, name: str) -> object:
        self._directories.append(self._directories.pop(0))
        return getattr(self._directories[0], name)


@pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("backend", ["redis", "sqlite", "postgresql"])
async def test_several_processes_keep_it_together(
    backends: Backends, processes: list[DirectoryProcess], backend: str, check: Check
) -> None:
    async with AsyncExitStack() as stack:
        first: SharedDirectory = await stack.enter_async_context(backends.empty(backend))
        place = backends.place(backend)
        others = [await stack.enter_async_context(one.opened(place.backend, place.url())) for one in processes]
        with anyio.fail_after(20):
            await check(SeveralProcesses([first, *others]))  # type: ignore[arg-type,list-item]


class Mute(SharedMemoryDirectory):
    """Tells watchers nothing of removals."""

    async def remove(self, record: WorkflowRecord) -> bool:
        with self.unheard():
            return await super().remove(record)


async def test_a_directory_that_tells_nothing_of_removals_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("contract.directory.PATIENCE", 1.0)
    with pytest.raises(TimeoutError):
        await every_watcher_hears(Mute())
