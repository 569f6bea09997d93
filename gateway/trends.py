"""What each server did lately, in steps of two seconds: calls, how long they took, what the pool did for them. Pure."""

from collections import Counter, deque
from collections.abc import Collection, Mapping
from typing import Final

from ..mux.statistics import Statistics

STEP_SECONDS: Final = 2
STEPS: Final = 150
"""Steps that are remembered: five minutes."""

SLACK_SECONDS: Final = 0.5
"""How late a step may be accounted for."""

Sums = Mapping[str, float]
"""What one step adds up to, by fixed words; what is 0 is not there.

`calls` are those that ended, `errors` those that the server answered with one, `failed` those to which the gateway had
to say something itself. `hit`, `miss`, `spare` and `bypass` are the pool's. `seconds` is what the calls took in all,
and `le0`, `le1`, … how many of them took no longer than each of `statistics.BUCKETS`, and longer than the one before.
"""

_ANSWERED: Final = {"ok": (), "cancelled": (), "error": ("errors",)}
"""By outcome, what else is counted beside `calls`; every other outcome is the gateway's own word."""


class Trends:
    """The steps of one process. Whoever holds it calls `step` whenever one ends. Moments are of the wall clock."""

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._before = _totals(statistics)
        self._steps: deque[tuple[int, dict[str, Counter[str]]]] = deque(maxlen=STEPS)
        """No step is changed in place: who was told of it may keep it."""

    def step(self, at: float) -> None:
        """Account for what happened since the last time as that of the step which ends at about this moment."""
        number, totals = round(at / STEP_SECONDS) - 1, _totals(self._statistics)
        happened = {server: sums - self._before.get(server, Counter()) for server, sums in totals.items()}
        self._before = totals
        step = {server: sums for server, sums in happened.items() if sums}
        if self._steps and self._steps[-1][0] >= number:  # the clock was set back: nothing is lost, and the order stays
            number, last = self._steps.pop()
            step = {server: last.get(server, Counter()) + step.get(server, Counter()) for server in {**last, **step}}
        self._steps.append((number, step))

    def told(self, servers: Collection[str], at: float) -> dict[str, dict[str, Sums]]:
        """By server, what happened in each step of the last five minutes, by its number; idle ones are not there."""
        oldest = last_step(at) - STEPS
        return {
            server: {str(step): sums[server] for step, sums in self._steps if step > oldest and server in sums}
            for server in servers
        }


def last_step(at: float) -> int:
    """The number of the last step that has ended, and was accounted for, at this moment."""
    return int((at - SLACK_SECONDS) // STEP_SECONDS) - 1


def until_step(at: float) -> float:
    """Seconds until a step ends."""
    return STEP_SECONDS - at % STEP_SECONDS


def added(one: Mapping[str, Sums], other: Mapping[str, Sums]) -> dict[str, Sums]:
    """The steps of a server at two workers, as one. A page asks for tens of thousands of them at once."""
    total = dict(one)
    for step, sums in other.items():
        mine = total.get(step)
        if mine is None:
            total[step] = sums
        else:
            total[step] = added_up = dict(mine)
            for word, value in sums.items():
                added_up[word] = added_up.get(word, 0) + value
    return total


def _totals(statistics: Statistics) -> dict[str, Counter[str]]:
    totals: dict[str, Counter[str]] = {}
    for (name, *labels), count in statistics.counts.items():
        if name == "calls":
            sums = totals.setdefault(labels[0], Counter())
            for word in ("calls", *_ANSWERED.get(labels[2], ("failed",))):
                sums[word] += count
        elif name == "pool_requests":
            totals.setdefault(labels[0], Counter())[labels[1]] += count
    for (name, *labels), histogram in statistics.seconds.items():
        if name == "call_seconds":
            sums = totals.setdefault(labels[0], Counter())
            sums.update({f"le{index}": count for index, count in enumerate(histogram.counts) if count})
            sums.update({"seconds": histogram.total})
    return totals
