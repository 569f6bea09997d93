"""Two gateways on hosts of their own with one redis, and one of them is cut off the network for 10 s (G5 to G7)."""

import hashlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest
from harness.crowd import Crowd, arrived, told_of
from harness.gateways import Gateway, gateway, until
from harness.namespaces import Host, Network, Way, network
from harness.raw_upstreams import RawUpstream, Transport, raw_upstream
from harness.redis_server import RedisServer, redis_server
from harness.wire import Wire

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

CUT_SECONDS = 10.0
RETURN_SECONDS = 20.0
"""A bound for the gateway that was cut off to know again what is its own."""

CLIENT_SECONDS = 3.0
"""How long a client waits for a host that may be cut off."""

CALLERS, FOLLOWERS = 6, 3
REVISION = "2025-06-18"
TOKEN = "token-of-alice"
ALICE = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def at() -> Iterator[Network]:
    with network("a", "b") as made:
        yield made


@pytest.fixture
def redis(at: Network) -> Iterator[RedisServer]:
    """Reached by the hosts' back ways."""
    with redis_server("--bind", "127.0.0.1", at.address("back"), "--protected-mode", "no") as server:
        yield server


@pytest.fixture
def servers(at: Network, tmp_path: Path) -> Iterator[dict[Transport, RawUpstream]]:
    """One over HTTP, reached by the hosts' front ways, and one that is a process on the host that uses it."""
    transports: tuple[Transport, ...] = ("http", "stdio")
    records = {transport: tmp_path / transport for transport in transports}
    for record in records.values():
        record.mkdir()
    with (
        raw_upstream("http", records["http"], at.address()) as http,
        raw_upstream("stdio", records["stdio"]) as process,
    ):
        yield {"http": http, "stdio": process}


def settings(at: Network, redis: RedisServer, servers: dict[Transport, RawUpstream]) -> str:
    """The same for both hosts."""
    digest = hashlib.sha256(TOKEN.encode()).hexdigest()
    names = json.dumps([host.address() for host in at.hosts.values()])
    return "\n".join(
        [
            f'[directory]\nbackend = "redis"\nurl = "redis://{at.address("back")}:{redis.port}/0"',
            f"[gateway]\nallowed_hosts = {names}",
            f'[auth]\nmode = "tokens"\ntokens = [{{ sha256 = "{digest}", tenant = "t", subject = "s", admin = true }}]',
            *(f'{server.settings(name)}eras = ["legacy"]' for name, server in servers.items()),
        ]
    )


@asynccontextmanager
async def gateways(toml: Path, *hosts: Host) -> AsyncIterator[list[Gateway]]:
    """One on each host."""
    async with AsyncExitStack() as stack:
        started = []
        for host in hosts:
            made = gateway("--log-level", "warning", toml=toml, host=host.address(), within=host.command)
            started.append(await anyio.to_thread.run_sync(stack.enter_context, made))
        yield started


def owners(host: Gateway) -> Counter[str]:
    """How many workers hold each workflow, as all workers tell whom this one asks; nothing if one does not answer."""
    rows: list[dict[str, Any]] = json.loads(host.fetch("/api/sessions", ALICE))
    if any(row["state"] == "missing" for row in rows):
        return Counter()
    assert all(row["worker"] for row in rows)
    return Counter(row["workflow"] for row in rows)


@pytest.fixture
def toml(tmp_path: Path, at: Network, redis: RedisServer, servers: dict[Transport, RawUpstream]) -> Path:
    path = tmp_path / "trunkline.toml"
    path.write_text(settings(at, redis, servers))
    return path


WAYS = {"everything": ("front", "back"), "the_directory": ("back",)}


@pytest.mark.parametrize("ways", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("transport", ["http", "stdio"])
async def test_g6_g7_a_host_is_cut_off_under_load(
    at: Network,
    toml: Path,
    servers: dict[Transport, RawUpstream],
    transport: Transport,
    ways: tuple[Way, ...],
    record_property: Callable[[str, object], None],
) -> None:
    lost, stays = at.hosts["a"], at.hosts["b"]
    async with gateways(toml, lost, stays) as both:
        urls = [one.url(transport) for one in both]
        crowd = Crowd(servers[transport], *urls, headers=ALICE, patience=CLIENT_SECONDS)
        async with crowd.living(CALLERS, FOLLOWERS):
            lost.cut(*ways)
            await anyio.sleep(CUT_SECONDS)
            lost.mend(*ways)
        for name, figure in crowd.figures().items():
            record_property(name, figure)
        crowd.check()
        if transport == "http":
            assert crowd.lost == 0
            assert [len(servers["http"].received(name, "initialize")) for name in crowd.names] == [1] * len(crowd.names)
        assert crowd.resumed
        await until(lambda: set(owners(both[1]).values()) == {1}, timeout=RETURN_SECONDS)


async def test_g7_a_host_that_was_cut_off_writes_nothing_to_a_session_that_begins_anew_elsewhere(
    at: Network, toml: Path, servers: dict[Transport, RawUpstream], key: str
) -> None:
    lost, server, keyed = at.hosts["a"], servers["stdio"], {**ALICE, "Trunkline-Workflow": key}
    late: list[str] = []

    async def call(wire: Wire, n: int) -> str:
        answer = await wire.call("numbered", {"n": n}, id=b"%d" % n)
        return told_of(await answer.response()) if answer.status == 200 else str(answer.status)

    async with (
        gateways(toml, lost, at.hosts["b"]) as (first, second),
        Wire(first.url("stdio"), keyed) as wire,
        Wire(second.url("stdio"), keyed) as fresh,
    ):
        await wire.open(REVISION, name=key)
        assert await call(wire, 1) == "result"
        lost.cut("back")

        async def go_on() -> None:
            n = 100
            while True:
                late.append(await call(wire, n))
                n += 1
                await anyio.sleep(0.05)

        async with anyio.create_task_group() as tasks:
            with anyio.fail_after(CUT_SECONDS):
                while (opened := await begin(fresh, key)) is None:  # noqa: ASYNC110 - of another host
                    await anyio.sleep(0.05)
            assert opened["Trunkline-Workflow-State"] == "reset"
            began = len(arrived(server, key))
            fresh.headers["Mcp-Session-Id"] = opened["Mcp-Session-Id"]
            fresh.headers["MCP-Protocol-Version"] = REVISION
            tasks.start_soon(go_on)
            for n in range(2, 12):
                assert await call(fresh, n) == "result"
            await anyio.sleep(CUT_SECONDS / 2)
            lost.mend("back")
            with anyio.fail_after(RETURN_SECONDS):
                while "404" not in late:  # noqa: ASYNC110 - of another host
                    await anyio.sleep(0.05)
            tasks.cancel_scope.cancel()
        assert "-31003 no" in late
        assert set(late) <= {"-31003 no", "404", "503"}
        assert arrived(server, key)[began:] == list(range(2, 12))
        await until(
            lambda: list(owners(first).values()) == list(owners(second).values()) == [1], timeout=RETURN_SECONDS
        )


async def begin(wire: Wire, name: str) -> Mapping[str, str] | None:
    """Begin a session; the headers of the answer, or None where it is none: the worker that had it may be away."""
    params = {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": name, "version": "1"}}
    answer = await wire.post({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params})
    return answer.headers if "result" in await answer.response() else None
