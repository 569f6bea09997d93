"""A WebSocket by events alone: order, what is waited for, and how it ends."""

import asyncio
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from trunkline.transports import socket_events
from trunkline.transports.asgi import Message
from trunkline.transports.socket_events import EventsWire

pytestmark = pytest.mark.anyio

PATIENCE = 10.0


class Told:
    """What a wire tells, and what is done about it."""

    burden = 0

    def __init__(self) -> None:
        self.told: list[object] = []
        self.wire: EventsWire
        self.react: dict[object, Callable[[], None]] = {}

    def note(self, what: object) -> None:
        self.told.append(what)
        self.react.pop(what, lambda: None)()

    def begin(self) -> None:
        self.note("begun")

    def came(self, text: bytes) -> None:
        self.note(text)

    def came_binary(self) -> None:
        self.note("binary")
        self.wire.close(1003, "")

    def ponged(self, payload: bytes) -> None:
        self.note(("pong", payload))

    def drained(self) -> None:
        self.note("drained")

    def run_out(self) -> None:
        self.note("slow")
        self.wire.close(4408, "")

    def gone(self, code: int = 0) -> None:
        self.note(("gone", code))
        self.wire.close(1000, "")


class Server:
    """A server of ASGI: `events` are the client's; it sends as long as it is not stuck."""

    def __init__(self, *events: Message) -> None:
        self.events = list(events)
        self.sent: list[Message] = []
        self.is_stuck = False
        self.fails = False

    async def receive(self) -> Message:
        if self.events:
            return self.events.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(self, event: Message) -> None:
        if self.fails:
            raise OSError
        if self.is_stuck:
            await asyncio.Event().wait()
        self.sent.append(event)


async def run(server: Server, told: Told, ping: Any = None, patience: float = PATIENCE) -> None:
    told.wire = EventsWire(server.receive, server.send, ping, patience)
    with anyio.fail_after(PATIENCE):
        await told.wire.run(told)  # type: ignore[arg-type]


def text(text: str) -> Message:
    return {"type": "websocket.receive", "text": text}


LEFT: Message = {"type": "websocket.disconnect", "code": 1001}


async def test_messages_come_until_the_client_leaves_and_its_code_is_told() -> None:
    server, told = Server(text("ä"), text("b"), LEFT), Told()
    await run(server, told)
    assert told.told[:4] == ["begun", "ä".encode(), b"b", ("gone", 1001)]
    assert server.sent == [{"type": "websocket.close", "code": 1000, "reason": ""}]


async def test_what_is_written_is_sent_in_order_and_then_there_is_room() -> None:
    server, told = Server(text("go")), Told()
    told.react[b"go"] = lambda: told.wire.write([b"1", b"2"])
    told.react["drained"] = lambda: told.wire.close(1000, "done")
    await run(server, told)
    assert [event.get("text", event.get("code")) for event in server.sent] == ["1", "2", 1000]


async def test_reading_waits_while_it_is_paused() -> None:
    server, told = Server(text("one"), text("two")), Told()

    def pause() -> None:
        told.wire.pause_reading()
        asyncio.get_running_loop().call_later(0.05, go_on)

    def go_on() -> None:
        told.note("paused")
        told.wire.resume_reading()

    told.react[b"one"] = pause
    told.react[b"two"] = lambda: told.wire.close(1000, "")
    await run(server, told)
    assert told.told[:4] == ["begun", b"one", "paused", b"two"]


async def test_a_ping_goes_out_behind_what_was_written_and_its_pong_is_told() -> None:
    server, told = Server(text("go")), Told()
    sent_before: list[int] = []

    async def ping() -> None:
        sent_before.append(len(server.sent))

    told.react[b"go"] = lambda: told.wire.write([b"1"], b"payload")
    told.react["pong", b"payload"] = lambda: told.wire.close(1000, "")
    await run(server, told, ping)
    assert sent_before == [1]


async def test_a_client_that_goes_while_its_pong_is_waited_for_has_gone() -> None:
    async def ping() -> None:
        raise ConnectionResetError

    server, told = Server(text("go")), Told()
    told.react[b"go"] = lambda: told.wire.write([b"1"], b"payload")
    await run(server, told, ping)
    assert ("gone", 0) in told.told


async def test_binary_and_a_client_that_takes_nothing_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket_events, "CLOSE_SECONDS", 0.01)
    server, told = Server({"type": "websocket.receive", "bytes": b"x"}), Told()
    await run(server, told)
    assert told.told[:2] == ["begun", "binary"]
    server, told = Server(text("go")), Told()
    server.is_stuck = True
    told.react[b"go"] = lambda: told.wire.write([b"1"])
    await run(server, told, patience=0.01)
    assert told.told[:3] == ["begun", b"go", "slow"]


async def test_a_server_that_cannot_send_any_longer_has_lost_its_client() -> None:
    server, told = Server(text("go")), Told()
    server.fails = True
    told.react[b"go"] = lambda: told.wire.write([b"1"])
    await run(server, told)
    assert told.told[:3] == ["begun", b"go", ("gone", 0)]


async def test_who_cancels_it_has_it_told() -> None:
    server, told = Server(), Told()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, server, told)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert told.told == ["begun", ("gone", 0)]
