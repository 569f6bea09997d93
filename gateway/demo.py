"""The demo's MCP server: small, real, and with tools that show what a session is for.

Made with the SDK, of its 2.x line or its 1.x line; it speaks Streamable HTTP on loopback beside the gateway.
"""

import random
import socket
from collections import OrderedDict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Annotated, Any, Final

import anyio
import uvicorn
from pydantic import BaseModel, Field

from ..transports.asgi import ASGIApp

try:
    from mcp.server.mcpserver import Context, MCPServer
except ImportError:  # the 1.x line has the same under other names
    from mcp.server.fastmcp import Context  # type: ignore[attr-defined,no-redef,unused-ignore]
    from mcp.server.fastmcp import FastMCP as MCPServer  # type: ignore[attr-defined,no-redef,unused-ignore]

if TYPE_CHECKING:
    AnyContext = Context[Any]
else:  # the 1.x line has three parameters there
    AnyContext = Context

MAX_COUNTERS: Final = 10_000
"""Sessions whose counters are remembered; the oldest is forgotten."""

PORTS: Final = range(20_000, 32_000)
"""Below the ephemeral range: a probe of a port in it could connect to itself."""

END_SECONDS: Final = 3.0
"""How long it may take to end; uvicorn gives its connections a second of it."""


class Answer(BaseModel):
    """What `ask` asks its user for."""

    name: str = Field(description="your name")


def demo_app() -> ASGIApp:
    """The demo server as an ASGI application; its lifespan must run."""
    server = MCPServer("trunkline-demo", instructions="Tools that show what a kept session is for.")
    counters: OrderedDict[str, int] = OrderedDict()

    @server.tool()
    async def counter(ctx: AnyContext) -> int:
        """Count the calls of this MCP session: 1, 2, 3, …"""
        session = ctx.request_context.request.headers.get("mcp-session-id", "")  # type: ignore[union-attr]
        counters[session] = counters.pop(session, 0) + 1
        if len(counters) > MAX_COUNTERS:
            counters.popitem(last=False)
        return counters[session]

    @server.tool()
    async def echo(text: str) -> str:
        """Say the same."""
        return text

    @server.tool()
    async def slow(
        ctx: AnyContext,
        steps: Annotated[int, Field(ge=1, le=100)] = 5,
        seconds: Annotated[float, Field(ge=0, le=60)] = 2.0,
    ) -> str:
        """Take `seconds` in all, and report progress after each of `steps`."""
        for step in range(1, steps + 1):
            await anyio.sleep(seconds / steps)
            await ctx.report_progress(step, steps)
        return f"{steps} steps in {seconds:g} s"

    @server.tool()
    async def ask(ctx: AnyContext) -> str:
        """Ask the user for a name, by elicitation."""
        reply = await ctx.elicit("Who is there?", Answer)
        return f"Hello, {reply.data.name}!" if reply.action == "accept" else f"The user chose to {reply.action}."

    app: ASGIApp = server.streamable_http_app()
    return app


@asynccontextmanager
async def serve_demo() -> AsyncIterator[str]:
    """The demo server on a loopback port of its own, for the length of the context; its URL."""
    with _free_listener() as listener:
        config = uvicorn.Config(
            demo_app(),
            lifespan="on",
            ws="none",
            proxy_headers=False,
            access_log=False,
            log_config=None,
            timeout_graceful_shutdown=1,
        )
        server = _QuietServer(config)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listener])
            try:
                await server.listening.wait()
                yield f"http://127.0.0.1:{listener.getsockname()[1]}/mcp"
            finally:  # it ends by itself, whatever ends the context: cancelled, it would tell the log of that
                server.should_exit = True
                with anyio.move_on_after(END_SECONDS, shield=True):
                    await server.ended.wait()


class _QuietServer(uvicorn.Server):
    """uvicorn beside another server: it leaves the signals alone and tells when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = anyio.Event()
        self.ended = anyio.Event()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self.ended.set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _free_listener() -> socket.socket:
    for port in random.sample(PORTS, len(PORTS)):
        try:
            return socket.create_server(("127.0.0.1", port))
        except OSError:
            continue
    raise OSError(f"no free port in {PORTS}")
