"""What a call may cost, counted and not timed: a slow machine counts as a fast one does.

A count that rises is no fault by itself. Who raises it looks at what the call does more, measures what that costs, and
either finds another way or writes the new figure down here.
"""

import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest
from harness.profiled import Calls, Profiled
from trunkline.gateway.settings import Server, Settings
from trunkline.mux.modern import CAPABILITIES_KEY, DISCOVER, VERSION_KEY
from trunkline.mux.routing import MODERN
from trunkline.transports import streamable_request, websocket
from websockets.sync.client import connect
from websockets.sync.server import ServerConnection, serve
from websockets.typing import Subprotocol

CALLS: Final = 50

ON_THE_PATH: Final = frozenset({"anyio", "built-in", "python", "sniffio", "trunkline", "uvicorn", "websockets"})
"""Whose Python code a call may run; `sniffio` is what anyio asks where it is there.

What else it needs is compiled: the parser of HTTP, the codec of JSON.
"""


class Budget(NamedTuple):
    """The most that one call may cost."""

    functions: int
    """Calls of trunkline's own functions, and of built-in ones by them."""
    tasks: int
    """Tasks that are made."""


BUDGETS: Final = {
    "http": Budget(functions=290, tasks=0),
    "anew": Budget(functions=594, tasks=1),
    "modern": Budget(functions=322, tasks=0),
    "sse": Budget(functions=356, tasks=0),
    "websocket": Budget(functions=230, tasks=0),
}
"""By the client's transport, which its server has as well, but for HTTP+SSE. There is room for a dozen calls more: what
a timer does meanwhile is less than one.

Of a client that comes anew with each call, all that it asks for is counted. asyncio's own loop makes a task for it.
"""

Ask = Callable[[dict[str, Any]], dict[str, Any]]


@pytest.mark.parametrize("transport", BUDGETS)
def test_a_call_keeps_to_its_budget(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamable_request, "DECIDE_SECONDS", 60)  # how long a call takes must make no difference
    monkeypatch.setattr(websocket, "PINGS_APART", 60)
    budget = BUDGETS[transport]
    with ExitStack() as stack:
        url = stack.enter_context(servers[transport]())
        gateway = stack.enter_context(Profiled(Settings(servers={"x": Server(url=url)})).running())
        ask = stack.enter_context(clients[transport](gateway.port))
        for _ in range(CALLS):
            ask(CALL)
        with gateway.counted() as calls:
            for _ in range(CALLS):
                assert ask(CALL)["result"] == RESULT
        told = report(calls)
        assert {package for package, count in calls.by_package.items() if count >= CALLS} <= ON_THE_PATH, told
        assert calls.tasks // CALLS <= budget.tasks, told
        assert (calls.by_package["trunkline"] + calls.by_package["built-in"]) // CALLS <= budget.functions, told


@pytest.mark.checkout
def test_the_page_on_how_it_is_built_says_the_budgets() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "design.md").read_text()
    told = re.findall(
        r"^\| (?:Streamable HTTP|the same anew|2026-07-28, over Streamable HTTP"
        r"|HTTP\+SSE, to a server over Streamable HTTP|WebSocket) \| (\d+) \| (\d+) \| (\d+) \| \d+ \| (\d)",
        page,
        re.MULTILINE,
    )
    assert [(int(total), int(tasks)) for *_, total, tasks in told] == list(BUDGETS.values())
    for own, built_in, total, _ in told:
        assert 0 <= int(total) - int(own) - int(built_in) < 20, "room for a dozen"


def report(calls: Calls) -> str:
    """What was called, for who has to find out what became more."""
    packages = {package: round(count / CALLS, 1) for package, count in calls.by_package.most_common()}
    functions = [f"{count / CALLS:6.1f} {name}" for name, count in calls.by_function.most_common() if count >= CALLS]
    return "\n".join([f"for each call: {packages}, {calls.tasks / CALLS} tasks", *functions])


