"""What servers say beside their answers, on its way to ContextForge: in order, and no more than it takes.

ContextForge may wait for redis with each message. What a server says meanwhile waits here, within bounds.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

from .reuse import Told

logger = logging.getLogger(__name__)

MAX_WAITING: Final = 1_024
MAX_WAITING_BYTES: Final = 4_194_304
"""So many messages of one server wait in one session, and so much of them but for the first; others are left out."""

Handle = Callable[[Told], Awaitable[None]]


class _Waiting:
    """What one server has said in one session, and was not handed on yet."""

    def __init__(self) -> None:
        self._messages: deque[Told] = deque()
        self._size = 0
        self.left_out = 0

    def __len__(self) -> int:
        return len(self._messages)

    def put(self, told: Told) -> None:
        """Let it wait, or leave it out; of the first that is, the log tells at once: it may go on for ever."""
        size = self._size + len(told.message)
        if self._messages and (len(self._messages) >= MAX_WAITING or size > MAX_WAITING_BYTES):
            self.left_out += 1
            if self.left_out == 1:
                logger.warning("the server of gateway %s says more than is taken: it is left out", told.gateway_id)
        else:
            self._messages.append(told)
            self._size = size

    def take(self) -> Told:
        """The next one."""
        told = self._messages.popleft()
        self._size -= len(told.message)
        return told


class Hearing:
    """Has `handle` called with each message: of one server and session one after the other."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._waiting: dict[tuple[str, str], _Waiting] = {}
        """Of those of which something is being handed on, by the gateway record and the session."""
        self._tasks: set[asyncio.Task[None]] = set()

    def hear(self, told: Told) -> None:
        """Hand it on once what came before has been. Where too much waits, it is left out, and that is logged."""
        source = told.gateway_id, told.session
        waiting = self._waiting.get(source)
        if waiting is None:
            waiting = self._waiting[source] = _Waiting()
            task = asyncio.get_running_loop().create_task(self._hand_on(source, waiting))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        waiting.put(told)

    async def _hand_on(self, source: tuple[str, str], waiting: _Waiting) -> None:
        try:
            while waiting:
                try:
                    await self._handle(waiting.take())
                except Exception:
                    logger.exception("what a server said could not be handed on")
        finally:  # also where it is cancelled: what comes later has a task of its own
            del self._waiting[source]
            if waiting.left_out:
                logger.warning("%d messages of the server of gateway %s were left out", waiting.left_out, source[0])
