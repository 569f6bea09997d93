"""A server of the SDK with tools that show what a proxy keeps: a counter, progress, a question, a cancellation.

Run: `python -m bench.peers.server --port 9303`, or `--stdio`. Each session counts for itself; over stdio the process is
the session.
"""

import argparse
from collections import Counter
from typing import Any

import anyio
import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from pydantic import BaseModel


class Name(BaseModel):
    """What is asked for."""

    name: str


def server() -> MCPServer:
    """The server."""
    made = MCPServer("peers")
    counted: Counter[str] = Counter()
    cancelled: Counter[str] = Counter()

    @made.tool()
    async def counter(ctx: Context[Any]) -> int:
        """Count the calls of this session."""
        counted[session(ctx)] += 1
        return counted[session(ctx)]

    @made.tool()
    async def late(text: str, seconds: float) -> str:
        """Say the same, later."""
        await anyio.sleep(seconds)
        return text

    @made.tool()
    async def steps(ctx: Context[Any]) -> str:
        """Report progress three times."""
        for step in range(1, 4):
            await ctx.report_progress(step, 3)
        return "done"

    @made.tool()
    async def ask(ctx: Context[Any]) -> str:
        """Ask the client back."""
        reply = await ctx.elicit("Who is there?", Name)
        return reply.data.name if reply.action == "accept" else reply.action

    @made.tool()
    async def hang(token: str) -> str:
        """Last until it is cancelled."""
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            cancelled[token] += 1
            raise
        return "never"

    @made.tool()
    async def cancellations(token: str) -> int:
        """How many calls of `hang` with this token were cancelled."""
        return cancelled[token]

    return made


def session(ctx: Context[Any]) -> str:
    """The session of a call, by the server's own id."""
    request = ctx.request_context.request
    return request.headers.get("mcp-session-id", "") if request is not None else ""


def main() -> None:
    """Serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=9303)
    parser.add_argument("--stdio", action="store_true")
    given = parser.parse_args()
    if given.stdio:
        server().run("stdio")
    else:
        uvicorn.run(server().streamable_http_app(), host="127.0.0.1", port=given.port, log_level="error")


if __name__ == "__main__":
    main()
