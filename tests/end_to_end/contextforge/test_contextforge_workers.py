"""Sessions over SSE inside ContextForge with every cache: in one worker, and in two."""

import asyncio
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest
from harness.contextforge import Version, contextforge, token
from harness.contextforge_clients import PATIENCE, Place, Raw, raw
from harness.ports import free_port
from harness.processes import ServerProcess
from harness.upstreams import upstream

pytestmark = [pytest.mark.anyio, pytest.mark.contextforge, pytest.mark.timeout(300)]


@pytest.fixture
def redis() -> Iterator[str]:
    """The URL of a redis server of the test's own."""
    port = free_port()
    process = ServerProcess(["redis-server", "--port", str(port), "--save", "", "--bind", "127.0.0.1"])
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["database", "redis"])
async def test_over_sse_with_every_cache(version: Version, cache: str, redis: str) -> None:
    env = {"CACHE_TYPE": cache, "REDIS_URL": redis}
    with (
        tempfile.TemporaryDirectory() as folder,
        upstream("sdk2") as server,
        contextforge(version, Path(folder), env=env) as forge,
    ):
        forge.register("plain", server.url)
        place = Place(forge, {"plain": server})
        assert await place.calls("sse", "plain", "counter", times=5) == ["1", "2", "3", "4", "5"]


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["database", "redis"])
async def test_a_message_reaches_the_worker_that_has_its_stream(version: Version, cache: str, redis: str) -> None:
    """Each message comes on a connection of its own, so that half of them meet the other worker."""
    env = {"CACHE_TYPE": cache, "REDIS_URL": redis}
    with (
        tempfile.TemporaryDirectory() as folder,
        upstream("sdk2") as server,
        contextforge(version, Path(folder), workers=2, env=env) as forge,
    ):
        forge.register("plain", server.url)
        async with raw(Place(forge, {"plain": server}), "sse") as client:
            for n in range(1, 21):
                await post_apart(version, client, n)
                assert (await client.answer(n))["result"]["content"][0]["text"] == str(n)


async def post_apart(version: Version, client: Raw, id: int) -> None:
    """Send a call by a connection of its own, which any worker may take."""
    message = {"jsonrpc": "2.0", "id": id, "method": "tools/call", "params": {"name": "plain-counter", "arguments": {}}}
    async with (
        aiohttp.ClientSession(headers={"Authorization": f"Bearer {token(version)}"}) as http,
        http.post(client.endpoint, json=message) as taken,  # type: ignore[attr-defined]
    ):
        assert taken.status == 202


@pytest.mark.slow
async def test_a_stream_hears_other_workers_again_whose_connection_with_redis_was_cut(
    version: Version, redis: str
) -> None:
    env = {"CACHE_TYPE": "redis", "REDIS_URL": redis}
    with (
        tempfile.TemporaryDirectory() as folder,
        upstream("sdk2") as server,
        contextforge(version, Path(folder), workers=2, env=env) as forge,
    ):
        forge.register("plain", server.url)
        async with raw(Place(forge, {"plain": server}), "sse") as client, asyncio.timeout(PATIENCE):
            session_id = client.endpoint.partition("session_id=")[2]  # type: ignore[attr-defined]
            assert session_id in await cli(redis, "pubsub", "channels")
            await cli(redis, "client", "kill", "type", "pubsub")
            while session_id not in await cli(redis, "pubsub", "channels"):  # noqa: ASYNC110 - redis tells nobody
                await asyncio.sleep(0.05)
            for n in range(1, 21):
                await post_apart(version, client, n)
                assert (await client.answer(n))["result"]["content"][0]["text"] == str(n)


async def cli(redis: str, *command: str) -> list[str]:
    """The words that redis answers to a command."""
    port = redis.rpartition(":")[2].partition("/")[0]
    run = ["redis-cli", "-p", port, *command]
    ended = await asyncio.to_thread(subprocess.run, run, capture_output=True, text=True, check=True)
    return ended.stdout.split()
