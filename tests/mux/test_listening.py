"""A session is listened to while its server may have something to tell: for good, or while a client is there."""

import asyncio

import pytest
from harness.memory_wire import message
from harness.muxing import begin, bench
from trunkline.mux.listening import REST_SECONDS

pytestmark = pytest.mark.anyio


async def test_a_server_with_nothing_to_tell_is_listened_to_while_a_client_is_there() -> None:
    async with bench(idle_timeout=10_000) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        client = await at.client()
        session = at.server.session
        assert session.is_listening, "it may tell more than it declared"
        at.clock.advance(REST_SECONDS)
        await at.server.until(lambda: not session.is_listening)
        exchange = client.call()
        assert session.is_listening
        session.exchanges[-1].answer()
        await client.answer(exchange)
        at.clock.advance(REST_SECONDS)
        await at.server.until(lambda: not session.is_listening)
        reader = client.workflow.streams.attach_standalone()
        assert session.is_listening
        at.clock.advance(REST_SECONDS * 2)
        await asyncio.sleep(0.1)  # some looks at what is due
        assert session.is_listening
        reader.close()
        at.clock.advance(REST_SECONDS)
        await at.server.until(lambda: not session.is_listening)


async def test_a_server_is_listened_to_for_a_while_after_a_handshake_that_took_long() -> None:
    async with bench(idle_timeout=10_000, request_timeout=100) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        at.server.pause("initialize")
        beginning = asyncio.create_task(begin(at.pool))
        await at.server.reached("initialize")
        at.clock.advance(REST_SECONDS - 1)
        at.server.let("initialize")
        await beginning
        at.clock.advance(REST_SECONDS - 1)
        await at.swept()
        session = at.server.session
        assert session.is_listening
        at.clock.advance(1)
        await at.server.until(lambda: not session.is_listening)


PROGRESS = {"progressToken": 1, "progress": 1}


@pytest.mark.parametrize(
    ("told", "is_heard_on"),
    [
        (message("ping", id="p"), True),
        (message("notifications/message", {"level": "info", "data": "x"}), True),
        (message("notifications/progress", PROGRESS), False),
        (b'{"jsonrpc":"2.0","id":999,"result":{}}', False),
    ],
)
async def test_a_server_that_told_something_unasked_though_it_declared_nothing_is_always_listened_to(
    told: bytes, is_heard_on: bool
) -> None:
    async with bench(idle_timeout=10_000) as at:
        at.server.result = {**at.server.result, "capabilities": {"tools": {}}}
        await at.client()
        session = at.server.session
        session.tell(told)
        at.clock.advance(REST_SECONDS * 2)
        await at.swept()
        assert session.is_listening is is_heard_on


async def test_a_server_that_may_tell_something_is_always_listened_to() -> None:
    async with bench(idle_timeout=10_000) as at:
        await at.client()
        at.clock.advance(REST_SECONDS * 2)
        await asyncio.sleep(0.1)  # some looks at what is due
        assert at.server.session.is_listening
