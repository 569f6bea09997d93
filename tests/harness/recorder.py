"""A raw ASGI wrapper that counts what an MCP server is asked on the HTTP level.

It stands outside the SDK, so what it counts is what came over the wire. It answers, beside the server's own paths:

| request | what |
| --- | --- |
| `GET /__recorder` | everything recorded since the last reset, as JSON (see `Recorder.report`) |
| `GET /__recorder?wait=KIND&count=N&timeout=S` | the same, as soon as KIND was counted N times; 408 after S seconds |
| `DELETE /__recorder` | begin anew; what older sessions do from then on is counted as `earlier` only |
| `POST /__recorder/open?gate=NAME` | open a gate that a tool waits at |

Needs the standard library and anyio alone: it runs beside either line of the SDK.
"""

import json
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Literal
from urllib.parse import parse_qs

import anyio

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

PATH = "/__recorder"
SESSION_HEADER = "mcp-session-id"


class Recorder:
    """Wraps an ASGI app; records each of its HTTP requests, and marks that its tools make."""

    def __init__(self, app: App) -> None:
        self._app = app
        self._changed = anyio.Event()
        self._gates: dict[str, anyio.Event] = {}
        self._sessions: dict[str, None] = {}
        self._earlier_sessions: set[str] = set()
        self.reset()

    def reset(self) -> None:
        """Forget everything, and open every gate so that nothing waits for a test that is over."""
        self._earlier_sessions |= set(self._sessions)
        for gate in self._gates.values():
            gate.set()
        self._gates = {}
        self._sessions = {}
        self._counts: Counter[str] = Counter()
        self._earlier: Counter[str] = Counter()
        self._requests: list[dict[str, Any]] = []
        self._marks: list[dict[str, Any]] = []
        self._inside = 0
        self._peak = 0

    def mark(self, name: str, **data: Any) -> None:
        """Record that something happened inside the server; counted under `mark:NAME`."""
        self._marks.append({"name": name, **data})
        self._count(f"mark:{name}")

    async def gate(self, name: str) -> None:
        """Wait until the test opens the gate."""
        await self._gates.setdefault(name, anyio.Event()).wait()

    def open(self, name: str) -> None:
        """Let through who waits at the gate, and whoever comes later."""
        self._gates.setdefault(name, anyio.Event()).set()

    def report(self) -> dict[str, Any]:
        """What was recorded.

        `counts`: by kind (initialize, initialized, call, get, delete, notification, response, other), by JSON-RPC
        method (`method:NAME`) and by mark (`mark:NAME`). `sessions`: ids in order of birth. `requests`: one entry for
        each, with kind, method, tool, id (JSON text), session, headers (list of pairs) and status. `peak`: most
        JSON-RPC requests under way at once. `earlier`: what sessions from before the reset still did.
        """
        return {
            "counts": dict(self._counts),
            "sessions": list(self._sessions),
            "requests": self._requests,
            "marks": self._marks,
            "peak": self._peak,
            "earlier": dict(self._earlier),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["path"].startswith(PATH):
            await self._control(scope, send)
        elif scope["type"] == "http":
            await self._record(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _count(self, kind: str) -> None:
        self._counts[kind] += 1
        self._changed.set()
        self._changed = anyio.Event()

    async def _record(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        session = dict(headers).get(SESSION_HEADER)
        entry: dict[str, Any] = {"http": scope["method"], "session": session, "headers": headers, "status": None}
        body = bytearray()
        counted = False

        def begin() -> None:
            nonlocal counted
            entry.update(_described(scope["method"], bytes(body)))
            if session in self._earlier_sessions:
                self._earlier[entry["kind"]] += 1
                return
            counted = entry["kind"] in ("initialize", "call")
            self._requests.append(entry)
            self._count(entry["kind"])
            if "method" in entry:
                self._count(f"method:{entry['method']}")
            if counted:
                self._inside += 1
                self._peak = max(self._peak, self._inside)

        def end() -> None:
            nonlocal counted
            if counted:
                counted = False
                self._inside -= 1

        async def recording_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request" and "kind" not in entry:
                body.extend(message.get("body", b""))
                if not message.get("more_body", False):
                    begin()
            return message

        async def recording_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                entry["status"] = message["status"]
                for name, value in message["headers"]:
                    if name.lower() == b"mcp-session-id" and session is None:
                        self._sessions[value.decode("latin-1")] = None
                        entry["session"] = value.decode("latin-1")
            else:
                body_part = message.get("body", b"")
                if b'"result"' in body_part or b'"error"' in body_part or not message.get("more_body", False):
                    end()  # whoever reads this may make the next call before this one's stream has ended
            await send(message)

        if scope["method"] != "POST":
            begin()
        try:
            await self._app(scope, recording_receive, recording_send)
        finally:
            end()

    async def _control(self, scope: Scope, send: Send) -> None:
        query = {name: values[-1] for name, values in parse_qs(scope["query_string"].decode()).items()}
        status = 200
        if scope["method"] == "DELETE":
            self.reset()
        elif scope["method"] == "POST":
            self.open(query["gate"])
        elif "wait" in query:
            with anyio.move_on_after(float(query.get("timeout", 10))) as patience:
                while self._counts[query["wait"]] < int(query.get("count", 1)):
                    await self._changed.wait()
            status = 408 if patience.cancelled_caught else 200
        body = json.dumps(self.report()).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _described(http_method: str, body: bytes) -> dict[str, Any]:
    """What a request is: its kind, and the JSON-RPC method, tool and id (as JSON text) it carries."""
    if http_method in ("GET", "DELETE"):
        return {"kind": http_method.lower()}
    try:
        message = json.loads(body)
    except ValueError:
        return {"kind": "other"}
    if not isinstance(message, dict):
        return {"kind": "other"}
    method = message.get("method")
    if not isinstance(method, str):
        return {"kind": "response" if "result" in message or "error" in message else "other"}
    described: dict[str, Any] = {"method": method, "id": json.dumps(message["id"]) if "id" in message else None}
    if method == "tools/call":
        described["tool"] = message["params"]["name"]
    if "id" in message:
        described["kind"] = "initialize" if method == "initialize" else "call"
    else:
        described["kind"] = "initialized" if method == "notifications/initialized" else "notification"
    return described


def serve(app: App, fd: int, *, http: Literal["auto", "h11"] = "auto") -> None:
    """Serve `app` on the inherited listening socket `fd` until the process is ended."""
    import socket

    import uvicorn

    # Connections stay open for long: what closes them in a test is the peer under test.
    config = uvicorn.Config(app, http=http, log_level="warning", timeout_keep_alive=60, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=fd)])
