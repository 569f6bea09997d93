"""A relay of TCP connections behind which everything is as far away as a test says.

async with Delay(port) as delay:
    ...               # a client connects to delay.port instead
    delay.down = 0.2  # from now on what the server says takes so many seconds longer
"""

import asyncio
import ssl
from types import TracebackType
from typing import Final, Literal, Self

READ_BYTES: Final = 65536
PIECES: Final = 1024
"""How much may be under way in one direction; who sends more waits."""


class Delay:
    """Relays connections from a port of its own to `target` on 127.0.0.1. `up` and `down` are seconds one way.

    With `tls` its clients speak TLS to it, and it speaks none to `target`.
    """

    def __init__(self, target: int, *, up: float = 0.0, down: float = 0.0, tls: ssl.SSLContext | None = None) -> None:
        self.up = up
        self.down = down
        self.port = 0
        self._target = target
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._relay, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._listener.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._listener.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _relay(self, client_reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        server: asyncio.StreamWriter | None = None
        try:
            server_reader, server = await asyncio.open_connection("127.0.0.1", self._target)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._carry(client_reader, server, "up"))
                both.create_task(self._carry(server_reader, client, "down"))
        except* ConnectionError:  # nobody listens, or one side has reset it: the other sees it close
            pass
        finally:
            client.close()
            if server is not None:
                server.close()

    async def _carry(
        self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Literal["up", "down"]
    ) -> None:
        """Relay one direction; pieces are under way beside each other, and keep their order."""
        loop = asyncio.get_running_loop()
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(PIECES)

        async def leave() -> None:
            piece = b"first"
            while piece:
                piece = await source.read(READ_BYTES)
                await under_way.put((loop.time() + getattr(self, direction), piece))

        async def arrive() -> None:
            while True:
                due, piece = await under_way.get()
                await asyncio.sleep(due - loop.time())
                if not piece:
                    sink.close()
                    return
                sink.write(piece)
                await sink.drain()

        async with asyncio.TaskGroup() as both:
            both.create_task(leave())
            both.create_task(arrive())
