"""What was handed on, where the worker that handed it on leaves, or the one that serves it takes nothing."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import pytest
from harness.worker_house import CALL, Client, House, answer, post
from trunkline.mux.directory import Worker
from trunkline.mux.membership import Membership
from trunkline.transports.asgi import Receive, Scope, Send

pytestmark = pytest.mark.anyio


async def dies(scope: Scope, receive: Receive, send: Send) -> None:
    """As a worker that is killed looks to others."""
    raise ConnectionAbortedError("killed")


async def test_g8_a_worker_that_leaves_waits_for_calls_that_were_handed_on(house: House) -> None:
    begun, go_on = anyio.Event(), anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await go_on.wait()
        await answer(send, b"done")

    async def leave() -> None:
        with anyio.fail_after(10):
            left.append(await house.forwarder.leave(3600))

    await house.begins("b", serve)
    client, left = post(), list[bool]()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.request, client)
        await begun.wait()
        house.forwarder.drain()
        assert house.forwarder.is_relaying
        tasks.start_soon(leave)
        await anyio.wait_all_tasks_blocked()
        assert left == []
        go_on.set()
    assert (client.body, left) == (b"done", [True])


async def test_g8_a_call_that_outlasts_its_time_is_told_that_it_may_have_been_executed(house: House) -> None:
    begun = anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        begun.set()
        await anyio.sleep_forever()

    await house.begins("b", serve)
    client = post()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.request, client)
        await begun.wait()
        house.forwarder.drain()
        assert not await house.forwarder.leave(0)
    told = json.loads(client.body)
    assert (told["id"], told["error"]["code"], told["error"]["data"]["executed"]) == ("mine", -31002, "unknown")


@pytest.mark.parametrize("begins", [True, False])
async def test_g8_a_drain_ends_streams_so_that_their_clients_come_back(house: House, begins: bool) -> None:
    begun = anyio.Event()

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if begins:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"one", "more_body": True})
        begun.set()
        await anyio.sleep_forever()

    await house.begins("b", serve)
    client = Client()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: house.request(client, method="GET"))
        await begun.wait()
        if begins:
            await client.got("http.response.body")
        house.forwarder.drain()
    assert client.body == (b"one" if begins else b"retry: 1000\n\n")
    assert not client.sent[-1].get("more_body")
    assert house.statistics.counts["forwards", "drained"] == 1


async def test_g8_a_stream_that_comes_as_the_worker_leaves_is_sent_on_at_once(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        await anyio.sleep_forever()

    await house.begins("b", serve)
    house.forwarder.drain()
    assert await house.forwarder.leave(0)
    client = Client()
    await house.request(client, method="GET")
    assert client.body == b"retry: 1000\n\n"


SUBSCRIBE = b'{"jsonrpc":"2.0","id":"mine","method":"subscriptions/listen","params":{}}'
SUBSCRIBES = [(b"mcp-protocol-version", b"2026-07-28"), (b"mcp-method", b"subscriptions/listen")]


async def test_g8_l28_who_leaves_waits_for_no_subscriptions_and_ends_them_without_a_word(house: House) -> None:
    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        head = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": head})
        await send({"type": "http.response.body", "body": b"data: {}\n\n", "more_body": True})
        await anyio.sleep_forever()

    await house.begins("b", serve)
    client = post(SUBSCRIBE)
    async with anyio.create_task_group() as tasks:
        house.forwarder.drain()
        tasks.start_soon(lambda: house.request(client, headers=SUBSCRIBES))
        await client.got("http.response.body")
        assert not house.forwarder.is_relaying
        assert await house.forwarder.leave(10)
    assert client.body == b"data: {}\n\n"
    assert not client.sent[-1].get("more_body")
    assert house.statistics.counts["forwards", "drained"] == 1


OF_A_SESSION = [(b"mcp-protocol-version", b"2025-11-25"), SUBSCRIBES[1]]


@pytest.mark.parametrize("headers", [SUBSCRIBES[:1], SUBSCRIBES[1:], OF_A_SESSION])
async def test_g6_a_call_that_only_says_that_it_subscribes_is_not_sent_again(
    house: House, headers: list[tuple[bytes, bytes]]
) -> None:
    await house.begins("b", dies)
    client = post()
    await house.request(client, headers=headers)
    assert json.loads(client.body)["error"]["data"] == {"executed": "unknown"}
    assert house.asked == 1


LARGE = CALL.replace(b'"x"', b'"%b"' % (b"x" * 1024 * 1024))


@pytest.fixture
async def deaf(house: House, tmp_path: Path) -> AsyncIterator[Membership]:
    """A worker that takes connections and reads none of them to its end, as one that is stopped."""
    writers: list[asyncio.StreamWriter] = []
    worker = Worker("b", "host", str(tmp_path / "b"))
    async with (
        await asyncio.start_unix_server(lambda _, writer: writers.append(writer), worker.address),
        Membership(house.directory, worker, on_lapse=lambda since: None).running() as member,
    ):
        yield member
        for writer in writers:
            writer.transport.abort()


async def test_g7_a_large_call_is_told_at_once_that_its_worker_was_taken_for_dead(
    house: House, deaf: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is stopped takes nothing of what waits for it."""
    client = post(LARGE)

    async def missed(worker: Worker) -> bool:
        return True

    monkeypatch.setattr(house.directory, "beat", missed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.request, client)
        await anyio.wait_all_tasks_blocked()
        await house.directory.retire(deaf.worker)
    told = json.loads(client.body)
    assert (told["id"], told["error"]["data"]["executed"]) == ("mine", "unknown")


async def test_g8_who_leaves_waits_for_no_worker_that_takes_nothing(house: House, deaf: Membership) -> None:
    client = post(LARGE)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(house.request, client)
        await anyio.wait_all_tasks_blocked()
        assert not await house.forwarder.leave(0)
    assert json.loads(client.body)["error"]["code"] == -31002
