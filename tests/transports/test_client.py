"""The WebSocket transport of the SDK's client, against a server that does what each test says."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from harness.scripted_ws import SESSION, Peer, ScriptedServer
from mcp.shared.message import SessionMessage
from mcp_types import jsonrpc_message_adapter
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.transports import client as module
from trunkline.transports.client import websocket_client
from trunkline.transports.dialer import CannotConnect

pytestmark = pytest.mark.anyio

PATIENCE = 10.0
INITIALIZE = {"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {}}


def call(number: int, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params}


def answer(number: int | str, **result: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": number, "result": result}


class Session:
    """What the SDK's session does with the streams, without its own mind."""

    def __init__(
        self,
        incoming: MemoryObjectReceiveStream[SessionMessage | Exception],
        outgoing: MemoryObjectSendStream[SessionMessage],
    ) -> None:
        self.incoming = incoming
        self.outgoing = outgoing

    async def send(self, message: dict[str, Any]) -> None:
        with anyio.fail_after(PATIENCE):
            await self.outgoing.send(SessionMessage(jsonrpc_message_adapter.validate_python(message, by_name=False)))

    async def take(self) -> SessionMessage | Exception:
        with anyio.fail_after(PATIENCE):
            return await self.incoming.receive()

    async def next(self) -> dict[str, Any]:
        item = await self.take()
        assert isinstance(item, SessionMessage), repr(item)
        message: dict[str, Any] = json.loads(item.message.model_dump_json(by_alias=True, exclude_unset=True))
        return message

    async def is_over(self, words: str) -> None:
        """The stream says why, and ends."""
        item = await self.take()
        assert isinstance(item, ConnectionError)
        assert words in str(item)
        with pytest.raises(anyio.EndOfStream):
            await self.take()
        with pytest.raises(anyio.BrokenResourceError):
            await self.send(call(99))


@asynccontextmanager
async def connected(server: ScriptedServer, **options: Any) -> AsyncIterator[tuple[Session, Peer]]:
    """A client whose session has begun: one message received."""
    async with websocket_client(server.url, **options) as streams:
        session, peer = Session(*streams), await server.next()
        await session.send(INITIALIZE)
        await peer.open_session()
        assert await session.next() == answer(0)
        yield session, peer


@pytest.fixture
async def server() -> AsyncIterator[ScriptedServer]:
    async with ScriptedServer() as running:
        yield running


async def test_messages_go_both_ways_one_a_frame(server: ScriptedServer) -> None:
    async with connected(server) as (session, peer):
        await session.send(call(1, name="échø"))
        assert await peer.next() == call(1, name="échø")
        asked = {"jsonrpc": "2.0", "id": 7, "method": "roots/list"}
        await peer.send(asked)
        await peer.send(answer(1, big=10**30))
        assert await session.next() == asked
        assert await session.next() == answer(1, big=10**30)
        assert peer.headers["Sec-WebSocket-Protocol"] == "mcp"


async def test_headers_and_workflow_go_with_every_connection(server: ScriptedServer) -> None:
    async with connected(server, headers={"Authorization": "Bearer x"}, workflow="mine") as (_, peer):
        peer.cut()
        again = await server.next()
        for headers in (peer.headers, again.headers):
            assert headers["Authorization"] == "Bearer x"
            assert headers["Trunkline-Workflow"] == "mine"
        assert "Mcp-Session-Id" not in peer.headers


async def test_a_cut_connection_is_taken_up_by_session_and_count(server: ScriptedServer) -> None:
    async with connected(server) as (session, first):
        await session.send(call(1))
        await first.next()
        await first.send({"jsonrpc": "2.0", "method": "notifications/message"})
        await session.next()
        first.cut()

        second = await server.next()
        assert second.headers["Mcp-Session-Id"] == SESSION
        assert second.headers["Last-Event-ID"] == "2"
        await second.send(answer(1, missed=True))
        await second.settle()
        assert await session.next() == answer(1, missed=True)

        second.cut()
        third = await server.next()
        # The answer, and that to the client's own question: on this socket, not on all.
        assert third.headers["Last-Event-ID"] == "2"


async def test_what_came_before_the_cut_is_delivered_and_counted(server: ScriptedServer) -> None:
    async with connected(server) as (session, first):
        for number in range(5):
            await first.send({"jsonrpc": "2.0", "id": number, "method": "ping"})
        await first.close(1001)
        assert [(await session.next())["id"] for _ in range(5)] == [0, 1, 2, 3, 4]
        assert (await server.next()).headers["Last-Event-ID"] == "6"


