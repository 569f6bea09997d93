"""A gateway that drains among others with one redis: what comes late is another one's, and nothing is lost (G8)."""

import asyncio
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import anyio
import pytest
from harness.duplex_clients import SocketClient
from harness.gateways import Gateway, gateway, until
from harness.hosts import Hosts, draining, hosts
from harness.ports import LOOPBACK
from harness.processes import http_status
from harness.redis_server import RedisServer
from harness.upstreams import Upstream
from harness.wire import Wire, text_of
from harness.worker_gateways import worker_gateway
from trunkline.gateway.http_connection import LAST_SECONDS
from websockets.exceptions import InvalidStatus

pytestmark = pytest.mark.anyio

PATIENCE = 20.0
DRAIN_TIMEOUT = 10
GRACE = 6.0
"""Longer than connections may take to end once a worker has drained, shorter than its `drain_timeout`."""
INITIALIZE = (
    b'{"jsonrpc":"2.0","id":1,"method":"initialize","params":{"protocolVersion":"2025-06-18","capabilities":{},'
    b'"clientInfo":{"name":"late","version":"1"}}}'
)
HEAD = (
    b"POST /servers/up/mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    b"Accept: application/json, text/event-stream\r\nContent-Length: %d\r\n\r\n"
)
COUNT = b'{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"counter","arguments":{}}}'


def written(folder: Path, up: Upstream, *, redis: str = "", gateway: str = "") -> Path:
    """Settings of gateways that share a redis, or else a database in this folder."""
    database = f"sqlite+aiosqlite:///{folder}/x.db"
    toml = folder / "trunkline.toml"
    toml.write_text(
        f'[directory]\nbackend = "{"redis" if redis else "database"}"\nurl = "{redis or database}"\n'
        f"[gateway]\n{gateway}\n"
        f'[servers.up]\nurl = "{up.url}"\neras = ["legacy"]\n'
    )
    return toml


@pytest.fixture(scope="module")
def several(
    redis: RedisServer, upstream_process: Upstream, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Hosts]:
    folder, drain_timeout = tmp_path_factory.mktemp("hosts"), f"drain_timeout = {DRAIN_TIMEOUT}"
    toml = written(folder, upstream_process, redis=redis.url, gateway=drain_timeout)
    with hosts(toml, 3) as running:
        yield running


@pytest.fixture
def three(several: Hosts, upstream: Upstream) -> list[Gateway]:
    """Gateways with one redis; a test that lets one drain waits for its end."""
    return several.complete()


async def count(wire: Wire) -> str:
    """What the counter of a session says."""
    return text_of(await (await wire.call("counter")).response())


async def drains(host: Gateway) -> None:
    """SIGTERM, and wait until the gateway says of itself that it ends."""
    host.process.send_signal(signal.SIGTERM)
    await until(lambda: http_status(host.port, "/readyz") == 503)


async def ended(host: Gateway) -> int:
    """Its exit code."""
    return await anyio.to_thread.run_sync(host.process.wait, DRAIN_TIMEOUT + 5)


async def test_g8_a_worker_that_drains_says_so_first_and_loses_no_call(
    three: list[Gateway], upstream: Upstream, key: str
) -> None:
    first, second, _ = three
    done: list[str] = []

    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(first.url())) for _ in range(4)]
        for wire in wires:
            await wire.open("2025-06-18")
        last = await stack.enter_async_context(Wire(first.url()))
        await last.open("2025-06-18")

        async def hold() -> None:
            done.append(text_of(await (await last.call("hold", {"gate": key})).response()))

        async def live(wire: Wire) -> None:
            for n in range(1, 21):
                done.append(await count(wire))
                assert done[-1] == str(n)
                if first.process.returncode is not None or http_status(first.port, "/readyz") != 200:
                    wire.url = second.url()

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold)
                await upstream.saw("mark:holding")
                async with anyio.create_task_group() as load:
                    for wire in wires:
                        load.start_soon(live, wire)
                    await drains(first)
                upstream.open(key)
        assert await ended(first) == 0
        for wire in wires:
            wire.url = second.url()
            assert await count(wire) == "21"
    assert f"{key} is open" in done
    assert upstream.counts()["initialize"] == 5
    assert upstream.counts()["method:tools/call"] == 4 * 21 + 1


