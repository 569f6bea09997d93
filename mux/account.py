"""What the pool did for a workflow, and why: what `trunkline explain` reads out. Pure.

Everything here is fixed words, names from the settings and hashes: no value of a header, no key, no session id.
"""

from collections.abc import Iterable
from typing import Any, Final, Literal, NamedTuple, get_args

from msgspec import Raw

from . import envelope as wire_format
from .errors import TrunklineError
from .limits import Pooling
from .principal import ANONYMOUS, Principal
from .record import Handshake

MAX_EVENTS: Final = 16
"""Entries of one timeline; beyond that the oldest goes, but never how it began."""

MAX_ENDED: Final = 256
"""Workflows that ended and can still be explained."""

MAX_COMPARED: Final = 64
"""Sessions that one is compared with, where there are many: the newest."""

CAPABILITIES: Final = frozenset({"elicitation", "experimental", "extensions", "roots", "sampling", "tasks"})
"""Client capabilities that are told by name; others are the client's own text, and told as `other`."""

Part = Literal[
    "server",
    "principal",
    "generation",
    "credential",
    "session_headers",
    "revision",
    "capabilities",
    "client_info",
    "workflow",
]
"""What the key of a session is made of, the most telling first."""

PARTS: Final[tuple[Part, ...]] = get_args(Part)

Result = Literal["hit", "miss", "spare", "bypass", "refused"]

Reason = Literal[
    "open",  # the session was open
    "returned",  # the workflow lives, and its client came back to it; detail: key, session_id
    "opening",  # another workflow was opening the session
    "own",  # reuse = "workflow": each has a session of its own
    "first",  # no session of this principal with this server was there
    "key",  # one was there, under another key
    "full",  # those with this key were full
    "lost",  # the session had ended; detail: why
    "spare",  # an initialized session waited for it
    "per_call",  # reuse = "none"
    "error",  # refused; detail: the limit, or the kind of failure
]

Transport = Literal["http", "sse", "websocket"]

What = Literal[
    "created", "reset", "taken_over", "attached", "left", "cut", "resumed", "moved", "lost", "reopened", "ended"
]


class ChannelKey(NamedTuple):
    """What two workflows must have in common to share a session."""

    server: str
    principal: Principal
    session_headers: tuple[tuple[str, str], ...]
    revision: str
    capabilities: bytes
    """Canonical, after masking."""
    generation: int = 0
    """The generation of the server's settings."""
    credential: str = ""
    """The identity of the upstream credential, never its value."""
    client_info: bytes = b""
    """Canonical; empty where the session is opened in the gateway's own name."""
    workflow: str = ""
    """The handle of the one workflow that the session is for; empty where it may be shared."""


class Difference(NamedTuple):
    """A part in which two keys differ, and what of it by name, where that may be told."""

    part: Part
    names: tuple[str, ...] = ()


class Decision(NamedTuple):
    """What the pool did for an `initialize` or a call, and why."""

    result: Result
    reason: Reason
    detail: str = ""
    differs: tuple[Difference, ...] = ()
    """How the nearest session that was there differed."""


RETURNED: Final = {by: Decision("hit", "returned", by) for by in ("key", "session_id")}
OPEN: Final = Decision("hit", "open")
OPENING: Final = Decision("miss", "opening")
FIRST: Final = Decision("miss", "first")
OWN: Final = Decision("miss", "own")
FULL: Final = Decision("miss", "full", "max_inflight_per_channel")
SPARE: Final = Decision("spare", "spare")
PER_CALL: Final = Decision("bypass", "per_call")


class Event(NamedTuple):
    """Something that happened to a workflow; `at` is in seconds of the pool's clock."""

    at: float
    what: What
    detail: str = ""


