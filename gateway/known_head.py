"""The head of a request that the parser has read on this connection: one of the same bytes is not parsed again."""

from __future__ import annotations

from typing import Final, NamedTuple

from ..transports.asgi import RawHeaders, Scope

LENGTH: Final = b"\ncontent-length:"

MAX_KNOWN_BYTES: Final = 8_192
"""Longer heads are parsed each time: what is kept of them would cost more memory than a connection."""

MAX_LENGTH_DIGITS: Final = 8
"""Of a length: more than that is for the parser to judge."""


class Beginning(NamedTuple):
    """What a request begins with whose head was known."""

    scope: Scope
    length: bytes
    """The declared one of its body, as it stands there."""
    end: int
    """Where the body begins."""


class KnownHead:
    """A head but for the digits of its body's length. One that differs nowhere else means the same (RFC 9112, 2.1)."""

    __slots__ = ("_after", "_before", "_headers", "_scope")

    def __init__(self, before: bytes, after: bytes, scope: Scope, headers: RawHeaders) -> None:
        self._before = before
        self._after = after
        self._scope = scope
        self._headers = headers

    @classmethod
    def of(cls, data: bytes, length: bytes, scope: Scope, headers: RawHeaders) -> KnownHead | None:
        """What to know of the head at the start of `data`, which the parser has read as this.

        `headers` are all but the length. None where it is not certain which bytes the parser took for the head and for
        the length; and where that is too long.
        """
        end = data.find(b"\r\n\r\n", 0, MAX_KNOWN_BYTES) + 4
        head = data[:end].lower()
        if end < 4 or not head.count(b"\r") == head.count(b"\n") == head.count(b"\r\n"):
            return None
        if head.count(LENGTH) != 1 or b"\ntransfer-encoding:" in head:
            return None
        start = head.index(LENGTH) + len(LENGTH)
        while head[start] in b" \t":
            start += 1
        stop = start + len(length)
        if head[start:stop] != length or len(length) > MAX_LENGTH_DIGITS:
            return None
        return cls(data[:start], data[stop:end], {**scope}, headers)

    def beginning_of(self, data: bytes) -> Beginning | None:
        """The request whose head is at the start of `data`; None where that is another, or not all of it."""
        if not data.startswith(self._before):
            return None
        start = len(self._before)
        stop = data.find(b"\r", start, start + MAX_LENGTH_DIGITS + 1)
        length = data[start:stop]
        if stop < 0 or not length.isdigit() or not data.startswith(self._after, stop):
            return None
        scope = {**self._scope, "headers": [*self._headers, (b"content-length", length)]}
        return Beginning(scope, length, stop + len(self._after))
