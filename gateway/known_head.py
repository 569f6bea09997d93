"""Request heads that the parser has read on a listener: one of the same bytes is not parsed again."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ..transports.asgi import Checks, RawHeaders, RequestHeaders, Scope, read_fields

REPEATS: Final = 2
"""How often a head has to come again until it is known: who comes for a single call never gets there."""

MAX_KNOWN: Final = 1_024
"""Heads that are known to all connections; each keeps its last one besides."""

MAX_KNOWN_BYTES: Final = 8_192
"""Longer heads are parsed each time: what is kept of them would cost more memory than a connection."""

MAX_KNOWN_HEADERS: Final = 64
"""The same of more headers: as they are read, each takes 300 bytes more than it has."""

SIGHTINGS: Final = 65_536
"""Over so many that are not known it is counted how often each came, in as many counters; then all begin anew."""

MAX_LENGTH_DIGITS: Final = 8
"""Of a length: more than that is for the parser to judge."""

LENGTH: Final = re.compile(rb"\n(?i:content-length):[ \t]*([0-9]{1,%d})\r\n" % MAX_LENGTH_DIGITS)


class HeadBytes(NamedTuple):
    """A head as it came, in three parts; one that declares no length is all `before`."""

    before: bytes
    length: bytes
    """The digits of its body's length; empty where it declares none."""
    after: bytes
    end: int
    """Where the body begins."""


class Beginning(NamedTuple):
    """What a request begins with whose head is known."""

    length: bytes
    """The declared one of its body, as it stands there; empty where none is."""
    end: int
    """Where the body begins."""


class KnownHead:
    """A head but for the digits of its body's length. One that differs nowhere else means the same (RFC 9112, 2.1)."""

    __slots__ = ("_after", "_before", "_checks", "_fields", "_headers", "_parts")

    def __init__(self, head: HeadBytes, parts: Scope, headers: RawHeaders) -> None:
        self._before = head.before
        self._after = head.after
        self._parts = parts
        self._headers = headers
        self._fields = read_fields(headers)
        self._checks = Checks()

    def beginning_of(self, data: bytes) -> Beginning | None:
        """Of the request whose head is at the start of `data`; None where that is another, or not all of it."""
        if not data.startswith(self._before):
            return None
        start = len(self._before)
        if not self._after:
            return Beginning(b"", start)
        stop = data.find(b"\r", start, start + MAX_LENGTH_DIGITS + 1)
        length = data[start:stop]
        if stop < 0 or not length.isdigit() or not data.startswith(self._after, stop):
            return None
        return Beginning(length, stop + len(self._after))

    def headers(self, peer: str) -> RequestHeaders:
        """Its headers but for the length, of requests from this peer."""
        return RequestHeaders(peer, self._parts["query_string"], self._fields, self._checks)

    def scope(self, common: Scope, length: bytes) -> Scope:
        """The scope of a request with that head: its own, but for what it has of `common`."""
        declared = [(b"content-length", length)] if length else []
        return {**common, **self._parts, "headers": [*self._headers, *declared]}


class KnownHeads:
    """Those of a listener. What they mean follows from their bytes alone, whichever connection they come on."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, bytes], KnownHead] = {}
        self._seen = bytearray(SIGHTINGS)
        """By a hash of the head."""
        self._sightings = 0

    def of(self, head: HeadBytes) -> KnownHead | None:
        """What a head means, where it is known."""
        return self._known.get((head.before, head.after))

    def learn(self, head: HeadBytes, parts: Scope, headers: RawHeaders, length: bytes) -> KnownHead | None:
        """The parser has read data that begin with this head as this: from some time on it is known.

        `headers` are all but the length. None where it is not known yet; and never is, where it is not certain which
        bytes the parser took for the head and for the length.
        """
        if head.length != length or len(headers) > MAX_KNOWN_HEADERS:
            return None
        key = (head.before, head.after)
        place = hash(key) % SIGHTINGS
        self._seen[place] += 1
        if self._seen[place] <= REPEATS:
            self._sightings += 1
            if self._sightings == SIGHTINGS:
                self._seen, self._sightings = bytearray(SIGHTINGS), 0
            return None
        self._seen[place] = 0  # where more come in turn than are kept, few are learned anew, and some are known
        if not _is_certain(head):
            return None
        if len(self._known) >= MAX_KNOWN:
            del self._known[next(iter(self._known))]
        known = self._known[key] = KnownHead(head, parts, headers)
        return known


def head_of(data: bytes) -> HeadBytes | None:
    """The head at the start of `data`; None where that is not all of it."""
    end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
    if end < 4:
        return None
    found = LENGTH.search(data, 0, end)
    if found is None:
        return HeadBytes(data[:end], b"", b"", end)
    start, stop = found.span(1)
    return HeadBytes(data[:start], data[start:stop], data[stop:end], end)


def may_be_kept(headers: RawHeaders) -> bool:
    """Whether headers are so few and short that a connection may keep the last ones."""
    size = sum([len(name) + len(value) for name, value in headers])
    return len(headers) <= MAX_KNOWN_HEADERS and size <= MAX_KNOWN_BYTES


def _is_certain(head: HeadBytes) -> bool:
    """Whether nobody could take other bytes for the head, or for the length."""
    text = (head.before + head.after).lower()
    return (
        text.count(b"\r") == text.count(b"\n") == text.count(b"\r\n")
        and not text.startswith(b"\r")
        and text.count(b"\ncontent-length:") == bool(head.length)
        and b"\ntransfer-encoding:" not in text
    )
