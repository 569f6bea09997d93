"""Signals to a program: they wait until it can obey them, since without a handler they would end it as it starts."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Final

import anyio

HELD: Final = (signal.SIGTERM, signal.SIGHUP)
"""SIGINT is not: whoever pressed Ctrl-C waits for nothing, and Python ends in order for it."""


def hold() -> None:
    """Let signals wait from now on. What is started meanwhile holds them as well."""
    signal.pthread_sigmask(signal.SIG_BLOCK, HELD)


@contextmanager
def received() -> Iterator[AsyncIterator[signal.Signals]]:
    """The signals that come, for the length of the context; first those that waited."""
    with anyio.open_signal_receiver(*HELD, signal.SIGINT) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HELD)
        yield signals
