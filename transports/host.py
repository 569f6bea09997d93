"""MCP transports for an application of your own: mount a `Host` in Starlette, FastAPI or any other ASGI application.

    async def serve(transport: Transport) -> None:
        await transport.connect()
        async for message in transport.receive_message():
            if "id" in message:
                await transport.send_message({"jsonrpc": "2.0", "id": message["id"], "result": {}})

    host = Host(serve)
    app = Starlette(routes=[Mount("/tools", host)], lifespan=host.lifespan)

Clients then speak Streamable HTTP at `/tools/mcp`, HTTP+SSE at `/tools/sse`, WebSocket at `/tools/ws`. A conversation
that begins on one may go on on another: it keeps its session id, its `Transport`, and what its client has missed.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Final

from ..mux.channel import Channel
from ..mux.directory.memory import MemoryDirectory
from ..mux.errors import Overloaded
from ..mux.lease import kind_of, refuse_coroutine, refuse_other_loop, running_loop
from ..mux.limits import MAX_EVENT_BYTES, Pooling
from ..mux.pool import Pool
from ..mux.ports import NONE, Headers, Receiver, SendKind, Wire
from ..mux.principal import ANONYMOUS, Principal
from ..mux.request import Request
from ..mux.upstream import Upstream
from ..mux.workflow import Workflow
from .asgi import ASGIApp, Receive, Scope, Send, respond
from .backlog import Backlog
from .base import Message, Transport
from .endpoint import Authenticate, EndpointConfig
from .guard import Guard
from .holding import Holding
from .sse import SSEEndpoint
from .streamable_http import StreamableHTTPEndpoint
from .websocket import WebSocketEndpoint, not_found

logger = logging.getLogger(__name__)

NAME: Final = "application"
MAX_UNREAD: Final = 1024
MAX_UNREAD_BYTES: Final = MAX_EVENT_BYTES
"""So many messages, and so much of them, wait for the application: more requests are refused, the rest is dropped."""

END_SECONDS: Final = 5.0
"""How long an application may take to end with its conversation."""

Serve = Callable[[Transport], Awaitable[None]]
Endpoints = dict[str, ASGIApp]


class _NotConnected(RuntimeError):
    """The conversation has not begun, or has ended."""


class _Messages(AsyncIterator[dict[str, Any]]):
    """What waits for the application. A generator would end with whoever gives up waiting for the next one."""

    def __init__(self, inbox: Backlog[bytes]) -> None:
        self._inbox = inbox

    async def __anext__(self) -> dict[str, Any]:
        text = await self._inbox.take()
        if text is None:
            self._inbox.end()  # for whoever asks as well
            raise StopAsyncIteration
        message: dict[str, Any] = json.loads(text)
        return message


class _Conversation(Transport):
    """A workflow, seen from the application. Implements `Transport` upwards and `Wire` for its channel."""

    def __init__(self, workflow: Workflow, receiver: Receiver, end: Callable[[Workflow], Awaitable[None]]) -> None:
        self._workflow = workflow
        self._receiver = receiver
        self._end = end
        self._inbox = Backlog[bytes](MAX_UNREAD, MAX_UNREAD_BYTES)
        self._requests: dict[int, Request] = {}
        """The client's requests that wait for an answer, by the id that the application knows."""
        self._is_connected = False
        self.is_over = False
        """True once the conversation has ended."""

    @property
    def session_id(self) -> str:
        """See `Transport.session_id`."""
        return self._workflow.record.session_id

    async def connect(self) -> None:
        """See `Transport.connect`."""
        self._is_connected = not self.is_over

    async def disconnect(self) -> None:
        """See `Transport.disconnect`."""
        self._is_connected = False
        if not self.is_over:
            self.over()
            await self._end(self._workflow)

    async def send_message(self, message: Message, *, request_id: int | None = None) -> None:
        """See `Transport.send_message`."""
        self._check()
        if not isinstance(message, Mapping):
            raise TypeError(f"a message is a dictionary, not {type(message).__name__}")
        if message.get("jsonrpc") != "2.0":
            raise ValueError('a message has "jsonrpc": "2.0"')
        text = json.dumps(message, ensure_ascii=False, allow_nan=False).encode()
        answers = message.get("id") if "method" not in message else None
        answered = self._requests.pop(answers, None) if isinstance(answers, int) else None
        related = self._requests.get(request_id) if request_id is not None else None
        self._receiver.received(text, answered or related)

    def receive_message(self) -> AsyncIterator[dict[str, Any]]:
        """See `Transport.receive_message`."""
        self._check()
        return _Messages(self._inbox)

    async def is_connected(self) -> bool:
        """See `Transport.is_connected`."""
        return self._is_connected and self._workflow.is_attached

    def over(self) -> None:
        """The conversation has ended."""
        if not self.is_over:
            self.is_over, self._is_connected = True, False
            self._inbox.end()

    # Wire

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        if request is None:
            self._inbox.put(text)
        elif self._inbox.put(text):
            self._requests[request.id] = request
        else:
            refusal = Overloaded("the application takes no more messages", limit="unread_messages")
            asyncio.get_running_loop().call_soon(self._receiver.failed, request, refusal)

    def abandon(self, request: Request) -> None:
        """See `Wire.abandon`."""
        self._requests.pop(request.id, None)

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        self.send(initialized)

    def _check(self) -> None:
        if not self._is_connected:
            why = "the conversation has ended" if self.is_over else "await its connect() first"
            raise _NotConnected(f"Transport not connected: {why}")


