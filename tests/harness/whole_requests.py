"""An endpoint, whose whole requests are offered to who answers them without a task, as in a gateway."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from trunkline.mux.envelope import Text
from trunkline.transports.asgi import (
    ASGIApp,
    Message,
    RawHeaders,
    Receive,
    RequestHeaders,
    Scope,
    Send,
    WholeRequest,
    headers_of,
    respond,
    until_disconnect,
)

Reply = tuple[int, RawHeaders, bytes]


class Whole:
    """Implements `WholeRequest`."""

    def __init__(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.headers: RequestHeaders = headers_of(scope)
        self.left: Callable[[], None] | None = None
        self.has_left = False
        self.body = body
        self.send = send
        self.outcome: asyncio.Future[Reply | Awaitable[None] | None] = asyncio.get_running_loop().create_future()
        """A whole answer, what goes on in a task, or None where it was declined after all."""
        self._receive = receive
        self._is_told = False

    async def receive(self) -> Message:
        """As ASGI has it."""
        if self._is_told:
            return await self._receive()
        self._is_told = True
        return {"type": "http.request", "body": self.body, "more_body": False}

    def reply(self, status: int, headers: RawHeaders, body: Text) -> None:
        """See `WholeRequest.reply`."""
        if not self.outcome.done():
            self.outcome.set_result((status, headers, bytes(body)))

    def go_on(self, work: Awaitable[None]) -> None:
        """See `WholeRequest.go_on`."""
        self.outcome.set_result(work)

    def decline(self) -> None:
        """See `WholeRequest.decline`."""
        self.outcome.set_result(None)

    async def watch(self) -> None:
        """Tell whoever took it that the client has left."""
        await until_disconnect(self._receive)
        self.has_left = True
        if self.left is not None:
            left, self.left = self.left, None
            left()


def offering(app: ASGIApp, take: Callable[[WholeRequest], bool]) -> ASGIApp:
    """The application, to whose requests that come whole `take` is asked first."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] not in ("POST", "DELETE"):
            await app(scope, receive, send)
            return
        first = await receive()
        whole = Whole(scope, first["body"], receive, send)
        if first["more_body"]:
            await app(scope, _again(first, receive), send)
        elif not take(whole):
            await app(scope, whole.receive, send)
        else:
            await _answered(app, whole)

    return serve


def _again(first: Any, receive: Receive) -> Receive:
    parts = [first]

    async def again() -> Message:
        return parts.pop() if parts else await receive()

    return again


async def _answered(app: ASGIApp, whole: Whole) -> None:
    watcher = asyncio.get_running_loop().create_task(whole.watch())
    try:
        outcome = await whole.outcome
        if outcome is None:
            await app(whole.scope, whole.receive, whole.send)
        elif isinstance(outcome, tuple):
            await respond(whole.send, *outcome)
        else:
            await outcome
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
