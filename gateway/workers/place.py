"""What a worker process gets of its parent: socket and settings, a way to be told, a directory of their own."""

import asyncio
import logging
import os
import socket
from collections import deque
from collections.abc import AsyncIterator, MutableMapping
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec

from ..runtime import hold
from ..settings import NotStarted, Read, Settings, SettingsError

logger = logging.getLogger(__name__)

VARIABLE: Final = "TRUNKLINE_WORKER"
"""Of the environment; a worker takes it out before it starts anything."""

Command = Literal["drain", "leave", "reload"]

_WORDS: Final[dict[bytes, Command]] = {b"d": "drain", b"l": "leave", b"r": "reload"}
_BYTES: Final = {command: byte for byte, command in _WORDS.items()}
_SETTINGS: Final = b"s"
"""`reload`, and behind it what was read. A parent of an earlier build says `r`: its workers read by themselves."""

_LISTENING: Final = b"+"
_SIZE_BYTES: Final = 4


class _Inherited(msgspec.Struct):
    listener: int
    control: int
    runtime: str
    demo: str


class Reading(msgspec.Struct, frozen=True):
    """What the settings were found to be when they were read again: settings, or what is wrong with them."""

    settings: Settings | None
    path: str = ""
    message: str = ""

    @classmethod
    def of(cls, read: Read) -> "Reading":
        """Read them."""
        try:
            return cls(read())
        except SettingsError as error:
            return cls(None, error.path, error.message.encode(errors="replace").decode())
        except Exception as error:
            logger.error("the settings could not be read", exc_info=error)
            return cls(None, "", f"they could not be read: {type(error).__name__}")

    def result(self) -> Settings:
        """The settings.

        Raises:
            SettingsError: something is wrong with them.
        """
        if self.settings is None:
            raise SettingsError(self.path, self.message)
        return self.settings


class Place:
    """A worker's place among the processes of its gateway.

    Raises:
        FileNotFoundError: its directory is no longer there.
    """

    def __init__(
        self, listener: socket.socket, control: socket.socket, runtime: Path, demo: str, settings: Settings
    ) -> None:
        self.listener = listener
        self.settings = settings
        """Those that hold when it begins, whatever is in their file by now."""
        self.runtime = runtime
        """A directory that the gateway's processes have to themselves."""
        self._lock = hold(runtime)
        self.demo = demo
        """The URL of the built-in server, where the parent runs it."""
        self._control = control
        self._readings: deque[Reading] = deque(maxlen=1)
        """What the parent has read last, until it is asked for: by a thread."""

    @classmethod
    def take(cls, environ: MutableMapping[str, str]) -> "Place | None":
        """What the environment and the parent say of it; None in a process that is no worker.

        Raises:
            NotStarted: the parent has ended.
        """
        text = environ.pop(VARIABLE, None)
        if text is None:
            return None
        told = msgspec.json.decode(text, type=_Inherited)
        sockets = socket.socket(fileno=told.listener), socket.socket(fileno=told.control)
        for one in sockets:
            one.set_inheritable(False)
        try:
            return cls(*sockets, Path(told.runtime), told.demo, _settings(sockets[1]))
        except (EOFError, FileNotFoundError) as error:
            for one in sockets:
                one.close()
            raise NotStarted("", "the parent of this worker has ended; start the gateway again") from error

    def tell_listening(self, url: str) -> None:
        """Say that this worker takes connections; where the parent has died, `commands` tells."""
        with suppress(OSError):
            self._control.send(_LISTENING)

    def close(self) -> None:
        """The worker ends."""
        self.listener.close()
        self._control.close()
        os.close(self._lock)

    def read(self, read: Read) -> Settings:
        """The settings as the parent has read them, for all its workers; by `read` where it did not: by a signal.

        Raises:
            SettingsError: something is wrong with them.
        """
        try:
            reading = self._readings.popleft()
        except IndexError:
            return read()
        return reading.result()

    async def commands(self) -> AsyncIterator[Command]:
        """What the parent says; ends where it has died."""
        reader, writer = await asyncio.open_connection(sock=self._control)
        try:
            while word := await reader.read(1):
                if word == _SETTINGS:
                    content = await reader.readexactly(int.from_bytes(await reader.readexactly(_SIZE_BYTES)))
                    self._readings.append(msgspec.json.decode(content, type=Reading))
                    yield "reload"
                else:
                    yield _WORDS[word]
        except (OSError, EOFError):  # it has, before it heard all that was said, or said it
            return
        finally:
            writer.close()


class Child:
    """The parent's side of a place."""

    def __init__(self, listener: socket.socket, runtime: Path, demo: str, settings: Settings) -> None:
        self._control, self._theirs = socket.socketpair()
        # By the socket and not by the environment, which other processes of the same user can read: there are secrets.
        self._unsent = _framed(settings)
        self._writer: asyncio.StreamWriter | None = None
        self._newest: Reading | None = None
        """What was read last, while it waits until the process has heard enough of what it was told before."""
        self.inherited = listener.fileno(), self._theirs.fileno()
        """The descriptors that the process gets."""
        told = _Inherited(listener.fileno(), self._theirs.fileno(), str(runtime), demo)
        self.environment = {VARIABLE: msgspec.json.encode(told).decode()}
        self.is_listening = False
        self.has_listened = False
        """True from then on, also as it ends."""

    def has_begun(self) -> None:
        """The process has its side."""
        self._theirs.close()

    def close(self) -> None:
        """The process has ended."""
        self._theirs.close()
        self._control.close()

    def tell(self, command: Command) -> None:
        """Say something to it, in order; nothing where it has ended."""
        self._say(_BYTES[command])

    async def reload(self, reading: Reading) -> None:
        """Tell it to `reload`, in order, and what was read; where it does not hear, the newest alone is kept for it."""
        is_waiting, self._newest = self._newest is not None, reading
        if is_waiting:
            return
        if self._writer is not None:
            with suppress(OSError):  # it has ended
                await self._writer.drain()
        self._say(_SETTINGS + _framed(self._newest))
        self._newest = None

    def _say(self, words: bytes) -> None:
        if self._writer is None:
            self._unsent += words
        elif not self._writer.is_closing():
            self._writer.write(words)

    async def hear(self) -> AsyncIterator[None]:
        """Say what there is to be said. Goes on once it takes connections; ends when it has ended."""
        reader, writer = await asyncio.open_connection(sock=self._control)
        self._writer = writer
        writer.write(self._unsent)
        self._unsent = b""
        try:
            while await reader.read(1):
                self.is_listening = self.has_listened = True
                yield
        except OSError:
            return
        finally:
            self.is_listening = False
            writer.close()


def _framed(told: Settings | Reading) -> bytes:
    content = msgspec.json.encode(told)
    return len(content).to_bytes(_SIZE_BYTES) + content


def _settings(control: socket.socket) -> Settings:
    """What the parent says first.

    Raises:
        EOFError: it has ended.
    """
    size = int.from_bytes(_received(control, _SIZE_BYTES))
    return msgspec.json.decode(_received(control, size), type=Settings)


def _received(control: socket.socket, size: int) -> bytes:
    received = bytearray()
    while len(received) < size:
        chunk = control.recv(size - len(received))
        if not chunk:
            raise EOFError
        received += chunk
    return bytes(received)
