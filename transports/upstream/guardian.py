"""What this process started ends with it, also where it is killed and can do nothing about that itself.

A server that reads the end of its input ends by itself. One that hangs would be left for good, with all that it
started: so a small process, begun with the first of them, is told which groups there are. It runs `orphans`, which ends
them where this one has died. (What Linux signals at the death of a parent would reach none of what a wrapper started.)
"""

import atexit
import logging
import os
import subprocess
import sys
import threading
from typing import Final

from . import orphans

logger = logging.getLogger(__name__)

UNGUARDED: Final = "servers that hang would outlive this process if it was killed: %s"


class Guardian:
    """Guards process groups; to be called from any thread.

    `seconds` is how long they have to end by themselves once this process is dead, and again after SIGTERM.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._lock = threading.Lock()
        self._groups = set[int]()
        self._process: subprocess.Popen[bytes] | None = None
        self._input = -1
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._leave)

    def processes(self) -> set[int]:
        """The processes that are waited for here: its own one, and the leaders of the groups."""
        with self._lock:
            return self._groups | ({self._process.pid} if self._process is not None else set())

    def take(self, group: int) -> None:
        """Guard this group. Where that is not possible, it is told to the log, and tried again with the next one."""
        with self._lock:
            self._groups.add(group)
            if not self._tell(b"+%d\n" % group):
                self._begin()

    def release(self, group: int) -> None:
        """It has ended."""
        with self._lock:
            self._groups.discard(group)
            if not self._tell(b"-%d\n" % group) and self._groups:
                self._begin()

    def close(self) -> None:
        """End with this process, where that ends in order; groups that are left end as well. Called by itself."""
        with self._lock:
            if self._process is None:
                return
            if self._groups:
                os.close(self._input)
                self._process = None
            else:
                self._end()

    def _begin(self) -> None:
        try:
            self._process, self._input = _started(self._seconds)
        except OSError as error:
            logger.warning(UNGUARDED, error.strerror)
            return
        atexit.register(self.close)
        if not all(self._tell(b"+%d\n" % group) for group in self._groups):
            logger.warning(UNGUARDED, "what ends them does not hear of them")

    def _leave(self) -> None:
        """In a fork of this process: all is the parent's, whose end would not be heard of as long as this one lives."""
        self._lock = threading.Lock()
        self._groups.clear()
        if self._process is not None:
            self._process.poll()  # finds that it is no child here
            self._process = None
            os.close(self._input)
            atexit.unregister(self.close)

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()  # the end of its input would tell it that this process has died
            self._process = None
            os.close(self._input)
            atexit.unregister(self.close)

    def _tell(self, word: bytes) -> bool:
        """Say this; False where nobody hears it."""
        if self._process is None:
            return False
        try:
            os.write(self._input, word)
        except OSError:  # it was killed, or it is stopped
            self._end()
            return False
        return True


def _started(seconds: float) -> tuple[subprocess.Popen[bytes], int]:
    """The process, and what is written to for it to read.

    Raises:
        OSError: it cannot be started.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    try:
        process = subprocess.Popen(  # noqa: S603 - our own program; it returns at once
            [sys.executable or "python3", "-I", "-S", orphans.__file__, str(seconds)],
            stdin=reading,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
    except BaseException:
        os.close(writing)
        raise
    finally:
        os.close(reading)
    return process, writing
