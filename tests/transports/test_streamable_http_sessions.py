"""Streamable HTTP for clients: which session a request belongs to, how it ends, and who is refused."""

from typing import Any

import pytest
from harness.duplex_clients import initialize
from harness.endpoint_bench import authenticate, call, front, opened, shake_hands
from harness.memory_wire import echo
from harness.muxing import settle
from trunkline.mux.errors import UpstreamUnreachable
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.transports import EndpointConfig, Guard, StreamableHTTPEndpoint

pytestmark = pytest.mark.anyio

STATE, POOL, SESSION, KEY = "trunkline-workflow-state", "trunkline-pool", "mcp-session-id", "trunkline-workflow"
NOTE = {"jsonrpc": "2.0", "method": "notifications/roots/list_changed"}
PAGE = "https://app.example"


# Session ids.


async def test_a_session_begins_with_an_id_of_its_own() -> None:
    async with front() as here:
        one, two = await shake_hands(here.client), await shake_hands(here.client)
        assert one.headers[SESSION] != two.headers[SESSION]
        assert len(one.headers[SESSION]) >= 22, "128 bits in base64"
        assert (one.headers[POOL], one.headers.get(STATE)) == ("miss", None)
        assert (await one.json())["result"] == here.server.result


async def test_initialize_with_a_session_id_resumes_without_asking_the_server() -> None:
    async with opened() as here:
        answer = await here.client.post(initialize())
        assert (answer.headers[POOL], answer.headers[STATE]) == ("hit", "resumed")
        assert (await answer.json())["result"] == here.server.result
        assert len(here.server.of("initialize")) == 1


async def test_a_server_without_reuse_is_named_so() -> None:
    async with front(reuse="none") as here:
        assert (await here.client.post(initialize())).headers[POOL] == "bypass"


async def test_a_session_is_of_one_principal_and_one_server() -> None:
    async with opened() as here:
        here.client.headers["authorization"] = "alice"
        await shake_hands(here.client)
        for method in ("POST", "GET", "DELETE"):
            for stranger in ("bob", None):
                answer = await here.client.ask(method, call(), {"authorization": stranger})
                assert answer.status == 404
                assert not here.server.of("tools/call")
        config = EndpointConfig("y", here.bench.pool, Guard(loopback=True), authenticate)
        here.client.app = StreamableHTTPEndpoint(config)
        assert (await here.client.post(call())).status == 404


async def test_delete_ends_a_session() -> None:
    async with opened() as here:
        assert (await here.client.delete()).status == 200
        await here.bench.closed()
        assert (await here.client.post(call())).status == 404
        assert (await here.client.delete()).status == 404


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "stays"])
async def test_a_session_whose_id_its_client_has_not_waited_for_is_abandoned(leaves: bool) -> None:
    async with front(resume_window=60) as here:
        here.server.pause("initialize")
        begun = here.client.start("POST", initialize())
        await here.server.reached("initialize")
        if leaves:
            begun.leave()
        here.server.let("initialize")
        await begun.over()
        here.bench.clock.advance(59)
        await here.bench.swept()
        assert here.bench.pool.workflows
        here.bench.clock.advance(2)
        if leaves:
            await here.bench.ended("abandoned")
        await here.bench.swept()
        assert bool(here.bench.pool.workflows) is not leaves


async def test_a_session_is_kept_for_who_has_left_and_knows_its_key() -> None:
    async with front(resume_window=60) as here:
        here.server.pause("initialize")
        begun = here.client.start("POST", initialize(), {KEY: "chat-1"})
        await here.server.reached("initialize")
        begun.leave()
        here.server.let("initialize")
        await begun.over()
        here.bench.clock.advance(61)
        await here.bench.swept()
        assert (await here.client.post(initialize(), {KEY: "chat-1"})).headers[STATE] == "resumed"


# Keys.


async def test_a_key_gets_or_creates_a_workflow() -> None:
    async with front() as here:
        here.server.on_request = echo
        here.client.headers[KEY] = "chat-1"
        first = await here.client.post(initialize())
        assert (first.headers[STATE], first.headers[POOL]) == ("created", "miss")
        second = await here.client.post(initialize())
        assert (second.headers[STATE], second.headers[POOL]) == ("resumed", "hit")
        called = await here.client.post(call())
        assert (called.status, called.headers[STATE], called.headers[POOL]) == (200, "resumed", "hit")
        assert first.headers[SESSION] == second.headers[SESSION] == called.headers[SESSION]
        assert len(here.server.sessions) == 1


