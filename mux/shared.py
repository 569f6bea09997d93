"""The shared line: the upstream sessions of one principal with one server, for all of its workflows (`reuse = "user"`).

More than one session is opened only when the first is full. A session that is lost is opened anew by the next call,
once for all, and told what it has to know: subscriptions and the log level.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

from msgspec import Raw

from . import envelope as wire_format
from .account import FIRST, FULL, OPEN, OPENING, ChannelKey, Decision
from .channel import Channel
from .demux import ServerRequest
from .envelope import Envelope
from .errors import (
    InvalidParams,
    InvalidRequest,
    MethodNotFound,
    Overloaded,
    SessionLost,
    TrunklineError,
    Unattributable,
)
from .limits import MAX_BODY_BYTES, Pooling
from .line import DedicatedLine
from .ports import Answerable, Caller, Headers, Opened, Owner, PoolResult
from .sharing import LEVELS, Wishes, shared_result

NAMES: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
"""Some servers read names in any case: by another spelling, one workflow could name the request of another (E26)."""


class ChannelGroup:
    """The sessions of one key, and the workflows that share them.

    `make_channel` makes a session, the primary one or another, and starts its owner task.

    `may_open` tells whether one more session may be opened (`max_channels_per_user`). `on_changed` hears of a workflow
    whose client was told what the server no longer says of itself (rule L13).
    """

    def __init__(
        self,
        key: ChannelKey,
        pooling: Pooling,
        make_channel: Callable[[ChannelGroup, bool], Channel],
        *,
        may_open: Callable[[], bool],
        on_changed: Callable[[Owner], None],
        clock: Callable[[], float],
        why: Decision = FIRST,
    ) -> None:
        self.key = key
        self.pooling = pooling
        self.why = why
        """Why there was no session of this key."""
        self.owners: list[Owner] = []
        """The workflows; every channel of the group has this very list."""
        # A session that is opened anew is told of all of them before anything else: they must find room on it.
        self.wishes: Wishes[Owner] = Wishes(max(1, pooling.max_inflight_per_channel // 2))
        self._make_channel = make_channel
        self._may_open = may_open
        self._on_changed = on_changed
        self._clock = clock
        self._lines: list[DedicatedLine] = []
        self._result = b""
        """What the server said of itself, and clients were told."""
        self._left = clock()

    @property
    def sessions(self) -> int:
        """Upstream sessions that are open, or may be opened anew."""
        return len(self._lines)

    @property
    def primary(self) -> DedicatedLine:
        """The session that holds what is global: subscriptions, cursors, the log level.

        Raises:
            Overloaded: there is none yet, and there may be no more.
        """
        return self._lines[0] if self._lines else self._add()

    def pick(self, message: Envelope) -> DedicatedLine:
        """The session for a request.

        Raises:
            Overloaded: all are full, and there may be no more.
        """
        if message.method != "tools/call":  # a cursor belongs to the session that gave it
            return self.primary
        limit = self.pooling.max_inflight_per_channel
        return next((line for line in self._lines if line.load < limit), None) or self._add()

    def say(self, method: str, params: dict[str, str]) -> None:
        """Tell the primary session something of the gateway's own, where that is there and has room."""
        if self._lines and self._lines[0].is_connected:
            with suppress(TrunklineError):
                self._lines[0].request(_own(method, params), _Gateway(), {})

    def join(self, owner: Owner) -> None:
        """A workflow comes."""
        self.owners.append(owner)
        self.wishes.join()

    def leave(self, owner: Owner) -> list[str]:
        """A workflow ends; the resources that nobody wants to hear of any longer."""
        self.owners.remove(owner)
        self._left = self._clock()
        return self.wishes.leave(owner)

    def lines(self) -> Sequence[DedicatedLine]:
        """The sessions, the primary one first."""
        return tuple(self._lines)

    def expire(self, now: float) -> bool:
        """Time out what is due; True where no workflow has come for so long that the group should end."""
        for line in self._lines:
            line.expire(now)
        return not self.owners and self._left + self.pooling.idle_timeout <= now

    def close(self, cause: TrunklineError) -> None:
        """End every session."""
        for line in self._lines:
            line.close(cause)

    def _add(self) -> DedicatedLine:
        if not self._may_open():
            raise Overloaded("too many upstream sessions of one user", limit="max_channels_per_user")
        is_primary = not self._lines
        line = DedicatedLine(
            lambda: self._make_channel(self, is_primary),
            stateless=True,
            max_waiting=self.pooling.max_inflight_per_channel,
            on_opened=self._instruct if is_primary else self._instruct_beside,
            why=self.why if is_primary else FULL,
        )
        self._lines.append(line)
        return line

    def _instruct(self, channel: Channel) -> None:
        """Tell the primary session what a lost one knew."""
        result = channel.opened.result().result
        if self._result and result != self._result:
            for owner in tuple(self.owners):
                self._on_changed(owner)
        self._result = result
        self._instruct_beside(channel)
        for uri in self.wishes.subscriptions:
            channel.request(_own("resources/subscribe", {"uri": uri}), _Gateway(), {})

    def _instruct_beside(self, channel: Channel) -> None:
        """Tell a session the log level; what belongs to no call, the primary one brings."""
        if self.wishes.level is not None:
            channel.request(_own("logging/setLevel", {"level": self.wishes.level}), _Gateway(), {})


