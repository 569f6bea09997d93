"""When a server may be tried again that could not be reached: back-off, and a circuit for each server and tenant.

Pure: times are seconds of one clock, and chance is passed in. What may happen to a circuit is the table `CIRCUIT`. A
circuit opens when sessions could not be opened, or were lost as soon as they were, so often in a row; while it is open
nothing is tried; then one opening at a time probes the server, until one succeeds.
"""

import random
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final, Literal, NamedTuple

from .errors import CircuitOpen, RevisionNotServed, SessionLost, TimedOut, UpstreamFault, UpstreamRefused
from .errors import UpstreamUnreachable as Unreachable
from .principal import Principal

MAX_FAILURES: Final = 3
"""So many failures in a row open a circuit: one is chance, and a restart costs two."""

SOUND_SECONDS: Final = 1.0
"""A session that is lost sooner after its opening counts as one that could not be opened."""

FIRST_SECONDS: Final = 0.5
LAST_SECONDS: Final = 30.0

FORGET_SECONDS: Final = 300.0
"""A circuit that nobody has tried for so long is forgotten."""

MAX_CIRCUITS: Final = 10_000
"""Circuits that are kept at once; beyond that the one that has not failed for longest goes."""

CircuitState = Literal["closed", "open", "half_open"]
CircuitInput = Literal["failure", "last_failure", "success", "retry", "probe_failure", "probe_given_up"]
CircuitEffect = Literal["count", "wait", "note", "probe", "ignore", "let_next"]

CIRCUIT: Final[Mapping[tuple[CircuitState, CircuitInput], tuple[CircuitState, CircuitEffect]]] = {
    ("closed", "failure"): ("closed", "count"),
    ("closed", "last_failure"): ("open", "wait"),
    ("closed", "success"): ("closed", "note"),
    # What was begun before the circuit opened may end after it.
    ("open", "failure"): ("open", "ignore"),
    ("open", "success"): ("closed", "note"),
    ("open", "retry"): ("half_open", "probe"),
    ("half_open", "failure"): ("half_open", "ignore"),
    ("half_open", "success"): ("closed", "note"),
    ("half_open", "probe_failure"): ("open", "wait"),
    ("half_open", "probe_given_up"): ("open", "let_next"),
}

_Key = tuple[str, str, str]


class Circuit(NamedTuple):
    """How a server stands with one tenant, for pages; `until` is when it may be tried again."""

    server: str
    state: CircuitState
    failures: int
    until: float


class Backoff:
    """Tries that fail in a row wait ever longer, never in step with others."""

    __slots__ = ("_draw", "failures", "until")

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self.failures = 0
        self.until = float("-inf")
        """Nothing is to be tried before."""

    def failed(self, now: float, at_least: float = 0.0) -> None:
        """A try failed; the wait is drawn from the upper half of twice the last one's, `at_least` so many seconds."""
        full = min(FIRST_SECONDS * 2.0 ** min(self.failures, 16), LAST_SECONDS)
        self.failures += 1
        self.until = now + max(full * (0.5 + 0.5 * self._draw()), at_least)

    def succeeded(self) -> None:
        """What is tried next has nothing to do with what failed before."""
        self.failures = 0
        self.until = float("-inf")


