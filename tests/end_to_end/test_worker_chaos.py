"""Workers that are killed again and again under load: what is promised holds meanwhile (G6, G7)."""

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from harness.backends import Backends
from harness.crowd import Crowd
from harness.raw_upstreams import RawUpstream, Transport, light_upstream, raw_upstream
from harness.worker_gateways import WorkerGateway, worker_gateway

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WORKERS = 4
KILL_SECONDS = 2.0
OUTCOME_SECONDS = 3.0
"""Every call has an answer, or a connection that is closed, within so many seconds."""

OPENING_SECONDS = 2.0
"""Who loses a session to a kill has a new one, elsewhere, within so many seconds of the kill."""

CALLS_PER_SECOND = 400
"""At most, of all clients together: what is killed needs the cores as well, to start anew."""

HASTE = 4
"""How much longer both may be in the short run, which shares its machine with whatever else is tested."""


@pytest.fixture
def backends() -> Iterator[Backends]:
    """Servers of shared directories, with nothing in them."""
    with closing(Backends()) as started:
        yield started


@pytest.fixture
def server(tmp_path: Path, transport: Transport) -> Iterator[RawUpstream]:
    """A server that keeps what comes to it: over HTTP, or a process for each session."""
    record = tmp_path / transport
    record.mkdir()
    if transport == "stdio":
        yield light_upstream(record)
        return
    with raw_upstream(transport, record) as running:
        yield running


def settings_file(place: Path, directory: str, server: RawUpstream) -> Path:
    """Settings with that `[directory]`, and a server by the name of its transport."""
    path = place / "trunkline.toml"
    path.write_text(f'{directory}[gateway]\ndrain_timeout = 5\n{server.settings(server.transport)}eras = ["legacy"]\n')
    return path


async def kill_again_and_again(workers: WorkerGateway, crowd: Crowd, seconds: float, dice: random.Random) -> int:
    """Kill a worker every other second, or as soon as the one before has been replaced; how often."""
    kills, victim = 0, 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await anyio.sleep(KILL_SECONDS)
        await workers.complete(without=victim)
        victim = dice.choice(workers.pids())
        crowd.note_break()
        workers.end(victim, signal.SIGKILL)
        kills += 1
    return kills


LONG = pytest.mark.timeout(300)


@pytest.mark.parametrize(
    ("backend", "clients", "seconds"),
    [
        ("redis", 8, 8.0),
        ("sqlite", 8, 8.0),
        ("postgresql", 8, 8.0),
        pytest.param("redis", 32, 60.0, marks=LONG),
    ],
)
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g6_g7_workers_are_killed_again_and_again(
    tmp_path: Path,
    backends: Backends,
    server: RawUpstream,
    backend: str,
    clients: int,
    seconds: float,
    record_property: Callable[[str, object], None],
) -> None:
    seed = random.randrange(2**32)
    toml = settings_file(tmp_path, backends.settings(backend), server)
    with worker_gateway(toml, WORKERS) as workers:
        crowd = Crowd(server, workers.url(server.transport), pause=clients / CALLS_PER_SECOND)
        async with crowd.living(clients):
            kills = await kill_again_and_again(workers, crowd, seconds, random.Random(seed))
    for name, figure in {"seed": seed, "kills": kills, **crowd.figures()}.items():
        record_property(name, figure)
    crowd.check()
    haste = 1 if clients > 8 else HASTE
    assert crowd.slowest <= OUTCOME_SECONDS * haste
    assert crowd.slowest_opening <= OPENING_SECONDS * haste
    if server.transport == "http":
        assert crowd.lost == 0
        assert [len(server.received(name, "initialize")) for name in crowd.names] == [1] * clients
