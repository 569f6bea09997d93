"""WebSocket on a real socket: the upgrade, the frames, what is refused, and how a socket that was cut is taken up."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import anyio
import pytest
from harness.changing import until
from harness.duplex_clients import PATIENCE, SocketClient
from harness.endpoint_bench import authenticate
from harness.listening import Served, listening
from harness.memory_wire import echo, message
from harness.muxing import bench
from trunkline.mux.limits import MAX_BODY_BYTES, EventLogLimits
from trunkline.transports import asgi, link, websocket
from trunkline.transports.admission import Admission
from trunkline.transports.asgi import Grant, Message
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.frames import text_frame
from trunkline.transports.guard import Guard
from trunkline.transports.websocket import WebSocketEndpoint
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.typing import Subprotocol

pytestmark = pytest.mark.anyio

PING = {"jsonrpc": "2.0", "id": "p", "method": "ping"}
ALICE, BOB = {"Authorization": "alice"}, {"Authorization": "bob"}


@asynccontextmanager
async def opened(
    at: Served, headers: dict[str, str] | None = None, query: str = "", *, counts: bool = True
) -> AsyncIterator[SocketClient]:
    """A client with a session."""
    async with SocketClient(at.base(), headers, counts=counts) as client:
        await client.open(query)
        yield client


async def refusal(client: SocketClient, query: str = "", headers: dict[str, str] | None = None) -> InvalidStatus:
    """The answer to an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        await client.connect(query, headers)
    return refused.value


def status_and_text(refused: InvalidStatus) -> tuple[int, str]:
    body = refused.response.body
    return refused.response.status_code, json.loads(body or b"")["error"]["message"]


async def acknowledged(at: Served, position: int) -> None:
    """Wait until the server knows that its client has everything up to this position."""
    duplex = at.pool.workflows[0].duplexes.newest
    assert duplex is not None
    await until(lambda: (duplex._acknowledged or 0) >= position)


async def test_w2_one_message_a_text_frame_both_ways_over_the_subprotocol() -> None:
    async with listening() as at, SocketClient(at.base()) as client:
        at.server.on_request = echo
        await client.connect()
        assert client.socket is not None
        assert client.socket.subprotocol == "mcp"
        assert client.session_id
        await client.begin()
        [workflow] = at.pool.workflows
        assert workflow.record.session_id == client.session_id
        text = '{"jsonrpc":"2.0","id":12345678901234567890123,"method":"tools/call","params":{"arguments":{"ä":1}}}'
        await client.socket.send(text)
        answer = await client.socket.recv()
        assert isinstance(answer, str)
        assert '"id":12345678901234567890123' in answer
        assert json.loads(answer)["result"]["structuredContent"] == {"ä": 1}


async def test_a_key_tells_how_the_workflow_came() -> None:
    async with listening() as at, opened(at, query="?workflow=k") as one, SocketClient(at.base()) as two:
        assert one.socket is not None
        assert one.socket.response is not None
        assert one.socket.response.headers["Trunkline-Workflow-State"] == "created"
        await two.connect(headers={"Trunkline-Workflow": "k"})
        assert two.socket is not None
        assert two.socket.response is not None
        assert two.socket.response.headers["Trunkline-Workflow-State"] == "resumed"
        assert two.session_id == one.session_id
        await at.pool.end(at.pool.workflows[0], "idle")
        async with opened(at, query="?workflow=k") as late:
            assert late.socket is not None
            assert late.socket.response is not None
            assert late.socket.response.headers["Trunkline-Workflow-State"] == "reset", "what it knew is gone"


# The upgrade, refused.


async def test_w3_the_subprotocol_must_be_offered() -> None:
    async with listening() as at:
        for offered in (None, [Subprotocol("graphql-ws")]):
            with pytest.raises(InvalidStatus) as refused:
                await connect(f"ws://127.0.0.1:{at.port}/servers/x/ws", subprotocols=offered, proxy=None)
            assert status_and_text(refused.value)[0] == 400
        assert at.counts["refused", "subprotocol"] == 2


