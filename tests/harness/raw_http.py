"""A server on a real socket that answers byte for byte what a test says, and who hears it."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Final, cast

from trunkline.transports.upstream.http import ExchangeBroken

PATIENCE: Final = 10.0
"""Seconds after which waiting fails the test."""

Serve = Callable[["Peer"], Awaitable[None]]
Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Peer:
    """The server's side of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def request(self) -> tuple[str, dict[str, str], bytes]:
        """The next request: its first line, its headers by lower-case name, its body."""
        async with asyncio.timeout(PATIENCE):
            head = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1")
            start, *lines = head.strip().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
            return start, headers, await self._reader.readexactly(int(headers.get("content-length", "0")))

    async def secure(self, context: ssl.SSLContext) -> None:
        """Go on in TLS, as a proxy's other end does."""
        async with asyncio.timeout(PATIENCE):
            await self._writer.start_tls(context)

    async def some(self) -> bytes:
        """What comes next, as it comes; nothing at the end."""
        async with asyncio.timeout(PATIENCE):
            return await self._reader.read(65536)

    async def say(self, *pieces: bytes) -> None:
        """Send these, each in a segment of its own as far as the kernel allows."""
        for piece in pieces:
            self._writer.write(piece)
            await self._writer.drain()
            await asyncio.sleep(0)

    async def closed(self) -> None:
        """Wait until the client has closed the connection."""
        async with asyncio.timeout(PATIENCE):
            try:
                while await self._reader.read(65536):
                    pass
            except ConnectionError:
                pass

    def reset(self) -> None:
        """Cut the connection."""
        self._writer.transport.abort()


def saying(*pieces: bytes, ends: bool = False) -> Serve:
    """Answer one request with these pieces; what `ends` then closes the connection, else its client does."""

    async def serve(peer: Peer) -> None:
        await peer.request()
        await peer.say(*pieces)
        if not ends:
            await peer.closed()

    return serve


def always(*pieces: bytes, seen: list[tuple[str, dict[str, str], bytes]] | None = None) -> Serve:
    """Answer every request with these pieces; what was asked is noted in `seen`."""

    async def serve(peer: Peer) -> None:
        while True:
            asked = await peer.request()
            if seen is not None:
                seen.append(asked)
            await peer.say(*pieces)

    return serve


class RawServer:
    """Runs `serve` for each connection. What it raises fails the test when it leaves the context."""

    def __init__(self, serve: Serve) -> None:
        self._serve = serve
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_over = False
        self.failures: list[AssertionError] = []
        self.connections = 0
        self.url = ""

    def protocol(self) -> asyncio.Protocol:
        """What serves one connection; one that comes when the test is over is cut."""
        reader = asyncio.StreamReader()
        return _Connection(reader, self._accept, lambda: self._is_over)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if self._is_over:
                return
            await self._serve(Peer(reader, writer))
        except AssertionError as error:
            self.failures.append(error)
        except (asyncio.CancelledError, asyncio.IncompleteReadError, ConnectionError):
            pass  # the client has gone, or the test is over
        finally:
            writer.close()


class _Connection(asyncio.StreamReaderProtocol):
    def __init__(self, reader: asyncio.StreamReader, accept: Accept, is_over: Callable[[], bool]) -> None:
        super().__init__(reader, accept)
        self._is_over = is_over

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self._is_over():
            cast(asyncio.Transport, transport).abort()
        else:
            super().connection_made(transport)


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[RawServer]:
    """A server for the length of the context."""
    server = RawServer(serve)
    listener = await asyncio.get_running_loop().create_server(server.protocol, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}/mcp"
    try:
        yield server
    finally:
        server._is_over = True
        for _ in range(3):  # asyncio loses a connection whose listener is closed while it is being made
            await asyncio.sleep(0)
        listener.close()
        for task in server._tasks:
            task.cancel()
        await asyncio.gather(*server._tasks)
    if server.failures:
        raise server.failures[0]


class Hearer:
    """Hears one answer, and holds the client to the port: nothing out of order, nothing after the end."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.over: asyncio.Future[ExchangeBroken | None] = asyncio.get_running_loop().create_future()
        self.some = asyncio.Event()
        """Set when something of the body has come."""

    def began(self, status: int, headers: Mapping[str, str]) -> None:
        assert not self.status
        assert not self.over.done()
        self.status, self.headers = status, headers

    def came(self, chunk: bytes) -> None:
        assert self.status
        assert not self.over.done()
        self.body += chunk
        self.some.set()

    def ended(self, error: ExchangeBroken | None) -> None:
        self.over.set_result(error)

    async def outcome(self) -> ExchangeBroken | None:
        """How it ended."""
        async with asyncio.timeout(PATIENCE):
            return await self.over
