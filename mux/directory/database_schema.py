"""The tables of the database directory, and how a program that starts brings them up to date.

Names are digests (see `names`), so that any of them is plain text. Times are seconds since 1970 by the clock that all
workers share: the server's, or on SQLite that of the one host.
"""

from typing import Final

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

VERSION: Final = 2
LOCK: Final = 0x7472756E6B6C
"""The number of the lock under which one program at a time changes a PostgreSQL schema."""

_Number = sa.BigInteger().with_variant(sa.Integer, "sqlite")
_metadata = sa.MetaData()


def _table(name: str, *columns: sa.Column[object]) -> sa.Table:
    return sa.Table(
        f"trunkline_{name}", _metadata, *columns, sqlite_autoincrement=any(c.autoincrement is True for c in columns)
    )


def _serial() -> sa.Column[object]:
    return sa.Column("seq", _Number, primary_key=True, autoincrement=True)


version = sa.Table("trunkline_schema", _metadata, sa.Column("version", sa.Integer, nullable=False))

records = _table(
    "records",
    sa.Column("token", sa.Text, primary_key=True),
    sa.Column("key", sa.Text, unique=True),
    sa.Column("epoch", _Number, nullable=False),
    sa.Column("record", sa.LargeBinary, nullable=False),
    sa.Column("lifetime", sa.Double, nullable=False),
    sa.Column("touched", sa.Double, nullable=False),
    sa.Column("expires", sa.Double, nullable=False, index=True),
    sa.Column("next_id", _Number, nullable=False),
    sa.Column("log_events", _Number, nullable=False),
    sa.Column("log_bytes", _Number, nullable=False),
)
ends = _table(
    "ends",
    sa.Column("token", sa.Text, primary_key=True),
    sa.Column("expires", sa.Double, nullable=False),
)
"""The workflows that were removed, each for its lifetime."""

ended_keys = _table(
    "ended_keys",
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("expires", sa.Double, nullable=False),
)
counters = _table(
    "counters",
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("next_id", _Number, nullable=False),
    sa.Column("expires", sa.Double),
)
log = _table(
    "log",
    _serial(),
    sa.Column("token", sa.Text, nullable=False, index=True),
    sa.Column("size", _Number, nullable=False),
    sa.Column("entry", sa.LargeBinary, nullable=False),
)
workers = _table(
    "workers",
    sa.Column("id", sa.Text, primary_key=True),
    sa.Column("worker", sa.LargeBinary, nullable=False),
    sa.Column("expires", sa.Double, nullable=False),
)
homes = _table(
    "homes",
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("worker", sa.Text, nullable=False),
)
mail = _table(
    "mail",
    _serial(),
    sa.Column("worker", sa.Text, nullable=False, index=True),
    sa.Column("frame", sa.LargeBinary, nullable=False),
)
changes = _table(
    "changes",
    _serial(),
    sa.Column("session_id", sa.Text, nullable=False),
    sa.Column("at", sa.Double, nullable=False),
)
"""What watchers on SQLite read; PostgreSQL tells by NOTIFY."""


async def migrate(connection: AsyncConnection) -> None:
    """Bring the schema up to date, in the transaction of this connection; one program at a time does.

    Raises:
        ValueError: the schema is that of a newer version of the program.
    """
    if connection.dialect.name == "postgresql":
        await connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
    await connection.run_sync(lambda sync: version.create(sync, checkfirst=True))
    found = await connection.scalar(sa.select(version.c.version)) or 0
    if found > VERSION:
        raise ValueError(f"the database has schema {found}; this version of trunkline knows {VERSION} at most")
    if found < VERSION:
        await connection.run_sync(_metadata.create_all)
        await connection.execute(sa.delete(version))
        await connection.execute(sa.insert(version).values(version=VERSION))