async def test_a_call_in_flight_there_is_not_sent_again(server: ScriptedServer) -> None:
    async with connected(server) as (session, first):
        await session.send(call(1))
        await first.next()
        first.cut()
        second = await server.next()
        await second.settle()
        assert await second.next() == {"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}
        await second.send({"jsonrpc": "2.0", "id": 1, "error": {"code": -32600, "message": "in flight"}})
        await second.settle()
        await second.send(answer(1, late=True))
        assert await session.next() == answer(1, late=True)
        # Nothing else was written: what comes next is the next call.
        await session.send(call(2))
        assert await second.next() == call(2)


async def test_a_call_that_the_server_never_had_is_sent_again_once(server: ScriptedServer) -> None:
    async with connected(server) as (session, first):
        await session.send(call(1, argument=5))
        first.cut()
        second = await server.next()
        await second.settle()
        assert (await second.next())["method"] == "ping"
        await second.send(answer(1))
        await second.settle()
        assert await second.next() == call(1, argument=5)
        await second.send(answer(1, done=True))
        assert await session.next() == answer(1, done=True)
        await session.send(call(2))
        assert await second.next() == call(2)


async def test_a_call_waits_for_a_connection_and_is_sent_once(server: ScriptedServer) -> None:
    async with connected(server) as (session, first):
        server.refusals += [(503, {}, b"")] * 4
        first.cut()
        await server.was_asked(2)
        await session.send(call(1))
        second = await server.next()
        heard = [await second.next(), await second.next()]
        assert sorted(message["method"] for message in heard) == ["ping", "tools/call"]
        await second.send(answer("trunkline-1"))
        await second.send(answer(1, once=True))
        assert await session.next() == answer(1, once=True)


async def test_an_answer_that_may_be_lost_is_repeated_and_one_that_arrived_is_not(server: ScriptedServer) -> None:
    async with connected(server) as (session, first):
        await first.send({"jsonrpc": "2.0", "id": 3, "method": "elicitation/create"})
        await session.next()
        first.stop_reading()
        await session.send(answer(3, action="accept"))
        first.cut()
        second = await server.next()
        assert await second.next() == answer(3, action="accept")
        await second.settle()
        # Once this has come, the pong for what was before it has been sent.
        await session.send(call(1))
        await second.next()
        second.cut()
        third = await server.next()
        await third.settle()


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (4404, "the session has ended: idle"),
        (4409, "another connection goes on with the session"),
        (1000, "the server closed the session"),
        (1008, "the server closed the connection (1008)"),
    ],
)
async def test_a_server_that_ends_the_session_ends_the_calls(server: ScriptedServer, code: int, words: str) -> None:
    async with connected(server) as (session, peer):
        await session.send(call(1))
        await peer.next()
        await peer.close(code, "idle")
        failed = await session.next()
        assert failed["id"] == 1
        assert failed["error"]["code"] == -31002
        assert words in failed["error"]["message"]
        assert failed["error"]["data"] == {"executed": "unknown"}
        await session.is_over(words)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404])
async def test_a_session_that_is_gone_is_not_asked_for_twice(server: ScriptedServer, status: int) -> None:
    body = json.dumps({"jsonrpc": "2.0", "id": None, "error": {"code": -32600, "message": "no such session"}})
    async with connected(server) as (session, peer):
        server.refusals.append((status, {}, body.encode()))
        await session.send(call(1))
        await peer.next()
        peer.cut()
        failed = await session.next()
        assert f"HTTP {status}: no such session" in failed["error"]["message"]
        await session.is_over("cannot go on")
    assert len(server.asked) == 2


async def test_a_server_without_sessions_is_not_come_back_to() -> None:
    async with ScriptedServer(session="") as server, connected(server) as (session, peer):
        await session.send(call(1))
        await peer.next()
        peer.cut()
        assert "no session to come back to" in (await session.next())["error"]["message"]
        await session.is_over("no session to come back to")
        assert len(server.asked) == 1


async def test_a_cut_before_the_session_began_ends_it(server: ScriptedServer) -> None:
    async with websocket_client(server.url) as streams:
        session, peer = Session(*streams), await server.next()
        await session.send(INITIALIZE)
        await peer.next()
        peer.cut()
        assert (await session.next())["error"]["code"] == -31002
        await session.is_over("no session to come back to")


async def test_the_tries_are_bounded_by_their_number(server: ScriptedServer) -> None:
    async with connected(server, attempts=3) as (session, peer):
        server.refuses_always = 503
        await session.send(call(1))
        await peer.next()
        peer.cut()
        failed = await session.next()
        assert "3 tries to come back did not succeed" in failed["error"]["message"]
        assert "HTTP 503" in failed["error"]["message"]
        await session.is_over("3 tries")
    assert len(server.asked) == 1 + 3


async def test_the_tries_are_bounded_in_time(server: ScriptedServer) -> None:
    async with connected(server, seconds=0.0) as (session, peer):
        peer.cut()
        await session.is_over("0 tries")
    assert len(server.asked) == 1


async def test_a_wait_that_the_server_asks_for_counts(server: ScriptedServer) -> None:
    async with connected(server, seconds=30.0) as (session, peer):
        server.refusals.append((503, {"Retry-After": "3600"}, b""))
        peer.cut()
        await session.is_over("1 tries")
    assert len(server.asked) == 2


