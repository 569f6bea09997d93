"""What stands where ContextForge's services open an upstream session for each call: the same names, a kept session.

A service enters a client function, wraps its streams in a `ClientSession`, initializes it and calls. Here the streams
are a lease of a kept session, and the session speaks through it. Where a call is not for trunkline, all of them are the
stock ones, untouched.
"""

import asyncio
import importlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import timedelta
from types import ModuleType
from typing import Any, Final

from ...mux.errors import TrunklineError
from .gateways import SSE
from .invocations import invocation
from .reuse import Lease, OldPath, Reuse

CLIENT_INFO: Final = {"name": "mcp", "version": "0.1.0"}
"""What the SDK's sessions call themselves where nobody says otherwise, as in ContextForge."""

ClientFunction = Callable[..., AbstractAsyncContextManager[Any]]


def handshake_of(types: ModuleType) -> dict[str, Any]:
    """The params of `initialize`, as the SDK beside ContextForge sends them."""
    return {"protocolVersion": types.LATEST_PROTOCOL_VERSION, "capabilities": {}, "clientInfo": CLIENT_INFO}


def types_of(session_class: type) -> ModuleType:
    """The SDK's module of message types, as its session class knows it."""
    return importlib.import_module(importlib.import_module(session_class.__module__).types.__name__)


def leasing(reuse: Reuse, stock: ClientFunction, types: ModuleType, *, sse: bool) -> ClientFunction:
    """A client function like `stock`, whose streams are a lease where the call is for trunkline."""
    handshake = handshake_of(types)

    @asynccontextmanager
    async def client(url: str, headers: Any = None, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        lease = None
        called = invocation.get()
        if called is not None and called.gateway_id:
            with suppress(OldPath):
                lease = await reuse.lease(
                    called.asked,
                    called.gateway_id,
                    f"{SSE}{url}" if sse else url,
                    dict(headers or {}),
                    handshake,
                    taken=called.let_go_of_database,
                )
        if lease is None:
            async with stock(url, headers, *args, **kwargs) as opened:
                yield opened
        else:
            yield (lease, lease) if sse else (lease, lease, lambda: None)

    return client


def leased_sessions(stock: type, types: ModuleType, schemas: "OutputSchemas") -> type:
    """A class like the SDK's `ClientSession`: on the streams of a lease it speaks through that, else it is the stock's.

    Subclassing it keeps every method of the SDK's session, of whatever version, and what they return.
    """
    base: Any = stock
    error_of: Callable[[Any], Exception] = importlib.import_module(stock.__mro__[1].__module__).McpError

    def failure(error: dict[str, Any]) -> Exception:
        return error_of(types.ErrorData.model_validate(error))

    class LeasableSession(base):  # type: ignore[misc]
        def __new__(cls, read: Any, *args: Any, **kwargs: Any) -> Any:
            return object.__new__(LeasedSession if isinstance(read, Lease) else cls)

    class LeasedSession(_OnLease, LeasableSession):
        """One call's view of a kept session."""

        def __init__(self, read: Lease, *args: Any, **kwargs: Any) -> None:
            super().__init__(read, *args, **kwargs)
            self._lease = read

        async def initialize(self) -> Any:
            result = types.InitializeResult.model_validate(self._lease.initialize_result)
            self._server_capabilities = result.capabilities
            return result

        async def send_request(
            self,
            request: Any,
            result_type: Any,
            request_read_timeout_seconds: timedelta | None = None,
            metadata: Any = None,
            progress_callback: Any = None,
        ) -> Any:
            limit = request_read_timeout_seconds.total_seconds() if request_read_timeout_seconds else None
            return result_type.model_validate(await _result(self._lease, request, limit, failure))

        async def _validate_tool_result(self, name: str, result: Any) -> None:
            known = schemas.of(self._lease)
            if not known.tells_of(name):
                await self._learn(known, name)
            elif known.listed.get(name) is not None:
                self._tool_output_schemas = known.listed
                try:
                    await super()._validate_tool_result(name, result)
                    return
                except RuntimeError:  # by a schema that was learned before; the server may have another by now
                    await self._learn(known, name)
            self._tool_output_schemas = known.listed
            if known.listed.get(name) is not None:
                await super()._validate_tool_result(name, result)

        async def _learn(self, known: KnownSchemas, name: str) -> None:
            self._tool_output_schemas = {}
            await self.list_tools()
            known.learn(name, self._tool_output_schemas)

    return LeasableSession


class _OnLease:
    """What a session has in place of the SDK's where there is nothing to begin or to end, and no task that reads."""

    _lease: Lease

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *exc: object) -> bool:
        return False

    async def send_notification(self, notification: Any, related_request_id: Any = None) -> None:
        message = notification.model_dump(by_alias=True, mode="json", exclude_none=True)
        self._lease.notify(message["method"], message.get("params"))


async def _result(
    lease: Lease, request: Any, limit: float | None, failure: Callable[[dict[str, Any]], Exception]
) -> Any:
    """What the server answers to a request of the SDK's, raw; where it is an error, that `failure` of the SDK's."""
    message = request.model_dump(by_alias=True, mode="json", exclude_none=True)
    try:
        async with asyncio.timeout(limit):
            response = await lease.request(message["method"], message.get("params"))
    except TrunklineError as error:
        raise failure({"code": error.code, "message": error.message, "data": error.data or None}) from error
    if "error" in response:
        raise failure(response["error"])
    return response["result"]


class KnownSchemas:
    """The output schemas of one server's tools, under one generation of its settings."""

    def __init__(self, generation: int) -> None:
        self.generation = generation
        self.listed: dict[str, Any] = {}
        """Those of its last list of tools; None for a tool without one."""
        self._asked: set[str] = set()
        """Tools for whose calls a list was asked for: one that is not in it has none, as far as that tells."""

    def tells_of(self, name: str) -> bool:
        """Whether it is known if this tool has a schema."""
        return name in self.listed or name in self._asked

    def learn(self, name: str, listed: dict[str, Any]) -> None:
        """A list has come, for a call of this tool: it takes the place of the one before, whatever was in that.

        Where it is another, as a server may have one for each user, no other call knows its tool from it.
        """
        if listed != self.listed:
            self._asked.clear()
        self.listed = listed
        self._asked.add(name)


class OutputSchemas:
    """What is known of the output schemas of each server's tools, asked for once: the SDK asks anew in every session.

    They are forgotten with the generation of the server's settings.
    """

    def __init__(self) -> None:
        self._known: dict[str, KnownSchemas] = {}

    def of(self, lease: Lease) -> KnownSchemas:
        """What is known of a lease's server."""
        workflow = lease.workflow
        known = self._known.get(workflow.server)
        if known is None or known.generation != workflow.generation:
            known = self._known[workflow.server] = KnownSchemas(workflow.generation)
        return known