async def test_x1_origin_and_host_are_checked_at_the_upgrade() -> None:
    guard = Guard(loopback=True, allowed_origins=["https://app.example"])
    async with listening(guard=guard) as at, SocketClient(at.base()) as client:
        assert status_and_text(await refusal(client, headers={"Origin": "https://evil.example"}))[0] == 403
        await client.connect(headers={"Origin": "https://app.example"})
    guard = Guard(loopback=False, allowed_hosts=["gw.example"])
    async with listening(guard=guard) as at, SocketClient(at.base()) as client:
        assert status_and_text(await refusal(client))[0] == 421


async def test_x2_the_upgrade_is_authenticated() -> None:
    async with listening() as at, SocketClient(at.base(), {"Authorization": "wrong"}) as client:
        refused = await refusal(client)
        assert status_and_text(refused)[0] == 401
        assert refused.response.headers["WWW-Authenticate"].startswith("Bearer")


async def test_g4_the_session_of_another_principal_or_server_gets_the_404_of_an_unknown_one() -> None:
    async with listening() as at, opened(at, ALICE) as hers, SocketClient(at.base(), BOB) as his:
        answers = {
            status_and_text(await refusal(his, f"?session_id={session}")) for session in (hers.session_id, "unknown")
        }
        assert len(answers) == 1
        assert answers.pop()[0] == 404
        async with SocketClient(at.base("y"), ALICE) as elsewhere:
            assert status_and_text(await refusal(elsewhere, f"?session_id={hers.session_id}"))[0] == 404


async def test_what_disagrees_is_refused() -> None:
    async with listening() as at, opened(at, query="?workflow=k") as keyed, opened(at) as other:
        client = SocketClient(at.base())
        for query, headers in (
            (f"?session_id={keyed.session_id}&workflow=j", {}),
            (f"?session_id={other.session_id}&workflow=k", {}),
            (f"?session_id={other.session_id}", {"Mcp-Session-Id": keyed.session_id}),
            ("?workflow=a%20b", {}),
        ):
            assert status_and_text(await refusal(client, query, headers))[0] == 400


async def test_a_defect_at_the_upgrade_is_a_500_and_logged(caplog: pytest.LogCaptureFixture) -> None:
    def defective(headers: object) -> None:
        raise ZeroDivisionError

    async with listening() as at, SocketClient(at.base()) as client:
        config = EndpointConfig("x", at.pool, Guard(loopback=True), defective)  # type: ignore[arg-type]
        at.endpoints.apps["websocket", "/servers/x/ws"] = WebSocketEndpoint(config)
        assert status_and_text(await refusal(client)) == (500, "internal error")
        assert "an upgrade failed" in caplog.text


async def test_g10_no_more_sockets_than_two_for_each_workflow_may_be_open() -> None:
    async with listening(max_workflows=1) as at, SocketClient(at.base()) as one, SocketClient(at.base()) as two:
        await one.connect()
        await two.connect()
        async with SocketClient(at.base()) as three:
            refused = await refusal(three)
            assert status_and_text(refused)[0] == 503
            assert "Retry-After" in refused.response.headers
        assert at.counts["refused", "max_workflows"] == 1


async def test_g8_a_gateway_that_drains_refuses_new_clients() -> None:
    async with listening() as at, SocketClient(at.base()) as client:
        at.pool._opening.draining = True
        assert status_and_text(await refusal(client))[0] == 503


# Frames.


