"""A worker that hands requests on, and others that serve them by what a test says: over real Unix sockets."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import anyio
import pytest
from trunkline.gateway.workers.conversation import Conversation, SocketConversation
from trunkline.gateway.workers.forwarding import Forwarder
from trunkline.gateway.workers.serving import listening, serving
from trunkline.mux.directory import Worker
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, Everywhere
from trunkline.mux.membership import Membership
from trunkline.mux.statistics import Statistics
from trunkline.transports.asgi import ASKED, MEANT, Message, Receive, Scope, Send

from harness.changing import Changing
from harness.muxing import ALICE
from harness.shared_memory import SharedMemoryDirectory


def unknown_to(member: Membership, monkeypatch: pytest.MonkeyPatch) -> anyio.Event:
    """Set once a member has looked for a worker, and the directory could not tell."""
    find, unknown = member.find, anyio.Event()

    async def sought(id: str) -> Worker | None:
        try:
            return await find(id)
        except DirectoryUnavailable:
            unknown.set()
            raise

    monkeypatch.setattr(member, "find", sought)
    return unknown


CALL = b'{"jsonrpc":"2.0","id":"mine","method":"tools/call","params":{"name":"x"}}'

Serve = Callable[[Scope, Receive, Send], Awaitable[None]]


class Client(Changing):
    """The server's side of a connection, with a client that does what the test says."""

    def __init__(self, *came: Message) -> None:
        super().__init__()
        self.sent: list[Message] = []
        self._came: asyncio.Queue[Message] = asyncio.Queue()
        for message in came:
            self.does(message)

    def does(self, message: Message) -> None:
        self._came.put_nowait(message)

    async def receive(self) -> Message:
        return await self._came.get()

    async def send(self, message: Message) -> None:
        self.sent.append(message)
        self.happened()

    async def got(self, kind: str) -> Message:
        await self.until(lambda: any(message["type"] == kind for message in self.sent))
        return [message for message in self.sent if message["type"] == kind][-1]

    @property
    def body(self) -> bytes:
        return b"".join(bytes(message.get("body", b"")) for message in self.sent)


class House:
    """Worker `a`, which holds nothing, and worker `b`, which serves by `serve`."""

    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self.directory = SharedMemoryDirectory()
        self.statistics = Statistics()
        self.asked = 0
        self.has = 0
        """The calls that a cancellation can mean at worker `a`."""
        self.meant: list[int] = []
        """What worker `a` was told, or asked, of cancellations."""
        self._path = path
        self._stack = stack
        self.member = Membership(self.directory, Worker("a"), on_lapse=lambda since: None)
        self.forwarder = Forwarder(self._here, self.member, self.opened, self.statistics)
        self._holder = ""

    async def begins(self, name: str, serve: Serve, stack: AsyncExitStack | None = None) -> None:
        """A worker of that name begins to serve, until `stack` ends, or all does."""
        stack = stack or self._stack
        worker = Worker(name, "host", str(self._path / name))
        begin = await stack.enter_async_context(serving(serve))
        await stack.enter_async_context(listening(worker.address, begin))
        await stack.enter_async_context(Membership(self.directory, worker, on_lapse=lambda since: None).running())

    async def request(self, connection: Client, /, holder: str = "b", **scope: Any) -> None:
        """One request to worker `a`."""

        self._holder = holder
        whole = {"type": "http", "method": "POST", "path": "/servers/x/mcp", "headers": [(b"a", b"1")], **scope}
        with anyio.fail_after(10):
            await self.forwarder(whole, connection.receive, connection.send)

    async def _here(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked += 1
        if MEANT in scope:
            await receive()
            self.meant.append(scope[MEANT])
            await answer(send, b"%d" % self.has if scope[MEANT] == ASKED else b"")
            return
        if scope["type"] == "websocket" or scope["method"] == "POST":
            await receive()
        elsewhere = Elsewhere(self._holder) if self._holder else Everywhere()
        elsewhere.identity = ALICE, 12.5
        raise elsewhere

    async def opened(self, worker: Worker) -> Conversation:
        return await SocketConversation.open(worker.address)


def post(body: bytes = CALL) -> Client:
    return Client({"type": "http.request", "body": body, "more_body": False})


async def answer(send: Send, body: bytes) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x", b"y")]})
    await send({"type": "http.response.body", "body": body, "more_body": False})
