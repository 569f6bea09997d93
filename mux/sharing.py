"""What several workflows of one principal may share of an upstream session, and what is kept apart. Pure.

Session-global state of a server is virtualised: subscriptions are counted (rule R5), the log level is the most verbose
that is wanted and filtered for each workflow (rule R6). What cannot be attributed is masked (rule L15) or dropped.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Generic, TypeVar

import msgspec
from msgspec import Raw

from . import envelope as wire_format
from .envelope import Envelope, Members
from .errors import Overloaded
from .record import Handshake, Wish

Owner = TypeVar("Owner")

MASKED: Final = frozenset({"sampling", "roots", "elicitation", "tasks"})
"""Client capabilities that a server could use without saying for whom."""

CLIENT_INFO: Final = b'{"name":"trunkline","version":"1"}'
"""Servers branch on it, and it is no client's own here."""

LEVELS: Final[Mapping[str, int]] = {
    name: rank
    for rank, name in enumerate(("debug", "info", "notice", "warning", "error", "critical", "alert", "emergency"))
}
"""From the most verbose on (RFC 5424)."""

NOTHING: Final = Wish()
"""What a workflow wants that has just begun."""

USUAL: Final = "info"
"""What a workflow gets that never named a level, once another has changed the server's own."""


def shared_handshake(handshake: Handshake) -> Handshake:
    """The handshake of a session that workflows share: the client's revision, what can be routed, our own name."""
    capabilities = _without(Raw(handshake.capabilities), MASKED)
    params = {
        "protocolVersion": Raw(msgspec.json.encode(handshake.revision)),
        "capabilities": Raw(capabilities),
        "clientInfo": Raw(CLIENT_INFO),
    }
    return msgspec.structs.replace(handshake, params=msgspec.json.encode(params), capabilities=capabilities)


def shared_result(result: bytes) -> bytes:
    """The server's InitializeResult without what it cannot do for one of several clients (rule L11)."""
    members = wire_format.members_of(Raw(result)) or {}
    capabilities = members.get("capabilities")
    if capabilities is None or "tasks" not in (wire_format.members_of(capabilities) or {}):
        return result
    return msgspec.json.encode({**members, "capabilities": Raw(_without(capabilities, {"tasks"}))})


def _without(capabilities: Raw, names: frozenset[str] | set[str]) -> bytes:
    members: Members = wire_format.members_of(capabilities) or {}
    return msgspec.json.encode({name: value for name, value in members.items() if name not in names}, order="sorted")


class Subscription:
    """One workflow's part in watching a resource: it stands until every request for it was refused."""

    __slots__ = ("asked",)

    def __init__(self) -> None:
        self.asked = 0
        """Requests for it that were not refused."""


