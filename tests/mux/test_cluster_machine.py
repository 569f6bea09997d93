"""Workers that die, stall, drain and come in any order, and a directory that loses data, under a client of theirs.

It calls, leaves calls behind and comes back for their answers, listens, comes back, ends its session and begins anew.
Where its sessions share one of the server's, it has two: one goes on when the other ends.
"""

from typing import Any

import anyio
from harness.cluster_world import World
from harness.clustering import workers
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.limits import Reuse

CHOSEN = st.tuples(
    st.sampled_from(["call", "ask", "fetch", "kill", "stall", "wake", "drain", "cut", "come_back", "delete"]),
    st.integers(0, 3),
)
STEPS = st.one_of(
    CHOSEN, st.tuples(st.sampled_from(["tell", "read", "pass", "answer", "save", "go_back", "empty"]), st.just(0))
)
SHARED_STEPS = st.one_of(CHOSEN, st.tuples(st.sampled_from(["tell", "read", "pass", "answer"]), st.just(0)))


async def play(steps: list[tuple[str, int]], reuse: Reuse = "workflow") -> None:
    async with workers(reuse=reuse) as at:
        world = World(at)
        for _ in range(3):
            await world.start()
        await world.begin()
        for name, which in steps:
            step: Any = getattr(world, name) if name != "pass" else world.pass_
            await step(which if name != "pass" else LEASE_SECONDS)
        await world.end()
        await world.check()


PAUSED_WHILE_ANOTHER_TOOK_OVER = [
    *(("stall", 2), ("kill", 0), ("pass", 0), ("come_back", 0)),
    *(("wake", 1), ("ask", 1), ("kill", 1), ("pass", 0), ("fetch", 0)),
]
ENDED_WHILE_PAUSED = [("ask", 1), ("stall", 0), ("delete", 1), ("wake", 0), ("ask", 0), ("drain", 0), ("fetch", 1)]
LOST_WHILE_ANSWERS_ARE_DUE = [("save", 0), ("ask", 1), ("kill", 0), ("pass", 0), ("come_back", 0), ("save", 0)]


@example(PAUSED_WHILE_ANOTHER_TOOK_OVER)
@example(ENDED_WHILE_PAUSED)
@example([*LOST_WHILE_ANSWERS_ARE_DUE, ("tell", 0), ("go_back", 0), ("drain", 0), ("fetch", 1)])
@example([*LOST_WHILE_ANSWERS_ARE_DUE, ("empty", 0), ("tell", 0), ("kill", 1), ("pass", 0), ("fetch", 1)])
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=14))
def test_g5_g6_g7_whatever_becomes_of_workers(steps: list[tuple[str, int]]) -> None:
    anyio.run(play, steps)


PARTED_WHILE_PAUSED = [("ask", 1), ("stall", 0), ("call", 2), ("wake", 0), ("fetch", 1)]


@example(PARTED_WHILE_PAUSED)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(SHARED_STEPS, max_size=14))
def test_g5_g6_g7_whatever_becomes_of_workers_of_sessions_that_share_one(steps: list[tuple[str, int]]) -> None:
    anyio.run(play, steps, "user")
