"""Messages that are taken at once, by a call and callbacks, fare as those that a task carries."""

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, NamedTuple

import pytest
from harness.duplex_clients import initialize
from harness.endpoint_bench import Front, authenticate, call, front, shake_hands
from harness.gateways import until
from harness.http_serving import PATIENCE, Connection, connecting, serving
from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.known_head import REPEATS
from trunkline.mux.burden import LARGE_BYTES
from trunkline.mux.fairness import Turnstile
from trunkline.mux.principal import Principal
from trunkline.mux.statistics import Statistics
from trunkline.transports import EndpointConfig, Guard, StreamableHTTPEndpoint
from trunkline.transports.admission import Admission
from trunkline.transports.asgi import WholeRequest
from trunkline.transports.at_once import AtOnce
from trunkline.transports.headers import Asked
from trunkline.transports.link import Link

pytestmark = pytest.mark.anyio

REVISION = "2025-06-18"


class CountingListening(HTTPListening):
    """One that counts the tasks which its connections have made."""

    begun = 0

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        self.begun += 1
        super().begin(work)


class Here(NamedTuple):
    front: Front
    connection: Connection
    headers: dict[str, str]
    taken: list[bool]
    """Whether each request that came whole was taken at once."""
    port: int
    admission: Admission
    listening: CountingListening


@asynccontextmanager
async def session(revision: str = REVISION, allowed_origins: Sequence[str] = (), **turns: int) -> AsyncIterator[Here]:
    """A session, and a connection to its endpoint."""
    admission = Admission(Turnstile(**turns))
    async with front(revision=revision) as here:
        await shake_hands(here.client, revision)
        await here.client.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
        guard = Guard(loopback=True, allowed_origins=allowed_origins)
        config = EndpointConfig("x", here.bench.pool, guard, authenticate, admission=admission)
        endpoint, at_once = StreamableHTTPEndpoint(config), AtOnce(config)
        taken: list[bool] = []

        def take(whole: WholeRequest) -> bool:
            taken.append(at_once.take(whole))
            return taken[-1]

        listening = CountingListening(Statistics(), take)
        headers = {
            "host": "localhost",
            "content-type": "application/json",
            "accept": "application/json, text/event-stream",
            "mcp-session-id": here.client.headers["mcp-session-id"],
            "mcp-protocol-version": revision,
        }
        async with (
            asyncio.timeout(PATIENCE),
            serving(endpoint, listening) as port,
            connecting(port) as connection,
        ):
            yield Here(here, connection, headers, taken, port, admission, listening)


async def test_a_call_of_a_session_at_hand_is_taken_at_once() -> None:
    async with session() as here:
        for number in range(3):
            here.connection.post(call(f"c{number}"), here.headers)
            await here.front.server.got("tools/call", number + 1)
            here.front.server.of("tools/call")[number].answer({"n": number})
            answer = await here.connection.answer()
            assert (answer.status, answer.headers["trunkline-pool"]) == (200, "hit")
            assert json.loads(answer.body) == {"jsonrpc": "2.0", "id": f"c{number}", "result": {"n": number}}
        here.connection.post({"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}, here.headers)
        assert (await here.connection.answer()).status == 202
        assert here.taken == [True] * 4


async def test_g8_nothing_is_taken_at_once_while_the_worker_drains() -> None:
    async with session() as here:
        here.connection.post(call("held"), here.headers)
        await here.front.server.got("tools/call")
        draining = asyncio.create_task(here.front.bench.pool.drain(PATIENCE))
        await until(lambda: here.front.bench.pool.draining)
        async with connecting(here.port) as other:
            other.post(call("late"), here.headers)
            late = json.loads((await other.answer()).body)
        assert late["error"]["data"] == {"executed": "no"}
        here.front.server.of("tools/call")[0].answer({})
        assert (await here.connection.answer()).status == 200
        assert await draining
        assert here.taken == [True, False], "an endpoint can hand it on"


def without(headers: dict[str, str], *names: str) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in names}


async def test_a_client_that_comes_back_by_its_key_waits_for_no_task() -> None:
    async with session() as here:
        headers = without({**here.headers, "trunkline-workflow": "chat"}, "mcp-session-id")
        opening = without(headers, "mcp-protocol-version")
        for number in range(3):
            async with connecting(here.port) as connection:
                connection.post(initialize(revision=REVISION), opening)
                answer = await connection.answer()
                assert answer.status == 200
                assert answer.headers["trunkline-workflow-state"] == ("resumed" if number else "created")
                own = {**headers, "mcp-session-id": answer.headers["mcp-session-id"]}
                connection.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, own)
                assert (await connection.answer()).status == 202
                connection.post(call("c"), headers if number == 1 else own)  # the key is enough
                await here.front.server.got("tools/call", number + 1)
                here.front.server.of("tools/call")[number].answer({"n": number})
                answer = await connection.answer()
                assert (answer.headers["trunkline-pool"], answer.headers["trunkline-workflow-state"]) == (
                    "hit",
                    "resumed",
                )
                connection.post(b"", own, method="DELETE")
                answer = await connection.answer()
                assert (answer.status, answer.headers["trunkline-workflow-state"]) == (200, "resumed")
        assert here.taken == [False, *[True] * 11], "what begins takes a task"
        assert len(here.front.server.of("initialize")) == 2, "that of the other session, and one for the key"


