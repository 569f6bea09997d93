"""A million workflows, simulated: the directory's operations when workers die at once, and when all is served again.

Run: `python -m bench.scale [--workflows N] [--seed S]`. What an operation costs is measured
(`bench/results/redis_operations.json`), constants are the program's own. It prints a table and writes JSON to
`bench/results/`. What is simulated, and what is left out: `bench/scale_model.py`.
"""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import replace

from rich.console import Console
from rich.table import Table

from bench.results import RESULTS, call_seconds, operation_seconds, write_result
from bench.scale_model import SLOTS, WARM_UP_SECONDS, Cost, Costs, Scenario, Simulation

SHOWN_SECONDS = 10

SLOW = Scenario("20 die, nodes at 20,000/s", dying=20, operations=20_000)
SCENARIOS = (
    Scenario("1 of 200 dies", dying=1),
    Scenario("20 die", dying=20),
    SLOW,
    Scenario("20 die, nodes at 10,000/s", dying=20, operations=10_000),
    replace(SLOW, name="at 20,000/s; changes told to holders alone", told_to_all=False),
    replace(SLOW, name="at 20,000/s; workers looked up one by one", listed=False),
    replace(SLOW, name="at 20,000/s; heartbeats behind other operations", own_lane=False),
    replace(SLOW, name="at 20,000/s; the last two together", listed=False, own_lane=False),
)


def main() -> None:
    """Simulate, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workflows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-store", action="store_true", help="print only")
    given = parser.parse_args()
    costs = measured_costs()
    rows = [row(replace(scenario, workflows=given.workflows), costs, given.seed) for scenario in SCENARIOS]
    table = Table(title=f"{given.workflows:,} workflows")
    for column in rows[0]:
        if column != "operations_in_each_second":
            table.add_column(column.replace("_", " "), justify="left" if column == "scenario" else "right")
    for one in rows:
        table.add_row(*(str(value) for name, value in one.items() if name != "operations_in_each_second"))
    Console(width=220).print(table)
    if not given.no_store:
        about = f"{given.workflows:,} workflows, workers that die at once: a simulation"
        command = f"python -m bench.scale --workflows {given.workflows} --seed {given.seed}"
        write_result(RESULTS, "scale", about, command, rows)


def measured_costs() -> Costs:
    """What operations cost, as it was measured, in seconds."""
    names = {
        "get": "get",
        "worker": "worker",
        "workers": "workers, 200 of them",
        "beat": "beat",
        "replace": "replace",
        "read": "read, 10 events of 500 bytes",
        "draw_ids": "draw_ids",
        "send": "send, 500 bytes",
        "hear": "hear of a change",
    }
    costs = {name: Cost(*operation_seconds(of)) for name, of in names.items()}
    told, alone = operation_seconds("replace, 100 hear of it"), operation_seconds("replace")
    costs["deliver"] = Cost(max(0.0, told.redis - alone.redis) / 100, 0.0)
    costs["request"] = Cost(0.0, call_seconds())
    return costs


def row(scenario: Scenario, costs: Costs, seed: int) -> dict[str, object]:
    """The figures of one scenario."""
    run = Simulation(scenario, costs, seed).run()
    died = round(WARM_UP_SECONDS)
    per_second = run.per_second()
    return {
        "scenario": scenario.name,
        "nodes": scenario.nodes,
        "node_per_second": round(scenario.operations),
        "streams_broken": run.broken,
        "served_again": len(run.served),
        "steady_per_second": per_second[died - 1],
        "peak_per_second": SLOTS * max(run.performed),
        "takeover_p50_s": percentile(run.taken_over, 50),
        "takeover_p99_s": percentile(run.taken_over, 99),
        "all_served_s": round(max(run.served), 2) if len(run.served) == run.broken else None,
        "refused": run.refused,
        "taken_for_dead": run.lapsed,
        "taken_from_the_living": len(run.taken_over) - run.streams_of_each * scenario.dying,
        "slow_operations": run.slow,
        "changes_heard_by_each": run.changes if scenario.told_to_all else 0,
        "operations_in_each_second": per_second[died - 1 : died + SHOWN_SECONDS],
    }


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that so many percent do not exceed."""
    return round(statistics.quantiles(values, n=100, method="inclusive")[percent - 1], 2)


if __name__ == "__main__":
    main()
