"""An upstream that does what a test tells it to, right or wrong: raw ASGI under uvicorn, in the test's own event loop.

    script = {"tools/call": [[Status(404)], [Reply({"content": []})]]}
    async with ScriptedUpstream(script) as upstream:
        ...  # point the part under test at upstream.url

A script maps what comes in to plays; a play is a list of steps; the first request plays the first, the second the
second, and the last play is repeated. What comes in is named by its JSON-RPC method, or `response` for a JSON-RPC
response, `GET` and `DELETE` for the HTTP methods, `resume` for a GET with a Last-Event-ID, `*` for what has no entry.
What a script leaves out goes well: see `_DEFAULTS`.

In every text, `$ID` stands for the id of the request, as it was spelled.
"""

import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import anyio
import anyio.lowlevel
import msgspec
import uvicorn

from harness.changing import PATIENCE, Changing
from harness.in_process import InProcessServer
from harness.ports import bound_socket
from harness.sse import Event

"""Seconds after which waiting for the peer fails the test."""

SESSION_HEADER = "mcp-session-id"


@dataclass(frozen=True, slots=True)
class Status:
    """A whole answer with any status."""

    code: int
    body: bytes | str = b""
    content_type: str = "text/plain"
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Json:
    """200 with this JSON text (or value) as the whole body; `$ID` is replaced."""

    body: Any
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The proper response with this result: as an event where a stream is open, else as JSON."""

    result: Any
    event_id: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """The proper error response: as an event where a stream is open, else as JSON."""

    code: int
    message: str = "no"
    data: Any = None


@dataclass(frozen=True, slots=True)
class OpenStream:
    """200 with `text/event-stream`; what follows is sent on it."""

    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Send:
    """One event with this JSON text (or value) as data; `$ID` is replaced. `""` with an `event_id` primes."""

    data: Any
    event_id: str | None = None
    event: str = "message"
    retry: int | None = None


@dataclass(frozen=True, slots=True)
class Raw:
    """These very bytes, into the body that is under way."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Pause:
    """Wait until the test calls `open(gate)`; `reached(gate)` tells the test that the play is here."""

    gate: str


@dataclass(frozen=True, slots=True)
class AwaitMessage:
    """Wait until another message came in: by what a script would name it, so many of them in all."""

    kind: str
    count: int = 1


@dataclass(frozen=True, slots=True)
class Hang:
    """Do nothing until the peer closes the connection."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Drop the connection without ending the answer."""


@dataclass(frozen=True, slots=True)
class Forever:
    """Send these bytes again and again, as fast as they are taken, until the peer closes the connection."""

    data: bytes


Step = Status | Json | Reply | Refuse | OpenStream | Send | Raw | Pause | AwaitMessage | Hang | Cut | Forever
Play = Sequence[Step]
Script = Mapping[str, Sequence[Play]]


def initialize_result(revision: str = "2025-11-25", **capabilities: Any) -> dict[str, Any]:
    """What the scripted server says of itself."""
    return {
        "protocolVersion": revision,
        "capabilities": capabilities or {"tools": {"listChanged": True}, "logging": {}},
        "serverInfo": {"name": "scripted", "version": "1"},
    }


def text_result(text: str) -> dict[str, Any]:
    """A tool's result with one text."""
    return {"content": [{"type": "text", "text": text}]}


_DEFAULTS: dict[str, Play] = {
    "initialize": [Reply(initialize_result())],
    "response": [Status(202)],
    "GET": [OpenStream(), Hang()],
    "resume": [Status(400)],
    "DELETE": [Status(200)],
    "ping": [Reply({})],
    "tools/list": [Reply({"tools": []})],
    "tools/call": [Reply(text_result("ok"))],
}


@dataclass(frozen=True, slots=True)
class Received:
    """One request as it came in. `message` is None where the body is no JSON object; `raw_id` is its id's JSON text."""

    kind: str
    http: str
    headers: dict[str, str]
    body: bytes
    message: dict[str, Any] | None
    raw_id: bytes | None


class _CutHere(Exception):
    """Raised through the server, which then drops the connection."""