async def test_a_call_with_a_new_key_needs_no_handshake() -> None:
    async with front() as here:
        here.server.on_request = echo
        answer = await here.client.post(call(n=1), {KEY: "chat-1", "mcp-protocol-version": "2025-11-25"})
        assert (answer.status, answer.headers[STATE], answer.headers[POOL]) == (200, "created", "miss")
        assert (await answer.json())["result"]["structuredContent"] == {"n": 1}
        assert (await here.client.post(NOTE, {SESSION: answer.headers[SESSION]})).status == 202


async def test_the_first_call_of_a_key_tells_of_the_spare_that_its_session_was() -> None:
    async with front(spares=1) as here:
        here.server.on_request = echo
        told = []
        for key in ("chat-1", "chat-2"):
            answer = await here.client.post(call(), {KEY: key})
            told.append((answer.headers[STATE], answer.headers[POOL]))
            await here.server.got("notifications/initialized", len(told) + 1)
            await settle()
        assert told == [("created", "miss"), ("created", "spare")]


async def test_what_the_pool_was_not_asked_for_tells_nothing_of_it() -> None:
    async with opened(max_inflight_per_workflow=1) as here:
        held = here.client.start("POST", call("held"))
        exchange = await here.server.got("tools/call")
        refused = await here.client.post(call())
        assert (await refused.json())["error"]["code"] == -31003
        assert (await here.client.post({"jsonrpc": "2.0", "id": 1, "method": "ping"})).status == 200
        assert POOL not in refused.headers
        exchange.answer({})
        await held.over()
        assert held.headers[POOL] == "hit"


async def test_a_batch_tells_the_worst_that_the_pool_had_to_do() -> None:
    async with opened("2025-03-26", stateless=True) as here:
        here.server.on_request = echo
        assert (await here.client.post(call())).headers[POOL] == "hit"
        here.server.session.receiver.lost(UpstreamUnreachable("gone", executed="unknown"))
        answer = await here.client.post([{"jsonrpc": "2.0", "id": 1, "method": "ping"}, call(2)])
        assert answer.headers[POOL] == "miss"


async def test_one_key_at_once_from_two_connections_is_one_workflow() -> None:
    async with front() as here:
        here.server.on_request = echo
        here.server.pause("initialize")
        one = here.client.start("POST", call(1), {KEY: "chat-1"})
        await here.server.reached("initialize")
        two = here.client.start("POST", call(2), {KEY: "chat-1"})
        await settle()
        here.server.let("initialize")
        assert [(await answer.json())["id"] for answer in (one, two)] == [1, 2]
        assert {one.headers[STATE], two.headers[STATE]} == {"created", "resumed"}
        assert len(here.server.sessions) == 1


async def test_a_key_names_nothing_of_another_principal() -> None:
    async with front() as here:
        ids = set()
        for who in ("alice", "bob", None):
            answer = await here.client.post(initialize(), {KEY: "chat-1", "authorization": who})
            assert answer.headers[STATE] == "created"
            ids.add(answer.headers[SESSION])
        assert len(ids) == 3


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_key_that_names_nothing_yet_is_unknown_but_to_post(method: str) -> None:
    async with front() as here:
        assert (await here.client.ask(method, headers={KEY: "chat-1"})).status == 404
        assert not here.server.sessions


async def test_another_handshake_begins_a_keyed_workflow_anew_unless_it_is_in_use() -> None:
    async with front() as here:
        here.client.headers[KEY] = "chat-1"
        first = await here.client.post(initialize())
        stream = await here.client.get(headers={SESSION: first.headers[SESSION]})
        refused = await here.client.post(initialize(capabilities={"roots": {}}))
        assert refused.status == 200
        error = (await refused.json())["error"]
        assert error["code"] == -32602
        assert "capabilities" in error["message"]
        stream.leave()
        await stream.over()
        anew = await here.client.post(initialize(capabilities={"roots": {}}))
        assert (anew.headers[STATE], anew.headers[POOL]) == ("reset", "miss")
        assert anew.headers[SESSION] != first.headers[SESSION]


async def test_a_stream_of_the_key_alone_does_not_keep_its_client_from_beginning() -> None:
    """The AI SDK asks for its stream before it sends `initialize`: that was taken for another client's."""
    async with front() as here:
        here.client.headers[KEY] = "chat-1"
        first = await here.client.post(initialize())
        stream = await here.client.get()
        anew = await here.client.post(initialize(capabilities={"roots": {}}))
        assert (anew.headers.get(STATE), anew.headers.get(POOL)) == ("reset", "miss")
        assert anew.headers[SESSION] != first.headers[SESSION]
        await stream.over()
        assert (await here.client.post(initialize(capabilities={"roots": {}}))).headers[STATE] == "resumed"


