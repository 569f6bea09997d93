"""What changes while a test waits for something to hold of it."""

from collections.abc import Callable
from typing import Final

import anyio

PATIENCE: Final = 10.0
"""Seconds after which waiting fails the test."""


class Changing:
    """Something that a test waits for."""

    def __init__(self) -> None:
        self._changed = anyio.Event()

    def happened(self) -> None:
        """Wake who waits for something to happen here."""
        self._changed.set()
        self._changed = anyio.Event()

    async def until(self, condition: Callable[[], object], *, timeout: float = PATIENCE) -> None:
        """Wait until the condition holds; it is looked at whenever something happens here.

        Raises:
            TimeoutError: it did not hold within `timeout` seconds.
        """
        with anyio.fail_after(timeout):
            while not condition():
                await self._changed.wait()


async def until(condition: Callable[[], object]) -> None:
    """Wait until this holds, a turn of the loop at a time: where nobody tells that something has changed."""
    with anyio.fail_after(2 * PATIENCE):
        while not condition():
            await anyio.lowlevel.checkpoint()
