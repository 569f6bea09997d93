"""When a server that exits by itself may be started again."""

import pytest
from trunkline.transports.upstream.backoff import JITTER, SOUND_SECONDS, Backoff


def full() -> float:
    """No jitter."""
    return 0.0


def test_waits_grow_from_none_to_half_a_minute() -> None:
    backoff, now, waits = Backoff(full), 0.0, []
    for _ in range(9):
        backoff.ended(now, now + 0.1, expected=False)
        waits.append(round(backoff.wait(now + 0.1), 3))
        now += 0.1 + waits[-1]
        assert backoff.wait(now) < 1e-6, "it may be tried then"
    assert waits == [0, 0.5, 1, 2, 4, 8, 16, 30, 30]
    assert backoff.exits == 9


def test_a_wait_passes() -> None:
    backoff = Backoff(full)
    assert backoff.wait(0.0) == 0
    for now in (1.0, 1.0):
        backoff.ended(now, now, expected=False)
    assert backoff.wait(1.0) == 0.5
    assert backoff.wait(1.2) == pytest.approx(0.3)
    assert backoff.wait(1.5) == 0
    assert backoff.wait(99.0) == 0


def test_the_jitter_only_shortens() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(3):
        backoff.ended(5.0, 5.0, expected=False)
    assert backoff.wait(5.0) == pytest.approx(1 - JITTER)


def test_a_sound_session_resets_it_whether_it_was_ended_or_exited() -> None:
    for expected in (True, False):
        backoff = Backoff(full)
        for _ in range(5):
            backoff.ended(1.0, 1.0, expected=False)
        backoff.ended(10.0, 10.0 + SOUND_SECONDS + 1, expected=expected)
        assert backoff.exits == (0 if expected else 1)
        assert backoff.wait(10.0 + SOUND_SECONDS + 1) == 0


def test_a_session_that_was_ended_soon_says_nothing() -> None:
    backoff = Backoff(full)
    for _ in range(3):
        backoff.ended(1.0, 1.0, expected=False)
    backoff.ended(2.0, 3.0, expected=True)
    assert backoff.exits == 3


def test_exits_of_one_cause_count_once() -> None:
    backoff = Backoff(full)
    for n in range(10):
        backoff.ended(0.0, 1.0 + n / 100, expected=False)
    assert backoff.exits == 1
    backoff.ended(0.5, 100.0, expected=True)
    assert backoff.exits == 1, "it began before the exit, and does not show that one can begin now"
