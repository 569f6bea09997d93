"""The database directory forgets what has expired, and keeps what has not."""

import os
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import anyio
import anyio.lowlevel
import asyncpg
import msgspec
import pytest
import sqlalchemy as sa
from contract.directory import record
from harness.backends import Backends
from trunkline.mux.directory import ID_BLOCK, Claimed, Entry, Worker
from trunkline.mux.directory.database import WORKER_MEMORY_SECONDS, DatabaseDirectory, open_database
from trunkline.mux.directory.database_schema import counters, ended_keys, homes, log, records, workers
from trunkline.mux.directory.database_server import MAX_CONNECTIONS, Server
from trunkline.mux.directory.names import name_digest
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.record import WorkflowRecord

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, backends: Backends) -> str:
    """Where an empty database is."""
    place = backends.place(request.param)
    place.clear()
    return place.url()


def modes(file: Path) -> dict[str, int]:
    """Who may do what with a file, and with those that SQLite has beside it."""
    return {one.name: one.stat().st_mode & 0o777 for one in file.parent.glob(f"{file.name}*")}


async def test_a_file_of_sqlite_is_made_for_its_user_alone_and_one_that_is_there_is_left_as_it_is(
    tmp_path: Path,
) -> None:
    before = os.umask(0o022)
    try:
        for name, mode in (("new.db", 0o600), ("group.db", 0o660)):
            file = tmp_path / name
            if mode != 0o600:
                file.touch()
                file.chmod(mode)
            async with open_database(f"sqlite+aiosqlite:///{file}") as directory:
                await directory.claim(record())
                assert modes(file) == {name: mode, f"{name}-shm": mode, f"{name}-wal": mode}
    finally:
        os.umask(before)


@pytest.mark.parametrize(
    ("another", "whole"),
    [(True, True), (False, True), (False, False)],
    ids=["replaced", "deleted", "deleted without its log"],
)
async def test_a_file_of_sqlite_that_is_gone_is_a_directory_that_lost_its_data(
    another: bool, whole: bool, tmp_path: Path
) -> None:
    file, copy, worker = tmp_path / "x.db", tmp_path / "copy.db", Worker("w", number=1)
    async with open_database(f"sqlite+aiosqlite:///{copy}"):
        pass
    async with (
        open_database(f"sqlite+aiosqlite:///{file}") as directory,
        open_database(f"sqlite+aiosqlite:///{file}") as other,
        directory.watch() as changes,
    ):
        await directory.claim(one := record("one"))
        await directory.beat(worker)
        assert await directory.beat(worker)
        for part in modes(file) if whole else [file.name]:
            (tmp_path / part).unlink()
        if another:
            copy.rename(file)
        assert not await directory.beat(worker), "it knew this one"
        assert not await other.beat(Worker("v", number=2))
        assert await directory.get(one.session_id) is None
        with anyio.fail_after(10):
            assert await anext(changes) == "", "anything may have been missed"
            assert await directory.publish(one) == one
            assert await other.replace(one) is not None
            await anext(changes)
        assert [lives.id for lives in await directory.workers()] == ["w", "v"]
        assert modes(file)[file.name] == 0o600


async def test_a_file_of_sqlite_that_is_gone_is_made_anew_by_a_heartbeat_alone(tmp_path: Path) -> None:
    """Not by whoever needs a connection more meanwhile: SQLite would let others read it."""
    file, worker = tmp_path / "100% ?#.db", Worker("w", number=1)
    async with open_database(f"sqlite+aiosqlite:///{quote(str(file))}") as directory:
        assert not await directory.beat(worker)
        file.unlink()

        async def read() -> None:
            with suppress(DirectoryUnavailable):
                await directory.get("x")

        with anyio.fail_after(10):
            async with anyio.create_task_group() as tasks:
                for _ in range(MAX_CONNECTIONS):
                    tasks.start_soon(read)
        assert not file.exists()
        assert not await directory.beat(worker)
        assert modes(file)[file.name] == 0o600
        await directory.claim(one := record("one"))
        assert await directory.get(one.session_id) == one


