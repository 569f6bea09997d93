"""Work that goes on beside a directory while it is open."""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Final

logger = logging.getLogger(__name__)

RETRY_SECONDS: Final = 1.0


@asynccontextmanager
async def beside(*works: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    """Run endless works for the length of the context, each begun again should it fail."""
    tasks = [asyncio.create_task(_keep(work)) for work in works]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for task in tasks:
            with suppress(asyncio.CancelledError):
                await task


async def _keep(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception as error:
            logger.warning("the directory's background work failed", extra={"error": type(error).__name__})
        await asyncio.sleep(RETRY_SECONDS)
