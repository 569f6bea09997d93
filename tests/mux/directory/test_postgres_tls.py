"""A PostgreSQL that is reached by TLS: every connection to it is encrypted, the one that listens as well."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from harness.postgres import PostgresServer, postgres_server
from trunkline.mux.directory.open import DirectoryNotOpened, open_directory

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """One with a certificate of its own."""
    with postgres_server() as made:
        data = Path(made.say("SHOW data_directory").strip())
        names = ("-keyout", str(data / "server.key"), "-out", str(data / "server.crt"), "-subj", "/CN=localhost")
        made_key = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *names]
        subprocess.run(made_key, check=True, capture_output=True)
        (data / "server.key").chmod(0o600)
        if os.geteuid() == 0:
            for name in ("server.key", "server.crt"):
                shutil.chown(data / name, "nobody", "nogroup")
        made.say("ALTER SYSTEM SET ssl = on")
        made.restart()
        made.clear()
        yield made


@pytest.mark.parametrize("option", ["ssl=require", "sslmode=require"])
async def test_what_is_said_and_heard_is_encrypted(server: PostgresServer, option: str) -> None:
    with anyio.fail_after(20):
        async with open_directory("database", f"{server.url}?{option}") as directory, directory.watch():
            used = server.say(
                "SELECT count(*), bool_and(ssl) FROM pg_stat_ssl NATURAL JOIN pg_stat_activity "
                f"WHERE datname = '{server.url.rpartition('/')[2]}'"
            )
    count, is_encrypted = used.strip().split("|")
    assert int(count) >= 2
    assert is_encrypted == "t"


async def test_without_tls_where_it_is_not_wanted(server: PostgresServer) -> None:
    with anyio.fail_after(20):
        async with open_directory("database", f"{server.url}?sslmode=disable") as directory, directory.watch():
            used = server.say(
                "SELECT bool_or(ssl) FROM pg_stat_ssl NATURAL JOIN pg_stat_activity "
                f"WHERE datname = '{server.url.rpartition('/')[2]}'"
            )
    assert used.strip() == "f"


async def test_a_certificate_that_nobody_vouches_for_is_refused(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with anyio.fail_after(20):
        monkeypatch.setenv("HOME", str(tmp_path))
        with pytest.raises(DirectoryNotOpened):
            async with open_directory("database", f"{server.url}?sslmode=verify-full"):
                pass
