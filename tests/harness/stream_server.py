"""A small MCP server on either line of the SDK, over a transport with one stream: HTTP+SSE, WebSocket (1.x), stdio.

Run: `PYTHON -m harness.stream_server sse|websocket LISTENING_SOCKET`, or `… stdio`. `/health` tells that it is there.

| tool | what |
| --- | --- |
| `add` | the sum of `a` and `b` |
| `report` | three reports of progress |
| `forever` | never returns |
| `pid` | the id of the process |
| `spawn` | starts a child that ignores everything, and returns its process id |
| `environment` | the names in its environment |
"""
# mypy: ignore-errors
# (One text for two lines of the SDK: the checker sees the 2.x line.)

import os
import socket
import subprocess
import sys

import anyio

try:
    from mcp.server.mcpserver import Context, MCPServer
except ImportError:  # the 1.x line
    from mcp.server.fastmcp import Context
    from mcp.server.fastmcp import FastMCP as MCPServer

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"


def build():
    """The server."""
    server = MCPServer("streams", log_level="WARNING")

    @server.tool()
    async def add(a: int, b: int) -> int:
        return a + b

    @server.tool()
    async def report(ctx: Context) -> str:
        for step in (1, 2, 3):
            await ctx.report_progress(step, 3)
        return "done"

    @server.tool()
    async def forever() -> str:
        print("started", file=sys.stderr, flush=True)
        await anyio.sleep_forever()

    @server.tool()
    async def pid() -> int:
        return os.getpid()

    @server.tool()
    def spawn() -> int:
        child = subprocess.Popen([sys.executable, "-c", STUBBORN], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
        child.stdout.readline()
        return child.pid

    @server.tool()
    async def environment() -> str:
        return " ".join(sorted(os.environ))

    return server


def over_websocket(server):
    """The application of the 1.x line's deprecated transport."""
    from mcp.server.websocket import websocket_server

    inner = server._mcp_server

    async def app(scope, receive, send):
        async with websocket_server(scope, receive, send) as (reading, writing):
            await inner.run(reading, writing, inner.create_initialization_options())

    return app


def healthy(app):
    """The application, and that it is there."""

    async def answering(scope, receive, send):
        if scope["type"] == "http" and scope["path"] == "/health":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})
        else:
            await app(scope, receive, send)

    return answering


if __name__ == "__main__":
    transport, *rest = sys.argv[1:]
    if transport == "stdio":
        build().run("stdio")
    else:
        import uvicorn

        app = build().sse_app() if transport == "sse" else over_websocket(build())
        config = uvicorn.Config(healthy(app), log_level="warning", lifespan="off", timeout_graceful_shutdown=1)
        uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(rest[0]))])
