"""Many clients that come, call, cancel, leave and return while sessions are lost: no answer strays, nothing is left."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest
from harness.muxing import ALICE, BOB, CAROL, PATIENCE, Bench, Client, begin, bench, notification, settle
from trunkline.mux.errors import SessionLost, TrunklineError
from trunkline.mux.event_log import Stream
from trunkline.mux.exchange import Exchange

pytestmark = pytest.mark.anyio

STEPS = 400
IDS = (b"1", b'"1"', b"0", b"-1", b"%d" % 2**60)


class Crowd:
    """Clients, and what they are owed."""

    def __init__(self, at: Bench, seed: int) -> None:
        self.at = at
        self.dice = random.Random(seed)
        self.begins: list[asyncio.Task[Any]] = []
        self.clients: list[Client] = []
        self.owed: list[tuple[Client, Exchange, bytes, int]] = []

    def step(self) -> None:
        """One thing that may happen at any time."""
        often = (self.call, self.answer)
        at_times = (self.begin, self.begin, self.begin, self.cancel)
        rarely = (self.lose, self.forget, self.end, self.give_up, self.later)
        [moves] = self.dice.choices((often, at_times, rarely), (80, 16, 4))
        self.dice.choice(moves)()

    def begin(self) -> None:
        principal, key = self.dice.choice((ALICE, BOB, CAROL)), self.dice.choice(("a", "b", None))
        self.begins.append(asyncio.create_task(begin(self.at.pool, principal, key=key)))

    def give_up(self) -> None:
        if self.begins:
            self.dice.choice(self.begins).cancel()

    def welcome(self) -> None:
        """Those who have begun become clients."""
        for task in [task for task in self.begins if task.done()]:
            self.begins.remove(task)
            if not task.cancelled() and task.exception() is None:
                self.clients.append(Client(task.result().workflow))
            elif not task.cancelled():
                assert isinstance(task.exception(), TrunklineError), task.exception()
        if self.dice.random() < 0.2:
            self.clients = [client for client in self.clients if not client.workflow.ended]

    def call(self) -> None:
        if self.clients:
            client, spelled = self.dice.choice(self.clients), self.dice.choice(IDS)
            n = len(self.owed)
            self.owed.append((client, client.call({"arguments": {"n": n}}, id=spelled), spelled, n))
            client.leave()

    def answer(self) -> None:
        waiting = [exchange for exchange in self.at.server.of("tools/call") if not exchange.is_over]
        if waiting:
            exchange = self.dice.choice(waiting)
            if self.dice.random() < 0.2:
                exchange.cut()
            else:
                exchange.answer({"for": exchange.json["params"]["arguments"]["n"]})

    def cancel(self) -> None:
        if self.owed:
            client, _, spelled, _ = self.dice.choice(self.owed)
            client.workflow.notify(notification("notifications/cancelled", {"requestId": json.loads(spelled)}), {})

    def lose(self) -> None:
        if self.at.server.live:
            session = self.dice.choice(self.at.server.live)
            session.receiver.lost(SessionLost("the server is gone", executed="unknown"))

    def forget(self) -> None:
        if self.at.server.live:
            self.dice.choice(self.at.server.live).forget()

    def end(self) -> None:
        if self.at.pool.workflows:
            workflow = self.dice.choice(self.at.pool.workflows)
            self.begins.append(asyncio.create_task(self.ended(workflow)))

    async def ended(self, workflow: Any) -> None:
        await self.at.pool.end(workflow, "deleted")
        raise SessionLost("this was no begin", executed="no")

    def later(self) -> None:
        self.at.clock.advance(self.dice.choice((0.1, 6, 40)))


@pytest.mark.parametrize("stateless", [False, True])
@pytest.mark.parametrize("seed", range(6))
async def test_g1_g6_every_call_gets_one_outcome_and_its_own_and_runs_at_most_once(seed: int, stateless: bool) -> None:
    async with bench(stateless=stateless, max_workflows=5, request_timeout=100, idle_timeout=90) as at:
        crowd = Crowd(at, seed)
        for _ in range(STEPS):
            crowd.step()
            await settle(crowd.dice.randrange(3))
            crowd.welcome()
        await asyncio.wait(crowd.begins, timeout=PATIENCE) if crowd.begins else None
        crowd.welcome()
        assert crowd.begins == []
        assert await at.pool.drain(0) in (True, False)

        outcomes: Counter[str] = Counter()
        for _, exchange, spelled, n in crowd.owed:
            outcome = await asyncio.wait_for(exchange.ready, PATIENCE)
            assert not isinstance(outcome, Stream)
            [answer] = (json.loads(text) for text in outcome)
            assert answer["id"] == json.loads(spelled)
            outcomes["result" if "result" in answer else str(answer["error"]["code"])] += 1
            assert answer.get("result", {"for": n}) == {"for": n}
        assert outcomes["result"] > 20 < outcomes["-31002"], "else the test would prove little"
        ran = Counter(exchange.json["params"]["arguments"]["n"] for exchange in at.server.of("tools/call"))
        assert set(ran.values()) == {1}
        assert at.pool.statistics.total("calls", "x") == len(crowd.owed)
    opened = at.counts["pool_requests", "x", "miss"]
    assert opened
    assert at.pool.statistics.total("channels_closed", "x") >= len(at.server.sessions)
