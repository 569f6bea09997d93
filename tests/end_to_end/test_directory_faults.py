"""A directory that is slow, away, cut off or locked under load: what is promised holds meanwhile (G5 to G7)."""

import random
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from harness.crowd import Crowd, arrived, told_of
from harness.cutter import Cutter
from harness.delay import Delay
from harness.gateways import Gateway, gateway
from harness.postgres import PostgresServer, postgres_server
from harness.raw_upstreams import RawUpstream, Transport, raw_upstream
from harness.redis_server import RedisServer, redis_server, redis_with_replica
from harness.unprivileged import own_directory
from harness.wire import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

SLOW_SECONDS = 0.2
AWAY_SECONDS = 10.0
FAULT_SECONDS = 8.0
CALLERS, FOLLOWERS = 6, 3
RETURN_SECONDS = 30.0
"""A bound for the directory to be used again after it has come back."""

OUTCOME_SECONDS = 6.0
"""Every call has its outcome within so many seconds, whatever the directory does: an operation ends after 2.5 s, and a
call that moves needs a few of them."""

LOCKED_SECONDS = 3.0
"""The same where who reads is served at once: a call waits for one operation at most."""

Break = Callable[[], Awaitable[None]]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def server(tmp_path: Path, transport: Transport) -> Iterator[RawUpstream]:
    """A server that keeps what comes to it: over HTTP, or a process for each session."""
    record = tmp_path / transport
    record.mkdir()
    with raw_upstream(transport, record) as running:
        yield running


def settings_file(place: Path, backend: str, url: str, *servers: RawUpstream) -> Path:
    """Settings that name a directory and these servers, each by its transport."""
    parts = [f'[directory]\nbackend = "{backend}"\nurl = "{url}"\n[gateway]\ndrain_timeout = 5\n']
    parts += [f'{server.settings(server.transport)}eras = ["legacy"]\n' for server in servers]
    path = place / "trunkline.toml"
    path.write_text("".join(parts))
    return path


@asynccontextmanager
async def two_gateways(toml: Path) -> AsyncIterator[tuple[Gateway, Gateway]]:
    """With one directory, which may be relayed in this loop: they are started beside it."""
    async with AsyncExitStack() as stack:
        started = []
        for _ in range(2):
            host = gateway("--log-level", "error", toml=toml)
            started.append(await anyio.to_thread.run_sync(stack.enter_context, host))
        yield started[0], started[1]


# What may happen to a store: by which port it is reached, and what breaks and mends it.


@asynccontextmanager
async def slow(store: RedisServer | PostgresServer) -> AsyncIterator[tuple[int, Break]]:
    async with Delay(store.port) as delay:

        async def act() -> None:
            delay.down = SLOW_SECONDS
            await anyio.sleep(FAULT_SECONDS)
            delay.down = 0.0

        yield delay.port, act


@asynccontextmanager
async def restarted(store: RedisServer | PostgresServer) -> AsyncIterator[tuple[int, Break]]:
    async def act() -> None:
        for _ in range(3):
            await anyio.to_thread.run_sync(store.restart)
            await anyio.sleep(FAULT_SECONDS / 3)

    yield store.port, act


@asynccontextmanager
async def stopped(store: RedisServer | PostgresServer) -> AsyncIterator[tuple[int, Break]]:
    async def act() -> None:
        await anyio.to_thread.run_sync(store.stop)
        await anyio.sleep(AWAY_SECONDS)
        await anyio.to_thread.run_sync(store.start)

    yield store.port, act


@asynccontextmanager
async def terminated(store: RedisServer | PostgresServer) -> AsyncIterator[tuple[int, Break]]:
    """An operator ends each of its connections, again and again, whatever goes on there."""
    assert isinstance(store, PostgresServer)
    everybody = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"

    async def act() -> None:
        ends = time.monotonic() + FAULT_SECONDS
        while time.monotonic() < ends:
            await anyio.to_thread.run_sync(store.say, f"SELECT pg_terminate_backend(pid) {everybody}")
            await anyio.sleep(random.uniform(0.2, 0.6))

    yield store.port, act


@asynccontextmanager
async def mute(store: RedisServer | PostgresServer) -> AsyncIterator[tuple[int, Break]]:
    async def act() -> None:
        store.pause()
        await anyio.sleep(AWAY_SECONDS)
        store.resume()

    yield store.port, act


@asynccontextmanager
async def cut(store: RedisServer | PostgresServer) -> AsyncIterator[tuple[int, Break]]:
    async with Cutter(store.port) as cutter:

        async def act() -> None:
            ends = time.monotonic() + FAULT_SECONDS
            while time.monotonic() < ends:
                for connection in cutter.connections:
                    if not connection.is_cut:
                        connection.limit(up=random.randint(1, 2000), down=random.randint(1, 2000))
                await anyio.sleep(random.uniform(0.2, 0.6))
            for connection in cutter.connections:
                connection.limit()

        yield cutter.port, act


