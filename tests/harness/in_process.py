"""uvicorn in a test's own process: it leaves the signals to the tests, and nothing of its connections behind."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn

from harness.ports import bound_socket


class InProcessServer(uvicorn.Server):
    """Drops at its end the connections that are left, such as those whose peer takes nothing."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.timeout_graceful_shutdown = 1  # from Python 3.12 on, uvicorn waits for what is left, forced or not
        await super().shutdown(sockets)
        while connections := list(self.server_state.connections):
            for connection in connections:
                connection.transport.abort()
            await asyncio.sleep(0)


@contextlib.asynccontextmanager
async def serving(app: Any, **options: Any) -> AsyncIterator[int]:
    """An ASGI application in the test's own event loop, with these options of uvicorn; its port."""
    listener = bound_socket()
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=2, **options))
    server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign]
    task = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task
