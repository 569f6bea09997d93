"""WebSocket frames (RFC 6455, section 5.2), as much as a load on loopback needs: whole messages, no extensions."""

import base64
import hashlib
from collections.abc import Iterator
from typing import Final

TEXT, CLOSE, PING, PONG = 0x1, 0x8, 0x9, 0xA
_FIN: Final = 0x80
_MASKED: Final = 0x80
_NO_MASK: Final = b"\0\0\0\0"
"""A mask that leaves the text as it is: a client has to mask, and here nobody has to be kept from guessing."""


def frame(payload: bytes, opcode: int = TEXT, *, masked: bool = False) -> bytes:
    """One message in one frame; a client's is `masked`."""
    size, flag = len(payload), _MASKED if masked else 0
    if size < 126:
        head = bytes((_FIN | opcode, flag | size))
    elif size < 65_536:
        head = bytes((_FIN | opcode, flag | 126)) + size.to_bytes(2)
    else:
        head = bytes((_FIN | opcode, flag | 127)) + size.to_bytes(8)
    return b"".join((head, _NO_MASK, payload)) if masked else head + payload


class Frames:
    """Takes bytes as they come; gives (opcode, payload) of each frame that is complete."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Some more."""
        held = self._held
        held += data
        while len(held) >= 2:
            size, at = held[1] & 0x7F, 2
            if size == 126:
                size, at = int.from_bytes(held[2:4]), 4
            elif size == 127:
                size, at = int.from_bytes(held[2:10]), 10
            mask = b""
            if held[1] & _MASKED:
                mask, at = bytes(held[at : at + 4]), at + 4
            if len(held) < at + size:
                return
            opcode, payload = held[0] & 0xF, bytes(held[at : at + size])
            del held[: at + size]
            yield opcode, _unmasked(payload, mask) if mask.strip(b"\0") else payload


def _unmasked(payload: bytes, mask: bytes) -> bytes:
    size = len(payload)
    repeated = (mask * (size // 4 + 1))[:size]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(size)


def accept_key(key: bytes) -> bytes:
    """What a server answers to a client's `Sec-WebSocket-Key`."""
    told = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11", usedforsecurity=False).digest()
    return base64.b64encode(told)
