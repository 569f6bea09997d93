"""What the pool may keep: admission at the caps, and who gives way. Pure and synchronous; it returns decisions."""

from collections import Counter, deque
from collections.abc import Callable, Mapping
from heapq import nsmallest
from typing import Final, Literal, NamedTuple, Protocol, TypeVar, get_args

from .errors import Overloaded
from .limits import Pooling
from .principal import Principal

EVICTABLE_AFTER: Final = 60.0
"""Seconds for which a workflow must be detached and idle before it may give way to a newcomer (guarantee G10)."""

FOUND_AT_ONCE: Final = 32
"""Workflows that give way, one after the other, that are found by looking at all of them once."""

MAX_LOOKS: Final = 256
"""Caps for which that is remembered; the one that was looked at first is forgotten."""


Limit = Literal["max_workflows_per_user", "max_workflows_per_tenant", "max_workflows"]
LIMITS: Final[tuple[Limit, ...]] = get_args(Limit)
"""In the order in which a newcomer meets them."""


class Resident(Protocol):
    """A workflow, as far as the policy looks at it."""

    @property
    def principal(self) -> Principal:
        """Whose it is."""

    @property
    def server(self) -> str:
        """On which server it is."""

    @property
    def idle_since(self) -> float | None:
        """When its last response ended or its last wire left; None while it has a wire or a call in flight."""


K = TypeVar("K")
R = TypeVar("R", bound=Resident)


class Scope(NamedTuple):
    """Which workflows a cap counts."""

    server: str | None = None
    """The one whose own cap it is; None for that of the process."""
    apart: frozenset[str] = frozenset()
    """All servers that have one of their own: what is on them, that of the process does not count."""

    def has(self, server: str) -> bool:
        """Whether what is on this server counts."""
        return server not in self.apart if self.server is None else server == self.server


EVERYWHERE: Final = Scope()


class Caps:
    """How many workflows there may be: by the `common` limits, the process's, or by a server's own."""

    def __init__(self, common: Pooling, servers: Mapping[str, Pooling] | None = None) -> None:
        self.replace(common, servers or {})

    def replace(self, common: Pooling, servers: Mapping[str, Pooling]) -> None:
        """From now on these hold. A limit of a server that differs from that of the process is its own."""
        self.common, self._servers = common, dict(servers)
        self._apart: dict[Limit, frozenset[str]] = {
            limit: frozenset(name for name, own in servers.items() if getattr(own, limit) != getattr(common, limit))
            for limit in LIMITS
        }

    def of(self, server: str, limit: Limit) -> tuple[int, Scope]:
        """How many there may be for a newcomer on this server, and which are counted."""
        most: int = getattr(self._servers.get(server, self.common), limit)
        apart = self._apart[limit]
        return most, Scope(server if server in apart else None, apart)


class _Count:
    """How many workflows each user and each tenant has."""

    def __init__(self) -> None:
        self.total = 0
        self.users: Counter[Principal] = Counter()
        self.tenants: Counter[tuple[str, str]] = Counter()

    def change(self, principal: Principal, by: int) -> None:
        """So many more."""
        self.total += by
        _add(self.users, principal, by)
        _add(self.tenants, _tenant(principal), by)


class Census(_Count):
    """The same, together and on each server, kept by the pool as they come and go."""

    def __init__(self) -> None:
        super().__init__()
        self._on: dict[str, _Count] = {}

    def add(self, principal: Principal, server: str) -> None:
        """A workflow came to a server."""
        self.change(principal, 1)
        self._on.setdefault(server, _Count()).change(principal, 1)

    def remove(self, principal: Principal, server: str) -> None:
        """A workflow went."""
        self.change(principal, -1)
        self._on[server].change(principal, -1)
        if not self._on[server].total:
            del self._on[server]

    def within(self, scope: Scope, number: Callable[[_Count], int]) -> int:
        """How many of them count, by such a number of all."""
        if scope.server is not None:
            return number(self._on[scope.server]) if scope.server in self._on else 0
        return number(self) - sum(number(self._on[server]) for server in scope.apart if server in self._on)


NOBODY: Final = Census()


def _add(counter: Counter[K], key: K, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]


