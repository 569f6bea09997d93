"""HTTP+SSE of 2024-11-05 to a server: a GET stream brings everything, messages are POSTed where it says (rule T1).

The session is the stream: where that ends or breaks, the session is lost, and nothing is taken up again (rule T3).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Final

from ...mux.errors import (
    InvalidRequest,
    SessionLost,
    TrunklineError,
    UpstreamFault,
    UpstreamUnreachable,
)
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.ports import NONE, Headers, Receiver, SendKind, Wire
from ...mux.request import Request
from ..event_stream import EventParser
from ..media import STREAM_TYPE, content_type
from .answers import ERROR_BODY_BYTES, Body, bare, nothing
from .http import Answer, ExchangeBroken, Fence, HeaderBlock, Withheld, target_within, words_of_status
from .http_call import failure_of, refusal
from .http_connector import VERSION_HEADER_SINCE, HTTPConnector
from .http_delivery import Deliveries, announce
from .loss import Loss

logger = logging.getLogger(__name__)

ENDPOINT_SECONDS: Final = 10.0
"""How long a server may take to say where messages go, connecting included."""


LATE_SECONDS: Final = 1.0
"""How often it is looked whether anybody still waits for what a POST carries that is not over."""

MAX_ENDPOINT_BYTES: Final = 4_096
"""Where messages go is kept for as long as the session, and stands in each POST, of which few servers take more."""


class SSEConnector(HTTPConnector):
    """Opens sessions with one server by HTTP+SSE. Implements `RotatingConnector`."""

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`. Unasked messages come on the one stream, whether they are wanted or not.

        Raises:
            TrunklineError: there is no stream, or it does not say in time where messages go.
        """
        wire = _SSEWire(self, receiver, headers)
        try:
            await wire.open()
            yield wire
        finally:
            wire.close()


