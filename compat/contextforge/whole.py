"""ContextForge's middleware on the way of messages from within, without the tasks and queues of a stream.

Starlette runs what is behind a `BaseHTTPMiddleware` in a task of its own, and hands its answer on in parts: for each of
them, on the way there and back. A message from within is there whole, and so is what `/rpc` answers.
"""

from collections.abc import AsyncIterator, Iterable
from typing import Any, Final

from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...transports.asgi import ASGIApp
from .once import WITHIN, Added

OWNER: Final = "mcpgateway."
"""Whose middleware is known to do with a whole answer what it does with a stream."""


class Whole:
    """A middleware that decides by its `dispatch`: for a message from within, that is called with the whole answer."""

    def __init__(self, app: ASGIApp, added: Added) -> None:
        self._app = app
        self._middleware: BaseHTTPMiddleware = added.cls(app, *added.args, **added.kwargs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if WITHIN not in scope:
            await self._middleware(scope, receive, send)
            return
        body = await _read(receive)

        async def call_next(request: Request) -> Response:
            answer = Answer()
            await self._app(scope, _again(body, receive), answer.take)
            return answer

        response = await self._middleware.dispatch_func(Request(scope, _again(body, receive)), call_next)
        await response(scope, receive, send)


class Answer(Response):
    """What was answered, as Starlette's middleware gets it: its body can be read, or replaced, part by part."""

    def __init__(self) -> None:
        self.status_code = 500
        self.background = None
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self.body_iterator: AsyncIterator[bytes] = _each(self._parts)

    async def take(self, event: Any) -> None:
        """Take what the application sends."""
        if event["type"] == "http.response.start":
            self.status_code, self.raw_headers = event["status"], list(event.get("headers", ()))
        elif event["type"] == "http.response.body":
            self._parts.append(event.get("body", b""))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it on."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self.body_iterator:
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def is_whole(added: Added) -> bool:
    """Whether `Whole` may stand around this middleware: one of ContextForge's that is called as Starlette has it."""
    cls = added.cls
    if not (isinstance(cls, type) and issubclass(cls, BaseHTTPMiddleware)):
        return False
    decides = added.kwargs.get("dispatch")
    owner = cls if decides is None else decides if hasattr(decides, "__qualname__") else type(decides)
    return cls.__call__ is BaseHTTPMiddleware.__call__ and str(owner.__module__).startswith(OWNER)


async def _read(receive: Receive) -> bytes:
    """The body of a message from within: it was made here, and is as large as its message."""
    parts, is_more = [], True
    while is_more:
        event = await receive()
        parts.append(event.get("body", b""))
        is_more = event.get("more_body", False)
    return b"".join(parts)


def _again(body: bytes, after: Receive) -> Receive:
    """The same body once more, and then what comes after it."""
    due = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        return due.pop() if due else await after()

    return receive


async def _each(parts: Iterable[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        yield part
