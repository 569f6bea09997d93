"""Admission at the caps, and who gives way."""

from dataclasses import dataclass

import pytest
from trunkline.mux.errors import Overloaded
from trunkline.mux.limits import Pooling
from trunkline.mux.policy import EVICTABLE_AFTER, Cap, Census, cap_reached, give_way
from trunkline.mux.principal import ANONYMOUS, Principal

ALICE, BOB, EVE = (
    Principal("i", tenant, name) for tenant, name in (("acme", "alice"), ("acme", "bob"), ("evil", "eve"))
)
LIMITS = Pooling(max_workflows=5, max_workflows_per_user=2, max_workflows_per_tenant=3)


@dataclass(frozen=True)
class Guest:
    principal: Principal
    idle_since: float | None


def census(*principals: Principal) -> Census:
    made = Census()
    for principal in principals:
        made.add(principal)
    return made


def test_g10_each_cap_counts_its_own() -> None:
    assert cap_reached(census(), ALICE, LIMITS) is None
    assert cap_reached(census(ALICE, ALICE), ALICE, LIMITS) == Cap("max_workflows_per_user", principal=ALICE)
    assert cap_reached(census(ALICE, ALICE), BOB, LIMITS) is None
    full = census(ALICE, ALICE, BOB)
    assert cap_reached(full, BOB, LIMITS) == Cap("max_workflows_per_tenant", tenant=("i", "acme"))
    assert cap_reached(full, EVE, LIMITS) is None
    assert cap_reached(census(*[ANONYMOUS] * 4), ANONYMOUS, LIMITS) is None, "anonymous has no cap of its own"
    assert cap_reached(census(*[ANONYMOUS] * 5), ANONYMOUS, LIMITS) == Cap("max_workflows")


def test_spares_count_beside_workflows_and_what_is_there_may_be_weighed_without_a_newcomer() -> None:
    assert cap_reached(census(ALICE), ALICE, LIMITS, spares=census(BOB)) is None
    assert cap_reached(census(ALICE), ALICE, LIMITS, spares=census(ALICE)) == Cap("max_workflows_per_user", ALICE)
    assert cap_reached(census(ALICE), ALICE, LIMITS, spares=census(ALICE), more=0) is None
    assert cap_reached(census(ALICE, BOB), BOB, LIMITS, spares=census(ALICE, BOB), more=0) == Cap(
        "max_workflows_per_tenant", tenant=("i", "acme")
    )
    assert cap_reached(census(*[EVE] * 3), ANONYMOUS, LIMITS, spares=census(*[EVE] * 3), more=0) == Cap("max_workflows")


def test_who_went_is_not_counted() -> None:
    made = census(ALICE, BOB)
    made.remove(ALICE)
    assert (made.total, dict(made.users), dict(made.tenants)) == (1, {BOB: 1}, {("i", "acme"): 1})


def test_g10_the_least_recently_used_that_is_idle_gives_way() -> None:
    now = 1000.0
    old, older = Guest(ALICE, now - EVICTABLE_AFTER - 1), Guest(BOB, now - EVICTABLE_AFTER - 2)
    oldest_of_all = Guest(EVE, 1.0)
    guests = [old, older, oldest_of_all, Guest(ALICE, None), Guest(ALICE, now - 1)]
    assert give_way(Cap("max_workflows"), guests, now) is oldest_of_all
    assert give_way(Cap("max_workflows_per_tenant", tenant=("i", "acme")), guests, now) is older
    assert give_way(Cap("max_workflows_per_user", principal=ALICE), guests, now) is old


def test_g10_where_none_is_idle_long_enough_the_newcomer_is_refused() -> None:
    with pytest.raises(Overloaded) as refused:
        give_way(Cap("max_workflows"), [Guest(ALICE, None), Guest(ALICE, 950.0)], 1000.0)
    assert refused.value.limit == "max_workflows"
    assert refused.value.data == {"limit": "max_workflows"}
