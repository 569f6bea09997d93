"""Where the request ids of an upstream session come from: blocks, the next one drawn before the last is used up (E4).

The session's owner task draws them; whoever sends a request takes what is there, and never waits for the directory.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from .demux import Demux
from .errors import SessionLost

logger = logging.getLogger(__name__)

LOW_IDS: Final = 768
"""With no more ids than this left, the next block is drawn: most of one, since a directory may be slow."""

DrawIds = Callable[[int], Awaitable[range]]
"""A block of ids above this one; a KeyError where the record of the session is gone."""


class IdSupply:
    """Feeds the demultiplexer of one session with ids."""

    __slots__ = ("_demux", "_draw_ids", "_has_failed", "_is_drawing_anew", "_is_over", "_server", "due")

    def __init__(self, demux: Demux, draw_ids: DrawIds, server: str) -> None:
        self._demux = demux
        self._draw_ids = draw_ids
        self._server = server
        self._is_drawing_anew = False
        self._is_over = False
        self._has_failed = False
        """True once it was told that no block could be drawn, until one is."""
        self.due: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """What the owner task waits for, and all that wakes it: done when a block may be due, or none ever will be."""

    @property
    def highest(self) -> int:
        """The highest id that was drawn."""
        return self._demux.highest_id

    def ask(self) -> None:
        """Let the owner task look whether a block is due."""
        if not self.due.done():
            self.due.set_result(None)

    def draw_anew(self) -> None:
        """Draw a block, so that nobody draws again what was drawn here."""
        self._is_drawing_anew = True
        self.ask()

    def end(self) -> None:
        """No more ids are needed."""
        self._is_over = True
        self.ask()

    async def draw(self) -> None:
        """Draw a block.

        Raises:
            SessionLost: the record of the session is gone.
            Exception: whatever the directory fails with.
        """
        was_anew, self._is_drawing_anew = self._is_drawing_anew, False  # it may be asked for once more meanwhile
        try:
            self._demux.feed(await self._draw_ids(self._demux.highest_id))
        except KeyError:
            raise SessionLost("the record of the session is gone", executed="unknown") from None
        except BaseException:
            self._is_drawing_anew = self._is_drawing_anew or was_anew
            raise

    async def refill(self) -> None:
        """Draw the block that is due; a directory that fails is asked again with the next request.

        Raises:
            SessionLost: the record of the session is gone.
        """
        self.due = asyncio.get_running_loop().create_future()
        if self._is_over or (self._demux.ids_left > LOW_IDS and not self._is_drawing_anew):
            return
        try:
            await self.draw()
        except SessionLost:
            raise
        except Exception as error:  # the session is sound, and the next call tries again
            if not self._has_failed:
                reason = type(error).__name__
                logger.warning("no ids could be drawn: %s", reason, extra={"server": self._server})
            self._has_failed = True
        else:
            self._has_failed = False
