"""What a client of ContextForge meets, measured with the SDK's own clients. Needs the SDK's 1.x line with `ws`.

Run: `PYTHON_OF_1X bench/contextforge_client.py SCENARIO URL TRANSPORT --token TOKEN [--count N] [--sessions N]`. It
prints one line of JSON. TRANSPORT is http, sse or ws.
"""

import argparse
import asyncio
import functools
import json
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.client.streamable_http import streamablehttp_client
from websockets.asyncio.client import connect as websocket_connect

WAIT_SECONDS = 30


@asynccontextmanager
async def session(given: argparse.Namespace, token: str) -> AsyncIterator[ClientSession]:
    """A session of the SDK's client, initialized."""
    headers = {"Authorization": f"Bearer {token}"}
    async with AsyncExitStack() as stack:
        if given.transport == "http":
            read, write, _ = await stack.enter_async_context(streamablehttp_client(given.url, headers=headers))
        elif given.transport == "sse":
            read, write = await stack.enter_async_context(sse_client(given.url, headers=headers))
        else:
            from mcp.client import websocket

            connect = functools.partial(websocket_connect, additional_headers=headers)
            websocket.ws_connect = connect  # the SDK's client has no place for headers
            url = f"{given.url}?token={token}"  # which 0.9.0 wants
            read, write = await stack.enter_async_context(websocket.websocket_client(url))
        opened = await stack.enter_async_context(ClientSession(read, write))
        async with asyncio.timeout(WAIT_SECONDS):
            await opened.initialize()
        yield opened


async def call(opened: ClientSession, name: str, **arguments: Any) -> str:
    """The text that a tool gives; the session's list of tools is not asked for."""
    opened._tool_output_schemas.setdefault(name, None)
    async with asyncio.timeout(WAIT_SECONDS):
        result = await opened.call_tool(name, arguments)
    text = result.content[0].text if result.content else ""
    if result.isError or not result.content:
        raise RuntimeError(f"{name}: {text or 'no content'}")
    return str(text)


async def calls(given: argparse.Namespace) -> dict[str, Any]:
    """So many calls in each of so many sessions, one after another."""
    took: list[float] = []
    for _ in range(given.sessions):
        async with session(given, given.token) as opened:
            took += [await timed(opened, given) for _ in range(given.count)]
    return figures(took)


async def paired(given: argparse.Namespace) -> dict[str, Any]:
    """So many calls in a session of one gateway, and by turns as many in one of another: both meet the same machine."""
    other = argparse.Namespace(**{**vars(given), "url": given.other_url})
    took: tuple[list[float], list[float]] = [], []
    async with session(given, given.token) as first, session(other, given.token) as second:
        for _ in range(given.count):
            took[0].append(await timed(first, given))
            took[1].append(await timed(second, given))
    return {"first": figures(took[0]), "second": figures(took[1])}


async def timed(opened: ClientSession, given: argparse.Namespace) -> float:
    """The seconds that a call takes, or a ping: it goes the same way through the gateway, and asks no server."""
    began = time.perf_counter()
    if given.what == "pings":
        async with asyncio.timeout(WAIT_SECONDS):
            await opened.send_ping()
    else:
        await call(opened, given.prefix + "echo", text="x")
    return time.perf_counter() - began


def figures(took: list[float]) -> dict[str, Any]:
    """What is told of so many durations."""
    ordered = sorted(took)
    return {
        "calls": len(took),
        "p50_ms": round(statistics.median(took) * 1000, 2),
        "p99_ms": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] * 1000, 2),
    }


async def together(given: argparse.Namespace) -> dict[str, Any]:
    """So many calls of half a second at once, in one session."""
    async with session(given, given.token) as opened:
        await call(opened, given.prefix + "echo", text="x")
        began = time.perf_counter()
        await asyncio.gather(*(call(opened, given.prefix + "sleep", seconds=0.5) for _ in range(given.count)))
        return {"seconds": round(time.perf_counter() - began, 2)}


async def counters(given: argparse.Namespace) -> dict[str, Any]:
    """Three calls of the counter by turns in two sessions, of one user or of two."""
    other = given.other_token or given.token
    async with session(given, given.token) as first, session(given, other) as second:
        seen: list[list[str]] = [[], []]
        for _ in range(3):
            seen[0].append(await call(first, given.prefix + "counter"))
            seen[1].append(await call(second, given.prefix + "counter"))
    return {"first": seen[0], "second": seen[1]}


SCENARIOS = {"calls": calls, "paired": paired, "together": together, "counters": counters}


def main() -> None:
    """Run one scenario."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scenario", choices=sorted(SCENARIOS))
    parser.add_argument("url")
    parser.add_argument("transport", choices=["http", "sse", "ws"])
    parser.add_argument("--token", required=True)
    parser.add_argument("--other-token", default="")
    parser.add_argument("--other-url", default="", help="of the gateway that `paired` calls by turns")
    parser.add_argument("--prefix", default="up-", help="what the gateway puts before the names of tools")
    parser.add_argument("--what", choices=["calls", "pings"], default="calls")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--sessions", type=int, default=1)
    given = parser.parse_args()
    try:
        print(json.dumps(asyncio.run(SCENARIOS[given.scenario](given))))
    except BaseException as error:
        causes = [error]
        while isinstance(causes[-1], BaseExceptionGroup):
            causes.append(causes[-1].exceptions[0])
        print(json.dumps({"failed": f"{type(causes[-1]).__name__}: {str(causes[-1])[:200]}"}))


if __name__ == "__main__":
    main()
