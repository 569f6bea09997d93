"""What each server did lately, step by step."""

import sys
from types import FrameType

import pytest
from trunkline.gateway.trends import STEP_SECONDS, STEPS, Trends, added, last_step, until_step
from trunkline.mux.statistics import BUCKETS, Statistics


def call(statistics: Statistics, outcome: str = "ok", seconds: float = 0.002, server: str = "x") -> None:
    statistics.count("calls", server, "tools/call", outcome)
    statistics.count("pool_requests", server, "hit")
    statistics.observe("call_seconds", seconds, server)


def test_each_step_has_what_happened_in_it() -> None:
    statistics = Statistics()
    call(statistics)
    trends = Trends(statistics)
    call(statistics)
    call(statistics, "error", seconds=400.0)
    trends.step(1002.01)
    trends.step(1004.02)
    call(statistics, "timed_out", seconds=0.001, server="y")
    call(statistics, "cancelled")
    statistics.count("refused", "host")
    statistics.observe("directory_seconds", 1.0, "get")
    trends.step(1005.99)
    assert trends.told(["x", "y", "z"], 1006.6) == {
        "x": {
            "500": {"calls": 2, "errors": 1, "hit": 2, "seconds": 400.002, "le1": 1, f"le{len(BUCKETS)}": 1},
            "502": {"calls": 1, "hit": 1, "seconds": pytest.approx(0.002), "le1": 1},
        },
        "y": {"502": {"calls": 1, "failed": 1, "hit": 1, "seconds": 0.001, "le0": 1}},
        "z": {},
    }


def test_a_step_is_forgotten_after_five_minutes_and_never_are_there_more() -> None:
    statistics = Statistics()
    trends = Trends(statistics)
    for number in range(1, STEPS + 10):
        call(statistics)
        trends.step(number * STEP_SECONDS)
    now = (STEPS + 9) * STEP_SECONDS + 0.6
    assert list(map(int, trends.told(["x"], now)["x"])) == list(range(9, STEPS + 9))
    assert list(map(int, trends.told(["x"], now + 60)["x"])) == list(range(39, STEPS + 9))
    assert trends.told(["x"], now + 1000) == {"x": {}}


def test_where_the_clock_is_set_back_nothing_is_lost() -> None:
    statistics = Statistics()
    trends = Trends(statistics)
    for at in (1000.0, 500.0, 1000.0):
        call(statistics)
        trends.step(at)
    assert trends.told(["x"], 1000.6)["x"]["499"]["calls"] == 3


def test_a_step_that_has_just_ended_is_not_told_as_the_last() -> None:
    assert [last_step(at) for at in (1000.0, 1000.4, 1000.5, 1002.4, 1002.5)] == [498, 498, 499, 499, 500]
    assert [until_step(at) for at in (1000.0, 1000.5, 1001.5)] == [2.0, 1.5, 0.5]


def test_no_function_is_called_for_each_step_that_is_added() -> None:
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event == "call"

    many = {str(step): {"calls": 1, "hit": 1, "seconds": 0.5} for step in range(STEPS)}
    sys.setprofile(count)
    try:
        total = added(many, many)
    finally:
        sys.setprofile(None)
    assert calls < STEPS
    assert total == {str(step): {"calls": 2, "hit": 2, "seconds": 1.0} for step in range(STEPS)}
    assert many["0"] == {"calls": 1, "hit": 1, "seconds": 0.5}


def test_steps_of_two_workers_are_added() -> None:
    one, other = {"1": {"calls": 1, "le0": 1}, "2": {"calls": 2}}, {"2": {"calls": 3, "failed": 1}, "3": {"calls": 4}}
    assert added(one, other) == {
        "1": {"calls": 1, "le0": 1},
        "2": {"calls": 5, "failed": 1},
        "3": {"calls": 4},
    }
