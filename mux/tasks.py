"""The tasks of a pool: what is begun there is seen through, whatever becomes of who asked for it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

from anyio.abc import TaskGroup

from .errors import Overloaded

logger = logging.getLogger(__name__)

A = TypeVar("A")
T = TypeVar("T")


class Tasks:
    """Functions that run in a group of their own: none of them is cancelled with the caller that began it."""

    def __init__(self) -> None:
        self.group: TaskGroup | None = None
        """Where they run; None while nothing can be begun."""

    def spawn(self, function: Callable[[A], Awaitable[None]], argument: A) -> None:
        """Begin this. What it raises is logged.

        Raises:
            Overloaded: nothing is begun any longer.
        """
        if self.group is None:
            raise Overloaded("the gateway is shutting down", limit="draining")
        self.group.start_soon(_guarded, function, argument)

    async def see_through(self, function: Callable[[A], Awaitable[T]], argument: A) -> T:
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


async def _guarded(function: Callable[[A], Awaitable[None]], argument: A) -> None:
    """Run one task; a defect in it must not end the others."""
    try:
        await function(argument)
    except Exception:
        logger.exception("a task of the pool failed")
