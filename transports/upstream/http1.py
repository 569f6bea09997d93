"""A lean HTTP/1.1 client for one server: asyncio protocols, httptools' parser, kept connections, no task per request.

A connection carries one request at a time. It is used again only if the answer was complete, the server keeps it open,
the request had been written to its end, and not one byte came that nobody asked for: such a byte could be taken for
the answer to the next request.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final, NamedTuple, cast
from urllib.parse import urlsplit

import httptools

from ..media import STREAM_TYPE, content_type
from ..portions import PORTION_BYTES, SMALL, Portions, end_of_events
from .addresses import Addresses
from .http import (
    CONNECT_SECONDS,
    ENCODED,
    KEEP_ALIVE_SECONDS,
    MAX_HEAD_BYTES,
    Answer,
    ExchangeBroken,
    Fence,
    HeaderBlock,
    Method,
    Withheld,
    host_of,
    target_of,
    words_of,
)

logger = logging.getLogger(__name__)

POST_END: Final = b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n"

COMMON: Final = (
    "content-type",
    "content-length",
    "date",
    "server",
    "mcp-session-id",
    "connection",
    "transfer-encoding",
)
NAMES: Final = {spelled.encode(): name for name in COMMON for spelled in (name, name.title())}
"""Headers that most answers have, by how they are spelled."""

NO_HTTP: Final = "the server's answer is no HTTP/1.1"

SMALL_BODY: Final = 65_536
"""Up to this size a body is copied behind its head, so that both go out in one write."""

PARSED_BODY: Final = 65_536
"""A body of known length of which more than this is left is read without the parser, which copies all that it tells.

But for events: each costs time, and the parser is given one portion at a time.
"""

PROBED: Final = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 4}
"""A silent connection is probed by the operating system after so many seconds, and is broken after so many probes.

