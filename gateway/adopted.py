"""Processes whose own parents have died: the first process of a container is given them, and has to reap them."""

import os
from collections.abc import Callable, Collection
from contextlib import suppress
from typing import Final

import anyio

REAP_SECONDS: Final = 1.0
"""How often that is done. They take no more than their numbers; of these a container has a thousand or so."""


async def reap_adopted(own: Callable[[], Collection[int]]) -> None:
    """Do that until this is cancelled, in the first process alone; `own` are its own children, whom others wait for."""
    while os.getpid() == 1:
        await anyio.sleep(REAP_SECONDS)
        reap(own())


def reap(own: Collection[int]) -> None:
    """Reap who has exited. Where that is one of one's own, it goes first, and the rest waits."""
    with suppress(ChildProcessError):  # there are no children
        while exited := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if exited.si_pid in own:
                return
            os.waitpid(exited.si_pid, 0)
