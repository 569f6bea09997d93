"""The directory in a database: SQLite for the workers of one host, PostgreSQL for those of several.

Each operation is one transaction. Expired rows count as gone at once, and are swept up now and then.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from itertools import islice
from typing import Final, TypeVar

import anyio
import msgspec
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from ..errors import DirectoryUnavailable
from ..limits import EventLogLimits
from ..principal import Principal
from ..record import WorkflowRecord
from . import ID_BLOCK, KEY_MEMORY_SECONDS, LEASE_SECONDS, SHARED, SHARED_SECONDS, Claimed, Entry, Worker
from .background import beside
from .database_news import News
from .database_schema import counters, ended_keys, ends, homes, log, migrate, records, workers
from .database_server import WORK_SECONDS, Server
from .names import key_digest, key_digest_of, name_digest, token_of

logger = logging.getLogger(__name__)

SWEEP_SECONDS: Final = 30.0
SWEEP_BATCH: Final = 50
"""Records that are swept up at once: each has a log, and nobody else writes to a SQLite file meanwhile."""

BATCH: Final = 500
NUMBER: Final = "worker-number"

WORKER_MEMORY_SECONDS: Final = 3600.0
"""For how long it is known of a worker that is not heard any more, and did not retire: it may have been cut off. What
lives there stays at home meanwhile, where nobody asks for it."""

Result = TypeVar("Result")

_encode = msgspec.msgpack.Encoder().encode
_record_decoder = msgspec.msgpack.Decoder(WorkflowRecord)
_entry_decoder = msgspec.msgpack.Decoder(Entry)
_worker_decoder = msgspec.msgpack.Decoder(Worker)


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator["DatabaseDirectory"]:
    """The directory at a URL; see `database_server` for its forms. Its tables are made or brought up to date.

    Raises:
        ValueError: the URL is not one of them, or the tables are those of a newer version.
        DirectoryUnavailable: the database cannot be opened.
    """
    server = Server(url)
    directory = DatabaseDirectory(server)
    try:
        await _prepare(server)
        works = [directory.sweep_on] if server.is_sqlite else [directory.sweep_on, directory.news.listen]
        async with beside(*works):
            yield directory
    finally:
        with anyio.move_on_after(WORK_SECONDS, shield=True):
            await server.engine.dispose()


async def _prepare(server: Server) -> None:
    """Make sure that it can be opened, and has all tables. Raises as `open_database`."""
    identity = await server.probe()
    async with server.writing(WORK_SECONDS) as connection:
        await migrate(connection)
    server.identity = identity


class DatabaseDirectory:
    """Implements `SharedDirectory`."""

    def __init__(self, server: Server) -> None:
        self.news = News(server)
        self._server = server

    # Records

    async def claim(self, record: WorkflowRecord) -> Claimed:
        """See `Directory.claim`."""
        key = key_digest_of(record) or None
        while True:
            async with self._server.writing() as connection:
                claimed = await self._claim(connection, record, key)
            if claimed is not None:
                return claimed

    async def publish(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `SharedDirectory.publish`."""
        mine, ended = records.c.token == record.event_token, ends.c.token == record.event_token
        while True:
            async with self._server.writing() as connection:
                standing = await self._select(connection, mine)
                if standing is not None and standing.is_behind(record):
                    if await self._put(connection, record, standing):
                        return record
                    continue
                if standing is not None:
                    return standing
                if await connection.scalar(sa.select(ends.c.token).where(ended, ends.c.expires > self._server.now())):
                    return None
                await self._forget(connection, mine)  # it has expired
                claimed = await self._claim(connection, record, key_digest_of(record) or None)
            if claimed is not None:
                return claimed.record

    async def _claim(self, connection: AsyncConnection, record: WorkflowRecord, key: str | None) -> Claimed | None:
        """None where a record stood in the way that is gone already."""
        now, state = self._server.now(), "created"
        expired = sa.and_(records.c.key == key, records.c.expires <= now)
        if key is not None and await self._forget(connection, expired):
            state = "reset"
        stored = self._server.insert(records).values(
            token=record.event_token,
            key=key,
            epoch=record.epoch,
            record=_encode(record),
            lifetime=record.lifetime,
            touched=now,
            expires=now + record.lifetime,
            next_id=record.first_id,
            log_events=0,
            log_bytes=0,
        )
        if (await connection.execute(stored.on_conflict_do_nothing())).rowcount:
            await connection.execute(sa.delete(ends).where(ends.c.token == record.event_token))
            if key is not None:
                ended = sa.delete(ended_keys).where(ended_keys.c.key == key, ended_keys.c.expires > now)
                if (await connection.execute(ended)).rowcount:
                    state = "reset"
            return Claimed(record, "reset" if state == "reset" else "created")
        standing = await self._select(connection, records.c.key == key) if key is not None else None
        if standing is not None:
            return Claimed(standing, "resumed")
        if await connection.scalar(sa.select(records.c.epoch).where(records.c.token == record.event_token)) is not None:
            raise ValueError("a session id is drawn once")
        return None

    async def _select(self, connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> WorkflowRecord | None:
        stored = await connection.scalar(sa.select(records.c.record).where(condition, self._is_live()))
        return None if stored is None else _record_decoder.decode(stored)

    def _is_live(self) -> sa.ColumnElement[bool]:
        return records.c.expires > self._server.now()

    async def get(self, session_id: str) -> WorkflowRecord | None:
        """See `Directory.get`."""
        return await self._found(records.c.token == token_of(session_id))

    async def at(self, event_token: str) -> WorkflowRecord | None:
        """See `SharedDirectory.at`."""
        if not (event_token.isascii() and event_token.isalnum()):
            return None
        return await self._found(records.c.token == event_token)

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        """See `Directory.find`."""
        return await self._found(records.c.key == key_digest(principal, server, key))

    async def has_ended(self, principal: Principal, server: str, key: str) -> bool:
        """See `Directory.has_ended`."""
        digest = key_digest(principal, server, key)

        async def ask(connection: AsyncConnection) -> bool:
            now = self._server.now()
            expires = sa.select(records.c.expires > now).where(records.c.key == digest)
            ended = sa.select(ended_keys.c.key).where(ended_keys.c.key == digest, ended_keys.c.expires > now)
            lives = await connection.scalar(expires)
            return not lives and (lives is not None or await connection.scalar(ended) is not None)

        return await self._read(ask)

    async def _found(self, condition: sa.ColumnElement[bool]) -> WorkflowRecord | None:
        return await self._read(lambda connection: self._select(connection, condition))

    async def _read(self, ask: Callable[[AsyncConnection], Awaitable[Result]]) -> Result:
        """What this finds in one transaction that changes nothing; a second time where the first one failed."""

        async def read() -> Result:
            async with self._server.reading() as connection:
                return await ask(connection)

        return await _again(read)

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        """See `Directory.replace`."""
        changed = msgspec.structs.replace(record, epoch=record.epoch + 1)
        async with self._server.writing() as connection:
            return changed if await self._put(connection, changed, record) else None

    async def _put(self, connection: AsyncConnection, record: WorkflowRecord, stored: WorkflowRecord) -> bool:
        """Store a record in the place of another state of it; False where that does not stand."""
        now = self._server.now()
        done = await connection.execute(
            sa.update(records)
            .where(self._is(stored))
            .values(
                record=_encode(record),
                epoch=record.epoch,
                lifetime=record.lifetime,
                touched=now,
                expires=now + record.lifetime,
            )
        )
        if not done.rowcount:
            return False
        await self.news.tell(connection, record.session_id)
        return True

    async def remove(self, record: WorkflowRecord) -> bool:
        """See `Directory.remove`."""
        async with self._server.writing() as connection:
            if not await self._forget(connection, self._is(record)):
                return False
            until = self._server.now() + record.lifetime
            ended = self._server.insert(ends).values(token=record.event_token, expires=until)
            await connection.execute(ended.on_conflict_do_nothing())
            if record.key is not None:
                await self._remember(connection, [key_digest_of(record)])
            await self.news.tell(connection, record.session_id)
        return True

    def _is(self, record: WorkflowRecord) -> sa.ColumnElement[bool]:
        return sa.and_(records.c.token == record.event_token, records.c.epoch == record.epoch, self._is_live())

    async def _remember(self, connection: AsyncConnection, keys: Sequence[str]) -> None:
        if not keys:
            return
        noted = self._server.insert(ended_keys).values(expires=self._server.now() + KEY_MEMORY_SECONDS)
        again = noted.on_conflict_do_update(index_elements=["key"], set_={"expires": noted.excluded.expires})
        await connection.execute(again, [{"key": key} for key in keys])

    async def touch(self, session_ids: Collection[str]) -> None:
        """See `SharedDirectory.touch`."""
        tokens = iter(sorted(token_of(session_id) for session_id in session_ids))
        while batch := list(islice(tokens, BATCH)):
            await _again(lambda batch=batch: self._touch(batch))  # type: ignore[misc]

    async def _touch(self, tokens: list[str]) -> None:
        async with self._server.writing() as connection:
            now = self._server.now()
            used = sa.update(records).where(records.c.token.in_(tokens), self._is_live())
            await connection.execute(used.values(touched=now, expires=now + records.c.lifetime))

    async def untouched(self, session_id: str) -> float | None:
        """See `SharedDirectory.untouched`."""
        asked = sa.select(self._server.now() - records.c.touched)
        mine = records.c.token == token_of(session_id)
        passed = await self._read(lambda connection: connection.scalar(asked.where(mine, self._is_live())))
        return None if passed is None else max(0.0, passed)

    async def draw_ids(self, name: str, above: int = 0) -> range:
        """See `Directory.draw_ids`."""
        async with self._server.writing() as connection:
            if name.startswith(SHARED):
                following = await self._count(connection, name_digest(name), ID_BLOCK, SHARED_SECONDS, above)
            else:
                drawn = sa.update(records).where(records.c.token == token_of(name), self._is_live())
                drawn = drawn.values(next_id=_beyond(records.c.next_id, above) + ID_BLOCK)
                following = await connection.scalar(drawn.returning(records.c.next_id))
        if following is None:
            raise KeyError("no such session")
        return range(following - ID_BLOCK, following)

    async def _count(
        self, connection: AsyncConnection, name: str, size: int, seconds: float | None, above: int = 0
    ) -> int:
        """Add to a counter; the first number after what was drawn, which is above what is known."""
        expires = None if seconds is None else self._server.now() + seconds
        first = self._server.insert(counters).values(name=name, next_id=above + 1 + size, expires=expires)
        later = {"next_id": _beyond(counters.c.next_id, above) + size, "expires": first.excluded.expires}
        drawn = first.on_conflict_do_update(index_elements=["name"], set_=later).returning(counters.c.next_id)
        return int(await connection.scalar(drawn))

    def watch(self) -> AbstractAsyncContextManager[AsyncIterator[str]]:
        """See `SharedDirectory.watch`."""
        return self.news.changes()

    # Logs

    async def append(self, session_id: str, entries: Sequence[Entry], keep: EventLogLimits) -> None:
        """See `Logs.append`."""
        if not entries:
            return
        token = token_of(session_id)
        mine = records.c.token == token
        sizes = sa.select(records.c.log_events, records.c.log_bytes).where(mine, self._is_live()).with_for_update()
        async with self._server.writing() as connection:
            kept = (await connection.execute(sizes)).first()
            if kept is None:
                return
            lines = [{"token": token, "size": len(entry.message), "entry": _encode(entry)} for entry in entries]
            await connection.execute(sa.insert(log), lines)
            count, size = kept.log_events + len(entries), kept.log_bytes + sum(len(entry.message) for entry in entries)
            if count > keep.events or size > keep.bytes:
                count, size = await self._trim(connection, token, count, size, keep)
            await connection.execute(sa.update(records).where(mine).values(log_events=count, log_bytes=size))

    async def _trim(
        self, connection: AsyncConnection, token: str, count: int, size: int, keep: EventLogLimits
    ) -> tuple[int, int]:
        """Drop the oldest lines beyond `keep`; number and bytes of those that stay."""
        last = 0
        oldest = sa.select(log.c.seq, log.c.size).where(log.c.token == token).order_by(log.c.seq)
        for line in (await connection.execute(oldest)).all():
            if count <= keep.events and size <= keep.bytes:
                break
            count, size, last = count - 1, size - line.size, line.seq
        await connection.execute(sa.delete(log).where(log.c.token == token, log.c.seq <= last))
        return count, size

    async def read(self, session_id: str) -> list[Entry]:
        """See `Logs.read`."""
        mine = sa.and_(records.c.token == token_of(session_id), records.c.token == log.c.token, self._is_live())

        async def read(connection: AsyncConnection) -> list[Entry]:
            lines = await connection.scalars(sa.select(log.c.entry).where(mine).order_by(log.c.seq))
            return [_entry_decoder.decode(line) for line in lines]

        return await self._read(read)

    # Workers

    async def enroll(self, worker: Worker) -> Worker:
        """See `Workers.enroll`."""
        async with self._server.writing() as connection:
            number = await self._count(connection, NUMBER, 1, None) - 1
            enrolled = msgspec.structs.replace(worker, number=number)
            await self._note(connection, enrolled)
        return enrolled

    async def _note(self, connection: AsyncConnection, worker: Worker) -> None:
        expires = self._server.now() + LEASE_SECONDS
        noted = self._server.insert(workers).values(id=name_digest(worker.id), worker=_encode(worker), expires=expires)
        changed = {"worker": noted.excluded.worker, "expires": noted.excluded.expires}
        await connection.execute(noted.on_conflict_do_update(index_elements=["id"], set_=changed))

    async def beat(self, worker: Worker) -> bool:
        """See `Workers.beat`. A file that was deleted is made anew: it is a directory that has lost its data."""
        if self._server.is_left:
            try:
                await _prepare(self._server)
            except ValueError as error:
                raise DirectoryUnavailable(str(error)) from None
            logger.error("the directory's file was deleted or replaced: what lives here is told to another one")
        async with self._server.beating() as connection:
            was_alive = await self._lives(connection, name_digest(worker.id))
            if not was_alive:  # a database that was restored from a copy learns which numbers were given
                await self._count(connection, NUMBER, 0, None, worker.number)
            await self._note(connection, worker)
        return was_alive

    async def _lives(self, connection: AsyncConnection, digest: str) -> bool:
        living = sa.select(workers.c.id).where(workers.c.id == digest, workers.c.expires > self._server.now())
        return await connection.scalar(living) is not None

    async def retire(self, worker: Worker) -> None:
        """See `Workers.retire`."""
        digest = name_digest(worker.id)

        async def retire() -> None:
            async with self._server.writing() as connection:
                await connection.execute(sa.delete(workers).where(workers.c.id == digest))
                await self.news.drop_mail(connection, digest)

        await _again(retire)

    async def worker(self, id: str) -> Worker | None:
        """See `Workers.worker`."""
        found = await self._living(workers.c.id == name_digest(id))
        return found[0] if found else None

    async def workers(self) -> list[Worker]:
        """See `Workers.workers`."""
        return sorted(await self._living(sa.true()), key=lambda worker: worker.number)

    async def _living(self, condition: sa.ColumnElement[bool]) -> list[Worker]:
        living = sa.select(workers.c.worker).where(condition, workers.c.expires > self._server.now())

        async def find(connection: AsyncConnection) -> list[Worker]:
            return [_worker_decoder.decode(packed) for packed in await connection.scalars(living)]

        return await self._read(find)

    async def settle(self, name: str, worker: Worker) -> str:
        """See `Workers.settle`."""
        while True:
            async with self._server.writing() as connection:
                home = await self._settle(connection, name_digest(name), worker.id)
            if home is not None:
                return home

    async def _settle(self, connection: AsyncConnection, name: str, worker: str) -> str | None:
        """None where a home stood in the way that is swept already."""
        first = self._server.insert(homes).values(name=name, worker=worker)
        await connection.execute(first.on_conflict_do_nothing())
        mine = homes.c.name == name
        home: str | None = await connection.scalar(sa.select(homes.c.worker).where(mine).with_for_update())
        if home is None or home == worker or await self._goes_on(connection, name_digest(home)):
            return home
        await connection.execute(sa.update(homes).where(mine).values(worker=worker))
        return worker

    async def _goes_on(self, connection: AsyncConnection, digest: str) -> bool:
        """Whether a worker lives, and is not to end."""
        living = sa.select(workers.c.worker).where(workers.c.id == digest, workers.c.expires > self._server.now())
        packed: bytes | None = await connection.scalar(living)
        return packed is not None and not _worker_decoder.decode(packed).drains

    async def send(self, worker: str, frame: bytes) -> bool:
        """See `Workers.send`."""
        digest = name_digest(worker)
        async with self._server.writing() as connection:
            if not await self._lives(connection, digest):
                return False
            await self.news.post(connection, digest, frame)
        return True

    def mailbox(self, worker: Worker) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """See `Workers.mailbox`."""
        return self.news.mail(name_digest(worker.id))

    # Beside

    async def sweep_on(self) -> None:
        """Forget what has expired, now and then."""
        while True:
            await anyio.sleep(SWEEP_SECONDS)
            await self.sweep()

    async def sweep(self) -> None:
        """Forget what has expired."""
        while await self._sweep_records() == SWEEP_BATCH:
            pass
        async with self._server.writing(WORK_SECONDS) as connection:
            now = self._server.now()
            await self._forget_homes(connection)
            await connection.execute(sa.delete(workers).where(workers.c.expires <= now - WORKER_MEMORY_SECONDS))
            for table in (ends, ended_keys, counters):
                await connection.execute(sa.delete(table).where(table.c.expires <= now))
            await self.news.sweep(connection)

    async def _sweep_records(self) -> int:
        """Forget some records that have expired, which nobody is about to use; how many."""
        async with self._server.writing(WORK_SECONDS) as connection:
            some = sa.select(records.c.token).where(records.c.expires <= self._server.now()).limit(SWEEP_BATCH)
            expired = await self._forget(connection, records.c.token.in_(some.with_for_update(skip_locked=True)))
            await self._remember(connection, [key for key in expired.values() if key is not None])
        return len(expired)

    async def _forget(self, connection: AsyncConnection, condition: sa.ColumnElement[bool]) -> dict[str, str | None]:
        """Delete records with their logs: the keys of those that there were, by their tokens."""
        deleted = sa.delete(records).where(condition).returning(records.c.token, records.c.key)
        gone = {record.token: record.key for record in await connection.execute(deleted)}
        if gone:
            await connection.execute(sa.delete(log).where(log.c.token.in_(gone)))
        return gone

    async def _forget_homes(self, connection: AsyncConnection) -> None:
        """Nothing lives any more at workers that are forgotten. Homes are read first: who settles is known before."""
        settled = list(await connection.scalars(sa.select(homes.c.worker).distinct()))
        known = set(await connection.scalars(sa.select(workers.c.id)))
        # In one order everywhere: of two sweeps at once, none waits for the other in a circle.
        gone = [{"gone": worker} for worker in sorted(settled) if name_digest(worker) not in known]
        if gone:
            await connection.execute(sa.delete(homes).where(homes.c.worker == sa.bindparam("gone")), gone)


def _beyond(next_id: sa.ColumnElement[int], above: int) -> sa.ColumnElement[int]:
    return sa.case((next_id > above, next_id), else_=above + 1)


async def _again(work: Callable[[], Awaitable[Result]]) -> Result:
    """Do what may be done twice, a second time if it failed: a connection of the pool may have been cut before."""
    try:
        return await work()
    except DirectoryUnavailable as failed:
        if isinstance(failed.__cause__, TimeoutError):
            raise
    return await work()
