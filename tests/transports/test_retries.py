"""Tries are ever later, apart from each other, and bounded."""

import math
import random

import pytest
from trunkline.transports.retries import FIRST_SECONDS, LAST_SECONDS, Retries


def waits(retries: Retries, now: float = 0.0) -> list[float]:
    """Every wait that is allowed, each try failing at once."""
    found: list[float] = []
    while (wait := retries.next(now)) is not None:
        found.append(wait)
        now += wait
    return found


def test_each_wait_is_twice_the_one_before_up_to_the_last() -> None:
    found = waits(Retries(12, math.inf, lambda: 1.0))
    assert found[:3] == [FIRST_SECONDS, 2 * FIRST_SECONDS, 4 * FIRST_SECONDS]
    assert found[-1] == LAST_SECONDS
    assert len(found) == 12


def test_waits_are_drawn_from_their_upper_half() -> None:
    lowest = waits(Retries(12, math.inf, lambda: 0.0))
    highest = waits(Retries(12, math.inf, lambda: 1.0))
    assert [low * 2 for low in lowest] == highest
    draw = random.Random(7).random
    drawn = waits(Retries(12, math.inf, draw))
    assert all(low <= wait <= high for low, wait, high in zip(lowest, drawn, highest, strict=True))
    assert drawn not in (lowest, highest)


@pytest.mark.parametrize("attempts", [0, 1, 5])
def test_there_are_no_more_than_so_many(attempts: int) -> None:
    assert len(waits(Retries(attempts, math.inf))) == attempts


def test_none_begins_after_the_time_is_up() -> None:
    assert sum(waits(Retries(10**6, 60.0))) <= 60.0
    assert Retries(5, 0.0).next(100.0) is None


def test_the_time_runs_from_the_first_try() -> None:
    retries = Retries(5, 10.0, lambda: 1.0)
    assert retries.left(1000.0) == 10.0
    assert retries.next(1000.0) == FIRST_SECONDS
    assert retries.left(1004.0) == 6.0
    assert retries.left(1020.0) == 0.0
    assert retries.next(1011.0) is None


def test_what_the_server_asks_for_is_the_least() -> None:
    retries = Retries(5, 10.0, lambda: 1.0)
    assert retries.next(0.0, at_least=3.0) == 3.0
    assert retries.next(3.0, at_least=0.0) == 2 * FIRST_SECONDS
    assert retries.next(3.0, at_least=8.0) is None


def test_a_success_begins_anew() -> None:
    retries = Retries(2, 10.0, lambda: 1.0)
    assert len(waits(retries)) == 2
    assert retries.made == 2
    retries.succeeded()
    assert retries.made == 0
    assert retries.next(1000.0) == FIRST_SECONDS
    assert retries.left(1000.0) == 10.0


@pytest.mark.parametrize(("attempts", "seconds"), [(-1, 60.0), (10, -0.1)])
def test_what_is_negative_is_refused(attempts: int, seconds: float) -> None:
    with pytest.raises(ValueError, match="must not be negative"):
        Retries(attempts, seconds)
