"""A session that its server has forgotten: what becomes of its other calls is waited for, and then told, once.

Most of them are refused as well, and a call that was refused surely did not run (guarantee G6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from ...mux.errors import SessionLost
from ...mux.request import Request

LOST_SECONDS: Final = 0.5
"""How long the loss of a session waits for what becomes of its other calls."""

Tell = Callable[[SessionLost, list[Request]], None]
"""Is told why the session is lost, and which requests surely did not run."""


class Loss:
    """The loss of one session, which may never come."""

    __slots__ = ("_is_closed", "_tell", "_timer", "cause", "refused", "unanswered")

    def __init__(self) -> None:
        self._tell: Tell | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._is_closed = False
        self.cause: SessionLost | None = None
        """Why the session is lost; None while it is not."""
        self.unanswered: dict[Request, None] = {}
        """Requests to which the server has not begun to answer: it may refuse them."""
        self.refused: list[Request] = []
        """Requests that met a session which the server had forgotten."""

    @property
    def is_blank(self) -> bool:
        """True where nothing is lost, nor may be."""
        return self.cause is None and not self.unanswered

    def settle(self, request: Request) -> None:
        """The server has begun to answer this request, or will not."""
        self.unanswered.pop(request, None)
        if self._timer is not None and not self.unanswered:
            self._tell_after(0)

    def come(self, cause: SessionLost, tell: Tell, refused: Request | None = None, *, at_once: bool = False) -> None:
        """The session is lost; the server did not run this request. The first cause is told, `at_once` if need be."""
        if refused is not None:
            self.refused.append(refused)
        if self.cause is None:
            self.cause, self._tell = cause, tell
            self._tell_after(LOST_SECONDS if self.unanswered and not at_once else 0)
        elif at_once and self._timer is not None:
            self._tell_after(0)

    def close(self) -> None:
        """Nobody is to be told any more. Idempotent."""
        self._is_closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tell_after(self, seconds: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if not self._is_closed:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._tell_now)

    def _tell_now(self) -> None:
        self._timer = None
        tell, self._tell = self._tell, None
        assert self.cause is not None, "it is lost for a reason"
        assert tell is not None, "it is told once"
        tell(self.cause, [request for request in self.refused if request.state != "done"])