async def test_where_a_file_of_sqlite_cannot_be_made_anew_it_is_said_and_tried_again(tmp_path: Path) -> None:
    (place := tmp_path / "place").mkdir()
    async with open_database(f"sqlite+aiosqlite:///{place}/x.db") as directory:
        place.rename(tmp_path / "elsewhere")
        for _ in range(2):
            with pytest.raises(DirectoryUnavailable) as refused:
                await directory.beat(Worker("w", number=1))
            assert refused.value.remedy == "make its directory, and let this user write there"
        place.mkdir()
        assert not await directory.beat(Worker("w", number=1))
        assert await directory.beat(Worker("w", number=1))


async def test_a_sweep_forgets_what_has_expired_but_not_that_its_key_was_used(url: str) -> None:
    short, long = msgspec.structs.replace(record("short"), lifetime=0.05), record("long")
    async with open_database(url) as directory:
        await directory.claim(short)
        await directory.claim(long)
        with anyio.fail_after(10):
            while await directory.get(short.session_id) is not None:  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(0.01)
        await directory.sweep()
        again = record("short")
        assert await directory.claim(again) == Claimed(again, "reset")
        assert await directory.get(long.session_id) == long


async def test_numbers_of_living_workers_are_not_given_again_by_a_database_that_was_restored(url: str) -> None:
    async with open_database(url) as directory:
        old = [await directory.enroll(Worker(f"old-{n}")) for n in range(3)]
        server = Server(url)
        async with server.writing() as connection:
            await connection.execute(sa.delete(workers))
            await connection.execute(sa.update(counters).values(next_id=2))
        assert not await directory.beat(old[2])
        assert (await directory.enroll(Worker("new"))).number == old[2].number + 1
        await server.engine.dispose()


async def test_what_another_program_wrote_is_told_as_such(url: str) -> None:
    one = record()
    async with open_database(url) as directory:
        await directory.claim(one)
        await directory.enroll(Worker("one"))
        server = Server(url)
        async with server.writing() as connection:
            await connection.execute(sa.update(records).values(record=b"foreign"))
            await connection.execute(sa.update(workers).values(worker=b"foreign"))
        for work in (lambda: directory.get(one.session_id), directory.workers):
            with pytest.raises(DirectoryUnavailable) as told:
                await work()
            assert "another program" in (told.value.remedy or "")
        await server.engine.dispose()


async def test_a_sweep_forgets_where_things_live_once_their_worker_is_forgotten(url: str) -> None:
    async with open_database(url) as directory:
        living, ended = await directory.enroll(Worker("living")), await directory.enroll(Worker("ended"))
        assert await directory.settle("user:a", living) == living.id
        for n in range(3):
            assert await directory.settle(f"user:{n}", ended) == ended.id
        await directory.retire(ended)
        await directory.sweep()
        server = Server(url)
        async with server.reading() as connection:
            assert list(await connection.scalars(sa.select(homes.c.worker))) == [living.id]
        await server.engine.dispose()
        assert await directory.settle("user:0", living) == living.id


async def test_a_worker_that_was_late_finds_at_home_what_nobody_asked_for(url: str) -> None:
    async with open_database(url) as directory:
        late, other = await directory.enroll(Worker("late")), await directory.enroll(Worker("other"))
        assert await directory.settle("user:a", late) == late.id
        server = Server(url)
        async with server.writing() as connection:
            mine = sa.update(workers).where(workers.c.id == name_digest(late.id))
            await connection.execute(mine.values(expires=server.now() - 1))
        await server.engine.dispose()
        await directory.sweep()
        await directory.sweep()
        assert not await directory.beat(late)
        assert await directory.settle("user:a", other) == late.id


async def test_a_sweep_forgets_a_worker_of_which_there_is_no_word_for_long(url: str) -> None:
    async with open_database(url) as directory:
        killed = await directory.enroll(Worker("killed"))
        assert await directory.settle("user:a", killed) == killed.id
        server = Server(url)
        async with server.writing() as connection:
            await connection.execute(sa.update(workers).values(expires=server.now() - WORKER_MEMORY_SECONDS))
        await directory.sweep()
        await directory.sweep()
        async with server.reading() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(workers)) == 0
            assert await connection.scalar(sa.select(sa.func.count()).select_from(homes)) == 0
        await server.engine.dispose()