REVISION: Final = "2025-06-18"
RESULT: Final = {"content": [{"type": "text", "text": "x" * 300}]}
CALL: Final = {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": "x", "arguments": {"n": 1}}}
INITIALIZED: Final = {"jsonrpc": "2.0", "method": "notifications/initialized"}
INITIALIZE: Final = {
    "jsonrpc": "2.0",
    "id": 0,
    "method": "initialize",
    "params": {"protocolVersion": REVISION, "capabilities": {}, "clientInfo": {"name": "budget", "version": "1"}},
}


def answer_to(message: dict[str, Any]) -> bytes:
    """What the server says; nothing to what is no request."""
    if "id" not in message:
        return b""
    opened = {"protocolVersion": REVISION, "capabilities": {"tools": {}}, "serverInfo": {"name": "x", "version": "1"}}
    discovered = {"resultType": "complete", "supportedVersions": [MODERN], "capabilities": {"tools": {}}}
    result = {"initialize": opened, DISCOVER: discovered}.get(message["method"], RESULT)
    return json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()


class Handler(BaseHTTPRequestHandler):
    """A server over Streamable HTTP."""

    protocol_version = "HTTP/1.1"
    wbufsize = 65_536
    """An answer is written in one piece."""

    def do_POST(self) -> None:
        answer = answer_to(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200 if answer else 202)
        self.send_header("Content-Type", "application/json")
        self.send_header("Mcp-Session-Id", "s")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def do_GET(self) -> None:
        self.send_error(405)

    def do_DELETE(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Nobody reads it."""


@contextmanager
def http_server() -> Iterator[str]:
    """The server, in threads; its URL."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}/mcp"
        finally:
            server.shutdown()
            thread.join()


class InOnePiece(HTTPConnection):
    """Sends a request in one piece: whether two are read at once, chance would decide, and what a call costs."""

    def request(self, *arguments: Any, **options: Any) -> None:
        self._pieces: list[bytes] = []
        super().request(*arguments, **options)
        super().send(b"".join(self._pieces))

    def send(self, data: Any) -> None:
        self._pieces.append(data)


@contextmanager
def http_client(port: int) -> Iterator[Ask]:
    """A client over Streamable HTTP, with a session."""
    headers = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
    with closing(InOnePiece("127.0.0.1", port, timeout=30)) as connection:

        def ask(message: dict[str, Any]) -> dict[str, Any]:
            connection.request("POST", "/servers/x/mcp", json.dumps(message), headers)
            answer = connection.getresponse()
            headers["Mcp-Session-Id"] = answer.headers.get("Mcp-Session-Id", headers.get("Mcp-Session-Id", ""))
            got: dict[str, Any] = json.loads(answer.read())
            return got

        ask(INITIALIZE)
        yield ask


@contextmanager
def anew_client(port: int) -> Iterator[Ask]:
    """A client that connects, begins its session by a key, calls, sends DELETE, and leaves, with each call."""

    def ask(message: dict[str, Any]) -> dict[str, Any]:
        headers = {
            "Content-Type": "application/json",
            "Accept": "application/json, text/event-stream",
            "Trunkline-Workflow": "anew",
        }
        with closing(InOnePiece("127.0.0.1", port, timeout=30)) as connection:
            for method, one in (("POST", INITIALIZE), ("POST", INITIALIZED), ("POST", message), ("DELETE", None)):
                connection.request(method, "/servers/x/mcp", None if one is None else json.dumps(one), headers)
                answer = connection.getresponse()
                text = answer.read()
                if one is message:
                    got: dict[str, Any] = json.loads(text)
                headers["Mcp-Session-Id"] = answer.headers["Mcp-Session-Id"]
                headers["MCP-Protocol-Version"] = REVISION
        return got

    yield ask


@contextmanager
def modern_client(port: int) -> Iterator[Ask]:
    """A client of 2026-07-28."""
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": MODERN,
        "Mcp-Method": "tools/call",
        "Mcp-Name": "x",
    }
    meta = {VERSION_KEY: MODERN, CAPABILITIES_KEY: {}}
    with closing(InOnePiece("127.0.0.1", port, timeout=30)) as connection:

        def ask(message: dict[str, Any]) -> dict[str, Any]:
            body = {**message, "params": {**message["params"], "_meta": meta}}
            connection.request("POST", "/servers/x/mcp", json.dumps(body), headers)
            got: dict[str, Any] = json.loads(connection.getresponse().read())
            return got

        yield ask


@contextmanager
def sse_client(port: int) -> Iterator[Ask]:
    """A client over HTTP+SSE, with a session."""
    with (
        closing(HTTPConnection("127.0.0.1", port, timeout=30)) as listening,
        closing(InOnePiece("127.0.0.1", port, timeout=30)) as connection,
    ):
        listening.request("GET", "/servers/x/sse", headers={"Accept": "text/event-stream"})
        stream = listening.getresponse()

        def next_data() -> str:
            return next(line for line in iter(stream.readline, b"") if line.startswith(b"data:"))[5:].strip().decode()

        path = next_data()

        def ask(message: dict[str, Any]) -> dict[str, Any]:
            connection.request("POST", path, json.dumps(message), {"Content-Type": "application/json"})
            assert connection.getresponse().read() == b"Accepted"
            got: dict[str, Any] = json.loads(next_data())
            return got

        ask(INITIALIZE)
        yield ask


@contextmanager
def websocket_server() -> Iterator[str]:
    """The server, in threads; its URL."""

    def handle(socket: ServerConnection) -> None:
        for text in socket:
            answer = answer_to(json.loads(text))
            if answer:
                socket.send(answer.decode())

    with serve(handle, "127.0.0.1", 0, subprotocols=[Subprotocol("mcp")], compression=None) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"ws://127.0.0.1:{server.socket.getsockname()[1]}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def websocket_client(port: int) -> Iterator[Ask]:
    """A client over WebSocket, with a session."""
    url = f"ws://127.0.0.1:{port}/servers/x/ws"
    with connect(url, subprotocols=[Subprotocol("mcp")], compression=None) as socket:

        def ask(message: dict[str, Any]) -> dict[str, Any]:
            socket.send(json.dumps(message))
            got: dict[str, Any] = json.loads(socket.recv(timeout=30))
            return got

        ask(INITIALIZE)
        yield ask


servers = {
    "http": http_server,
    "anew": http_server,
    "modern": http_server,
    "sse": http_server,
    "websocket": websocket_server,
}
clients = {
    "http": http_client,
    "anew": anew_client,
    "modern": modern_client,
    "sse": sse_client,
    "websocket": websocket_client,
}