async def test_a_stream_of_the_key_alone_is_like_any_other_once_its_client_has_begun() -> None:
    async with front() as here:
        here.server.on_request = echo
        here.client.headers[KEY] = "chat-1"
        first = await here.client.post(initialize())
        stream = await here.client.get()
        assert (await here.client.post(initialize())).headers[STATE] == "resumed"
        another = await here.client.get()
        refused = await here.client.post(initialize(capabilities={"roots": {}}))
        assert (await refused.json())["error"]["code"] == -32602
        answer = await here.client.post(call(), {SESSION: first.headers[SESSION]})
        assert "result" in await answer.json()
        stream.leave()
        await stream.over()
        anew = await here.client.post(initialize(capabilities={"roots": {}}))
        assert anew.headers[STATE] == "reset"
        await another.over()


async def test_a_key_of_anonymous_is_refused_where_everybody_would_share_it() -> None:
    async with front(options={"anonymous_keys": False}) as here:
        for body in (initialize(), call()):
            assert (await here.client.post(body, {KEY: "chat-1"})).status == 400
        assert not here.server.sessions
        assert here.counts["refused", "anonymous_key"] == 2
        known = await here.client.post(initialize(), {KEY: "chat-1", "authorization": "alice"})
        assert (known.status, known.headers[STATE]) == (200, "created")
        assert (await here.client.post(initialize())).status == 200, "without a key there is nothing to share"


# Who is told to begin.


async def test_a_request_without_a_session_is_told_to_begin() -> None:
    async with front() as here:
        answer = await here.client.post(call(9))
        assert answer.status == 400
        error = (await answer.json())["error"]
        assert error["code"] == -32600
        assert "initialize" in error["message"]


async def test_a_revision_without_sessions_is_answered_with_those_that_are_served() -> None:
    async with front() as here:
        answer = await here.client.post(call(9), {"mcp-protocol-version": "2026-07-28"})
        assert answer.status == 400
        body = await answer.json()
        assert (body["id"], body["error"]["code"]) == (9, -32022)
        assert body["error"]["data"]["requested"] == "2026-07-28"
        assert "2025-11-25" in body["error"]["data"]["supported"]


# Headers for the server.


async def test_configured_headers_go_with_each_request_or_with_the_session() -> None:
    options = {"forward_headers": ["x-class"], "session_headers": ["x-tenant"]}
    async with front(options=options) as here:
        here.server.on_request = echo
        await shake_hands(here.client, **{"x-tenant": "acme", "x-class": "fast", "x-other": "no"})
        assert here.server.session.headers == {"x-tenant": "acme"}
        await here.client.post(call(), {"x-class": "slow", "x-tenant": "evil", "x-other": "no"})
        await here.client.post(call())
        await here.client.post(NOTE, {"x-class": "bulk"})
        first, second = here.server.of("tools/call")
        (note,) = here.server.of(NOTE["method"])
        assert first.headers == {"x-tenant": "acme", "x-class": "slow"}
        assert second.headers == {"x-tenant": "acme"}
        assert note.headers == {"x-tenant": "acme", "x-class": "bulk"}


async def test_a_keyed_call_without_handshake_fixes_the_session_headers() -> None:
    async with front(options={"session_headers": ["x-tenant"]}) as here:
        here.server.on_request = echo
        await here.client.post(call(), {KEY: "chat-1", "x-tenant": "acme"})
        assert here.server.session.headers == {"x-tenant": "acme"}


# Refusals.

