"""The database directory forgets what has expired, and keeps what has not."""

from collections.abc import Iterator

import anyio
import msgspec
import pytest
import sqlalchemy as sa
from contract.directory import record
from harness.backends import Backends
from trunkline.mux.directory import Claimed, Worker
from trunkline.mux.directory.database import DatabaseDirectory, open_database
from trunkline.mux.directory.database_schema import ended_keys, homes
from trunkline.mux.directory.database_server import Server

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def backends() -> Iterator[Backends]:
    """The databases, for all tests of this file."""
    backends = Backends()
    yield backends
    backends.close()


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, backends: Backends) -> str:
    """Where an empty database is."""
    place = backends.place(request.param)
    place.clear()
    return place.url()


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
