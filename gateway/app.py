"""The composition root: the one place that builds everything, from settings to a listening gateway."""

import logging
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Final

import anyio
import msgspec
import uvicorn
from anyio.abc import TaskGroup

from ..compat.per_request import PerRequestLine
from ..mux.directory.memory import MemoryDirectory
from ..mux.directory.timed import TimedDirectory
from ..mux.limits import MAX_BODY_BYTES
from ..mux.line import ChannelMaker
from ..mux.lines import Upstream
from ..mux.pool import Pool
from ..mux.ports import Line
from ..mux.statistics import Statistics
from ..transports.asgi import ASGIApp, Receive, Scope, Send
from ..transports.endpoint import EndpointConfig
from ..transports.guard import Guard
from ..transports.modern import ModernEndpoint, ModernRequests
from ..transports.sse import SSEEndpoint
from ..transports.streamable_http import StreamableHTTPEndpoint
from ..transports.upstream.auto import AutoConnector, ClosableConnector, connector_for
from ..transports.upstream.modern_http import ModernHTTPServer
from ..transports.websocket import WebSocketEndpoint, not_found
from .auth import Authenticator
from .bounded_http import BoundedHTTP
from .oauth import credential_for
from .operations import operations_app
from .settings import Server, Settings, SettingsError, is_loopback
from .telemetry import tracing
from .tickets import TicketEndpoint
from .websockets import PingingWebSocket

logger = logging.getLogger(__name__)

GRACE_SECONDS: Final = 5
"""After the drain, how long open connections may take to end."""

BACKLOG: Final = 2048
PREFIX: Final = "/servers/"


class Gateway:
    """A gateway that is built but not listening: an ASGI application and the pool behind it.

    It serves between entering and leaving `running`.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.statistics = Statistics()
        self._tracer = tracing()
        self._connectors = {name: self._connector(name, server) for name, server in settings.servers.items()}
        self.pool = Pool(
            {name: self._upstream(name, server) for name, server in settings.servers.items()},
            TimedDirectory(MemoryDirectory(), self.statistics),
            pooling=settings.pooling,
            statistics=self.statistics,
        )
        self._authenticator = authenticator = Authenticator(settings)
        listener = settings.gateway
        guard = Guard(
            loopback=is_loopback(listener.host),
            allowed_hosts=listener.allowed_hosts,
            allowed_origins=listener.allowed_origins,
        )
        self._modern = {
            name: self._modern_requests(name, server)
            for name, server in settings.servers.items()
            if "modern" in server.eras and server.url.startswith(("http://", "https://"))
        }
        self._http: dict[str, ASGIApp] = {}
        self._websocket: dict[str, ASGIApp] = {}
        for name, server in settings.servers.items():
            config = EndpointConfig(
                server=name,
                pool=self.pool,
                guard=guard,
                authenticate=partial(authenticator.authenticate, server=name),
                anonymous_keys=is_loopback(listener.host),
                forward_headers=tuple(header.lower() for header in server.forward_headers),
                session_headers=tuple(header.lower() for header in server.session_headers),
                modern=self._modern.get(name),
                tracer=self._tracer,
            )
            if "legacy" not in server.eras:
                self._http[f"{PREFIX}{name}/mcp"] = ModernEndpoint(config, self._modern[name])
                continue
            streams = replace(config, authenticate=partial(authenticator.authenticate, server=name, tickets=True))
            sse = SSEEndpoint(config, streams)
            self._http[f"{PREFIX}{name}/ticket"] = TicketEndpoint(config, authenticator.tickets)
            self._http[f"{PREFIX}{name}/mcp"] = StreamableHTTPEndpoint(config)
            self._http[f"{PREFIX}{name}/sse"] = sse.stream
            self._http[f"{PREFIX}{name}/message"] = sse.messages
            self._websocket[f"{PREFIX}{name}/ws"] = WebSocketEndpoint(streams)
        self._operations = operations_app(self.pool, settings, guard, authenticator, beside=self._beside)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection: an MCP endpoint by its path, everything else by the operations application."""
        path = scope.get("path", "")
        if scope["type"] == "websocket":
            endpoint = self._websocket.get(path, not_found)
        else:
            endpoint = self._http.get(path, self._operations)
        await endpoint(scope, receive, send)

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Gateway"]:
        """The gateway with its pool, for the length of the context."""
        async with AsyncExitStack() as stack:
            for connector in self._connectors.values():
                stack.push_async_callback(connector.close)
            for requests in self._modern.values():
                stack.push_async_callback(requests.close)
            if self._authenticator.jwt is not None:
                tasks = await stack.enter_async_context(anyio.create_task_group())
                stack.callback(tasks.cancel_scope.cancel)
                tasks.start_soon(self._authenticator.jwt.keys.run)
            await stack.enter_async_context(self.pool.running())
            yield self

    async def drain(self, timeout: float) -> bool:
        """Take nothing new; wait until every call has ended, at most `timeout` seconds. True if none was cut (G8)."""
        complete: list[bool] = []

        async def drain(requests: ModernRequests) -> None:
            complete.append(await requests.drain(timeout))

        async with anyio.create_task_group() as tasks:
            for requests in self._modern.values():
                tasks.start_soon(drain, requests)
            complete.append(await self.pool.drain(timeout))
        return all(complete)

    def _beside(self, name: str) -> int:
        """Requests of a server that are under way without a session."""
        return self._modern[name].inflight if name in self._modern else 0

    def _connector(self, name: str, server: Server) -> ClosableConnector:
        return connector_to(name, server, self.statistics)

    def _modern_requests(self, name: str, server: Server) -> ModernRequests:
        connector = self._connectors[name]
        assert isinstance(connector, AutoConnector), "only those speak this era"
        streamable = connector.streamable
        pooling = self.settings.pooling_for(name)
        return ModernRequests(
            name,
            ModernHTTPServer(
                name, streamable.http, streamable.headers, self.statistics, timeout=pooling.request_timeout
            ),
            self.statistics,
            max_inflight=pooling.max_inflight_per_workflow,
            headers=tuple(header.lower() for header in (*server.forward_headers, *server.session_headers)),
            tracer=self._tracer,
        )

    def _upstream(self, name: str, server: Server) -> Upstream:
        pooling = self.settings.pooling_for(name)
        habits = self.settings.compat.sdk_habits

        def per_request(make_channel: ChannelMaker) -> Line:
            return PerRequestLine(make_channel, habits=habits)

        return Upstream(
            name=name,
            connector=self._connectors[name],
            pooling=pooling,
            stateless=server.stateless,
            trust_annotations=server.trust_annotations,
            credential=server.oauth.identity if server.oauth is not None else "",
            make_line=per_request if pooling.reuse == "none" else None,
        )


