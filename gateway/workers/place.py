"""What a worker process gets of its parent: the listening socket, a way to be told, a directory of their own."""

import asyncio
import socket
from collections.abc import AsyncIterator, MutableMapping
from pathlib import Path
from typing import Final, Literal

import msgspec

VARIABLE: Final = "TRUNKLINE_WORKER"
"""Of the environment; a worker takes it out before it starts anything."""

Command = Literal["drain", "leave", "reload"]

_WORDS: Final[dict[bytes, Command]] = {b"d": "drain", b"l": "leave", b"r": "reload"}
_BYTES: Final = {command: byte for byte, command in _WORDS.items()}
_LISTENING: Final = b"+"


class _Inherited(msgspec.Struct):
    listener: int
    control: int
    runtime: str
    demo: str


class Place:
    """A worker's place among the processes of its gateway."""

    def __init__(self, listener: socket.socket, control: socket.socket, runtime: Path, demo: str) -> None:
        self.listener = listener
        self.runtime = runtime
        """A directory that the gateway's processes have to themselves."""
        self.demo = demo
        """The URL of the built-in server, where the parent runs it."""
        self._control = control

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> "Place | None":
        """What the environment says of it; None in a process that is no worker."""
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        told = msgspec.json.decode(text, type=_Inherited)
        sockets = socket.socket(fileno=told.listener), socket.socket(fileno=told.control)
        for one in sockets:
            one.set_inheritable(False)
        return cls(*sockets, Path(told.runtime), told.demo)

    def tell_listening(self, url: str) -> None:
        """Say that this worker takes connections."""
        self._control.send(_LISTENING)

    def close(self) -> None:
        """The worker ends."""
        self.listener.close()
        self._control.close()

    async def commands(self) -> AsyncIterator[Command]:
        """What the parent says; where it has died, to drain."""
        reader, writer = await asyncio.open_connection(sock=self._control)
        try:
            while word := await reader.read(1):
                yield _WORDS[word]
            yield "drain"
        finally:
            writer.close()


class Child:
    """The parent's side of a place."""

    def __init__(self, listener: socket.socket, runtime: Path, demo: str) -> None:
        self._control, self._theirs = socket.socketpair()
        self.inherited = listener.fileno(), self._theirs.fileno()
        """The descriptors that the process gets."""
        told = _Inherited(listener.fileno(), self._theirs.fileno(), str(runtime), demo)
        self.environment = {VARIABLE: msgspec.json.encode(told).decode()}
        self.is_listening = False

    def has_begun(self) -> None:
        """The process has its side."""
        self._theirs.close()

    def close(self) -> None:
        """The process has ended."""
        self._theirs.close()
        self._control.close()

    def tell(self, command: Command) -> None:
        """Say something to it; nothing where it has ended, or hears nothing."""
        self._control.setblocking(False)
        try:
            self._control.send(_BYTES[command])
        except OSError:
            return

    async def hear(self) -> AsyncIterator[None]:
        """Goes on once it takes connections; ends when it has ended."""
        reader, writer = await asyncio.open_connection(sock=self._control)
        try:
            while await reader.read(1):
                self.is_listening = True
                yield
        except OSError:
            return
        finally:
            self.is_listening = False
            writer.close()
