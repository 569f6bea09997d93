"""Ticks that are finer than the milliseconds of an event loop's timers, from the kernel's timer descriptors."""

import asyncio
import contextlib
import ctypes
import os
from collections.abc import Callable, Iterator

LEAST_SECONDS = 0.0001
_MONOTONIC = 1
_NONBLOCK = os.O_NONBLOCK
_libc = ctypes.CDLL(None, use_errno=True)


class _Spec(ctypes.Structure):
    """A `struct itimerspec`: the interval, and the time until the first tick, as seconds and nanoseconds."""

    _fields_ = (("each", ctypes.c_long * 2), ("first", ctypes.c_long * 2))


@contextlib.contextmanager
def ticking(seconds: float, tick: Callable[[], None]) -> Iterator[None]:
    """`tick` is called this often on the running loop, for the length of the context; never twice for one delay."""
    between = (ctypes.c_long * 2)(*divmod(round(max(seconds, LEAST_SECONDS) * 1e9), 1_000_000_000))
    descriptor = _libc.timerfd_create(_MONOTONIC, _NONBLOCK)
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(descriptor, 8)
        tick()

    try:
        if descriptor < 0 or _libc.timerfd_settime(descriptor, 0, ctypes.byref(_Spec(between, between)), None):
            raise OSError(ctypes.get_errno(), "the timer cannot be set")
        loop.add_reader(descriptor, read)
        yield
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
