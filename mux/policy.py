"""What the pool may keep: admission at the caps, and who gives way. Pure and synchronous; it returns decisions."""

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple, Protocol, TypeVar

from .errors import Overloaded
from .limits import Pooling
from .principal import Principal

EVICTABLE_AFTER: Final = 60.0
"""Seconds for which a workflow must be detached and idle before it may give way to a newcomer (guarantee G10)."""


class Resident(Protocol):
    """A workflow, as far as the policy looks at it."""

    @property
    def principal(self) -> Principal:
        """Whose it is."""

    @property
    def idle_since(self) -> float | None:
        """When its last response ended or its last wire left; None while it has a wire or a call in flight."""


K = TypeVar("K")
R = TypeVar("R", bound=Resident)


class Census:
    """How many workflows each user and each tenant has, kept by the pool as they come and go."""

    def __init__(self) -> None:
        self.total = 0
        self.users: Counter[Principal] = Counter()
        self.tenants: Counter[tuple[str, str]] = Counter()

    def add(self, principal: Principal) -> None:
        """A workflow came."""
        self._change(principal, 1)

    def remove(self, principal: Principal) -> None:
        """A workflow went."""
        self._change(principal, -1)

    def _change(self, principal: Principal, by: int) -> None:
        self.total += by
        _add(self.users, principal, by)
        _add(self.tenants, _tenant(principal), by)


NOBODY: Final = Census()


def _add(counter: Counter[K], key: K, by: int) -> None:
    counter[key] += by
    if not counter[key]:
        del counter[key]


class Cap(NamedTuple):
    """A cap that a newcomer meets: its name, and whose workflows it counts."""

    limit: str
    principal: Principal | None = None
    tenant: tuple[str, str] | None = None

    def counts(self, resident: Resident) -> bool:
        """True if this workflow is one of those that the cap counts."""
        if self.principal is not None:
            return resident.principal == self.principal
        return self.tenant is None or _tenant(resident.principal) == self.tenant


def cap_reached(
    census: Census, principal: Principal, limits: Pooling, *, spares: Census = NOBODY, more: int = 1
) -> Cap | None:
    """The first cap that so many `more` workflows of this principal would break; anonymous has only the total.

    With `spares`, those count as well: sessions that wait for workflows.
    """
    tenant = _tenant(principal)
    if not principal.is_anonymous:
        if census.users[principal] + spares.users[principal] + more > limits.max_workflows_per_user:
            return Cap("max_workflows_per_user", principal=principal)
        if census.tenants[tenant] + spares.tenants[tenant] + more > limits.max_workflows_per_tenant:
            return Cap("max_workflows_per_tenant", tenant=tenant)
    return Cap("max_workflows") if census.total + spares.total + more > limits.max_workflows else None


def give_way(cap: Cap, residents: Iterable[R], now: float) -> R:
    """The workflow that ends so that a newcomer fits under this cap: the least recently used that may be evicted.

    Raises:
        Overloaded: none may; `limit` names the cap.
    """
    evictable = (
        (resident.idle_since, index, resident)
        for index, resident in enumerate(residents)
        if cap.counts(resident) and resident.idle_since is not None and resident.idle_since <= now - EVICTABLE_AFTER
    )
    oldest = min(evictable, default=None, key=lambda entry: entry[:2])
    if oldest is None:
        raise Overloaded(f"no further session: {cap.limit} is reached, and none of them is idle", limit=cap.limit)
    return oldest[2]


def _tenant(principal: Principal) -> tuple[str, str]:
    return principal.issuer, principal.tenant
