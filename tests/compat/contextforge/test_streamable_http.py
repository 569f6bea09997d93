"""The session manager over the SDK's own: whose a session is, and that nothing is left of one that has ended."""

import asyncio
import contextlib
import gc
import json
import weakref
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import mcp_types as types
import pytest
from mcp.server.lowlevel import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from trunkline.compat.contextforge import streamable_http as module
from trunkline.compat.contextforge.streamable_http import SPARE_OWNERS, session_manager

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

HEADERS = {"accept": "application/json, text/event-stream", "content-type": "application/json", "host": "localhost"}
INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "raw", "version": "1"}},
}


class Wrapper:
    """ContextForge's manager as it is there: over the SDK's. That of 1.0 answers DELETE itself."""

    answers_delete = True
    idle_timeout: float | None = None
    calls: Any = None
    """Answers calls of tools."""

    def __init__(self) -> None:
        self.session_manager = StreamableHTTPSessionManager(
            Server("forge", on_call_tool=self.calls), json_response=True, session_idle_timeout=self.idle_timeout
        )
        self._stack = contextlib.AsyncExitStack()

    async def initialize(self) -> None:
        await self._stack.enter_async_context(self.session_manager.run())

    async def shutdown(self) -> None:
        await self._stack.aclose()

    async def handle_streamable_http(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["method"] == "DELETE" and self.answers_delete:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
        else:
            await self.session_manager.handle_request(scope, receive, send)


class Installed:
    """What the manager tells, and what it is asked."""

    def __init__(self, **about: Any) -> None:
        self.over: list[str] = []
        self.when_over: Callable[[], object] = lambda: None
        self.user: ContextVar[dict[str, str]] = ContextVar("user")
        transport = ModuleType("transport")
        transport.SessionManagerWrapper = type("Own", (Wrapper,), about)  # type: ignore[attr-defined]
        transport.user_context_var = self.user  # type: ignore[attr-defined]
        own = session_manager(
            transport, self, reads_context=False, keeps_events=False, cuts_calls=not about.get("answers_delete", True)
        )
        self.manager: Any = own()
        self.texts: list[str] = []
        """The bodies that were answered."""

    async def start(self) -> None:
        pass

    async def stop(self) -> None:
        pass

    async def ended(self, session_id: str) -> None:
        self.over.append(session_id)
        self.when_over()

    async def ask(
        self, method: str, body: Any = None, session: str = "", user: str = "alice", *, also: str = ""
    ) -> tuple[int, str]:
        """The status, and the session that the answer names. `also` is a second session that the request names."""
        text = b"" if body is None else json.dumps(body).encode()
        sessions = [("mcp-session-id", named) for named in (session, also) if named]
        pairs = [(name.encode(), value.encode()) for name, value in (*HEADERS.items(), *sessions)]
        scope = {"type": "http", "method": method, "path": "/mcp", "query_string": b"", "headers": pairs}
        sent = [{"type": "http.request", "body": text, "more_body": False}]
        status, named = 0, ""

        async def receive() -> Any:
            if not sent:
                await asyncio.Event().wait()
            return sent.pop()

        async def send(event: Any) -> None:
            nonlocal status, named
            if event["type"] == "http.response.start":
                status = event["status"]
                named = next((v.decode() for k, v in event["headers"] if k == b"mcp-session-id"), "")
            else:
                self.texts.append(event["body"].decode())

        self.user.set({"email": user})
        await self.manager.handle_streamable_http(scope, receive, send)
        return status, named

    async def begin(self, user: str = "alice") -> str:
        status, session = await self.ask("POST", INITIALIZE, user=user)
        assert status == 200
        return session


@contextlib.asynccontextmanager
async def installed(**about: Any) -> AsyncIterator[Installed]:
    made = Installed(**about)
    await made.manager.initialize()
    try:
        yield made
    finally:
        await made.manager.shutdown()


async def gone(what: "weakref.ref[Any]") -> None:
    """Return once nothing holds it."""
    async with asyncio.timeout(10):
        while what() is not None:
            await asyncio.sleep(0)
            gc.collect()


@pytest.mark.parametrize("answers_delete", [True, False])
async def test_of_a_session_that_was_deleted_the_sdk_keeps_nothing(answers_delete: bool) -> None:
    async with installed(answers_delete=answers_delete) as forge:
        session = await forge.begin()
        transport = weakref.ref(forge.manager.session_manager._server_instances[session])
        assert (await forge.ask("DELETE", session=session))[0] == 200
        assert set(forge.over) == {session}
        await gone(transport)
        assert (await forge.ask("POST", {"jsonrpc": "2.0", "id": 1, "method": "ping"}, session))[0] == 404


@pytest.mark.parametrize("answers_delete", [True, False])
async def test_a_call_under_way_in_a_session_that_is_deleted_is_told_what_became_of_it(answers_delete: bool) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def call(self: Any, context: Any, params: Any) -> types.CallToolResult:
        began.set()
        await ended.wait()
        return types.CallToolResult(content=[types.TextContent(type="text", text="it was ended")], is_error=True)

    async with installed(answers_delete=answers_delete, calls=call) as forge:
        forge.when_over = ended.set
        session = await forge.begin()
        transport = weakref.ref(forge.manager.session_manager._server_instances[session])
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "hold", "arguments": {}}}
        calling = asyncio.create_task(forge.ask("POST", message, session))
        await began.wait()
        assert (await forge.ask("DELETE", session=session))[0] == 200
        assert (await forge.ask("POST", message, session))[0] == 404
        assert (await calling)[0] == 200
        assert any("it was ended" in text for text in forge.texts)
        await gone(transport)


