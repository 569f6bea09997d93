"""The WebSocket protocol of the gateway lends its pings, and keeps nothing of a client that takes nothing."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import uvloop
from harness.gateways import until
from harness.listening import serving
from trunkline.gateway import websockets
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.websockets import PingingWebSocket
from trunkline.mux.statistics import Statistics
from trunkline.transports import portions
from trunkline.transports.frames import text_frame
from trunkline.transports.portions import PORTION_ITEMS
from trunkline.transports.websocket import PING as LENT_PING
from trunkline.transports.websocket import WIRE
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.frames import BINARY, CLOSE, PING, Close, Frame

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
KEY = b"\x01\x80\xff\x00"


class Application:
    """Accepts a socket, pings when it is told to, and says when the pong has come."""

    def __init__(self) -> None:
        self.pongs = 0
        self.is_waiting = anyio.Event()
        self.ended = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        ping = scope["extensions"][LENT_PING]
        await receive()
        await send({"type": "websocket.accept"})
        try:
            async with anyio.create_task_group() as tasks:
                while (event := await receive())["type"] == "websocket.receive":
                    if event["text"] == "flood":
                        await send({"type": "websocket.send", "text": "." * 10_000_000})
                        break
                    tasks.start_soon(self._ping, ping, send)
                tasks.cancel_scope.cancel()
        finally:
            self.ended.set()

    async def _ping(self, ping: Any, send: Any) -> None:
        self.is_waiting.set()
        await ping()
        self.pongs += 1
        await send({"type": "websocket.send", "text": f"pong {self.pongs}"})


@asynccontextmanager
async def socket(app: Application, **options: Any) -> AsyncIterator[ClientConnection]:
    async with (
        serving(app, ws=PingingWebSocket, **options) as port,
        connect(f"ws://127.0.0.1:{port}/", proxy=None, ping_interval=None, max_size=None) as client,
    ):
        with anyio.fail_after(PATIENCE):
            yield client


async def test_a_ping_returns_when_its_pong_has_come() -> None:
    app = Application()
    async with socket(app) as client:
        for n in (1, 2):
            await client.send("ping")
            assert await client.recv() == f"pong {n}"


async def test_pings_at_once_are_told_apart_and_a_pong_that_nobody_asked_for_is_none() -> None:
    app = Application()
    async with socket(app) as client:
        await client.pong(b"unasked")
        for _ in range(3):
            await client.send("ping")
        assert {await client.recv() for _ in range(3)} == {"pong 1", "pong 2", "pong 3"}


async def test_the_servers_own_keep_alive_goes_on() -> None:
    app = Application()
    async with socket(app, ws_ping_interval=0.05, ws_ping_timeout=PATIENCE) as client:
        seen = 0
        original = client.protocol.events_received

        def counting() -> Any:
            nonlocal seen
            events = original()
            seen += sum(event.opcode.name == "PING" for event in events)
            return events

        client.protocol.events_received = counting  # type: ignore[method-assign]
        while seen < 3:
            await client.send("ping")
            await client.recv()
        assert app.pongs >= 1


async def test_a_ping_whose_connection_goes_does_not_return() -> None:
    app = Application()
    async with socket(app) as client:
        client.transport.pause_reading()
        await client.send("ping")
        await app.is_waiting.wait()
        client.transport.abort()
        await app.ended.wait()
        assert app.pongs == 0


async def test_a_connection_that_takes_nothing_is_dropped_when_its_application_is_done(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(websockets, "LINGER_SECONDS", 0.1)
    app, listening = Application(), HTTPListening(Statistics())
    async with socket(app, http=listening.protocol) as client:
        client.transport.pause_reading()
        await client.send("flood")
        await until(lambda: not listening.state.connections)
        client.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1006


async def test_g10_a_client_that_pings_and_takes_no_pong_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Application()
    async with socket(app) as client:
        await client.ping()
        monkeypatch.setattr(websockets, "MAX_UNTAKEN_BYTES", -1)  # as if so much were waiting already
        pong = await client.ping()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert pong.done()
        await app.ended.wait()


# Taken over: nothing goes through an application any more.


class Told:
    """Accepts a socket when it may, takes it over, and keeps what it is told."""

    burden = 0

    def __init__(self) -> None:
        self.is_asked = anyio.Event()
        self.may_accept = anyio.Event()
        self.told: list[object] = []
        self.wire: Any = None
        self.changed = anyio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await receive()
        self.is_asked.set()
        await self.may_accept.wait()
        await send({"type": "websocket.accept"})
        scope["extensions"][WIRE].take_over(self)
        self.wire = scope["extensions"][WIRE]

    def begin(self) -> None:
        self.note("begun")

    def came(self, text: bytes) -> None:
        self.note(text)

    def came_binary(self) -> None:
        self.note("binary")

    def comes(self, size: int) -> None:
        """Of no interest."""

    def ponged(self, payload: bytes) -> None:
        self.note(("pong", payload))

    def drained(self) -> None:
        self.note("drained")

    def gone(self, code: int = 0) -> None:
        self.note(("gone", code))

    def broke_off(self, code: int) -> None:
        self.note(("broke off", code))

    def note(self, what: object) -> None:
        self.told.append(what)
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, *told: object) -> None:
        """Wait until all that was told is this, but for how often the client has taken what was written."""
        while [one for one in self.told if one != "drained"] != list(told):
            await self.changed.wait()


async def test_a_connection_that_was_taken_over_outlives_its_application() -> None:
    app = Told()
    app.may_accept.set()
    async with socket(app) as client:
        await client.send("ä")
        await client.send(["in ", "two"])
        await app.until("begun", "ä".encode(), b"in two")
        app.wire.write([b"one", b"two"], b"ping")
        assert [await client.recv(), await client.recv()] == ["one", "two"]
        await client.send(b"binary")
        await app.until("begun", "ä".encode(), b"in two", ("pong", b"ping"), "binary")
        await client.close(1001)
        await app.until("begun", "ä".encode(), b"in two", ("pong", b"ping"), "binary", ("gone", 1001), ("gone", 0))
        app.wire.write([b"too late"])
        app.wire.close(1000, "")


async def test_what_comes_before_the_upgrade_is_answered_is_heard_in_order() -> None:
    app = Told()
    async with serving(app, ws=PingingWebSocket) as port:
        stream = await anyio.connect_tcp("127.0.0.1", port)
        async with stream:
            with anyio.fail_after(PATIENCE):
                await stream.send(
                    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
                )
                await app.is_asked.wait()
                frames = b"".join(text_frame(b"%d" % n, KEY) for n in range(3))
                await stream.send(frames[:10])
                await anyio.sleep(0.05)  # it is read, as far as it is
                app.may_accept.set()
                await stream.send(frames[10:])
                await app.until("begun", b"0", b"1", b"2")


UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
)


@pytest.mark.parametrize("count", [3, 10 * PORTION_ITEMS])
async def test_what_comes_in_one_piece_with_the_upgrade_is_heard_in_order(count: int) -> None:
    app = Told()
    app.may_accept.set()
    async with (
        serving(app, ws=PingingWebSocket, http=HTTPListening(Statistics()).protocol) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        with anyio.fail_after(PATIENCE):
            await stream.send(UPGRADE + b"\r\n" + b"".join(text_frame(b"%d" % n, KEY) for n in range(count)))
            await app.until("begun", *[b"%d" % n for n in range(count)])


@pytest.mark.parametrize(
    "more",
    [
        b"".join(b"X-%d: y\r\n" % n for n in range(200)) + b"\r\n",
        b"X: " + b"y" * 60_000 + b"\r\n\r\n",
        b"Content-Length: 4\r\n\r\nbody",
        b"Transfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        b"Sec-WebSocket-Version: 8\r\n\r\n",
    ],
    ids=["many headers", "a long one", "a body", "a body in chunks", "two versions"],
)
async def test_g10_an_upgrade_that_is_none_is_refused_and_its_connection_closed(more: bytes) -> None:
    """As no request: who holds such a connection would hold one of those that there may be, for good."""
    statistics = Statistics()
    async with (
        serving(Told(), ws=PingingWebSocket, http=HTTPListening(statistics).protocol) as port,
        await anyio.connect_tcp("127.0.0.1", port) as stream,
    ):
        with anyio.fail_after(PATIENCE):
            await stream.send(UPGRADE + more)
            answer = b"".join([part async for part in stream])
    assert answer.startswith(b"HTTP/1.1 4")
    assert statistics.counts == {("refused", "upgrade"): 1}


async def test_an_upgrade_that_is_denied_is_no_error_of_the_gateway(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "uvicorn.error")

    async def deny(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.http.response.start", "status": 401, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"no"})

    async with serving(deny, ws=PingingWebSocket) as port:
        with pytest.raises(InvalidStatus) as refused:
            await connect(f"ws://127.0.0.1:{port}/", proxy=None)
        assert (refused.value.response.status_code, refused.value.response.body) == (401, b"no")
    assert not caplog.records


async def test_what_is_not_legal_ends_it_with_the_code_that_says_so() -> None:
    app = Told()
    app.may_accept.set()
    async with socket(app) as client:
        client.transport.write(text_frame(b"\xff", KEY))
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1007
        await app.until("begun", ("broke off", 1007), ("gone", 0))


class Strict(Told):
    """Ends a socket on which something comes that is no text."""

    def came_binary(self) -> None:
        super().came_binary()
        self.wire.close(1003, "text only")


@pytest.mark.parametrize(("behind", "code"), [(b"\x83\x80" + KEY, 1002), (b"", 1003)])
async def test_what_is_ended_on_both_grounds_at_once_is_ended(behind: bytes, code: int) -> None:
    app = Strict()
    app.may_accept.set()
    async with socket(app) as client:
        client.transport.write(Frame(BINARY, b"b").serialize(mask=True) + behind)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == code
        await client.wait_closed()


async def test_who_says_good_bye_behind_what_is_refused_is_let_go() -> None:
    app = Strict()
    app.may_accept.set()
    async with socket(app) as client:
        goodbye = Frame(CLOSE, Close(1000, "").serialize()).serialize(mask=True)
        client.transport.write(Frame(BINARY, b"b").serialize(mask=True) + goodbye)
        with pytest.raises(ConnectionClosed):
            await client.recv()
        await app.until("begun", "binary", ("gone", 1000), ("gone", 0))


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def test_what_is_not_legal_is_so_also_where_the_connection_was_cut_before_it_was_read(
    run: Callable[[Coroutine[Any, Any, None]], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing can be answered any longer; a transport of uvloop that is closed raises where that is tried."""
    monkeypatch.setattr(portions, "TURN_SECONDS", -1.0)
    count = 800

    async def live() -> None:
        failed: list[object] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failed.append(context))
        app = Told()
        app.may_accept.set()
        async with socket(app) as client:
            pairs = b"".join(text_frame(b"%d" % n, KEY) + Frame(PING, b"").serialize(mask=True) for n in range(count))
            client.transport.write(pairs + text_frame(b"\xff", KEY))
            while b"0" not in app.told:
                await app.changed.wait()
            client.transport.abort()
            await app.until("begun", *[b"%d" % n for n in range(count)], ("broke off", 1007), ("gone", 0))
        assert not failed

    run(live())