async def test_a_client_that_knows_nothing_but_its_key_waits_for_no_task() -> None:
    async with session() as here:
        headers = without({**here.headers, "trunkline-workflow": "chat"}, "mcp-session-id")
        for _ in range(4):
            here.connection.post({"jsonrpc": "2.0", "id": "p", "method": "ping"}, headers)
            assert (await here.connection.answer()).status == 200
        assert here.taken == [False, True, True, True], "the first one begins"


async def test_headers_that_agreed_with_a_session_have_to_agree_with_the_next_one_of_their_key() -> None:
    async with session() as here:
        keyed = without({**here.headers, "trunkline-workflow": "chat"}, "mcp-session-id")
        ping = {"jsonrpc": "2.0", "id": "p", "method": "ping"}
        for _ in range(3):
            here.connection.post(ping, keyed)
            assert (await here.connection.answer()).status == 200
        async with connecting(here.port) as other:
            other.post(b"", {**keyed, "trunkline-end": "workflow"}, method="DELETE")
            assert (await other.answer()).status == 200
            here.front.server.result["protocolVersion"] = "2025-03-26"
            other.post(initialize(revision="2025-03-26"), without(keyed, "mcp-protocol-version"))
            assert (await other.answer()).headers["trunkline-workflow-state"] in ("created", "reset")
            for _ in range(2):
                other.post(ping, {**keyed, "mcp-protocol-version": "2025-03-26"})
                assert (await other.answer()).status == 200
        here.connection.post(ping, keyed)
        answer = await here.connection.answer()
        assert (answer.status, b"contradicts" in answer.body) == (400, True)
        assert here.taken[0:3] == [False, True, True]
        assert here.taken[-2:] == [True, False]


async def test_headers_that_agreed_with_a_session_have_to_agree_with_what_begins_anew_under_its_id() -> None:
    async with session() as here:
        ping = {"jsonrpc": "2.0", "id": "p", "method": "ping"}
        here.connection.post(ping, here.headers)
        assert (await here.connection.answer()).status == 200
        pool, session_id = here.front.bench.pool, here.headers["mcp-session-id"]
        config = EndpointConfig("x", pool, Guard(loopback=True), authenticate)
        socket = Link(config, authenticate({}), "websocket", pings=True)
        await socket.open(Asked(session_id, None, None))
        here.front.server.result["protocolVersion"] = "2025-03-26"
        await socket.take(json.dumps(initialize(revision="2025-03-26")).encode(), {})
        assert [one.revision for one in pool.workflows] == ["2025-03-26"]
        assert socket.session_id == session_id
        here.connection.post(ping, here.headers)
        answer = await here.connection.answer()
        assert (answer.status, b"contradicts" in answer.body) == (400, True)
        assert here.taken == [True, False]
        socket.close()


