"""Workers that come later have the settings that hold, whatever has become of the file since."""

import hashlib
import os
import signal
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import anyio.to_thread
import pytest
from harness.gateways import until
from harness.redis_server import RedisServer
from harness.upstreams import Upstream
from harness.upstreams import upstream as running_upstream
from harness.wire import Wire, text_of
from harness.worker_gateways import WorkerGateway, worker_gateway
from trunkline.gateway.app import MAX_LEAVING
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

pytestmark = pytest.mark.anyio

WORKERS = 2
STREAMS = 8
SESSIONS = 4
CALLS = 12
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}},
}
MCP = [Subprotocol("mcp")]


class Place:
    """A gateway of several workers, and the file of its settings."""

    def __init__(self, toml: Path, gateway: WorkerGateway) -> None:
        self.toml = toml
        self.gateway = gateway

    async def reload(self, text: str, said: str) -> None:
        """Have it read this, and wait until each worker has said that of it."""
        self.toml.write_text(text)
        await self.read_again(said)

    async def read_again(self, said: str) -> None:
        """Have it read what there is, and wait until each worker has said that of it."""
        before = self.gateway.running.process.output().count(said)
        self.gateway.running.process.send_signal(signal.SIGHUP)
        await until(lambda: self.gateway.running.process.output().count(said) == before + WORKERS)

    async def replace_all(self) -> None:
        """Kill each worker, one after the other; another one comes up for each."""
        for pid in self.gateway.pids():
            self.gateway.end(pid, signal.SIGKILL)
            await self.gateway.complete(without=pid)


def settings(upstream: Upstream, url: str) -> str:
    return f'[directory]\nbackend = "redis"\nurl = "{url}"\n[servers.up]\nurl = "{upstream.url}"\neras = ["legacy"]\n'


@pytest.fixture
def place(redis: RedisServer, upstream: Upstream, tmp_path: Path) -> Iterator[Place]:
    toml = tmp_path / "trunkline.toml"
    toml.write_text(settings(upstream, redis.url))
    with worker_gateway(toml, WORKERS) as gateway:
        yield Place(toml, gateway)


async def test_a_file_with_a_fault_keeps_no_worker_from_coming_up(place: Place) -> None:
    await place.gateway.complete()
    await place.reload("[gateway", "not reloaded, everything stays as it is")
    session = await place.gateway.open()
    await place.replace_all()
    assert "result" in await place.gateway.call(session, "counter")


async def test_no_worker_takes_a_server_by_the_name_of_the_demo(
    redis: RedisServer, upstream: Upstream, tmp_path: Path
) -> None:
    """The parent refuses it: what holds for those that come later would be other than what holds here."""
    toml = tmp_path / "trunkline.toml"
    toml.write_text(settings(upstream, redis.url))
    with worker_gateway(toml, WORKERS, "--demo") as gateway:
        await gateway.complete()
        text = f'{toml.read_text()}[servers.demo]\nurl = "{upstream.url}"\n'
        await Place(toml, gateway).reload(text, "not reloaded, everything stays as it is: servers.demo")


async def test_what_only_a_restart_changes_is_the_same_for_a_worker_that_comes_later(
    place: Place, redis: RedisServer, upstream: Upstream
) -> None:
    await place.gateway.complete()
    await place.reload(settings(upstream, redis.url.removesuffix("/0") + "/1"), "only a restart changes it: directory")
    session = await place.gateway.open()
    await place.replace_all()
    for _ in range(8):
        assert "result" in await place.gateway.call(session, "counter")


async def test_what_was_read_again_holds_for_a_worker_that_comes_later(place: Place, upstream: Upstream) -> None:
    await place.gateway.complete()
    more = f'[servers.more]\nurl = "{upstream.url}"\neras = ["legacy"]\n'
    await place.reload(place.toml.read_text() + more, "1 added (more)")
    place.toml.write_text("[gateway")
    await place.replace_all()
    for _ in range(8):
        await place.gateway.open("more")


async def test_what_is_read_again_is_read_once_for_all_workers(place: Place, upstream: Upstream) -> None:
    """A file that changes while they read would leave each with other settings."""
    await place.gateway.complete()
    more = f'{place.toml.read_text()}[servers.more]\nurl = "{upstream.url}"\neras = ["legacy"]\n'
    place.toml.unlink()
    os.mkfifo(place.toml)  # whoever reads it a second time waits for a second word
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, place.toml.write_text, more)
        await place.read_again("1 added (more)")
    for _ in range(8):
        await place.gateway.open("more")


async def test_what_began_on_a_server_is_served_by_every_worker_when_that_is_where_it_was(place: Place) -> None:
    """Whatever else their settings say of it: all of its calls would be those of one worker."""
    await place.gateway.complete()
    session = await place.gateway.open()
    await place.reload(
        f"{place.toml.read_text()}request_timeout = 11\nforward_headers = ['X-Class']\n", "1 changed (up)"
    )
    for said in range(1, CALLS + 1):  # on connections of their own: half of them come to the worker that holds it not
        assert text_of(await place.gateway.call(session, "counter")) == str(said)
    assert place.gateway.running.metric("trunkline_forwards_total", outcome="done") == 0


