"""A SQLite file or a PostgreSQL, by URL: how it is connected to, told apart, and heard.

sqlite+aiosqlite:///relative.db, sqlite+aiosqlite:////absolute.db     the workers of one host
postgresql+asyncpg://user:password@host[:port]/database               the workers of several; ?sslmode= as elsewhere
"""

import asyncio
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from typing import Any, Final
from urllib.parse import quote

import anyio
import anyio.to_thread
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DisconnectionError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from ..errors import DirectoryUnavailable
from .names import UNREADABLE

OPERATION_SECONDS: Final = 2.5
"""For how long one operation is tried, with its wait for a connection and for the locks of others: a call may wait for
one of them, and is to have its answer within 3 s."""

WORK_SECONDS: Final = 5.0
"""The same for work that no call waits for."""

SERVER_SECONDS: Final = 2.0
RETRY_SECONDS: Final = 0.02
MAX_CONNECTIONS: Final = 10
"""For all that goes on; there is one more for heartbeats."""

DRIVERS: Final = ("sqlite+aiosqlite", "postgresql+asyncpg")
CACHE: Final = "prepared_statement_cache_size"
OPTIONS: Final = ("host", "port", "ssl", "passfile", "krbsrvname", "target_session_attrs", CACHE)
"""What the URL of a PostgreSQL may ask for after `?`; `sslmode` as well, which the driver calls `ssl`."""

CHANGES: Final = "trunkline_changes"
MAIL: Final = "trunkline_mail"
STANDBY: Final = "ReadOnlySQLTransactionError"
READS: Final = {"trunkline_reads": True}

_IDENTITY: Final = "correct user and password in the URL"
_DISK: Final = "its disk is full: make room there"

REMEDIES: Final[Mapping[str, str]] = {
    "SQLITE_CANTOPEN": "make its directory, and let this user write there",
    "SQLITE_READONLY": "let this user write the file and its directory",
    "SQLITE_FULL": _DISK,
    "SQLITE_IOERR": "its disk fails, or is full: look there",
    "SQLITE_NOTADB": "it is no SQLite database: name another file",
    "SQLITE_CORRUPT": "the file is damaged: move it away, and begin with a new one",
    "SQLITE_BUSY": "another program keeps it locked: end that",
    "InvalidPasswordError": _IDENTITY,
    "InvalidAuthorizationSpecificationError": _IDENTITY,
    "InvalidCatalogNameError": "create the database, or correct its name in the URL",
    "InsufficientPrivilegeError": "let its user create tables: GRANT CREATE ON SCHEMA public",
    STANDBY: "it takes no writes, as a standby does: name the primary",
    "TooManyConnectionsError": "raise its max_connections",
    "DiskFullError": _DISK,
    "DecodeError": UNREADABLE,
    "ValidationError": UNREADABLE,
}
"""What to do, by what a database fails with: an error's class, or the first two words of SQLite's name for it."""

Hear = Callable[[str, str | None], None]