@pytest.mark.parametrize("begins", [False, True])
@pytest.mark.parametrize(("garbage", "code"), [(b"{", -32700), (b"[]", -32600), (b'{"a":' * 100_000, -32700)])
async def test_garbage_is_answered_and_the_socket_goes_on(begins: bool, garbage: bytes, code: int) -> None:
    async with listening() as at, SocketClient(at.base()) as client:
        await client.connect()
        if begins:
            await client.begin()
        await client.send(garbage)
        refused = await client.next()
        assert refused["error"]["code"] == code
        assert refused.get("id") is None
        await client.send(PING)
        assert await client.next() == {"jsonrpc": "2.0", "id": "p", "result": {}}


async def test_a_message_that_is_nearly_nested_too_deeply_costs_its_client_nothing_else() -> None:
    """How deep that is depends on who reads: it may be that only its first level can be read."""
    deep = b'{"jsonrpc":"2.0","method":"notifications/cancelled","params":{"requestId":1,"a":%b%b}}'
    async with listening() as at, opened(at) as client:
        for depth in range(800, 1000):
            await client.send(deep % (b"[" * depth, b"]" * depth))
        await client.send(PING)
        while (answer := await client.next()).get("id") is None:
            assert answer["error"]["code"] == -32700
        assert answer == {"jsonrpc": "2.0", "id": "p", "result": {}}


async def test_w3_a_binary_frame_is_refused_with_1003() -> None:
    async with listening() as at, opened(at) as client:
        assert client.socket is not None
        await client.socket.send(b'{"jsonrpc":"2.0","id":1,"method":"ping"}')
        assert (await client.closed())[0] == 1003
        assert at.counts["refused", "frame"] == 1


async def test_w3_a_frame_over_the_limit_is_refused_with_1009() -> None:
    async with listening() as at, opened(at) as client:
        assert client.socket is not None
        with suppress(ConnectionClosed):  # it may be closed while the frame is under way
            await client.socket.send("." * (MAX_BODY_BYTES + 1))
        assert (await client.closed())[0] == 1009
        assert at.counts["refused", "body"] == 1


async def test_g12_text_that_is_none_and_an_identity_that_ends_close_the_socket_and_are_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    grant = Grant()
    monkeypatch.setattr(asgi, "UNBOUND", grant)
    async with listening() as at, opened(at) as client:
        assert client.socket is not None
        client.socket.transport.write(text_frame(b"\xff", b"mask"))
        assert (await client.closed())[0] == 1007
        assert at.counts["refused", "frame"] == 1
        await client.resume()
        grant.withdraw()
        assert (await client.closed())[0] == 4401
        assert at.counts["refused", "identity_ended"] == 1


async def test_a_message_of_nearly_the_largest_size_in_fragments_is_taken() -> None:
    async with listening() as at, opened(at) as client:
        at.server.on_request = echo
        assert client.socket is not None
        head, tail = '{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"a":"', '"}}'
        # The limit holds for a pong between the fragments, too.
        pad = "." * (MAX_BODY_BYTES - 125 - len(head) - len(tail))
        await client.socket.send([head, pad[:1000], pad[1000:], tail])
        assert (await client.next())["id"] == 1


async def test_g1_the_same_id_twice_in_flight_is_refused_and_the_first_goes_on() -> None:
    async with listening() as at, opened(at) as client:
        for _ in range(2):
            await client.call("t", id=1)
        assert (await client.next())["error"]["code"] == -32600
        (await at.server.got("tools/call")).answer({"first": True})
        assert (await client.next())["result"] == {"first": True}


async def test_w4_answers_come_in_any_order_and_a_cancel_means_the_sockets_own_call() -> None:
    async with listening() as at, opened(at, query="?workflow=k") as one, opened(at, query="?workflow=k") as two:
        for n in (1, 2):
            await one.call("t", id=n)
            await at.server.got("tools/call", n)
        await two.send({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 1}})
        for exchange in reversed(at.server.of("tools/call")):
            exchange.answer({})
        assert [answer["id"] for answer in await one.hear(2)] == [2, 1]


# Cut, and taken up.