Of a stream that is quiet by nature nothing else tells that its server has vanished without a word.
"""


class _Request(NamedTuple):
    head: bytes
    body: bytes
    answer: Answer
    fence: Fence | None

    @property
    def is_withheld(self) -> bool:
        return self.fence is not None and not self.fence()


class HTTP1Client:
    """Implements `HTTPClient` for one URL. `context` is used for https.

    Raises:
        ValueError: the URL has no host, or another scheme than http or https.
    """

    def __init__(self, url: str, context: ssl.SSLContext) -> None:
        parts = urlsplit(url)
        self._host = host_of(parts)
        if parts.scheme not in ("http", "https") or not self._host:
            raise ValueError("the URL must be http:// or https:// with a host")
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._addresses = Addresses(self._host, self._port)
        self._tls = context if parts.scheme == "https" else None
        authority = f"[{self._host}]" if ":" in self._host else self._host
        host = authority if parts.port is None else f"{authority}:{parts.port}"
        self._end = f" HTTP/1.1\r\nHost: {host}\r\n"
        self._start = self._start_of(target_of(parts))
        self._idle: deque[_Connection] = deque()
        """Kept connections, the longest unused first."""
        self._open: set[_Connection] = set()
        self._connecting: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop
        """Where the connections live."""
        self._closed = False

    def send(
        self,
        method: Method,
        headers: HeaderBlock,
        body: bytes,
        answer: Answer,
        *,
        target: str | None = None,
        fence: Fence | None = None,
    ) -> Callable[[], None]:
        """See `HTTPClient.send`."""
        assert method == "POST" or not body, "only a POST has a body"
        start = self._start if target is None else self._start_of(target)
        end = POST_END % len(body) if method == "POST" else b"\r\n"
        head = b"".join((method.encode(), start, headers.encoded, end))
        request = _Request(head, body, answer, fence)
        if request.is_withheld:
            return asyncio.get_running_loop().call_soon(answer.ended, Withheld()).cancel
        while self._idle:
            connection = self._idle.pop()
            if connection.is_usable:
                connection.start(request)
                return partial(connection.cut, answer)
        cut = _Cut()
        task = asyncio.get_running_loop().create_task(self._connect(request, cut))
        self._connecting.add(task)
        task.add_done_callback(partial(self._connected, request, cut))
        cut.do = task.cancel
        return cut

    async def close(self) -> None:
        """See `HTTPClient.close`."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        tasks = list(self._connecting)
        for task in tasks:
            task.cancel()
        self._idle.clear()
        for connection in list(self._open):
            connection.close()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start_of(self, target: str) -> bytes:
        """What stands in a request between its method and its headers, the Host among them."""
        return f" {target}{self._end}".encode("ascii")

    async def _connect(self, request: _Request, cut: _Cut) -> None:
        """Open a connection for a request and start it there."""
        self._loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await self._addresses.first(self._reach)
        except OSError as error:
            # Its traceback leads to the request, and some of its frames to it: the collector alone would free them.
            request.answer.ended(ExchangeBroken(words_of(error.with_traceback(None)), sent=False))
        except Exception as error:  # no thread that asks for the host: whatever it is, who waits must hear of it
            logger.error("no connection could be opened", exc_info=error)
            request.answer.ended(ExchangeBroken("no connection", sent=False))
        else:
            self._open.add(connection)
            if request.is_withheld:
                self._free(connection)
                request.answer.ended(Withheld())
            elif connection.is_usable:
                cut.do = partial(connection.cut, request.answer)
                connection.start(request)
            else:
                request.answer.ended(ExchangeBroken("the connection was closed at once", sent=False))

    async def _reach(self, address: str) -> _Connection:
        """A connection to one address."""
        _, connection = await self._loop.create_connection(
            lambda: _Connection(self._free, self._open.discard),
            address,
            self._port,
            ssl=self._tls,
            server_hostname=self._host if self._tls is not None else None,
        )
        return connection

    def _connected(self, request: _Request, cut: _Cut, task: asyncio.Task[None]) -> None:
        self._connecting.discard(task)
        if task.cancelled() and not cut.is_cut:
            request.answer.ended(ExchangeBroken("the gateway stopped", sent=False))

    def _free(self, connection: _Connection) -> None:
        """A connection has carried its request and can carry another."""
        if self._closed:
            connection.close()
            return
        connection.idle_since = self._loop.time()
        self._idle.append(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(KEEP_ALIVE_SECONDS, self._drop_idle)

    def _drop_idle(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = None
        while self._idle:
            due = self._idle[0].idle_since + KEEP_ALIVE_SECONDS
            if due > loop.time() + 0.001 and self._idle[0].is_usable:
                self._timer = loop.call_at(due, self._drop_idle)
                return
            self._idle.popleft().close()


class _Cut:
    """Cuts a request wherever it stands: while its connection comes about, or on it."""

    __slots__ = ("do", "is_cut")

    def __init__(self) -> None:
        self.do: Callable[[], object]
        self.is_cut = False

    def __call__(self) -> None:
        self.is_cut = True
        self.do()


class _Connection(asyncio.Protocol):
    """One connection, and the callbacks of its parser. `free` and `gone` tell its client what became of it."""

    def __init__(self, free: Callable[[_Connection], None], gone: Callable[[_Connection], None]) -> None:
        self._free = free
        self._gone = gone
        self._transport: asyncio.Transport
        self._parser = httptools.HttpResponseParser(self)
        self._answer: Answer | None = None
        self._headers: dict[str, str] = {}
        self._head_left = 0
        """Bytes that the head of the answer may still take; 0 once it is complete."""
        self._until_close = False
        """The answer ends where the connection does."""
        self._came = 0
        """Bytes of the body that the parser has told."""
        self._around = 0
        """Bytes that came since then and are none of it: of trailers, and of extensions of chunks."""
        self._left = 0
        """Bytes of the body that are still to come, where no parser reads them."""
        self._is_complete = False
        self._keeps_alive = False
        self._is_spoilt = False
        """Something came that nobody asked for."""
        self._portions = Portions()
        self._is_more = False
        """Something has come behind what is being read."""
        self.idle_since = 0.0

    @property
    def is_usable(self) -> bool:
        """True while a request can be started here."""
        return not self._is_spoilt and not self._transport.is_closing()

    def start(self, request: _Request) -> None:
        """Write a request; what comes from now on is its answer."""
        self._answer = request.answer
        self._head_left, self._came, self._around = MAX_HEAD_BYTES, 0, 0
        self._is_complete = self._until_close = False
        if len(request.body) <= SMALL_BODY:
            self._transport.write(request.head + request.body)
        else:
            self._transport.write(request.head)  # not with `writelines`, which does not say that too much waits
            self._transport.write(request.body)

    def cut(self, answer: Answer) -> None:
        """Cut this exchange; nothing more is told of it. Does nothing once its answer is complete."""
        if self._answer is answer:
            self._answer = None
            self.close()

    def close(self) -> None:
        """Close it; what is under way breaks."""
        self._is_spoilt = True
        self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        _probe(transport.get_extra_info("socket"))

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._portions.take(data, self._read, self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """See `asyncio.Protocol`."""
        self._portions.lost(partial(self._end, exc))

    def _read(self, data: bytes, at: int) -> int:
        if self._answer is None or self._is_spoilt:
            self.close()
            return len(data)
        if self._left:
            self._is_more = False
            self._take_body(self._answer, data[at:])
            return len(data)
        stop = self._end_of_some(data, at)
        self._is_more = data[stop : stop + 1] != b""
        self._parse(data[at:stop])
        return stop

    def _end_of_some(self, data: bytes, at: int) -> int:
        """Where a portion ends: of events no more than some, each of which ends by an empty line."""
        stop = at + PORTION_BYTES
        if len(data) - at <= SMALL or not (self._head_left or content_type(self._headers) == STREAM_TYPE):
            return stop
        return end_of_events(data, at, stop)

    def _parse(self, data: bytes) -> None:
        head_left, came = self._head_left, self._came
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserCallbackError:
            logger.exception("an answer could not be taken")
            self._break("its answer could not be taken")
            return
        except (httptools.HttpParserUpgrade, httptools.HttpParserError) as error:
            if not self._is_complete:
                is_change = isinstance(error, httptools.HttpParserUpgrade)
                self._break("the server changed the protocol" if is_change else NO_HTTP)
                return
            self._is_spoilt = True
        if self._is_complete:
            self._complete()
        elif self._head_left:
            if self._head_left == head_left:  # not one header line was completed by all of this
                self._take_head(len(data))
        elif self._came == came and not head_left:
            self._take_around(len(data))
        else:
            self._around = 0
            if head_left:
                self._leave_rest_unparsed()

    def _end(self, exc: Exception | None) -> None:
        self._gone(self)
        del self._parser  # which refers to this
        if self._until_close and exc is None and not self._is_spoilt:
            self._finish(None)
        else:
            self._finish(ExchangeBroken("the connection was cut", sent=True))

    # What the parser tells.

    def on_message_begin(self) -> None:
        """An answer begins; a second one to the same request spoils the connection."""
        self._is_spoilt = self._is_spoilt or self._is_complete
        self._headers = {}

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header, or after the body one trailer, which is dropped."""
        if not self._head_left:
            return
        self._head_left -= len(name) + len(value) + 4
        if self._head_left < 2:
            self._take_head(0)
        key, text = NAMES.get(name) or name.decode("latin-1").lower(), value.decode("latin-1")
        self._headers[key] = f"{self._headers[key]}, {text}" if key in self._headers else text

    def on_headers_complete(self) -> None:
        """The head is complete; that of an informational answer (1xx) is dropped."""
        if self._answer is None or self._is_complete:
            return
        status = self._parser.get_status_code()
        if status < 100:  # nothing else would come, and nobody be told
            self._break(NO_HTTP)
        if status < 200:
            return
        self._head_left = 0
        coding = self._headers.get("transfer-encoding", "").lower()
        if coding not in ("", "chunked") or self._headers.get("content-encoding", "identity").lower() != "identity":
            self._break(ENCODED)
            return
        self._until_close = not coding and "content-length" not in self._headers and status not in (204, 304)
        self._answer.began(status, self._headers)

    def on_body(self, body: bytes) -> None:
        """Some of the body, which an informational answer has not."""
        if self._head_left:
            self._break(NO_HTTP)
        elif self._answer is not None and not self._is_complete:
            self._came += len(body)
            self._answer.came(body)

    def on_message_complete(self) -> None:
        """The answer is complete; what the parser still reads of this chunk belongs to nobody."""
        if not self._head_left:
            self._is_complete = True
            self._keeps_alive = self._parser.should_keep_alive()

    def _leave_rest_unparsed(self) -> None:
        """What is still to come of a body of known length is its own, up to that length."""
        left = int(self._headers.get("content-length", "0")) - self._came
        if left > PARSED_BODY and content_type(self._headers) != STREAM_TYPE:
            self._left = left
            self._keeps_alive = self._parser.should_keep_alive()
            self._parser = httptools.HttpResponseParser(self)

    def _take_body(self, answer: Answer, data: bytes) -> None:
        """Some of a body that no parser reads."""
        if len(data) > self._left:
            self._is_spoilt, data = True, data[: self._left]
        self._left -= len(data)
        answer.came(data)
        if not self._left:
            self._complete()

    def _complete(self) -> None:
        written = not self._transport.get_write_buffer_size()
        answer, self._answer = self._answer, None
        self._is_spoilt = self._is_spoilt or self._is_more
        if self._keeps_alive and written and not self._is_spoilt and not self._transport.is_closing():
            self._free(self)
        else:
            self.close()
        if answer is not None:
            answer.ended(None)

    def _take_head(self, size: int) -> None:
        self._head_left = max(1, self._head_left - size)
        if self._head_left == 1:
            self._break("the head of the server's answer is too large")

    def _take_around(self, size: int) -> None:
        """The parser keeps a trailer until it is complete."""
        self._around += size
        if self._around > MAX_HEAD_BYTES:
            self._break("too much of the server's answer is none of its body")

    def _break(self, why: str) -> None:
        self._finish(ExchangeBroken(why, sent=True))
        self.close()

    def _finish(self, error: ExchangeBroken | None) -> None:
        answer, self._answer = self._answer, None
        if answer is not None:
            answer.ended(error)


def _probe(connection: socket.socket) -> None:
    with suppress(OSError):  # it is broken already, which is told next
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in PROBED.items():
            if hasattr(socket, name):  # not every system lets a program choose
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