class ScriptedUpstream(Changing):
    """Serves a script on loopback for as long as it is entered."""

    def __init__(self, script: Script | None = None, *, port: int = 0, session: str = "upstream-session") -> None:
        super().__init__()
        self.script: dict[str, Sequence[Play]] = dict(script or {})
        self.session = session
        self.received: list[Received] = []
        self.disconnects = 0
        """Requests whose peer closed the connection before the answer was whole."""
        self.plays: Counter[str] = Counter()
        self._port = port
        self._opened: set[str] = set()
        self._reached: Counter[str] = Counter()
        self._exchanges: set[anyio.CancelScope] = set()
        self._faults: list[Exception] = []

    @property
    def url(self) -> str:
        """The MCP endpoint."""
        return f"http://127.0.0.1:{self._port}/mcp"

    def of(self, kind: str) -> list[Received]:
        """What came in, by what a script would name it."""
        return [one for one in self.received if one.kind == kind]

    async def saw(self, kind: str, count: int = 1, *, timeout: float = PATIENCE) -> list[Received]:
        """Wait until so many of a kind came in; all of that kind."""
        await self.until(lambda: len(self.of(kind)) >= count, timeout=timeout)
        return self.of(kind)

    async def reached(self, gate: str, times: int = 1) -> None:
        """Wait until a play stands at `Pause(gate)`."""
        await self.until(lambda: self._reached[gate] >= times)

    def open(self, gate: str) -> None:
        """Let plays go on from `Pause(gate)`, now and later."""
        self._opened.add(gate)
        self.happened()

    async def __aenter__(self) -> Self:
        listener = bound_socket(self._port)
        self._port = listener.getsockname()[1]
        config = uvicorn.Config(
            self._app,
            interface="asgi3",
            log_config=None,
            log_level="critical",
            lifespan="off",
            ws="none",
            timeout_keep_alive=60,
        )
        self._server = InProcessServer(config)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._server.serve, [listener])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        for scope in self._exchanges:
            scope.cancel()
        self._server.should_exit = self._server.force_exit = True
        swallowed = await self._tasks.__aexit__(kind, error, trace)
        if error is None and self._faults:
            raise ExceptionGroup("the script could not be played", self._faults)
        return swallowed

    async def _app(
        self,
        scope: MutableMapping[str, Any],
        receive: Callable[[], Any],
        send: Callable[[MutableMapping[str, Any]], Any],
    ) -> None:
        body = b""
        more = True
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            body += part.get("body", b"")
            more = part.get("more_body", False)
        came = _received(scope, body)
        self.received.append(came)
        self.happened()
        play = self._next_play(came.kind)
        exchange = _Exchange(self, came, send)
        with anyio.CancelScope() as cancel:
            self._exchanges.add(cancel)
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._watch, receive, exchange, tasks.cancel_scope)
                    await exchange.perform(play)
                    tasks.cancel_scope.cancel()
            except* _CutHere:
                pass
            except* Exception as faults:
                self._faults += faults.exceptions
            finally:
                self._exchanges.discard(cancel)
        # An answer that is not whole here makes uvicorn drop the connection: that is the cut.

    async def _watch(self, receive: Callable[[], Any], exchange: "_Exchange", scope: anyio.CancelScope) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        if not exchange.ended:
            self.disconnects += 1
            self.happened()
        scope.cancel()

    def _next_play(self, kind: str) -> Play:
        n = self.plays[kind]
        self.plays[kind] += 1
        plays = self.script.get(kind) or self.script.get("*" if kind not in _DEFAULTS else kind)
        if plays:
            return plays[min(n, len(plays) - 1)]
        return _DEFAULTS.get(kind) or ([Status(202)] if kind.startswith("notifications/") else [Refuse(-32601)])


