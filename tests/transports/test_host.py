"""The transports in an application of one's own: the example of the documentation, and what its table promises."""

import asyncio
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import anyio
import pytest
from contract.session import Receiver, Session
from harness.asgi_client import asgi_client
from harness.duplex_clients import initialize
from harness.hosting import OPENED, Application, answer, listening, log, mounted
from harness.wire import Wire, text_of
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamable_http_client
from starlette.applications import Starlette
from starlette.routing import Mount
from trunkline.mux import Pooling, Principal
from trunkline.mux.workflow import Workflow
from trunkline.transports import Host, SSETransport, StreamableHTTPTransport, Transport, WebSocketTransport
from trunkline.transports import host as module
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytestmark = pytest.mark.anyio

PAGE = Path(__file__).parents[2] / "docs" / "embedding.md"
PATIENCE = 10.0
PING = {"jsonrpc": "2.0", "id": 1, "method": "ping"}


async def test_the_example_of_the_documentation_runs() -> None:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(compile(code, str(PAGE), "exec"), names)
    async with listening(names["app"]) as address:
        for opened in (
            streamable_http_client(f"http://{address}/tools/mcp"),
            sse_client(f"http://{address}/tools/sse"),
        ):
            async with opened as (read, write, *_), ClientSession(read, write) as session:
                with anyio.fail_after(PATIENCE):
                    await session.initialize()
                    assert [tool.name for tool in (await session.list_tools()).tools] == ["count"]
                    for n in (1, 2, 3):
                        content = (await session.call_tool("count", {})).content[0]
                        assert content.type == "text"
                        assert content.text == str(n)


async def ends_nothing(_: object) -> None:
    raise AssertionError("nothing ends")


@pytest.mark.parametrize(("name", "most"), [("MAX_UNREAD", 2), ("MAX_UNREAD_BYTES", 120)])
async def test_g10_an_application_that_takes_nothing_is_sent_no_more(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, name, most)

    async def serve(transport: Transport) -> None:
        await transport.connect()
        messages = transport.receive_message()
        asked = await anext(messages)
        await transport.send_message(answer(asked, OPENED))
        await anyio.sleep_forever()

    async with (
        listening(mounted(Host(serve))) as address,
        connect(f"ws://{address}/tools/ws", subprotocols=["mcp"]) as socket,
    ):
        await socket.send(json.dumps(initialize()))
        with anyio.fail_after(PATIENCE):
            await socket.recv()
            for n in (1, 2):
                await socket.send(json.dumps({"jsonrpc": "2.0", "id": n, "method": "tools/list"}))
            refused = json.loads(await socket.recv())
    assert (refused["id"], refused["error"]["code"]) == (2, -31003)
    assert refused["error"]["data"]["limit"] == "unread_messages"


async def test_what_an_application_has_taken_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD_BYTES", 60)

    conversation = WebSocketTransport(cast(Workflow, None), Receiver(), ends_nothing)
    await conversation.connect()
    messages = conversation.receive_message()
    for n in range(3):
        conversation.send(json.dumps({"n": n, "x": "x" * 100}).encode())  # however long, one by itself
        assert (await anext(messages))["n"] == n


async def test_who_gives_up_waiting_for_a_message_may_wait_for_it_anew() -> None:
    """As an application does that looks after something else while its client is silent; a time-out is no end."""

    conversation = WebSocketTransport(cast(Workflow, None), Receiver(), ends_nothing)
    await conversation.connect()
    messages = conversation.receive_message()
    for n in range(3):
        waiting = asyncio.ensure_future(anext(messages))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        conversation.send(b'{"n": %d}' % n)
        assert await anext(messages) == {"n": n}
    waits = [asyncio.ensure_future(anext(messages, None)) for _ in range(2)]
    conversation.over()
    async with asyncio.timeout(PATIENCE):
        assert await asyncio.gather(*waits) == [None, None]
        assert [message async for message in messages] == []


async def test_g10_a_refusal_does_not_come_from_within_what_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_UNREAD", 1)

    receiver = Receiver()
    session = Session(WebSocketTransport(cast(Workflow, None), receiver, ends_nothing), receiver)
    taken, refused = session.request(), session.request()
    await receiver.until(lambda: receiver.of("failed"))
    (report,) = receiver.of("failed")
    assert report.request is refused
    assert taken.state == "pending"


