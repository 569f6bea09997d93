"""Server-sent events: bytes to events and events to bytes (WHATWG HTML, "Server-sent events"). Pure."""

from typing import Final, NamedTuple

from ..mux.errors import UpstreamFault
from ..mux.limits import MAX_EVENT_BYTES
from .parts import keep
from .unfinished import Part, Unfinished

KEEP_ALIVE: Final = b": keep-alive\n\n"
"""A comment: keeps proxies and clients from giving up on a quiet stream."""

MAX_EVENTLESS_BYTES: Final = 2 * MAX_EVENT_BYTES
"""What may come without an event: a server that sends comments without end costs everybody time, and nobody waits."""

MAX_EVENT_ID_BYTES: Final = 4_096
"""It is kept for as long as its stream is, and sent back in a header, of which few servers take more."""

RECONNECT: Final = b"retry: 1000\n\n"
"""Asks a client to come back in a second, after this stream ends: an EventSource gives up for good on a 503."""


class ServerEvent(NamedTuple):
    """One event as it was received. `data` is empty for an event that only carries an id."""

    data: bytes
    name: str
    id: str | None
    """The last event id of the stream so far; None before the first."""
    retry: int | None
    """Milliseconds to wait before a reconnect, where this event set them."""


def encode(data: bytes, *, id: str | None = None, name: str = "message") -> bytes:
    """One event. `data` must hold no line break; an event without data carries its id and nothing else (rule T7)."""
    head = b"id: %b\n" % id.encode() if id is not None else b""
    if not data:
        return b"%bdata: \n\n" % head
    return b"%bevent: %b\ndata: %b\n\n" % (head, name.encode(), data)


class EventParser:
    """An incremental parser of one stream. `limit` bounds the bytes of one event, `MAX_EVENTLESS_BYTES` comments.

    A stream that goes on after another has the `last_id` of that, until it gives one of its own. What has come of an
    event counts to what is `unfinished` of its server, where that is given.
    """

    def __init__(self, *, limit: int, unfinished: Unfinished | None = None, last_id: str | None = None) -> None:
        self._limit = limit
        self._unfinished = unfinished
        self._part: Part | None = None
        self._partial: list[bytes | bytearray] = []
        self._partial_size = 0
        self._skip_newline = False
        self._first = True
        self._eventless = 0
        """Bytes since the last event, in whole chunks."""
        self._data: list[bytes | bytearray] = []
        """The lines of data, from the second on with the break before it."""
        self._event_size = 0
        self._name = "message"
        self._retry: int | None = None
        self._changed = False
        self._id = last_id
        """That of the event that has begun."""
        self.last_id = last_id
        """The id to come back with: that of the last event that was complete, since half a one is to come again."""

    def feed(self, chunk: bytes) -> list[ServerEvent]:
        """The events that this chunk completes.

        Raises:
            UpstreamFault: an event larger than the limit, an id longer than `MAX_EVENT_ID_BYTES`, too much without an
                event, or too much that is unfinished.
        """
        if not chunk:
            return []
        self._eventless += len(chunk)
        if self._skip_newline and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._skip_newline = chunk.endswith(b"\r")
        *lines, rest = lines_of(chunk)
        events = []
        if lines:
            lines[0] = self._whole(lines[0])
            events = [event for line in lines if (event := self._line(line)) is not None]
            if events:
                self._eventless = 0
        if rest:
            keep(self._partial, rest)
            self._partial_size += len(rest)
        self._check_size()
        return events

    def _whole(self, end: bytes) -> bytes:
        """A line that ends so."""
        line = b"".join((*self._partial, end))
        self._partial.clear()
        self._partial_size = 0
        if self._first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._first = False
        return line

    def _check_size(self) -> None:
        size = self._event_size + self._partial_size
        if size > self._limit:
            raise UpstreamFault(f"the server sent an event larger than {self._limit} bytes")
        if self._unfinished is not None:
            self._part = self._unfinished.hold(self._part, size)
        if self._eventless > MAX_EVENTLESS_BYTES:
            raise UpstreamFault(f"the server sent more than {MAX_EVENTLESS_BYTES} bytes without an event")

    def _line(self, line: bytes) -> ServerEvent | None:
        if not line:
            return self._dispatch()
        if line[:1] == b":":
            return None
        self._event_size += len(line) + 1
        end = line.find(b":")
        field = line[:end] if end >= 0 else line
        value = line[end + len(b": ") :] if line[end : end + 2] == b": " else line[len(field) + 1 :]
        if field == b"data":
            if self._data:
                keep(self._data, b"\n" + value)
            else:
                self._data.append(value)
        elif field == b"event":
            self._name = value.decode(errors="replace") or "message"
        elif field == b"id" and b"\0" not in value:
            if len(value) > MAX_EVENT_ID_BYTES:
                raise UpstreamFault(f"the server sent an event id longer than {MAX_EVENT_ID_BYTES} bytes")
            self._id = value.decode(errors="replace")
            self._changed = True
        elif field == b"retry" and value.isdigit() and len(value) < 10:
            self._retry = int(value)
            self._changed = True
        return None

    def _dispatch(self) -> ServerEvent | None:
        data, name, retry, changed = b"".join(self._data), self._name, self._retry, self._changed
        self._data.clear()
        self._name, self._retry, self._changed = "message", None, False
        self._event_size = 0
        self.last_id = self._id
        return ServerEvent(data, name, self.last_id, retry) if data or changed else None


def lines_of(text: bytes) -> list[bytes]:
    """Its lines, each without what ends it: LF, CR, or both; the last one has no end."""
    lines: list[bytes] = []
    start, newline, carriage = 0, text.find(b"\n"), text.find(b"\r")
    while newline >= 0 or carriage >= 0:
        if carriage < 0 or 0 <= newline < carriage:
            end, after = newline, newline + 1
        else:
            end, after = carriage, carriage + (2 if newline == carriage + 1 else 1)
        lines.append(text[start:end])
        start = after
        if 0 <= newline < start:
            newline = text.find(b"\n", start)
        if 0 <= carriage < start:
            carriage = text.find(b"\r", start)
    lines.append(text[start:])
    return lines
