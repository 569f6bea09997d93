"""What the pool decides for a newcomer, and how that grows with those who are there."""

from typing import NamedTuple

import pytest
from trunkline.mux.limits import Pooling
from trunkline.mux.policy import Cap, Caps, Census, GivingWay, cap_reached
from trunkline.mux.principal import Principal

from bench.micro.measuring import Measure

RESIDENTS = (10, 1_000, 10_000)


class Resident(NamedTuple):
    principal: Principal
    idle_since: float | None
    server: str = "x"


def user(n: int) -> Principal:
    return Principal("https://login.example", f"tenant-{n % 10}", f"user-{n % 200}")


def counted(residents: int) -> Census:
    census = Census()
    for n in range(residents):
        census.add(user(n), "x")
    return census


@pytest.mark.parametrize("residents", RESIDENTS)
def test_admit_a_workflow(measured: Measure, residents: int) -> None:
    census, newcomer, caps = counted(residents), user(0), Caps(Pooling(max_workflows=100_000))

    def once() -> Cap | None:
        cap = cap_reached(census, newcomer, "x", caps)
        census.add(newcomer, "x")
        census.remove(newcomer, "x")
        return cap

    assert measured(once) is None


@pytest.mark.parametrize("residents", RESIDENTS)
def test_find_who_gives_way(measured: Measure, residents: int) -> None:
    there = {str(n): Resident(user(n), float(n % 97) if n % 3 else None) for n in range(residents)}
    assert measured(lambda: GivingWay().next(Cap("max_workflows"), there, 1_000.0)).idle_since is not None
