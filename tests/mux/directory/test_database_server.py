"""URLs of databases, and what is said of those that are none."""

import threading
from pathlib import Path
from urllib.parse import quote

import anyio.to_thread
import pytest
from trunkline.mux.directory.database_server import Server
from trunkline.mux.errors import DirectoryUnavailable

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("url", "word"),
    [
        ("", "not the URL"),
        ("secret", "not the URL"),
        ("mysql://u:secret@h/x", "begins with one of"),
        ("postgresql://u:secret@h/x", "begins with one of"),
        ("postgresql+asyncpg://u:secret@h", "must name a database"),
        ("sqlite+aiosqlite://", "must name a database"),
        ("sqlite+aiosqlite:///:memory:", "must name a database"),
        ("sqlite+aiosqlite://secret/x.db", "three slashes before a relative path, four before an absolute one"),
        ("postgresql+asyncpg://u:secret@h/x?nope=secret", "no option nope"),
        ("postgresql+asyncpg://u:secret@h:secret/x", "not the URL"),
        ("postgresql+asyncpg://u:secret@h/x?port=secret", "not the URL"),
        ("postgresql+asyncpg://u:secret@h/x?host=a&host=b&port=1&port=2&port=3", "not the URL"),
    ],
)
def test_what_is_wrong_is_said_without_secrets(url: str, word: str) -> None:
    with pytest.raises(ValueError) as refused:
        Server(url)
    assert word in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize("name", ["/x.db", "x?y#z%41 .db"])
async def test_a_file_is_opened_by_whatever_path_it_has(tmp_path: Path, name: str) -> None:
    server = Server(f"sqlite+aiosqlite:////{tmp_path}/{quote(name)}")
    await server.probe()
    server.connect_beside().close()
    assert (tmp_path / name.lstrip("/")).exists()


async def test_a_database_that_cannot_be_opened_is_unavailable() -> None:
    server = Server("sqlite+aiosqlite:////nowhere/at/all.db")
    with pytest.raises(DirectoryUnavailable):
        async with server.writing():
            pass
    await server.engine.dispose()
    for thread in threading.enumerate():  # the driver's, which has a last word for this loop
        if "connection_worker" in thread.name:
            await anyio.to_thread.run_sync(thread.join, 5)