class Wishes(Generic[Owner]):
    """What the workflows of one upstream session want of its global state."""

    def __init__(self, max_subscriptions: int = 1000) -> None:
        self._max_subscriptions = max_subscriptions
        self._subscribers: dict[str, dict[Owner, Subscription]] = {}
        self._accepted: set[str] = set()
        self._levels: dict[Owner, list[str]] = {}
        """What each has wished for, the newest last, since the last one that was accepted; none that was refused."""
        self._owners = 0
        self.level: str | None = None
        """The level that the server was told; None while it has its own."""

    @property
    def subscriptions(self) -> Sequence[str]:
        """The resources that the server has accepted to watch."""
        return sorted(self._accepted)

    # Subscriptions.

    def subscribe(self, owner: Owner, uri: str) -> Subscription | None:
        """A workflow wants to hear of a resource; what the server has to be asked (again) for, None where it watches.

        Raises:
            Overloaded: there are as many subscriptions as the session may hold.
        """
        if uri not in self._subscribers and len(self._subscribers) >= self._max_subscriptions:
            raise Overloaded("too many subscriptions on a shared session", limit="subscriptions")
        subscription = self._subscribers.setdefault(uri, {}).setdefault(owner, Subscription())
        subscription.asked += 1
        return None if uri in self._accepted else subscription

    def accept(self, uri: str) -> None:
        """The server watches this resource."""
        if uri in self._subscribers:
            self._accepted.add(uri)

    def refuse(self, owner: Owner, uri: str, subscription: Subscription) -> bool:
        """The server has refused one request for it; True where it watches for nobody now, and has to be told."""
        subscription.asked -= 1
        if subscription.asked or self._subscribers.get(uri, {}).get(owner) is not subscription:
            return False
        is_watched = uri in self._accepted
        return self.unsubscribe(owner, uri) and is_watched

    def unsubscribe(self, owner: Owner, uri: str) -> bool:
        """A workflow wants to hear no more of it; True where the server has to be told."""
        subscribers = self._subscribers.get(uri, {})
        subscribers.pop(owner, None)
        if subscribers:
            return False
        self._subscribers.pop(uri, None)
        self._accepted.discard(uri)
        return True

    # Log levels.

    def set_level(self, owner: Owner, level: str) -> str | None:
        """A workflow wants logs from this level on; the level to tell the server, None where it has that already."""
        self._levels.setdefault(owner, []).append(level)
        due = self._level_due()
        if due is None:
            self.accept_level(owner, level)
        return due

    def _level_due(self) -> str | None:
        silent = self._owners > len(self._levels)
        named = [levels[-1] for levels in self._levels.values()]
        wanted = min([*named, *([USUAL] if silent else [])], key=LEVELS.__getitem__)
        changed = wanted != self.level
        self.level = wanted
        return wanted if changed else None

    def accept_level(self, owner: Owner, level: str) -> None:
        """The server has taken a workflow's level: what it wished for before does not come back, nor does the same."""
        levels = self._levels.get(owner, [])
        if level in levels:
            del levels[: len(levels) - 1 - levels[::-1].index(level)]

    def refuse_level(self, owner: Owner, level: str) -> None:
        """The server has refused a workflow's level: the workflow has the newest that was not refused, if any.

        What the server has is not known, and the next wish is told to it.
        """
        levels = self._levels.get(owner, [])
        if level in levels:  # else it has wished for another one since
            levels.remove(level)
            if not levels:
                del self._levels[owner]
        self.level = None

    def _level_of(self, owner: Owner) -> str:
        return self._levels[owner][-1] if owner in self._levels else ""

    def hears(self, owner: Owner, message: Envelope) -> bool:
        """Whether a message that concerns this workflow is of a level that it wants; what is no log is."""
        if message.method != "notifications/message":
            return True
        level = wire_format.string_of((message.params() or {}).get("level"))
        wanted = self._level_of(owner) or (USUAL if self.level is not None else "")
        return not wanted or level is None or level not in LEVELS or LEVELS[level] >= LEVELS[wanted]

    # Workflows.

    def of(self, owner: Owner) -> Wish:
        """What a workflow wants, as far as the server has accepted it."""
        watched = [uri for uri, those in self._subscribers.items() if owner in those and uri in self._accepted]
        return Wish(self._level_of(owner), tuple(sorted(watched)))

    def _restore(self, owner: Owner, uri: str) -> bool:
        try:
            subscription = self.subscribe(owner, uri)
        except Overloaded:
            return False
        self.accept(uri)
        return subscription is not None

    def join(self, owner: Owner, wish: Wish = NOTHING) -> tuple[str | None, list[str]]:
        """A workflow has come, with what it wants already: the level and the subscriptions to tell the server.

        They count as accepted: they were, before another worker had the session, or another session had them.
        """
        self._owners += 1
        if wish.level in LEVELS:
            self._levels[owner] = [wish.level]
        asked = [uri for uri in wish.subscriptions if self._restore(owner, uri)]
        return self._level_due() if self._levels else None, asked

    def leave(self, owner: Owner) -> list[str]:
        """A workflow has ended; the resources that nobody wants to hear of any longer."""
        self._owners = max(0, self._owners - 1)
        self._levels.pop(owner, None)
        watched = [uri for uri, subscribers in self._subscribers.items() if owner in subscribers]
        return [uri for uri in watched if self.unsubscribe(owner, uri)]

    def recipients(self, message: Envelope, origin: Owner | None, owners: Sequence[Owner]) -> Sequence[Owner] | None:
        """Who is told what the server tells; None where it cannot be attributed (rule R1, table 3.2).

        Nobody where it is of a level that its workflow does not hear.
        """
        params = message.params() or {}
        if message.method.endswith("/list_changed"):
            return tuple(owners)
        if message.method == "notifications/resources/updated":
            uri = wire_format.string_of(params.get("uri")) or ""
            watching = self._watching(uri)
            return [owner for owner in owners if owner in watching] or None
        alone = origin if origin is not None else owners[0] if len(owners) == 1 else None
        if alone is None:
            return None
        return [alone] if self.hears(alone, message) else ()

    def _watching(self, uri: str) -> set[Owner]:
        """Who watches this: a server may tell of a resource below the one that was subscribed to."""
        return {owner for watched, those in self._subscribers.items() if _is_below(uri, watched) for owner in those}


def _is_below(uri: str, watched: str) -> bool:
    if not 0 < len(watched) < len(uri):
        return uri == watched
    return uri.startswith(watched) and (watched.endswith("/") or uri[len(watched)] in "/?#")