async def test_whether_a_head_may_pass_is_asked_once_for_all_connections_and_anew_under_other_settings() -> None:
    """But who sends it is asked each time."""
    asked = []

    class Asked(Guard):
        def check(self, headers: Mapping[str, str]) -> None:
            asked.append("may it")
            super().check(headers)

    def who(headers: Mapping[str, str]) -> Principal:
        asked.append("who")
        return authenticate(headers)

    async def ping(here: Here) -> None:
        async with connecting(here.port) as one:
            one.post({"jsonrpc": "2.0", "id": "p", "method": "ping"}, {**here.headers, "origin": "http://a.example"})
            answer = await one.answer()
            assert answer.status == 200
            assert answer.headers["access-control-allow-origin"] == "http://a.example"

    async with session(allowed_origins=("http://a.example",)) as here:
        pool = here.front.bench.pool
        loose = Asked(loopback=True, allowed_origins=("http://a.example",))
        here.listening.at_once = AtOnce(EndpointConfig("x", pool, loose, who)).take
        for _ in range(REPEATS + 1):
            await ping(here)
        assert asked == ["may it", "who"] * (REPEATS + 1)
        asked.clear()
        for _ in range(3):
            await ping(here)
        assert asked == ["may it", "who", "who", "who"], "the first of these has it known"
        asked.clear()
        strict = Asked(loopback=True)
        here.listening.at_once = AtOnce(EndpointConfig("x", pool, strict, who)).take
        await ping(here)  # by the endpoint, whose settings are as they were
        assert asked == ["may it"]


async def test_the_end_of_a_workflow_is_not_taken_for_a_good_bye() -> None:
    async with session() as here:
        here.connection.post(b"", here.headers, method="DELETE")
        assert (await here.connection.answer()).status == 200
        here.connection.post(call(), here.headers)
        assert (await here.connection.answer()).status == 404
        keyed = without({**here.headers, "trunkline-workflow": "chat"}, "mcp-session-id")
        here.connection.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, keyed)
        assert (await here.connection.answer()).status == 202
        here.connection.post(b"", {**keyed, "trunkline-end": "workflow"}, method="DELETE")
        assert (await here.connection.answer()).status == 200
        assert not any(here.taken)
        assert not here.front.bench.pool.workflows


@pytest.mark.parametrize("size", [20_000, 4_000_000])
async def test_a_long_answer_costs_no_task_either(size: int) -> None:
    async with session() as here:
        here.connection.post(call("c"), here.headers)
        await here.front.server.got("tools/call", 1)
        here.front.server.of("tools/call")[0].answer({"text": "x" * size})
        assert len((await here.connection.answer()).body) > size
        assert (here.taken, here.listening.begun) == ([True], 0)


async def test_g10_who_does_not_take_a_long_answer_is_not_given_more() -> None:
    size = 8_000_000  # more than what sockets take
    async with session() as here, connecting(here.port) as beside:
        for number in range(4):
            here.connection.post(call(f"c{number}"), here.headers)
        for number in range(2):  # one on its way, one that waits for it
            await here.front.server.got("tools/call", number + 1)
            here.front.server.of("tools/call")[number].answer({"text": "x" * size})
        beside.post({"jsonrpc": "2.0", "id": "p", "method": "ping"}, here.headers)
        assert (await beside.answer()).status == 200
        assert len(here.front.server.of("tools/call")) == 2
        for number in range(4):
            answer = await here.connection.answer()
            assert json.loads(answer.body)["id"] == f"c{number}"
            if number < 2:
                await here.front.server.got("tools/call", number + 3)
                here.front.server.of("tools/call")[number + 2].answer({"text": "x" * size})


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
@pytest.mark.parametrize("size", [20_000, 400_000])
async def test_an_answer_that_comes_late_is_a_stream_where_that_can_be_resumed(size: int, revision: str) -> None:
    async with session(revision) as here:
        here.connection.post(call("late"), here.headers)
        await here.front.server.got("tools/call", 1)
        passed = asyncio.Event()
        asyncio.get_running_loop().call_later(0.1, passed.set)
        await passed.wait()
        here.front.server.of("tools/call")[0].answer({"text": "x" * size})
        if revision == "2025-11-25":
            assert b"text/event-stream" in await here.connection.reader.readuntil(b"\r\n\r\n")
            assert b"x" * 100 in await here.connection.reader.readuntil(b"x" * 100)
        else:
            assert len((await here.connection.answer()).body) > size
        assert here.taken == [True]


