"""ContextForge's own `/rpc`, asked within the process: the same middleware, authentication and rules, no loopback."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any, Final

from ...mux.errors import TrunklineError
from ...mux.limits import MAX_EVENT_BYTES
from ...transports.asgi import ASGIApp
from .asked import Incoming, carried_by
from .direct import PATH
from .once import PASSED, WITHIN, passed

NOT_COPIED: Final = frozenset(
    {
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "host",
        "last-event-id",
        "mcp-session-id",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "te",
        "transfer-encoding",
        "upgrade",
        "x-forwarded-internally",
        "x-mcp-session-id",
    }
)
"""What belongs to the connection that a message came on, and not to the message."""

NOT_ALLOWED: Final = -32001


class RPC:
    """The application's `/rpc`. `root_path` is what the application is mounted below."""

    def __init__(self, app: ASGIApp, root_path: str = "") -> None:
        self._app = app
        self._path = f"{root_path.rstrip('/')}{PATH}"

    async def ask(
        self, message: Mapping[str, Any], sent_by: Incoming, session_id: str, server_id: str | None = None
    ) -> dict[str, Any] | None:
        """The answer to one message, as whom it was sent by; None where it asks for none.

        What `/rpc` answers goes through word for word, an error as an error (the old path made `result: {}` of it). An
        answer that is no JSON-RPC becomes an error that names its status.
        """
        body = dict(message)
        if server_id is not None:
            params = body.get("params")
            body["params"] = {**(params if isinstance(params, Mapping) else {}), "server_id": server_id}
        token = carried_by.set(session_id)
        try:
            status, text = await self._post(json.dumps(body).encode(), sent_by, session_id)
        finally:
            carried_by.reset(token)
        if "id" not in message:
            return None
        return _answer(message["id"], status, text)

    async def check(self, sent_by: Incoming, session_id: str) -> int:
        """The status with which a `ping` of this caller is answered: one of 3xx or 4xx where he may not come in."""
        ping = {"jsonrpc": "2.0", "id": 0, "method": "ping"}
        status, _ = await self._post(json.dumps(ping).encode(), sent_by, session_id)
        return status

    async def _post(self, body: bytes, sent_by: Incoming, session_id: str) -> tuple[int, bytes]:
        headers = [
            (b"content-type", b"application/json"),
            (b"accept", b"application/json"),
            (b"content-length", b"%d" % len(body)),
            (b"host", sent_by.headers.get("host", "").encode("latin-1")),
        ]
        for name, value in sent_by.headers.items():
            if name not in NOT_COPIED:
                headers.append((name.encode("latin-1"), value.encode("latin-1")))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": {"ws": "http", "wss": "https"}.get(sent_by.scope["scheme"], sent_by.scope["scheme"]),
            "path": self._path,
            "raw_path": self._path.encode(),
            "root_path": "",
            "query_string": b"session_id=" + session_id.encode("latin-1"),
            "headers": headers,
            "client": sent_by.scope.get("client"),
            "server": sent_by.scope.get("server"),
            "state": dict(sent_by.scope["app_state"]) if "app_state" in sent_by.scope else {},
            WITHIN: True,
        }
        if sent_by.has_passed:
            scope[PASSED] = True
            scope["state"].update(passed(sent_by.scope.get("state", {})))
        sent = [{"type": "http.request", "body": body, "more_body": False}]
        never = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if not sent:
                await never.wait()
            return sent.pop()

        status, parts, size = 0, [], 0

        async def send(event: Any) -> None:
            nonlocal status, size
            if event["type"] == "http.response.start":
                status = event["status"]
            elif event["type"] == "http.response.body":
                size += len(event.get("body", b""))
                if size <= MAX_EVENT_BYTES:
                    parts.append(event.get("body", b""))

        await self._app(scope, receive, send)
        return status, b"".join(parts)


def _answer(id: Any, status: int, text: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if isinstance(answer, dict) and ("result" in answer) != ("error" in answer):
        return {"jsonrpc": "2.0", **{name: answer[name] for name in ("result", "error") if name in answer}, "id": id}
    code = NOT_ALLOWED if status in (401, 403) else TrunklineError.code
    return failure(id, code, f"the gateway answered with HTTP {status}")


def failure(id: Any, code: int, message: str) -> dict[str, Any]:
    """An error response."""
    return {"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}}
