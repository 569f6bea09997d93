"""What the kernel takes, and when: so that a message which still waits can be held back.

A process reads lines from a pipe, each begun only where it still may be; of a socket it is known whether it takes more.
"""

from __future__ import annotations

import asyncio
import os
import select
from collections import deque
from collections.abc import Callable

MayBegin = Callable[[], bool]
"""Asked right before the first byte of a line is written; where it says no, the line is dropped."""


def always() -> bool:
    """It may."""
    return True


class InputPipe:
    """The writing end of a pipe. What the kernel does not take waits here, and not where nobody could hold it back.

    `gone` is called once, from the loop, when nobody reads any longer.
    """

    def __init__(self, fd: int, gone: Callable[[], None]) -> None:
        os.set_blocking(fd, False)
        self._fd = fd
        self._gone = gone
        self._loop = asyncio.get_running_loop()
        self._lines: deque[tuple[bytes, MayBegin]] = deque()
        self._written = 0
        """Bytes of the first line that the kernel has."""
        self._is_watched = False
        self._is_closing = False
        self._is_closed = False
        self.unsent = 0
        """Bytes that wait here."""
        self._loop.add_reader(fd, self._break)  # no byte ever comes: it is readable when the other end is closed

    @property
    def waiting(self) -> int:
        """Lines that wait here, with one that is written in part."""
        return len(self._lines)

    def write(self, line: bytes, may_begin: MayBegin = always) -> None:
        """Write a line after those that wait, without waiting. Dropped where it is closed."""
        if self._is_closing or self._is_closed:
            return
        self._lines.append((line, may_begin))
        self.unsent += len(line)
        if not self._is_watched:
            self._flush()

    def close(self) -> None:
        """Close it once what waits is written. Idempotent."""
        self._is_closing = True
        if not self._lines:
            self.abort()

    def abort(self) -> None:
        """Close it at once. Idempotent."""
        if self._is_closed:
            return
        self._is_closed = True
        self._loop.remove_reader(self._fd)
        self._watch(is_watched=False)
        self._lines.clear()
        self.unsent = 0
        os.close(self._fd)

    def _flush(self) -> None:
        while self._lines and not self._is_closed:
            line, may_begin = self._lines[0]
            if not self._written and not may_begin():
                self._next(len(line))
                continue
            try:
                taken = os.write(self._fd, memoryview(line)[self._written :])
            except BlockingIOError:
                self._watch(is_watched=True)
                return
            except OSError:
                self._loop.call_soon(self._break)
                return
            self._written += taken
            self.unsent -= taken
            if self._written == len(line):
                self._next(0)
        self._watch(is_watched=False)
        if self._is_closing:
            self.abort()

    def _next(self, dropped: int) -> None:
        self._lines.popleft()
        self.unsent -= dropped
        self._written = 0

    def _watch(self, *, is_watched: bool) -> None:
        if is_watched and not self._is_watched:
            self._loop.add_writer(self._fd, self._flush)
        elif self._is_watched and not is_watched:
            self._loop.remove_writer(self._fd)
        self._is_watched = is_watched

    def _break(self) -> None:
        if not self._is_closed:
            self.abort()
            self._gone()


def when_writable(fd: int, then: Callable[[], None]) -> Callable[[], None] | None:
    """Call `then` once the kernel takes something that is written there; None, and no call, where it does now.

    What is returned calls it off. Somebody else may own and watch the descriptor.
    """
    poll = select.poll()
    poll.register(fd, select.POLLOUT)
    if poll.poll(0):
        return None
    loop, copy = asyncio.get_running_loop(), os.dup(fd)

    def call_off() -> None:
        loop.remove_writer(copy)
        os.close(copy)

    def is_ready() -> None:
        call_off()
        then()

    loop.add_writer(copy, is_ready)
    return call_off
