"""Frames between two workers, in order, for as long as one of them serves a request that the other received."""

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol

import msgspec

from ...mux.directory import Worker
from ...mux.limits import MAX_EVENT_BYTES
from ...transports.asgi import Message

MAX_FRAME_BYTES: Final = MAX_EVENT_BYTES + 1024 * 1024
_LENGTH_BYTES: Final = 4


class Frame(msgspec.Struct, array_like=True):
    """One step of a conversation.

    `open` begins it: an ASGI scope. `event` is an ASGI event in either direction. `ping` asks the side with the
    client's socket for a WebSocket ping, `pong` says that its pong came. `withdrawn` says that the request's credential
    no longer counts. `end` is the last one.
    """

    kind: str
    payload: Any = None


class Unreachable(Exception):
    """The other worker surely has heard nothing."""


class Gone(Unreachable):
    """The process of the other worker has ended."""


class Broken(Exception):
    """The other side is gone: what it was told may have had its effect."""


class Conversation(Protocol):
    """Both ways between two workers, for one request."""

    async def send(self, frame: Frame) -> None:
        """Hand on one frame; waits while the other side does not read.

        Raises:
            Broken: it is gone.
            Unreachable: this was the first frame, and surely nobody heard it.
        """

    async def receive(self) -> Frame:
        """The next frame.

        Raises:
            Broken: it is gone, or said what is no frame.
        """

    def close(self) -> None:
        """The end, for both sides, which the other one hears after all that was sent. Idempotent."""

    def cut(self) -> None:
        """The end at once: who waits here does not wait for the other side to take what was sent. Idempotent."""


Open = Callable[[Worker], Awaitable[Conversation]]
"""Begins a conversation with a worker; raises `Unreachable`."""


async def ask(conversation: Conversation, request: dict[str, Any], event: Message) -> tuple[int, bytes]:
    """The status and the body that a request is answered with, all of which is its scope and this event; then it ends.

    Raises:
        Broken, Unreachable: see `Conversation`.
    """
    status, body = 0, list[bytes]()
    try:
        await conversation.send(Frame("open", request))
        await conversation.send(Frame("event", event))
        while (frame := await conversation.receive()).kind != "end":
            if frame.kind == "event":
                status = frame.payload.get("status", status)
                body.append(frame.payload.get("body", b""))
    finally:
        conversation.close()
    return status, b"".join(body)


class SocketConversation:
    """Implements `Conversation` over a stream socket of its own: the kernel tells at once when the other side dies.

    A worker listens for as long as it is a member: a socket that nobody listens on is that of a dead one. Linux tells
    it apart from one whose backlog is full (EAGAIN); elsewhere both are refused.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, address: str) -> "SocketConversation":
        """A conversation with the worker that listens on this Unix socket.

        Raises:
            Gone: a worker did, and has ended.
            Unreachable: nobody does.
        """
        try:
            return cls(*await asyncio.open_unix_connection(address))
        except ConnectionRefusedError as error:
            raise (Gone if sys.platform == "linux" else Unreachable)(str(error)) from error
        except OSError as error:
            raise Unreachable(str(error)) from error

    async def send(self, frame: Frame) -> None:
        """See `Conversation.send`."""
        text = encode(frame)
        try:
            self._writer.write(len(text).to_bytes(_LENGTH_BYTES, "big") + text)
            await self._writer.drain()
        except (OSError, RuntimeError) as error:
            raise Broken(str(error)) from error

    async def receive(self) -> Frame:
        """See `Conversation.receive`."""
        try:
            length = int.from_bytes(await self._reader.readexactly(_LENGTH_BYTES), "big")
            if length > MAX_FRAME_BYTES:
                raise Broken("a frame is too long")
            return decode(await self._reader.readexactly(length))
        except (OSError, asyncio.IncompleteReadError) as error:
            raise Broken(str(error)) from error

    def close(self) -> None:
        """See `Conversation.close`."""
        self._writer.close()

    def cut(self) -> None:
        """See `Conversation.cut`."""
        self._writer.transport.abort()


def encode(frame: Frame) -> bytes:
    """A frame as bytes."""
    return _ENCODER.encode(frame)


def decode(text: bytes) -> Frame:
    """The frame in these bytes.

    Raises:
        Broken: they hold none.
    """
    try:
        return _DECODER.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Broken(str(error)) from error


_ENCODER: Final = msgspec.msgpack.Encoder()
_DECODER: Final = msgspec.msgpack.Decoder(Frame)
