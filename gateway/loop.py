"""The event loop of a process: uvloop where it is there, and an end that waits so long for what outlives the work.

That of a command waits for nothing at its end.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, ParamSpec, TypeVar

logger = logging.getLogger(__name__)

Given = ParamSpec("Given")
Result = TypeVar("Result")

END_SECONDS: Final = 5.0
"""How long what is left running may take to end, once it is cancelled."""


class _Lookups(ThreadPoolExecutor):
    """Looks names up, each in a thread of its own: nobody can cut that short, and no end waits for it."""

    def submit(self, fn: Callable[Given, Result], /, *args: Given.args, **kwargs: Given.kwargs) -> Future[Result]:
        """See the base class."""
        found: Future[Result] = Future()

        def look() -> None:
            try:
                found.set_result(fn(*args, **kwargs))
            except Exception as error:  # whatever it is, who waits must hear of it
                found.set_exception(error)

        found.set_running_or_notify_cancel()
        threading.Thread(target=look, daemon=True).start()
        return found


def run_command(work: Coroutine[Any, Any, Result]) -> Result:
    """Do this on a loop of its own, whose end waits for no name server.

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
