"""Streamable HTTP in ContextForge: its own manager, an owner for each session, an identity for each message."""

import asyncio
import logging
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, nullcontext, suppress
from types import ModuleType
from typing import Any, Final, Protocol

from ...transports.asgi import Receive, Scope, Send, respond
from .asked import Incoming, incoming, name_of, read_headers
from .event_store import SessionEventStore
from .invocations import Outcome, outcome

logger = logging.getLogger(__name__)

SESSION_ID: Final = b"mcp-session-id"
CONTEXT: Final = "trunkline.contextforge.context"
"""The scope's entry for what was verified of a message, so that it reaches the handler in the SDK's own task."""

SDK_SESSIONS: Final = "_server_instances"
"""Where the SDK's manager holds the sessions that live. It says nothing of them otherwise."""

SERVER_PATH: Final = re.compile(r"/servers/(?P<server_id>[a-fA-F0-9\-]+)/mcp")

MAX_ENDED: Final = 10_000
"""Ended sessions that are answered with 404; older ones as ContextForge answers unknown ones."""

ANSWER_SECONDS: Final = 5.0
"""How long a session that is deleted waits for its calls to be answered, before they are cut."""

SPARE_OWNERS: Final = 64
"""Owners of sessions that the SDK has let go of, which may be remembered beside as many as it keeps, twice."""


class Services(Protocol):
    """What the session manager needs of the installation."""

    async def start(self) -> None:
        """The gateway starts."""

    async def stop(self) -> None:
        """The gateway stops."""

    async def ended(self, session_id: str) -> None:
        """A client's session is over."""


class _Exchanges:
    """The requests of one session that are not answered yet."""

    def __init__(self) -> None:
        self.count = 0
        self.over = asyncio.Event()
        """Set once all are answered."""


class _Sessions:
    """The sessions of one manager: who began each, what of it is not answered yet, and which have ended.

    `transports` gives those that live in the SDK, by their ids.
    """

    def __init__(self, services: Services, transports: Callable[[], dict[str, Any]]) -> None:
        self.owners: dict[str, str] = {}
        """Who began each."""
        self._services = services
        self._transports = transports
        self._ended: OrderedDict[str, None] = OrderedDict()
        """Those that were deleted lately."""
        self._exchanges: dict[str, _Exchanges] = {}
        self._ending: set[asyncio.Task[None]] = set()
        """Those that have ended, and of which calls are still to be answered."""

    def may_ask(self, session_id: str, user: str) -> bool:
        """Whether this user may name it: nobody may name one of another user, or one that has ended."""
        return session_id not in self._ended and (not session_id or self.owners.get(session_id, user) == user)

    @asynccontextmanager
    async def exchange(self, session_id: str) -> AsyncIterator[None]:
        """One request that is to be answered, for the length of the context."""
        exchanges = self._exchanges.setdefault(session_id, _Exchanges())
        exchanges.count += 1
        try:
            yield
        finally:
            exchanges.count -= 1
            if not exchanges.count:
                del self._exchanges[session_id]
                exchanges.over.set()

    async def answered(self, session_id: str) -> None:
        """Wait until every request of a session is answered, or for as long as that may take."""
        exchanges = self._exchanges.get(session_id)
        if exchanges is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(ANSWER_SECONDS):
                    await exchanges.over.wait()

    async def note(self, method: str, session_id: str, event: Mapping[str, Any], user: str) -> None:
        """A request begins to be answered so: by that, a session may begin or end."""
        status = event["status"]
        given = next((value.decode() for name, value in event["headers"] if name.lower() == SESSION_ID), "")
        if given and not session_id and status < 300:
            self.owners[given] = user
            self._forget_expired()
        began = session_id in self.owners  # of any other, it may be a key under which others keep a session
        if began and (status == 404 or (method == "DELETE" and status < 300)):
            self._end(session_id)
            await self._services.ended(session_id)

    def close(self) -> None:
        """The gateway stops: no call is waited for any longer."""
        for ending in tuple(self._ending):
            ending.cancel()

    def _end(self, session_id: str) -> None:
        """Let go of a session that has ended, and of what the SDK keeps of it when its calls are answered or cut.

        ContextForge 1.0 answers DELETE itself, so that the SDK's server task would wait for the next message for ever;
        0.9 leaves the transport in the SDK's table.
        """
        self.owners.pop(session_id, None)
        self._ended[session_id] = None
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)
        transport = self._transports().pop(session_id, None)
        if transport is not None:
            ending = asyncio.create_task(self._terminate(session_id, transport))
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    async def _terminate(self, session_id: str, transport: Any) -> None:
        await self.answered(session_id)
        await transport.terminate()

    def _forget_expired(self) -> None:
        """Forget who began sessions that the SDK has let go of: not each client says goodbye."""
        transports = self._transports()
        if len(self.owners) > 2 * len(transports) + SPARE_OWNERS:
            self.owners = {session: user for session, user in self.owners.items() if session in transports}