class Cap(NamedTuple):
    """A cap that a newcomer meets: its name, and whose workflows it counts."""

    limit: Limit
    principal: Principal | None = None
    tenant: tuple[str, str] | None = None
    scope: Scope = EVERYWHERE

    def counts(self, resident: Resident) -> bool:
        """True if this workflow is one of those that the cap counts."""
        if not self.scope.has(resident.server):
            return False
        if self.principal is not None:
            return resident.principal == self.principal
        return self.tenant is None or _tenant(resident.principal) == self.tenant


def cap_reached(
    census: Census,
    principal: Principal,
    server: str,
    caps: Caps,
    *,
    spares: Census = NOBODY,
    more: int = 1,
    times: int = 1,
) -> Cap | None:
    """The first cap that so many `more` workflows of this principal on a server would break; each may be had `times`.

    Anonymous has only the total. With `spares`, those count as well: sessions that wait for workflows.
    """
    tenant = _tenant(principal)

    def is_reached(limit: Limit, number: Callable[[_Count], int]) -> Scope | None:
        most, scope = caps.of(server, limit)
        there = census.within(scope, number) + spares.within(scope, number)
        return scope if there + more > most * times else None

    if not principal.is_anonymous:
        if scope := is_reached("max_workflows_per_user", lambda count: count.users[principal]):
            return Cap("max_workflows_per_user", principal=principal, scope=scope)
        if scope := is_reached("max_workflows_per_tenant", lambda count: count.tenants[tenant]):
            return Cap("max_workflows_per_tenant", tenant=tenant, scope=scope)
    scope = is_reached("max_workflows", lambda count: count.total)
    return Cap("max_workflows", scope=scope) if scope else None


class _Look(NamedTuple):
    """What a look at all workflows has found for a cap."""

    following: deque[tuple[float, str]]
    """Those that give way next, by their names, and since when they are idle."""
    again: float
    """When to look again, once none of them is left: nobody else can be idle for long enough before."""


class GivingWay:
    """Who ends so that a newcomer fits under a cap: the least recently used that may be evicted.

    All are looked at for `FOUND_AT_ONCE` of them, or until somebody else can be idle for long enough: newcomers at a
    cap come in crowds, and those that are refused come again.
    """

    def __init__(self) -> None:
        self._looks: dict[Cap, _Look] = {}

    def next(self, cap: Cap, residents: Mapping[str, R], now: float) -> R:
        """The one that is next, to leave the `residents` or be put back. Nobody who was in use since was idle before.

        Raises:
            Overloaded: none may; `limit` names the cap.
        """
        look = self._looks.get(cap)
        while True:
            found = None if look is None else _first_idle(look.following, residents)
            if found is not None:
                return found
            if look is not None and now < look.again:
                raise Overloaded(
                    f"no further session: {cap.limit} is reached, and none of them is idle", limit=cap.limit
                )
            look = self._keep(cap, _look(cap, residents, now))

    def put_back(self, cap: Cap, name: str, since: float | None) -> None:
        """The one of this name that was next, idle since then, has not left: it is next once more."""
        look = self._looks.get(cap)
        if look is not None and since is not None:  # else all are looked at again, or it is in use
            look.following.appendleft((since, name))

    def _keep(self, cap: Cap, look: _Look) -> _Look:
        self._looks.pop(cap, None)
        self._looks[cap] = look
        if len(self._looks) > MAX_LOOKS:
            del self._looks[next(iter(self._looks))]
        return look


def _first_idle(following: deque[tuple[float, str]], residents: Mapping[str, R]) -> R | None:
    """The first of these that is there, and has been idle all the time."""
    while following:
        since, name = following.popleft()
        resident = residents.get(name)
        if resident is not None and resident.idle_since == since:
            return resident
    return None


def _look(cap: Cap, residents: Mapping[str, Resident], now: float) -> _Look:
    again = now + EVICTABLE_AFTER
    idle: list[tuple[float, int, str]] = []
    for index, (name, resident) in enumerate(residents.items()):
        since = resident.idle_since if cap.counts(resident) else None
        if since is None:
            continue
        may_go = since + EVICTABLE_AFTER
        if may_go <= now:
            idle.append((since, index, name))
        else:
            again = min(again, may_go)
    first = nsmallest(FOUND_AT_ONCE, idle)
    return _Look(deque((since, name) for since, _, name in first), again if len(first) == len(idle) else now)


def _tenant(principal: Principal) -> tuple[str, str]:
    return principal.issuer, principal.tenant
