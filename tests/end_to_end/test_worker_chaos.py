"""Workers that are killed again and again, and a directory that fails: what is promised holds meanwhile (G5 to G7)."""

import json
import random
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from aiohttp import ClientError
from harness.cutter import Cutter
from harness.gateways import Gateway, gateway
from harness.raw_upstreams import RawUpstream, raw_upstream
from harness.redis_server import RedisServer, redis_server
from harness.wire import Wire
from harness.worker_gateways import WorkerGateway, worker_gateway

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

WORKERS = 4
KILL_SECONDS = 2.0
OUTCOME_SECONDS = 3.0
"""Every call has an answer, or a connection that is closed, within so many seconds."""

HASTE = 4
"""How much longer it may be in the short run, which shares its machine with whatever else is tested."""

PAUSE_SECONDS = 0.02
"""What a client lets pass between two calls, so that workers that are started get something of the processor."""

RETURN_SECONDS = 30.0
"""A bound for the directory to be used again after it has come back."""


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def http(tmp_path: Path) -> Iterator[RawUpstream]:
    """A server over HTTP that keeps what comes to it."""
    record = tmp_path / "http"
    record.mkdir()
    with raw_upstream("http", record) as server:
        yield server


@pytest.fixture
def process(tmp_path: Path) -> Iterator[RawUpstream]:
    """The same, as a process for each session."""
    record = tmp_path / "process"
    record.mkdir()
    with raw_upstream("stdio", record) as server:
        yield server


def settings_file(place: Path, url: str, *servers: RawUpstream) -> Path:
    """Settings that name a redis and these servers, each by its transport."""
    parts = [f'[directory]\nbackend = "redis"\nurl = "{url}"\n[gateway]\ndrain_timeout = 5\n']
    parts += [f'{server.settings(server.transport)}eras = ["legacy"]\n' for server in servers]
    path = place / "trunkline.toml"
    path.write_text("".join(parts))
    return path


def arrived(server: RawUpstream, client: str) -> list[int]:
    """The numbers of the calls that came to the server."""
    return [json.loads(text)["params"]["arguments"]["n"] for text in server.received(client, "tools/call")]


class Clients:
    """Clients that reconnect and go on; each call has a number of its own and is sent once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._numbers = count(1)
        self.outcomes: dict[int, str] = {}
        self.slowest = 0.0
        self.lost = 0
        """Sessions that were unknown when their clients came back."""
        self.are_killed = True

    async def live(self, name: str) -> None:
        """One client, until nobody is killed any longer, and then until a call is answered."""
        is_answered = False
        async with Wire(self._url, {"Connection": "close"}) as wire:
            await self._open(wire, name)
            while self.are_killed or not is_answered:
                outcome = await self._call(wire)
                is_answered = outcome == "result"
                await anyio.sleep(PAUSE_SECONDS)
                if outcome == "404":
                    self.lost += 1
                    await self._open(wire, name)

    async def _open(self, wire: Wire, name: str) -> None:
        wire.headers = {"Connection": "close"}
        while True:
            try:
                await wire.open("2025-06-18", name=name)
            except (AssertionError, ClientError):
                await anyio.sleep(PAUSE_SECONDS)
            else:
                return

    async def _call(self, wire: Wire) -> str:
        number, began = next(self._numbers), time.monotonic()
        try:
            answer = await wire.call("numbered", {"n": number}, id=b"%d" % number)
            outcome = _told(await answer.response()) if answer.status == 200 else str(answer.status)
        except (AssertionError, ClientError):  # the stream ended, or the connection was cut
            outcome = "cut"
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.outcomes[number] = outcome
        return outcome


def _told(message: dict[str, Any]) -> str:
    if "result" in message:
        return "result"
    return f"{message['error']['code']} {message['error'].get('data', {}).get('executed', 'no')}"


async def kill_again_and_again(workers: WorkerGateway, seconds: float, dice: random.Random) -> int:
    """Kill a worker every other second, or as soon as the one before has been replaced; how often."""
    kills, victim = 0, 0
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        await anyio.sleep(KILL_SECONDS)
        await workers.complete(without=victim)
        victim = dice.choice(workers.pids())
        workers.end(victim, signal.SIGKILL)
        kills += 1
    return kills


@pytest.mark.parametrize(
    ("clients", "seconds"), [(8, 8.0), pytest.param(32, 60.0, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g6_g7_workers_are_killed_again_and_again(
    tmp_path: Path,
    redis: RedisServer,
    http: RawUpstream,
    process: RawUpstream,
    transport: str,
    clients: int,
    seconds: float,
) -> None:
    seed = random.randrange(2**32)
    server = http if transport == "http" else process
    names = [f"client-{n}" for n in range(clients)]
    with worker_gateway(settings_file(tmp_path, redis.url, http, process), WORKERS) as workers:
        crowd = Clients(workers.url(transport))
        async with anyio.create_task_group() as tasks:
            for name in names:
                tasks.start_soon(crowd.live, name)
            kills = await kill_again_and_again(workers, seconds, random.Random(seed))
            crowd.are_killed = False
    executed = Counter(n for name in names for n in arrived(server, name))
    told = Counter(crowd.outcomes.values())
    print(f"seed {seed}: {kills} kills, {dict(told)}, slowest {crowd.slowest:.2f} s, {crowd.lost} sessions lost")
    assert [n for n, times in executed.items() if times > 1] == []
    answered = {n for n, outcome in crowd.outcomes.items() if outcome == "result"}
    assert answered <= executed.keys()
    surely_not = {n for n, outcome in crowd.outcomes.items() if outcome.endswith(" no") or outcome in ("404", "503")}
    assert not surely_not & executed.keys()
    # Over stdio every session that is lost is a process that starts, on the cores that all of this runs on.
    assert crowd.slowest <= OUTCOME_SECONDS * (1 if transport == "http" else 2) * (1 if clients > 8 else HASTE)
    if transport == "http":
        assert crowd.lost == 0
        assert [len(server.received(name, "initialize")) for name in names] == [1] * clients


# The directory fails.


async def until_answered(wire: Wire, n: int) -> None:
    """Call until it is answered; a call is repeated only where it surely was not executed."""
    with anyio.fail_after(RETURN_SECONDS):
        while True:
            answer = await wire.call("numbered", {"n": n}, id=b"%d" % n)
            if answer.status == 200:
                told = _told(await answer.response())
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


@pytest.mark.parametrize("how", ["stopped", "restarted"])
async def test_g7_what_is_known_goes_on_while_redis_is_away(
    tmp_path: Path, redis: RedisServer, http: RawUpstream, process: RawUpstream, how: str
) -> None:
    toml = settings_file(tmp_path, redis.url, http, process)
    with gateway("--log-level", "error", toml=toml) as first, gateway("--log-level", "error", toml=toml) as second:
        async with Wire(first.url("http")) as known, Wire(first.url("stdio")) as owned:
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


async def test_g7_a_connection_to_redis_that_is_cut_in_the_middle_costs_no_session(
    tmp_path: Path, redis: RedisServer, http: RawUpstream
) -> None:
    async with Cutter(redis.port) as cutter, AsyncExitStack() as stack:
        toml = settings_file(tmp_path, f"redis://127.0.0.1:{cutter.port}/0", http)

        async def start() -> Gateway:
            host = gateway("--log-level", "error", toml=toml)
            return await anyio.to_thread.run_sync(stack.enter_context, host)  # it is relayed in this loop meanwhile

        first, second = await start(), await start()
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
