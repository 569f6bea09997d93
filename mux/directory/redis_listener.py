"""The one connection of a process on which redis tells it things: changes of records, and its worker's mailbox."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

import anyio
import anyio.lowlevel
from redis.asyncio.connection import AbstractConnection

from ..errors import DirectoryUnavailable, first_of
from .redis_server import BROKEN, Server, unavailable

PING_SECONDS: Final = 1.0
SILENCE_SECONDS: Final = 1.5
"""A connection without a word for twice as long, though it was pinged, is broken.

Twice: a process that stood still finds the time passed when it goes on, whatever has come meanwhile.
"""

RECONNECT_SECONDS: Final = 0.1
SUBSCRIBE_SECONDS: Final = 2.0


class _Channel:
    """Who hears one channel."""

    def __init__(self) -> None:
        self.hearers: dict[object, Callable[[bytes | None], None]] = {}
        self.is_subscribed = anyio.Event()
        self.was_subscribed = False

    def confirm(self) -> None:
        """The channel is subscribed; after an interruption something may have been missed."""
        if self.is_subscribed.is_set():
            return
        self.is_subscribed.set()
        if self.was_subscribed:
            self.tell(None)
        self.was_subscribed = True

    def interrupt(self) -> None:
        """The connection broke: something may be missed from now on."""
        if self.is_subscribed.is_set():
            self.is_subscribed = anyio.Event()
            self.tell(None)

    def tell(self, content: bytes | None) -> None:
        for hear in tuple(self.hearers.values()):
            hear(content)


class Listener:
    """Keeps one connection, and subscribes it again after it broke; then hearers are told None."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._channels: dict[bytes, _Channel] = {}
        self._connection: AbstractConnection | None = None
        self._is_wanted = anyio.Event()
        self._failure: Exception | None = None
        """What the connection ended with, until it is heard of a channel again."""

    @property
    def is_connected(self) -> bool:
        """True while there is a connection."""
        return self._connection is not None

    @asynccontextmanager
    async def hearing(self, channel: bytes, hear: Callable[[bytes | None], None]) -> AsyncIterator[None]:
        """Call `hear` with what is published on a channel, from entering on; with None where some may be lost.

        Raises:
            DirectoryUnavailable: there is no connection.
        """
        me = object()
        heard = self._channels.setdefault(channel, _Channel())
        is_first = not heard.hearers
        heard.hearers[me] = hear
        try:
            with anyio.move_on_after(SUBSCRIBE_SECONDS) as patience:
                if is_first:
                    self._is_wanted.set()
                    await self._say("SUBSCRIBE", channel)
                await heard.is_subscribed.wait()
            if patience.cancelled_caught:
                if self._failure is not None:
                    raise unavailable(self._failure) from self._failure
                raise DirectoryUnavailable("redis cannot be reached to listen to it")
            yield
        finally:
            del heard.hearers[me]
            if not heard.hearers:
                del self._channels[channel]
                with anyio.move_on_after(SUBSCRIBE_SECONDS, shield=True):
                    await self._say("UNSUBSCRIBE", channel)

    async def run(self) -> None:
        """Keep the connection, until cancelled."""
        while True:
            await self._is_wanted.wait()
            try:
                await self._listen()
            except* BROKEN as broken:
                self._failure = first_of(broken)
            for heard in self._channels.values():
                heard.interrupt()
            await anyio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> None:
        client = await self._server.listening()
        connection = await client.connection_pool.get_connection()  # type: ignore[no-untyped-call]
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._ping_on, connection)
                self._connection = connection
                if self._channels:
                    await connection.send_command("SUBSCRIBE", *self._channels)
                await self._hear_on(connection)
        finally:
            self._connection = None
            with anyio.CancelScope(shield=True), suppress(*BROKEN):
                await connection.disconnect()
                await client.connection_pool.release(connection)
                if self._server.is_cluster:
                    await client.aclose()

    async def _hear_on(self, connection: AbstractConnection) -> None:
        while True:
            told = await connection.read_response(timeout=SILENCE_SECONDS)
            if told is None:
                told = await connection.read_response(timeout=SILENCE_SECONDS)
            if told is None:
                raise TimeoutError
            if not isinstance(told, list) or len(told) < 3:
                continue  # the answer to a ping
            kind, channel, content = told
            heard = self._channels.get(channel)
            if heard is None:
                continue
            if kind == b"message":
                heard.tell(content)
                await anyio.lowlevel.checkpoint()  # in a burst, reading waits for nothing: let it be heard
            elif kind == b"subscribe":
                self._failure = None
                heard.confirm()

    async def _ping_on(self, connection: AbstractConnection) -> None:
        while True:
            await anyio.sleep(PING_SECONDS)
            await connection.send_command("PING")

    async def _say(self, command: str, channel: bytes) -> None:
        """Send a command on the connection there is; one that comes later subscribes to all channels anyway."""
        connection = self._connection
        if connection is not None:
            with suppress(*BROKEN):
                await connection.send_command(command, channel)
