"""A relay of TCP connections that cuts them where a test says, to the byte.

async with Cutter(port) as cutter:
    ...  # a client connects to cutter.port instead
    cutter.newest.limit(down=17)   # 17 bytes more of what the server says reach the client, then both are cut
"""

import asyncio
import contextlib
from types import TracebackType
from typing import Literal, Self

PATIENCE = 10.0
"""Seconds after which connections that were cut must be gone."""

Direction = Literal["up", "down"]


class Connection:
    """One relayed connection."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter) -> None:
        self._writers: dict[Direction, asyncio.StreamWriter] = {"up": server, "down": client}
        self._room: dict[Direction, int | None] = {"up": None, "down": None}
        self.is_cut = False

    def limit(self, *, up: int | None = None, down: int | None = None) -> None:
        """Let so many bytes more through, to the server and to the client, then cut; with 0, at the next byte."""
        self._room = {"up": up, "down": down}

    def cut(self) -> None:
        """Cut both sides. What was let through before arrives."""
        self.is_cut = True
        for writer in self._writers.values():
            writer.close()

    async def copy(self, source: asyncio.StreamReader, direction: Direction) -> None:
        """Relay one direction to its end."""
        writer = self._writers[direction]
        with contextlib.suppress(ConnectionError):
            while chunk := await source.read(65536):
                room = self._room[direction]
                if room is not None:
                    self._room[direction] = max(0, room - len(chunk))
                    chunk, over = chunk[:room], len(chunk) >= room
                if self.is_cut:
                    return
                writer.write(chunk)
                await writer.drain()
                if room is not None and over:
                    break
        self.cut()


class Cutter:
    """Relays connections from a port of its own to `target` on 127.0.0.1."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._tasks: set[asyncio.Task[None]] = set()
        self._next: tuple[int | None, int | None] = (None, None)
        self.connections: list[Connection] = []
        self.port = 0

    @property
    def newest(self) -> Connection:
        """The connection that was made last."""
        return self.connections[-1]

    def limit_next(self, *, up: int | None = None, down: int | None = None) -> None:
        """Limit the next connection from its beginning; see `Connection.limit`."""
        self._next = up, down

    def lead_to(self, target: int) -> None:
        """Relay connections to another port from now on."""
        self._target = target

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for connection in self.connections:
            connection.cut()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=PATIENCE)

    async def _relay(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target)
        except ConnectionError:  # nobody listens: the client sees its connection close
            client.close()
            return
        connection = Connection(client, server)
        up, down = self._next
        self._next = None, None
        connection.limit(up=up, down=down)
        self.connections.append(connection)
        await asyncio.gather(connection.copy(client_reader, "up"), connection.copy(server_reader, "down"))