async def test_a_conversation_outlives_its_connections_and_moves_over_transports() -> None:
    application = Application()
    host = Host(application.serve)
    async with listening(mounted(host)) as address, Wire(f"http://{address}/tools/mcp") as wire:
        await wire.open()
        assert text_of(await (await wire.call("x")).response()) == "StreamableHTTPTransport 1"
        (conversation,) = application.conversations
        assert conversation.session_id == wire.session_id
        assert isinstance(conversation, StreamableHTTPTransport)

        url = f"ws://{address}/tools/ws?session_id={wire.session_id}"
        async with connect(url, subprotocols=["mcp"]) as socket:
            assert await conversation.is_connected()
            await socket.send('{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x"}}')
            async with asyncio.timeout(PATIENCE):
                assert json.loads(await socket.recv())["params"]["data"] == 2
                answer = json.loads(await socket.recv())
        assert (answer["id"], text_of(answer)) == ("a", "StreamableHTTPTransport 2")
        assert len(application.conversations) == 1
        assert host.conversations == 1


async def test_each_class_says_where_its_conversation_began() -> None:
    application = Application()
    async with listening(mounted(Host(application.serve))) as address:
        async with sse_client(f"http://{address}/tools/sse") as (read, write), ClientSession(read, write) as session:
            await session.initialize()
        async with connect(f"ws://{address}/tools/ws", subprotocols=["mcp"]) as socket:
            await socket.send(json.dumps(initialize(revision="2025-06-18")))
            async with asyncio.timeout(PATIENCE):
                await socket.recv()
            assert socket.response is not None
            sse, websocket = application.conversations
            assert isinstance(sse, SSETransport)
            assert isinstance(websocket, WebSocketTransport)
            assert websocket.session_id == socket.response.headers["Mcp-Session-Id"]


async def test_disconnect_ends_the_conversation_and_may_be_called_again() -> None:
    application = Application()
    host = Host(application.serve)
    async with listening(mounted(host)) as address, Wire(f"http://{address}/tools/mcp") as wire:
        await wire.open()
        (conversation,) = application.conversations
        await conversation.disconnect()
        await conversation.disconnect()
        assert not await conversation.is_connected()
        with pytest.raises(RuntimeError, match="Transport not connected"):
            await conversation.send_message({"jsonrpc": "2.0", "method": "x"})
        assert (await wire.call("x")).status == 404
        assert host.conversations == 0


async def test_what_the_client_has_ended_takes_nothing_more(caplog: pytest.LogCaptureFixture) -> None:
    application = Application()
    async with listening(mounted(Host(application.serve))) as address, Wire(f"http://{address}/tools/mcp") as wire:
        await wire.open()
        (conversation,) = application.conversations
        assert (await wire.delete()).status == 200
        with pytest.raises(RuntimeError, match="not connected"):
            await conversation.send_message({"jsonrpc": "2.0", "method": "notifications/late"})
        with pytest.raises(RuntimeError, match="not connected"):
            async with asyncio.timeout(PATIENCE):
                await anext(conversation.receive_message())
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_who_speaks_at_once_where_the_client_has_ended_has_not_failed(caplog: pytest.LogCaptureFixture) -> None:
    async def serve(transport: Transport) -> None:
        try:
            await Application().serve(transport)
        finally:
            await transport.send_message({"jsonrpc": "2.0", "method": "notifications/late"})

    async with listening(mounted(Host(serve))) as address, Wire(f"http://{address}/tools/mcp") as wire:
        await wire.open()
        assert (await wire.delete()).status == 200
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_an_application_that_returns_or_fails_ends_its_conversation_alone() -> None:
    async def serve(transport: Transport) -> None:
        await transport.connect()
        async for message in transport.receive_message():
            if message.get("method") == "initialize":
                await transport.send_message(answer(message, OPENED | {"protocolVersion": "2025-06-18"}))
            elif message.get("method") == "tools/call":
                if message["params"]["name"] == "fail":
                    raise ValueError("a defect of the application")
                if message["params"]["name"] == "leave":
                    return
                if message["params"]["name"] == "await what was cancelled":
                    given_up = asyncio.get_running_loop().create_future()
                    given_up.cancel()
                    await given_up
                await transport.send_message(answer(message, {"content": []}))

    host = Host(serve)
    async with listening(mounted(host)) as address, Wire(f"http://{address}/tools/mcp") as other:
        await other.open("2025-06-18")
        for how in ("fail", "leave", "await what was cancelled"):
            async with Wire(f"http://{address}/tools/mcp") as wire, asyncio.timeout(PATIENCE):
                await wire.open("2025-06-18")
                assert (await (await wire.call(how)).response())["error"]["code"] == -31002
                assert (await wire.call("x")).status == 404
        assert "result" in await (await other.call("x")).response()


