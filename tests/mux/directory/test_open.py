"""What cannot be opened is told with its reason, and without secrets."""

import sys

import pytest
from harness.ports import free_port
from trunkline.mux.directory.open import Backend, DirectoryNotOpened, open_directory, place

pytestmark = pytest.mark.anyio


async def refusal(backend: Backend, url: str) -> str:
    with pytest.raises(DirectoryNotOpened) as refused:
        async with open_directory(backend, url):
            pass
    assert "secret" not in str(refused.value)
    return str(refused.value)


async def test_a_url_that_is_none() -> None:
    assert "must begin with redis://" in await refusal("redis", "http://secret@host")
    assert "an option of the redis URL is not valid" in await refusal("redis", "redis://secret@host/0?nope=secret")


@pytest.mark.parametrize("scheme", ["redis", "redis+sentinel", "redis+cluster"])
async def test_a_server_that_is_not_there(scheme: str) -> None:
    port = free_port()
    path = "/main" if scheme == "redis+sentinel" else ""
    said = await refusal("redis", f"{scheme}://secret-user:secret@127.0.0.1:{port}{path}")
    assert f"at {scheme}://127.0.0.1:{port}{path}" in said


@pytest.mark.parametrize("password", ["of/secret", "o?f/secret", "of/a?secret"])
async def test_g12_no_password_that_can_be_read_is_told_of_a_database_that_is_away(password: str) -> None:
    port = free_port()
    said = await refusal("database", f"postgresql+asyncpg://user:{password}@127.0.0.1:{port}/main")
    assert f"at postgresql+asyncpg://{'…' if '?' in password else f'127.0.0.1:{port}/main'}; " in said


async def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redis", None)
    for name in [name for name in sys.modules if name.startswith("trunkline.mux.directory.redis")]:
        monkeypatch.delitem(sys.modules, name)
    assert "package redis is missing: pip install trunkline" in await refusal("redis", "redis://:secret@127.0.0.1:1")


def test_a_place_names_neither_user_nor_options() -> None:
    assert place("redis://u:p@host:1/0?password=secret") == "redis://host:1/0"
    assert place("redis://host:1/0?password=se@cret") == "redis://…"
    assert place("unix:///run/x.sock?password=se@cret") == "unix:///run/x.sock"
    assert place("sqlite+aiosqlite:////var/a@b/x.db") == "sqlite+aiosqlite:////var/a@b/x.db"
    assert place("nothing") == "nothing"