async def suffer(
    toml: Path,
    server: RawUpstream,
    act: Break,
    record_property: Callable[[str, object], None],
    *,
    hits_one: bool = False,
    within: float = OUTCOME_SECONDS,
) -> None:
    """A crowd at two gateways, while something happens to their directory; what must hold in any case.

    What `hits_one` of them may leave it without a lease while the other has one, and then its processes are lost.
    """
    async with two_gateways(toml) as both:
        crowd = Crowd(server, *(one.url(server.transport) for one in both))
        async with crowd.living(CALLERS, FOLLOWERS):
            await act()
    for name, figure in crowd.figures().items():
        record_property(name, figure)
    crowd.check()
    assert crowd.resumed
    assert crowd.given_up == 0
    assert crowd.slowest <= within
    if server.transport == "http" or not hits_one:
        assert crowd.lost == 0
        assert [len(server.received(name, "initialize")) for name in crowd.names] == [1] * len(crowd.names)


@pytest.mark.parametrize("fault", [slow, restarted, stopped, mute, cut], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g5_g6_g7_hold_whatever_happens_to_redis(
    tmp_path: Path,
    redis: RedisServer,
    server: RawUpstream,
    fault: Callable[..., Any],
    record_property: Callable[[str, object], None],
) -> None:
    async with fault(redis) as (port, act):
        toml = settings_file(tmp_path, "redis", redis.url_at(port), server)
        await suffer(toml, server, act, record_property, hits_one=fault in (slow, cut))


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g5_g6_g7_hold_while_a_redis_restarts_that_keeps_nothing(
    tmp_path: Path, server: RawUpstream, record_property: Callable[[str, object], None]
) -> None:
    with redis_server("--appendonly", "no") as redis:
        async with restarted(redis) as (port, act):
            toml = settings_file(tmp_path, "redis", redis.url_at(port), server)
            await suffer(toml, server, act, record_property)


@pytest.mark.parametrize("how", ["killed", "mute"])
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g5_g6_g7_hold_while_a_replica_takes_the_place_of_redis(
    tmp_path: Path, server: RawUpstream, how: str, record_property: Callable[[str, object], None]
) -> None:
    with redis_with_replica() as (url, first, replica):

        async def act() -> None:
            first.kill() if how == "killed" else first.pause()
            with anyio.fail_after(RETURN_SECONDS):
                while replica.command("ROLE")[0] != b"master":  # noqa: ASYNC110 - nobody tells of it
                    await anyio.sleep(0.1)
            await anyio.sleep(FAULT_SECONDS / 2)
            if how == "mute":
                first.resume()  # it is what it was, until the sentinel tells it otherwise
                await anyio.sleep(FAULT_SECONDS / 2)

        await suffer(settings_file(tmp_path, "redis", url, server), server, act, record_property)


@pytest.mark.parametrize("fault", [slow, restarted, stopped, mute, cut, terminated], ids=lambda fault: fault.__name__)
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g5_g6_g7_hold_whatever_happens_to_a_postgresql(
    tmp_path: Path, server: RawUpstream, fault: Callable[..., Any], record_property: Callable[[str, object], None]
) -> None:
    with postgres_server() as postgres:
        postgres.clear()
        async with fault(postgres) as (port, act):
            toml = settings_file(tmp_path, "database", postgres.url_at(port), server)
            await suffer(toml, server, act, record_property, hits_one=fault in (slow, cut))


@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g5_g6_g7_hold_while_somebody_else_locks_the_sqlite_file(
    tmp_path: Path, server: RawUpstream, record_property: Callable[[str, object], None]
) -> None:
    with own_directory() as place:

        async def act() -> None:
            with sqlite3.connect(place / "x.db", isolation_level=None) as other:
                for _ in range(3):
                    other.execute("BEGIN IMMEDIATE")
                    await anyio.sleep(FAULT_SECONDS / 3)
                    other.execute("ROLLBACK")
                    await anyio.sleep(0.5)
            other.close()

        toml = settings_file(tmp_path, "database", f"sqlite+aiosqlite:///{place}/x.db", server)
        # Whoever reads goes on, and sees one worker's last heartbeat grow old before the other's.
        await suffer(toml, server, act, record_property, hits_one=True, within=LOCKED_SECONDS)


# What is told meanwhile, step by step.


async def until_answered(wire: Wire, n: int) -> None:
    """Call until it is answered; a call is repeated only where it surely was not executed."""
    with anyio.fail_after(RETURN_SECONDS):
        while True:
            answer = await wire.call("numbered", {"n": n}, id=b"%d" % n)
            if answer.status == 200:
                told = told_of(await answer.response())
                if told == "result":
                    return
                assert told.endswith(" no"), told
            else:
                assert answer.status == 503
            await anyio.sleep(0.05)


async def until_refused(base: Gateway, name: str) -> dict[str, Any]:
    """Begin sessions until one is refused; what is told then."""
    with anyio.fail_after(RETURN_SECONDS):
        while True:
            async with Wire(base.url("http")) as wire:
                params = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": name}}
                answer = await wire.post({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": params})
                told: dict[str, Any] = await answer.response()
                if answer.status == 503:
                    return told


async def until_opened(wire: Wire, name: str) -> None:
    """Begin a session as soon as that is possible."""
    with anyio.fail_after(RETURN_SECONDS):
        while True:
            try:
                await wire.open("2025-06-18", name=name)
            except AssertionError:
                await anyio.sleep(0.05)
            else:
                return


@pytest.fixture
def http(tmp_path: Path) -> Iterator[RawUpstream]:
    record = tmp_path / "http"
    record.mkdir()
    with raw_upstream("http", record) as running:
        yield running


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RawUpstream]:
    record = tmp_path / "process"
    record.mkdir()
    with raw_upstream("stdio", record) as running:
        yield running


@pytest.mark.parametrize("how", ["stopped", "restarted"])
async def test_g7_what_is_known_goes_on_while_redis_is_away(
    tmp_path: Path, redis: RedisServer, http: RawUpstream, process: RawUpstream, how: str
) -> None:
    toml = settings_file(tmp_path, "redis", redis.url, http, process)
    async with AsyncExitStack() as stack:
        first, second = await stack.enter_async_context(two_gateways(toml))
        known = await stack.enter_async_context(Wire(first.url("http")))
        owned = await stack.enter_async_context(Wire(first.url("stdio")))
        await known.open("2025-06-18", name="known")
        await owned.open("2025-06-18", name="owned")
        await until_answered(known, 1)
        await until_answered(owned, 1)
        if how == "stopped":
            redis.pause()
        else:
            redis.stop()
        refused = await until_refused(first, "new")
        assert refused["error"]["data"]["limit"] == "directory"
        await until_answered(known, 2)
        if how == "stopped":
            redis.resume()
        else:
            redis.start()
        await until_answered(owned, 2)
        async with Wire(second.url("http"), known.headers) as fresh, Wire(second.url("http")) as new:
            await until_answered(fresh, 3)
            await until_opened(new, "newer")
            await until_answered(new, 1)
    assert arrived(http, "known") == [1, 2, 3]
    assert arrived(process, "owned") == [1, 2]
    assert len(http.received("known", "initialize")) == 1


async def test_g7_what_redis_lost_is_told_to_it_again(tmp_path: Path, redis: RedisServer, http: RawUpstream) -> None:
    toml = settings_file(tmp_path, "redis", redis.url, http)
    async with AsyncExitStack() as stack:
        first, second = await stack.enter_async_context(two_gateways(toml))
        names = ("before", "after")
        wires = {name: await stack.enter_async_context(Wire(first.url("http"))) for name in names}
        for name in names:
            await wires[name].open("2025-06-18", name=name)
            await until_answered(wires[name], 1)
            if name == "before":
                redis.copy(tmp_path / "copy")
        redis.go_back(tmp_path / "copy")
        with anyio.fail_after(RETURN_SECONDS):
            while len(redis.command("KEYS", "*:record")) < len(names):  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(0.02)
        for name in names:
            async with Wire(second.url("http"), wires[name].headers) as elsewhere:
                await until_answered(elsewhere, 2)
        first.process.kill()
        for name in names:
            async with Wire(second.url("http"), wires[name].headers) as elsewhere:
                await until_answered(elsewhere, 3)
                (await elsewhere.get()).cut()
    assert [arrived(http, name) for name in names] == [[1, 2, 3]] * 2
    assert [len(http.received(name, "initialize")) for name in names] == [1, 1]


async def test_g7_a_connection_to_redis_that_is_cut_in_the_middle_costs_no_session(
    tmp_path: Path, redis: RedisServer, http: RawUpstream
) -> None:
    async with Cutter(redis.port) as cutter, AsyncExitStack() as stack:
        toml = settings_file(tmp_path, "redis", redis.url_at(cutter.port), http)
        first, second = await stack.enter_async_context(two_gateways(toml))
        wire = await stack.enter_async_context(Wire(first.url("http")))
        await until_opened(wire, "cut")
        fresh = await stack.enter_async_context(Wire(second.url("http"), wire.headers))
        for n in range(1, 21):
            for connection in cutter.connections:
                if not connection.is_cut:
                    connection.limit(up=n * 7, down=n * 5)
            await until_answered(fresh if n % 2 else wire, n)
            async with Wire(first.url("http")) as new:
                await until_opened(new, f"new-{n}")
                await until_answered(new, 1)
    assert arrived(http, "cut") == list(range(1, 21))
    assert len(http.received("cut", "initialize")) == 1