async def test_g5_a_count_says_where_to_go_on_and_calls_have_gone_on() -> None:
    async with listening() as at, opened(at) as client:
        for n in (1, 2, 3):
            await client.call("t", id=n)
            await at.server.got("tools/call", n)
        calls = at.server.of("tools/call")
        calls[0].answer({})
        assert (await client.next())["id"] == 1
        calls[1].answer({})
        client.cut()
        await at.until_detached()
        calls[2].answer({})
        await client.resume()
        assert [answer["id"] for answer in await client.hear(2)] == [2, 3]
        assert len(at.server.sessions) == 1
        assert at.counts["resumes", "websocket", "resumed"] == 1


async def test_g5_by_a_count_while_the_old_socket_is_not_known_to_be_dead() -> None:
    async with listening() as at, opened(at) as client, SocketClient(at.base()) as again:
        at.server.on_request = echo
        again.session_id, again.count = client.session_id, client.count
        await again.resume()
        assert await client.closed() == (4409, "taken_over")
        await again.call("t", id=1)
        assert (await again.next())["id"] == 1


async def test_g5_without_a_count_what_the_pong_acknowledged_does_not_come_again() -> None:
    async with listening() as at, opened(at, counts=False) as client:
        await client.call("t", id=1)
        (await at.server.got("tools/call")).answer({})
        assert (await client.next())["id"] == 1
        await acknowledged(at, 2)
        await client.call("t", id=2)
        await at.server.got("tools/call", 2)
        client.cut()
        await at.until_detached()
        at.server.of("tools/call")[1].answer({})
        await client.resume()
        assert (await client.next())["id"] == 2


async def test_g5_a_client_that_returns_and_says_nothing_is_served_after_a_moment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(link, "HOLD_SECONDS", 0.05)
    async with listening() as at, opened(at, counts=False) as client:
        await client.call("t", id=1)
        await at.server.got("tools/call")
        client.cut()
        await at.until_detached()
        (await at.server.got("tools/call")).answer({})
        await client.resume()
        assert (await client.next())["id"] == 1


@pytest.mark.parametrize("uvicorn_options", [None, {"ws": "websockets-sansio"}], ids=["lent", "by events"])
async def test_g10_a_socket_has_one_place_for_as_long_as_it_is_there(uvicorn_options: dict[str, Any] | None) -> None:
    admission = Admission()
    async with listening(options={"admission": admission}, uvicorn_options=uvicorn_options) as at:
        async with opened(at) as client:
            assert admission.connections == 1
            client.cut()
            await at.until_detached()
            assert admission.connections == 0
        assert admission.connections == 0


async def test_a_socket_that_was_closed_in_order_is_not_gone_on_with() -> None:
    async with listening() as at, opened(at, counts=False) as client:
        assert client.socket is not None
        await client.call("t", id=1)
        await at.server.got("tools/call")
        await client.socket.close()
        await at.until_detached()
        await client.resume()
        await client.call("t", id=1)
        (await at.server.got("tools/call", 2)).answer({"of": "the second"})
        assert (await client.next())["result"] == {"of": "the second"}


async def test_under_a_server_that_lends_no_pings_a_client_may_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HOLD_SECONDS", 0.05)
    async with listening(uvicorn_options={"ws": "websockets-sansio"}) as at, opened(at) as client:
        await client.call("t", id=1)
        upstream = await at.server.got("tools/call")
        client.cut()
        await at.until_detached()
        upstream.answer({})
        await client.resume()
        assert (await client.next())["id"] == 1


# Ends.


async def test_the_workflow_is_gone_4404_and_why() -> None:
    async with listening() as at, opened(at) as client:
        [workflow] = at.pool.workflows
        await at.pool.end(workflow, "deleted")
        assert await client.closed() == (4404, "deleted")
        assert status_and_text(await refusal(client, f"?session_id={client.session_id}"))[0] == 404


