"""The WebSocket transport of the SDK's 1.x line, both ends of it.

Run: `PYTHON_OF_1X -m harness.ws_sdk1 --fd LISTENING_SOCKET` serves `counter` and `hold` at /ws, without sessions;
`PYTHON_OF_1X -m harness.ws_sdk1 URL CALLS` calls `counter` so often, and prints the texts as JSON.
"""
# mypy: ignore-errors
# (The checker sees the 2.x line, in which these names do not exist.)

import argparse
import json
import sys
import warnings

import anyio
import uvicorn
from mcp import ClientSession
from mcp.client.websocket import websocket_client
from mcp.server.fastmcp import FastMCP
from mcp.server.websocket import websocket_server
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route


def build():
    """A server whose state lives as long as it does."""
    server = FastMCP("ws-sdk1", log_level="WARNING")
    count = 0

    @server.tool()
    async def counter() -> int:
        """Count."""
        nonlocal count
        count += 1
        return count

    @server.tool()
    async def hold() -> str:
        """Never return."""
        await anyio.sleep_forever()
        return ""

    async def ws(scope, receive, send):
        async with websocket_server(scope, receive, send) as (read, write):
            inner = server._mcp_server
            await inner.run(read, write, inner.create_initialization_options())

    async def ready(request):
        return PlainTextResponse("ready")

    http = Starlette(routes=[Route("/ready", ready)])

    async def serve(scope, receive, send):
        await (ws if scope["type"] == "websocket" else http)(scope, receive, send)

    return serve


async def play(url, calls):
    """What `counter` says, so often."""
    async with websocket_client(url) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        return [(await session.call_tool("counter")).content[0].text for _ in range(calls)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[1] == "--fd":
        parser = argparse.ArgumentParser()
        parser.add_argument("--fd", type=int, required=True)
        uvicorn.run(build(), fd=parser.parse_args().fd, log_level="warning")
    else:
        print(json.dumps(anyio.run(play, sys.argv[1], int(sys.argv[2]))))
