"""What has changed between two measurements, beyond what their own rounds say is noise.

A metric has changed where the notches of the two medians do not meet: each median, give or take 1.58 times the
interquartile range of its rounds by the square root of their number (McGill, Tukey and Larsen, 1978), which is about
the 95 % interval of a median. Where a scenario holds a yardstick, its variants are compared by what they are of it,
round by round: a machine that was slower at one time was so for both.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bench.results import Row
from bench.scenarios import YARDSTICKS

Results = Mapping[str, dict[str, Any]]

LEAST_CHANGE = 0.02
"""A change by less is none that anybody would act on."""

MORE_IS_BETTER = frozenset({"calls_per_second", "operations_per_second", "parallel"})
IGNORED = frozenset({"offered_per_second"})


class Change(NamedTuple):
    """One metric of one variant, in two measurements."""

    scenario: str
    variant: str
    metric: str
    before: float
    after: float
    noise: float
    """The part by which the medians may differ by chance."""
    beside: str
    """The yardstick that both are told in, if any."""

    @property
    def by(self) -> float:
        """The part by which it has changed."""
        return self.after / self.before - 1

    @property
    def is_real(self) -> bool:
        """Whether it is more than noise."""
        return abs(self.by) > max(self.noise, LEAST_CHANGE)

    @property
    def is_better(self) -> bool:
        """Whether the change is for the better."""
        return (self.by > 0) == (self.metric in MORE_IS_BETTER)


def changes(before: Results, after: Results) -> Iterator[Change]:
    """Every metric that both measurements have rounds of."""
    for scenario in before.keys() & after.keys():
        rows = [{_name(row): row for row in result[scenario]["rows"]} for result in (before, after)]
        for variant in rows[0].keys() & rows[1].keys():
            mine = [table[variant].get("rounds", {}) for table in rows]
            for metric in sorted(mine[0].keys() & mine[1].keys() - IGNORED):
                yardstick = _yardstick(rows, variant, metric)
                values = [_values(table, variant, metric, yardstick) for table in rows]
                if all(len(some) > 1 for some in values) and statistics.median(values[0]):
                    yield _change(scenario, variant, metric, values, yardstick)


def _change(scenario: str, variant: str, metric: str, values: list[list[float]], yardstick: str) -> Change:
    before, after = (statistics.median(some) for some in values)
    noise = sum(notch(some) for some in values) / before
    return Change(scenario, variant, metric, before, after, noise, yardstick)


def notch(values: Sequence[float]) -> float:
    """By how much the median of these may be off."""
    low, _, high = statistics.quantiles(values, n=4, method="inclusive")
    return 1.58 * (high - low) / math.sqrt(len(values))


def _name(row: Row) -> str:
    return str(row.get("variant", ""))


def _yardstick(rows: list[dict[str, Row]], variant: str, metric: str) -> str:
    """The yardstick that both measurements have this metric of; empty for the yardstick itself."""
    for name in YARDSTICKS:
        if name == variant:
            return ""
        if all(metric in table.get(name, {}).get("rounds", {}) for table in rows):
            return name
    return ""


def _values(table: dict[str, Row], variant: str, metric: str, yardstick: str) -> list[float]:
    mine = table[variant]["rounds"][metric]
    if not yardstick:
        return list(mine)
    return [value / other for value, other in zip(mine, table[yardstick]["rounds"][metric], strict=False) if other]
