"""The dedicated line: one channel for one workflow (`reuse = "workflow"`)."""

import asyncio
from collections.abc import Sequence

from .account import Decision, lost
from .channel import Channel
from .envelope import Envelope
from .errors import Cancelled, Overloaded, SessionLost, TrunklineError, UpstreamFault, UpstreamUnreachable
from .ports import Caller, Headers, Opened, Owner, PoolResult
from .upstream import ChannelMaker


class DedicatedLine:
    """Implements `Line`. All calls of the workflow share one channel.

    Where the server is declared `stateless`, a channel that was lost is opened anew by the next request, once for all
    that wait. Otherwise the loss is told (rule L18).
    """

    __slots__ = ("_cause", "_make_channel", "_max_waiting", "_stateless", "_waiting", "channel", "why")

    def __init__(self, make_channel: ChannelMaker, *, stateless: bool, max_waiting: int, why: Decision) -> None:
        self.why = why
        """See `Line.why`."""
        self._make_channel = make_channel
        self._stateless = stateless
        self._max_waiting = max_waiting
        self.channel: Channel | None = None
        """The newest channel; None before the first."""
        self._waiting: list[tuple[Envelope, Caller, Headers]] = []
        self._cause: TrunklineError | None = None

    @property
    def is_open(self) -> bool:
        """See `Line.is_open`."""
        return self._cause is None and (self._stateless or (self.channel is not None and self.channel.is_open))

    @property
    def is_connected(self) -> bool:
        """True while a request would be carried at once."""
        return self.channel is not None and self.channel.is_open

    @property
    def is_opening(self) -> bool:
        """True while the handshake is under way."""
        return self.channel is not None and not self.channel.opened.done()

    @property
    def channels(self) -> Sequence[Channel]:
        """See `Line.channels`."""
        return () if self.channel is None else (self.channel,)

    @property
    def load(self) -> int:
        """Places that are taken of `max_inflight_per_channel`."""
        return len(self._waiting) + (self.channel.load if self.channel is not None else 0)

    async def open(self) -> Opened:
        """See `Line.open`."""
        if self._cause is not None:
            raise SessionLost(self._cause.message, executed="no")
        return await asyncio.shield(self._open_channel().opened)

    def request(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        """See `Line.request`."""
        if self._cause is not None:
            raise SessionLost(self._cause.message, executed="no")
        if self.channel is not None and self.channel.is_open:
            self.channel.request(message, caller, headers)
            return "hit"
        if not self._stateless:
            raise SessionLost("the upstream session is gone", executed="no")
        if len(self._waiting) >= self._max_waiting:
            raise Overloaded("too many calls wait for the server to come back", limit="max_inflight_per_channel")
        opened = self._open_channel().opened
        self._waiting.append((message, caller, headers))
        if len(self._waiting) == 1:
            opened.add_done_callback(self._send_waiting)
        return "miss"

    def reopen(self) -> None:
        """Open a channel where none is open or opening, before a call needs it.

        Raises:
            TrunklineError: none may be opened now.
        """
        self._open_channel()

    def take(self, now: float) -> None:
        """A call comes: the channel is idle no longer."""
        if self.channel is not None and self.channel.life.stage == "idle":
            self.channel.life.step("taken", now)

    def cancel(self, caller: Caller, message: Envelope) -> None:
        """See `Line.cancel`."""
        for entry in self._waiting:
            if entry[1] is caller:
                self._waiting.remove(entry)
                caller.failed(Cancelled("Request cancelled"))
                return
        if self.channel is not None:
            self.channel.cancel(caller, message)

    def notify(self, message: bytes, headers: Headers) -> None:
        """See `Line.notify`."""
        if self.channel is not None:
            self.channel.tell(message, headers)

    def expire(self, now: float) -> None:
        """See `Line.expire`."""
        if self.channel is not None:
            self.channel.expire(now)

    def close(self, cause: TrunklineError) -> None:
        """See `Line.close`."""
        if self._cause is None:
            self._cause = cause
            if self.channel is not None:
                self.channel.close(cause)

    def withdraw(self, owner: Owner, cause: TrunklineError) -> None:
        """Withdraw every request of this workflow, which ends for this cause; others go on."""
        for entry in [entry for entry in self._waiting if entry[1].owner is owner]:
            self._waiting.remove(entry)
            entry[1].failed(SessionLost(cause.message, executed="no"))
        if self.channel is not None:
            self.channel.withdraw(owner, cause)

    def _open_channel(self) -> Channel:
        if self.channel is None or (self.channel.opened.done() and not self.channel.is_open):
            if self.channel is not None:
                self.why = lost(self.channel.close_reason)
            self.channel = self._make_channel()
        return self.channel

    def _send_waiting(self, opened: asyncio.Future[Opened]) -> None:
        waiting, self._waiting = self._waiting, []
        error = opened.exception()
        for message, caller, headers in waiting:
            try:
                if error is not None or self.channel is None:
                    raise error or SessionLost("the upstream session is gone", executed="no")
                self.channel.request(message, caller, headers)
            except TrunklineError as refused:
                caller.failed(not_run(refused))


def not_run(error: TrunklineError) -> TrunklineError:
    """The same failure for a call that was never sent: whatever became of the session, it did not run (G6)."""
    is_fault = isinstance(error, UpstreamFault)  # which says nothing of a call
    if not is_fault and error.data.get("executed", "no") == "no":
        return error
    kind = UpstreamFault if is_fault else UpstreamUnreachable if isinstance(error, UpstreamUnreachable) else SessionLost
    return kind(error.message, executed="no")
