"""One request that came on a connection, and its answer: in one go, or through the three calls of ASGI."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from http import HTTPStatus
from typing import Any, Final, NamedTuple, Protocol

from ..mux.envelope import Spliced, Text
from ..transports.asgi import ASGIApp, Message, RawHeaders, RequestHeaders, Scope

logger = logging.getLogger(__name__)

SMALL_BODY: Final = 65_536
"""Up to this size a body is copied behind its head, so that both go out in one packet."""

MAX_UNTAKEN_BYTES: Final = 65_536
"""What is read of a body before somebody asks for it."""

MAX_PARTS: Final = 64
"""Of a body that is kept in parts: a part of one byte takes as much memory as one of thirty."""

MAX_ANSWER_HEADS: Final = 1_024
"""That are kept as they were encoded; few hold what belongs to one session."""

MAX_ANSWER_HEAD_BYTES: Final = 1_024
"""Longer ones are encoded each time: they hold what a client chose, such as the Host that a challenge names."""

STATUS_LINES: Final = {status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus}

GO_ON: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

FAILED: Final[RawHeaders] = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]

DISCONNECT: Final[Message] = {"type": "http.disconnect"}


class AnswerHead(NamedTuple):
    """The status line and the headers of an answer, encoded, but for its length."""

    lines: bytes
    says_close: bool
    has_no_body: bool
    """Whatever its length says: that of what a GET would have been answered with."""


def answer_head(status: int, headers: Iterable[tuple[bytes, bytes]]) -> tuple[AnswerHead, int | None]:
    """The head of an answer, and its length where that is among the headers.

    Raises:
        RuntimeError: a header holds a line break.
    """
    lines, length, says_close = [], None, False
    for name, value in headers:
        if name == b"content-length":
            length = int(value)
            continue
        if name == b"connection" and value.lower() == b"close":
            says_close = True
        lines.append(b"%b: %b\r\n" % (name, value))
    own = b"".join(lines)
    if own.count(b"\n") != len(lines) or own.count(b"\r") != len(lines):
        raise RuntimeError("a header of an answer holds a line break")
    first = STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status
    return AnswerHead(first + own, says_close, status in (204, 304)), length


class AnswerHeads:
    """Of a listener: those that were encoded. Most answers have one that another had, on whichever connection."""

    def __init__(self) -> None:
        self.default = b""
        """Headers of every answer besides, encoded."""
        self._encoded: dict[tuple[int, tuple[tuple[bytes, bytes], ...]], AnswerHead] = {}

    def of(self, status: int, headers: RawHeaders) -> AnswerHead:
        """The head of an answer whose length is not among its headers. Raises as `answer_head`."""
        key = (status, tuple(headers))
        head = self._encoded.get(key)
        if head is None:
            head, _ = answer_head(status, headers)
            if len(head.lines) <= MAX_ANSWER_HEAD_BYTES:
                if len(self._encoded) >= MAX_ANSWER_HEADS:
                    del self._encoded[next(iter(self._encoded))]
                self._encoded[key] = head
        return head


class Carrier(Protocol):
    """The connection of an exchange, as that sees it."""

    transport: asyncio.Transport
    is_lost: bool
    has_left: bool
    """True once the client sends nothing more: it may have gone, and whoever asks is told so."""
    is_leaving: bool
    """True where an answer that begins from now on is to be its last one."""
    is_write_paused: bool
    answer_heads: AnswerHeads

    @property
    def app(self) -> ASGIApp:
        """Who answers what nobody takes at once."""

    async def drained(self) -> None:
        """Return when the client has taken enough, or has gone."""

    def settle(self) -> None:
        """Some of a body was taken, or the connection is to end: read on or not, and wait for what is due next."""

    def is_over(self, exchange: HTTPExchange) -> None:
        """The answer is complete."""

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run this in a task, for which the end of the server waits."""


