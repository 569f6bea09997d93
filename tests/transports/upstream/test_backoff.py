"""When what failed may be tried again."""

import pytest
from trunkline.transports.upstream.backoff import JITTER, Backoff


def full() -> float:
    """No jitter."""
    return 0.0


def test_waits_grow_from_none_to_half_a_minute() -> None:
    backoff, now, waits = Backoff(full), 0.0, []
    for _ in range(9):
        backoff.failed(now, now + 0.1)
        waits.append(round(backoff.wait(now + 0.1), 3))
        now += 0.1 + waits[-1]
        assert backoff.wait(now) < 1e-6, "it may be tried then"
    assert waits == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.failures == 9


def test_a_wait_passes() -> None:
    backoff = Backoff(full)
    assert backoff.wait(0.0) == 0
    for now in (1.0, 1.0):
        backoff.failed(now, now)
    assert backoff.wait(1.0) == 0.5
    assert backoff.wait(1.2) == pytest.approx(0.3)
    assert backoff.wait(1.5) == 0
    assert backoff.wait(99.0) == 0


def test_the_jitter_only_shortens() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(3):
        backoff.failed(5.0, 5.0)
    assert backoff.wait(5.0) == pytest.approx(1 - JITTER)


def test_one_that_goes_well_ends_the_row() -> None:
    backoff = Backoff(full)
    for _ in range(5):
        backoff.failed(1.0, 1.0)
    backoff.succeeded(1.0)
    assert backoff.failures == 0
    backoff.failed(2.0, 2.0)
    assert backoff.wait(2.0) == 0


def test_failures_of_one_cause_count_once() -> None:
    backoff = Backoff(full)
    for n in range(10):
        backoff.failed(0.0, 1.0 + n / 100)
    assert backoff.failures == 1
    backoff.succeeded(0.5)
    assert backoff.failures == 1, "it began before the failure, and does not show that one can begin now"