@pytest.mark.parametrize("answers_delete", [True, False])
async def test_a_call_that_is_never_answered_keeps_no_session_that_was_deleted(
    answers_delete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.01)
    began = asyncio.Event()

    async def call(self: Any, context: Any, params: Any) -> types.CallToolResult:
        began.set()
        await asyncio.Event().wait()
        raise AssertionError

    async with installed(answers_delete=answers_delete, calls=call) as forge:
        session = await forge.begin()
        transport = weakref.ref(forge.manager.session_manager._server_instances[session])
        message = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "hold", "arguments": {}}}
        calling = asyncio.create_task(forge.ask("POST", message, session))
        await began.wait()
        assert (await forge.ask("DELETE", session=session))[0] == 200
        async with asyncio.timeout(10):
            await asyncio.gather(calling, return_exceptions=True)
        del calling
        await gone(transport)


async def test_the_session_of_another_user_looks_unknown_and_goes_on() -> None:
    async with installed() as forge:
        session = await forge.begin()
        for method in ("POST", "DELETE", "GET"):
            assert (await forge.ask(method, {"jsonrpc": "2.0", "id": 1, "method": "ping"}, session, "bob"))[0] == 404
        assert forge.over == []
        assert (await forge.ask("POST", {"jsonrpc": "2.0", "id": 1, "method": "ping"}, session))[0] == 200


async def test_the_session_of_another_user_is_not_had_by_naming_ones_own_beside_it() -> None:
    """The SDK takes the first of two headers of one name."""
    async with installed() as forge:
        theirs, own = await forge.begin(), await forge.begin("bob")
        for first, second in ((theirs, own), (own, theirs)):
            ping = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
            assert (await forge.ask("POST", ping, first, "bob", also=second))[0] == 404
        for session, user in ((theirs, "alice"), (own, "bob")):
            assert (await forge.ask("POST", ping, session, user, also=session))[0] == 200
        assert forge.over == []


async def test_who_names_a_session_that_was_not_begun_here_ends_nothing() -> None:
    """Another user may keep a session with a server under the same key: `Trunkline-Workflow`, over `/rpc`."""
    async with installed(answers_delete=False) as forge:
        for method in ("POST", "DELETE", "GET"):
            await forge.ask(method, {"jsonrpc": "2.0", "id": 1, "method": "ping"}, "chat-7", "bob")
        assert forge.over == []


async def test_whose_sessions_were_that_the_sdk_has_let_go_of_is_forgotten() -> None:
    async with installed(idle_timeout=0.5) as forge:
        lived = forge.manager.session_manager._server_instances
        async with asyncio.timeout(30):
            for _ in range(3 * SPARE_OWNERS):
                await forge.begin()
            while lived:  # noqa: ASYNC110 - the SDK tells nobody
                await asyncio.sleep(0.01)
        await forge.begin()
        assert len(forge.manager.known.owners) <= SPARE_OWNERS + 2
