"""Admission at the caps, and who gives way."""

import random
from collections.abc import ItemsView
from dataclasses import dataclass

import pytest
from trunkline.mux.errors import Overloaded
from trunkline.mux.limits import Pooling
from trunkline.mux.policy import (
    EVICTABLE_AFTER,
    FOUND_AT_ONCE,
    MAX_LOOKS,
    Cap,
    Caps,
    Census,
    GivingWay,
    Scope,
    cap_reached,
)
from trunkline.mux.principal import ANONYMOUS, Principal

ALICE, BOB, EVE = (
    Principal("i", tenant, name) for tenant, name in (("acme", "alice"), ("acme", "bob"), ("evil", "eve"))
)
CAPS = Caps(Pooling(max_workflows=5, max_workflows_per_user=2, max_workflows_per_tenant=3))


@dataclass(frozen=True)
class Guest:
    principal: Principal
    idle_since: float | None
    server: str = "x"


def census(*principals: Principal) -> Census:
    made = Census()
    for principal in principals:
        made.add(principal, "x")
    return made


def test_g10_each_cap_counts_its_own() -> None:
    assert cap_reached(census(), ALICE, "x", CAPS) is None
    assert cap_reached(census(ALICE, ALICE), ALICE, "x", CAPS) == Cap("max_workflows_per_user", principal=ALICE)
    assert cap_reached(census(ALICE, ALICE), BOB, "x", CAPS) is None
    full = census(ALICE, ALICE, BOB)
    assert cap_reached(full, BOB, "x", CAPS) == Cap("max_workflows_per_tenant", tenant=("i", "acme"))
    assert cap_reached(full, EVE, "x", CAPS) is None
    assert cap_reached(census(*[ANONYMOUS] * 4), ANONYMOUS, "x", CAPS) is None, "anonymous has no cap of its own"
    assert cap_reached(census(*[ANONYMOUS] * 5), ANONYMOUS, "x", CAPS) == Cap("max_workflows")


def test_spares_count_beside_workflows_and_what_is_there_may_be_weighed_without_a_newcomer() -> None:
    assert cap_reached(census(ALICE), ALICE, "x", CAPS, spares=census(BOB)) is None
    assert cap_reached(census(ALICE), ALICE, "x", CAPS, spares=census(ALICE)) == Cap("max_workflows_per_user", ALICE)
    assert cap_reached(census(ALICE), ALICE, "x", CAPS, spares=census(ALICE), more=0) is None
    assert cap_reached(census(ALICE, BOB), BOB, "x", CAPS, spares=census(ALICE, BOB), more=0) == Cap(
        "max_workflows_per_tenant", tenant=("i", "acme")
    )
    three = census(*[EVE] * 3)
    assert cap_reached(three, ANONYMOUS, "x", CAPS, spares=three, more=0) == Cap("max_workflows")


def test_who_went_is_not_counted() -> None:
    made = census(ALICE, BOB)
    made.remove(ALICE, "x")
    assert (made.total, dict(made.users), dict(made.tenants)) == (1, {BOB: 1}, {("i", "acme"): 1})


class House(dict[str, Guest]):
    """Guests by their names, and how often all of them were looked at."""

    def __init__(self, *guests: Guest) -> None:
        super().__init__({f"{number}": guest for number, guest in enumerate(guests)})
        self.looks = 0

    def items(self) -> ItemsView[str, Guest]:
        self.looks += 1
        return super().items()

    def leave(self, guest: Guest) -> float | None:
        """This one goes; since when it was idle."""
        del self[next(name for name, one in super().items() if one is guest)]
        return guest.idle_since


ALL = Cap("max_workflows")


def refused(giving_way: GivingWay, house: House, now: float, cap: Cap = ALL) -> Overloaded:
    """Why nobody gives way."""
    with pytest.raises(Overloaded) as error:
        giving_way.next(cap, house, now)
    return error.value


def test_g10_the_least_recently_used_that_is_idle_gives_way() -> None:
    now = 1000.0
    old, older = Guest(ALICE, now - EVICTABLE_AFTER - 1), Guest(BOB, now - EVICTABLE_AFTER - 2)
    oldest_of_all = Guest(EVE, 1.0)
    house = House(old, older, oldest_of_all, Guest(ALICE, None), Guest(ALICE, now - 1))
    giving_way = GivingWay()
    assert giving_way.next(ALL, house, now) is oldest_of_all
    assert giving_way.next(Cap("max_workflows_per_tenant", tenant=("i", "acme")), house, now) is older
    assert giving_way.next(Cap("max_workflows_per_user", principal=ALICE), house, now) is old


def test_g10_where_none_is_idle_long_enough_the_newcomer_is_refused() -> None:
    error = refused(GivingWay(), House(Guest(ALICE, None), Guest(ALICE, 950.0)), 1000.0)
    assert error.limit == "max_workflows"
    assert error.data == {"limit": "max_workflows"}


def test_g10_newcomers_that_are_refused_again_and_again_cost_one_look_until_somebody_may_give_way() -> None:
    house = House(Guest(ALICE, None), Guest(BOB, 950.0), Guest(EVE, 940.5))
    giving_way = GivingWay()
    for tenth in range(5):
        refused(giving_way, house, 1000.0 + tenth / 10)
    assert house.looks == 1
    assert giving_way.next(ALL, house, 1000.5) is house["2"]
    busy = House(Guest(ALICE, None))
    refused(giving_way, busy, 2000.0)
    busy["0"] = Guest(ALICE, 2000.0)
    refused(giving_way, busy, 2000.0 + EVICTABLE_AFTER - 0.1)
    assert busy.looks == 1
    assert giving_way.next(ALL, busy, 2000.0 + EVICTABLE_AFTER) is busy["0"]