def connector_to(name: str, server: Server, statistics: Statistics) -> ClosableConnector:
    """What opens sessions with a server, by its settings.

    Raises:
        SettingsError: they ask for what the SDK that is installed cannot do.
    """
    if server.process:
        return connector_for(name, statistics, command=server.process)
    credential = credential_for(name, server, statistics)
    return connector_for(name, statistics, url=server.url, headers=server.headers, ca=server.ca, credential=credential)


async def serve(settings: Settings, *, demo: bool, on_ready: Callable[[str], None]) -> None:
    """Run a gateway until SIGTERM or SIGINT, then drain it (guarantee G8).

    With `demo`, the built-in server runs beside it. `on_ready` is called with the gateway's URL once it listens.

    Raises:
        SettingsError: the address cannot be listened on.
    """
    async with AsyncExitStack() as stack:
        listener = stack.enter_context(_listen(settings))  # first: the demo's tasks would wrap its error
        if demo:
            from .demo import serve_demo

            url = await stack.enter_async_context(serve_demo())
            settings = msgspec.structs.replace(
                settings, servers={**settings.servers, "demo": Server(url=url, eras=("legacy",))}
            )
        gateway = await stack.enter_async_context(Gateway(settings).running())
        tls = settings.gateway.tls
        config = uvicorn.Config(
            gateway,
            http=BoundedHTTP,
            lifespan="off",
            ws=PingingWebSocket,
            ws_max_size=MAX_BODY_BYTES,
            ws_per_message_deflate=False,
            proxy_headers=False,
            server_header=False,
            access_log=False,
            log_config=None,
            backlog=BACKLOG,
            ssl_certfile=tls.cert or None,
            ssl_keyfile=tls.key or None,
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        host, port = listener.getsockname()[:2]
        scheme = "https" if tls.cert else "http"
        shown = f"[{host}]" if ":" in host else host
        server = _Server(config, lambda: on_ready(f"{scheme}://{shown}:{port}"))
        async with anyio.create_task_group() as tasks:
            await tasks.start(_drain_on_signal, gateway, server, tasks)
            await server.serve(sockets=[listener])
            tasks.cancel_scope.cancel()


class _Server(uvicorn.Server):
    """uvicorn, telling when it listens, and leaving the signals to the gateway."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._on_ready = on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._on_ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _drain_on_signal(
    gateway: Gateway,
    server: _Server,
    tasks: TaskGroup,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    async def drain() -> None:
        complete = await gateway.drain(gateway.settings.gateway.drain_timeout)
        logger.info("drained" if complete else "drain_timeout has passed: calls in flight were cut")
        server.should_exit = True

    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        first = True
        async for received in signals:
            if first:
                logger.info("%s: draining", signal.Signals(received).name)
                tasks.start_soon(drain)
                first = False
            else:
                logger.warning("%s again: leaving at once", signal.Signals(received).name)
                server.should_exit = server.force_exit = True


@contextmanager
def _listen(settings: Settings) -> Iterator[socket.socket]:
    host, port = settings.gateway.host, settings.gateway.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise SettingsError("gateway.port", f"cannot listen on {host}:{port}: {reason}") from error
    with listener:
        yield listener
