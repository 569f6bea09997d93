"""A client of an ASGI application without a socket: what a server such as uvicorn does for it, to the exact moment."""

import json
from collections.abc import AsyncIterator, Mapping, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final

import anyio
from anyio.abc import TaskGroup
from trunkline.transports.asgi import ASGIApp

from harness.changing import Changing
from harness.sse import Event, Parser

"""Seconds after which waiting fails the test."""

DEFAULTS: Final = {
    "host": "localhost",
    "accept": "application/json, text/event-stream",
    "content-type": "application/json",
}


class Answer(Changing):
    """One request, and the answer as it comes."""

    def __init__(self, parts: list[bytes], *, endless: bool) -> None:
        super().__init__()
        self.status = 0
        self.headers: dict[str, str] = {}
        self.raw = b""
        """What has come of the body so far."""
        self.is_over = False
        """True once the application has returned."""
        self.is_whole = False
        """True once the end of the body was sent."""
        self.stalled = False
        """While set, nothing that is sent is taken."""
        self._parts = parts
        self._endless = endless
        self._left = self._is_seen_to_leave = False
        self._parser = Parser()
        self._events: list[Event] = []

    @property
    def is_stream(self) -> bool:
        """Whether the answer is an event stream."""
        return self.headers.get("content-type") == "text/event-stream"

    def leave(self) -> None:
        """Close the connection."""
        self._left = True
        self.happened()

    async def seen_to_leave(self) -> None:
        """Wait until the application was told that the client has left."""
        await self.until(lambda: self._is_seen_to_leave)

    def take(self) -> None:
        """Take again what is sent, after it was `stalled`."""
        self.stalled = False
        self.happened()

    async def begun(self) -> None:
        """Wait until the head of the answer has come."""
        await self.until(lambda: self.status)

    async def over(self) -> None:
        """Wait until the application has returned."""
        await self.until(lambda: self.is_over)

    async def body(self) -> bytes:
        """The whole body."""
        await self.until(lambda: self.is_whole)
        return self.raw

    async def json(self) -> Any:
        """The whole body, as JSON."""
        body = await self.body()
        assert self.headers["content-type"] == "application/json", self.headers
        return json.loads(body)

    async def came(self, text: bytes) -> None:
        """Wait until this has come, somewhere in the body."""
        await self.until(lambda: text in self.raw)

    async def event(self) -> Event | None:
        """The next event of a stream; None at its end."""
        await self.until(lambda: self._events or self.is_whole)
        assert self.is_stream, self.headers
        return self._events.pop(0) if self._events else None

    async def messages(self) -> list[Any]:
        """What the events hold until the end of the stream, priming left out."""
        found = []
        while (event := await self.event()) is not None:
            if event.data:
                found.append(json.loads(event.data))
        return found

    # The server's side.

    async def receive(self) -> MutableMapping[str, Any]:
        """What the application reads."""
        if self._parts:
            body = self._parts.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(self._parts) or self._endless}
        while not self._left:
            await self._changed.wait()
        self._is_seen_to_leave = True
        self.happened()
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """What the application writes; nothing is heard of it once the client has left."""
        while self.stalled:
            await self._changed.wait()
        if self._left:
            return
        if message["type"] == "http.response.start":
            assert not self.status, "an answer has one head"
            self.status = message["status"]
            for name, value in message["headers"]:
                assert name == name.lower(), name
                self.headers[name.decode("latin-1")] = value.decode("latin-1")
        else:
            assert self.status, "a body comes after its head"
            assert not self.is_whole, "a body ends once"
            self.raw += message.get("body", b"")
            self._events += self._parser.feed(message.get("body", b""))
            self.is_whole = not message.get("more_body", False)
            declared = self.headers.get("content-length")
            assert not self.is_whole or declared is None or int(declared) == len(self.raw)
        self.happened()

    def end(self) -> None:
        """The application has returned."""
        self.is_over = True
        self.happened()


class ASGIClient:
    """Sends requests to one application; each is answered in a task of its own."""

    def __init__(self, app: ASGIApp, tasks: TaskGroup, headers: Mapping[str, str | None]) -> None:
        self.app = app
        self._tasks = tasks
        self.headers: dict[str, str | None] = {**DEFAULTS, **headers}
        """Sent with every request, by lower-case name; one that is None is left out."""

    def start(
        self,
        method: str,
        body: Any = b"",
        headers: Mapping[str, str | None] | None = None,
        *,
        parts: list[bytes] | None = None,
        endless: bool = False,
    ) -> Answer:
        """Begin a request. The body is JSON or bytes, or comes in `parts`; `endless`, its end never comes."""
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = Answer([text] if parts is None else list(parts), endless=endless)
        all_headers = {**self.headers, **{name.lower(): value for name, value in (headers or {}).items()}}
        pairs = [(n.encode("latin-1"), v.encode("latin-1")) for n, v in all_headers.items() if v is not None]
        self._tasks.start_soon(self._run, {"type": "http", "method": method, "path": "/mcp", "headers": pairs}, answer)
        return answer

    async def ask(
        self, method: str, body: Any = b"", headers: Mapping[str, str | None] | None = None, **options: Any
    ) -> Answer:
        """Send a request, and wait until its answer begins."""
        answer = self.start(method, body, headers, **options)
        await answer.begun()
        return answer

    async def post(self, body: Any, headers: Mapping[str, str | None] | None = None) -> Answer:
        """POST, and wait until the answer begins."""
        return await self.ask("POST", body, headers)

    async def get(self, last_event_id: str | None = None, headers: Mapping[str, str | None] | None = None) -> Answer:
        """GET, and wait until the answer begins."""
        return await self.ask("GET", b"", {"last-event-id": last_event_id, **(headers or {})})

    async def delete(self, headers: Mapping[str, str | None] | None = None) -> Answer:
        """DELETE, and wait until the answer begins."""
        return await self.ask("DELETE", b"", headers)

    async def _run(self, scope: MutableMapping[str, Any], answer: Answer) -> None:
        try:
            await self.app(scope, answer.receive, answer.send)
        finally:
            answer.end()


@asynccontextmanager
async def asgi_client(app: ASGIApp, **headers: str | None) -> AsyncIterator[ASGIClient]:
    """A client for the length of the context; leaving it drops every connection."""
    async with anyio.create_task_group() as tasks:
        yield ASGIClient(app, tasks, {name.replace("_", "-"): value for name, value in headers.items()})
        tasks.cancel_scope.cancel()