class Account:
    """What one workflow has met. A call that hits stores one word here; everything else is rare."""

    __slots__ = (
        "born",
        "events",
        "is_taken_over",
        "last",
        "missed",
        "number",
        "opened",
        "origin",
        "settings",
        "transport",
    )

    def __init__(self, number: int, born: float, transport: Transport, settings: tuple[int, str] = (0, "")) -> None:
        self.number = number
        """Counts the workflows of this process: pages are cut by it."""
        self.born = born
        self.transport = transport
        """What it was opened over."""
        self.settings = settings
        """The generation of the server's settings, and the credential's identity, that it was opened under."""
        self.origin: Origin | None = None
        """Why it began anew; None where it did not."""
        self.opened: Decision | None = None
        """What its last `initialize` met; None while its session is being opened."""
        self.last: Result | None = None
        """What its last call met."""
        self.missed: Decision | None = None
        """The last call that did not simply hit."""
        self.events: list[Event] | None = None
        self.is_taken_over = False

    @property
    def call(self) -> Decision | None:
        """What the last call met, and why; None where there was none."""
        if self.last is None or self.last == "hit":
            return self.last and OPEN
        return PER_CALL if self.last == "bypass" else self.missed

    @property
    def timeline(self) -> tuple[Event, ...]:
        """What happened, the oldest first."""
        how: What = "taken_over" if self.is_taken_over else "reset" if self.origin else "created"
        began = Event(self.born, how, self.transport)
        return (began, *(self.events or ()))

    def take_over(self, now: float) -> None:
        """It goes on here; what was before, another worker had in its account."""
        self.born, self.events, self.is_taken_over = now, None, True

    def miss(self, decision: Decision, now: float) -> None:
        """A call met more than an open session."""
        self.last = decision.result
        self.missed = decision
        if decision.reason == "lost":
            self.note(now, "reopened", decision.detail)

    def refuse(self, error: TrunklineError) -> None:
        """A call was refused."""
        self.last = "refused"
        self.missed = refusal(error)

    def lose(self, now: float, reason: str, *, again: bool) -> None:
        """The session with the server was lost. `again`: it has been opened anew before that is told."""
        events = self.events or []
        reopened = events.pop() if again and events and events[-1].what == "reopened" else None
        self.note(now, "lost", reason)
        if reopened is not None:
            self.note(*reopened)

    def note(self, now: float, what: What, detail: str = "") -> None:
        """Something happened; what repeats itself is one entry, of the last time."""
        event = Event(now, what, detail)
        if not self.events:
            self.events = [event]
        elif self.events[-1][1:] == event[1:]:
            self.events[-1] = event
        else:
            del self.events[: max(0, len(self.events) + 2 - MAX_EVENTS)]
            self.events.append(event)


class Origin(NamedTuple):
    """Why a workflow began anew: its key's last one had ended, or its client came with another handshake."""

    cause: str
    """What ended the one before; empty where that is no longer known."""
    before: str = ""
    """Its handle."""
    differs: tuple[Difference, ...] = ()


class Ended(NamedTuple):
    """A workflow that has ended."""

    handle: str
    cause: str
    at: float
    name: int
    """A hash of what its client knew it by."""
    row: dict[str, object]
    """How tables showed it last."""
    pooling: Pooling
    account: Account


def refusal(error: TrunklineError) -> Decision:
    """What is told of a failure: the limit that was reached, else its kind."""
    return Decision("refused", "error", error.word)


def lost(reason: str) -> Decision:
    """A session that had ended for this reason, and is opened anew."""
    return Decision("miss", "lost", reason)


def missed(ours: ChannelKey, others: Iterable[ChannelKey]) -> Decision:
    """Why no session of this key was there, by the nearest one that was."""
    found = nearest(ours, others)
    if found is None or found[0].part == "server":
        return FIRST
    return Decision("miss", "key", differs=found)


def nearest(ours: ChannelKey, others: Iterable[ChannelKey]) -> tuple[Difference, ...] | None:
    """How the key that is most like this one differs from it; None where there is none."""
    return min((differences(ours, other) for other in others), default=None, key=_distance)


def differences(ours: ChannelKey, theirs: ChannelKey) -> tuple[Difference, ...]:
    """The parts in which two keys differ, the most telling first."""
    pairs = ((part, getattr(ours, part), getattr(theirs, part)) for part in PARTS)
    return tuple(Difference(part, _names(part, one, two)) for part, one, two in pairs if one != two)


def handshake_differences(before: Handshake, now: Handshake) -> tuple[Difference, ...]:
    """The parts in which a client's `initialize` differs from the one that opened its workflow."""
    return differences(_key_of(before), _key_of(now))


def _key_of(handshake: Handshake) -> ChannelKey:
    return ChannelKey("", ANONYMOUS, handshake.session_headers, handshake.revision, handshake.capabilities)


def _names(part: Part, one: Any, two: Any) -> tuple[str, ...]:
    """What differs within a part, where it has names that may be told."""
    if part == "session_headers":
        return tuple(sorted({name for name, _ in {*one} ^ {*two}}))
    return _capabilities(one, two) if part == "capabilities" else ()


def _capabilities(ours: bytes, theirs: bytes) -> tuple[str, ...]:
    one, two = (wire_format.members_of(Raw(text)) or {} for text in (ours, theirs))
    changed = {name for name in {*one, *two} if bytes(one.get(name, b"")) != bytes(two.get(name, b""))}
    return tuple(sorted({name if name in CAPABILITIES else "other" for name in changed}))


def _distance(differs: tuple[Difference, ...]) -> tuple[bool, bool, int]:
    parts = {difference.part for difference in differs}
    return "server" in parts, "principal" in parts, len(parts)
