"""Requests of the gateway's own on a session: no client has asked for them, and none sees their answers."""

from collections.abc import Callable, Mapping
from typing import Any

from msgspec import Raw

from . import envelope as wire_format
from .envelope import Envelope, Text
from .errors import TrunklineError, Unattributable
from .limits import MAX_BODY_BYTES
from .ports import Answerable, Caller
from .request import ServerRequest


def own_request(method: str, params: Mapping[str, Any] | Raw) -> Envelope:
    """The request; its id is minted by the channel that carries it."""
    return wire_format.parse(wire_format.request(method, params, b"0"), limit=MAX_BODY_BYTES)


class NoClient:
    """The owner of a session, or of a call on it, behind which no client stands. Implements `Owner`."""

    __slots__ = ()

    is_listening = False

    def asked(self, channel: Answerable, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.asked`."""
        channel.refuse(request, Unattributable("no client has asked for this"))

    def retracted(self, request: ServerRequest, message: Envelope) -> None:
        """Nothing was asked."""

    def told(self, message: Envelope, origin: Caller | None) -> None:
        """Nobody listens."""

    def left(self, channel: Answerable) -> None:
        """Nothing was asked."""

    def lost(self, channel: Answerable, cause: TrunklineError) -> None:
        """Those whose session it is are told."""


class OwnCaller(NoClient):
    """The caller of such a request, and the owner of this caller: no workflow's end withdraws it.

    Implements `Caller`. `over` is told when the request has ended: whether the server has answered it.
    """

    __slots__ = ("_over",)

    is_own = True

    def __init__(self, over: Callable[[bool], None] = lambda is_answered: None) -> None:
        self._over = over

    @property
    def owner(self) -> "OwnCaller":
        """See `Caller.owner`."""
        return self

    def sent(self, id: int) -> None:
        """Nobody logs it."""

    def answered(self, message: Text, *, is_error: bool) -> None:
        """See `Caller.answered`."""
        self._over(True)

    def progressed(self, message: bytes) -> None:
        """Nobody waits for it."""

    def failed(self, error: TrunklineError) -> None:
        """See `Caller.failed`."""
        self._over(False)