FAULTS: dict[str, tuple[dict[str, str | None], Any]] = {
    "session": ({"mcp-session-id": "nobody"}, call()),
    "no session": ({"mcp-session-id": None}, call()),
    "identity": ({"authorization": "eve"}, call()),
    "another's": ({"authorization": "alice"}, call()),
    "host": ({"host": "evil.example"}, call()),
    "origin": ({"origin": "http://["}, call()),
    "type": ({"content-type": "text/plain"}, call()),
    "accept": ({"accept": "text/html"}, call()),
    "revision": ({"mcp-protocol-version": "2025-03-26"}, call()),
    "no revision": ({"mcp-protocol-version": "1999-01-01"}, call()),
    "key": ({"trunkline-workflow": "another"}, call()),
    "no key": ({"mcp-session-id": None, "trunkline-workflow": "not a key"}, call()),
    "opening": ({}, {**initialize(), "params": {"capabilities": {}}}),
    "opening of another": (
        {"trunkline-workflow": "another", "mcp-protocol-version": None},
        initialize(revision=REVISION),
    ),
    "json": ({}, b"{"),
    "nothing": ({}, b" "),
    "batch": ({}, [call()]),
    "fraction": ({}, {**call(), "id": 1.5}),
    "token": ({}, {**call(), "params": {"_meta": {"progressToken": True}}}),
}


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_the_same_whether_it_comes_whole_or_not(fault: str) -> None:
    changes, message = FAULTS[fault]
    async with session() as here:
        told = []
        for packets in (1, 2):
            before = dict(here.front.counts)
            headers = {**here.headers, **{name: value for name, value in changes.items() if value is not None}}
            for name in [name for name, value in changes.items() if value is None]:
                del headers[name]
            here.connection.post(message, headers, packets=packets)
            answer = await here.connection.answer()
            headers = {name: value for name, value in answer.headers.items() if name != "date"}
            counts = {key: value - before.get(key, 0) for key, value in here.front.counts.items()}
            told.append((answer.status, headers, answer.body, {key: value for key, value in counts.items() if value}))
        assert told[0] == told[1]
        assert told[0][0] >= 400 or b"error" in told[0][2]


async def test_a_call_of_another_principal_overtakes_a_flood() -> None:
    async with session(per_round=1) as here, AsyncExitStack() as stack:
        client, headers = here.front.client, {}
        for name in ("alice", "bob"):
            client.headers["authorization"] = name
            await shake_hands(client, REVISION)
            await client.post({"jsonrpc": "2.0", "method": "notifications/initialized"})
            headers[name] = {**here.headers, "authorization": name, "mcp-session-id": client.headers["mcp-session-id"]}
        flood = [await stack.enter_async_context(connecting(here.port)) for _ in range(40)]
        for number, connection in enumerate(flood):
            connection.post(call(f"c{number}", who="alice"), headers["alice"])
        here.connection.post(call("late", who="bob"), headers["bob"])
        await here.front.server.got("tools/call", 4)
        who = [request.json["params"]["arguments"]["who"] for request in here.front.server.of("tools/call")]
        assert "bob" in who
        assert len(who) < 20, "the flood waits"
        await here.front.server.got("tools/call", 41)
        asked = here.front.server.of("tools/call")
        for request in asked:
            request.answer({})
        for connection in (*flood, here.connection):
            assert json.loads((await connection.answer()).body)["result"] == {}
        assert here.taken == [True] * 41


async def test_who_leaves_before_its_turn_takes_none_and_asks_nothing() -> None:
    async with session(per_round=0) as here:  # nobody's turn comes
        here.connection.post(call(), here.headers)
        await until(lambda: here.admission.waiting)
        here.connection.writer.close()
        await until(lambda: not here.admission.waiting)
        assert not here.front.server.of("tools/call")


async def test_g10_a_large_message_that_waits_for_its_turn_counts_as_one() -> None:
    async with session(per_round=0) as here:
        burden = here.front.bench.pool.burden
        here.connection.post(call(padding="x" * LARGE_BYTES), here.headers)
        await until(lambda: here.admission.waiting)
        assert burden.held > LARGE_BYTES
