"""Begins an upstream session on its wire, or goes on with one that is open; in bounded time.

What is read and written of a handshake is in `handshake`; this is the phase of a session (Lifecycle, "Initialization").
"""

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Final, NamedTuple

from . import envelope as wire_format
from .envelope import Envelope, Text
from .errors import HandshakeTimedOut, SessionLost, TrunklineError
from .handshake import initialize, read_answer
from .own import NoClient
from .ports import NONE, AdoptingConnector, Caller, Connector, Headers, Opened, Owner, Receiver, Wire
from .record import Handshake

OPEN_SECONDS: Final = 30.0
"""How long a server may take for the whole handshake."""

NOBODY: Final = NoClient()
"""Who is asked where all that wanted the session have gone."""


class Adopted(NamedTuple):
    """An upstream session that is open: what its wire said of it (`MovableWire.session`), and its handshake."""

    session: str
    opened: Opened


def connect(
    connector: Connector, receiver: Receiver, handshake: Handshake, adopted: Adopted | None, *, listen: bool
) -> AbstractAsyncContextManager[Wire]:
    """A wire for a session that is yet to begin, or for the one that is `adopted`.

    Raises:
        SessionLost: the transport cannot go on with a session of another worker.
    """
    headers = dict(handshake.session_headers) or NONE
    if adopted is None:
        return connector.connect(receiver, headers, listen=listen)
    if not isinstance(connector, AdoptingConnector):
        raise SessionLost("the upstream session ended with the worker that held it", executed="no")
    return connector.adopt(receiver, headers, adopted.session, adopted.opened.revision, listen=listen)


async def shake_hands(
    wire: Wire, handshake: Handshake, owners: Sequence[Owner], request: Callable[[Envelope, Caller, Headers], None]
) -> Opened:
    """Begin a session on this wire. `request` sends one on it.

    What the server asks meanwhile is for the first of the `owners` that are there then. None of them that leaves takes
    the handshake with it.

    Raises:
        UpstreamRefused: the server begins none.
        TrunklineError: the wire broke, or the server did not keep to the protocol.
    """
    answer = _Answer(owners)
    request(initialize(handshake), answer, NONE)
    opened = read_answer(await answer.message)
    await wire.establish(opened.revision, wire_format.notification("notifications/initialized"))
    return opened


def in_time() -> asyncio.Timeout:
    """Bounds what the owner task of a session does to open it, once its wire is there."""
    return asyncio.timeout(OPEN_SECONDS)


def give_up_late(opened: asyncio.Future[Opened], give_up: Callable[[TrunklineError], None]) -> None:
    """Give a session up that is not `opened` in time.

    A connector's context may not be entered under a deadline; who waits for it can be told all the same.
    """

    def judge() -> None:
        if not opened.done():
            give_up(took_too_long())

    timer = asyncio.get_running_loop().call_later(OPEN_SECONDS, judge)
    opened.add_done_callback(lambda _: timer.cancel())


def took_too_long() -> HandshakeTimedOut:
    """Why such a session is given up."""
    return HandshakeTimedOut(f"no handshake within {OPEN_SECONDS:g} s", executed="no")


class _Answer:
    """The caller of the gateway's own handshake."""

    is_own = True

    def __init__(self, owners: Sequence[Owner]) -> None:
        self._owners = owners
        self.message: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def owner(self) -> Owner:
        return next(iter(self._owners), NOBODY)

    def sent(self, id: int) -> None:
        """It is sent by who made it."""

    def answered(self, message: Text, *, is_error: bool) -> None:
        if not self.message.done():
            self.message.set_result(bytes(message))

    def progressed(self, message: bytes) -> None:
        """A handshake has no progress."""

    def failed(self, error: TrunklineError) -> None:
        if not self.message.done():
            self.message.set_exception(error)
            self.message.exception()