def session_manager(
    module: ModuleType, services: Services, *, reads_context: bool, keeps_events: bool, cuts_calls: bool
) -> type:
    """A class over the `SessionManagerWrapper` of `module`, with all of its names.

    With `reads_context`, handlers get the headers and the user of each message, and not those of the session's first,
    and a call that failed is answered as one that did: ContextForge 0.9 makes an empty result of it.
    With `keeps_events`, each session has an event store of its own. `cuts_calls` tells that the SDK itself answers a
    DELETE, and cuts what is not answered then.
    """
    base: Any = module.SessionManagerWrapper

    class SessionManagerWrapper(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.known = _Sessions(services, lambda: getattr(self.session_manager, SDK_SESSIONS))
            if keeps_events and getattr(self.session_manager, "event_store", None) is not None:
                _keep_events_apart(self.session_manager, module.EventMessage)
            if reads_context:
                _read_context_of_each_message(module)

        async def initialize(self) -> None:
            await services.start()
            await super().initialize()

        async def shutdown(self) -> None:
            self.known.close()
            await super().shutdown()
            await services.stop()

        async def handle_streamable_http(self, scope: Scope, receive: Receive, send: Send) -> None:
            """Serve one request: a session of another user looks like one that does not exist."""
            headers = read_headers(scope)
            incoming.set(Incoming(scope, headers))
            session_id = headers.get(SESSION_ID.decode(), "")
            user = name_of(module.user_context_var.get())
            is_one = len({value for name, value in scope["headers"] if name.lower() == SESSION_ID}) < 2
            if not is_one or not self.known.may_ask(session_id, user):  # of two, another might be served
                await respond(send, 404, [(b"content-type", b"application/json")], b'{"detail":"Session not found"}')
                return
            scope[CONTEXT] = {"headers": headers, "user": module.user_context_var.get()}

            async def watched(event: Any) -> None:
                if event["type"] == "http.response.start":
                    await self.known.note(scope["method"], session_id, event, user)
                await send(event)

            if scope["method"] == "DELETE" and cuts_calls and session_id in self.known.owners:
                await services.ended(session_id)  # which fails the calls, and says why
                await self.known.answered(session_id)
            is_asked = scope["method"] == "POST" and session_id != ""
            async with self.known.exchange(session_id) if is_asked else nullcontext():
                await super().handle_streamable_http(scope, receive, watched)

    return SessionManagerWrapper


def _keep_events_apart(manager: Any, event_message: Callable[[Any, str], Any]) -> None:
    """Give each session that this manager begins a store of its own: it asks for `event_store` once for each."""

    class ApartManager(type(manager)):  # type: ignore[misc]
        @property
        def event_store(self) -> SessionEventStore:
            return SessionEventStore(event_message)

        @event_store.setter
        def event_store(self, store: object) -> None:
            """What a session keeps is its own."""

    manager.__dict__.pop("event_store", None)
    manager.__class__ = ApartManager


def _read_context_of_each_message(module: ModuleType) -> None:
    """Set the context variables that handlers read from the request that brought their message.

    Where a call of a tool failed in the course of it, that is the answer.
    """
    handlers: dict[Any, Callable[[Any], Awaitable[Any]]] = module.mcp_app.request_handlers
    server_id, request_headers, user = module.server_id_var, module.request_headers_var, module.user_context_var

    def with_context(handler: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
        async def handle(request: Any) -> Any:
            http = module.mcp_app.request_context.request
            scope = getattr(http, "scope", None)
            if scope is not None and CONTEXT in scope:
                match = SERVER_PATH.search(scope["modified_path"])
                server_id.set(match.group("server_id") if match else None)
                request_headers.set(scope[CONTEXT]["headers"])
                user.set(scope[CONTEXT]["user"])
            became = Outcome()
            token = outcome.set(became)
            try:
                result = await handler(request)
            finally:
                outcome.reset(token)
            return result if became.error is None else _failed(module, str(became.error))

        return handle

    for kind, handler in list(handlers.items()):
        handlers[kind] = with_context(handler)


def _failed(module: ModuleType, text: str) -> Any:
    """The result of a call of a tool that failed."""
    types = module.types
    content = [types.TextContent(type="text", text=text)]
    return types.ServerResult(types.CallToolResult(content=content, isError=True))