@pytest.mark.parametrize("when", ["initialize", "tools/call"])
@pytest.mark.parametrize("fails", [True, False])
async def test_conversations_that_end_soon_hold_no_other_back(when: str, fails: bool) -> None:
    async def serve(transport: Transport) -> None:
        await transport.connect()
        async for message in transport.receive_message():
            if message.get("method") == when and host.conversations == 1:
                if fails:
                    raise ValueError("a defect of the application")
                return
            if "id" in message:
                await transport.send_message(answer(message, OPENED | {"protocolVersion": "2025-06-18"}))

    host = Host(serve)
    async with listening(mounted(host)) as address:
        for _ in range(6):
            async with Wire(f"http://{address}/tools/mcp") as wire:
                if when == "initialize":
                    ended = await (await wire.post(initialize(revision="2025-06-18"))).response()
                else:
                    await wire.open("2025-06-18")
                    ended = await (await wire.call("x")).response()
            assert ended["error"]["code"] == -31002
            assert ended["error"]["message"].endswith("the workflow ended: closed")
            assert host.conversations == 0


async def test_only_what_is_named_is_served() -> None:
    application = Application()
    async with listening(mounted(Host(application.serve, SSETransport))) as address:
        async with Wire(f"http://{address}/tools/mcp") as wire:
            answer = await wire.post(PING)
            assert (answer.status, await answer.body()) == (404, b"MCP is served at /tools/sse, /tools/message")
        with pytest.raises(InvalidStatus):
            async with connect(f"ws://{address}/tools/ws", subprotocols=["mcp"]):
                pass


async def test_a_root_path_that_is_not_in_the_path_changes_nothing() -> None:
    """As behind a proxy that takes its prefix away: FastAPI's `root_path`, or that of hypercorn."""
    application = Application()
    app = mounted(Host(application.serve))

    async def below(scope: Any, receive: Any, send: Any) -> None:
        await app({**scope, "root_path": "/api"}, receive, send)

    async with listening(below) as address:
        async with Wire(f"http://{address}/tools/mcp") as wire:
            await wire.open()
            assert text_of(await (await wire.call("x")).response()) == "StreamableHTTPTransport 1"
        async with sse_client(f"http://{address}/tools/sse") as (read, write), ClientSession(read, write) as session:
            with anyio.fail_after(PATIENCE):
                await session.initialize()
        async with connect(f"ws://{address}/tools/ws", subprotocols=["mcp"]):
            pass
        async with Wire(f"http://{address}/tools/other/mcp") as wire:
            answer = await wire.post(PING)
            assert (answer.status, (await answer.body())[:31]) == (404, b"MCP is served at /api/tools/mcp")


async def test_a_foreign_page_is_refused() -> None:
    async with listening(mounted(Host(Application().serve))) as address:
        url = f"http://{address}/tools/mcp"
        async with Wire(url, {"Origin": "https://evil.example"}) as wire:
            assert (await wire.post(PING)).status == 403


async def test_the_end_of_the_host_ends_what_lives() -> None:
    application = Application()
    async with listening(mounted(Host(application.serve))) as address:
        socket = await connect(f"ws://{address}/tools/ws", subprotocols=["mcp"])
        await socket.send(json.dumps(initialize(revision="2025-06-18")))
        async with asyncio.timeout(PATIENCE):
            await socket.recv()
    with pytest.raises(ConnectionClosed):
        async with asyncio.timeout(PATIENCE):
            await socket.recv()
    assert application.ended == 1


async def test_a_host_that_nobody_runs_says_what_is_missing() -> None:
    host = Host(Application().serve)
    for scope in ({"type": "http", "path": "/mcp"}, {"type": "websocket", "path": "/ws"}):
        with pytest.raises(RuntimeError, match=r"lifespan=host\.lifespan"):
            await host(scope, anyio.sleep_forever, anyio.sleep)


async def test_another_event_loop_is_refused() -> None:
    """As that of a thread in which a test's client runs the application."""
    host = Host(Application().serve)
    scope = {"type": "http", "path": "/mcp", "headers": [], "method": "GET"}
    async with host.running():
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, host(scope, anyio.sleep_forever, anyio.sleep))


async def test_who_enters_a_host_again_on_another_event_loop_breaks_nothing_for_its_clients() -> None:
    host = Host(Application().serve)

    async def again() -> None:
        with pytest.raises(RuntimeError, match="make a new one"):
            async with host.running():
                pass

    async with host.running(), asgi_client(host) as client:
        await asyncio.to_thread(asyncio.run, again())
        assert (await client.get()).status == 400  # it names no conversation


async def test_who_asks_is_told_without_a_wait() -> None:
    async def authenticate(headers: object) -> Principal:
        raise AssertionError("nobody awaits it")

    wrong: Any = authenticate
    with pytest.raises(TypeError, match="authenticate is called, and not awaited"):
        Host(Application().serve, authenticate=wrong)


async def test_a_host_runs_once() -> None:
    host = Host(Application().serve)
    async with host.running():
        pass
    with pytest.raises(RuntimeError, match="make a new one"):
        async with host.running():
            pass


