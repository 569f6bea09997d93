"""The tasks of a pool: what is begun there is seen through, whatever becomes of who asked for it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import anyio

from .errors import Overloaded

logger = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")


class Tasks:
    """Functions that run in tasks of their own: none of them is cancelled with the caller that began it.

    They end with the context `running`, as those of a task group would. A group keeps more of a task than the task
    itself takes, and every session has one.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._is_open = False
        """True while more can be begun."""
        self._on_ended = self._ended

    @asynccontextmanager
    async def running(self, patience: float) -> AsyncIterator[None]:
        """Tasks can be begun, for the length of the context; at its end, they have so many seconds to end."""
        running, self._is_open = self._running, True
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(patience):
                    while running:
                        await asyncio.wait(running)
                self._is_open = False
                for task in running:
                    task.cancel()
                if running:
                    await asyncio.wait(running)

    def spawn(self, function: Callable[[A], Coroutine[Any, Any, None]], argument: A) -> None:
        """Begin this. What it raises is logged.

        Raises:
            Overloaded: nothing is begun any longer.
        """
        if not self._is_open:
            raise Overloaded("the gateway is shutting down", limit="draining")
        task = asyncio.get_running_loop().create_task(function(argument))
        self._running.add(task)
        task.add_done_callback(self._on_ended)

    async def see_through(self, function: Callable[[A], Coroutine[Any, Any, T]], argument: A) -> T:
        """Do this, and wait for it: a caller that is cancelled leaves nothing half done.

        Raises:
            Overloaded: nothing is begun any longer, or it was ended by the end of the pool.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def see_through(_: None) -> None:
            try:
                done.set_result(await function(argument))
            except Exception as error:
                done.set_exception(error)
                done.exception()  # the caller may have left
            finally:
                if not done.done():
                    done.set_exception(Overloaded("the gateway is shutting down", limit="draining"))
                    done.exception()

        self.spawn(see_through, None)
        return await asyncio.shield(done)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One is done; a defect in it must not end the others."""
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the pool failed", exc_info=task.exception())
