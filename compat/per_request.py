"""The old path: one upstream session for each call (`reuse = "none"`), behind the interface of a line.

Each call does what a gateway without sessions does: initialize, initialized, the call, DELETE. With the habits of the
SDK's clients it also opens the GET stream and asks for `tools/list`, which makes six requests of one; and whoever asked
is answered once the session is closed, as by a program that leaves the client's contexts before it goes on.
"""

import asyncio
from collections.abc import Callable, Sequence

from ..mux.account import PER_CALL
from ..mux.channel import Channel
from ..mux.envelope import Envelope, Text
from ..mux.errors import Cancelled, SessionLost, TrunklineError, WorkflowEnded
from ..mux.own import own_request
from ..mux.ports import NONE, Caller, Headers, Opened, Owner, PoolResult
from ..mux.upstream import ChannelMaker

DONE = WorkflowEnded("call_done")


class PerRequestLine:
    """Implements `Line`. Nothing is kept between two calls; there is no session that notifications could go to.

    `habits` adds what SDK clients do beside a call: the GET stream, a `tools/list`, and an end that is waited for.
    """

    def __init__(self, make_channel: ChannelMaker, *, habits: bool = False) -> None:
        self._make_channel = make_channel
        self._habits = habits
        self._calls: dict[Caller, tuple[Channel, Caller]] = {}
        """The session of each call, and who is asked for there."""
        self._unsent: set[Caller] = set()
        """Those whose request is not on its way yet: it can still be called back unseen."""
        self._opening: Channel | None = None
        self._cause: TrunklineError | None = None
        self.why = PER_CALL
        """See `Line.why`."""

    @property
    def channels(self) -> Sequence[Channel]:
        """See `Line.channels`: none outlives its call."""
        return ()

    @property
    def is_open(self) -> bool:
        """See `Line.is_open`."""
        return self._cause is None

    async def open(self) -> Opened:
        """See `Line.open`. The session is closed again: it only told what the server is."""
        channel = self._opening = self._make_channel(listen=False)
        try:
            return await asyncio.shield(channel.opened)
        finally:
            self._opening = None
            channel.close(DONE)

    def request(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        """See `Line.request`."""
        if self._cause is not None:
            raise SessionLost(self._cause.message, executed="no")
        self._forget_closed()
        asker = caller
        if self._habits:
            asker = patient = _Patient(caller)
            channel = self._make_channel(listen=True, ended=patient.ended)
        else:
            channel = self._make_channel(listen=False)
        self._calls[caller] = channel, asker
        self._unsent.add(caller)

        def call() -> None:
            if caller not in self._unsent:
                return
            try:
                if not channel.is_open:
                    raise SessionLost("the upstream session is gone", executed="no")
                channel.request(message, asker, headers)
            except TrunklineError as error:
                self._give_up(caller, error)
            else:
                self._unsent.discard(caller)
            channel.drain(DONE)

        def begin(opened: asyncio.Future[Opened]) -> None:
            error = opened.exception()
            if isinstance(error, TrunklineError):
                self._give_up(caller, error)
            elif self._habits and channel.is_open:
                channel.request(own_request("tools/list", {}), _Then(caller.owner, call), NONE)
            else:
                call()

        channel.opened.add_done_callback(begin)
        return "bypass"

    def cancel(self, caller: Caller, message: Envelope) -> None:
        """See `Line.cancel`."""
        if caller not in self._calls:
            return
        channel, asker = self._calls[caller]
        if caller in self._unsent:
            cancelled = Cancelled("Request cancelled")
            self._give_up(caller, cancelled)
            channel.close(cancelled)
        else:
            channel.cancel(asker, message)

    def notify(self, message: bytes, headers: Headers) -> None:
        """See `Line.notify`: between two calls there is no session to tell."""

    def expire(self, now: float) -> None:
        """See `Line.expire`."""
        for channel, _ in list(self._calls.values()):
            channel.expire(now)
        self._forget_closed()

    def close(self, cause: TrunklineError) -> None:
        """See `Line.close`."""
        if self._cause is None:
            self._cause = cause
            if self._opening is not None:
                self._opening.close(cause)
            for caller, (channel, _) in list(self._calls.items()):
                self._give_up(caller, cause)
                channel.close(cause)

    def _give_up(self, caller: Caller, error: TrunklineError) -> None:
        """Fail a call that was not sent; whatever became of its session, it did not run (G6)."""
        if caller in self._unsent:
            self._unsent.discard(caller)
            ran = error.data.get("executed", "no") != "no"
            caller.failed(SessionLost(error.message, executed="no") if ran else error)

    def _forget_closed(self) -> None:
        self._calls = {caller: call for caller, call in self._calls.items() if not call[0].is_closing}


class _Patient:
    """A caller that hears of its answer once the session has ended, of everything else at once."""

    def __init__(self, caller: Caller) -> None:
        self._caller = caller
        self.is_own = caller.is_own
        self._answer: tuple[Text, bool] | None = None
        self.sent, self.progressed, self.failed = caller.sent, caller.progressed, caller.failed

    @property
    def owner(self) -> Owner:
        return self._caller.owner

    def answered(self, message: Text, *, is_error: bool) -> None:
        self._answer = message, is_error

    def ended(self, _: Channel) -> None:
        """Nothing is left of the session."""
        if self._answer is not None:
            message, is_error = self._answer
            self._caller.answered(message, is_error=is_error)


class _Then:
    """The caller of a request whose answer matters to nobody: it goes on when there is one."""

    is_own = True

    def __init__(self, owner: Owner, go_on: Callable[[], None]) -> None:
        self.owner = owner
        self._go_on = go_on

    def sent(self, id: int) -> None:
        """Nobody logs it."""

    def answered(self, message: Text, *, is_error: bool) -> None:
        self._go_on()

    def progressed(self, message: bytes) -> None:
        """Nobody asked for progress."""

    def failed(self, error: TrunklineError) -> None:
        self._go_on()
