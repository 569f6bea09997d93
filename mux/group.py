"""The upstream sessions that the workflows of one principal share with one server (`reuse = "user"`).

The first session is the primary one: it holds what is global. More are opened only when it is full, and the most
recently used of them is taken first, so that those that are not needed become idle and end. A session that is lost is
opened anew, once for all: at once where workflows wait for what the server tells, else by the next call. One that has
aged is replaced, make before break. A new session is told what it has to know: subscriptions and the log level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import NamedTuple

from .account import FULL, ChannelKey, Decision, lost
from .breaker import Backoff
from .channel import Channel, Recipients
from .envelope import Envelope
from .errors import Overloaded, TrunklineError, WorkflowEnded
from .lifecycle import Effect
from .limits import Pooling
from .line import DedicatedLine
from .own import OwnCaller, own_request
from .ports import Owner
from .record import Wish
from .sharing import Wishes, shared_result


class GroupPorts(NamedTuple):
    """What a group asks of the pool."""

    make_channel: Callable[[ChannelGroup, bool, Recipients], Channel]
    """Makes a session, the primary one or another, and starts its owner task."""
    may_open: Callable[[], bool]
    """Whether one more session may be opened (`max_channels_per_user`)."""
    on_changed: Callable[[Owner], None]
    """Hears of a workflow whose client was told what the server no longer says of itself (rule L13)."""
    clock: Callable[[], float]


class _Told(NamedTuple):
    """What a session is told so that it knows what is wished for."""

    method: str
    name: str
    value: str

    def request(self) -> Envelope:
        return own_request(self.method, {self.name: self.value})

    def holds(self, wishes: Wishes[Owner]) -> bool:
        """True while it is wished for."""
        return self.value in (wishes.subscriptions if self.name == "uri" else (wishes.level,))


def _level(level: str) -> _Told:
    return _Told("logging/setLevel", "level", level)


def _subscription(uri: str) -> _Told:
    return _Told("resources/subscribe", "uri", uri)


class ChannelGroup:
    """The sessions of one key, and the workflows that share them."""

    def __init__(self, key: ChannelKey, pooling: Pooling, ports: GroupPorts, *, why: Decision) -> None:
        self.key = key
        self.pooling = pooling
        self.why = why
        """Why there was no session of this key."""
        self.owners: list[Owner] = []
        """The workflows; every channel of the group has this very list."""
        # A session that is opened anew is told of all of them at once, beside its log level: they must find room on it.
        self.wishes: Wishes[Owner] = Wishes(pooling.max_inflight_per_channel)
        self._ports = ports
        self._lines: list[DedicatedLine] = []
        """The primary session, then the others, the most recently used first."""
        self._leaving: list[DedicatedLine] = []
        """Those that were replaced; their calls in flight end."""
        self._coming: _Replacement | None = None
        self._backoff = Backoff()
        self._untold: dict[Channel, dict[_Told, None]] = {}
        """What sessions could not be told when it was due: they had no room, or this worker no leave to write."""
        self._asking = 0
        """Requests that concern all, and that the primary session has not answered."""
        self._result = b""
        """What the server said of itself, and clients were told."""
        self._shown = (b"", b"")
        """The same, and what is left of it in a shared session."""
        self._left = ports.clock()

    @property
    def sessions(self) -> int:
        """Upstream sessions that are open, or may be opened anew."""
        return len(self.lines())

    @property
    def primary(self) -> DedicatedLine:
        """The session that holds what is global: subscriptions, cursors, the log level.

        Raises:
            Overloaded: there is none yet, and there may be no more.
        """
        return self._lines[0] if self._lines else self._add()

    def shown(self, result: bytes) -> bytes:
        """What clients are told that the server says of itself: one object, which all of their records hold."""
        if self._shown[0] != result:
            self._shown = (result, shared_result(result))
        return self._shown[1]

    def pick(self, message: Envelope) -> DedicatedLine:
        """The session for a request: the first one that has room.

        Raises:
            Overloaded: all are full, and there may be no more.
        """
        if message.method != "tools/call":  # a cursor belongs to the session that gave it
            return self.primary
        limit = self.pooling.max_inflight_per_channel
        for place, line in enumerate(self._lines):
            if line.load < limit:
                if place:
                    self._lines.insert(1, self._lines.pop(place))
                    line.take(self._ports.clock())
                return line
        return self._add()

    def say(self, method: str, params: dict[str, str]) -> None:
        """Tell the primary session something of the gateway's own, where that is there and has room."""
        if self._lines and self._lines[0].is_connected:
            with suppress(TrunklineError):
                self._lines[0].request(own_request(method, params), OwnCaller(), {})

    def asks_for_all(self, by: int) -> None:
        """A request that concerns all workflows goes to the primary session (1), or has ended (-1)."""
        self._asking += by
        if not self._asking and self._coming is not None:
            self._complete()

    def join(self, owner: Owner, wish: Wish) -> None:
        """A workflow comes, and wants what it wanted before; a session that is open is told so."""
        self.owners.append(owner)
        level, subscriptions = self.wishes.join(owner, wish)
        if self._lines and self._lines[0].channel is not None and self._lines[0].is_connected:
            due = [] if level is None else [_level(level)]
            self._tell(self._lines[0].channel, [*due, *map(_subscription, subscriptions)])

    def leave(self, owner: Owner) -> list[str]:
        """A workflow ends; the resources that nobody wants to hear of any longer."""
        self.owners.remove(owner)
        self._left = self._ports.clock()
        return self.wishes.leave(owner)

    def lines(self) -> Sequence[DedicatedLine]:
        """The sessions, the primary one first."""
        coming = () if self._coming is None else (self._coming.new,)
        return (*self._lines, *self._leaving, *coming)

    def expire(self, now: float) -> bool:
        """Do what is due; True where no workflow has come for so long that the group should end."""
        for line in self.lines():
            line.expire(now)
        untold, self._untold = self._untold, {}
        for channel, told in untold.items():
            if channel.is_open:
                self._tell(channel, [one for one in told if one.holds(self.wishes)])
        self._leaving = [line for line in self._leaving if line.is_connected or line.load]
        self._lines[1:] = [line for line in self._lines[1:] if line.is_connected or line.is_opening or line.load]
        for line in tuple(self._lines):
            self._look_after(line, now)
        if self._lines and not self._lines[0].is_connected:
            self._reopen(now)
        return not self.owners and self._left + self.pooling.idle_timeout <= now

    def close(self, cause: TrunklineError, *, release: bool = False) -> None:
        """End every session; with `release`, another worker goes on with the first one, where it can.

        That is the one which records name; of the others nobody else knows.
        """
        now = self._ports.clock()
        lines, self._coming = self.lines(), None  # none of them takes the place of another any longer
        for line in lines:
            if line.channel is not None:
                line.channel.life.step("dismissed", now)
                if release:
                    line.channel.release(cause)
                    release = False
            line.close(cause)

    def perform(self, channel: Channel, effect: Effect) -> None:
        """Do what the life of one of its sessions asks for."""
        now, coming = self._ports.clock(), self._coming
        is_coming = coming is not None and coming.new.channel is channel
        match effect:
            case "instruct" if channel.is_open:
                self._backoff.succeeded()
                if is_coming:
                    self._complete()
                elif self._is_primary(channel):
                    self._instruct(channel)
                else:
                    self._instruct_beside(channel)
            case "back_off" | "reopen" if coming is not None and is_coming:
                self._coming = None
                self._backoff.failed(now)
                if coming.old.channel is not None and coming.old.channel.life.stage == "replacing":
                    coming.old.channel.life.step("not_replaced", now)
            case "back_off":
                self._backoff.failed(now)
            case "reopen":
                if coming is not None and coming.old.channel is channel:
                    self._take_over(coming)
                elif self._is_primary(channel):
                    self._reopen(now)
            case _:
                pass

    # Inside.

    def _is_primary(self, channel: Channel) -> bool:
        return bool(self._lines) and self._lines[0].channel is channel

    def _add(self) -> DedicatedLine:
        if not self._ports.may_open():
            raise Overloaded("too many upstream sessions of one user", limit="max_channels_per_user")
        is_primary = not self._lines
        line = self._make_line(is_primary=is_primary, why=self.why if is_primary else FULL)
        self._lines.insert(1, line)
        return line

    def _make_line(self, *, is_primary: bool, why: Decision) -> DedicatedLine:
        def recipients(message: Envelope, origin: Owner | None, owners: Sequence[Owner]) -> Sequence[Owner] | None:
            """Who is told: by the primary session all whom it concerns, by others the call on whose stream it came."""
            if self._lines and self._lines[0] is line:
                return self.wishes.recipients(message, origin, owners)
            if origin is not None:
                return (origin,) if self.wishes.hears(origin, message) else ()
            return () if message.method.endswith("/list_changed") else None  # which the primary session brings

        limit = self.pooling.max_inflight_per_channel
        line = DedicatedLine(
            lambda: self._ports.make_channel(self, is_primary, recipients), stateless=True, max_waiting=limit, why=why
        )
        return line

    def _look_after(self, line: DedicatedLine, now: float) -> None:
        channel = line.channel
        if channel is None:
            return
        is_sound = line.is_connected and not channel.is_superseded and self._backoff.until <= now
        may_be_replaced = is_sound and bool(self.owners) and self._coming is None and self._ports.may_open()
        is_beside = line is not self._lines[0]
        happening = channel.life.due(line.load, now, self.pooling, may_end=is_beside, may_be_replaced=may_be_replaced)
        if happening is None:
            return
        match channel.life.step(happening, now):
            case "replace":
                self._replace(line, now)
            case "close":
                self._lines.remove(line)
                line.close(WorkflowEnded("idle"))
            case _:
                pass

    # What a new session has to know.

    def _compare(self, channel: Channel) -> None:
        """The primary session is open: workflows were told of another server, if it says something else of itself."""
        result = channel.opened.result().result
        if self._result and result != self._result:
            for owner in tuple(self.owners):
                self._ports.on_changed(owner)
        self._result = result

    def _instruct(self, channel: Channel) -> None:
        """Tell the primary session what a lost one knew."""
        self._compare(channel)
        self._instruct_beside(channel)
        self._tell(channel, map(_subscription, self.wishes.subscriptions))

    def _instruct_beside(self, channel: Channel) -> None:
        """Tell a session the log level; what belongs to no call, the primary one brings."""
        if self.wishes.level is not None:
            self._tell(channel, [_level(self.wishes.level)])

    def _tell(self, channel: Channel, due: Iterable[_Told], over: Callable[[bool], None] = lambda _: None) -> int:
        """Tell a session this; how much it was told. What it cannot be told now, it is told later if that still holds.

        `over` hears of each whether it was answered.
        """
        told = 0
        for one in due:
            try:
                channel.request(one.request(), OwnCaller(over), {})
            except TrunklineError:
                if one.holds(self.wishes):
                    self._untold.setdefault(channel, {})[one] = None
            else:
                told += 1
        return told

    def _reopen(self, now: float) -> None:
        """Open the primary session anew where workflows wait for what the server tells; others come with a call."""
        is_awaited = self.wishes.subscriptions or any(owner.is_listening for owner in self.owners)
        if self.owners and is_awaited and self._backoff.until <= now:
            try:
                self._lines[0].reopen()
            except TrunklineError as error:
                self._backoff.failed(now, at_least=_held_back(error))

    # Replacing a session that has aged.

    def _replace(self, old: DedicatedLine, now: float) -> None:
        new = self._make_line(is_primary=old is self._lines[0], why=lost("aged"))
        self._coming = _Replacement(old, new)
        try:
            new.reopen()
        except TrunklineError as error:
            self._coming = None
            self._backoff.failed(now, at_least=_held_back(error))
            if old.channel is not None:
                old.channel.life.step("not_replaced", now)

    def _complete(self) -> None:
        """Let the new session take the old one's place as soon as it knows what that knows."""
        coming = self._coming
        if coming is None or coming.new.channel is None or not coming.new.is_connected or coming.asked:
            return
        is_primary = coming.old is self._lines[0]
        due = coming.due(self.wishes, is_primary=is_primary)
        coming.asked = len(due)
        told = self._tell(coming.new.channel, due, self._answered(coming))
        coming.asked -= len(due) - told
        if coming.asked or self._asking:
            return
        self._coming = None
        if is_primary:
            self._compare(coming.new.channel)
        self._lines[self._lines.index(coming.old)] = coming.new
        self._leaving.append(coming.old)
        if coming.old.channel is not None:
            coming.old.channel.life.step("replaced", self._ports.clock())
            coming.old.channel.drain(WorkflowEnded("aged"))

    def _answered(self, coming: _Replacement) -> Callable[[bool], None]:
        def answered(is_answered: bool) -> None:
            coming.asked -= 1
            if self._coming is coming:
                self._complete()

        return answered

    def _take_over(self, coming: _Replacement) -> None:
        """The old session is lost before it was replaced: the new one is told everything, and serves."""
        self._coming = None
        self._lines[self._lines.index(coming.old)] = coming.new
        if coming.new.channel is not None and coming.new.is_connected:
            self.perform(coming.new.channel, "instruct")


def _held_back(error: TrunklineError) -> float:
    """For how many seconds nothing may be opened, where that is why nothing was."""
    seconds = error.data.get("retry_after", 0.0)
    return seconds if isinstance(seconds, float) else 0.0


class _Replacement:
    """A session that is to take the place of another one."""

    __slots__ = ("_level", "_subscriptions", "asked", "new", "old")

    def __init__(self, old: DedicatedLine, new: DedicatedLine) -> None:
        self.old = old
        self.new = new
        self.asked = 0
        """What the new session was told, and has not answered."""
        self._level: str | None = None
        self._subscriptions: set[str] = set()

    def due(self, wishes: Wishes[Owner], *, is_primary: bool) -> list[_Told]:
        """What it has to be told so that it knows all that is wished for."""
        due: list[_Told] = []
        if wishes.level is not None and wishes.level != self._level:
            due.append(_level(wishes.level))
        self._level = wishes.level
        wanted = set(wishes.subscriptions) if is_primary else set()
        due += map(_subscription, sorted(wanted - self._subscriptions))
        due += [_Told("resources/unsubscribe", "uri", uri) for uri in sorted(self._subscriptions - wanted)]
        self._subscriptions = wanted
        return due
