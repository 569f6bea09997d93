"""Many users at tiny caps, who call, cancel and leave while sessions are lost: refusals are true, no place is lost."""

import asyncio
import json
import random
from collections import Counter
from typing import Any

import pytest
from harness.memory_wire import Exchange as Asked
from harness.muxing import ALICE, BOB, CAROL, PATIENCE, Bench, Client, bench, initialize, notification, settle
from trunkline.mux import calls
from trunkline.mux.burden import LARGE_BYTES
from trunkline.mux.errors import Overloaded, SessionLost, TrunklineError
from trunkline.mux.event_log import Stream
from trunkline.mux.exchange import Exchange
from trunkline.mux.pool import Arrival
from trunkline.mux.principal import Principal
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio

STEPS = 400
USERS = (ALICE, BOB, CAROL)
PER_WORKFLOW, PER_CHANNEL, CHANNELS, WORKFLOWS = 3, 2, 2, 3
LEVEL = "logging/setLevel"


class World:
    """Users with their workflows, and a server that answers when it likes."""

    def __init__(self, at: Bench, seed: int, reuse: str) -> None:
        self.at = at
        self.reuse = reuse
        self.dice = random.Random(seed)
        self.begins: list[asyncio.Task[Any]] = []
        self.clients: list[Client] = []
        self.owed: list[tuple[Client, Exchange]] = []
        self.refused: Counter[str] = Counter()

    async def step(self) -> None:
        """One thing that may happen at any time."""
        moves = {
            self.call: 40,
            self.answer: 30,
            self.begin: 10,
            self.cancel: 8,
            self.hold: 5,
            self.lose: 2,
            self.forget: 2,
            self.end: 2,
            self.give_up: 2,
            self.later: 6,
        }
        [move] = self.dice.choices(list(moves), list(moves.values()))
        move()
        await settle(self.dice.randrange(4))
        await self.welcome()

    def begin(self) -> None:
        self.begin_for(self.dice.choice(USERS))

    def begin_for(self, principal: Principal) -> None:
        self.begins.append(asyncio.create_task(self.at.pool.begin(principal, "x", initialize(), Arrival())))

    def give_up(self) -> None:
        if self.begins:
            self.dice.choice(self.begins).cancel()

    async def welcome(self) -> None:
        """Those who have begun become clients; each of them wants a level, which later sessions are told."""
        for task in [task for task in self.begins if task.done()]:
            self.begins.remove(task)
            error = None if task.cancelled() else task.exception()
            if isinstance(error, Overloaded):
                self.refused[error.limit] += 1
                assert error.limit == "max_workflows_per_user"
            assert error is None or isinstance(error, TrunklineError)
            if not task.cancelled() and error is None:
                self.clients.append(Client(task.result().workflow))
        self.clients = [client for client in self.clients if not client.workflow.ended]

    def places(self, client: Client) -> int:
        """Calls that take one where this client's would be taken: unanswered, or given up and not over."""
        mine = self.user(client) if self.reuse == "user" else {client.workflow}
        waiting = {n for n, (other, call) in enumerate(self.owed) if other.workflow in mine and not call.ready.done()}
        sent = [asked for asked in self.at.server.of("tools/call") if not asked.is_over]
        held = {number(asked) for asked in sent if self.owed[number(asked)][0].workflow in mine}
        return len(waiting | held)

    def user(self, client: Client) -> set[Workflow]:
        principal = client.workflow.principal
        return {other.workflow for other, _ in self.owed if other.workflow.principal == principal} | {client.workflow}

    def call(self) -> None:
        """Some calls at once."""
        if self.clients:
            client = self.dice.choice(self.clients)
            for _ in range(self.dice.choice((1, 1, 1, 4))):
                self.call_of(client)

    def call_of(self, client: Client) -> None:
        """A refusal is true: the places that it names are taken."""
        own = sum(not exchange.ready.done() for other, exchange in self.owed if other.workflow is client.workflow)
        taken = self.places(client)
        size = LARGE_BYTES + 1 if self.dice.random() < 0.1 else 1
        exchange = client.call({"arguments": {"n": len(self.owed), "pad": "x" * size}}, id=b"%d" % len(self.owed))
        self.owed.append((client, exchange))
        client.leave()
        limit = refusal(exchange)
        self.refused[limit] += 1
        if limit:
            least = {
                "max_inflight_per_workflow": (own, PER_WORKFLOW),
                "max_inflight_per_channel": (taken, PER_CHANNEL),
                "max_channels_per_user": (taken, PER_CHANNEL * CHANNELS),
            }
            counted, needed = least[limit]
            assert counted >= needed, limit

    def asked(self) -> list[Asked]:
        """What the server has not answered yet."""
        open_ones = [session for session in self.at.server.live if not session.is_forgotten]
        kinds = ("tools/call", LEVEL)
        return [one for session in open_ones for one in session.exchanges if one.kind in kinds and not one.is_over]

    def answer(self) -> None:
        if asked := self.asked():
            exchange = self.dice.choice(asked)
            if self.dice.random() < 0.2:
                exchange.cut()
            else:
                exchange.answer()

    def cancel(self) -> None:
        waiting = [(n, client) for n, (client, exchange) in enumerate(self.owed) if not exchange.ready.done()]
        if waiting:
            n, client = self.dice.choice(waiting)
            client.workflow.notify(notification("notifications/cancelled", {"requestId": n}), {})

    def hold(self) -> None:
        self.dice.choice((self.at.server.pause, self.at.server.let))("initialize")

    def lose(self) -> None:
        if self.at.server.live:
            session = self.dice.choice(self.at.server.live)
            session.receiver.lost(SessionLost("the server is gone", executed="unknown"))

    def forget(self) -> None:
        opened = [session for session in self.at.server.live if session.initialized]
        if opened:
            self.dice.choice(opened).forget()

    def end(self) -> None:
        if self.clients:
            self.begins.append(asyncio.create_task(self.ended(self.dice.choice(self.clients).workflow)))

    async def ended(self, workflow: Workflow) -> None:
        await self.at.pool.end(workflow, "deleted")
        raise SessionLost("this was no begin", executed="no")

    def later(self) -> None:
        self.at.clock.advance(self.dice.choice((0.1, 2, 20)))

    # In the end.

    async def calm(self) -> None:
        """The server answers all; nobody is left without an outcome, and what was given up is over."""
        self.at.server.let("initialize")
        for _ in range(5):  # what was given up has no answer, nor what a session was asked before it was forgotten
            self.answer_all()
            await self.at.later(40)
        self.answer_all()
        await settle()
        await self.welcome()
        assert self.begins == []
        assert all(exchange.ready.done() for _, exchange in self.owed)
        assert self.at.pool.inflight.total() == 0
        assert self.at.pool.burden.held == 0

    def answer_all(self) -> None:
        for asked in self.asked():
            if asked.kind == LEVEL or not self.owed[number(asked)][1].ready.done():
                asked.answer()

    async def fill(self, principal: Principal) -> None:
        """Each place of a user can be taken, and no other one."""
        there = sum(workflow.principal == principal for workflow in self.at.pool.workflows)
        for _ in range(WORKFLOWS - there):  # one after the other: the first one closes the circuit
            self.begin_for(principal)
            async with asyncio.timeout(PATIENCE):
                await asyncio.wait(self.begins)
            await self.welcome()
        mine = [Client(workflow) for workflow in self.at.pool.workflows if workflow.principal == principal]
        assert len(mine) == WORKFLOWS
        places = CHANNELS * PER_CHANNEL if self.reuse == "user" else PER_CHANNEL * len(mine)
        before = len(self.owed)
        for n in range(places):
            client = mine[n % len(mine)]
            self.owed.append((client, client.call({"arguments": {"n": len(self.owed)}}, id=b"%d" % len(self.owed))))
        calls_of = [exchange for _, exchange in self.owed[before:]]
        assert [refusal(exchange) for exchange in calls_of] == [""] * places
        beyond = mine[0].call()
        limit = "max_channels_per_user" if self.reuse == "user" else "max_inflight_per_channel"
        assert refusal(beyond) == limit
        for client in (*(client for client, _ in self.owed[before:]), mine[0]):
            client.leave()
        async with asyncio.timeout(PATIENCE):
            while not all(exchange.ready.done() for exchange in calls_of):
                self.answer_all()
                await settle()
        assert [refusal(exchange) for exchange in calls_of] == [""] * places


