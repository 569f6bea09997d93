"""The redis directory while its server or the way to it fails: what was refused is named, what stands is whole."""

from collections.abc import Awaitable, Callable
from contextlib import suppress

import anyio
import pytest
from contract.directory import ALICE, changed, record
from contract.workers import worker
from harness.cutter import Cutter
from harness.redis_server import RedisServer, redis_server
from redis.asyncio.client import Pipeline
from trunkline.mux.directory import Entry, SharedDirectory
from trunkline.mux.directory.redis import MAX_CONCURRENCY, open_redis
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.limits import EventLogLimits

pytestmark = pytest.mark.anyio
PATIENCE = 15.0


async def eventually(work: Callable[[], Awaitable[object]]) -> None:
    """Do something until the directory serves again."""
    with anyio.fail_after(PATIENCE):
        while True:
            try:
                await work()
            except DirectoryUnavailable:
                await anyio.sleep(0.02)
            else:
                return


async def test_what_is_recorded_outlives_a_restart() -> None:
    one = record("chat")
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            await directory.claim(one)
            await directory.append(one.session_id, [Entry("event", 1, 1, b"{}")], EventLogLimits())
            first = await directory.draw_ids(one.session_id)
            server.restart()
            await eventually(lambda: directory.get(one.session_id))
            assert await directory.find(ALICE, "x", "chat") == one
            assert len(await directory.read(one.session_id)) == 1
            assert (await directory.draw_ids(one.session_id)).start >= first.stop


async def test_numbers_of_living_workers_are_not_given_again_when_all_is_forgotten() -> None:
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            old = [await directory.enroll(worker()) for _ in range(3)]
            server.command("FLUSHALL")
            assert not await directory.beat(old[2])
            assert (await directory.enroll(worker())).number > old[2].number


async def test_what_ends_makes_room_in_a_redis_that_is_full() -> None:
    one = record("chat")
    with redis_server("--maxmemory-policy", "noeviction") as server:
        async with open_redis(server.url) as directory:
            await directory.claim(one)
            await directory.append(one.session_id, [Entry("event", 1, 1, b"x" * 100_000)], EventLogLimits())
            server.command("CONFIG", "SET", "maxmemory", 1)
            with pytest.raises(DirectoryUnavailable, match="OutOfMemory"):
                await directory.claim(record())
            with suppress(DirectoryUnavailable):  # there may be no room for more than that
                await directory.remove(one)
            assert await directory.get(one.session_id) is None
            server.command("CONFIG", "SET", "maxmemory", 0)
            assert await directory.publish(one) is None, "its end is known"
            assert (await directory.claim(record("chat"))).state == "reset"


async def test_what_another_program_wrote_is_told_as_such() -> None:
    one = record()
    with redis_server() as server:
        async with open_redis(server.url) as directory, directory.watch() as changes:
            await directory.claim(one)
            for key in server.command("KEYS", "*:record"):
                server.command("HSET", key, "record", "foreign")
            server.command("SADD", "trunkline1:{workers}:ids", "x")
            server.command("SET", "trunkline1:{workers}:worker:x", "foreign")
            for work in (lambda: directory.get(one.session_id), directory.workers, lambda: directory.worker("x")):
                with pytest.raises(DirectoryUnavailable) as told:
                    await work()
                assert "another program" in (told.value.remedy or "")
            server.command("PUBLISH", "trunkline1:changes", b"\xff")
            assert await directory.remove(one)
            with anyio.fail_after(PATIENCE):
                while await anext(changes) != one.session_id:
                    pass


async def test_a_server_that_is_away_is_unavailable_and_found_again() -> None:
    one = record("chat")
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            me = await directory.enroll(worker())
            server.kill()
            works: list[Callable[[], Awaitable[object]]] = [
                lambda: directory.claim(one),
                lambda: directory.get(one.session_id),
                lambda: directory.at(one.event_token),
                lambda: directory.find(ALICE, "x", "chat"),
                lambda: directory.replace(one),
                lambda: directory.remove(one),
                lambda: directory.touch([one.session_id]),
                lambda: directory.untouched(one.session_id),
                lambda: directory.draw_ids(one.session_id),
                lambda: directory.append(one.session_id, [Entry("event", 1, 1)], EventLogLimits()),
                lambda: directory.read(one.session_id),
                lambda: directory.enroll(worker()),
                lambda: directory.beat(me),
                lambda: directory.retire(me),
                lambda: directory.worker(me.id),
                directory.workers,
                lambda: directory.settle("name", me),
                lambda: directory.send(me.id, b"frame"),
            ]
            for work in works:
                with pytest.raises(DirectoryUnavailable) as refused:
                    await work()
                assert refused.value.limit == "directory"
                assert str(server.port) not in refused.value.message
            server.start()
            await eventually(lambda: directory.claim(one))


async def test_a_password_is_not_told() -> None:
    with redis_server() as server:
        server.command("CONFIG", "SET", "requirepass", "right")
        pass_url = f"redis://:wrong-secret@127.0.0.1:{server.port}"
        with pytest.raises(DirectoryUnavailable) as refused:
            async with open_redis(pass_url):
                pass
        assert "secret" not in refused.value.message