async def test_a_home_that_is_swept_while_it_is_asked_for_is_given_anew(backends: Backends) -> None:
    place = backends.place("postgresql")
    place.clear()
    async with open_database(place.url()) as directory:
        first, second = await directory.enroll(Worker("first")), await directory.enroll(Worker("second"))
        await directory.settle("user:a", Worker("dead"))
        server = Server(place.url())
        async with anyio.create_task_group() as tasks, server.writing() as sweep:
            await sweep.execute(sa.select(homes).with_for_update())
            tasks.start_soon(directory.settle, "user:a", first)
            waiting = sa.text("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'")
            with anyio.fail_after(10):
                while not await _seen(server, waiting):  # noqa: ASYNC110 - nobody tells of it
                    await anyio.sleep(0.01)
            await sweep.execute(sa.delete(homes))
        assert await directory.settle("user:a", second) == first.id
        await server.engine.dispose()


async def _seen(server: Server, query: sa.TextClause) -> int:
    async with server.reading() as connection:
        return int(await connection.scalar(query) or 0)


async def test_a_sweep_takes_no_more_steps_for_many_that_expired_than_for_one(url: str) -> None:
    steps = []
    async with open_database(url):
        server = Server(url)
        directory = DatabaseDirectory(server)
        for count in (1, 40):
            for n in range(count):
                await directory.claim(msgspec.structs.replace(record(f"{count}-{n}"), lifetime=-1))
            taken: list[str] = []

            def note(connection: object, cursor: object, statement: str, *_: object, taken: list[str] = taken) -> None:
                taken.append(statement)

            sa.event.listen(server.engine.sync_engine, "before_cursor_execute", note)
            await directory.sweep()
            sa.event.remove(server.engine.sync_engine, "before_cursor_execute", note)
            steps.append(len(taken))
        async with server.reading() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(ended_keys)) == 41
        await server.engine.dispose()
    assert steps[0] == steps[1]


async def test_g7_a_heartbeat_waits_for_no_other_operation(url: str) -> None:
    """Else who has much to do would be taken for dead."""
    ended = list[str]()
    async with open_database(url) as directory, anyio.create_task_group() as tasks:
        me = await directory.enroll(Worker("me"))

        async def claim(n: int) -> None:
            with suppress(DirectoryUnavailable):  # on a busy machine, who has waited for so long
                await directory.claim(record(f"{n}"))
            ended.append("claim")

        async def beat() -> None:
            await directory.beat(me)
            ended.append("beat")

        for n in range(20):
            tasks.start_soon(claim, n)
        await anyio.lowlevel.checkpoint()
        tasks.start_soon(beat)
    assert ended.index("beat") < 10, "it was the last to come"


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
async def test_g7_a_heartbeat_is_taken_while_everything_else_hangs(url: str) -> None:
    one, server = record(), Server(url)
    async with open_database(url) as directory, anyio.create_task_group() as tasks:
        await directory.claim(one)
        me = await directory.enroll(Worker("me"))

        async def use(work: Callable[[], Awaitable[object]]) -> None:
            with suppress(DirectoryUnavailable):  # where it hangs for long
                await work()

        async with server.writing() as connection:
            await connection.execute(sa.text("LOCK TABLE trunkline_records"))
            for _ in range(MAX_CONNECTIONS):
                tasks.start_soon(use, lambda: directory.get(one.session_id))
                tasks.start_soon(use, lambda: directory.draw_ids(one.session_id))
            await anyio.wait_all_tasks_blocked()
            await directory.beat(me)
    await server.engine.dispose()


async def lines_of(server: Server) -> int | None:
    """How many lines all logs have."""
    async with server.reading() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(log))


async def test_a_log_is_forgotten_with_its_record(url: str) -> None:
    keep, line = EventLogLimits(), Entry("event", 1, 1, b"{}")
    server = Server(url)
    async with open_database(url) as directory:

        async def expired(key: str) -> WorkflowRecord:
            one = record(key)
            await directory.claim(one)
            await directory.append(one.session_id, [line] * 3, keep)
            async with server.writing() as connection:
                mine = sa.update(records).where(records.c.token == one.event_token)
                await connection.execute(mine.values(expires=server.now() - 1))
            return one

        await expired("swept")
        await directory.sweep()
        assert await lines_of(server) == 0
        await expired("claimed")
        await directory.claim(record("claimed"))
        assert await lines_of(server) == 0
        again = await expired("published")
        await directory.publish(again)
        assert (await lines_of(server), await directory.read(again.session_id)) == (0, [])
    await server.engine.dispose()


