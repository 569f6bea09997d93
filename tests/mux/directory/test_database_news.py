"""What workers on one database tell each other is told once it is committed, and forgotten once nobody needs it."""

import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
import sqlalchemy as sa
from harness.ports import free_port
from trunkline.mux.directory import MAILBOX_FRAMES, Worker
from trunkline.mux.directory import database_news as module
from trunkline.mux.directory.database import DatabaseDirectory, open_database
from trunkline.mux.directory.database_news import News
from trunkline.mux.directory.database_schema import changes, mail, workers
from trunkline.mux.directory.database_server import Server
from trunkline.mux.directory.names import name_digest
from trunkline.mux.errors import DirectoryUnavailable

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[tuple[DatabaseDirectory, Server]]:
    """A directory, and another way to the same database."""
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    async with open_database(url) as directory:
        server = Server(url)
        yield directory, server
        await server.engine.dispose()


async def count(server: Server, table: sa.Table) -> int:
    async with server.reading() as connection:
        return await connection.scalar(sa.select(sa.func.count()).select_from(table)) or 0


async def test_a_change_that_is_not_committed_is_not_told(at: tuple[DatabaseDirectory, Server]) -> None:
    _, server = at
    news = News(server)
    async with news.changes() as told:
        async with server.writing() as connection:
            await news.tell(connection, "not so")
            await connection.rollback()
        async with server.writing() as connection:
            await news.tell(connection, "so")
        with anyio.fail_after(PATIENCE):
            assert await anext(told) == "so"


async def test_changes_are_forgotten_when_all_have_heard_of_them(
    at: tuple[DatabaseDirectory, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, server = at
    async with server.writing() as connection:
        await directory.news.tell(connection, "one")
    await directory.sweep()
    assert await count(server, changes) == 1
    monkeypatch.setattr(module, "CHANGES_SECONDS", -1)
    await directory.sweep()
    assert await count(server, changes) == 0


async def test_who_begins_to_hear_has_lost_nothing_that_was_forgotten_before(
    at: tuple[DatabaseDirectory, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is lost has all that lives doubted, and nobody called dead for a lease."""
    directory, server = at
    async with server.writing() as connection:
        await directory.news.tell(connection, "before")
    monkeypatch.setattr(module, "CHANGES_SECONDS", -1)
    await directory.sweep()
    async with directory.watch() as told:
        async with server.writing() as connection:
            await directory.news.tell(connection, "one")
        with anyio.fail_after(PATIENCE):
            assert await anext(told) == "one"


async def test_the_mail_of_a_worker_that_is_forgotten_is_forgotten(at: tuple[DatabaseDirectory, Server]) -> None:
    directory, server = at
    living = await directory.enroll(Worker("living"))
    async with server.writing() as connection:
        for one in (living.id, "gone"):
            await directory.news.post(connection, name_digest(one), b"frame")
    await directory.sweep()
    async with server.reading() as connection:
        assert list(await connection.scalars(sa.select(mail.c.worker))) == [name_digest(living.id)]


async def test_a_worker_that_was_late_is_told_that_its_mail_was_swept(at: tuple[DatabaseDirectory, Server]) -> None:
    directory, server = at
    late = await directory.enroll(Worker("late"))
    assert await directory.send(late.id, b"frame")
    async with server.writing() as connection:
        await connection.execute(sa.update(workers).values(expires=server.now() - 1))
    await directory.sweep()
    assert not await directory.beat(late)
    assert await directory.send(late.id, b"next")
    await directory.sweep()
    assert await directory.news._taken(name_digest(late.id)) == [b"", b"next"]


async def test_a_full_mailbox_begins_anew_with_an_empty_frame(at: tuple[DatabaseDirectory, Server]) -> None:
    directory, server = at
    digest = name_digest("slow")
    async with server.writing() as connection:
        for n in range(MAILBOX_FRAMES + 1):
            await directory.news.post(connection, digest, b"%d" % n)
        kept = [frame for (frame,) in await connection.execute(sa.select(mail.c.frame).order_by(mail.c.seq))]
    assert kept == [b"", b"%d" % MAILBOX_FRAMES]


async def test_changes_cannot_be_watched_where_nothing_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WORK_SECONDS", 0.1)
    server = Server(f"postgresql+asyncpg://u@127.0.0.1:{free_port()}/x")
    with pytest.raises(DirectoryUnavailable, match="to listen"):
        async with News(server).changes():
            pass
    await server.engine.dispose()


async def test_who_waits_for_news_on_sqlite_asks_for_them_only_when_there_are_any(
    at: tuple[DatabaseDirectory, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lives beats there all the time."""
    directory, server = at
    monkeypatch.setattr(module, "POLL_SECONDS", 0.001)
    me, other = await directory.enroll(Worker("me")), await directory.enroll(Worker("other"))
    looked, asked = Counter[str](), list[str]()
    look = module.Glance.look

    def noted(glance: module.Glance) -> tuple[int, int] | None:
        looked[glance._name] += 1
        return look(glance)

    def note(connection: object, cursor: object, statement: str, *_: object) -> None:
        asked.append(statement)

    async def looks(times: int) -> None:
        seen = looked.copy()
        with anyio.fail_after(PATIENCE):
            while min(looked[table.name] - seen[table.name] for table in (changes, mail)) < times:  # noqa: ASYNC110
                await anyio.sleep(0.001)

    monkeypatch.setattr(module.Glance, "look", noted)
    elsewhere = DatabaseDirectory(server)
    async with directory.watch() as told, directory.mailbox(me) as mailbox:
        await looks(3)
        sa.event.listen(directory._server.engine.sync_engine, "before_cursor_execute", note)
        for _ in range(5):
            assert await elsewhere.beat(other)
            await looks(2)
        assert asked == []
        assert await elsewhere.send(me.id, b"frame")
        async with server.writing() as connection:
            await elsewhere.news.tell(connection, "x")
        with anyio.fail_after(PATIENCE):
            assert (await anext(mailbox), await anext(told)) == (b"frame", "x")


async def test_who_cannot_look_at_sqlite_asks(
    at: tuple[DatabaseDirectory, Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, _ = at

    def fail(server: Server) -> None:
        raise sqlite3.OperationalError("locked")

    monkeypatch.setattr(Server, "connect_beside", fail)
    me = await directory.enroll(Worker("me"))
    async with directory.mailbox(me) as mailbox:
        for n in range(2):
            assert await directory.send(me.id, b"%d" % n)
            with anyio.fail_after(PATIENCE):
                assert await anext(mailbox) == b"%d" % n
