"""What a client sends on a connection, read as requests: httptools' parser, bounds on heads, heads that are known.

No I/O: `receive` takes what came, `read` reads some of it, and `queue` holds the requests whose heads were read.
"""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import unquote

import httptools

from ..transports.asgi import RawHeaders, RequestHeaders, Scope, read_fields
from .http_exchange import Carrier, HTTPExchange
from .known_head import Beginning, HeadBytes, KnownHead, KnownHeads, head_of, may_be_kept

MAX_HEAD_BYTES: Final = 131_072
"""The request line and the headers together."""

MAX_HEADERS: Final = 256
"""Each takes much more memory than its bytes, for as long as its connection is there; httpd and gunicorn allow 100."""

MAX_READ: Final = 16_384
"""What is read at once: who sends many requests without waiting has the rest of them kept as it came."""

SMALL_BODY_DIGITS: Final = 5
"""Of the length of a body that is waited for."""


MAX_STRANGERS: Final = 32
"""After so many heads that were not known, none is looked for on a connection: each has something of its own."""

AUTHORITY: Final = re.compile(rb"[^/?#]*//(?:[^/?#]*@)?([^/?#]*)")
"""Of a whole URL, without what may stand before its host."""

OWN_PARTS: Final = ("http_version", "method", "path", "raw_path", "query_string")
"""Of a scope: what follows from the request line."""


class NotHTTP(Exception):
    """What came is no HTTP/1.1, or asks for a tunnel: nothing more can be read."""


class HeadTooLong(Exception):
    """A head, or what stands round a body, is longer than `MAX_HEAD_BYTES`, or has more than `MAX_HEADERS`."""


class ChangeAsked(Exception):
    """A request asks for another protocol (RFC 9110, 7.8), named in lower case: it is not in the queue.

    `with_wish` or `without_wish` says how to go on.
    """

    def __init__(self, protocol: bytes) -> None:
        super().__init__(protocol)
        self.protocol = protocol