@pytest.mark.parametrize("room", [0, 1, 3])
@pytest.mark.parametrize("op", ["claim", "replace", "remove", "touch", "append", "draw"])
async def test_a_connection_that_is_cut_in_an_answer_leaves_a_whole_record(op: str, room: int) -> None:
    one = record("chat")
    keep = EventLogLimits()

    async def do(directory: SharedDirectory) -> object:
        match op:
            case "claim":
                return await directory.claim(one)
            case "replace":
                return await directory.replace(changed(one))
            case "remove":
                return await directory.remove(one)
            case "touch":
                return await directory.touch([one.session_id])
            case "append":
                return await directory.append(one.session_id, [Entry("event", 1, n) for n in range(9)], keep)
        return await directory.draw_ids(one.session_id)

    with redis_server() as server:
        async with (
            Cutter(server.port) as cutter,
            open_redis(f"redis://127.0.0.1:{cutter.port}") as cut_off,
            open_redis(server.url) as other,
        ):
            if op != "claim":
                await other.claim(one)
                await other.draw_ids(one.session_id)
            cutter.newest.limit(down=room)
            with suppress(DirectoryUnavailable):
                await do(cut_off)
            standing = await other.find(ALICE, "x", "chat")
            claimed = await other.claim(record("chat"))
            if standing is None:
                assert claimed.state in ("created", "reset")
            else:
                assert claimed == (standing, "resumed"), "one key, one session"
            assert await other.find(ALICE, "x", "chat") == claimed.record
            assert len(await other.read(one.session_id)) in (0, 9), "all or none"


async def test_a_key_whose_record_is_gone_without_a_word_is_reset() -> None:
    one, two = record("chat"), record("chat")
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            await directory.claim(one)
            server.command("DEL", f"trunkline1:{{{one.event_token}}}:record")
            assert await directory.find(ALICE, "x", "chat") is None
            assert (await directory.claim(two)) == (two, "reset")


async def test_keys_name_neither_sessions_nor_principals() -> None:
    one = record("my-chat")
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            await directory.claim(one)
            await directory.append(one.session_id, [Entry("event", 1, 1)], EventLogLimits())
            me = await directory.enroll(worker())
            await directory.settle("user:alice", me)
            await directory.draw_ids("shared:alice")
            names = b" ".join(server.command("KEYS", "*")).decode()
            for secret in (one.session_id, "my-chat", "alice"):
                assert secret not in names
            for name in names.split():
                assert server.command("PTTL", name) > 0 or "{workers}" in name, "all that grows expires"


async def test_a_primary_that_was_made_a_replica_is_left_for_who_has_its_name_by_now() -> None:
    """As where a failover moves a name or an address, and the old primary keeps its connections."""
    one, frames = record(), list[bytes]()

    async def sent(directory: SharedDirectory, worker: str) -> None:
        frames.append(b"%d" % len(frames))
        if not await directory.send(worker, frames[-1]):
            raise DirectoryUnavailable("nobody hears it")

    with redis_server() as first, redis_server("--replicaof", "127.0.0.1", str(first.port)) as second:
        async with Cutter(first.port) as cutter, open_redis(f"redis://127.0.0.1:{cutter.port}") as directory:
            me = await directory.enroll(worker())
            async with directory.watch() as changes, directory.mailbox(me) as mailbox:
                await directory.claim(one)
                await eventually(lambda: linked(second))
                second.command("REPLICAOF", "NO", "ONE")
                first.command("REPLICAOF", "127.0.0.1", second.port)
                cutter.lead_to(second.port)
                await eventually(lambda: linked(first))
                for _ in range(MAX_CONCURRENCY):
                    with suppress(DirectoryUnavailable):
                        await directory.draw_ids(one.session_id)
                await eventually(lambda: directory.beat(me))
                for lost in (changes, mailbox):
                    with anyio.fail_after(PATIENCE):
                        assert not await anext(lost), "something may have been missed"
                await eventually(lambda: sent(directory, me.id))
                with anyio.fail_after(PATIENCE):
                    while not (heard := await anext(mailbox)):
                        pass
                assert heard == frames[-1], "what nobody hears is heard by nobody"
                assert await directory.get(one.session_id) == one


async def linked(replica: RedisServer) -> None:
    if replica.command("INFO", "replication")["master_link_status"] != "up":
        raise DirectoryUnavailable("it has not what its primary has")


async def test_many_are_touched_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that was away is told of all at once: one operation for them would hold up the loop, or not end."""
    monkeypatch.setattr("trunkline.mux.directory.redis.BATCH", 4)
    ones, sizes = [record(f"{n}") for n in range(9)], list[int]()
    execute = Pipeline.execute

    async def noted(pipeline: Pipeline, *options: object, **more: bool) -> object:
        sizes.append(len(pipeline))
        return await execute(pipeline, *options, **more)

    with redis_server() as server:
        async with open_redis(server.url) as directory:
            for one in ones:
                await directory.claim(one)
            for key in server.command("KEYS", "*"):
                server.command("PEXPIRE", key, 60_000)
            monkeypatch.setattr(Pipeline, "execute", noted)
            await directory.touch([one.session_id for one in ones])
            assert (sum(sizes), max(sizes)) == (18, 4), "each record, and its key"
            for key in (*server.command("KEYS", "*:record"), *server.command("KEYS", "*:key")):
                assert server.command("PTTL", key) > 60_000
