"""The endpoints of two servers in memory, `x` and `y`, on a real socket: uvicorn in the test's own event loop."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from trunkline.gateway.http_listening import HTTPListening
from trunkline.gateway.websockets import PingingWebSocket
from trunkline.mux.limits import MAX_BODY_BYTES
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import ASGIApp, Receive, Scope, Send
from trunkline.transports.endpoint import EndpointConfig
from trunkline.transports.guard import Guard
from trunkline.transports.sse import SSEEndpoint
from trunkline.transports.streamable_http import StreamableHTTPEndpoint
from trunkline.transports.websocket import WebSocketEndpoint

from harness import in_process
from harness.changing import until
from harness.endpoint_bench import authenticate
from harness.muxing import Bench, bench


class Served:
    """The endpoints, where they listen, and the bench behind them."""

    def __init__(self, at: Bench, endpoints: "Endpoints", port: int) -> None:
        self.bench = at
        self.endpoints = endpoints
        self.server = at.server
        self.pool = at.pool
        self.counts = at.counts
        self.port = port

    def base(self, name: str = "x") -> str:
        """The URL of a server without its last part."""
        return f"http://127.0.0.1:{self.port}/servers/{name}"

    async def until_detached(self, workflows: int = 1) -> None:
        """Wait until the server has noticed that no client is there."""
        await until(
            lambda: len(self.pool.workflows) == workflows and not any(one.is_attached for one in self.pool.workflows)
        )


class Endpoints:
    """One application over the paths of all servers."""

    def __init__(self, at: Bench, guard: Guard, options: Mapping[str, Any]) -> None:
        self.apps: dict[tuple[str, str], ASGIApp] = {}
        for name in at.pool.upstreams:
            config = EndpointConfig(name, at.pool, guard, authenticate, **options)
            sse = SSEEndpoint(config)
            self.apps["http", f"/servers/{name}/mcp"] = StreamableHTTPEndpoint(config)
            self.apps["http", f"/servers/{name}/sse"] = sse.stream
            self.apps["http", f"/servers/{name}/message"] = sse.messages
            self.apps["websocket", f"/servers/{name}/ws"] = WebSocketEndpoint(config)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        await self.apps[scope["type"], path](scope, receive, send)


@asynccontextmanager
async def serving(app: Any, *, ws: Any = PingingWebSocket, **options: Any) -> AsyncIterator[int]:
    """An ASGI application under uvicorn, as the gateway serves it; its port."""
    options.setdefault("http", HTTPListening(Statistics()).protocol)
    async with in_process.serving(
        app, ws=ws, ws_max_size=MAX_BODY_BYTES, ws_per_message_deflate=False, lifespan="off", **options
    ) as port:
        yield port


@asynccontextmanager
async def listening(
    *,
    guard: Guard | None = None,
    options: Mapping[str, Any] | None = None,
    uvicorn_options: Mapping[str, Any] | None = None,
    **pooling: Any,
) -> AsyncIterator[Served]:
    """The endpoints over a bench; `options` are those of `EndpointConfig`."""
    async with bench(**pooling) as at:
        app = Endpoints(at, guard or Guard(loopback=True), options or {})
        async with serving(app, **(uvicorn_options or {})) as port:
            yield Served(at, app, port)