class SharedLine:
    """One workflow's part in a group. Implements `Line`."""

    def __init__(self, group: ChannelGroup, owner: Owner) -> None:
        self._group = group
        self._owner = owner
        self._watching: dict[Caller, _Waiter] = {}
        """What is global and the server has not answered, and who waits there for each."""
        self._cause: TrunklineError | None = None
        self.why = OPEN
        """See `Line.why`."""
        group.join(owner)

    @property
    def is_open(self) -> bool:
        """See `Line.is_open`."""
        return self._cause is None

    @property
    def channels(self) -> Sequence[Channel]:
        """See `Line.channels`."""
        return [channel for line in self._group.lines() for channel in line.channels]

    async def open(self) -> Opened:
        """See `Line.open`: a session that is open already costs nothing."""
        line = self._group.primary
        how: PoolResult = "hit" if line.is_connected else "miss"
        met = OPEN if line.is_connected else OPENING if line.is_opening else None
        opened = await line.open()
        self.why = met or line.why
        return Opened(opened.revision, shared_result(opened.result), how)

    def request(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        """See `Line.request`."""
        if self._cause is not None:
            raise SessionLost(self._cause.message, executed="no")
        if any(name not in NAMES and name.lower() in NAMES for name in message.members):
            raise InvalidRequest("a member differs from one of JSON-RPC by case alone")
        if message.method.startswith("tasks/"):
            raise MethodNotFound("tasks are not offered on a shared session")
        if message.method == "logging/setLevel":
            return self._set_level(message, caller, headers)
        if message.method in ("resources/subscribe", "resources/unsubscribe"):
            return self._watch(message, caller, headers)
        return self._ask_on(self._group.pick(message), message, caller, headers)

    def cancel(self, caller: Caller, message: Envelope) -> None:
        """See `Line.cancel`."""
        waiter = self._watching.get(caller, caller)
        for line in self._group.lines():
            line.cancel(waiter, message)

    def notify(self, message: bytes, headers: Headers) -> None:
        """See `Line.notify`; what a server would take for the word of all of its clients is dropped."""
        if wire_format.parse(message, limit=MAX_BODY_BYTES).method != "notifications/roots/list_changed":
            self._group.primary.notify(message, headers)

    def expire(self, now: float) -> None:
        """See `Line.expire`: the group's sessions are looked after by the pool, once for all workflows."""

    def close(self, cause: TrunklineError) -> None:
        """See `Line.close`: this workflow's calls end; the sessions stay for others."""
        if self._cause is not None:
            return
        self._cause = cause
        unwatched = self._group.leave(self._owner)
        for line in self._group.lines():
            line.withdraw(self._owner, cause)
        for uri in unwatched:
            self._group.say("resources/unsubscribe", {"uri": uri})

    def _set_level(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        level = wire_format.string_of((message.params() or {}).get("level"))
        if level is None or level not in LEVELS:
            raise InvalidParams("logging/setLevel needs one of the levels of RFC 5424")
        wishes = self._group.wishes
        due = wishes.set_level(self._owner, level)
        if due is None:
            return _answer(message, caller)
        params = wire_format.encoded({**(message.params() or {}), "level": due})
        told = Envelope("request", {**message.members, "params": params}, id=message.id, method=message.method)

        def ended(refused: bool) -> None:
            if refused:
                wishes.forget_level()

        return self._ask(told, caller, headers, ended)

    def _watch(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        uri = wire_format.string_of((message.params() or {}).get("uri"))
        if uri is None:
            raise InvalidParams(f"{message.method} needs a uri")
        wishes, primary = self._group.wishes, self._group.primary
        if message.method == "resources/unsubscribe":
            due = wishes.unsubscribe(self._owner, uri)
            return self._ask_on(primary, message, caller, headers) if due else _answer(message, caller)
        if not wishes.subscribe(self._owner, uri):
            return _answer(message, caller)

        def ended(refused: bool) -> None:
            """The server has answered: only now the subscription counts for others (rule R5)."""
            if refused:
                wishes.unsubscribe(self._owner, uri)
            else:
                wishes.accept(uri)

        return self._ask(message, caller, headers, ended)

    def _ask(self, message: Envelope, caller: Caller, headers: Headers, ended: Callable[[bool], None]) -> PoolResult:
        """Ask the primary session for what is global; `ended` hears whether it was refused."""

        def over(refused: bool) -> None:
            self._watching.pop(caller, None)
            ended(refused)

        waiter = self._watching[caller] = _Waiter(caller, over)
        try:
            return self._ask_on(self._group.primary, message, waiter, headers)
        except TrunklineError:
            over(True)
            raise

    def _ask_on(self, line: DedicatedLine, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        done = line.request(message, caller, headers)
        if done != "hit":
            self.why = line.why
        return done


class _Waiter:
    """A caller, and who has to know how its request ended. Implements `Caller`."""

    __slots__ = ("_caller", "_ended")

    def __init__(self, caller: Caller, ended: Callable[[bool], None]) -> None:
        self._caller = caller
        self._ended = ended

    @property
    def owner(self) -> Owner:
        """See `Caller.owner`."""
        return self._caller.owner

    def sent(self, id: int) -> None:
        """See `Caller.sent`."""
        self._caller.sent(id)

    def answered(self, message: bytes, *, is_error: bool) -> None:
        """See `Caller.answered`."""
        self._ended(is_error)
        self._caller.answered(message, is_error=is_error)

    def progressed(self, message: bytes) -> None:
        """See `Caller.progressed`."""
        self._caller.progressed(message)

    def failed(self, error: TrunklineError) -> None:
        """See `Caller.failed`."""
        self._ended(True)
        self._caller.failed(error)


class _Gateway:
    """The caller of the gateway's own requests, and the owner of such a caller: no workflow's end withdraws them."""

    @property
    def owner(self) -> Owner:
        """See `Caller.owner`."""
        return self

    def sent(self, id: int) -> None:
        """Nobody logs it."""

    def answered(self, message: bytes, *, is_error: bool) -> None:
        """Nobody waits."""

    def progressed(self, message: bytes) -> None:
        """Nobody waits."""

    def failed(self, error: TrunklineError) -> None:
        """Nobody waits."""

    def asked(self, channel: Answerable, request: ServerRequest, message: Envelope) -> None:
        """See `Owner.asked`: no client stands behind it."""
        channel.refuse(request, Unattributable("no client has asked for this"))

    def retracted(self, request: ServerRequest, message: Envelope) -> None:
        """Nothing was asked."""

    def told(self, message: Envelope, origin: Caller | None) -> None:
        """Nobody listens."""

    def left(self, channel: Answerable) -> None:
        """Nothing was asked."""

    def lost(self, channel: Answerable, cause: TrunklineError) -> None:
        """The workflows are told."""


def _answer(message: Envelope, caller: Caller) -> PoolResult:
    """The server has no part in this: what is asked for holds already."""
    caller.answered(wire_format.result(message.id, Raw(b"{}")), is_error=False)
    return "hit"


def _own(method: str, params: dict[str, str]) -> Envelope:
    """A request of the gateway's own; its id is minted by the channel."""
    return wire_format.parse(wire_format.request(method, params, b"0"), limit=MAX_BODY_BYTES)
