"""Messages of HTTP+SSE that are taken at once fare as those that a task carries."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from harness.duplex_clients import initialize
from harness.endpoint_bench import authenticate, call
from harness.gateways import until
from harness.http_serving import PATIENCE, Connection, connecting, serving
from harness.muxing import Bench, bench
from trunkline.gateway.http_listening import HTTPListening
from trunkline.mux.burden import LARGE_BYTES
from trunkline.mux.statistics import Statistics
from trunkline.transports import EndpointConfig, Guard, SSEEndpoint
from trunkline.transports.asgi import WholeRequest
from trunkline.transports.at_once import MessagesAtOnce

pytestmark = pytest.mark.anyio

HEADERS = {"host": "localhost", "content-type": "application/json", "authorization": "alice"}


class Here(NamedTuple):
    bench: Bench
    connection: Connection
    target: str
    """Where the stream says that messages go."""
    taken: list[bool]
    """Whether each request that came whole was taken at once."""
    stream: asyncio.StreamReader

    async def data(self) -> str:
        """The next that comes on the stream."""
        while not (line := await self.stream.readline()).startswith(b"data:"):
            assert line
        return line[5:].strip().decode()


@asynccontextmanager
async def session() -> AsyncIterator[Here]:
    """A stream with a session, and a connection for its messages."""
    async with bench() as at:
        config = EndpointConfig("x", at.pool, Guard(loopback=True, allowed_origins=["http://page"]), authenticate)
        endpoint, at_once = SSEEndpoint(config), MessagesAtOnce(config)
        taken: list[bool] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await (endpoint.stream if scope["path"] == "/sse" else endpoint.messages)(scope, receive, send)

        def take(whole: WholeRequest) -> bool:
            taken.append(whole.scope["path"] == "/message" and at_once.take(whole))
            return taken[-1]

        async with (
            asyncio.timeout(PATIENCE),
            serving(app, HTTPListening(Statistics(), take)) as port,
            connecting(port) as stream,
            connecting(port) as connection,
        ):
            stream.writer.write(b"GET /sse HTTP/1.1\r\nHost: localhost\r\nAuthorization: alice\r\n\r\n")
            here = Here(at, connection, "", taken, stream.reader)
            here = here._replace(target=await here.data())
            connection.post(initialize(), HEADERS, target=here.target)
            assert (await connection.answer()).status == 202
            assert "serverInfo" in await here.data()
            taken.clear()
            yield here


async def test_a_message_for_a_stream_at_hand_is_taken_at_once() -> None:
    async with session() as here:
        for number in range(2):
            here.connection.post(call(number), {**HEADERS, "origin": "http://page"}, target=here.target)
            answer = await here.connection.answer()
            assert (answer.status, answer.body) == (202, b"Accepted")
            assert answer.headers["access-control-allow-origin"] == "http://page"
            await here.bench.server.got("tools/call", number + 1)
            here.bench.server.of("tools/call")[number].answer({"n": number})
            assert json.loads(await here.data()) == {"jsonrpc": "2.0", "id": number, "result": {"n": number}}
        assert here.taken == [True, True]


async def test_what_has_to_wait_or_may_not_be_taken_here_is_left_to_a_task() -> None:
    async with session() as here:
        for message in (initialize(id=7), call(8, x="x" * LARGE_BYTES)):
            here.connection.post(message, HEADERS, target=here.target)
            assert (await here.connection.answer()).status == 202
        draining = asyncio.create_task(here.bench.pool.drain(PATIENCE))
        await until(lambda: here.bench.pool.draining)
        here.connection.post(call(9), HEADERS, target=here.target)
        assert (await here.connection.answer()).status == 202
        await here.bench.server.got("tools/call")
        here.bench.server.of("tools/call")[0].answer({})
        assert await draining
        assert here.taken == [False, False, False]


async def test_no_message_overtakes_one_before_it_that_a_task_carries() -> None:
    async with session() as here:
        here.connection.post(call("first", x="x" * LARGE_BYTES), HEADERS, target=here.target)
        here.connection.post(call("second"), HEADERS, target=here.target)
        await here.bench.server.got("tools/call", 2)
        first, second = here.bench.server.of("tools/call")
        assert "x" in json.loads(bytes(first.members["params"]))["arguments"]
        assert "x" not in json.loads(bytes(second.members["params"]))["arguments"]


FAULTS: dict[str, tuple[dict[str, str], str, Any]] = {
    "no session": ({}, "/message", call()),
    "session": ({}, "/message?session_id=nobody", call()),
    "stream": ({}, "{}x", call()),
    "disagreement": ({"mcp-session-id": "nobody"}, "{}", call()),
    "key": ({"trunkline-workflow": "another"}, "{}", call()),
    "no key": ({"trunkline-workflow": "not a key"}, "{}", call()),
    "identity": ({"authorization": "eve"}, "{}", call()),
    "another's": ({"authorization": "bob"}, "{}", call()),
    "host": ({"host": "evil.example"}, "{}", call()),
    "origin": ({"origin": "http://evil.example"}, "{}", call()),
    "type": ({"content-type": "text/plain"}, "{}", call()),
    "json": ({}, "{}", b"{"),
    "batch": ({}, "{}", [call()]),
    "fraction": ({}, "{}", {**call(), "id": 1.5}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_the_same_whether_it_comes_whole_or_not(fault: str) -> None:
    changes, target, message = FAULTS[fault]
    async with session() as here:
        told = []
        for packets in (1, 2):
            headers = {**HEADERS, **changes}
            here.connection.post(message, headers, packets=packets, target=target.format(here.target))
            answer = await here.connection.answer()
            headers = {name: value for name, value in answer.headers.items() if name != "date"}
            told.append((answer.status, headers, answer.body))
        assert told[0] == told[1]
        assert told[0][0] >= 400
        assert here.bench.server.of("tools/call") == []
