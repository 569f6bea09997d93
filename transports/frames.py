"""WebSocket frames: the usual one, a whole text message, is written and read here; the library judges all others.

What comes is cut into frames. One that is complete, unfragmented text, and within the limit is taken as it is; of every
other one the library's Sans-I/O protocol sees each byte: what is legal, and what is answered to it, is for it to say.
Between two frames it has nothing left to read, which is why both can take turns.
"""

from typing import Final

from websockets.frames import Frame, Opcode
from websockets.protocol import OPEN, Protocol

from .parts import keep
from .portions import PORTION_ITEMS

try:
    from websockets.speedups import apply_mask
except ImportError:  # the library was installed without its compiled part
    from websockets.utils import apply_mask

WHOLE_TEXT: Final = 0x81
"""The first byte of a text frame that is a message by itself (RFC 6455, 5.2)."""

FIN: Final = 0x80
MASKED: Final = 0x80
OVER_BYTES: Final = 1_024
"""What the library reads at once where nobody knows any longer where frames end."""

INVALID_DATA: Final = 1007
"""The code for text that is no UTF-8 (RFC 6455, 7.4.1)."""


def text_frame(message: bytes, key: bytes = b"") -> bytes:
    """One message in one frame; what a client sends is masked, by 4 bytes that nobody can guess (RFC 6455, 5.3)."""
    size, flag = len(message), MASKED if key else 0
    if size < 126:
        head = bytes((WHOLE_TEXT, flag | size))
    elif size < 65_536:
        head = b"%c%c%b" % (WHOLE_TEXT, flag | 126, size.to_bytes(2))
    else:
        head = b"%c%c%b" % (WHOLE_TEXT, flag | 127, size.to_bytes(8))
    if not key:
        return head + message
    return b"".join((head, key, apply_mask(message, key)))


class Frames:
    """What comes on one connection whose opening handshake is over. `limit` bounds a message in bytes.

    The protocol must have the same limit. Its answers are left in its `data_to_send`.
    """

    __slots__ = (
        "_gathered",
        "_held",
        "_in_fragments",
        "_is_over",
        "_left",
        "_limit",
        "_mask",
        "_parts",
        "_protocol",
        "_size",
        "unfinished",
    )

    def __init__(self, protocol: Protocol, limit: int, *, is_masked: bool) -> None:
        self._protocol = protocol
        self._limit = limit
        self._mask = MASKED if is_masked else 0
        self._held = b""
        """The beginning of a head that is not complete: less than 14 bytes."""
        self._left = 0
        """Bytes that are still to come of a frame that the library reads."""
        self._size = 0
        """How long that is."""
        self._in_fragments = False
        self._is_over = False
        """True once the connection is closing: where frames end makes no difference any longer."""
        self._parts: list[bytes | bytearray] | None = None
        """Of a text message in fragments."""
        self._gathered = 0
        """Bytes of those."""
        self.unfinished = 0
        """Bytes that have come of a message that is not complete."""

    def feed(self, data: bytes, at: int, got: list[bytes | Frame]) -> int:
        """Read some of what comes, from there on: little more than `PORTION_ITEMS` frames. Where that ends.

        Messages are added to what was `got` as their text, and every other frame as the library tells it.
        """
        self._is_over = self._protocol.state is not OPEN
        end = whole = len(data)
        if self._held:
            data, at, self._held = self._held + data[at:], 0, b""
            end = len(data)
        taken = 0
        while at < end:
            if taken >= PORTION_ITEMS:
                return whole - (end - at)
            if self._left or self._is_over:
                at, frames = self._hand_on(data, at, got)
                taken += frames
                continue
            if end - at < 2:
                self._held = data[at:]
                break
            first, second, start = data[at], data[at + 1], at + 2
            size = second & 0x7F
            if size > 125:
                start += 2 if size == 126 else 8
                size = int.from_bytes(data[at + 2 : start])
            if second & MASKED:
                start += 4
            stop = start + size
            if start > end:
                self._held = data[at:]
                break
            is_whole = first == WHOLE_TEXT and stop <= end and not self._in_fragments
            if is_whole and second & MASKED == self._mask and size <= self._limit:
                message = data[start:stop]
                if self._mask:
                    message = apply_mask(message, data[start - 4 : start])
                if message.isascii():
                    got.append(message)
                else:
                    self._add(message, got)
                at = stop
                taken += 1
            else:
                self._leave(first, stop - at)
        return whole

    def close(self) -> None:
        """Nothing more comes: let go of what is not complete, since the library refers to itself. Idempotent."""
        self._protocol.receive_eof()
        self._held, self._parts = b"", None

    def _leave(self, first: int, size: int) -> None:
        """Leave a frame to the library."""
        self._left = self._size = size
        if not first & 0x8:  # no control frame, which may stand between fragments
            self._in_fragments = not first & FIN

    def _hand_on(self, data: bytes, at: int, got: list[bytes | Frame]) -> tuple[int, int]:
        """Let the library read what is its; where that ends, and how many frames it was."""
        stop = min(at + (OVER_BYTES if self._is_over else self._left), len(data))
        self._left = max(0, self._left - (stop - at))
        self._protocol.receive_data(data[at:stop])
        events = self._protocol.events_received()
        for event in events:
            assert isinstance(event, Frame), "the opening handshake is over"
            if event.opcode is Opcode.TEXT:
                self._parts = []
            elif event.opcode is not Opcode.CONT:
                got.append(event)
                continue
            if self._parts is None:
                continue
            keep(self._parts, bytes(event.data))
            self._gathered += len(event.data)
            if event.fin:
                message, self._parts, self._gathered = b"".join(self._parts), None, 0
                self._add(message, got)
        self.unfinished = self._gathered + (self._size - self._left if self._left else 0)
        self._is_over = self._protocol.state is not OPEN
        return stop, len(events)

    def _add(self, message: bytes, got: list[bytes | Frame]) -> None:
        """Take a message; where it is no UTF-8, the connection has failed."""
        try:
            message.decode()
        except UnicodeDecodeError as error:
            self._protocol.fail(INVALID_DATA, f"{error.reason} at position {error.start}")
            self._is_over = True
        else:
            got.append(message)