class StreamableHTTPTransport(_Conversation):
    """A conversation over Streamable HTTP, 2024-11-05 to 2025-11-25."""

    @staticmethod
    def endpoints(config: EndpointConfig) -> Endpoints:
        """Its applications, by path."""
        return {"/mcp": StreamableHTTPEndpoint(config)}


class SSETransport(_Conversation):
    """A conversation over HTTP+SSE, 2024-11-05."""

    @staticmethod
    def endpoints(config: EndpointConfig) -> Endpoints:
        """Its applications, by path."""
        endpoint = SSEEndpoint(config)
        return {"/sse": endpoint.stream, "/message": endpoint.messages}


class WebSocketTransport(_Conversation):
    """A conversation over WebSocket, subprotocol `mcp`."""

    @staticmethod
    def endpoints(config: EndpointConfig) -> Endpoints:
        """Its applications, by path."""
        return {"/ws": WebSocketEndpoint(config)}


Kind = type[StreamableHTTPTransport] | type[SSETransport] | type[WebSocketTransport]

KINDS: Final[Mapping[str, Kind]] = {
    "http": StreamableHTTPTransport,
    "sse": SSETransport,
    "websocket": WebSocketTransport,
}
"""The class of a conversation, by the transport on which it begins."""


class Host:
    """An ASGI application that serves MCP transports, and calls `serve` with each conversation that begins.

    `serve` runs for as long as its conversation lives: it is cancelled when that ends, and when it returns or fails the
    conversation ends. `kinds` are served; all of them, if none is named. `authenticate` turns request headers
    (lower-case names) into a verified identity or raises `Unauthorized`; without it everybody is anonymous, and only
    loopback names pass as Host and Origin unless `allowed_hosts` and `allowed_origins` name others. `pooling` bounds
    conversations; each has `serve` to itself, so `reuse` is "workflow".

    Raises:
        TypeError: `authenticate` would have to be awaited, or something is of another kind than it should be.
        ValueError: another `reuse`.
    """

    def __init__(
        self,
        serve: Serve,
        *kinds: Kind,
        authenticate: Authenticate | None = None,
        allowed_hosts: Sequence[str] = (),
        allowed_origins: Sequence[str] = (),
        pooling: Pooling | None = None,
    ) -> None:
        if not callable(serve):
            raise TypeError(
                "a Host is given the function that serves a conversation: Host(serve), without a call of it"
            )
        if not all(isinstance(kind, type) and issubclass(kind, _Conversation) for kind in kinds):
            raise TypeError("kinds are StreamableHTTPTransport, SSETransport and WebSocketTransport")
        for name, given in (("allowed_hosts", allowed_hosts), ("allowed_origins", allowed_origins)):
            if isinstance(given, str):
                raise TypeError(f"{name} is a list of texts, not one of them")
        refuse_coroutine("authenticate", authenticate)
        if pooling is not None and not isinstance(pooling, Pooling):
            raise TypeError("pooling is a Pooling(…)")
        pooling = pooling or Pooling()
        if pooling.reuse != "workflow":
            raise ValueError('each conversation of a Host is served by itself: reuse is "workflow"')
        upstream = Upstream(NAME, _Application(serve, self), pooling)
        self._pool = Pool({NAME: upstream}, MemoryDirectory(), pooling=pooling)
        self._loop: asyncio.AbstractEventLoop
        guard = Guard(loopback=True, allowed_hosts=allowed_hosts, allowed_origins=allowed_origins)
        config = EndpointConfig(
            NAME,
            self._pool,
            guard,
            _anonymous if authenticate is None else _checked(authenticate),
            anonymous_keys=authenticate is None and not allowed_hosts,
        )
        self._endpoints: Endpoints = {}
        for kind in kinds or tuple(KINDS.values()):
            self._endpoints.update(kind.endpoints(config))

    @property
    def conversations(self) -> int:
        """How many live."""
        return len(self._pool.workflows)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Host"]:
        """Serve for the length of the context; leaving it ends every conversation.

        Raises:
            RuntimeError: this host was run before, or there is no event loop of asyncio's.
        """
        if self._pool.has_begun:
            raise RuntimeError("this Host was run before, and runs once: make a new one")
        self._loop = running_loop("conversations")
        holding = Holding(self._pool.running())
        await holding.begin()
        try:
            yield self
        finally:
            await holding.end()

    @asynccontextmanager
    async def lifespan(self, app: object) -> AsyncIterator[None]:
        """The same, as Starlette and FastAPI want it."""
        async with self.running():
            yield

    async def end(self, workflow: Workflow) -> None:
        """End a conversation, from the application's side."""
        await self._pool.end(workflow, "closed")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, below the path that the host is mounted at; or be the whole application.

        Raises:
            RuntimeError: nobody runs this host, or it does not run on this event loop.
        """
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return
        if not self._pool.has_begun:
            raise RuntimeError("this Host does not run: give the application `lifespan=host.lifespan`")
        refuse_other_loop(self._loop)
        root, name = scope.get("root_path", ""), _name_below(scope)
        endpoint = self._endpoints.get(name)
        is_socket = name == "/ws"
        if endpoint is not None and (scope["type"] == "websocket") == is_socket:
            await endpoint({**scope, "path": f"{root}{name}"}, receive, send)
        elif scope["type"] == "websocket":
            await not_found(scope, receive, send)
        else:
            served = b", ".join(f"{root}{name}".encode() for name in self._endpoints)
            await respond(send, 404, [(b"content-type", b"text/plain")], b"MCP is served at " + served)

    async def _live(self, receive: Receive, send: Send) -> None:
        """From the start of the server to its end (ASGI, "Lifespan Protocol")."""
        await receive()
        async with self.running():
            await send({"type": "lifespan.startup.complete"})
            await receive()
        await send({"type": "lifespan.shutdown.complete"})


class _Application:
    """The application, as a server of the pool. Implements `Connector`."""

    def __init__(self, serve: Serve, host: Host) -> None:
        self._serve = serve
        self._host = host

    def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AbstractAsyncContextManager[Wire]:
        """See `Connector.connect`."""
        assert isinstance(receiver, Channel), "the pool connects channels"
        (workflow,) = receiver.owners
        assert isinstance(workflow, Workflow), "a dedicated channel serves one workflow"
        return self._converse(KINDS[workflow.transport](workflow, receiver, self._host.end))

    @asynccontextmanager
    async def _converse(self, conversation: _Conversation) -> AsyncIterator[Wire]:
        task = asyncio.get_running_loop().create_task(self._run(conversation))
        try:
            yield conversation
        finally:
            conversation.over()
            task.cancel()
            _, pending = await asyncio.wait([task], timeout=END_SECONDS)
            if pending:
                logger.error("the application goes on %g s after its conversation ended", END_SECONDS)

    async def _run(self, conversation: _Conversation) -> None:
        try:
            await self._serve(conversation)
        except Exception as error:
            if not (isinstance(error, _NotConnected) and conversation.is_over):  # it could not know that it has ended
                logger.exception("the application failed")
        finally:  # also where it was cancelled by what it waited for
            await conversation.disconnect()  # an end like any other, which says nothing of the next conversation


def _name_below(scope: Scope) -> str:
    """What is asked for, below the path that the host is mounted at.

    The path begins with the root path, as ASGI has it; or with a part of it, where a proxy has taken the rest away.
    """
    path: str = scope["path"]
    above, _, last = path.rpartition("/")
    return f"/{last}" if scope.get("root_path", "").endswith(above) else path


def _anonymous(headers: Mapping[str, str]) -> Principal:
    return ANONYMOUS


def _checked(authenticate: Authenticate) -> Authenticate:
    """The same; what it gives is a principal, or nobody is served by it."""

    def checked(headers: Mapping[str, str]) -> Principal:
        principal = authenticate(headers)
        if not isinstance(principal, Principal):
            raise TypeError(f"authenticate returns a Principal, or raises Unauthorized; it gave {kind_of(principal)}")
        return principal

    return checked
