"""Whether an upstream session is listened to for what its server tells unasked, and when that may rest.

It costs a connection, where the transport needs a request of its own for it. So a server that has nothing to tell, by
what it declared and by what it did, is listened to only while a client is there, during calls, and a while after.
"""

from collections.abc import Callable
from math import inf
from typing import Final

from .handshake import is_mute
from .ports import MovableWire

REST_SECONDS: Final = 30.0
"""How long a server that seems to have nothing to tell unasked is listened to: after the handshake, when it may yet
show that it has, and after the client has gone, for one that calls now and then."""


class Listening:
    """The listening to one session, which rests only where it `may_rest`."""

    __slots__ = ("_clock", "_is_begun", "_is_mute", "_since", "is_resting", "wire")

    def __init__(self, clock: Callable[[], float], *, is_begun: bool, may_rest: bool) -> None:
        self._clock = clock
        self._is_begun = is_begun
        self._is_mute = may_rest
        """True while nothing that the server declared or did says that it could have something to tell unasked."""
        self._since = inf
        """When it was last begun to be listened to."""
        self.is_resting = False
        """True while it is not listened to since it has nothing to tell."""
        self.wire: MovableWire | None = None
        """What is told when to fetch it; None where there is no session, or one that brings it by itself."""

    def opened(self, result: bytes, capabilities: bytes) -> None:
        """The session is open: by this InitializeResult, for a client of these capabilities."""
        self._is_mute = self._is_mute and is_mute(result, capabilities)
        if self._is_begun:
            self._hear()

    def begin(self) -> None:
        """From now on this worker hears what the server tells unasked, where that costs a request of its own."""
        self._is_begun = True
        self._hear()

    def attend(self) -> None:
        """A client is there, or a call is sent: listen again, where that had been left."""
        if self.is_resting:
            self._hear()

    def told(self) -> None:
        """The server told something unasked: where it had declared nothing, more of it would go unheard."""
        self._is_mute = False

    def rests_at(self, left: float) -> float:
        """When it may `rest`, if its client has gone at the time `left`; never where it must be heard, or rests."""
        is_for_clients = self._is_mute and self._is_begun and not self.is_resting
        return max(left, self._since) + REST_SECONDS if is_for_clients else inf

    def rest(self) -> None:
        """Until a client is there, or a call is sent, do not listen to a server that has nothing to tell."""
        self.is_resting = True
        if self.wire is not None:
            self.wire.rest()

    def _hear(self) -> None:
        self.is_resting = False
        self._since = self._clock()
        if self.wire is not None:
            self.wire.listen()