class _SSEWire:
    """One session: a stream, and the POSTs beside it. Implements `Wire`; all of it are calls of the HTTP client."""

    def __init__(self, connector: SSEConnector, receiver: Receiver, headers: Headers) -> None:
        self._connector = connector
        self._receiver = receiver
        self._fixed = headers
        try:
            self._made = connector.headers, connector.headers.with_(headers)
            """The connector's headers, and what was made of them for this session."""
        except ValueError as error:
            raise InvalidRequest(str(error)) from None
        self._target: str | None = None
        """Where messages go, once the stream has said it."""
        self._cut_stream: Callable[[], None] = nothing
        self._deliveries = Deliveries()
        """Messages without an answer."""
        self._posts: dict[_Post, Request | None] = {}
        """Requests that were POSTed, and whose POST is not over; None for one that was abandoned."""
        self._loss = Loss()
        self._is_established = False
        self._is_closed = False

    async def open(self) -> None:
        """Open the stream, and wait until it says where messages go.

        Raises:
            TrunklineError: it does not, or not in time.
        """
        self._connector.count("get")
        stream = _Stream(self._connector, self._receive, self.stream_over)
        headers = self._block().with_({"Accept": STREAM_TYPE})
        self._cut_stream = self._connector.http.send("GET", headers, b"", stream)
        try:
            async with asyncio.timeout(ENDPOINT_SECONDS):
                self._target = await stream.endpoint
        except TimeoutError:
            self._connector.count_fault()
            raise UpstreamFault(f"the server did not say within {ENDPOINT_SECONDS:g} s where messages go") from None
        except UpstreamFault:
            self._connector.count_fault()
            raise
        finally:
            del stream  # what it fails with leads here, and would keep what has come

    # Wire

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        if self._loss.cause is not None:
            if request is not None:
                self._loss.refused.append(request)
            return
        try:
            block = self._block().with_(headers)
        except ValueError as error:
            if request is not None:
                asyncio.get_running_loop().call_soon(self._fail, request, InvalidRequest(str(error)))
            return
        if request is None:
            send = partial(self._post, block, text)
            self._connector.deliver(self._deliveries, kind, len(text), send, partial(self._delivered, kind))
            return
        self._connector.count("call" if self._is_established else "initialize")
        self._loss.unanswered[request] = None
        post = _Post(self)
        self._posts[post] = request
        post.cut = self._post(block, text, post, request)

    def abandon(self, request: Request) -> None:
        """See `Wire.abandon`. The message has its way: the server is told of the cancellation by another."""
        for post, carried in self._posts.items():
            if carried is request:
                self._posts[post] = None
                break
        self._loss.settle(request)

    def _delivered(self, kind: SendKind, over: asyncio.Future[int]) -> None:
        if self._is_closed or self._loss.cause is not None:
            return
        if over.cancelled():
            logger.info("a %s was not acknowledged", kind, extra=self._about)
        elif isinstance(over.exception(), Withheld):
            self._withhold(None)
        elif over.exception() is not None:
            self._connector.count_dropped()
            logger.warning("a %s did not reach the server", kind, extra=self._about)
        elif over.result() == 404:
            self._forget(None)
        elif not 200 <= over.result() < 300:
            logger.warning("the server answered a %s with HTTP %d", kind, over.result(), extra=self._about)

    def _forget(self, request: Request | None) -> None:
        """The server no longer knows the session, and did not run this request."""
        cause = SessionLost("the server no longer knows the session", executed="unknown")
        self._loss.come(cause, self._tell_lost, request)

    def _post(
        self, headers: HeaderBlock, text: bytes, answer: Answer, request: Request | None = None
    ) -> Callable[[], None]:
        fence = self._receiver.fence if request is None else partial(_may_go, request, self._receiver.fence)
        return self._connector.http.send("POST", headers, text, answer, target=self._target, fence=fence)

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`."""
        if self._loss.cause is not None:
            raise self._loss.cause
        if revision >= VERSION_HEADER_SINCE:
            self._fixed = {**self._fixed, "MCP-Protocol-Version": revision}
            self._made = self._connector.headers, self._connector.headers.with_(self._fixed)
        self._connector.count("initialized")
        await announce(partial(self._connector.http.send, "POST", self._block(), initialized, target=self._target))
        self._is_established = True

    def close(self) -> None:
        """Cut everything: the end of the stream is the end of the session. Idempotent."""
        self._is_closed = True
        self._loss.close()
        self._cut()

    # What becomes of a message, as the answer to its POST tells.

    def answered(self, post: _Post, status: int) -> None:
        """The server accepted this message, or refused it."""
        request = self._posts[post]
        if status == 404:
            self._forget(request)
        elif not 200 <= status < 300 and request is not None:
            self._fail(request, refusal(status))
        if request is not None:
            self._loss.settle(request)

    def broke(self, post: _Post, error: ExchangeBroken) -> None:
        """No answer came to this POST."""
        request = self._posts[post]
        if isinstance(error, Withheld):
            self._withhold(request)
        elif request is not None:
            self._fail(request, failure_of(error))

    def is_over(self, post: _Post) -> None:
        """Nothing more comes of this POST."""
        self._posts.pop(post, None)

    def is_late(self, post: _Post) -> bool:
        """Whether a POST that is not over after so long can be given up: nobody waits for what it carries.

        Its status is no reason: a server may keep it open while a tool runs, and take its end for a cancellation.
        """
        request = self._posts[post]
        return request is None or request.state == "done"

    def stream_over(self, why: str, *, is_fault: bool) -> None:
        """The stream has ended, broke, or went wrong."""
        if is_fault:
            self._connector.count_fault()
        self._loss.come(SessionLost(why, executed="unknown"), self._tell_lost, at_once=True)

    # Inside.

    @property
    def _about(self) -> dict[str, str]:
        return {"server": self._connector.server}

    def _block(self) -> HeaderBlock:
        """What goes with every request: the connector's headers as they are now, and what is fixed."""
        base = self._connector.headers
        if self._made[0] is not base:
            self._made = base, base.with_(self._fixed)
        return self._made[1]

    def _receive(self, text: bytes) -> None:
        if not self._is_closed:
            self._receiver.received(text, None)

    def _fail(self, request: Request, error: TrunklineError) -> None:
        self._loss.settle(request)
        if not self._is_closed and request.state != "done":
            self._receiver.failed(request, error)

    def _withhold(self, request: Request | None) -> None:
        if request is not None:
            self._loss.settle(request)
        if not self._is_closed and (request is None or request.state != "done"):
            self._receiver.withheld(request)

    def _cut(self) -> None:
        """Cut the stream, and all that is under way beside it."""
        self._cut_stream()
        self._cut_stream = nothing  # which leads to what has come
        self._deliveries.cut()
        for post in self._posts:
            post.stop()
        self._posts.clear()

    def _tell_lost(self, cause: SessionLost, refused: list[Request]) -> None:
        self._cut()
        self._receiver.lost(cause, refused)


def _may_go(request: Request, fence: Fence | None) -> bool:
    """Whether a request may still be sent: one that was cancelled meanwhile is not."""
    return request.is_wanted() and (fence is None or fence())


class _Stream:
    """The answer to the GET: the endpoint first, then messages. Implements `Answer`."""

    def __init__(self, connector: SSEConnector, hand_on: Callable[[bytes], None], over: Callable[..., None]) -> None:
        self._url = connector.url
        self._hand_on = hand_on
        self._over = over
        self._parser = EventParser(limit=MAX_EVENT_BYTES, unfinished=connector.unfinished)
        self._is_stopped = False
        self.endpoint: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """The target of messages, or why there is none."""

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        if status != 200:
            self._stop(UpstreamUnreachable(words_of_status(status), status=status, executed="no"))
        elif content_type(headers) != STREAM_TYPE:
            self._stop(UpstreamFault("the server answered a GET with something that is no event stream"))

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`."""
        if self._is_stopped:
            return
        try:
            for event in self._parser.feed(chunk):
                if event.name == "endpoint" and not self.endpoint.done():
                    self.endpoint.set_result(self._target_of(event.data))
                elif event.name == "message" and event.data:
                    if not self.endpoint.done():
                        raise UpstreamFault("the server sent a message before it said where messages go")
                    self._hand_on(event.data)
        except UpstreamFault as fault:
            self._stop(fault)

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        if self.endpoint.done():
            if not self._is_stopped:
                self._is_stopped = True
                self._over(f"the server's stream {'ended' if error is None else 'broke'}", is_fault=False)
        elif error is None:
            self._stop(UpstreamFault("the server's stream ended before it said where messages go"))
        else:
            self._stop(failure_of(error, may_run=False))

    def _stop(self, error: TrunklineError) -> None:
        """Hear nothing more."""
        if self._is_stopped:
            return
        self._is_stopped = True
        if not self.endpoint.done():
            self.endpoint.set_exception(bare(error))
            self.endpoint.exception()  # nobody may be waiting any longer
        else:
            self._over(error.message, is_fault=True)

    def _target_of(self, reference: bytes) -> str:
        if len(reference) > MAX_ENDPOINT_BYTES:
            raise UpstreamFault(f"the server's endpoint is longer than {MAX_ENDPOINT_BYTES} bytes")
        try:
            return target_within(self._url, reference.decode())
        except ValueError as error:
            raise UpstreamFault(f"the server's endpoint cannot be used: {error}") from None


class _Post:
    """The answer to the POST of a request: a status that accepts it, or refuses it. Implements `Answer`."""

    __slots__ = ("_body", "_patience", "_status", "_wire", "cut")

    def __init__(self, wire: _SSEWire) -> None:
        self._wire = wire
        self._status = 0
        self._body = Body(ERROR_BODY_BYTES)
        self._patience = asyncio.get_running_loop().call_later(LATE_SECONDS, self._late)
        self.cut: Callable[[], None] = nothing

    def began(self, status: int, headers: Headers) -> None:
        """See `Answer.began`."""
        self._status = status
        self._wire.answered(self, status)

    def came(self, chunk: bytes) -> None:
        """See `Answer.came`. The body is read so far that the connection can be used again."""
        try:
            self._body.add(chunk)
        except UpstreamFault:
            self._end()

    def ended(self, error: ExchangeBroken | None) -> None:
        """See `Answer.ended`."""
        self._patience.cancel()
        if not self._status and error is not None:
            self._wire.broke(self, error)
        self._wire.is_over(self)

    def stop(self) -> None:
        """Nothing of it matters any longer."""
        self._patience.cancel()
        self.cut()

    def _late(self) -> None:
        if self._wire.is_late(self):
            self._end()
        else:
            self._patience = asyncio.get_running_loop().call_later(LATE_SECONDS, self._late)

    def _end(self) -> None:
        self.stop()
        self._wire.is_over(self)
