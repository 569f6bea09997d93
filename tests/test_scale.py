"""The simulation of many workflows: what it must do whatever operations cost, and that its figures follow from it."""

from dataclasses import replace

import pytest
from trunkline.mux.membership import BEAT_SECONDS

from bench import scale, scale_figures
from bench.results import result
from bench.scale_model import (
    LEASE_SECONDS,
    PATIENCE_SECONDS,
    RECONNECT_SECONDS,
    Cost,
    Costs,
    Scenario,
    Simulation,
)

pytestmark = pytest.mark.checkout

NAMES = ("get", "worker", "workers", "beat", "replace", "read", "draw_ids", "send", "hear", "deliver", "request")
COSTS: Costs = {name: Cost(20e-6, 50e-6) for name in NAMES}
FREE: Costs = {name: Cost(20e-6, 0.0) for name in NAMES} | {"deliver": Cost(0.0, 0.0)}
SMALL = Scenario("small", dying=2, workflows=4000, workers=10, nodes=4)


def run(scenario: Scenario, costs: Costs = COSTS, seed: int = 1) -> Simulation:
    return Simulation(scenario, costs, seed).run()


def test_workers_that_live_send_heartbeats_and_read_who_lives() -> None:
    quiet = run(replace(SMALL, dying=0))
    assert quiet.per_second()[2] == pytest.approx(2 * SMALL.workers / BEAT_SECONDS, abs=2)
    assert (quiet.broken, quiet.lapsed, quiet.changes) == (0, 0, 0)


@pytest.mark.parametrize("nodes", [1, 4])
@pytest.mark.parametrize("listed", [False, True])
def test_all_streams_are_served_again_and_no_workflow_is_taken_over_before_its_lease_is_over(
    nodes: int, *, listed: bool
) -> None:
    after = run(replace(SMALL, nodes=nodes, listed=listed))
    held = 2 * 4000 * 0.3 / 10
    passing = 8 * round(4000 * 0.3 / 10 * 2 / 10)
    assert len(after.served) == after.broken == held + passing
    assert len(after.taken_over) == after.changes == held
    assert min(after.taken_over) >= max(RECONNECT_SECONDS, LEASE_SECONDS - BEAT_SECONDS)
    assert max(after.taken_over) < PATIENCE_SECONDS
    assert (after.lapsed, after.refused) == (0, 0)


def test_one_seed_has_one_outcome() -> None:
    first, second, other = run(SMALL), run(SMALL), run(SMALL, seed=2)
    assert first.served == second.served
    assert first.served != other.served


def test_a_slower_directory_serves_later_and_refuses_more() -> None:
    behind = replace(SMALL, listed=False, own_lane=False)
    fast, slow = run(behind, FREE), run(replace(behind, operations=150), FREE)
    assert max(slow.served) > max(fast.served)
    assert slow.lapsed > fast.lapsed == 0
    assert slow.slow > fast.slow == 0


def test_changes_that_everybody_hears_cost_every_worker_time() -> None:
    costs = COSTS | {"hear": Cost(0.0, 0.01)}
    told, alone = run(SMALL, costs), run(replace(SMALL, told_to_all=False), costs)
    assert max(told.taken_over) > max(alone.taken_over) + 1


def test_a_heartbeat_in_its_own_lane_does_not_wait_for_other_operations() -> None:
    slow = replace(SMALL, workflows=40_000, operations=1000, nodes=4, listed=False)
    assert run(replace(slow, own_lane=False), FREE).lapsed > run(slow, FREE).lapsed


def test_what_is_stored_is_what_the_scenarios_are() -> None:
    assert [row["scenario"] for row in result("scale")["rows"]] == [scenario.name for scenario in scale.SCENARIOS]


def test_the_plan_is_arithmetic_on_what_was_measured() -> None:
    rates = {what: rate for what, _, rate, _ in scale_figures.directory_load()}
    assert rates["heartbeats"] == scale_figures.WORKERS / BEAT_SECONDS
    assert rates["records read"] == pytest.approx(1_000_000 / 60)
    assert rates["who lives"] == rates["heartbeats"]
    assert rates["touches"] < 2 * rates["records read"]


def test_what_the_page_says_of_the_deaths_is_what_was_simulated() -> None:
    rows = {row["scenario"]: row for row in result("scale")["rows"]}
    one, slow = rows["1 of 200 dies"], rows["20 die, nodes at 20,000/s"]
    before = rows["at 20,000/s; the last two together"]
    assert all(row["served_again"] == row["streams_broken"] for row in rows.values())
    assert one["taken_for_dead"] == one["refused"] == 0
    assert one["all_served_s"] < PATIENCE_SECONDS
    assert rows["20 die"]["refused"] == rows["20 die"]["taken_for_dead"] == 0
    assert rows["20 die"]["all_served_s"] < 3.5
    assert slow["taken_from_the_living"] == 0
    assert before["taken_from_the_living"] > 0
    assert slow["all_served_s"] < before["all_served_s"] / 1.3