def number(asked: Asked) -> int:
    """Which of the calls it is."""
    return int(asked.json["params"]["arguments"]["n"])


def refusal(exchange: Exchange) -> str:
    """The limit by which a call was refused; empty where it was not."""
    outcome = exchange.ready.result() if exchange.ready.done() else []
    assert not isinstance(outcome, Stream)
    errors = [json.loads(text).get("error", {}) for text in outcome]
    return next((error["data"]["limit"] for error in errors if error.get("code") == Overloaded.code), "")


@pytest.mark.parametrize("reuse", ["user", "workflow"])
@pytest.mark.parametrize("seed", range(6))
async def test_g10_at_a_cap_refusals_are_true_and_no_place_is_lost(
    seed: int, reuse: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calls, "TOMBSTONE_SECONDS", 0)
    made = bench(
        reuse=reuse,
        stateless=True,
        request_timeout=100,
        idle_timeout=1e6,
        max_inflight_per_workflow=PER_WORKFLOW,
        max_inflight_per_channel=PER_CHANNEL,
        max_channels_per_user=CHANNELS,
        max_workflows_per_user=WORKFLOWS,
    )
    async with made as at:
        world = World(at, seed, reuse)
        for _ in range(STEPS):
            await world.step()
        await world.calm()
        full = "max_channels_per_user" if reuse == "user" else "max_inflight_per_channel"
        assert world.refused[full] > 0, "else the test would prove little"
        for principal in USERS:
            await world.fill(principal)
