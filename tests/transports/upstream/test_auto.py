"""Which transport a server is spoken to by, and how it is found; the contract holds what comes after."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager

import anyio
import pytest
from contract.session import Receiver, Session, answer, connected, opened
from harness.one_stream import over_sse
from harness.raw_http import serving
from harness.stream_peers import Line, sdk_over_sse
from harness.upstream_scripted import Play, ScriptedUpstream, Status
from harness.upstreams import upstream
from trunkline.mux.errors import UpstreamUnreachable
from trunkline.mux.ports import NONE
from trunkline.mux.statistics import Statistics
from trunkline.transports.upstream.auto import AutoConnector, HTTPKind, connector_for, names_revisions
from trunkline.transports.upstream.sse import ENDPOINT_SECONDS, SSEConnector
from trunkline.transports.upstream.stdio import StdioConnector
from trunkline.transports.upstream.websocket import WebSocketConnector

pytestmark = pytest.mark.anyio

REFUSED = b'{"jsonrpc":"2.0","id":null,"error":{"code":-32600,"message":"no"}}'
MODERN = b'{"jsonrpc":"2.0","id":1,"error":{"code":-32022,"message":"no","data":{"supported":["2026-07-28"]}}}'


@asynccontextmanager
async def connector_to(url: str) -> AsyncIterator[tuple[AutoConnector, Statistics]]:
    statistics = Statistics()
    connector = AutoConnector("x", url, statistics)
    try:
        yield connector, statistics
    finally:
        await connector.close()
        await connector.close()


@asynccontextmanager
async def answering(initialize: Play, get: Play) -> AsyncIterator[ScriptedUpstream]:
    async with ScriptedUpstream({"initialize": [initialize], "GET": [get]}) as server:
        yield server


async def ask(connector: AutoConnector) -> Receiver:
    """Send an `initialize`, and wait for what becomes of it; what the wire told."""
    async with connected(connector) as session:
        session.request("initialize")
        await session.receiver.until(lambda: session.receiver.reports)
    return session.receiver


def sent(statistics: Statistics) -> dict[str, int]:
    return {labels[-1]: count for labels, count in statistics.counts.items() if labels[0] == "upstream_requests"}


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("http://x/mcp", AutoConnector),
        ("https://x/mcp", AutoConnector),
        ("sse+http://x/sse", SSEConnector),
        ("sse+https://x/sse", SSEConnector),
        ("ws://x/ws", WebSocketConnector),
        ("wss://x/ws", WebSocketConnector),
    ],
)
async def test_the_scheme_chooses(url: str, kind: type[object]) -> None:
    connector = connector_for("x", Statistics(), url=url, headers={"A": "b"})
    assert type(connector) is kind
    await connector.close()


async def test_a_command_is_a_process() -> None:
    connector = connector_for("x", Statistics(), command=("python",), env={"A": "b"}, cwd="/")
    assert type(connector) is StdioConnector
    await connector.close()


@pytest.mark.parametrize(
    "options", [{}, {"url": "http://x", "command": ("x",)}, {"url": "ftp://x"}, {"url": "sse+x://y"}]
)
def test_what_names_no_server_is_refused(options: dict[str, str]) -> None:
    with pytest.raises(ValueError):
        connector_for("x", Statistics(), **options)  # type: ignore[arg-type]


async def test_streamable_http_costs_nothing_more() -> None:
    async with ScriptedUpstream() as server, connector_to(server.url) as (connector, statistics):
        for _ in range(2):
            async with opened(connector, listen=False):
                assert connector.kind == "streamable_http"
        assert sent(statistics) == {"initialize": 2, "initialized": 2, "delete": 2}
        assert not server.of("GET")


async def test_what_was_found_is_remembered() -> None:
    async with over_sse() as server, connector_to(server.address) as (connector, statistics):
        for n in (1, 2, 3):
            async with opened(connector, {"X-Tenant": "acme"}) as session:
                assert connector.kind == "sse"
                assert server.session.opening["x-tenant"] == "acme"
                request = session.request(headers={"X-Class": "b"})
                message = await server.got("tools/call", n)
                assert message.headers["x-class"] == "b"
                message.finish(answer(request))
                await session.answered(request)
            await server.until(lambda: server.ended)
        assert sent(statistics) == {"initialize": 4, "get": 3, "initialized": 3, "call": 3}
        assert server.came("initialize") == 3


async def test_what_was_found_is_looked_for_anew_where_it_does_not_open() -> None:
    async with over_sse() as server, connector_to(server.address) as (connector, _):
        connector.kind = "streamable_http"
        assert (await ask(connector)).of("failed")
        assert connector.kind is None
        async with opened(connector):
            assert connector.kind == "sse"
    async with ScriptedUpstream({"GET": [[Status(405)]]}) as upgraded, connector_to(upgraded.url) as (connector, _):
        connector.kind = "sse"
        async with opened(connector):
            assert connector.kind == "streamable_http"


@pytest.mark.parametrize("kind", ["streamable_http", "sse", None])
async def test_l29_a_session_that_does_not_open_leaves_open_what_the_server_speaks(kind: HTTPKind | None) -> None:
    doubts: list[str] = []
    refused = Status(404, MODERN, "application/json")
    async with answering([refused], [Status(405)]) as server, connector_to(server.url) as (connector, _):
        connector.when_unopened = lambda: doubts.append("once")
        connector.kind = kind
        await ask(connector)
    assert doubts == ["once"]


async def test_l29_a_session_that_opens_leaves_no_doubt() -> None:
    doubts: list[str] = []
    async with ScriptedUpstream() as server, connector_to(server.url) as (connector, _):
        connector.when_unopened = lambda: doubts.append("once")
        for _ in range(2):
            async with opened(connector, listen=False):
                pass
    assert not doubts


async def test_a_server_that_is_away_is_no_other_kind_of_server() -> None:
    async with serving(lambda peer: peer.closed()) as server:
        url = server.url
    async with connector_to(url) as (connector, statistics):
        connector.kind = "sse"
        with pytest.raises(UpstreamUnreachable):
            async with connector.connect(Receiver(), NONE, listen=True):
                raise AssertionError("it opened")
        assert connector.kind == "sse"
        assert sent(statistics) == {"get": 1}


@pytest.mark.parametrize("status", [400, 404, 405])
@pytest.mark.parametrize("body", [b"no", REFUSED])
async def test_where_neither_opens_the_first_words_stand(status: int, body: bytes) -> None:
    content_type = "application/json" if body is REFUSED else "text/plain"
    async with (
        answering([Status(status, body, content_type)], [Status(405)]) as server,
        connector_to(server.url) as (connector, statistics),
    ):
        receiver = await ask(connector)
        assert len(server.of("GET")) == 1
        assert connector.kind is None
        assert sent(statistics) == {"initialize": 1, "get": 1}
    if body is REFUSED:
        assert receiver.reports[0].text == REFUSED
        assert receiver.reports[0].request is receiver.reports[1].request
    assert len(receiver.of("failed")) == 1
    error = receiver.of("failed")[0].error
    assert isinstance(error, UpstreamUnreachable)
    assert error.data["status"] == status


@pytest.mark.parametrize(
    "refusal",
    [
        Status(400, MODERN, "application/json"),
        Status(404, MODERN, "application/json"),
        Status(401),
        Status(403, REFUSED, "application/json"),
        Status(500),
        Status(200, REFUSED, "application/json"),
    ],
)
async def test_other_answers_are_the_answer(refusal: Status) -> None:
    async with (
        answering([refusal], [Status(405)]) as server,
        connector_to(server.url) as (connector, _),
    ):
        receiver = await ask(connector)
        assert not server.of("GET")
    assert receiver.reports
    if refusal.body:
        assert receiver.reports[0].text == refusal.body


async def test_later_answers_are_not_taken_for_the_first() -> None:
    async with ScriptedUpstream({"tools/call": [[Status(400)]]}) as server, connector_to(server.url) as (connector, _):
        async with opened(connector, listen=False) as session:
            request = session.request()
            await session.receiver.until(lambda: session.receiver.of("failed"))
            assert session.receiver.of("failed")[0].request is request
            session.wire.abandon(request)
        assert not server.of("GET")


async def test_leaving_while_the_other_transport_opens_leaves_nothing() -> None:
    async with over_sse() as server, connector_to(server.address) as (connector, _):
        server.endpoint = ""
        with anyio.fail_after(ENDPOINT_SECONDS / 2):
            async with connected(connector) as session:
                session.request("initialize")
                await server.until(lambda: server.sessions)
        await server.until(lambda: server.ended)


async def test_cancelling_while_the_other_transport_is_used_leaves_nothing() -> None:
    async with over_sse() as server, connector_to(server.address) as (connector, _):
        async with anyio.create_task_group() as tasks:

            async def own() -> None:
                async with opened(connector) as session:
                    session.request()
                    await anyio.sleep_forever()

            tasks.start_soon(own)
            await server.got("tools/call")
            tasks.cancel_scope.cancel()
        await server.until(lambda: server.ended)


@pytest.mark.parametrize("line", ["sdk1", "sdk2"])
async def test_servers_of_the_sdk_are_found(line: Line) -> None:
    with sdk_over_sse(line) as url:
        async with connector_to(url) as (connector, _):
            for _ in range(2):
                async with opened(connector) as session:
                    call = session.request(params={"name": "add", "arguments": {"a": 1, "b": 2}})
                    result = json.loads((await session.answered(call)).text)["result"]
                    assert result["content"][0]["text"] == "3"
            assert connector.kind == "sse"
    with upstream(line) as server:
        async with connector_to(server.url) as (connector, _):
            async with opened(connector) as session:
                call = session.request(params={"name": "counter", "arguments": {}})
                assert (await session.answered(call)).request is call
            assert connector.kind == "streamable_http"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (MODERN, True),
        (REFUSED, False),
        (b'{"error":{"data":{"supported":"x"}}}', False),
        (b'{"error":{"data":null}}', False),
        (b"[" * 100_000, False),
        (b"no JSON", False),
    ],
)
def test_an_error_that_names_revisions(text: bytes, names: bool) -> None:
    assert names_revisions(text) is names


Called = Callable[[Session], Awaitable[Mapping[str, str]]]
"""Makes a call; the headers that came with it."""


async def rotate(connector: AutoConnector, called: Called) -> None:
    """A credential gets other values, before a session, while it is open, and before the next one."""
    connector.rotate({"Authorization": "Bearer one", "X-Key": "one"})
    async with opened(connector, {"X-Key": "mine"}) as session:
        for value in ("one", "two"):
            connector.rotate({"Authorization": f"Bearer {value}", "X-Key": value})
            with pytest.raises(ValueError, match="cannot be sent"):
                connector.rotate({"Authorization": "\n"})
            headers = await called(session)
            assert (headers["authorization"], headers["x-key"]) == (f"Bearer {value}", "mine")
            assert headers["mcp-protocol-version"] == "2025-11-25"
    async with opened(connector) as session:
        headers = await called(session)
        assert (headers["authorization"], headers["x-key"]) == ("Bearer two", "two")


async def test_a_rotated_credential_goes_with_the_next_request_of_every_session() -> None:
    async with ScriptedUpstream({"GET": [[Status(405)]]}) as server, connector_to(server.url) as (connector, _):

        async def called(session: Session) -> Mapping[str, str]:
            await session.answered(session.request())
            return server.of("tools/call")[-1].headers

        await rotate(connector, called)
        assert {came.headers.get("mcp-session-id") for came in server.of("tools/call")} == {"upstream-session"}


async def test_a_rotated_credential_goes_with_the_next_message_of_http_sse() -> None:
    async with over_sse() as server, connector_to(server.address) as (connector, _):

        async def called(session: Session) -> Mapping[str, str]:
            request = session.request()
            message = await server.got("tools/call", len(server.of("tools/call")) + 1)
            message.finish(answer(request))
            await session.answered(request)
            return message.headers

        await rotate(connector, called)
        assert connector.kind == "sse"