REFUSED: dict[str, tuple[str, dict[str, str | None], int, str]] = {
    "method": ("PUT", {}, 405, "method"),
    "no content type": ("POST", {"content-type": None}, 415, "content_type"),
    "content type": ("POST", {"content-type": "text/json"}, 415, "content_type"),
    "accept, POST": ("POST", {"accept": "application/json"}, 406, "accept"),
    "accept, GET": ("GET", {"accept": "application/json"}, 406, "accept"),
    "declared length": ("POST", {"content-length": str(MAX_BODY_BYTES + 1)}, 413, "body"),
    "key": ("POST", {KEY: "a b"}, 400, "workflow_key"),
    "host": ("POST", {"host": "evil.example"}, 421, "host"),
    "origin": ("POST", {"origin": "https://evil.example"}, 403, "origin"),
    "identity": ("POST", {"authorization": "mallory"}, 401, "unauthorized"),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_is_refused_says_why_and_is_counted(name: str) -> None:
    method, headers, status, word = REFUSED[name]
    async with opened() as here:
        answer = await here.client.ask(method, call(9), headers)
        assert answer.status == status
        assert (await answer.json())["error"]["code"] == -32600
        assert here.counts["refused", word] == 1
        assert answer.headers.get("allow") == ("POST, GET, DELETE, OPTIONS" if status == 405 else None)
        assert answer.headers.get("www-authenticate") == ('Bearer realm="test"' if status == 401 else None)
        assert not here.server.of("tools/call")
        assert (await here.client.post(NOTE)).status == 202, "the session goes on"


async def test_a_body_is_refused_as_soon_as_it_is_too_large() -> None:
    async with opened() as here:
        answer = await here.client.ask("POST", parts=[b" " * MAX_BODY_BYTES, b" "], endless=True)
        assert answer.status == 413


async def test_a_client_that_leaves_within_its_body_is_counted() -> None:
    async with opened() as here:
        answer = here.client.start("POST", parts=[b'{"jsonrpc"'], endless=True)
        answer.leave()
        await answer.over()
        assert here.counts["refused", "client_left"] == 1


async def test_a_cap_on_sessions_names_itself() -> None:
    async with front(max_workflows_per_user=1) as here:
        here.client.headers["authorization"] = "alice"
        await shake_hands(here.client)
        stream = await here.client.get()
        answer = await here.client.post(initialize(), {SESSION: None})
        assert answer.status == 429
        assert int(answer.headers["retry-after"]) > 0
        assert (await answer.json())["error"]["data"] == {"limit": "max_workflows_per_user"}
        stream.leave()
        await stream.over()


async def test_a_server_that_cannot_be_reached_is_an_error_in_200() -> None:
    async with front() as here:
        here.server.unreachable = UpstreamUnreachable("down", executed="no")
        answer = await here.client.post(initialize())
        assert (answer.status, SESSION in answer.headers) == (200, False)
        assert (await answer.json())["error"]["code"] == -31001


# Pages of other origins.


async def test_a_configured_page_may_read_every_answer() -> None:
    async with front(guard=Guard(loopback=True, allowed_origins=[PAGE])) as here:
        here.client.headers["origin"] = PAGE
        fine, bad = await here.client.post(initialize()), await here.client.post(call())
        nobody = await here.client.post(call(), {"authorization": "mallory"})
        assert (fine.status, bad.status, nobody.status) == (200, 400, 401)
        for answer in (fine, bad, nobody):
            assert answer.headers["access-control-allow-origin"] == PAGE
            assert "Mcp-Session-Id" in answer.headers["access-control-expose-headers"]
        local = await here.client.post(initialize(), {"origin": "http://localhost:3000"})
        assert (local.status, "access-control-allow-origin" in local.headers) == (200, False)


async def test_a_preflight_is_answered_without_identity_and_only_for_configured_pages() -> None:
    async with front(guard=Guard(loopback=True, allowed_origins=[PAGE])) as here:
        asking: dict[str, Any] = {"authorization": "mallory", "access-control-request-method": "POST"}
        granted = await here.client.ask("OPTIONS", headers={**asking, "origin": PAGE})
        assert (granted.status, await granted.body()) == (204, b"")
        assert "DELETE" in granted.headers["access-control-allow-methods"]
        assert "Trunkline-Workflow" in granted.headers["access-control-allow-headers"]
        refused = await here.client.ask("OPTIONS", headers={**asking, "origin": "http://localhost:3000"})
        assert (refused.status, "access-control-allow-methods" in refused.headers) == (403, False)
        assert (await here.client.ask("OPTIONS", headers={**asking, "origin": "https://evil.example"})).status == 403


async def test_a_preflight_admits_the_headers_that_are_configured_to_go_on() -> None:
    options = {"forward_headers": ["x-class"], "session_headers": ["x-tenant"]}
    async with front(guard=Guard(loopback=True, allowed_origins=[PAGE]), options=options) as here:
        asking = {"origin": PAGE, "access-control-request-method": "POST"}
        granted = await here.client.ask("OPTIONS", headers={**asking, "access-control-request-headers": "x-class,x-no"})
        allowed = granted.headers["access-control-allow-headers"].split(", ")
        assert {"x-class", "x-tenant"} <= set(allowed)
        assert "x-no" not in allowed