class Breakers:
    """The circuits of all servers and tenants; those in order take no place."""

    def __init__(self, draw: Callable[[], float] = random.random) -> None:
        self._draw = draw
        self._circuits: dict[_Key, _Circuit] = {}

    def __iter__(self) -> Iterator[Circuit]:
        """What has failed lately."""
        for (server, *_), held in self._circuits.items():
            yield Circuit(server, held.state, held.failures, held.backoff.until)

    def is_closed(self, server: str, principal: Principal) -> bool:
        """True while openings for this tenant are not held back."""
        held = self._circuits.get(_key(server, principal))
        return held is None or held.state == "closed"

    def admit(self, server: str, principal: Principal, now: float) -> "Permit":
        """Let one session be opened; its outcome has to be told to the permit.

        Raises:
            CircuitOpen: the server could not be reached before, and its time has not come.
        """
        key = _key(server, principal)
        held = self._circuits.get(key)
        permit = Permit(self, key)
        if held is None or held.state == "closed":
            return permit
        if held.state == "half_open":
            raise CircuitOpen(server, FIRST_SECONDS)
        if held.backoff.until > now:
            raise CircuitOpen(server, held.backoff.until - now)
        held.step("retry", now)
        held.probe = permit
        return permit

    def keep(self, servers: Collection[str]) -> None:
        """What is known of other servers than these no longer holds."""
        self._circuits = {key: held for key, held in self._circuits.items() if key[0] in servers}

    def expire(self, now: float) -> None:
        """Forget what is in order again, and what nobody has tried for long."""
        for key in [key for key, held in self._circuits.items() if held.is_over(now)]:
            del self._circuits[key]

    def failed(self, permit: "Permit", now: float) -> None:
        """A session could not be opened, or was lost at once."""
        held = self._circuits.pop(permit.key, None) or _Circuit(self._draw)
        self._circuits[permit.key] = held  # the newest failure stands last
        held.forget_if_sound(now)
        if held.is_probed_by(permit):
            held.step("probe_failure", now)
        else:
            is_last = held.state == "closed" and held.failures + 1 >= MAX_FAILURES
            held.step("last_failure" if is_last else "failure", now)
        if len(self._circuits) > MAX_CIRCUITS:
            del self._circuits[next(iter(self._circuits))]

    def succeeded(self, permit: "Permit", now: float) -> None:
        """A session was opened, or refused by a server that is there."""
        held = self._circuits.get(permit.key)
        if held is not None:
            held.step("success", now)

    def given_up(self, permit: "Permit", now: float) -> None:
        """An opening was ended before it said anything of the server."""
        held = self._circuits.get(permit.key)
        if held is not None and held.is_probed_by(permit):
            held.step("probe_given_up", now)


class Permit:
    """The leave to open one session, and what became of it."""

    __slots__ = ("_breakers", "_opened", "key")

    def __init__(self, breakers: Breakers, key: _Key) -> None:
        self._breakers = breakers
        self._opened: float | None = None
        self.key = key

    def opened(self, now: float) -> None:
        """The session is open."""
        self._opened = now
        self._breakers.succeeded(self, now)

    def failed(self, error: BaseException | None, now: float) -> None:
        """There is no session; what that says of the server depends on why."""
        match verdict(error):
            case "failed":
                self._breakers.failed(self, now)
            case "answered" if not _has_no_room(error):
                self._breakers.succeeded(self, now)
            case _:
                self._breakers.given_up(self, now)

    def lost(self, now: float) -> None:
        """The server has lost the session."""
        if self._opened is not None and now - self._opened < SOUND_SECONDS:
            self._breakers.failed(self, now)


def verdict(error: BaseException | None) -> Literal["failed", "answered", "unknown"]:
    """What it says of a server that a session could not be opened: one that refuses one client is there for others."""
    if isinstance(error, UpstreamRefused | RevisionNotServed):
        return "answered"
    status = error.data.get("status") if isinstance(error, Unreachable) else None
    if isinstance(status, int) and 400 <= status < 500 and status != 408:
        return "answered"
    return "failed" if isinstance(error, Unreachable | UpstreamFault | SessionLost | TimedOut) else "unknown"


def _has_no_room(error: BaseException | None) -> bool:
    """Whether the server takes no more, of this client or of anybody: that it does not say."""
    return isinstance(error, Unreachable) and error.data.get("status") == 429


class _Circuit:
    """One server and one tenant."""

    __slots__ = ("backoff", "failures", "opened", "probe", "state")

    def __init__(self, draw: Callable[[], float]) -> None:
        self.state: CircuitState = "closed"
        self.failures = 0
        """In a row."""
        self.opened: float | None = None
        """When a session was opened last that has not been lost since."""
        self.backoff = Backoff(draw)
        self.probe: Permit | None = None

    def is_probed_by(self, permit: Permit) -> bool:
        """True where the circuit waits for the outcome of this opening."""
        return self.state == "half_open" and self.probe is permit

    def step(self, given: CircuitInput, now: float) -> None:
        self.state, effect = CIRCUIT[self.state, given]
        match effect:
            case "count" | "wait":
                self.failures += 1
                self.opened = None
                if effect == "wait":
                    self.backoff.failed(now)
            case "note":
                self.opened = now
            case "let_next":
                self.backoff.until = now

    def forget_if_sound(self, now: float) -> None:
        """A session that lives shows that the failures before it are over."""
        if self.state == "closed" and self.opened is not None and now - self.opened >= SOUND_SECONDS:
            self.failures = 0
            self.backoff.succeeded()

    def is_over(self, now: float) -> bool:
        self.forget_if_sound(now)
        if self.state == "closed":
            return not self.failures
        return self.state == "open" and self.backoff.until + FORGET_SECONDS <= now


def _key(server: str, principal: Principal) -> _Key:
    return server, principal.issuer, principal.tenant