async def test_what_began_on_a_server_goes_on_there_by_every_worker_when_that_has_moved(
    place: Place, redis: RedisServer, upstream: Upstream
) -> None:
    await place.gateway.complete()
    sessions = [await place.gateway.open() for _ in range(SESSIONS)]
    with running_upstream("sdk2") as moved:
        await place.reload(settings(moved, redis.url), "1 changed (up)")
        for said in range(1, CALLS + 1):
            for session in sessions:
                assert text_of(await place.gateway.call(session, "counter")) == str(said)
        assert moved.counts() == {}, "it was told nothing of the sessions of another server"
        assert text_of(await place.gateway.call(await place.gateway.open(), "counter")) == "1"
        assert moved.counts()["initialize"] == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_g7_g8_who_ends_takes_no_session_along_that_began_where_its_server_was(
    place: Place, redis: RedisServer, upstream: Upstream, number: signal.Signals
) -> None:
    """Although the one that comes in its place knows only where the server is now."""
    await place.gateway.complete()
    sessions = [await place.gateway.open() for _ in range(2 * SESSIONS)]
    for session in sessions:
        assert text_of(await place.gateway.call(session, "counter")) == "1"
    with running_upstream("sdk2") as moved:
        await place.reload(settings(moved, redis.url), "1 changed (up)")
        ends = place.gateway.pids()[0]
        place.gateway.end(ends, number)
        await place.gateway.complete(without=ends)
        for said in range(2, CALLS):
            for session in sessions:
                assert text_of(await place.gateway.call(session, "counter")) == str(said)
        assert moved.counts() == {}


async def test_what_began_on_a_server_that_is_taken_out_goes_on_by_whatever_worker(
    place: Place,
) -> None:
    await place.gateway.complete()
    session = await place.gateway.open()
    await place.reload(place.toml.read_text().replace("servers.up", "servers.other"), "1 removed (up)")
    for said in range(1, CALLS + 1):  # on connections of their own: half of them come to the worker that has it not
        assert text_of(await place.gateway.call(session, "counter")) == str(said)
    for _ in range(CALLS):
        async with Wire(place.gateway.url()) as wire:
            assert (await wire.post(INITIALIZE)).status == 404


async def test_g10_of_many_servers_that_are_taken_out_the_oldest_are_unknown_to_who_serves_none_of_theirs(
    place: Place, upstream: Upstream
) -> None:
    await place.gateway.complete()
    before, names = place.toml.read_text(), [f"s{number}" for number in range(MAX_LEAVING + 3)]
    more = "".join(f'[servers.{name}]\nurl = "{upstream.url}"\neras = ["legacy"]\n' for name in names)
    await place.reload(before + more, f"{len(names)} added (")
    sessions = {name: await place.gateway.open(name) for name in (names[0], names[1], names[-1])}

    async def statuses(name: str) -> set[int]:
        found = set()
        for _ in range(2 * CALLS):
            async with Wire(place.gateway.url(name), sessions[name]) as wire:
                found.add((await wire.call("counter")).status)
        return found

    await statuses(names[1])  # each worker serves it
    await place.reload(before, f"{len(names)} removed (")

    assert await statuses(names[0]) == {200, 404}
    assert await statuses(names[1]) == await statuses(names[-1]) == {200}


async def test_a_server_without_sessions_that_is_taken_out_is_unknown_at_once(place: Place) -> None:
    await place.gateway.complete()
    text = place.toml.read_text().replace('"legacy"', '"modern"')
    await place.reload(text, "1 changed (up)")
    await place.reload(text.replace("servers.up", "servers.other"), "1 added (other), 1 removed (up)")
    asked = {"jsonrpc": "2.0", "id": 1, "method": "server/discover", "params": {}}
    for _ in range(CALLS):
        async with Wire(place.gateway.url()) as wire:
            assert (await wire.post(asked, {"MCP-Protocol-Version": "2026-07-28"})).status == 404


async def test_a_token_that_is_taken_out_ends_its_streams_wherever_their_session_lives(
    place: Place, redis: RedisServer, upstream: Upstream
) -> None:
    def text(*tokens: str) -> str:
        entry = '{{ sha256 = "{}", tenant = "acme", subject = "alice" }}'.format
        known = ", ".join(entry(hashlib.sha256(token.encode()).hexdigest()) for token in tokens)
        return f'{settings(upstream, redis.url)}[auth]\nmode = "tokens"\ntokens = [{known}]\n'

    await place.gateway.complete()
    await place.reload(text("stays", "goes"), "unchanged, auth")
    going = {"Authorization": "Bearer goes"}
    address = place.gateway.url().replace("http:", "ws:").replace("/mcp", "/ws")
    async with AsyncExitStack() as stack:
        opened = []
        for _ in range(STREAMS):  # on connections of their own: half of them come to the worker that has it not
            wire = await stack.enter_async_context(Wire(place.gateway.url(), {"Authorization": "Bearer stays"}))
            await wire.open()
            other = await stack.enter_async_context(Wire(place.gateway.url(), wire.headers))
            stream = await other.get(headers=going)
            named = f"{address}?session_id={wire.headers['Mcp-Session-Id']}"
            socket = await stack.enter_async_context(connect(named, subprotocols=MCP, additional_headers=going))
            opened.append((wire, stream, socket))
        assert all(stream.status == 200 for _, stream, _ in opened)
        await place.reload(text("stays"), "unchanged, auth")
        with anyio.fail_after(10):
            for wire, stream, socket in opened:
                async for _ in stream.events():
                    pass
                await socket.wait_closed()
                assert socket.close_code == 4401
                assert (await wire.call("counter")).status == 200
