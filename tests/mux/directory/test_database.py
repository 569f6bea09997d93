"""The database directory forgets what has expired, and keeps what has not."""

from pathlib import Path

import anyio
import msgspec
import pytest
from contract.directory import record
from trunkline.mux.directory import Claimed
from trunkline.mux.directory.database import open_database

pytestmark = pytest.mark.anyio


async def test_a_sweep_forgets_what_has_expired_but_not_that_its_key_was_used(tmp_path: Path) -> None:
    short, long = msgspec.structs.replace(record("short"), lifetime=0.05), record("long")
    async with open_database(f"sqlite+aiosqlite:///{tmp_path}/x.db") as directory:
        await directory.claim(short)
        await directory.claim(long)
        with anyio.fail_after(10):
            while await directory.get(short.session_id) is not None:  # noqa: ASYNC110 - nobody tells of it
                await anyio.sleep(0.01)
        await directory.sweep()
        again = record("short")
        assert await directory.claim(again) == Claimed(again, "reset")
        assert await directory.get(long.session_id) == long