async def come_back(client: SocketClient) -> None:
    """Until it is taken: where its worker is about to let go, nobody has it yet."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                return await client.resume()
            except InvalidStatus as refused:
                if refused.response.status_code != 503:
                    raise


async def test_g5_g8_a_socket_goes_on_at_another_worker_before_its_own_is_quite_gone(
    three: list[Gateway], upstream: Upstream, key: str
) -> None:
    first, second, _ = three
    async with SocketClient(first.server_url("up")) as client, SocketClient(second.server_url("up")) as fresh:
        await client.open()
        for n in range(3):
            await client.call("echo", {"value": f"{key}-{n}"}, id=n)
            await client.answer(n)
            if n == 0:
                fresh.session_id, fresh.count = client.session_id, client.count
        first.process.send_signal(signal.SIGTERM)
        await client.over()
        await come_back(fresh)
        missed = await fresh.hear(2)
        assert [message["id"] for message in missed] == [1, 2]
    assert await ended(first) == 0
    assert upstream.counts()["initialize"] == 1


async def test_g8_a_call_whose_body_comes_after_the_drain_has_begun_is_another_workers(
    three: list[Gateway], upstream: Upstream, key: str
) -> None:
    first = three[0]
    head_read, goes_on = anyio.Event(), anyio.Event()
    done: list[str] = []

    async def hold(wire: Wire) -> None:
        done.append(text_of(await (await wire.call("hold", {"gate": key})).response()))

    async def call(wire: Wire) -> None:
        done.append(text_of(await (await wire.post_in_two(COUNT, head_read, goes_on)).response()))
        upstream.open(key)

    async with Wire(first.url()) as wire, Wire(first.url()) as other:
        await wire.open("2025-06-18")
        await other.open("2025-06-18")
        assert await count(wire) == "1"
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold, other)
                await upstream.saw("mark:holding")
                tasks.start_soon(call, wire)
                await head_read.wait()
                await drains(first)
                goes_on.set()
    assert await ended(first) == 0
    assert done == ["2", f"{key} is open"]
    assert upstream.counts()["initialize"] == 2


@pytest.mark.parametrize("before", [0, 1], ids=["new", "kept"])
async def test_g8_who_is_connected_is_answered_although_the_worker_has_nothing_left_to_do(
    several: Hosts, upstream: Upstream, before: int
) -> None:
    answer, is_late = b"", True
    while not answer and is_late:  # what a busy machine asks later than a client has the time to is no proof
        first = several.complete()[0]
        reader, writer = await asyncio.open_connection(LOOPBACK, first.port)
        with anyio.fail_after(PATIENCE):
            for _ in range(before):
                writer.write(HEAD % len(INITIALIZE) + INITIALIZE)
                assert (await reader.readuntil(b"}}}")).startswith(b"HTTP/1.1 200")
            began = anyio.current_time()
            await drains(first)
            writer.write(HEAD % len(INITIALIZE) + INITIALIZE)
            is_late = anyio.current_time() - began > LAST_SECONDS / 2
            with suppress(ConnectionError):
                answer = await reader.read()
        writer.close()
        assert await ended(first) == 0
    assert answer.startswith(b"HTTP/1.1 200")
    assert b"connection: close" in answer, "the next request is to find another worker"


async def is_sent_on(wire: Wire) -> bool:
    """Whether a client is told that its next request needs another connection."""
    answer = await wire.call("counter", id=b"2")
    await answer.response()
    return answer.headers.get("Connection") == "close"


async def test_g8_who_has_nobody_to_go_to_is_sent_on_once_somebody_is_there(
    upstream_process: Upstream, upstream: Upstream, key: str, tmp_path: Path
) -> None:
    toml = written(tmp_path, upstream_process)
    with hosts(toml, 1) as running:
        [alone] = running.complete()
        async with Wire(alone.url()) as wire:
            await wire.open()
            answer = await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            await drains(alone)
            assert not await is_sent_on(wire)
            with gateway(toml=toml), anyio.fail_after(PATIENCE):
                while not await is_sent_on(wire):  # noqa: ASYNC110 - another process has no event for us
                    await anyio.sleep(0.02)
                upstream.open(key)
                assert text_of(await answer.response()) == f"{key} is open"
                assert await ended(alone) == 0


async def test_g8_what_is_handed_on_may_outlast_what_the_worker_itself_had_to_do_but_not_drain_timeout(
    three: list[Gateway], upstream: Upstream, key: str
) -> None:
    first = three[0]
    own, late, later = f"{key}-own", f"{key}-late", f"{key}-later"
    done: list[str] = []

    async def hold(wire: Wire, gate: str) -> None:
        answer = await (await wire.call("hold", {"gate": gate})).response()
        if "error" in answer:
            assert answer["error"]["data"]["executed"] == "unknown"
            done.append(f"{answer['error']['code']}")
        else:
            done.append(text_of(answer))

    def has_left() -> bool:
        return http_status(first.port, "/readyz") is None

    async with AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(Wire(first.url())) for _ in range(3)]
        for wire in wires:
            await wire.open("2025-06-18")
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(hold, wires[0], own)
                await upstream.saw("mark:holding")
                await drains(first)
                tasks.start_soon(hold, wires[1], late)
                tasks.start_soon(hold, wires[2], later)
                await upstream.saw("mark:holding", 3)
                upstream.open(own)
                await until(has_left)  # nothing new is taken any longer
                await anyio.sleep(GRACE)
                upstream.open(late)
    assert await ended(first) == 0
    assert done == [f"{own} is open", f"{late} is open", "-31002"]


async def test_g8_workers_that_drain_at_once_leave_late_calls_to_one_that_goes_on(
    three: list[Gateway], redis: RedisServer, upstream: Upstream, key: str
) -> None:
    *two, _ = three
    done: list[str] = []

    async def hold(wire: Wire) -> None:
        done.append(text_of(await (await wire.call("hold", {"gate": key})).response()))

    async with AsyncExitStack() as stack:
        holding = [await stack.enter_async_context(Wire(host.url())) for host in two]
        late = [await stack.enter_async_context(Wire(host.url())) for host in two]
        for wire in (*holding, *late):
            await wire.open("2025-06-18")
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for wire in holding:
                    tasks.start_soon(hold, wire)
                await upstream.saw("mark:holding", 2)
                for host in two:
                    await drains(host)
                await until(lambda: draining(redis) == 2)
                for n in range(1, 9):
                    assert [await count(wire) for wire in late] == [str(n)] * 2
                upstream.open(key)
    for host in two:
        assert await ended(host) == 0
    assert done == [f"{key} is open"] * 2
    assert upstream.counts()["initialize"] == 4


async def test_g8_who_comes_while_all_workers_of_a_gateway_drain_is_told_so(
    upstream_process: Upstream, upstream: Upstream, key: str, tmp_path: Path
) -> None:
    toml = written(tmp_path, upstream_process, gateway=f"drain_timeout = {DRAIN_TIMEOUT}")
    with worker_gateway(toml, 2) as gateway:
        await gateway.complete()
        async with Wire(gateway.url()) as wire, anyio.create_task_group() as tasks:
            await wire.open("2025-06-18")

            async def hold() -> None:
                assert text_of(await (await wire.call("hold", {"gate": key})).response()) == f"{key} is open"

            tasks.start_soon(hold)
            await upstream.saw("mark:holding", 1)
            await drains(gateway.running)
            async with Wire(gateway.url()) as late:
                refused = await late.post(INITIALIZE)
                assert refused.status == 503
            await until(lambda: len(gateway.pids()) == 1)  # the other one has nothing to do
            async with Wire(gateway.url()) as later:
                refused = await later.post(INITIALIZE)
                assert refused.status == 503
                assert "Connection" not in refused.headers, "there is no other worker that it could find"
            upstream.open(key)
        assert await ended(gateway.running) == 0


async def test_g8_nobody_is_sent_to_a_worker_that_has_not_heard_yet_that_its_gateway_drains(
    upstream_process: Upstream, upstream: Upstream, key: str, tmp_path: Path
) -> None:
    toml = written(tmp_path, upstream_process)
    with worker_gateway(toml, 2) as gateway:
        await gateway.complete()
        async with Wire(gateway.url()) as wire:
            await wire.open()
            answer = await wire.call("hold", {"gate": key})
            await upstream.saw("mark:holding")
            late = next(pid for pid in gateway.pids() if not gateway.connections(pid))
            gateway.end(late, signal.SIGSTOP)
            try:
                await drains(gateway.running)
                for _ in range(20):  # until the other one is taken for dead
                    assert not await is_sent_on(wire)
                    await anyio.sleep(0.1)
            finally:
                gateway.end(late, signal.SIGCONT)
            upstream.open(key)
            assert text_of(await answer.response()) == f"{key} is open"
        assert await ended(gateway.running) == 0
