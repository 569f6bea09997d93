"""What workers tell each other through a database: changes of records, and mail. PostgreSQL notifies; SQLite is asked.

Both are written in the transaction that they belong to, and are told to others once that is committed.
"""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Final

import anyio
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import DirectoryUnavailable
from . import MAILBOX_FRAMES, WATCH_BUFFER
from .background import beside
from .database_schema import changes, mail, workers
from .database_server import CHANGES, MAIL, WORK_SECONDS, Server
from .feed import Feed

POLL_SECONDS: Final = 0.05
"""How often SQLite is looked at for news."""

UNASKED_SECONDS: Final = 5.0
"""How long PostgreSQL is not asked for mail where it told of none."""

CHANGES_SECONDS: Final = 60
"""How long SQLite keeps a change for those who ask."""


_LAST: Final = sa.text("SELECT seq FROM sqlite_sequence WHERE name = :name")
"""The number that was given last in a table of SQLite, though nothing of that may be left."""


class Glance:
    """Whether a table of SQLite has got a row: looked for in the event loop, which takes some 20 µs and waits for none.

    A question that goes through a thread, in a transaction of its own, takes many times as long.
    """

    def __init__(self, server: Server, table: sa.Table) -> None:
        self._server = server
        self._name = table.name
        self._connection: sqlite3.Connection | None = None
        self._opened = 0
        self._seen: tuple[int, int] | None = None

    def close(self) -> None:
        """Look no more."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def news(self) -> None:
        """Wait until there may be a row that was not there when the last wait was over."""
        while True:
            await anyio.sleep(POLL_SECONDS)
            last = self.look()
            if last is None or last != self._seen:
                self._seen = last
                return

    def look(self) -> tuple[int, int] | None:
        """The number that was given last, and of which file; None where that cannot be told now."""
        try:
            if self._connection is None or self._opened != self._server.opened:
                self.close()
                self._opened = self._server.opened
                self._connection = self._server.connect_beside()
            row = self._connection.execute(_LAST.text, {"name": self._name}).fetchone()
        except sqlite3.Error:
            return None
        return self._opened, row[0] if row else 0


class News:
    """The news of one database. On PostgreSQL, `listen` must run beside it. Workers go by the digests of their ids."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._watchers: set[Feed[str]] = set()
        self._mailboxes: dict[str, Feed[None]] = {}
        """By worker; what is fed says that there may be mail."""
        self._listens = anyio.Event()

    # Changes

    async def tell(self, connection: AsyncConnection, session_id: str) -> None:
        """The record of this session was changed or removed."""
        if self._server.is_sqlite:
            await connection.execute(sa.insert(changes).values(session_id=session_id, at=self._server.now()))
        else:
            await connection.execute(sa.select(sa.func.pg_notify(CHANGES, session_id)))

    @asynccontextmanager
    async def changes(self) -> AsyncIterator[AsyncIterator[str]]:
        """See `SharedDirectory.watch`."""
        feed = Feed(WATCH_BUFFER, "")
        if self._server.is_sqlite:
            async with self._server.reading() as connection:
                last = await connection.scalar(_LAST, {"name": changes.name}) or 0
            async with beside(lambda: self._poll_changes(feed, last)):
                yield feed
            return
        await self._listening()
        self._watchers.add(feed)
        try:
            yield feed
        finally:
            self._watchers.discard(feed)

    async def _poll_changes(self, feed: Feed[str], last: int) -> None:
        asked = sa.select(changes.c.seq, changes.c.session_id).order_by(changes.c.seq)
        opened = self._server.opened
        with closing(Glance(self._server, changes)) as glance:
            while True:
                is_lost = opened != self._server.opened
                if is_lost:  # its numbers begin anew
                    opened, last = self._server.opened, 0
                try:
                    async with self._server.reading() as connection:
                        news = (await connection.execute(asked.where(changes.c.seq > last))).all()
                except DirectoryUnavailable:
                    feed.lose()
                    await anyio.sleep(POLL_SECONDS)
                    continue
                if is_lost or (news and news[0].seq > last + 1):
                    feed.lose()
                for change in news:
                    feed.tell(change.session_id)
                    last = change.seq
                await glance.news()

    # Mail

    async def post(self, connection: AsyncConnection, worker: str, frame: bytes) -> None:
        """Put a frame into a worker's mailbox; those of a full one give way to an empty one."""
        mine = mail.c.worker == worker
        waiting = await connection.scalar(sa.select(sa.func.count()).select_from(mail).where(mine)) or 0
        frames = [frame]
        if waiting >= MAILBOX_FRAMES:
            await connection.execute(sa.delete(mail).where(mine))
            frames = [b"", frame]
        await connection.execute(sa.insert(mail), [{"worker": worker, "frame": each} for each in frames])
        if not self._server.is_sqlite:
            await connection.execute(sa.select(sa.func.pg_notify(MAIL, worker)))

    @asynccontextmanager
    async def mail(self, worker: str) -> AsyncIterator[AsyncIterator[bytes]]:
        """See `Workers.mailbox`."""
        feed, news = Feed(MAILBOX_FRAMES, b""), Feed[None](1, None)
        await self._taken(worker)
        self._mailboxes[worker] = news
        try:
            async with beside(lambda: self._take_on(worker, feed, news)):
                yield feed
        finally:
            self._mailboxes.pop(worker, None)

    async def drop_mail(self, connection: AsyncConnection, worker: str) -> None:
        """Nobody will read what this worker was sent."""
        await connection.execute(sa.delete(mail).where(mail.c.worker == worker))

    async def _take_on(self, worker: str, feed: Feed[bytes], news: Feed[None]) -> None:
        is_lost = False
        with closing(Glance(self._server, mail)) as glance:
            while True:
                try:
                    frames = await self._taken(worker)
                except DirectoryUnavailable:  # what was taken may not have arrived here
                    is_lost = True
                    await anyio.sleep(POLL_SECONDS)
                    continue
                if is_lost:
                    feed.lose()
                    is_lost = False
                for frame in frames:
                    feed.tell(frame)
                if self._server.is_sqlite:
                    await glance.news()
                    continue
                with anyio.move_on_after(UNASKED_SECONDS):
                    await anext(news)

    async def _taken(self, worker: str) -> list[bytes]:
        mine = mail.c.worker == worker
        async with self._server.reading() as connection:
            if await connection.scalar(sa.select(mail.c.seq).where(mine).limit(1)) is None:
                return []
        async with self._server.writing() as connection:
            taken = (await connection.execute(sa.delete(mail).where(mine).returning(mail.c.seq, mail.c.frame))).all()
        return [row.frame for row in sorted(taken, key=lambda row: row.seq)]

    # Both

    async def sweep(self, connection: AsyncConnection) -> None:
        """Forget changes that all have heard by now, and the mail of workers that do not live.

        One that is only late is told so: its frames give way to empty ones.
        """
        now = self._server.now()
        await connection.execute(sa.delete(changes).where(changes.c.at <= now - CHANGES_SECONDS))
        known = sa.select(workers.c.id)
        await connection.execute(sa.delete(mail).where(mail.c.worker.not_in(known)))
        late = mail.c.worker.in_(known.where(workers.c.expires <= now))
        await connection.execute(sa.update(mail).where(late, mail.c.frame != b"").values(frame=b""))

    async def listen(self) -> None:
        """Hear what PostgreSQL notifies, until the connection breaks."""
        try:
            await self._server.listen(self._hear)
        finally:
            self._listens = anyio.Event()

    def _hear(self, channel: str, content: str | None) -> None:
        if content is None:
            for watcher in self._watchers:
                watcher.lose()
            for news in self._mailboxes.values():
                news.tell(None)
            self._listens.set()
        elif channel == CHANGES:
            for watcher in self._watchers:
                watcher.tell(content)
        elif content in self._mailboxes:
            self._mailboxes[content].tell(None)

    async def _listening(self) -> None:
        with anyio.move_on_after(WORK_SECONDS) as patience:
            while not self._listens.is_set():
                with anyio.move_on_after(POLL_SECONDS):
                    await self._listens.wait()
        if patience.cancelled_caught:
            raise DirectoryUnavailable("the database cannot be reached to listen to it")