async def test_a_connection_that_is_closed_and_takes_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websockets, "LINGER_SECONDS", 0.1)
    app = Told()
    app.may_accept.set()
    async with socket(app) as client:
        await app.until("begun")
        client.transport.pause_reading()
        app.wire.write([b"." * 10_000_000])
        assert app.wire.is_paused
        app.wire.close(1000, "")
        await app.until("begun", ("gone", 0))
        client.transport.resume_reading()
        with pytest.raises(ConnectionClosed):
            await client.recv()
        assert client.close_code == 1006


async def test_reading_can_wait_and_what_was_taken_is_told() -> None:
    app = Told()
    app.may_accept.set()
    async with socket(app) as client:
        await app.until("begun")
        app.wire.pause_reading()
        await client.send("later")
        app.wire.write([b"." * 10_000_000])
        assert len(await client.recv()) == 10_000_000
        while "drained" not in app.told:
            await app.changed.wait()
        await app.until("begun")
        app.wire.resume_reading()
        await app.until("begun", b"later")


async def test_g10_a_client_that_pings_and_takes_no_pong_is_cut_there_too(monkeypatch: pytest.MonkeyPatch) -> None:
    app = Told()
    app.may_accept.set()
    async with socket(app) as client:
        monkeypatch.setattr(websockets, "MAX_UNTAKEN_BYTES", -1)
        await client.ping()
        await app.until("begun", ("gone", 0))


async def test_g8_an_upgrade_that_waits_at_the_end_of_a_drain_is_told_to_come_back() -> None:
    waits = asyncio.Event()

    async def wait(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        waits.set()
        assert (await receive())["type"] == "websocket.disconnect"

    async with serving(wait, ws=PingingWebSocket) as port:
        client = asyncio.create_task(refusal(port))
        await waits.wait()
    refused = await client
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")


async def refusal(port: int) -> Any:
    """What an upgrade is answered that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"ws://127.0.0.1:{port}/", proxy=None)
    return refused.value.response


async def test_an_application_that_fails_or_accepts_nothing_is_a_500(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, "uvicorn.error")  # whatever another server in this process has set

    async def fail(scope: Any, receive: Any, send: Any) -> None:
        raise ZeroDivisionError

    async def leave(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    for app in (fail, leave):
        async with serving(app, ws=PingingWebSocket) as port:
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{port}/", proxy=None)
            assert refused.value.response.status_code == 500
    assert "ZeroDivisionError" in caplog.text
