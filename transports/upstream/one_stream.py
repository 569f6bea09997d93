"""What wires have in common that carry everything on one ordered stream: WebSocket, stdio.

Such a stream accepts nothing and refuses nothing: what was put on it may have run, what was not surely did not. Where
it ends, the session is lost.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final

from ...mux.errors import SessionLost
from ...mux.limits import MAX_EVENT_BYTES
from ...mux.ports import NONE, Headers, Receiver, SendKind
from ...mux.request import Request
from ...mux.statistics import Statistics

MAX_UNSENT: Final = 16_384
MAX_UNSENT_BYTES: Final = MAX_EVENT_BYTES
"""So many messages, and so much of them, may wait for a server that does not read. Over it, the session is lost.

The number is far above what calls in flight can reach (`max_inflight_per_channel`): it is for floods of notifications.
"""


class OneStreamWire(ABC):
    """A wire whose only way to the server is `_put`. Implements `Wire`; headers of single calls have no place here."""

    def __init__(self, server: str, receiver: Receiver, statistics: Statistics) -> None:
        self.server = server
        self._receiver = receiver
        self._statistics = statistics
        self.is_established = False
        """True once the handshake is done."""
        self._is_closed = False
        self._unsent: list[Request] = []
        """Requests that were never put on the stream."""
        self.cause: SessionLost | None = None
        """Why the session is lost; None while it lives."""

    @abstractmethod
    def _put(self, text: bytes, request: Request | None) -> bool:
        """Put one message on the stream, without waiting; False where it would be more than may wait."""

    def send(
        self, text: bytes, *, kind: SendKind = "notification", request: Request | None = None, headers: Headers = NONE
    ) -> None:
        """See `Wire.send`."""
        if self._is_closed:
            return
        if self.cause is not None:
            self._keep(request)
        elif self._put(text, request):
            self._count(kind if request is None else "call" if self.is_established else "initialize")
        else:
            self._keep(request)
            self.lose("the server does not read what is sent to it")

    def abandon(self, request: Request) -> None:  # noqa: B027 - nothing to do is what it does
        """See `Wire.abandon`. No request has an exchange of its own here."""

    async def establish(self, revision: str, initialized: bytes) -> None:
        """See `Wire.establish`. Nothing tells whether the server took it; one that did not closes the stream."""
        if self.cause is None and not self._put(initialized, None):
            self.lose("the server does not read what is sent to it")
        if self.cause is not None:
            raise self.cause
        self._count("initialized")
        self.is_established = True

    def lose(self, why: str, *, is_fault: bool = False) -> None:
        """The stream is of no more use; the first cause wins. The channel is told after what is under way."""
        if self.cause is None and not self._is_closed:
            if is_fault:
                self._statistics.count("upstream_faults", self.server)
            self.cause = SessionLost(why, executed="unknown")
            asyncio.get_running_loop().call_soon(self._tell_lost)

    def _received(self, text: bytes) -> None:
        """Hand one message on."""
        if not self._is_closed and self.cause is None:
            self._receiver.received(text, None)

    def _may_begin(self, request: Request | None) -> bool:
        """Whether a message may go to the server whose turn has come; where it may not, that is told."""
        if request is not None and request.state == "done":  # its caller was told that it failed
            return False
        fence = self._receiver.fence
        if fence is None or fence():
            return True
        asyncio.get_running_loop().call_soon(self._withhold, request)
        return False

    def _withhold(self, request: Request | None) -> None:
        if not self._is_closed and self.cause is None and (request is None or request.state != "done"):
            self._receiver.withheld(request)

    def _keep(self, request: Request | None) -> None:
        if request is not None:
            self._unsent.append(request)

    def _tell_lost(self) -> None:
        if not self._is_closed:
            assert self.cause is not None, "it is lost for a reason"
            self._receiver.lost(self.cause, [request for request in self._unsent if request.state != "done"])

    def _count(self, kind: str) -> None:
        self._statistics.count("upstream_requests", self.server, kind)
