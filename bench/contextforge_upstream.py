"""The MCP server behind ContextForge in the benchmark: it counts what it is asked, and keeps a counter a session.

Run: `python -m bench.contextforge_upstream --port 9302`. `GET /recorder` tells what it saw, `DELETE` forgets it, `POST`
forgets every session, as a restart would. Tools: `counter` (1, 2, 3 … in a session), `echo`, `sleep`.
"""

import argparse
import asyncio
from collections import Counter
from typing import Any

import msgspec
import uvicorn

TOOLS = [
    {"name": name, "description": about, "inputSchema": {"type": "object", "properties": properties}}
    for name, about, properties in (
        ("counter", "Counts the calls of a session.", {}),
        ("echo", "Gives back a text.", {"text": {"type": "string"}}),
        ("sleep", "Takes so many seconds.", {"seconds": {"type": "number"}}),
    )
]


class Upstream:
    """The server, as an ASGI application."""

    def __init__(self) -> None:
        self._seen: Counter[str] = Counter()
        self._counters: dict[str, int] = {}
        self._born = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        if scope["path"] == "/recorder":
            await self._control(scope["method"], send)
            return
        session = dict(scope["headers"]).get(b"mcp-session-id", b"").decode()
        if scope["method"] == "POST":
            await self._post(session, msgspec.json.decode(await _body(receive)), send)
            return
        self._seen[scope["method"].lower()] += 1
        if scope["method"] == "DELETE":
            self._counters.pop(session, None)
            await _send(send, 200, b"")
        else:
            await _listen(receive, send)

    async def _control(self, method: str, send: Any) -> None:
        if method == "DELETE":
            self._seen.clear()
        elif method == "POST":
            self._counters.clear()
        await _send(send, 200, msgspec.json.encode({**self._seen, "open": len(self._counters)}))

    async def _post(self, session: str, message: dict[str, Any], send: Any) -> None:
        method = message.get("method", "response")
        self._seen[method] += 1
        headers: list[tuple[bytes, bytes]] = []
        if method == "initialize":
            self._born += 1
            session = f"session-{self._born}"
            self._counters[session] = 0
            headers.append((b"mcp-session-id", session.encode()))
        elif session not in self._counters:
            await _send(send, 404, b"")
            return
        if "id" not in message or "method" not in message:
            await _send(send, 202, b"")
            return
        answer = {"jsonrpc": "2.0", "id": message["id"], **await self._answer(session, message)}
        await _send(send, 200, msgspec.json.encode(answer), headers)

    async def _answer(self, session: str, message: dict[str, Any]) -> dict[str, Any]:
        params = message.get("params") or {}
        match message["method"]:
            case "initialize":
                info = {"name": "counting", "version": "1"}
                revision = params["protocolVersion"]
                return {"result": {"protocolVersion": revision, "capabilities": {"tools": {}}, "serverInfo": info}}
            case "tools/list":
                return {"result": {"tools": TOOLS}}
            case "tools/call":
                text = await self._call(session, params["name"], params.get("arguments") or {})
                return {"result": {"content": [{"type": "text", "text": text}], "isError": False}}
            case "ping":
                return {"result": {}}
        return {"error": {"code": -32601, "message": "Method not found"}}

    async def _call(self, session: str, name: str, arguments: dict[str, Any]) -> str:
        if name == "counter":
            self._counters[session] += 1
            return str(self._counters[session])
        if name == "sleep":
            await asyncio.sleep(arguments["seconds"])
        return str(arguments.get("text", ""))


async def _listen(receive: Any, send: Any) -> None:
    head = [(b"content-type", b"text/event-stream")]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": b": here\n\n", "more_body": True})
    while (await receive())["type"] != "http.disconnect":
        pass


async def _send(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    head = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": head})
    await send({"type": "http.response.body", "body": body})


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
    given = parser.parse_args()
    uvicorn.run(Upstream(), port=given.port, lifespan="off", ws="none", access_log=False, log_level="warning")


if __name__ == "__main__":
    main()
