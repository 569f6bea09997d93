"""Text messages as a WebSocket client writes them, byte by byte under a test's hand: whole, or in fragments."""

from typing import Final

from trunkline.transports.frames import text_frame

from harness.duplex_clients import SocketClient

KEY: Final = b"\x01\x80\xff\x00"
"""The mask of every frame."""

PART: Final = 10_000
FRAME: Final = PART + 8
"""Bytes of a fragment, without and with its head."""


def whole(message: bytes) -> bytes:
    """One frame."""
    return text_frame(message, KEY)


def in_fragments(message: bytes) -> bytes:
    """As many frames as it takes."""
    parts = [message[at : at + PART] for at in range(0, len(message), PART)]
    frames = []
    for n, part in enumerate(parts):
        first = (0x80 if n == len(parts) - 1 else 0) | (0 if n else 1)
        frames.append(bytes((first,)) + text_frame(part, KEY)[1:])
    return b"".join(frames)


def write(client: SocketClient, data: bytes) -> None:
    """Send these bytes on a client's socket, whatever they are."""
    assert client.socket is not None
    client.socket.transport.write(data)