class _Exchange:
    """One request and the answer that a play makes to it."""

    def __init__(
        self, upstream: ScriptedUpstream, came: Received, send: Callable[[MutableMapping[str, Any]], Any]
    ) -> None:
        self._upstream = upstream
        self._came = came
        self._send = send
        self._streaming = False
        self.ended = False

    async def perform(self, play: Play) -> None:
        """Do the steps, and end the answer cleanly where they did not."""
        for step in play:
            await self._step(step)
        if self._streaming and not self.ended:
            await self._body(b"", more=False)

    async def _step(self, step: Step) -> None:
        match step:
            case Status(code, body, content_type, headers):
                await self._whole(code, _bytes(body), content_type, headers)
            case Json(body, headers):
                await self._whole(200, self._text(body), "application/json", headers)
            case Reply(result, event_id):
                await self._respond("result", result, event_id)
            case Refuse(code, message, data):
                error = {"code": code, "message": message, **({} if data is None else {"data": data})}
                await self._respond("error", error, None)
            case OpenStream(headers):
                await self._start(200, "text/event-stream", headers)
            case Send(data, event_id, event, retry):
                await self._event(self._text(data), event_id, event, retry)
            case Raw(data):
                await self._body(data)
            case Pause() | AwaitMessage():
                await self._wait(step)
            case Hang():
                await anyio.sleep_forever()
            case Cut():
                raise _CutHere
            case Forever(data):
                while True:
                    await self._body(data)
                    await anyio.lowlevel.checkpoint()

    async def _wait(self, step: Pause | AwaitMessage) -> None:
        upstream = self._upstream
        if isinstance(step, AwaitMessage):
            await upstream.saw(step.kind, step.count)
            return
        upstream._reached[step.gate] += 1
        upstream.happened()
        await upstream.until(lambda: step.gate in upstream._opened, timeout=PATIENCE * 6)

    async def _respond(self, member: str, value: Any, event_id: str | None) -> None:
        text = b'{"jsonrpc":"2.0","id":%s,"%s":%s}' % (self._came.raw_id or b"null", member.encode(), self._text(value))
        if self._streaming:
            await self._event(text, event_id, "message", None)
        else:
            await self._whole(200, text, "application/json", {})

    async def _event(self, data: bytes, event_id: str | None, event: str, retry: int | None) -> None:
        await self._body(Event(data.decode(), event_id, event, retry).encode())

    def _text(self, value: Any) -> bytes:
        text = _bytes(value) if isinstance(value, str | bytes) else json.dumps(value).encode()
        return text.replace(b"$ID", self._came.raw_id or b"null")

    async def _whole(self, code: int, body: bytes, content_type: str, headers: Mapping[str, str]) -> None:
        await self._start(code, content_type, {"content-length": str(len(body)), **headers})
        await self._body(body, more=False)

    async def _start(self, code: int, content_type: str, headers: Mapping[str, str]) -> None:
        all_headers = {"content-type": content_type, **{name.lower(): value for name, value in headers.items()}}
        if self._came.kind == "initialize" and code == 200 and self._upstream.session:
            all_headers.setdefault(SESSION_HEADER, self._upstream.session)
        pairs = [(name.encode(), value.encode()) for name, value in all_headers.items()]
        await self._send({"type": "http.response.start", "status": code, "headers": pairs})
        self._streaming = True

    async def _body(self, data: bytes, *, more: bool = True) -> None:
        self.ended = self.ended or not more
        await self._send({"type": "http.response.body", "body": data, "more_body": more})


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def _received(scope: MutableMapping[str, Any], body: bytes) -> Received:
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
    http = str(scope["method"])
    message: dict[str, Any] | None = None
    raw_id: bytes | None = None
    with contextlib.suppress(ValueError, msgspec.DecodeError):
        members = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        message = json.loads(body)
        raw_id = bytes(members["id"]) if "id" in members else None
    if http == "GET":
        kind = "resume" if "last-event-id" in headers else "GET"
    elif http == "DELETE":
        kind = "DELETE"
    else:
        kind = str((message or {}).get("method", "response"))
    return Received(kind, http, headers, body, message, raw_id)


@contextlib.asynccontextmanager
async def scripted(script: Script | None = None, **options: Any) -> AsyncIterator[ScriptedUpstream]:
    """`ScriptedUpstream` as a function, for fixtures."""
    async with ScriptedUpstream(script, **options) as upstream:
        yield upstream
