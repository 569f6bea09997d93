"""Work that goes on beside a directory while it is open."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Final

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0
CANCEL_SECONDS: Final = 0.2
"""How long a work that was cancelled may take to its end before it is cancelled once more."""


@asynccontextmanager
async def beside(*works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run endless works for the length of the context, each begun again should it fail."""
    tasks = [asyncio.create_task(_keep(work)) for work in works]
    try:
        yield
    finally:
        # A work whose connection breaks just as it is cancelled reports the failure instead (a task group drops the
        # cancellation for it), and begins again: one cancellation is not always enough.
        while pending := [task for task in tasks if not task.done()]:
            for task in pending:
                task.cancel()
            await asyncio.wait(pending, timeout=CANCEL_SECONDS)


async def _keep(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception as error:
            logger.warning("the directory's background work failed", extra={"error": type(error).__name__})
        await asyncio.sleep(RETRY_SECONDS)
