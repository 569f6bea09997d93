"""A drain that begins while a request is being looked at: what is not begun here by then is another worker's (G8)."""

import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio
import pytest
from harness.asgi_client import Answer, asgi_client
from harness.changing import until
from harness.clustering import Member, Workers, orphaned, started, workers
from harness.duplex_clients import initialize
from harness.endpoint_bench import call
from harness.memory_wire import echo
from harness.muxing import settle
from trunkline.mux.errors import Elsewhere
from trunkline.mux.principal import ANONYMOUS
from trunkline.transports import EndpointConfig, Guard, SSEEndpoint, StreamableHTTPEndpoint, WebSocketEndpoint
from trunkline.transports.asgi import HOPS, ASGIApp, Receive, Scope, Send

pytestmark = pytest.mark.anyio

KEYED = {"trunkline-workflow": "k"}
Make = Callable[[EndpointConfig], ASGIApp]


class Anywhere:
    """The endpoints of all workers behind that of the first one, which hands on as a `Forwarder` does."""

    def __init__(self, at: Workers, make: Make = StreamableHTTPEndpoint) -> None:
        self.served_by: list[Member] = []
        """Which workers were asked, in their order."""
        self._at = at
        self._make = make

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        message = await receive()

        async def again() -> Any:
            return message

        await self._serve(self._at.all[0], scope, again, send)

    async def _serve(self, member: Member, scope: Scope, receive: Receive, send: Send) -> None:
        self.served_by.append(member)
        config = EndpointConfig("x", member.pool, Guard(loopback=True), lambda _: ANONYMOUS)
        try:
            await self._make(config)(scope, receive, send)
        except Elsewhere as elsewhere:
            other = next(one for one in self._at.all if one.members.worker.id == elsewhere.worker)
            assert scope.get(HOPS, 0) < 3, "a request went round in circles"
            await self._serve(other, {**scope, HOPS: scope.get(HOPS, 0) + 1}, receive, send)


class Held:
    """The next call of an operation of the directory is done, or `before` it is, and goes on when the test lets it."""

    def __init__(self, member: Member, op: str, monkeypatch: pytest.MonkeyPatch, *, before: bool = False) -> None:
        self.reached, self.goes_on = anyio.Event(), anyio.Event()
        work: Callable[..., Awaitable[Any]] = getattr(member.view, op)

        async def held(*arguments: Any) -> Any:
            monkeypatch.delattr(member.view, op)
            done = None if before else await work(*arguments)
            self.reached.set()
            await self.goes_on.wait()
            return await work(*arguments) if before else done

        monkeypatch.setattr(member.view, op, held, raising=False)


async def drained_meanwhile(
    at: Workers, op: str, message: Mapping[str, Any], headers: Mapping[str, str], monkeypatch: pytest.MonkeyPatch
) -> tuple[Answer, list[Member]]:
    """The answer to a message during which a drain of the first worker begins, as that asks the directory for this."""
    app = Anywhere(at)
    async with asgi_client(app) as client:
        held = Held(at.all[0], op, monkeypatch)
        answer = client.start("POST", message, headers)
        await held.reached.wait()
        await at.all[0].pool.drain(0)
        held.goes_on.set()
        await answer.over()
    return answer, app.served_by


