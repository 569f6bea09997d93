"""A directory that cannot be used when the gateway starts: one line says why and what to do, and the exit code is 3."""

import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness.gateways import command, environment
from harness.ports import free_port
from harness.postgres import PostgresServer, postgres_server
from harness.redis_server import RedisServer

KEYS = ("~trunkline1:*",)


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        server.clear()
        yield server


Refused = Callable[..., str]


@pytest.fixture
def refused(settings_file: Callable[[str], Path]) -> Refused:
    """What a gateway says that does not start with a directory."""

    def start(url: str, workers: int = 1) -> str:
        backend = "redis" if url.startswith("redis") else "database"
        toml = settings_file(f'[directory]\nbackend = "{backend}"\nurl = "{url}"\n')
        arguments = command("serve", str(toml), "--workers", str(workers), "--port", str(free_port()))
        ended = subprocess.run(arguments, env=environment(), capture_output=True, text=True, timeout=60)
        assert ended.returncode == 3, ended.stderr
        assert "s3cret" not in ended.stderr
        assert "another one" not in ended.stderr
        line = ended.stderr.strip()
        assert line.startswith("trunkline: directory.url: "), line
        assert "\n" not in line
        return line

    return start


def with_user(redis: RedisServer, *rules: str) -> str:
    """The URL of a user of redis with these rights."""
    redis.command("ACL", "SETUSER", "worker", "reset", "on", ">s3cret", *rules)
    return f"redis://worker:s3cret@127.0.0.1:{redis.port}/0"


@pytest.mark.parametrize("workers", [1, 2])
def test_a_redis_that_is_full(redis: RedisServer, refused: Refused, workers: int) -> None:
    redis.command("CONFIG", "SET", "maxmemory", "1mb")
    try:
        assert refused(redis.url, workers).endswith("; it is full: raise maxmemory, or make room in it")
    finally:
        redis.command("CONFIG", "SET", "maxmemory", "0")


def test_a_redis_that_only_follows_another_one(redis: RedisServer, refused: Refused) -> None:
    redis.command("REPLICAOF", "127.0.0.1", str(free_port()))
    try:
        assert refused(redis.url).endswith("; it is a replica, which takes no writes: name the primary")
    finally:
        redis.command("REPLICAOF", "NO", "ONE")


def test_a_redis_with_another_password(redis: RedisServer, refused: Refused) -> None:
    with_user(redis, "+@all", *KEYS)
    url = f"redis://worker:another-s3cret@127.0.0.1:{redis.port}/0"
    assert refused(url).endswith("; correct user and password in the URL")


@pytest.mark.parametrize(
    "rules",
    [
        ("+@all", "&trunkline1:*", "~another:*"),
        ("+@all", "-@scripting", "&trunkline1:*", *KEYS),
        ("+@all", "resetchannels", *KEYS),
    ],
    ids=["no keys", "no scripts", "no channels"],
)
def test_a_redis_whose_user_may_not_do_all_of_it(redis: RedisServer, refused: Refused, rules: tuple[str, ...]) -> None:
    line = refused(with_user(redis, *rules))
    assert line.endswith("; give its user ~trunkline1:* and &trunkline1:*, and the commands of scripts")


def test_a_sqlite_file_whose_directory_is_not_there(refused: Refused, tmp_path: Path) -> None:
    line = refused(f"sqlite+aiosqlite:///{tmp_path}/away/x.db")
    assert "SQLITE_CANTOPEN, at sqlite+aiosqlite:" in line
    assert line.endswith("; make its directory, and let this user write there")


def test_a_sqlite_file_that_is_none(refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "x.db").write_text("something else " * 100)
    assert refused(f"sqlite+aiosqlite:///{tmp_path}/x.db").endswith("; it is no SQLite database: name another file")


def test_a_sqlite_file_that_another_program_keeps_locked(refused: Refused, tmp_path: Path) -> None:
    other = sqlite3.connect(tmp_path / "x.db", isolation_level=None)
    try:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("CREATE TABLE other (a)")
        assert refused(f"sqlite+aiosqlite:///{tmp_path}/x.db").endswith("; another program keeps it locked: end that")
    finally:
        other.close()


def test_a_postgresql_without_such_a_user_or_database(postgres: PostgresServer, refused: Refused) -> None:
    place = f"127.0.0.1:{postgres.port}"
    assert refused(f"postgresql+asyncpg://another:s3cret@{place}/postgres").endswith(
        "; correct user and password in the URL"
    )
    assert refused(f"postgresql+asyncpg://trunkline@{place}/another").endswith(
        "; create the database, or correct its name in the URL"
    )


def test_a_postgresql_that_takes_no_writes(postgres: PostgresServer, refused: Refused) -> None:
    postgres.say("CREATE USER reader SUPERUSER")
    postgres.say("ALTER USER reader SET default_transaction_read_only = on")
    url = postgres.url.replace("://trunkline@", "://reader@")
    assert refused(url).endswith("; it takes no writes, as a standby does: name the primary")


def test_a_postgresql_whose_user_may_make_no_tables(postgres: PostgresServer, refused: Refused) -> None:
    postgres.say("CREATE USER weak")
    url = postgres.url.replace("://trunkline@", "://weak@")
    assert refused(url).endswith("; let its user create tables: GRANT CREATE ON SCHEMA public")