async def test_whoever_enters_and_leaves_the_conversations_end_in_order() -> None:
    """As fixtures of tests do, and applications that begin and end by calls: in tasks that are not one another's."""
    application = Application()
    host = Host(application.serve)
    running = host.running()
    async with listening(Starlette(routes=[Mount("/tools", host)])) as address:
        await asyncio.create_task(running.__aenter__())
        async with Wire(f"http://{address}/tools/mcp") as wire:
            await wire.open()
            assert host.conversations == 1
        await asyncio.create_task(running.__aexit__(None, None, None))
    assert (application.ended, host.conversations) == (1, 0)


@pytest.mark.parametrize("leaves", [KeyError("mine"), SystemExit("bye"), KeyboardInterrupt()])
def test_what_ends_the_program_is_told_as_it_is(leaves: BaseException) -> None:
    async def live() -> None:
        async with Host(Application().serve).running():
            raise leaves

    with pytest.raises(type(leaves)):
        asyncio.run(live())


async def test_a_host_may_be_the_whole_application() -> None:
    application = Application()
    async with listening(Host(application.serve)) as address, Wire(f"http://{address}/mcp") as wire:
        await wire.open()
        assert text_of(await (await wire.call("x")).response()) == "StreamableHTTPTransport 1"
    assert application.ended == 1


async def test_what_is_no_json_is_not_sent_and_the_request_can_still_be_answered() -> None:
    refused = []

    async def serve(transport: Transport) -> None:
        await transport.connect()
        async for message in transport.receive_message():
            if "id" not in message:
                continue
            for result in (float("nan"), object(), "\ud800"):
                try:
                    await transport.send_message(answer(message, {"x": result}))
                except (TypeError, ValueError) as error:
                    refused.append(type(error))
            await transport.send_message(log("still"), request_id=message["id"])
            await transport.send_message(answer(message, OPENED))

    async with listening(mounted(Host(serve))) as address, Wire(f"http://{address}/tools/mcp") as wire:
        await wire.open()
        told = [message async for message in (await wire.call("x")).messages()]
    assert [message.get("method") for message in told] == ["notifications/message", None]
    assert refused == [ValueError, TypeError, UnicodeEncodeError] * 2


async def nothing(transport: Transport) -> None:
    """Serve nobody."""


WRONG: Any = object()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Host(WRONG),
        lambda: Host(nothing, "sse"),  # type: ignore[arg-type]
        lambda: Host(nothing, int),  # type: ignore[arg-type]
        lambda: Host(nothing, authenticate=WRONG),
        lambda: Host(nothing, allowed_hosts="gateway.example"),
        lambda: Host(nothing, allowed_origins="https://app.example"),
        lambda: Host(nothing, pooling=WRONG),
    ],
)
def test_what_is_of_another_kind_is_refused_at_once(make: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"\b(is|are)\b"):
        make()


@pytest.mark.parametrize("reuse", ["user", "none"])
def test_conversations_cannot_be_shared_and_have_to_last(reuse: Any) -> None:
    with pytest.raises(ValueError, match="reuse"):
        Host(nothing, pooling=Pooling(reuse=reuse))


@pytest.mark.parametrize(("given", "kind"), [(None, "a NoneType"), ("s3cret", "a str")])
async def test_g12_who_is_no_principal_is_not_served_and_the_log_says_why(
    given: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    host = Host(nothing, authenticate=lambda headers: given)
    async with listening(mounted(host)) as address, Wire(f"http://{address}/tools/mcp") as wire:
        assert (await wire.post(PING)).status == 500
    [told] = [record for record in caplog.records if record.exc_info]
    assert told.exc_info is not None
    assert str(told.exc_info[1]) == f"authenticate returns a Principal, or raises Unauthorized; it gave {kind}"


async def test_what_is_no_message_is_not_sent_and_who_did_not_connect_is_told_to() -> None:
    said: list[str] = []

    async def serve(transport: Transport) -> None:
        with pytest.raises(RuntimeError, match=r"connect\(\) first"):
            await transport.send_message({"jsonrpc": "2.0", "method": "notifications/x"})
        await transport.connect()
        async for message in transport.receive_message():
            wrong: Any
            for wrong in ('{"jsonrpc": "2.0"}', {"id": message["id"], "result": {}}):
                try:
                    await transport.send_message(wrong)
                except (TypeError, ValueError) as error:
                    said.append(str(error))
            return

    host = Host(serve)
    async with listening(mounted(host)) as address, Wire(f"http://{address}/tools/mcp") as wire:
        assert (await (await wire.post(initialize(revision="2025-06-18"))).response())["error"]["code"] == -31002
    assert said == ["a message is a dictionary, not str", 'a message has "jsonrpc": "2.0"']


def test_without_asyncio_it_is_said_what_is_missing() -> None:
    entering: Any = Host(nothing).running().__aenter__()
    with pytest.raises(RuntimeError, match="asyncio's event loop"):
        entering.send(None)
