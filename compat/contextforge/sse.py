"""HTTP+SSE as ContextForge has it: a transport object for each stream, and the response that its client reads."""

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final

from starlette.background import BackgroundTask
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ...mux.limits import MAX_EVENT_BYTES
from ...transports.asgi import until_disconnect
from ...transports.backlog import Backlog
from ...transports.base import Message, Transport

logger = logging.getLogger(__name__)

MAX_UNSENT: Final = 1024
MAX_UNSENT_BYTES: Final = MAX_EVENT_BYTES
"""So many messages, and so much of them, wait for a client that does not read. Over it, the stream is ended."""

LEAVE_SECONDS: Final = 5.0
"""How long what is left may take to be sent once a stream is over: a client that takes nothing would keep it."""

OnDisconnect = Callable[[], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a stream behaves: ContextForge's `SSE_RETRY_TIMEOUT` (milliseconds) and `SSE_KEEPALIVE_*` (seconds)."""

    base_url: str = "http://127.0.0.1:4444"
    retry: int = 5000
    keepalive: float | None = 30.0
    """None: no keep-alive events."""


class SSETransport(Transport):
    """One stream. Messages are sent in order; those of its client come by POST, to the session registry."""

    settings: ClassVar[StreamSettings] = StreamSettings()

    def __init__(self, base_url: str | None = None) -> None:
        self._base_url = (base_url or self.settings.base_url).rstrip("/")
        self._session_id = secrets.token_urlsafe(24)
        self._unsent = Backlog[str](MAX_UNSENT, MAX_UNSENT_BYTES)
        self._is_connected = False
        self.gone = asyncio.Event()
        """Set once the stream is over."""

    @property
    def session_id(self) -> str:
        """See `Transport.session_id`."""
        return self._session_id

    async def connect(self) -> None:
        """See `Transport.connect`."""
        self._is_connected = not self.gone.is_set()

    async def disconnect(self) -> None:
        """See `Transport.disconnect`."""
        self._is_connected = False
        if not self.gone.is_set():
            self.gone.set()
            self._unsent.end()

    async def send_message(self, message: Message, *, request_id: int | None = None) -> None:
        """See `Transport.send_message`. Of one stream there is nothing to choose, so `request_id` changes nothing."""
        if not self._is_connected:
            raise RuntimeError("Transport not connected")
        if not self._unsent.put(json.dumps(message, default=_spelled)):
            logger.warning("a client does not read: its stream is ended")
            await self.disconnect()
            raise RuntimeError("the client does not read")

    async def receive_message(self) -> AsyncIterator[dict[str, Any]]:
        """See `Transport.receive_message`: over SSE they come by POST, so this only waits for the end."""
        if not self._is_connected:
            raise RuntimeError("Transport not connected")
        await self.gone.wait()
        return
        yield {}

    async def is_connected(self) -> bool:
        """See `Transport.is_connected`."""
        return self._is_connected

    async def create_sse_response(
        self, request: object, on_disconnect_callback: OnDisconnect | None = None
    ) -> "SSEResponse":
        """The response that carries the stream: first the `endpoint` event, then messages until either side ends it.

        `on_disconnect_callback` is awaited once, when the client has gone.
        """
        return SSEResponse(self, on_disconnect_callback)

    @property
    def endpoint(self) -> str:
        """Where its client sends messages."""
        return f"{self._base_url}/message?session_id={self._session_id}"

    async def events(self) -> AsyncIterator[bytes]:
        """What the client reads."""
        settings = self.settings
        yield _event("endpoint", self.endpoint, settings.retry)
        if settings.keepalive is not None:
            yield _event("keepalive", "{}", settings.retry)
        while True:
            try:
                async with asyncio.timeout(settings.keepalive):
                    text = await self._unsent.take()
            except TimeoutError:
                yield _event("keepalive", "{}", settings.retry)
                continue
            if text is None:
                return
            yield _event("message", text, settings.retry)


class SSEResponse(Response):
    """A stream of events that ends with its client, or with its transport; then its background task runs."""

    def __init__(self, transport: SSETransport, on_disconnect: OnDisconnect | None = None) -> None:
        super().__init__(
            headers={"Cache-Control": "no-cache", "Connection": "keep-alive", "X-MCP-SSE": "true"},
            media_type="text/event-stream",
        )
        del self.headers["content-length"]
        self._transport = transport
        self._on_disconnect = on_disconnect

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve it."""
        patience = asyncio.timeout(None)
        watchers = [asyncio.create_task(self._watch(receive)), asyncio.create_task(self._limit(patience))]
        try:
            async with patience:
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                async for event in self._transport.events():
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except OSError:
            pass  # the client has gone, or takes nothing, and the transport goes with it
        finally:
            for watcher in watchers:
                watcher.cancel()
            await self._transport.disconnect()
            await asyncio.shield(self._clean_up())

    async def _limit(self, patience: asyncio.Timeout) -> None:
        await self._transport.gone.wait()
        patience.reschedule(asyncio.get_running_loop().time() + LEAVE_SECONDS)

    async def _watch(self, receive: Receive) -> None:
        await until_disconnect(receive)
        await self._transport.disconnect()

    async def _clean_up(self) -> None:
        background: BackgroundTask | None = self.background
        if self._on_disconnect is not None:
            await self._on_disconnect()
        if background is not None:
            await background()


def _event(name: str, data: str, retry: int) -> bytes:
    return f"event: {name}\r\ndata: {data}\r\nretry: {retry}\r\n\r\n".encode()


def _spelled(value: object) -> object:
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, Mapping):
        return dict(value)
    raise TypeError(f"{type(value).__name__} cannot be sent")
