"""The tables are made by whoever starts first, and not touched by a program that does not know them."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import anyio
import pytest
import sqlalchemy as sa
from contract.directory import ALICE, record
from trunkline.mux.directory.database import open_database
from trunkline.mux.directory.database_schema import version
from trunkline.mux.directory.database_server import Server

pytestmark = pytest.mark.anyio

HELD_SECONDS = 0.3
"""For how long somebody else writes."""


async def test_several_that_start_at_once_make_the_tables_once(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    one = record("chat")

    async def start(n: int) -> None:
        async with open_database(url) as directory:
            if n == 0:
                await directory.claim(one)

    async with anyio.create_task_group() as tasks:
        for n in range(4):
            tasks.start_soon(start, n)
    async with open_database(url) as directory:
        assert await directory.find(ALICE, "x", "chat") == one, "it outlives its workers"


async def test_one_that_starts_on_a_new_file_waits_for_who_writes_there(tmp_path: Path) -> None:
    """SQLite refuses to set the journal beside a writer, and does so at once, whatever the time it may wait."""
    with closing(sqlite3.connect(tmp_path / "x.db", isolation_level=None)) as other:
        other.execute("CREATE TABLE theirs (x)")
        other.execute("BEGIN IMMEDIATE")
        opened = anyio.Event()

        async def start() -> None:
            async with open_database(f"sqlite+aiosqlite:///{tmp_path}/x.db"):
                opened.set()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(start)
            with anyio.move_on_after(HELD_SECONDS):
                await opened.wait()
            assert not opened.is_set()
            other.execute("COMMIT")
        assert opened.is_set()


async def test_a_call_that_is_given_up_within_a_statement_leaves_nothing_behind(tmp_path: Path) -> None:
    """To SQLite alone: what closes a connection whose call was cancelled may wait for its thread for ever."""
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    before = asyncio.all_tasks()
    async with open_database(url):
        server = Server(url)

        async def look() -> None:
            for use in (server.reading, server.writing):
                async with use() as connection:
                    await connection.execute(sa.select(version))

        for steps in range(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(look)
                for _ in range(steps):
                    await asyncio.sleep(0)
                tasks.cancel_scope.cancel()
        await server.engine.dispose()
    with anyio.fail_after(10):
        while left := asyncio.all_tasks() - before:
            await asyncio.wait(left, timeout=0.1)


async def test_tables_of_a_newer_version_are_left_alone(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path}/x.db"
    async with open_database(url):
        pass
    server = Server(url)
    async with server.writing() as connection:
        await connection.execute(sa.update(version).values(version=99))
    await server.engine.dispose()
    with pytest.raises(ValueError, match="schema 99"):
        async with open_database(url):
            pass