class Server:
    """One database."""

    def __init__(self, url: str) -> None:
        with _reading_url():
            parsed = sa.make_url(url)
        if parsed.drivername not in DRIVERS:
            raise ValueError("the URL of a database begins with one of " + ", ".join(DRIVERS))
        if not parsed.database or ":memory:" in parsed.database:
            raise ValueError("the URL must name a database that several workers can open, with a path or a name")
        if parsed.drivername == DRIVERS[0] and parsed.host:
            raise ValueError("the URL has three slashes before a relative path, four before an absolute one")
        self.is_sqlite = parsed.drivername == DRIVERS[0]
        self._file, self._url = _sqlite_file(parsed) if self.is_sqlite else ("", _with_options(parsed))
        self._turns = anyio.Semaphore(MAX_CONNECTIONS)
        """Of whoever reads; on PostgreSQL, of whoever writes as well."""
        self._writers = anyio.Semaphore(1) if self.is_sqlite else self._turns
        self._places = anyio.Semaphore(1 if self.is_sqlite else MAX_CONNECTIONS + 1)
        """Of whoever writes, heartbeats among them: these need no turn, and go before whoever has none yet."""
        with _reading_url():  # hosts and ports among its options are read here
            self.engine = self._made()
        self.opened = 0
        """How often it was probed: connections of before lead to a SQLite file that may be gone."""
        self.identity: tuple[int, int] | None = None
        """Of the SQLite file that is open."""

    def _made(self) -> AsyncEngine:
        options: dict[str, Any] = {"pool_size": MAX_CONNECTIONS + 1, "max_overflow": 0, "pool_timeout": SERVER_SECONDS}
        if not self.is_sqlite:
            times = {"timeout": SERVER_SECONDS, "command_timeout": SERVER_SECONDS}
            # What conflicts waits: by what a database may isolate with instead, one of two operations would fail.
            options.update(connect_args=times, isolation_level="READ COMMITTED")
            engine = create_async_engine(self._url, **options)
            sa.event.listen(engine.sync_engine, "checkout", _sound)
            sa.event.listen(engine.sync_engine, "handle_error", _leave_standby)
            return engine
        engine = create_async_engine(self._url, connect_args={"timeout": SERVER_SECONDS}, **options)
        sa.event.listen(engine.sync_engine, "connect", self._connected)
        sa.event.listen(engine.sync_engine, "checkout", self._taken)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine

    def _connected(self, connection: Any, record: Any) -> None:
        record.info["opened"] = self.opened
        _prepare_sqlite(connection)

    def _taken(self, _: Any, record: Any, __: Any) -> None:
        if record.info["opened"] != self.opened:
            raise DisconnectionError  # another one is made in its place

    async def probe(self) -> tuple[int, int] | None:
        """Return if a SQLite file can be opened, or made: its identity, if a path names it.

        The driver would start a thread first, which ends beside its failure: it may find the loop closed by then.

        Raises:
            DirectoryUnavailable: it cannot.
        """
        if not self.is_sqlite:
            return None
        with reaching():
            await anyio.to_thread.run_sync(self._try_sqlite)
        self.opened += 1
        return _identity(self._file)

    def _try_sqlite(self) -> None:
        """Open the file once. One that is not there is made for this user alone: SQLite would let others read it."""
        if self._file:
            with suppress(OSError):  # SQLite says what is wrong
                os.close(os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o600))
        self.connect_beside().close()

    def connect_beside(self) -> sqlite3.Connection:
        """Another connection to the SQLite file, for reads in the event loop: it waits for no lock.

        Raises:
            sqlite3.Error: there is none now.
        """
        (file,), options = self.engine.dialect.create_connect_args(self._url)
        connection: sqlite3.Connection = sqlite3.connect(file, **{**options, "timeout": 0})
        return connection

    @property
    def is_left(self) -> bool:
        """True where the SQLite file that is open was deleted, or another one has taken its place."""
        return self.identity is not None and _identity(self._file) != self.identity

    @property
    def insert(self) -> Callable[..., Any]:
        """The dialect's INSERT, which knows ON CONFLICT."""
        return sqlite.insert if self.is_sqlite else postgresql.insert

    def now(self) -> sa.ColumnElement[float]:
        """The time by the clock that all workers share."""
        if self.is_sqlite:
            return sa.literal(time.time(), sa.Double)
        return sa.cast(sa.extract("epoch", sa.func.clock_timestamp()), sa.Double)

    @asynccontextmanager
    async def writing(self, within: float = OPERATION_SECONDS) -> AsyncIterator[AsyncConnection]:
        """A transaction that takes so many seconds at most; committed where its context ends without an error.

        Raises:
            DirectoryUnavailable: the database cannot be reached, or failed.
        """
        with reaching(), self._in_time(within):
            async with self._writers, self._places, self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def beating(self) -> AsyncIterator[AsyncConnection]:
        """A transaction for a heartbeat, as `writing`: of what else goes on here, it waits for one that writes at most.

        Raises:
            DirectoryUnavailable: the database cannot be reached, or failed.
        """
        with reaching(), self._in_time(OPERATION_SECONDS):
            async with self._places, self.engine.begin() as connection:
                yield connection

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection for one read, beside whoever writes.

        Raises:
            DirectoryUnavailable: the database cannot be reached, or failed.
        """
        with reaching(), self._in_time(OPERATION_SECONDS):
            async with self._turns, self.engine.connect() as connection:
                yield await connection.execution_options(**READS)

    def _in_time(self, seconds: float) -> AbstractContextManager[object]:
        """What takes longer fails. On SQLite it is not cancelled before.

        A connection whose call is cancelled is closed by a task that then waits for ever for its thread, which has
        ended (aiosqlite 0.22.1 by SQLAlchemy's `terminate`).
        """
        return anyio.fail_after(seconds, shield=self.is_sqlite)

    async def listen(self, hear: Hear) -> None:
        """Hear what a PostgreSQL notifies, channel and content, until the connection breaks or leads to a standby.

        None is heard of both channels when it begins: something may have been missed before.
        """
        import asyncpg

        _, options = self.engine.dialect.create_connect_args(self._url)
        options.pop(CACHE, None)
        with reaching():
            connection = await asyncpg.connect(**options, timeout=SERVER_SECONDS, command_timeout=SERVER_SECONDS)
        broken = asyncio.Event()
        try:
            connection.add_termination_listener(lambda _: broken.set())
            with reaching():
                for channel in (CHANGES, MAIL):
                    await connection.add_listener(channel, lambda _, __, name, content: hear(name, content))
            for channel in (CHANGES, MAIL):
                hear(channel, None)
            while not broken.is_set():
                with anyio.move_on_after(SERVER_SECONDS):
                    await broken.wait()
                if not broken.is_set():
                    with reaching():
                        if await connection.fetchval("SHOW transaction_read_only") == "on":
                            return  # as `_leave_standby`
        finally:
            connection.terminate()


def _sound(connection: Any, _: Any, __: Any) -> None:
    """One that the server has closed meanwhile is known to be: another one is made in its place."""
    if connection.driver_connection.is_closed():
        raise DisconnectionError


def _leave_standby(failed: sa.engine.ExceptionContext) -> None:
    """What takes no writes may be an old primary: its connections are given up, and made to where the URL leads."""
    cause = failed.original_exception.__cause__
    if type(cause).__name__ == STANDBY:
        failed.is_disconnect = True


def _sqlite_file(url: sa.URL) -> tuple[str, sa.URL]:
    """The path of a SQLite file, and how it is opened: where `probe` has not made it, nothing else does.

    A URL that spells SQLite's own (`uri`) says that by itself, and has no path here.
    """
    (file,), options = url.get_dialect()().create_connect_args(url)
    if options.get("uri"):
        return "", url
    return file, url.set(database=f"file://{quote(file)}").update_query_dict({"mode": "rw", "uri": "true"})


def _identity(file: str) -> tuple[int, int] | None:
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_dev, status.st_ino


@contextmanager
def _reading_url() -> Iterator[None]:
    try:
        yield
    except (ArgumentError, ValueError):
        raise ValueError("it is not the URL of a database; it begins with one of " + ", ".join(DRIVERS)) from None


def _with_options(url: sa.URL) -> sa.URL:
    """A PostgreSQL's URL as its driver takes it.

    Raises:
        ValueError: it has an option that the driver does not know.
    """
    if "sslmode" in url.query:
        url = url.update_query_dict({"ssl": url.query["sslmode"]}).difference_update_query(["sslmode"])
    unknown = sorted(set(url.query) - set(OPTIONS))
    if unknown:
        raise ValueError(f"a PostgreSQL's URL has no option {unknown[0]}; there are sslmode, {', '.join(OPTIONS)}")
    return url


@contextmanager
def reaching() -> Iterator[None]:
    """Errors of the database and of the way to it become `DirectoryUnavailable`, without their text."""
    try:
        yield
    except (SQLAlchemyError, OSError, TimeoutError) as error:
        raise _unavailable(error) from error
    except Exception as error:
        if type(error).__module__.partition(".")[0] not in ("asyncpg", "sqlite3", "aiosqlite", "msgspec"):
            raise
        raise _unavailable(error) from error


def _unavailable(error: Exception) -> DirectoryUnavailable:
    cause = getattr(error, "orig", None) or error
    cause = cause.__cause__ or cause
    name = getattr(cause, "sqlite_errorname", None) or type(cause).__name__
    remedy = REMEDIES.get("_".join(name.split("_")[:2]))
    return DirectoryUnavailable(f"the database does not serve: {name}", remedy=remedy)


def _prepare_sqlite(connection: Any) -> None:
    connection.isolation_level = None  # transactions begin where `_begin_sqlite` says
    cursor = connection.cursor()
    for pragma in ("busy_timeout = 2000", "synchronous = NORMAL"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
    connection.run_async(_keep_log_beside)


async def _keep_log_beside(connection: Any) -> None:
    """Let those who read go on beside who writes: a write-ahead log, which stays with the file.

    A new file gets it once nobody writes there: SQLite does not wait for that, whatever its time-out.
    """
    until = time.monotonic() + SERVER_SECONDS
    while True:
        try:
            async with connection.execute("PRAGMA journal_mode = WAL"):
                return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        await asyncio.sleep(RETRY_SECONDS)


def _begin_sqlite(connection: sa.Connection) -> None:
    reads = connection.get_execution_options().get("trunkline_reads")
    connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")
