"""A context that a task of its own holds: as fixtures of tests do, one task may enter it, and another leave it."""

import asyncio
from contextlib import AbstractAsyncContextManager

import anyio


class Holding:
    """Holds a context between `begin` and `end`, on the event loop that runs where it is made; or until that ends."""

    def __init__(self, context: AbstractAsyncContextManager[object]) -> None:
        self._context = context
        loop = asyncio.get_running_loop()
        self._is_left = asyncio.Event()
        self._begun: asyncio.Future[None] = loop.create_future()
        self._task = loop.create_task(self._hold())

    @property
    def is_left(self) -> bool:
        """True once it was told to end."""
        return self._is_left.is_set()

    async def begin(self) -> None:
        """Wait until the context is entered; who is cancelled meanwhile has it left. Raises what entering it raises."""
        try:
            await asyncio.wait((self._task, self._begun), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            self._is_left.set()
            raise
        if self._task.done():
            self._task.result()

    async def end(self) -> None:
        """Leave the context, and wait until it is left. Raises what leaving it raises. Idempotent."""
        self._is_left.set()
        with anyio.CancelScope(shield=True):
            await asyncio.wait((self._task,))
        if not self._task.cancelled():  # by a program that ends all of its tasks: it was left then
            self._task.result()

    async def _hold(self) -> None:
        async with self._context:
            self._begun.set_result(None)
            await self._is_left.wait()
