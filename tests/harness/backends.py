"""The servers of shared directories, each started when the first test needs it, and kept for the others."""

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from typing import NamedTuple

from trunkline.mux.directory import SharedDirectory
from trunkline.mux.directory.open import Backend, open_directory

from harness.postgres import postgres_server
from harness.redis_server import redis_behind_sentinel, redis_cluster, redis_server
from harness.unprivileged import own_directory


class Place(NamedTuple):
    """Where a backend is, and how it is emptied."""

    backend: Backend
    url: Callable[[], str]
    clear: Callable[[], object]


class Backends:
    """`empty(name)` is a directory with nothing in it; `opened(name)` another way to the same one."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._places: dict[str, Place] = {}

    def close(self) -> None:
        self._stack.close()

    @asynccontextmanager
    async def empty(self, name: str) -> AsyncIterator[SharedDirectory]:
        self.place(name).clear()
        async with self.opened(name) as directory:
            yield directory

    @asynccontextmanager
    async def opened(self, name: str) -> AsyncIterator[SharedDirectory]:
        async with open_directory(self._places[name].backend, self._places[name].url()) as directory:
            yield directory

    def settings(self, name: str) -> str:
        """The table of a settings file that names an empty one."""
        place = self.place(name)
        place.clear()
        return f'[directory]\nbackend = "{place.backend}"\nurl = "{place.url()}"\n'

    def place(self, name: str) -> Place:
        """Where it is; it is started if this is the first one that asks."""
        if name not in self._places:
            self._places[name] = getattr(self, f"_{name}")()
        return self._places[name]

    def _redis(self) -> Place:
        server = self._stack.enter_context(redis_server())
        return Place("redis", lambda: server.url, lambda: server.command("FLUSHALL"))

    def _cluster(self) -> Place:
        cluster = self._stack.enter_context(redis_cluster())
        return Place("redis", lambda: cluster.url, cluster.flush)

    def _sentinel(self) -> Place:
        url, server = self._stack.enter_context(redis_behind_sentinel())
        return Place("redis", lambda: url, lambda: server.command("FLUSHALL"))

    def _sqlite(self) -> Place:
        folder = self._stack.enter_context(own_directory())
        names = [uuid.uuid4().hex]
        return Place(
            "database",
            lambda: f"sqlite+aiosqlite:///{folder}/{names[-1]}.db",
            lambda: names.append(uuid.uuid4().hex),
        )

    def _postgresql(self) -> Place:
        server = self._stack.enter_context(postgres_server())
        return Place("database", lambda: server.url, server.clear)
