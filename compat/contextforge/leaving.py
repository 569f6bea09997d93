"""Hears that this process is told to stop: ASGI tells it only once all streams of the server have ended."""

import asyncio
import signal
import threading
from collections.abc import Awaitable, Callable
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)

Leave = Callable[[], Awaitable[None]]


class Leaving:
    """Tells of the signals that stop a server, before the server's own handler has them.

    Nothing is told outside of the main thread, or where the server has no handler in Python.
    """

    def __init__(self) -> None:
        self._told: list[Leave] = []
        self._stock: dict[int, Callable[[int, FrameType | None], Any]] = {}
        self._handler: Callable[[int, FrameType | None], None] | None = None
        self._tasks: set[asyncio.Future[None]] = set()

    def tell(self, leave: Leave) -> None:
        """Let this be called when the process is told to stop."""
        self._told.append(leave)

    def watch(self) -> None:
        """Begin, in the running loop. Idempotent."""
        if self._handler is not None or threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()

        def handle(number: int, frame: FrameType | None) -> None:
            if not loop.is_closed():  # it may have ended without `unwatch`
                loop.call_soon_threadsafe(self._leave)
            self._stock[number](number, frame)

        self._handler = handle
        for number in SIGNALS:
            stock = signal.getsignal(number)
            if callable(stock):
                self._stock[number] = stock
                signal.signal(number, handle)

    def unwatch(self) -> None:
        """Give the signals back to who had them. Idempotent."""
        for number, stock in self._stock.items():
            if signal.getsignal(number) is self._handler:
                signal.signal(number, stock)
        self._stock.clear()
        self._handler = None

    def _leave(self) -> None:
        for leave in self._told:
            task = asyncio.ensure_future(leave())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