async def test_a_server_that_takes_connections_and_drops_them_is_given_up(server: ScriptedServer) -> None:
    async with connected(server, attempts=4) as (session, peer):
        for _ in range(5):
            peer.cut()
            if len(server.asked) < 5:
                peer = await server.next()
        await session.is_over("4 tries")
    assert len(server.asked) == 1 + 4


async def test_each_cut_has_its_own_tries(server: ScriptedServer) -> None:
    async with connected(server, attempts=1) as (session, peer):
        for _ in range(5):
            peer.cut()
            peer = await server.next()
            await peer.settle()
            await session.send({"jsonrpc": "2.0", "method": "notifications/x"})
            await peer.next()
            await peer.send({"jsonrpc": "2.0", "method": "notifications/y"})
            await session.next()


async def test_what_waits_for_a_connection_in_vain_surely_did_not_run(server: ScriptedServer) -> None:
    async with connected(server, attempts=2) as (session, peer):
        server.refuses_always = 503
        peer.cut()
        await server.was_asked(2)
        await session.send(call(1))
        failed = await session.next()
        assert failed["error"]["data"] == {"executed": "no"}
        await session.is_over("2 tries")


async def test_a_message_that_is_too_large_fails_alone(server: ScriptedServer) -> None:
    async with connected(server) as (session, peer):
        await session.send(call(1, text="x" * MAX_BODY_BYTES))
        assert "larger than" in (await session.next())["error"]["message"]
        await session.send(call(2))
        assert await peer.next() == call(2)
        # In place of an answer that is too large, the server gets the error.
        await session.send(answer(9, text="x" * MAX_BODY_BYTES))
        refused = await peer.next()
        assert refused["id"] == 9
        assert "larger than" in refused["error"]["message"]


async def test_what_is_no_message_is_told_and_the_next_is_read(server: ScriptedServer) -> None:
    async with connected(server) as (session, peer):
        await peer.send("{")
        assert isinstance(await session.take(), ValueError)
        await peer.send(answer(1))
        assert await session.next() == answer(1)


async def test_a_binary_frame_ends_it(server: ScriptedServer) -> None:
    async with connected(server) as (session, peer):
        await peer.send(b"\x00")
        assert await peer.closed() == 1003
        await session.is_over("1003")


async def test_closing_says_good_bye_after_the_last_message(server: ScriptedServer) -> None:
    async with connected(server) as (session, peer):
        await session.send({"jsonrpc": "2.0", "method": "notifications/last"})
    assert (await peer.next())["method"] == "notifications/last"
    assert await peer.closed() == 1000
    assert len(server.asked) == 1


async def test_closing_while_there_is_no_connection_does_not_wait(
    server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 2 * PATIENCE)
    with anyio.move_on_after(PATIENCE) as patience:
        async with connected(server, attempts=1000, seconds=3600.0) as (session, peer):
            server.refuses_always = 503
            peer.cut()
            await server.was_asked(2)
            await session.send(call(1))
    assert not patience.cancel_called


@pytest.mark.parametrize("turns", range(6))
async def test_who_gives_up_while_it_closes_leaves_no_connection_behind(server: ScriptedServer, turns: int) -> None:
    peers: list[Peer] = []
    leaves = asyncio.Event()

    async def use() -> None:
        async with connected(server) as (_, peer):
            peers.append(peer)
            leaves.set()

    using = asyncio.create_task(use())
    await leaves.wait()
    for _ in range(turns):
        await asyncio.sleep(0)
    using.cancel()
    await asyncio.wait([using])
    await peers[0].closed()


@pytest.mark.parametrize("turns", range(6))
async def test_who_leaves_while_it_comes_back_leaves_no_connection_behind(server: ScriptedServer, turns: int) -> None:
    async with connected(server) as (_, peer):
        peer.cut()
        again = await server.next()
        for _ in range(turns):
            await asyncio.sleep(0)
    await again.closed()


@pytest.mark.parametrize("error", [KeyError("mine"), SystemExit("mine"), KeyboardInterrupt("mine")])
async def test_an_error_inside_comes_out_as_it_is(server: ScriptedServer, error: BaseException) -> None:
    with pytest.raises(type(error), match="mine"):
        async with connected(server):
            raise error


async def test_the_first_connection_is_not_tried_twice(server: ScriptedServer) -> None:
    server.refuses_always = 503
    with pytest.raises(CannotConnect, match="HTTP 503"):
        async with websocket_client(server.url):
            pass
    assert len(server.asked) == 1


def test_without_the_sdk_it_says_what_to_install() -> None:
    program = """if True:
        import asyncio, sys
        sys.modules["mcp_types"] = None
        from trunkline.transports.client import websocket_client
        async def main():
            async with websocket_client("ws://127.0.0.1:1/ws"):
                pass
        asyncio.run(main())
    """
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 1
    assert "ImportError: websocket_client needs the MCP SDK's 2.x line: pip install 'mcp>=2'" in ended.stderr