async def test_g10_a_sweep_forgets_all_that_has_expired_and_looks_at_no_log_of_what_lives(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many lines there are: a sweep that took too long would never forget anything."""
    monkeypatch.setattr("trunkline.mux.directory.database.SWEEP_BATCH", 2)
    server, said = Server(url), list[str]()
    async with open_database(url):
        directory = DatabaseDirectory(server)
        for n in range(5):
            await directory.claim(msgspec.structs.replace(record(f"{n}"), lifetime=-1))
        await directory.sweep()
        async with server.reading() as connection:
            assert await connection.scalar(sa.select(sa.func.count()).select_from(records)) == 0
        await directory.claim(record("lives"))
        told = server.engine.sync_engine, "before_cursor_execute", lambda *what: said.append(what[2])
        sa.event.listen(*told)
        await directory.sweep()
        sa.event.remove(*told)
        assert said
        assert not any("trunkline_log" in statement for statement in said)
    await server.engine.dispose()


@pytest.mark.parametrize("url", ["postgresql"], indirect=True)
@pytest.mark.parametrize("isolation", ["repeatable read", "serializable"])
async def test_operations_do_not_fail_by_each_other_whatever_a_database_isolates_by_default(
    url: str, isolation: str
) -> None:
    one, server = record("chat"), Server(url)
    async with server.writing() as connection:
        name = await connection.scalar(sa.func.current_database())
        await connection.execute(sa.text(f"ALTER DATABASE {name} SET default_transaction_isolation TO '{isolation}'"))
    await server.engine.dispose()
    drawn: list[int] = []

    async with open_database(url) as directory:
        await directory.claim(one)

        async def draw() -> None:
            drawn.extend(await directory.draw_ids(one.session_id))

        for _ in range(5):
            async with anyio.create_task_group() as tasks:
                for _ in range(8):
                    tasks.start_soon(draw)
    assert len(set(drawn)) == len(drawn) == 40 * ID_BLOCK


async def test_a_connection_that_postgresql_has_closed_is_given_to_nobody(backends: Backends) -> None:
    """Else what is not done twice fails once after each restart: a heartbeat, or a client that comes."""
    place = backends.place("postgresql")
    place.clear()
    async with open_database(place.url()) as directory:
        taken: list[asyncpg.Connection[asyncpg.Record]] = []
        pool = directory._server.engine.sync_engine
        sa.event.listen(pool, "checkout", lambda connection, *_: taken.append(connection.driver_connection))
        me = await directory.enroll(Worker("me"))
        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(directory.get, "none")
        server = Server(place.url())
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await _seen(server, sa.text(f"SELECT count(pg_terminate_backend(pid)) {others}"))
        await server.engine.dispose()
        with anyio.fail_after(10):
            while not all(connection.is_closed() for connection in taken):  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(0.01)
        assert len(set(map(id, taken))) > 1
        async with anyio.create_task_group() as tasks:
            for n in range(3):
                tasks.start_soon(directory.claim, record(f"{n}"))
            tasks.start_soon(directory.beat, me)


async def test_who_came_to_a_postgresql_that_takes_no_writes_goes_where_the_url_leads(backends: Backends) -> None:
    """In a failover a name may lead to the old primary for a while, which is a standby by then."""
    place = backends.place("postgresql")
    place.clear()
    server = Server(place.url())
    async with open_database(place.url()) as directory, server.engine.connect() as operator:
        me = await directory.enroll(Worker("me"))

        async def say(statement: str) -> None:
            await operator.execute(sa.text(statement))
            await operator.commit()

        role = f"ALTER ROLE CURRENT_USER IN DATABASE {server.engine.url.database}"
        await say(f"{role} SET default_transaction_read_only = on")
        others = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        await say(f"SELECT pg_terminate_backend(pid) {others}")
        with anyio.fail_after(10):
            while True:
                with pytest.raises(DirectoryUnavailable) as refused:
                    await directory.beat(me)
                if refused.value.remedy == "it takes no writes, as a standby does: name the primary":
                    break
        assert [worker.id for worker in await directory.workers()] == ["me"]
        with anyio.fail_after(30):  # nobody notifies there
            await server.listen(lambda _, __: None)
        await say(f"{role} RESET default_transaction_read_only")
        with pytest.raises(DirectoryUnavailable):
            await directory.beat(me)
        await directory.beat(me)
    await server.engine.dispose()
