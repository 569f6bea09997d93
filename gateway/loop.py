"""The event loop of a process: uvloop where it is there, and an end that waits so long for what outlives the work.

That of a command waits for nothing at its end.
"""

import asyncio
import logging
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

END_SECONDS: Final = 5.0
"""How long what is left running may take to end, once it is cancelled."""


class _Lookups(ThreadPoolExecutor):
    """Threads that look names up: who asked for that may leave, and nobody can cut it short."""

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """See the base class; nothing is waited for."""
        super().shutdown(wait=False, cancel_futures=True)


def run_command(work: Coroutine[Any, Any, Result]) -> Result:
    """Do this on a loop of its own, which Ctrl-C ends at once.

    Raises:
        Exception: what the work raised.
    """
    with asyncio.Runner() as runner:
        runner.get_loop().set_default_executor(_Lookups())
        return runner.run(work)


def run(work: Coroutine[Any, Any, None]) -> None:
    """Do this on a loop of its own, and then end what it left running; what does not end is told to the log, and left.

    Raises:
        Exception: what the work raised.
    """
    try:
        import uvloop
    except ImportError:  # works without, only slower
        runner = asyncio.Runner()
    else:
        runner = asyncio.Runner(loop_factory=uvloop.new_event_loop)
    try:
        runner.run(work)
    finally:
        if runner.run(_all_end()):
            runner.close()


async def _all_end() -> bool:
    """Cancel all other tasks; False where one of them is still there, for which a runner would wait."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    left = (await asyncio.wait(tasks, timeout=END_SECONDS))[1] if tasks else ()
    for task in left:
        logger.error("a task does not end", extra={"task": task.get_name()})
    return not left