class HTTPExchange:
    """Implements `WholeRequest`, and is `receive` and `send` to an ASGI application (ASGI's HTTP specification, 2.3).

    An answer whose length is known goes out with its head, in one packet; the head of a stream goes out at once.
    """

    __slots__ = (
        "_body",
        "_carrier",
        "_head",
        "_is_bodyless",
        "_is_end_told",
        "_left",
        "_untaken",
        "_waits_to_go_on",
        "_waker",
        "has_begun",
        "headers",
        "is_kept",
        "is_over",
        "is_whole",
        "left",
        "scope",
    )

    headers: RequestHeaders
    """See `WholeRequest.headers`."""

    def __init__(self, carrier: Carrier, scope: Scope, *, is_kept: bool, waits_to_go_on: bool) -> None:
        self.scope = scope
        self.left: Callable[[], None] | None = None
        """See `WholeRequest.left`."""
        self.is_whole = False
        """True once the request has come to its end."""
        self.is_over = False
        """True once the answer is complete."""
        self._carrier = carrier
        self.is_kept = is_kept
        """True while the connection may carry another."""
        self._waits_to_go_on = waits_to_go_on
        self._body: list[bytes] = []
        """What has come of the body, and was not asked for yet."""
        self._untaken = 0
        """How much that is, in bytes."""
        self._is_end_told = False
        self._waker: asyncio.Future[None] | None = None
        """While `receive` waits."""
        self.has_begun = False
        """True once the head of the answer is given."""
        self._is_bodyless = False
        self._head = b""
        """The head of the answer, while it waits for its body."""
        self._left: int | None = None
        """What is still to come of an answer whose length is known."""

    # What comes from the client, as the connection tells.

    @property
    def has_left(self) -> bool:
        """See `WholeRequest.has_left`."""
        return self._carrier.is_lost or self._carrier.has_left

    @property
    def is_watched(self) -> bool:
        """True where somebody is told when the client leaves, or its answer has begun."""
        return self.has_begun or self.left is not None or self._waker is not None

    @property
    def is_full(self) -> bool:
        """True while so much of the body is here that no more is read before somebody asks for it."""
        return self._untaken > MAX_UNTAKEN_BYTES

    def came(self, part: bytes) -> None:
        """Some of the body."""
        if self.is_over:
            return
        self._untaken += len(part)
        self._body.append(part)
        if len(self._body) > MAX_PARTS:
            self._body = [b"".join(self._body)]
        if self._waker is not None:
            self._wake()

    def came_whole(self) -> None:
        """The request is complete."""
        self.is_whole = True
        if self._waker is not None:
            self._wake()

    def lost(self) -> None:
        """The client has gone, or sends what is no HTTP."""
        self._wake()
        left, self.left = self.left, None
        if left is not None and not self.is_over:
            left()

    # The whole of it.

    @property
    def body(self) -> bytes:
        """See `WholeRequest.body`."""
        return self._body[0] if len(self._body) == 1 else b"".join(self._body)

    def reply(self, status: int, headers: RawHeaders, body: Text) -> None:
        """See `WholeRequest.reply`."""
        if not self._carrier.is_lost:
            self._start(self._carrier.answer_heads.of(status, headers), len(body))
            self._add(body, is_last=True)

    def go_on(self, work: Awaitable[None]) -> None:
        """See `WholeRequest.go_on`."""
        self._carrier.begin(self._run(work))

    def decline(self) -> None:
        """See `WholeRequest.decline`."""
        self.go_on(self._carrier.app(self.scope, self.receive, self.send))

    async def _run(self, work: Awaitable[None]) -> None:
        try:
            await work
        except Exception:
            logger.exception("a request failed")
        finally:
            if not self.is_over and not self._carrier.is_lost:
                self.fail()

    def fail(self) -> None:
        """There is no answer, or not all of it."""
        if self.has_begun:
            self._carrier.transport.close()
            self._carrier.settle()
        else:
            self.reply(500, [*FAILED], b"Internal Server Error")

    # ASGI.

    async def receive(self) -> Message:
        """The next part of the body; then wait until the client has gone, or the answer is complete."""
        carrier = self._carrier
        if self._waits_to_go_on:
            self._waits_to_go_on = False
            if not self.is_whole and not carrier.is_lost:
                carrier.transport.write(GO_ON)
        while not (self.is_over or carrier.is_lost):
            if self._body or (self.is_whole and not self._is_end_told):
                body, self._body, self._untaken = self.body, [], 0
                self._is_end_told = self.is_whole
                if not self.is_whole:
                    carrier.settle()
                return {"type": "http.request", "body": body, "more_body": not self.is_whole}
            if carrier.has_left:
                break
            self._waker = asyncio.get_running_loop().create_future()
            await self._waker
        return DISCONNECT

    async def send(self, message: Message) -> None:
        """Send the head of the answer, or a part of its body. What a client that has gone does not hear is dropped.

        Raises:
            RuntimeError: it is not its turn, it does not keep to the length that was given, or it holds a line break.
        """
        carrier = self._carrier
        if carrier.is_write_paused:
            await carrier.drained()
        if carrier.is_lost:
            await asyncio.sleep(0)  # who sends without end lets others go on all the same
            return
        match message["type"]:
            case "http.response.start":
                self._start(*answer_head(message["status"], message.get("headers", ())))
            case "http.response.body":
                self._add(message.get("body", b""), is_last=not message.get("more_body", False))
            case other:
                raise RuntimeError(f"an HTTP answer has no {other}")

    def _start(self, head: AnswerHead, length: int | None) -> None:
        if self.has_begun:
            raise RuntimeError("the answer has begun before")
        if self._carrier.is_leaving or head.says_close or (self._waits_to_go_on and not self.is_whole):
            self.is_kept = False  # the server ends; or nobody knows whether the body will come
        self._left = length
        self._is_bodyless = head.has_no_body or self.scope["method"] == "HEAD"
        is_streamed = length is None and not self._is_bodyless
        end = b"\r\n" if length is None else b"content-length: %d\r\n\r\n" % length
        if is_streamed:
            if self.scope["http_version"] == "1.1":
                end = b"transfer-encoding: chunked\r\n\r\n"
            else:  # ends with the connection
                self.is_kept = False
        if not self.is_kept and not head.says_close:
            end = b"connection: close\r\n" + end
        self.has_begun, self._waits_to_go_on = True, False
        self._head = b"".join((head.lines, self._carrier.answer_heads.default, end))
        if is_streamed:
            self._carrier.transport.write(self._head)
            self._head = b""

    def _add(self, body: Text, *, is_last: bool) -> None:
        if not self.has_begun or self.is_over:
            raise RuntimeError("the answer has not begun, or is complete")
        transport, size = self._carrier.transport, len(body)
        if self._is_bodyless:
            body = b""
        elif self._left is not None:
            if size > self._left or (is_last and size < self._left):
                raise RuntimeError("the answer is not as long as its head says")
            self._left -= size
        elif self.scope["http_version"] == "1.1":
            body = b"%x\r\n%b\r\n" % (size, bytes(body)) if body else b""
            if is_last:
                body += b"0\r\n\r\n"
        head, self._head = self._head, b""
        if isinstance(body, Spliced):
            first, *middle, last = body.pieces
            transport.writelines((head + first, *middle))
            transport.write(last)  # `writelines` may tell nobody that too much waits (CVE-2024-12254)
        elif head and body and size > SMALL_BODY:
            transport.write(head)
            transport.write(body)
        elif head or body:
            transport.write(head + body if head else body)
        if is_last:
            self.is_over, self.left = True, None
            self._body, self._untaken = [], 0
            if self._waker is not None:
                self._wake()
            if not self.is_kept:
                transport.close()
            self._carrier.is_over(self)

    def _wake(self) -> None:
        if self._waker is not None:
            if not self._waker.done():
                self._waker.set_result(None)
            self._waker = None