@pytest.mark.parametrize(("since", "now"), [(65531.908, 65591.908), (996.1, 1056.1)])
def test_g10_who_is_idle_for_just_so_long_gives_way_however_the_clock_is_rounded(since: float, now: float) -> None:
    """At the same moment it was found to be idle for too short a time, and to be looked at again at once, for ever."""
    assert since > now - EVICTABLE_AFTER

    class Seen(House):
        def items(self) -> ItemsView[str, Guest]:
            assert self.looks < 3, "it is looked at without end"
            return super().items()

    house = Seen(Guest(ALICE, since))
    assert GivingWay().next(ALL, house, now) is house["0"]


def test_g10_those_that_give_way_one_after_the_other_are_found_by_few_looks_and_in_their_order() -> None:
    idle = [float(one) for one in random.Random(7).sample(range(500), FOUND_AT_ONCE * 3)]
    house, giving_way = House(*(Guest(ALICE, since) for since in idle)), GivingWay()
    gone = [house.leave(giving_way.next(ALL, house, 1000.0)) for _ in idle]
    assert gone == sorted(idle)
    assert house.looks == 3
    refused(giving_way, house, 1000.0)


def test_g10_who_was_in_use_since_or_has_gone_is_passed_over() -> None:
    house, giving_way = House(*(Guest(ALICE, float(number)) for number in range(5))), GivingWay()
    assert giving_way.next(ALL, house, 100.0) is house.pop("0")
    house["1"] = Guest(ALICE, None)
    house["2"] = Guest(ALICE, 99.0)
    del house["3"]
    assert giving_way.next(ALL, house, 100.0) is house.pop("4")
    assert house.looks == 1
    refused(giving_way, house, 100.0)


def test_g10_who_was_to_give_way_and_could_not_is_next_once_more() -> None:
    house, giving_way = House(*(Guest(ALICE, float(number)) for number in range(2))), GivingWay()
    for _ in range(2):
        assert giving_way.next(ALL, house, 100.0) is house["0"]
        giving_way.put_back(ALL, "0", 0.0)
    giving_way.put_back(Cap("max_workflows_per_user", ALICE), "0", 0.0)
    assert giving_way.next(ALL, house, 100.0) is house.pop("0")
    assert giving_way.next(ALL, house, 100.0) is house["1"]
    giving_way.put_back(ALL, "1", 1.0)
    house["1"] = Guest(ALICE, None)
    refused(giving_way, house, 100.0)
    giving_way.put_back(ALL, "1", None)
    refused(giving_way, house, 100.0)
    assert house.looks == 1


def test_g10_for_how_many_caps_it_is_remembered_is_bounded() -> None:
    house, giving_way = House(Guest(ALICE, None)), GivingWay()
    caps = [Cap("max_workflows_per_user", Principal("i", "t", f"{number}")) for number in range(MAX_LOOKS + 1)]
    for _ in range(2):
        for cap in reversed(caps):
            refused(giving_way, house, 0.0, cap)
    assert house.looks == 2 * len(caps), "each was forgotten for another"
    refused(giving_way, house, 0.0, caps[0])
    assert house.looks == 2 * len(caps)


@pytest.mark.parametrize(
    ("limit", "resident", "newcomer"),
    [("max_workflows_per_user", ALICE, ALICE), ("max_workflows_per_tenant", BOB, ALICE), ("max_workflows", EVE, ALICE)],
)
def test_g10_a_cap_of_a_servers_own_counts_what_is_on_it_and_no_other_counts_that(
    limit: str, resident: Principal, newcomer: Principal
) -> None:
    common = Pooling(**{limit: 2})
    caps = Caps(common, {"x": common, "y": Pooling(**{limit: 3}), "z": Pooling(**{limit: 1})})
    there = Census()
    for server, number in (("x", 1), ("y", 2), ("gone", 1)):
        for _ in range(number):
            there.add(resident, server)
    apart = frozenset("yz")
    full = cap_reached(there, newcomer, "x", caps)
    assert full is not None
    assert (full.limit, full.scope) == (limit, Scope(None, apart)), "of one that is gone, those of all hold"
    assert cap_reached(there, newcomer, "y", caps) is None
    assert cap_reached(there, newcomer, "y", caps, times=2, more=4) is None
    assert cap_reached(there, newcomer, "z", caps) is None
    there.add(resident, "y")
    own = cap_reached(there, newcomer, "y", caps)
    assert own is not None
    assert own.scope == Scope("y", apart)
    on = {server: Guest(resident, 0.0, server) for server in ("x", "y", "z", "gone")}
    assert [server for server, guest in on.items() if full.counts(guest)] == ["x", "gone"]
    assert [server for server, guest in on.items() if own.counts(guest)] == ["y"]
    there.remove(resident, "x")
    assert cap_reached(there, newcomer, "x", caps) is None


def test_other_caps_hold_from_when_they_are_told() -> None:
    caps = Caps(Pooling(), {"x": Pooling(max_workflows=1)})
    assert caps.of("x", "max_workflows") == (1, Scope("x", frozenset("x")))
    caps.replace(Pooling(max_workflows=1), {"x": Pooling(max_workflows=1)})
    assert caps.of("x", "max_workflows") == (1, Scope())
