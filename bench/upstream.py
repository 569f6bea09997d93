"""A lean MCP server over Streamable HTTP, so that what is measured is the gateway.

Run: `python -m bench.upstream --port 9301 [--delay-ms 5]`. `GET /recorder` tells what it saw, `DELETE` forgets it.
"""

import argparse
import asyncio
from collections import Counter
from typing import Any

import msgspec
import uvicorn

RESULT = {"content": [{"type": "text", "text": "x" * 340}], "isError": False}
TOOLS = {"tools": [{"name": "echo", "inputSchema": {"type": "object"}}]}


class Upstream:
    """The server, as an ASGI application. Each HTTP request takes `delay` seconds more; `streams` are GET streams."""

    def __init__(self, delay: float, *, streams: bool = True) -> None:
        self._delay = delay
        self._streams = streams
        self._counts: Counter[str] = Counter()
        self._sessions = 0
        self._floods: dict[bytes, asyncio.Queue[int]] = {}
        """Kibibytes that are due on the GET stream of each session."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/recorder":
            if scope["method"] == "DELETE":
                self._counts.clear()
            await self._send(send, 200, msgspec.json.encode(self._counts))
            return
        body = await _body(receive)
        if self._delay:
            await asyncio.sleep(self._delay)
        if scope["method"] != "POST":
            self._counts[scope["method"].lower()] += 1
            if scope["method"] != "GET":
                await self._send(send, 200, b"")
            elif self._streams:
                await self._listen(_session(scope), receive, send)
            else:
                await self._send(send, 405, b"")
            return
        message = msgspec.json.decode(body)
        if message.get("method") == "notifications/flood":
            self._floods.setdefault(_session(scope), asyncio.Queue()).put_nowait(message["params"]["kib"])
        await self._post(send, message)

    async def _post(self, send: Any, message: dict[str, Any]) -> None:
        method = message.get("method", "response")
        self._counts[{"tools/call": "call", "tools/list": "list"}.get(method, method)] += 1
        if "id" not in message or "method" not in message:
            await self._send(send, 202, b"")
            return
        headers: list[tuple[bytes, bytes]] = []
        result: object = RESULT
        if method == "initialize":
            self._sessions += 1
            headers.append((b"mcp-session-id", b"session-%d" % self._sessions))
            result = {
                "protocolVersion": message["params"]["protocolVersion"],
                "capabilities": {"tools": {}},
                "serverInfo": {"name": "bench", "version": "1"},
            }
        elif method == "tools/list":
            result = TOOLS
        elif method == "tools/call":
            result = {**RESULT, "structuredContent": message["params"]["arguments"]}
        answer = msgspec.json.encode({"jsonrpc": "2.0", "id": message["id"], "result": result})
        await self._send(send, 200, answer, headers)

    async def _listen(self, session: bytes, receive: Any, send: Any) -> None:
        """The GET stream: nothing, until a `notifications/flood` asks for so many kibibytes of notifications on it."""
        headers = [(b"content-type", b"text/event-stream")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b": here\n\n", "more_body": True})
        flood = asyncio.ensure_future(self._flood(session, send))
        while (await receive())["type"] != "http.disconnect":
            pass
        flood.cancel()

    async def _flood(self, session: bytes, send: Any) -> None:
        floods = self._floods.setdefault(session, asyncio.Queue())
        event = b'data: {"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"%b"}}\n\n'
        while True:
            for _ in range(await floods.get()):
                await send({"type": "http.response.body", "body": event % (b"x" * 1024), "more_body": True})

    async def _send(
        self, send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None
    ) -> None:
        head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})


def _session(scope: Any) -> bytes:
    return dict(scope["headers"]).get(b"mcp-session-id", b"")


async def _body(receive: Any) -> bytes:
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body"):
        message = await receive()
        body += message.get("body", b"")
    return body


def main() -> None:
    """Serve on loopback until the process is ended."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0, help="simulated network delay of each HTTP request")
    parser.add_argument("--no-streams", action="store_true", help="offer no GET stream")
    given = parser.parse_args()
    uvicorn.run(
        Upstream(given.delay_ms / 1000, streams=not given.no_streams),
        port=given.port,
        lifespan="off",
        ws="none",
        proxy_headers=False,
        access_log=False,
        log_level="warning",
    )


if __name__ == "__main__":
    main()
