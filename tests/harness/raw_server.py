"""A server without an SDK that keeps every byte, over each transport: what it says is in `raw_script`.

Run: `python -m harness.raw_server http|sse|ws --record FOLDER --fd LISTENING_SOCKET`, or `… stdio --record FOLDER`.

Everything that comes in on a session is recorded, before it has an effect, in `FOLDER/NAME` where NAME is the name in
the client's `clientInfo`: one JSON string a line, the text of one message.
"""

import argparse
import asyncio
import itertools
import json
import os
import socket
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs

from harness.raw_script import LEVELS, Ask, Members, Open, Pass, Reply, Saw, Say, Step, behave, kind, members

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Emit = Callable[[bytes], Awaitable[None]]

MAX_MESSAGE: Final = 16 * 1024 * 1024


class Session:
    """One session: what came in, the gates of its scripts, and what it says on no request's stream."""

    def __init__(self, folder: Path) -> None:
        self.outbox: asyncio.Queue[bytes] = asyncio.Queue()
        self._folder = folder
        self._file: int | None = None
        self._early: list[bytes] = []
        self._seen: Counter[str] = Counter()
        self._open: set[str] = set()
        self._answers: dict[bytes, bytes] = {}
        self._level = LEVELS[0]
        self._subscribed: set[str] = set()
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def take(self, text: bytes) -> tuple[Step, ...]:
        """A message came in: record it; what is to be done about it."""
        message = members(text)
        self._record(text, message)
        self._note(text, message)
        self._seen[kind(message)] += 1
        self._happened()
        return behave(text)

    def start(self, steps: tuple[Step, ...], emit: Emit) -> None:
        """Play the steps beside everything else."""
        task = asyncio.create_task(self.play(steps, emit))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def play(self, steps: tuple[Step, ...], emit: Emit) -> None:
        """Do the steps; `emit` says something on the stream of the request."""
        answer = b"null"
        for step in steps:
            match step:
                case Say(text, unasked):
                    if self._wants(step):
                        await (self.outbox.put if unasked else emit)(text)
                case Ask(text, id, unasked):
                    await (self.outbox.put if unasked else emit)(text)
                    answer = await self._answer_to(id)
                case Reply(text):
                    await emit(text.replace(b'"$ANSWER"', answer))
                case Pass(gate):
                    while gate not in self._open:
                        await self._changed.wait()
                case Open(gate):
                    self._open.add(gate)
                    self._happened()
                case Saw(kind, count):
                    while self._seen[kind] < count:
                        await self._changed.wait()

    def _wants(self, step: Say) -> bool:
        if step.level and LEVELS.index(step.level) < LEVELS.index(self._level):
            return False
        return not step.uri or step.uri in self._subscribed

    def _note(self, text: bytes, message: Members) -> None:
        params = members(message.get("params", b"{}"))
        match kind(message):
            case "response" if "id" in message:
                self._answers[message["id"]] = text
            case "logging/setLevel":
                self._level = json.loads(params["level"])
            case "resources/subscribe":
                self._subscribed.add(json.loads(params["uri"]))
            case "resources/unsubscribe":
                self._subscribed.discard(json.loads(params["uri"]))

    def _record(self, text: bytes, message: Members) -> None:
        if kind(message) == "initialize":
            name = json.loads(members(message["params"])["clientInfo"])["name"]
            self._file = os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        self._early.append(json.dumps(text.decode()).encode() + b"\n")
        if self._file is not None:
            os.write(self._file, b"".join(self._early))
            self._early.clear()

    async def _answer_to(self, id: bytes) -> bytes:
        while id not in self._answers:
            await self._changed.wait()
        return self._answers[id]

    def _happened(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Server:
    """What the transports of this module have in common: an ASGI application with sessions."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self._sessions: dict[str, Session] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket; `GET /ready` tells that there is a server."""
        if scope["type"] == "http" and scope["path"] == "/ready":
            await _answer(send, 200)
        elif scope["type"] in ("http", "websocket"):
            await self.serve(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request or socket of the transport."""
        raise NotImplementedError

    def begin(self) -> str:
        """A new session; its name."""
        name = f"raw-{next(self._numbers)}"
        self._sessions[name] = Session(self._folder)
        return name


class StreamableHTTP(Server):
    """A POST for each message; what answers alone is JSON, what comes with more is a stream."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = dict(scope["headers"])
        name = headers.get(b"mcp-session-id", b"").decode()
        text = await _body(receive)
        if scope["path"] != "/mcp":
            await _answer(send, 404)
        elif scope["method"] == "POST":
            await self._post(name, text, send)
        elif name not in self._sessions:
            await _answer(send, 404)
        elif scope["method"] == "GET":
            await _start(send, 200, b"text/event-stream")
            await _relay(self._sessions[name].outbox, receive, _event_on(send))
        else:
            del self._sessions[name]
            await _answer(send, 200)

    async def _post(self, name: str, text: bytes, send: Send) -> None:
        message = members(text)
        extra: tuple[tuple[bytes, bytes], ...] = ()
        if not name and kind(message) == "initialize":
            name = self.begin()
            extra = ((b"mcp-session-id", name.encode()),)
        session = self._sessions.get(name)
        if session is None:
            await _answer(send, 404 if name else 400)
            return
        steps = session.take(text)
        if "id" not in message or kind(message) == "response":
            session.start(steps, session.outbox.put)
            await _answer(send, 202)
        elif len(steps) == 1 and isinstance(steps[0], Reply):
            await _answer(send, 200, b"application/json", steps[0].text, extra)
        else:
            await _start(send, 200, b"text/event-stream", extra)
            await session.play(steps, _event_on(send))
            await send({"type": "http.response.body", "body": b""})


class SSE(Server):
    """A GET for everything that is said; a POST for each message, accepted before it has an effect."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = await _body(receive)
        if (scope["method"], scope["path"]) == ("GET", "/sse"):
            name = self.begin()
            await _start(send, 200, b"text/event-stream")
            endpoint = f"event: endpoint\ndata: /message?session={name}\n\n"
            await send({"type": "http.response.body", "body": endpoint.encode(), "more_body": True})
            await _relay(self._sessions[name].outbox, receive, _event_on(send))
            del self._sessions[name]
        elif (scope["method"], scope["path"]) == ("POST", "/message"):
            session = self._sessions.get(parse_qs(scope["query_string"].decode()).get("session", [""])[0])
            await _answer(send, 202 if session else 404, body=b"Accepted" if session else b"")
            if session is not None:
                session.start(session.take(text), session.outbox.put)
        else:
            await _answer(send, 405 if scope["path"] == "/sse" else 404)


class WebSocket(Server):
    """A socket for each session."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            await _answer(send, 426)
            return
        await receive()
        if "mcp" not in scope["subprotocols"]:
            await send({"type": "websocket.close", "code": 1008})
            return
        await send({"type": "websocket.accept", "subprotocol": "mcp"})
        session = Session(self._folder)

        async def say(text: bytes) -> None:
            await send({"type": "websocket.send", "text": text.decode()})

        async def take() -> MutableMapping[str, Any]:
            message = await receive()
            if message["type"] == "websocket.receive":
                session.start(session.take(message["text"].encode()), session.outbox.put)
            return message

        await _relay(session.outbox, take, say)


async def stdio(folder: Path) -> None:
    """One session on standard input and output, until the input ends."""
    session = Session(folder)
    reader = asyncio.StreamReader(limit=MAX_MESSAGE)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def say(text: bytes) -> None:
        line = memoryview(text + b"\n")
        while line:
            line = line[os.write(1, line) :]

    async def take() -> MutableMapping[str, Any]:
        line = await reader.readline()
        if line:
            session.start(session.take(line.rstrip(b"\n")), session.outbox.put)
        return {"type": "stdio.line" if line else "stdio.disconnect"}

    await _relay(session.outbox, take, say)


async def _relay(outbox: asyncio.Queue[bytes], receive: Receive, say: Emit) -> None:
    """Say what is in the outbox, and take what comes, until the client has gone."""

    async def give() -> None:
        while True:
            await say(await outbox.get())

    giving = asyncio.create_task(give())
    try:
        while not (await receive())["type"].endswith("disconnect"):
            pass
    finally:
        giving.cancel()


def _event_on(send: Send) -> Emit:
    async def say(text: bytes) -> None:
        await send({"type": "http.response.body", "body": b"data: %s\n\n" % text, "more_body": True})

    return say


async def _body(receive: Receive) -> bytes:
    parts, more = [], True
    while more:
        part = await receive()
        parts.append(part.get("body", b""))
        more = part.get("more_body", False)
    return b"".join(parts)


async def _start(send: Send, status: int, media: bytes, extra: tuple[tuple[bytes, bytes], ...] = ()) -> None:
    head = {"type": "http.response.start", "status": status, "headers": [(b"content-type", media), *extra]}
    await send(head)


async def _answer(
    send: Send,
    status: int,
    media: bytes = b"text/plain",
    body: bytes = b"",
    extra: tuple[tuple[bytes, bytes], ...] = (),
) -> None:
    await _start(send, status, media, ((b"content-length", b"%d" % len(body)), *extra))
    await send({"type": "http.response.body", "body": body})


def main() -> None:
    """Serve until the process is ended, or the input of stdio ends."""
    parser = argparse.ArgumentParser()
    parser.add_argument("transport", choices=["http", "sse", "ws", "stdio"])
    parser.add_argument("--record", type=Path, required=True)
    parser.add_argument("--fd", type=int)
    options = parser.parse_args()
    if options.transport == "stdio":
        asyncio.run(stdio(options.record))
        return
    import uvicorn

    app = {"http": StreamableHTTP, "sse": SSE, "ws": WebSocket}[options.transport](options.record)
    config = uvicorn.Config(
        app, log_level="warning", lifespan="off", ws_max_size=MAX_MESSAGE, timeout_keep_alive=60, interface="asgi3"
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=options.fd)])


if __name__ == "__main__":
    main()
