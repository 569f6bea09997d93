"""The server's side of one HTTP/1.1 connection: httptools' parser, one exchange at a time, bounds on all that comes.

A request that comes whole and that somebody takes at once costs no task, and an answer of known length one packet.
What comes with the head of the request before it, but for the length, is not parsed again.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from math import inf
from typing import TYPE_CHECKING, Any, Final, Literal, cast
from urllib.parse import unquote

import httptools

from ..transports.asgi import ASGIApp, RawHeaders, RequestHeaders, Scope, headers_of
from ..transports.patience import Waiting
from .http_exchange import HTTPExchange
from .known_head import MAX_KNOWN_BYTES, Known, KnownHead

if TYPE_CHECKING:
    from .http_listening import HTTPListening

logger = logging.getLogger(__name__)

MAX_HEAD_BYTES: Final = 131_072
"""The request line and the headers together; a client that sends more is cut."""

HEAD_SECONDS: Final = 30.0
"""How long a head may take, from the connection or its own first byte on; nobody is authenticated before."""

BODY_SECONDS: Final = 65.0
"""How long a body may take. Who reads it refuses it sooner, but for one of which nothing comes: that is cut."""

IDLE_SECONDS: Final = 75.0
"""How long a connection is kept between two requests: longer than clients keep theirs, so that they end it."""

TAKE_SECONDS: Final = 65.0
"""How long an answer may stay untaken. Who gives one that comes in parts gives up sooner."""

FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 10\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

REFUSED: Final = (
    b"HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain; charset=utf-8\r\nconnection: close\r\n"
    b"content-length: 30\r\n\r\nInvalid HTTP request received."
)

ASGI: Final = {"version": "3.0", "spec_version": "2.3"}

MAX_DIGITS: Final = 5
"""Of the length of a small body."""

MAX_READ: Final = 16_384
"""What is read at once: who sends many requests without waiting has the rest of them kept as it came."""

Overdue = Literal["slow_head", "slow_body", "idle", "untaken"]


class HTTPConnection(asyncio.Protocol):
    """One connection, and the callbacks of its parser. Implements `Carrier`."""

    __slots__ = (
        "_active",
        "_body_left",
        "_client",
        "_drained",
        "_expects",
        "_head_bytes",
        "_headers",
        "_hold",
        "_is_body",
        "_is_broken",
        "_is_going_on",
        "_is_in_head",
        "_is_reading",
        "_known",
        "_known_head",
        "_length",
        "_listening",
        "_newest",
        "_parser",
        "_queue",
        "_scheme",
        "_server",
        "_unread",
        "_upgrade",
        "_url",
        "_waits_behind",
        "_waits_for",
        "due",
        "is_leaving",
        "is_lost",
        "is_write_paused",
        "transport",
    )

    def __init__(self, listening: HTTPListening) -> None:
        self._listening = listening
        self._parser = httptools.HttpRequestParser(self)
        self.transport: asyncio.Transport
        self.is_lost = False
        self.is_leaving = False
        self.is_write_paused = False
        self._drained: asyncio.Future[None] | None = None
        self._client: tuple[str, int] | None = None
        self._server: tuple[str, int] | None = None
        self._scheme = "http"
        self.due = inf
        """When it is ended, in the event loop's time, unless it goes on before."""
        self._waits_for: Overdue | None = None
        self._waits_behind: HTTPExchange | None = None
        """The last request whose head was read when the wait began: behind another, it begins anew."""
        self._is_reading = True
        self._is_broken = False
        """True once something came that is no HTTP: nothing more is read."""
        self._is_in_head = False
        self._is_body = False
        """Whether what was read last held some of a body."""
        self._head_bytes = 0
        self._url = b""
        self._headers: RawHeaders = []
        self._expects = False
        self._length = b""
        """How long the body is to be, where that is declared."""
        self._known_head: KnownHead | None = None
        self._body_left = 0
        """How much is to come of the body of a request whose head was known."""
        self._known: tuple[RawHeaders, RequestHeaders] | None = None
        """Headers of a request, but for the length, and what they were read as."""
        self._hold: Waiting | None = None
        """While the small body of the only one that came since is waited for."""
        self._unread: bytes | memoryview = b""
        """What came and was not parsed yet."""
        self._upgrade = b""
        """To what the request that is being read wants to change."""
        self._newest: HTTPExchange | None = None
        """The last request whose head was read."""
        self._active: HTTPExchange | None = None
        """The one that is being answered."""
        self._queue: list[HTTPExchange] = []
        """Those that came since."""
        self._is_going_on = False

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See the base class."""
        self.transport = transport = cast("asyncio.Transport", transport)
        self._client = _address(transport.get_extra_info("peername"))
        self._server = _address(transport.get_extra_info("sockname"))
        if transport.get_extra_info("sslcontext") is not None:
            self._scheme = "https"
        if not self._listening.add(self):
            self._listening.statistics.count("refused", "connections")
            transport.write(FULL)
            transport.close()
        self._wait_for("slow_head", HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """See the base class."""
        self.is_lost = True
        self._listening.remove(self)
        self.resume_writing()
        exchanges = [*self._queue] if self._active is None else [self._active, *self._queue]
        self._active, self._newest, self._queue = None, None, []
        for exchange in exchanges:
            exchange.lost()
        if self._hold is not None:
            self._hold.cancel()
        del self._parser  # which knows the connection, and would keep it

    def data_received(self, data: bytes) -> None:
        """See the base class."""
        if not self._is_broken and not self.transport.is_closing():
            self._unread = b"".join((self._unread, data)) if self._unread else data
            self._go_on()

    def pause_writing(self) -> None:
        """See the base class."""
        self.is_write_paused = True
        self._wait_for("untaken", TAKE_SECONDS)

    def resume_writing(self) -> None:
        """See the base class."""
        self.is_write_paused = False
        if self._waits_for == "untaken" and not self.transport.is_closing():
            self.due, self._waits_for = inf, None
        if self._drained is not None:
            self._drained.set_result(None)
            self._drained = None

    # The parser

    def on_message_begin(self) -> None:
        """A request begins."""
        self._is_in_head, self._head_bytes = True, 0
        self._url, self._headers, self._expects, self._length, self._upgrade = b"", [], False, b"", b""

    def on_url(self, url: bytes) -> None:
        """Some of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers; one behind its body is dropped."""
        if not self._is_in_head:
            return
        name = name.lower()
        if name == b"content-length":
            self._length = value
            return
        if name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"upgrade":
            self._upgrade = value.lower()
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Its head is complete."""
        self._is_in_head, self._head_bytes = False, 0
        parser = self._parser
        if parser.should_upgrade():
            return
        self._upgrade = b""
        version = parser.get_http_version()
        exchange = HTTPExchange(
            self,
            self._scope(version),
            is_kept=version == "1.1" and parser.should_keep_alive(),
            waits_to_go_on=self._expects,
        )
        self._newest = exchange
        self._queue.append(exchange)

    def on_body(self, part: bytes) -> None:
        """Some of its body."""
        self._is_body = True
        if self._newest is not None:
            self._newest.came(part)

    def on_message_complete(self) -> None:
        """It is complete."""
        if self._newest is not None and not self._upgrade:
            self._newest.came_whole()

    def _scope(self, version: str) -> Scope:
        url, headers = self._url, self._headers
        if self._length:
            headers = [*headers, (b"content-length", self._length)]
        raw_path, query = url, b""
        if url[:1] != b"/" or b"?" in url or b"#" in url:
            parts = httptools.parse_url(url)
            raw_path, query = parts.path or b"/", parts.query or b""
        path = raw_path.decode("ascii")
        root = self._listening.config.root_path
        return {
            "type": "http",
            "asgi": ASGI,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "scheme": self._scheme,
            "path": root + (unquote(path) if "%" in path else path),
            "raw_path": root.encode() + raw_path,
            "query_string": query,
            "root_path": root,
            "headers": headers,
            "client": self._client,
            "server": self._server,
        }

    # uvicorn

    def shutdown(self) -> None:
        """The server ends: so does the connection, with the answers that are due."""
        self.is_leaving = True
        if self._active is None and not self._queue:
            self.transport.close()

    # Carrier

    @property
    def default_head(self) -> bytes:
        """See `Carrier.default_head`."""
        return self._listening.default_head

    @property
    def app(self) -> ASGIApp:
        """See `Carrier.app`."""
        return cast("ASGIApp", self._listening.config.loaded_app)

    async def drained(self) -> None:
        """See `Carrier.drained`."""
        while self.is_write_paused:
            if self._drained is None:
                self._drained = self._listening.loop.create_future()
            await asyncio.shield(self._drained)

    def is_over(self, exchange: HTTPExchange) -> None:
        """See `Carrier.is_over`."""
        if self._active is exchange:
            self._active = None
            self._go_on()

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """See `Carrier.begin`."""
        self._listening.begin(work)

    # Which request is answered, and what is waited for.

    def _go_on(self) -> None:
        """Have the next request answered, once the one before is, and read on: many may come without waiting."""
        if self._is_going_on:
            return
        self._is_going_on = True
        try:
            while not self.transport.is_closing():
                if self._active is None and self._queue and (self._queue[0].is_whole or not self._holds()):
                    self._tell(self._queue.pop(0))
                elif self._unread and (not self._queue or self._hold is not None):
                    self._read()
                else:
                    break
        finally:
            self._is_going_on = False
        self.settle()

    def _holds(self) -> bool:
        """Whether nobody is told of a request yet, since its small body is waited for."""
        if self._is_broken:
            return False
        if self._hold is None:
            if self._expects or len(self._length) > MAX_DIGITS or not int(self._length or b"0"):
                return False
            self._hold = self._listening.hold.begin(self._listening.loop, self._end_hold)
        return not self._hold.is_called_off

    def _end_hold(self) -> None:
        if self._hold is not None:
            self._hold.cancel()
            self._go_on()

    def _tell(self, exchange: HTTPExchange) -> None:
        """Have a request answered."""
        self._active = exchange
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if not self._take(exchange):
            exchange.decline()

    def _read(self) -> None:
        """Parse some of what came; or take it as it is, where it has a head that is known, or is the body after one."""
        data, self._unread = self._unread, b""
        begins = self._is_between
        if isinstance(data, bytes) and self._known_head is not None:
            known = self._known_head.known_in(data) if begins else None
            if known is not None:
                self._begin_known(known)
            if known is not None or self._body_left:
                self._take_body(data, 0 if known is None else known.end)
                return
        if len(data) > MAX_READ:
            rest = memoryview(data)  # of which a slice is no copy
            data, self._unread = rest[:MAX_READ], rest[MAX_READ:]
        headers, queued, self._is_body = self._headers, len(self._queue), False
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self._change(data[upgrade.args[0] :])
            return
        except httptools.HttpParserError:
            self._break()
            return
        if headers is self._headers:
            if not self._is_body:
                self._head_bytes += len(data)  # of a head that is long, or of what stands round a body
                if self._head_bytes > MAX_HEAD_BYTES:
                    self.cut("head")
        elif self._known is not None and begins and len(self._queue) == queued + 1 and not self._is_in_head:
            self._learn_head(self._queue[-1], data, self._known[0])

    @property
    def _is_between(self) -> bool:
        """Whether what comes next begins a request."""
        return not self._is_in_head and (self._newest is None or self._newest.is_whole)

    def _learn_head(self, exchange: HTTPExchange, data: bytes | memoryview, before: RawHeaders) -> None:
        """Know the head that was read, where the one before said the same: the next one mostly does."""
        if before == self._headers and self._length and exchange.is_kept and not self._expects:
            start = bytes(data[:MAX_KNOWN_BYTES])
            self._known_head = KnownHead.of(start, self._length, exchange.scope, self._headers)

    def _begin_known(self, known: Known) -> None:
        """A request begins whose head was known."""
        self._head_bytes = 0
        self._length, self._expects = known.length, False
        self._body_left = int(known.length)
        self._newest = HTTPExchange(self, known.scope, is_kept=True, waits_to_go_on=False)
        self._queue.append(self._newest)

    def _take_body(self, data: bytes, start: int) -> None:
        """What comes from there on is some of a body, up to its length."""
        end = start + self._body_left
        part, size = data[start:end], len(data)
        self._body_left -= len(part)
        if self._newest is not None:
            if part:
                self._newest.came(part)
            if not self._body_left:
                self._newest.came_whole()
        if end < size:
            self._unread = data[end:] if size - end <= MAX_READ else memoryview(data)[end:]

    def settle(self) -> None:
        """See `Carrier.settle`: read on or not, and wait for what is due next."""
        active, newest = self._active, self._newest
        if self._is_broken and active is None:
            self._refuse()
        if self.transport.is_closing():
            self._wait_for("untaken", TAKE_SECONDS)
            return
        reads = not self._queue or self._hold is not None
        if newest is not None and not newest.is_whole and newest.is_full:
            reads = False
        if reads != self._is_reading:
            self._is_reading = reads
            if reads:
                self._waits_for = None  # it could not come
                self.transport.resume_reading()
            else:
                self.transport.pause_reading()
        if active is not None and active.is_whole:
            if not self.is_write_paused:
                self.due, self._waits_for = inf, None
            else:  # with what was answered before
                self._wait_for("untaken", TAKE_SECONDS)
        elif self._is_in_head:
            self._wait_for("slow_head", HEAD_SECONDS)
        elif newest is not None and not newest.is_whole:
            self._wait_for("slow_body", BODY_SECONDS)
        elif newest is not None:
            self._newest, self._waits_for = None, None
            self._wait_for("idle", IDLE_SECONDS)

    def _take(self, exchange: HTTPExchange) -> bool:
        """Have a request answered without a task, where that can be."""
        if not exchange.is_whole or self.is_write_paused:
            return False
        try:
            exchange.headers = self._read_headers(exchange.scope)
            return self._listening.at_once(exchange)
        except Exception:
            logger.exception("a request failed")
            exchange.fail()
            return True

    def _read_headers(self, scope: Scope) -> RequestHeaders:
        """The headers of a request; most clients send the same with each, but for the length."""
        raw = scope["headers"]
        if raw and raw[-1][0] == b"content-length":
            raw = raw[:-1]
        if self._known is None or self._known[0] != raw:
            self._known = raw, headers_of(scope)
        headers = self._known[1]
        headers.query = scope["query_string"]
        return headers

    def _wait_for(self, what: Overdue, seconds: float) -> None:
        if self._waits_for != what or self._waits_behind is not self._newest:
            self._waits_for, self._waits_behind = what, self._newest
            self.due = self._listening.loop.time() + seconds

    def end_overdue(self) -> None:
        """What was waited for did not come in time, or is not taken."""
        waited_for, self.due = self._waits_for, inf
        if self.transport.is_closing() or (waited_for == "idle" and self.transport.get_write_buffer_size()):
            waited_for = "untaken"
        if not self._is_reading and waited_for != "untaken":
            return  # it could not come
        if waited_for == "idle":
            self.transport.close()
        elif waited_for is not None:
            self.cut(waited_for)

    @property
    def untaken(self) -> int:
        """How much of its answers the client has not taken, in bytes."""
        return self.transport.get_write_buffer_size()

    def cut(self, why: str) -> None:
        """End it at once, and count why."""
        self._listening.statistics.count("refused", why)
        self.transport.abort()

    def _break(self) -> None:
        """What came is no HTTP. Who asked before is answered first."""
        self._is_broken, self._unread = True, b""
        newest, self._newest = self._newest, None
        if self._hold is not None:
            self._hold.cancel()
            self._hold = None
        if newest is None or newest.is_whole:
            return
        if newest in self._queue:
            self._queue.remove(newest)
        elif newest is not self._active:  # it has its answer
            self.transport.close()
        else:
            self._active = None
            self.is_lost = True  # to the one who reads it, and would answer
            newest.lost()
            if newest.has_begun:
                self.transport.close()

    def _refuse(self) -> None:
        if not self.transport.is_closing():
            logger.info("a client sent what is no HTTP request")
            self.transport.write(REFUSED)
            self.transport.close()

    def _change(self, rest: bytes | memoryview) -> None:
        """A client asks for another protocol: WebSocket, or one that is not spoken here, which it is not told of.

        Then its request is read once more, without that wish (RFC 9110, 7.8).
        """
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if method == b"CONNECT":
            self._break()
            return
        is_free = self._active is None and not self._queue and not self.is_write_paused  # which only we are told of
        is_websocket = self._upgrade == b"websocket" and is_free
        headers = [*self._headers, (b"content-length", self._length)] if self._length else self._headers
        if not is_websocket:
            headers = _without_upgrade(headers)
        lines = [b"%b %b HTTP/%b\r\n" % (method, self._url, version), *[b"%b: %b\r\n" % header for header in headers]]
        text = b"".join((*lines, b"\r\n", rest, self._unread))
        if not is_websocket:
            self._parser = httptools.HttpRequestParser(self)
            self._unread = text
            return
        listening = self._listening
        listening.remove(self)
        self.due, self._unread = inf, b""
        protocol = cast("Any", listening.config.ws_protocol_class)(
            config=listening.config, server_state=listening.state, app_state={}
        )
        protocol.connection_made(self.transport)
        protocol.data_received(text)
        self.transport.set_protocol(protocol)
        del self._parser  # which knows the connection, and would keep it


def _without_upgrade(headers: RawHeaders) -> RawHeaders:
    kept = []
    for name, value in headers:
        if name == b"connection":
            value = b",".join([token for token in value.split(b",") if token.strip().lower() != b"upgrade"])
            if not value:
                continue
        if name != b"upgrade":
            kept.append((name, value))
    return kept


def _address(info: Any) -> tuple[str, int] | None:
    return (str(info[0]), int(info[1])) if isinstance(info, tuple) else None
