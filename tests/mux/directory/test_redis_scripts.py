"""The scripts are found again by a redis that forgot them."""

import pytest
from contract.directory import record
from harness.redis_server import redis_server
from trunkline.mux.directory.redis import open_redis

pytestmark = pytest.mark.anyio


async def test_scripts_that_the_server_forgot_are_sent_again() -> None:
    one = record("chat")
    with redis_server() as server:
        async with open_redis(server.url) as directory:
            await directory.claim(one)
            server.command("SCRIPT", "FLUSH")
            await directory.touch([one.session_id, "unknown"])
            server.command("SCRIPT", "FLUSH")
            assert await directory.remove(one)
