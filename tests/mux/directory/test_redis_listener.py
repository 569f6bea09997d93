"""The connection that listens: after it broke, its hearers know, and hear on."""

from collections.abc import AsyncIterator

import anyio
import pytest
from contract.directory import record
from contract.workers import worker
from harness.cutter import Cutter
from harness.redis_server import redis_server
from redis.asyncio import Redis
from trunkline.mux.directory import WATCH_BUFFER, SharedDirectory
from trunkline.mux.directory.redis import CHANGES, open_redis
from trunkline.mux.errors import DirectoryUnavailable

pytestmark = pytest.mark.anyio
PATIENCE = 10.0


async def ended(directory: SharedDirectory) -> str:
    """The session id of a record that came and went."""
    one = record()
    await directory.claim(one)
    await directory.remove(one)
    return one.session_id


async def hear_until(heard: AsyncIterator[str], wanted: str) -> list[str]:
    words = []
    with anyio.fail_after(PATIENCE):
        while not words or words[-1] != wanted:
            words.append(await anext(heard))
    return words


async def test_a_watcher_and_a_mailbox_know_of_a_cut_and_hear_on() -> None:
    with redis_server() as server:
        async with (
            Cutter(server.port) as cutter,
            open_redis(f"redis://127.0.0.1:{cutter.port}") as cut_off,
            open_redis(server.url) as other,
        ):
            me = await cut_off.enroll(worker())
            async with cut_off.watch() as changes, cut_off.mailbox(me) as mailbox:
                assert await hear_until(changes, await ended(other)) != []
                for connection in cutter.connections:
                    connection.cut()
                for _ in range(2):  # at once, and when it is heard again
                    assert await hear_until(changes, "") == [""]
                    with anyio.fail_after(PATIENCE):
                        assert await anext(mailbox) == b""
                changed = await ended(other)
                assert await hear_until(changes, changed) == [changed]
                assert await other.send(me.id, b"frame") is True
                with anyio.fail_after(PATIENCE):
                    assert await anext(mailbox) == b"frame"


async def test_a_server_that_says_nothing_any_longer_is_noticed() -> None:
    with redis_server() as server:
        async with open_redis(server.url) as directory, directory.watch() as changes:
            server.pause()
            with pytest.raises(DirectoryUnavailable):
                await directory.get("unknown")
            with anyio.fail_after(PATIENCE):
                while directory.listener.is_connected:  # noqa: ASYNC110 - nobody tells of it
                    await anyio.sleep(0.02)
            server.resume()
            assert await hear_until(changes, "") == [""]


async def test_nobody_can_begin_to_listen_where_nobody_answers() -> None:
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            server.kill()
            with pytest.raises(DirectoryUnavailable):
                async with directory.watch():
                    pass
            server.start()
            async with directory.watch() as changes:
                changed = await ended(directory)
                assert await hear_until(changes, changed) == [changed]


async def test_what_comes_in_one_burst_is_heard_whole() -> None:
    """As after a moment in which this worker had no time to listen."""
    words = [str(n) for n in range(4 * WATCH_BUFFER)]
    heard: list[str] = []
    with redis_server() as server:
        async with open_redis(server.url) as directory, Redis.from_url(server.url) as other:

            async def hear() -> None:
                async with directory.watch() as changes:
                    listens.set()
                    while heard[-1:] != words[-1:]:
                        heard.append(await anext(changes))

            listens = anyio.Event()
            with anyio.fail_after(PATIENCE):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(hear)
                    await listens.wait()
                    pipeline = other.pipeline(transaction=False)
                    for word in words:
                        pipeline.publish(CHANGES, word)
                    await pipeline.execute()
    assert heard == words
