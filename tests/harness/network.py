"""A relay of bytes that a test can cut, hold back and close: a network that fails when it is told to.

async with Network(port) as network:
    ...  # a client connects to network.port instead
    await network.cut()
"""

import socket
import struct

import anyio
import anyio.abc

from harness.relay import Relay

PATIENCE = 20.0
_AT_ONCE = struct.pack("ii", 1, 0)
"""Closing sends a reset, and drops what was not sent."""


class Network(Relay):
    """A relay that a test can cut, hold back and close."""

    def __init__(self, target: int) -> None:
        super().__init__(target)
        self._relays: dict[anyio.CancelScope, anyio.Event] = {}
        self._came = anyio.Event()
        self._swallows = False
        self._swallowed = anyio.Event()
        self.taken = 0
        """Connections that clients made."""
        self.is_closed = False
        """True: whoever connects is reset at once."""

    async def cut(self) -> None:
        """Reset every connection, to both sides; returns when they are gone."""
        with anyio.fail_after(PATIENCE):
            for scope, gone in tuple(self._relays.items()):
                scope.cancel()
                await gone.wait()
        self._swallows, self._swallowed = False, anyio.Event()

    async def came(self, count: int) -> None:
        """Wait until clients have made so many connections."""
        with anyio.fail_after(PATIENCE):
            while self.taken < count:
                await self._came.wait()

    def swallow(self) -> None:
        """Until the next cut, nothing that clients say reaches the server."""
        self._swallows = True

    async def swallowed(self) -> None:
        """Wait until something was."""
        with anyio.fail_after(PATIENCE):
            await self._swallowed.wait()

    async def _relay(self, client: anyio.abc.SocketStream) -> None:
        self.taken += 1
        self._came.set()
        self._came = anyio.Event()
        if self.is_closed:
            await _reset(client)
            return
        gone = anyio.Event()
        server = await anyio.connect_tcp("127.0.0.1", self._target)
        try:
            async with anyio.create_task_group() as tasks:
                self._relays[tasks.cancel_scope] = gone
                tasks.start_soon(self._copy, client, server, True, tasks.cancel_scope)
                tasks.start_soon(self._copy, server, client, False, tasks.cancel_scope)
        finally:
            self._relays = {scope: event for scope, event in self._relays.items() if event is not gone}
            with anyio.CancelScope(shield=True):
                await _reset(client)
                await _reset(server)
            gone.set()

    async def _copy(
        self, source: anyio.abc.SocketStream, sink: anyio.abc.SocketStream, is_up: bool, scope: anyio.CancelScope
    ) -> None:
        try:
            async for chunk in source:
                if is_up and self._swallows:
                    self._swallowed.set()
                else:
                    await sink.send(chunk)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            scope.cancel()
        else:
            await sink.send_eof()


async def _reset(stream: anyio.abc.SocketStream) -> None:
    raw = stream.extra(anyio.abc.SocketAttribute.raw_socket)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    await anyio.aclose_forcefully(stream)
