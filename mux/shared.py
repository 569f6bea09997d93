"""The shared line: one workflow's part in the sessions that a principal's workflows share (`reuse = "user"`)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from msgspec import Raw

from . import envelope as wire_format
from .account import OPEN, OPENING
from .channel import Channel
from .envelope import Envelope, Text
from .errors import InvalidParams, InvalidRequest, MethodNotFound, SessionLost, TrunklineError
from .group import ChannelGroup
from .limits import MAX_BODY_BYTES, MAX_URI_BYTES
from .line import DedicatedLine
from .ports import Caller, Headers, Opened, Owner, PoolResult
from .record import Wish
from .sharing import LEVELS

NAMES: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
"""Some servers read names in any case: by another spelling, one workflow could name the request of another (E26)."""


NOT_SHARED: Final = frozenset({"notifications/roots/list_changed", "notifications/progress"})
"""What a client tells its server that would be taken for the word of all, or name what another one was asked."""


class SharedLine:
    """One workflow's part in a group. Implements `Line`."""

    def __init__(self, group: ChannelGroup, owner: Owner, wish: Wish, on_wish: Callable[[Wish], None]) -> None:
        """`wish` is what the workflow wanted at another worker; `on_wish` hears of what it wants from now on."""
        self._group = group
        self._owner = owner
        self._on_wish = on_wish
        self._watching: dict[Caller, _Waiter] = {}
        """What is global and the server has not answered, and who waits there for each."""
        self._cause: TrunklineError | None = None
        self.why = OPEN
        """See `Line.why`."""
        group.join(owner, wish)

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
        return Opened(opened.revision, self._group.shown(opened.result), how)

    def request(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        """See `Line.request`."""
        if self._cause is not None:
            raise SessionLost(self._cause.message, executed="no")
        _check_names(message)
        if message.method.startswith("tasks/"):
            raise MethodNotFound("tasks are not offered on a shared session")
        message = _without_task(message)
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
        told = wire_format.parse(message, limit=MAX_BODY_BYTES)
        _check_names(told)
        if told.method not in NOT_SHARED:
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
            self._tell_wish()
            return _answer(message, caller)
        params = wire_format.encoded({**(message.params() or {}), "level": due})
        told = Envelope("request", {**message.members, "params": params}, id=message.id, method=message.method)

        def ended(refused: bool) -> None:
            if refused:
                wishes.refuse_level(self._owner, level)
            else:
                wishes.accept_level(self._owner, level)
                self._tell_wish()

        return self._ask(told, caller, headers, ended)

    def _watch(self, message: Envelope, caller: Caller, headers: Headers) -> PoolResult:
        uri = wire_format.string_of((message.params() or {}).get("uri"))
        if uri is None:
            raise InvalidParams(f"{message.method} needs a uri")
        if len(uri.encode()) > MAX_URI_BYTES:
            raise InvalidParams(f"{message.method}: the uri is longer than {MAX_URI_BYTES} bytes")
        wishes, primary = self._group.wishes, self._group.primary
        if message.method == "resources/unsubscribe":
            due = wishes.unsubscribe(self._owner, uri)
            self._tell_wish()
            return self._ask_on(primary, message, caller, headers) if due else _answer(message, caller)
        subscription = wishes.subscribe(self._owner, uri)
        if subscription is None:
            self._tell_wish()
            return _answer(message, caller)

        def ended(refused: bool) -> None:
            """The server has answered: only now the subscription counts for others (rule R5)."""
            if not refused:
                wishes.accept(uri)
                self._tell_wish()
            elif wishes.refuse(self._owner, uri, subscription):
                self._group.say("resources/unsubscribe", {"uri": uri})

        return self._ask(message, caller, headers, ended)

    def _tell_wish(self) -> None:
        if self._cause is None:
            self._on_wish(self._group.wishes.of(self._owner))

    def _ask(self, message: Envelope, caller: Caller, headers: Headers, ended: Callable[[bool], None]) -> PoolResult:
        """Ask the primary session for what is global; `ended` hears whether it was refused."""

        def over(refused: bool) -> None:
            self._watching.pop(caller, None)
            ended(refused)
            self._group.asks_for_all(-1)

        waiter = self._watching[caller] = _Waiter(caller, over)
        self._group.asks_for_all(1)
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

    is_own = False

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

    def answered(self, message: Text, *, is_error: bool) -> None:
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


def _check_names(message: Envelope) -> None:
    if any(name not in NAMES and name.lower() in NAMES for name in message.members):
        raise InvalidRequest("a member differs from one of JSON-RPC by case alone")


def _without_task(message: Envelope) -> Envelope:
    """A request that asks for a task, as one that does not: nobody could be given its result (rule R15)."""
    raw = message.members.get("params")
    if raw is None or not wire_format.begins_task(raw):
        return message
    params = message.params() or {}
    del params["task"]
    members = {**message.members, "params": wire_format.encode_members(params)}
    return Envelope("request", members, id=message.id, method=message.method)


def _answer(message: Envelope, caller: Caller) -> PoolResult:
    """The server has no part in this: what is asked for holds already."""
    caller.answered(wire_format.result(message.id, Raw(b"{}")), is_error=False)
    return "hit"
