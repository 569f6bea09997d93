"""The side that serves what other workers hand on."""

import asyncio
import gc
import logging
import socket
from contextlib import AsyncExitStack
from pathlib import Path

import anyio
import pytest
from harness.worker_house import Client, House, answer, post
from trunkline.gateway.workers import serving as module
from trunkline.gateway.workers.conversation import Frame, SocketConversation
from trunkline.gateway.workers.openings import opening
from trunkline.gateway.workers.serving import listening
from trunkline.gateway.workers.serving import serve as served
from trunkline.transports.asgi import Receive, Scope, Send
from trunkline.transports.websocket import PING

pytestmark = pytest.mark.anyio


async def test_a_worker_that_ends_lets_what_it_serves_reach_the_other_side(house: House) -> None:
    begun, ends = anyio.Event(), anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await ends.wait()
        await answer(send, b"x" * 1_000_000)

    client = post()
    async with anyio.create_task_group() as tasks, AsyncExitStack() as stack:
        await house.begins("b", serve, stack)
        tasks.start_soon(house.request, client)
        await begun.wait()
        ends.set()
    assert len(client.body) == 1_000_000


async def test_a_defect_in_one_request_leaves_the_others_alone(house: House, caplog: pytest.LogCaptureFixture) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if (await receive())["body"] == b"bad":
            raise RuntimeError("a defect")
        await answer(send, b"good")

    await house.begins("b", serve)
    client = post(b"bad")
    await house.request(client)
    assert client.sent[0]["status"] == 202, "it held no request that could be told"
    assert "a forwarded request failed" in caplog.text
    client = post(b"good")
    await house.request(client)
    assert client.body == b"good"


async def test_a_pong_that_nobody_waits_for_any_longer_is_none_of_the_next_ping(house: House) -> None:
    asked, goes_on = anyio.Event(), anyio.Event()
    client = Client({"type": "websocket.connect"})

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        ping = scope["extensions"][PING]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ping)
            await asked.wait()
            tasks.cancel_scope.cancel()
        await ping()
        await send({"type": "websocket.close", "code": 1000})

    async def pong() -> None:
        if not asked.is_set():
            asked.set()
            await goes_on.wait()
        goes_on.set()

    await house.begins("b", serve)
    await house.request(client, type="websocket", extensions={PING: pong})
    assert client.sent == [{"type": "websocket.close", "code": 1000}]


async def test_what_is_handed_on_by_a_socket_is_begun_in_a_task(tmp_path: Path) -> None:
    """Where sniffio is installed, as with many SDKs, anyio knows the event loop in tasks alone."""
    begun = asyncio.get_running_loop().create_future()
    address = str(tmp_path / "socket")
    async with listening(address, lambda conversation: begun.set_result((asyncio.current_task(), conversation))):
        here = await SocketConversation.open(address)
        with anyio.fail_after(10):
            task, there = await begun
        assert task is not None
        here.close()
        there.close()


async def test_what_is_said_to_one_that_has_answered_already_costs_nobody_the_answer() -> None:
    """As where there are more processes than cores: the other one has done before this one says the rest."""
    here, there = [SocketConversation(*await asyncio.open_connection(sock=end)) for end in socket.socketpair()]
    answered = anyio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"at once")
        answered.set()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(served, there, app)
            await here.send(Frame("open", opening({"type": "http", "method": "GET"})))
            await answered.wait()
            await anyio.wait_all_tasks_blocked()
            for _ in range(3):  # more than is taken before somebody asks
                await here.send(Frame("event", {"type": "http.request", "body": b"", "more_body": False}))
            heard = [await here.receive() for _ in range(3)]
            here.close()
    assert [frame.kind for frame in heard] == ["event", "event", "end"]
    assert heard[1].payload["body"] == b"at once"


async def test_who_does_not_leave_once_it_was_answered_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    here, there = [SocketConversation(*await asyncio.open_connection(sock=end)) for end in socket.socketpair()]
    await here.send(Frame("open", opening({"type": "http", "method": "GET"})))

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await answer(send, b"at once")

    with anyio.fail_after(10):
        await served(there, app)
    here.close()


async def test_of_a_ping_that_could_not_be_sent_nothing_is_left(caplog: pytest.LogCaptureFixture) -> None:
    here, there = [SocketConversation(*await asyncio.open_connection(sock=end)) for end in socket.socketpair()]
    await there.send(Frame("open", opening({"type": "websocket", "extensions": {PING: None}})))
    for _ in range(3):  # more than is taken before somebody asks
        await there.send(Frame("event", {"type": "websocket.receive"}))
    there.close()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        with pytest.raises(ConnectionResetError):
            await scope["extensions"][PING]()
        while (await receive())["type"] != "websocket.disconnect":
            pass

    with anyio.fail_after(10):
        await served(here, app)
    gc.collect()  # as failures that nobody heard of are told
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