@pytest.mark.parametrize("headers", [{}, KEYED], ids=["session", "key"])
async def test_g8_a_session_that_is_being_claimed_begins_at_another_worker(
    headers: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(2) as (at, a, b):
        answer, asked = await drained_meanwhile(at, "claim", initialize(), headers, monkeypatch)
        assert (answer.status, asked) == (200, [a, b])
        assert "result" in await answer.json()
        record = await at.directory.get(answer.headers["mcp-session-id"])
        assert record is not None
        assert record.worker == b.members.worker.id


@pytest.mark.parametrize("message", [initialize(), call()], ids=["handshake", "call"])
@pytest.mark.parametrize("movable", [True, False])
async def test_g8_a_session_that_is_being_opened_is_opened_by_another_worker(
    movable: bool, message: dict[str, Any]
) -> None:
    async with started(2, movable=movable, on_request=echo) as (at, a, b):
        at.server.pause("initialize")
        app = Anywhere(at)
        async with asgi_client(app) as client:
            answer = client.start("POST", message, KEYED)
            await at.server.reached("initialize")
            at.server.let("initialize")
            await a.pool.drain(0)
            assert "result" in await answer.json()
        assert (app.served_by[0], app.served_by[-1]) == (a, b)
        assert len(at.server.of("tools/call")) == (message["method"] == "tools/call")


@pytest.mark.parametrize("op", ["get", "read", "replace"])
async def test_g8_a_call_of_a_session_that_is_being_taken_over_goes_to_another_worker(
    op: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with orphaned() as (at, b, c, session_id):
        del at.all[0]
        answer, asked = await drained_meanwhile(at, op, call(), {"mcp-session-id": session_id}, monkeypatch)
        assert "result" in await answer.json()
        assert asked == [b, c]
        assert len(at.server.of("tools/call")) == len(at.server.of("initialize")) == 1


async def test_g8_what_names_a_session_by_its_key_that_its_drained_holder_has_ended_begins_anew_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It came to the holder by way of a worker that goes on: the directory still says that the session is there."""
    async with started(2, movable=False, on_request=echo) as (at, b, a):
        await a.client(key="k")
        removing = Held(a, "remove", monkeypatch, before=True)
        await a.pool.drain(0)
        await removing.reached.wait()
        app = Anywhere(at)
        async with asgi_client(app) as client:
            answer = client.start("POST", call(), KEYED)
            await until(lambda: app.served_by == [b, a])
            await settle()
            removing.goes_on.set()
            assert "result" in await answer.json()
        assert app.served_by == [b, a, b]
        assert answer.headers["trunkline-workflow-state"] == "reset"


UPGRADE = {
    "type": "websocket",
    "path": "/servers/x/ws",
    "headers": [(b"host", b"localhost"), (b"trunkline-workflow", b"k")],
    "subprotocols": ["mcp"],
    "extensions": {"websocket.http.response": {}},
}


async def upgrade(app: Anywhere, answer: dict[str, Any]) -> None:
    """Ask for a WebSocket, which ends as soon as it is there: what `app` tells once more is no message."""

    async def receive() -> Any:
        return {"type": "websocket.connect"}

    async def send(message: Any) -> None:
        answer.update({**message, **answer})

    await app(UPGRADE, receive, send)


async def test_g8_an_upgrade_is_looked_for_by_another_worker_where_a_drain_begins_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(2) as (at, a, b):
        app, answer = Anywhere(at, WebSocketEndpoint), dict[str, Any]()
        held = Held(a, "find", monkeypatch)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upgrade, app, answer)
            await held.reached.wait()
            await a.pool.drain(0)
            held.goes_on.set()
        assert (answer["type"], app.served_by) == ("websocket.accept", [a, b])


async def test_g8_an_upgrade_that_waits_for_its_session_goes_with_it_to_another_worker() -> None:
    async with started(2) as (at, a, b):
        at.server.pause("initialize")
        app, answer = Anywhere(at, WebSocketEndpoint), dict[str, Any]()
        async with asgi_client(Anywhere(at)) as client, anyio.create_task_group() as tasks:
            begun = client.start("POST", initialize(), KEYED)
            await at.server.reached("initialize")
            tasks.start_soon(upgrade, app, answer)
            await until(lambda: app.served_by)
            await settle()
            at.server.let("initialize")
            await a.pool.drain(0)
            assert "result" in await begun.json()
        assert (answer["type"], app.served_by[0], app.served_by[-1]) == ("websocket.accept", a, b)


async def test_g8_an_upgrade_that_waits_for_its_session_may_be_tried_again_where_no_other_worker_goes_on() -> None:
    """A client that is answered 200 takes it for an end, or for a server that knows no WebSocket."""
    async with started(1) as (at, a):
        at.server.pause("initialize")
        app, answer = Anywhere(at, WebSocketEndpoint), dict[str, Any]()
        async with asgi_client(Anywhere(at)) as client, anyio.create_task_group() as tasks:
            client.start("POST", initialize(), KEYED)
            await at.server.reached("initialize")
            tasks.start_soon(upgrade, app, answer)
            await until(lambda: app.served_by)
            await settle()
            await a.pool.drain(0)
        at.server.let("initialize")
        assert answer["status"] == 503
        assert json.loads(answer["body"])["error"]["code"] == -31002


ENDPOINTS: dict[str, Make] = {"http": StreamableHTTPEndpoint, "sse": lambda config: SSEEndpoint(config).stream}


@pytest.mark.parametrize("transport", ENDPOINTS)
async def test_g8_a_stream_whose_session_a_drain_takes_meanwhile_is_to_be_asked_for_once_more(
    transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An EventSource that gets another status stops for good."""
    async with orphaned() as (at, b, c, session_id):
        await c.pool.drain(0)
        del at.all[0]
        app = Anywhere(at, ENDPOINTS[transport])
        async with asgi_client(app) as client:
            held = Held(b, "read", monkeypatch)
            answer = client.start("GET", b"", {"mcp-session-id": session_id})
            await held.reached.wait()
            await b.pool.drain(0)
            held.goes_on.set()
            assert (await answer.body(), answer.status) == (b"retry: 1000\n\n", 200)
        assert app.served_by == [b]


async def test_g6_a_call_that_waits_for_a_session_which_a_drain_ends_is_told_that_it_did_not_run() -> None:
    async with started(1) as (at, a):
        at.server.pause("initialize")
        async with asgi_client(Anywhere(at)) as client:
            answer = client.start("POST", call(), KEYED)
            await at.server.reached("initialize")
            await a.pool.drain(0)
            error = (await answer.json())["error"]
        at.server.let("initialize")
        assert (error["code"], error["data"]) == (-31002, {"executed": "no"})


@pytest.mark.parametrize("transport", ENDPOINTS)
async def test_a_stream_of_a_session_that_does_not_open_is_refused_by_a_status(transport: str) -> None:
    """Where 200 has no events, a client is told that all is well, and by its body that nothing is."""
    async with workers() as at:
        await at.start()
        at.server.pause("initialize")
        app = Anywhere(at, ENDPOINTS[transport])
        async with asgi_client(Anywhere(at)) as client, asgi_client(app) as listener:
            client.start("POST", initialize(), KEYED)
            await at.server.reached("initialize")
            answer = listener.start("GET", b"", KEYED)
            await until(lambda: app.served_by)
            await settle()
            at.server.answers_initialize = lambda exchange: exchange.refuse()
            at.server.let("initialize")
            assert (await answer.json())["error"]["code"] == -32000
            assert answer.status == 503