async def test_g8_a_drain_closes_with_1001_after_the_last_answer() -> None:
    async with listening() as at, opened(at) as client, anyio.create_task_group() as tasks:
        await client.call("t", id=1)
        upstream = await at.server.got("tools/call")
        tasks.start_soon(at.pool.drain, PATIENCE)
        while not at.pool.draining:
            await anyio.lowlevel.checkpoint()
        await client.call("t", id=2)
        refused = await client.next()
        assert (refused["id"], refused["error"]["code"]) == (2, -31002)
        upstream.answer({})
        assert (await client.next())["id"] == 1
        assert await client.closed() == (1001, "drained")


async def test_a_socket_without_a_handshake_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "HANDSHAKE_SECONDS", 0.1)
    async with listening() as at, SocketClient(at.base()) as client:
        await client.connect()
        assert await client.closed() == (1008, "no_handshake")
        assert at.counts["refused", "no_handshake"] == 1


async def test_g10_a_client_that_takes_nothing_is_cut_and_may_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "SEND_SECONDS", 0.2)
    room = EventLogLimits(bytes=1 << 26)
    async with listening(total_bytes=1 << 26, event_log=room) as at, opened(at) as client:
        assert client.socket is not None
        client.socket.transport.pause_reading()
        for n in range(3):
            await client.call("t", id=n)
            (await at.server.got("tools/call", n + 1)).answer({"pad": "." * 3_000_000})
        await at.until_detached()
        client.socket.transport.resume_reading()
        await client.over()
        assert client.socket.close_code == 4408
        assert at.counts["slow_clients", "x"] == 1
        monkeypatch.setattr(websocket, "SEND_SECONDS", PATIENCE)
        await client.resume()
        await client.answer(2)
        assert [answer["id"] for answer in client.heard] == ["open", 0, 1, 2]


async def test_what_the_server_asks_comes_on_the_socket_and_its_answer_goes_back() -> None:
    async with listening() as at, SocketClient(at.base()) as client:
        await client.connect()
        await client.begin(capabilities={"sampling": {}})
        at.server.session.tell(message("sampling/createMessage", {"messages": []}, id="q"))
        question = await client.next()
        await client.send({"jsonrpc": "2.0", "id": question["id"], "result": {"role": "assistant"}})
        assert (await at.server.got("response")).json["id"] == "q"


# Without a socket: servers that can do less, and clients that leave at once.


async def plain(scope: dict[str, Any], incoming: list[Message], *, fails: bool = False) -> list[Message]:
    """What the endpoint sends to a server of ASGI."""
    sent: list[Message] = []

    async def receive() -> Message:
        if incoming:
            return incoming.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    async def send(event: Message) -> None:
        if fails:
            raise OSError
        sent.append(event)

    async with bench() as at:
        config = EndpointConfig("x", at.pool, Guard(loopback=True), authenticate)
        given = {"type": "websocket", "headers": [(b"host", b"localhost")], **scope}
        with anyio.fail_after(PATIENCE):
            if fails:
                with pytest.raises(OSError):
                    await WebSocketEndpoint(config)(given, receive, send)
            else:
                await WebSocketEndpoint(config)(given, receive, send)
    return sent


async def test_a_server_that_can_send_no_status_closes() -> None:
    assert await plain({"subprotocols": []}, [{"type": "websocket.connect"}]) == [
        {"type": "websocket.close", "code": 1008}
    ]


async def test_a_client_that_leaves_before_the_upgrade_is_answered_leaves_nothing() -> None:
    assert await plain({"subprotocols": ["mcp"]}, [{"type": "websocket.connect"}], fails=True) == []


async def test_a_client_that_leaves_at_once_leaves_nothing() -> None:
    left: list[Message] = [{"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1006}]
    [accepted, closed] = await plain({"subprotocols": ["other", "mcp"]}, left)
    assert accepted["subprotocol"] == "mcp"
    assert closed["type"] == "websocket.close"
