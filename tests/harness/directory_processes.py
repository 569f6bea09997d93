"""Directories of other processes: a test's calls are performed there, each by a worker's own connections.

with directory_process() as process:
    async with process.opened("redis", url) as directory:
        ...  # a SharedDirectory, as that process has it

Run: `python -m harness.directory_processes SOCKET`. Each connection has a directory of its own. What goes over it are
pickles, each after its length: who connects is the test that has started the process.
"""

import asyncio
import contextlib
import itertools
import pickle
import struct
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from trunkline.mux.directory import SharedDirectory, database_news
from trunkline.mux.directory import redis as redis_module
from trunkline.mux.directory.open import Backend, open_directory

from harness.processes import HARNESS_PARENT, ServerProcess, module_command
from harness.unprivileged import own_directory

LENGTH: Final = struct.Struct(">I")
LIMIT: Final = 64 * 1024 * 1024
START_SECONDS: Final = 30.0
SMALL_BUFFER: Final = 32
"""What is kept for a slow watcher here: thousands of changes would take long."""


class Connection:
    """Requests and answers on one stream, each with a number: many may be under way."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> Any:
        """The next message.

        Raises:
            asyncio.IncompleteReadError: the other side has gone.
        """
        (length,) = LENGTH.unpack(await self._reader.readexactly(LENGTH.size))
        return pickle.loads(await self._reader.readexactly(length))

    def send(self, message: object) -> None:
        """Send a message."""
        raw = pickle.dumps(message)
        self._writer.write(LENGTH.pack(len(raw)) + raw)

    def close(self) -> None:
        """Close it."""
        self._writer.close()


class RemoteDirectory:
    """The directory at the other end of a connection. Implements `SharedDirectory`."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[Any]] = {}

    def __getattr__(self, name: str) -> Any:
        if name in ("watch", "mailbox"):
            return lambda *given: self._entered(name, given)
        return lambda *given: self._ask("call", name, given)

    async def hear(self) -> None:
        """Take the answers as they come."""
        while True:
            number, is_error, told = await self._connection.receive()
            answer = self._answers.pop(number)
            if not answer.done():
                answer.set_exception(told) if is_error else answer.set_result(told)

    async def _ask(self, *what: object) -> Any:
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        self._connection.send((number, *what))
        return await answer

    @asynccontextmanager
    async def _entered(self, name: str, given: tuple[object, ...]) -> AsyncIterator[AsyncIterator[Any]]:
        place = await self._ask("enter", name, given)

        async def heard() -> AsyncIterator[Any]:
            while True:
                yield await self._ask("next", place, ())

        try:
            yield heard()
        finally:
            await self._ask("leave", place, ())


class DirectoryProcess:
    """A process that opens directories."""

    def __init__(self, path: Path) -> None:
        self._path = path

    @asynccontextmanager
    async def opened(self, backend: Backend, url: str) -> AsyncIterator[RemoteDirectory]:
        """The directory at this URL, as that process has it."""
        connection = Connection(*await asyncio.open_unix_connection(str(self._path), limit=LIMIT))
        directory = RemoteDirectory(connection)
        hearing = asyncio.create_task(directory.hear())
        try:
            await directory._ask("open", backend, (url,))
            yield directory
        finally:
            connection.close()
            hearing.cancel()
            with contextlib.suppress(asyncio.CancelledError, asyncio.IncompleteReadError):
                await hearing


@contextmanager
def directory_process() -> Iterator[DirectoryProcess]:
    """Such a process, for as long as this is entered."""
    with own_directory() as place:
        path = place / "directory"
        process = ServerProcess(module_command(__name__, str(path)), cwd=HARNESS_PARENT)
        try:
            for _ in range(int(START_SECONDS / 0.05)):
                if path.exists() or process.returncode is not None:
                    break
                with contextlib.suppress(Exception):
                    process.wait(0.05)
            if not path.exists():
                raise process.fail("there is no socket")
            yield DirectoryProcess(path)
        finally:
            process.kill()


# In the process.


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection, to its end."""
    connection = Connection(reader, writer)
    number, _, backend, (url,) = await connection.receive()
    async with open_directory(backend, url) as directory, asyncio.TaskGroup() as tasks:
        connection.send((number, False, None))
        desk = Desk(directory, connection)
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                number, kind, name, given = await connection.receive()
                desk.tasks.append(tasks.create_task(getattr(desk, kind)(number, name, given)))
        for task in desk.tasks:
            task.cancel()
    connection.close()


class Desk:
    """Performs what comes in on one connection, each request in a task of its own."""

    def __init__(self, directory: SharedDirectory, connection: Connection) -> None:
        self.tasks: list[asyncio.Task[None]] = []
        self._directory = directory
        self._connection = connection
        self._waiting: dict[int, asyncio.Queue[tuple[int, bool]]] = {}
        """Who waits for the next item of what was entered by the request of this number, and whether it is left."""

    async def call(self, number: int, name: str, given: tuple[Any, ...]) -> None:
        """Call a method; its result, or its error."""
        try:
            told, is_error = await getattr(self._directory, name)(*given), False
        except Exception as error:
            told, is_error = error, True
        self._connection.send((number, is_error, told))

    async def enter(self, number: int, name: str, given: tuple[Any, ...]) -> None:
        """Enter a context, and be in it until it is left: it is known by the number of this request."""
        waiting = self._waiting[number] = asyncio.Queue()
        entered: AbstractAsyncContextManager[AsyncIterator[Any]] = getattr(self._directory, name)(*given)
        async with entered as items:
            self._connection.send((number, False, number))
            while True:
                number, is_left = await waiting.get()
                if is_left:
                    break
                self._connection.send((number, False, await anext(items)))
        self._connection.send((number, False, None))

    async def next(self, number: int, place: int, _: object) -> None:
        """The next item of what was entered."""
        self._waiting[place].put_nowait((number, False))

    async def leave(self, number: int, place: int, _: object) -> None:
        """Leave it."""
        self._waiting.pop(place).put_nowait((number, True))


async def main(path: str) -> None:
    """Serve until the process is ended."""
    for module in (redis_module, database_news):
        module.WATCH_BUFFER = SMALL_BUFFER  # type: ignore[misc]
    async with await asyncio.start_unix_server(serve, path, limit=LIMIT) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
