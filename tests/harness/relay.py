"""What relays of bytes have in common: a port of their own, and their beginning and end."""

from abc import ABC, abstractmethod
from types import TracebackType
from typing import Self

import anyio
import anyio.abc

from harness.ports import free_port


class Relay(ABC):
    """Relays TCP connections from a port of its own to `target` on 127.0.0.1, for the length of its context."""

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0

    async def __aenter__(self) -> Self:
        self.port = free_port()
        self._listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=self.port)
        self._tasks = anyio.create_task_group()
        await self._tasks.__aenter__()
        self._tasks.start_soon(self._listener.serve, self._relay)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        self._tasks.cancel_scope.cancel()
        swallowed = await self._tasks.__aexit__(kind, error, trace)
        await self._listener.aclose()
        return swallowed

    @abstractmethod
    async def _relay(self, client: anyio.abc.SocketStream) -> None:
        """Relay this connection, until it ends."""