class RequestReader:
    """Reads what comes for a carrier. `common` is what the scopes of its requests have in common; `heads` are known."""

    __slots__ = (
        "_begun",
        "_body_left",
        "_carrier",
        "_common",
        "_expects",
        "_head_bytes",
        "_headers",
        "_is_body",
        "_known_head",
        "_known_headers",
        "_known_heads",
        "_last_headers",
        "_length",
        "_parser",
        "_peer",
        "_strangers",
        "_upgrade",
        "_url",
        "heads",
        "is_in_head",
        "newest",
        "queue",
        "unread",
    )

    def __init__(self, carrier: Carrier, common: Scope, known_heads: KnownHeads) -> None:
        self.unread: bytes | memoryview = b""
        """What came and was not read yet."""
        self.queue: list[HTTPExchange] = []
        """Requests whose heads were read; who answers them takes them out."""
        self.newest: HTTPExchange | None = None
        """The last of them; set to None by who answers, once it is over and nothing came behind it."""
        self.heads = 0
        """How many were read."""
        self.is_in_head = False
        """Whether some of a head was read, and not its end."""
        self._carrier = carrier
        self._common = common
        client = common.get("client")
        self._peer = client[0] if client else ""
        self._parser: Any = None
        """Made for the first head that is not known."""
        self._is_body = False
        """Whether what was read last held some of a body."""
        self._head_bytes = 0
        self._begun = 0
        """How much came with the begin of a head that has not come to its end."""
        self._url = b""
        self._headers: RawHeaders = []
        """But for the length."""
        self._expects = False
        self._length = b""
        """How long the body is to be, where that is declared."""
        self._upgrade = b""
        """To what the request that is being read wants to change."""
        self._last_headers: tuple[RawHeaders, RequestHeaders] | None = None
        """Those of the last request that was taken, but for the length, and what they were read as."""
        self._known_heads = known_heads
        self._known_head: KnownHead | None = None
        """The last one that came."""
        self._known_headers: RequestHeaders
        """Its own."""
        self._strangers = 0
        """How many requests, one after the other, had a head that was not known."""
        self._body_left = 0
        """How much is to come of the body of a request whose head was known."""

    def receive(self, data: bytes) -> None:
        """Keep what came until it is read."""
        self.unread = b"".join((self.unread, data)) if self.unread else data

    def abandon(self) -> HTTPExchange | None:
        """Read nothing more. The request that did not come to its end, where it is in the queue no longer.

        One that is still there is dropped: nobody was told of it.
        """
        newest, self.newest, self.unread = self.newest, None, b""
        if newest is None or newest.is_whole:
            return None
        if newest in self.queue:
            self.queue.remove(newest)
            return None
        return newest

    def close(self) -> None:
        """Nothing is read any longer; nor does anything here lead to the carrier, which leads here."""
        self.unread, self.queue, self.newest, self._parser = b"", [], None, None
        del self._carrier

    @property
    def unfinished(self) -> int:
        """How much has come of a head that has not come to its end; a part of what came with its begin is not its."""
        return self._begun + self._head_bytes if self.is_in_head else 0

    @property
    def has_small_body(self) -> bool:
        """Whether the newest request has a body that most clients have sent already, as a packet of its own."""
        return not self._expects and len(self._length) <= SMALL_BODY_DIGITS and int(self._length or b"0") > 0

    # Reading

    def read(self) -> None:
        """Parse some of what came; or take it as it is, where it has a head that is known, or is the body after one.

        Raises:
            NotHTTP, HeadTooLong, ChangeAsked: see there.
        """
        data, self.unread = self.unread, b""
        is_first = not self.is_in_head and (self.newest is None or self.newest.is_whole)
        new_head = None
        if isinstance(data, bytes):
            start, new_head = self._begin_known(data) if is_first else (0, None)
            if start or self._body_left:
                self._take_body(data, start)
                return
        if len(data) > MAX_READ:
            rest = memoryview(data)  # of which a slice is no copy
            data, self.unread = rest[:MAX_READ], rest[MAX_READ:]
        headers, queued, self._is_body = self._headers, len(self.queue), False
        if self._parser is None:
            self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            self.unread = b"".join((data[upgrade.args[0] :], self.unread))
            if self._parser.get_method() == b"CONNECT":
                raise NotHTTP from None
            raise ChangeAsked(self._upgrade) from None
        except httptools.HttpParserError as error:
            raise HeadTooLong if isinstance(error.__context__, HeadTooLong) else NotHTTP from None
        if headers is self._headers:
            if not self._is_body:
                self._head_bytes += len(data)  # of a head that is long, or of what stands round a body
                if self._head_bytes > MAX_HEAD_BYTES:
                    raise HeadTooLong
        elif self.is_in_head:
            self._begun = len(data)
        elif new_head is not None and len(self.queue) == queued + 1:
            self._learn_head(self.queue[-1], new_head)
        if not self.is_in_head:  # nothing but the next one needs them
            self._headers, self._url = [], b""

    def _learn_head(self, exchange: HTTPExchange, head: HeadBytes) -> None:
        """Know the head that was read, once it came again and again."""
        if exchange.is_kept and not self._expects:
            parts = {part: exchange.scope[part] for part in OWN_PARTS}
            known = self._known_heads.learn(head, parts, self._headers, self._length)
            if known is not None:
                self._know(known)

    def _know(self, known: KnownHead) -> None:
        self._known_head, self._known_headers = known, known.headers(self._peer)

    def _begin_known(self, text: bytes) -> tuple[int, HeadBytes | None]:
        """Begin the request at the start of `text`, where its head is known.

        Where its body begins; or 0, and its head where that could be known.
        """
        known = self._known_head
        found: Beginning | HeadBytes | None = None if known is None else known.beginning_of(text)
        if known is None or found is None:
            if self._strangers == MAX_STRANGERS:
                return 0, None
            self._strangers += 1
            found = head_of(text)
            known = None if found is None else self._known_heads.of(found)
            if known is None or found is None:
                return 0, found
            self._know(known)
        self._strangers = 0
        length = found.length
        self._head_bytes, self._length, self._expects = 0, length, False
        self._body_left = int(length or b"0")
        self.heads += 1
        newest = HTTPExchange(self._carrier, known.scope(self._common, length), is_kept=True, waits_to_go_on=False)
        newest.headers = self._known_headers
        self.newest = newest
        self.queue.append(newest)
        return found.end, None

    def _take_body(self, data: bytes, start: int) -> None:
        """What comes from there on is some of a body, up to its length."""
        end = start + self._body_left
        part, size = data[start:end], len(data)
        self._body_left -= len(part)
        if self.newest is not None:
            if part:
                self.newest.came(part)
            if not self._body_left:
                self.newest.came_whole()
        if end < size:
            self.unread = data[end:] if size - end <= MAX_READ else memoryview(data)[end:]

    # Another protocol

    def without_wish(self) -> None:
        """The wish for another protocol is not granted: the request is read once more, without it."""
        self.unread = b"".join((self._again(_without_upgrade(self._headers)), self.unread))
        self._parser = httptools.HttpRequestParser(self)

    def with_wish(self) -> tuple[bytes, bytes]:
        """The head of the request and what came behind it, for who speaks the other protocol."""
        return self._again(self._headers), bytes(self.unread)

    def _again(self, headers: RawHeaders) -> bytes:
        method, version = self._parser.get_method(), self._parser.get_http_version().encode()
        if self._length:
            headers = [*headers, (b"content-length", self._length)]
        lines = [b"%b %b HTTP/%b\r\n" % (method, self._url, version), *[b"%b: %b\r\n" % header for header in headers]]
        return b"".join((*lines, b"\r\n"))

    # What the parser tells

    def on_message_begin(self) -> None:
        """A request begins."""
        self.is_in_head, self._head_bytes = True, 0
        self._url, self._headers, self._expects, self._length, self._upgrade = b"", [], False, b"", b""

    def on_url(self, url: bytes) -> None:
        """Some of its target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """One of its headers; one behind its body is dropped. Raises HeadTooLong: it has too many."""
        if not self.is_in_head:
            return
        name = name.lower()
        if name == b"content-length":
            self._length = value
            return
        if name == b"expect":
            self._expects = value.lower() == b"100-continue"
        elif name == b"upgrade":
            self._upgrade = value.lower()
        if len(self._headers) == MAX_HEADERS:
            raise HeadTooLong
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Its head is complete."""
        self.is_in_head, self._head_bytes = False, 0
        parser = self._parser
        if parser.should_upgrade():
            return
        self._upgrade = b""
        version = parser.get_http_version()
        self._expects = self._expects and version == "1.1"  # clients of 1.0 know nothing of it (RFC 9110, 10.1.1)
        self.heads += 1
        self.newest = HTTPExchange(
            self._carrier,
            self._scope(version),
            is_kept=version == "1.1" and parser.should_keep_alive(),
            waits_to_go_on=self._expects,
        )
        self.queue.append(self.newest)

    def on_body(self, part: bytes) -> None:
        """Some of its body."""
        self._is_body = True
        if self.newest is not None:
            self.newest.came(part)

    def on_message_complete(self) -> None:
        """It is complete."""
        if self.newest is not None and not self._upgrade:
            self.newest.headers = self._headers_of(self.newest.scope)
            self.newest.came_whole()

    def _headers_of(self, scope: Scope) -> RequestHeaders:
        """The headers of a request, without the length: many clients send the same with each, but for that."""
        raw, query = [*scope["headers"]], scope["query_string"]
        if raw and raw[-1][0] == b"content-length":
            raw.pop()
        last = self._last_headers
        if last is None or last[0] != raw or last[1].query != query:
            last = raw, RequestHeaders(self._peer, query, read_fields(raw))
            self._last_headers = last if may_be_kept(raw) else None
        return last[1]

    def _scope(self, version: str) -> Scope:
        url, raw_path, query = self._url, self._url, b""
        if url[:1] != b"/" or b"?" in url or b"#" in url:
            parts = httptools.parse_url(url)
            raw_path, query = parts.path or b"/", parts.query or b""
            if parts.host is not None:
                self._headers = _with_host_of(url, self._headers)
        headers = [*self._headers]  # whoever is asked may change its own
        if self._length:
            headers.append((b"content-length", self._length))
        path, root = raw_path.decode("ascii"), self._common["root_path"]
        return {
            **self._common,
            "http_version": version,
            "method": self._parser.get_method().decode("ascii"),
            "path": root + (unquote(path) if "%" in path else path),
            "raw_path": root.encode() + raw_path,
            "query_string": query,
            "headers": headers,
        }


def _with_host_of(url: bytes, headers: RawHeaders) -> RawHeaders:
    """The headers of a request to a whole URL: its host is what counts, whatever the header says (RFC 9112, 3.2.2)."""
    host = AUTHORITY.match(url)
    assert host is not None, "the parser has found one"
    return [(b"host", host[1]), *[header for header in headers if header[0] != b"host"]]


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
