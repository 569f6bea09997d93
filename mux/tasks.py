"""The tasks of a pool: what is begun there is seen through, whatever becomes of who asked for it."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio

from .errors import Overloaded

logger = logging.getLogger(__name__)

CANCEL_SECONDS: Final = 5.0
"""How long a task may take to end that was cancelled: one that swallows that would hold up the end of the process."""

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")


class Tasks:
    """Functions that run in tasks of their own: none of them is cancelled with the caller that began it.

    They end with the context `running`, as those of a task group would. A group keeps more of a task than the task
    itself takes, and every session has one.
    """

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()
        self._promised: set[asyncio.Future[Any]] = set()
        """What somebody waits for."""
        self._is_open = False
        """True while more can be begun."""
        self._on_ended = self._ended

    @asynccontextmanager
    async def running(self, patience: float) -> AsyncIterator[None]:
        """Tasks can be begun, for the length of the context; at its end, they have so many seconds to end.

        Then they are cancelled. What does not end by that within `CANCEL_SECONDS` is told to the log, and left.
        """
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
                with anyio.move_on_after(CANCEL_SECONDS):
                    while running:
                        await asyncio.wait(running)
                for task in running:
                    logger.error("a task of the pool does not end", extra={"task": task.get_name()})
                for promised in tuple(self._promised):
                    _refuse(promised)

    def spawn(self, function: Callable[[*Arguments], Coroutine[Any, Any, None]], *arguments: *Arguments) -> None:
        """Begin this. What it raises is logged.

        Raises:
            Overloaded: nothing is begun any longer.
        """
        self._spawn(function(*arguments), function)

    async def see_through(self, function: Callable[[*Arguments], Coroutine[Any, Any, T]], *arguments: *Arguments) -> T:
        """Do this, and wait for it: a caller that is cancelled leaves nothing half done.

        Raises:
            Overloaded: nothing is begun any longer, or it was ended by the end of the pool.
        """
        done: asyncio.Future[T] = asyncio.get_running_loop().create_future()

        async def see_through() -> None:
            try:
                result = await function(*arguments)
                if not done.done():
                    done.set_result(result)
            except Exception as error:
                if not done.done():
                    done.set_exception(error)
                    done.exception()  # the caller may have left
            finally:
                _refuse(done)

        self._spawn(see_through(), function)
        self._promised.add(done)
        done.add_done_callback(self._promised.discard)
        return await asyncio.shield(done)

    def _spawn(self, work: Coroutine[Any, Any, None], named: Callable[..., object]) -> None:
        if not self._is_open:
            work.close()
            raise Overloaded("the gateway is shutting down", limit="draining")
        context = copy_context()  # one for both: each would take a copy of its own, and keep it
        name = getattr(named, "__qualname__", None)
        task = asyncio.get_running_loop().create_task(work, name=name, context=context)
        self._running.add(task)
        task.add_done_callback(self._on_ended, context=context)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """One is done; a defect in it must not end the others."""
        self._running.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of the pool failed", exc_info=task.exception())


def _refuse(promised: asyncio.Future[Any]) -> None:
    """Nothing will come of it, unless it has."""
    if not promised.done():
        promised.set_exception(Overloaded("the gateway is shutting down", limit="draining"))
        promised.exception()  # the caller may have left
