"""Workers that die, stall, drain and come in any order, under a client that calls, listens and comes back."""

import itertools
import json
from collections import Counter
from typing import Any

import anyio
from harness.clustering import Member, Workers, until, workers
from harness.memory_wire import Exchange, message
from harness.muxing import Client, position, settle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import Elsewhere
from trunkline.mux.placement import CALLS, WHOLE, Concern
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.streams import Reader
from trunkline.mux.workflow import Workflow

HOPS = 4

STEPS = st.one_of(
    st.tuples(st.sampled_from(["call", "kill", "stall", "wake", "drain", "come_back"]), st.integers(0, 3)),
    st.tuples(st.sampled_from(["tell", "read", "pass"]), st.just(0)),
)


class World:
    """One client's workflow, and everything that it was told."""

    def __init__(self, at: Workers) -> None:
        self.at = at
        self.executed: Counter[int] = Counter()
        self.numbers = itertools.count()
        self.told: list[int] = []
        self.read_so_far: list[int] = []
        self.stalled: set[Member] = set()
        self.session_id = ""
        self.last_id = ""
        self.reader: Reader | None = None
        self.reads_at: Member | None = None
        at.server.on_request = self._execute

    def _execute(self, exchange: Exchange) -> None:
        number = exchange.json["params"]["arguments"]["n"]
        self.executed[number] += 1
        exchange.answer({"n": number})

    @property
    def living(self) -> list[Member]:
        return [member for member in self.at.all if not member.is_dead]

    def one(self, which: int) -> Member:
        return self.living[which % len(self.living)]

    async def begin(self) -> None:
        for _ in range(3):
            await self.at.start()
        client = await self.at.all[0].client()
        self.session_id = client.workflow.record.session_id
        self.reader, self.reads_at = client.workflow.streams.attach_standalone(), self.at.all[0]
        await self.tell(0)
        await self.read(0)
        assert self.last_id

    async def serve(self, first: Member, concern: Concern) -> Workflow | None:
        """Where a request is served; None where that worker is dead, and not yet known to be."""
        member = first
        for _ in range(HOPS):
            try:
                return (await member.find(self.session_id, concern)).workflow
            except Elsewhere as elsewhere:
                member = next(other for other in self.at.all if other.members.worker.id == elsewhere.worker)
            if member.is_dead:
                return None
        raise AssertionError("a request went round in circles")

    # What happens.

    async def call(self, which: int) -> None:
        workflow = await self.serve(self.one(which), CALLS)
        if workflow is None:
            return
        client, number = Client(workflow), next(self.numbers)
        answer = await client.answer(client.call({"arguments": {"n": number}}, id=b"%d" % number))
        assert answer.get("result") == {"n": number}

    async def kill(self, which: int) -> None:
        member = self.one(which)
        assert member.pool._cluster is not None
        journal = member.pool._cluster.journal
        await until(lambda: not journal._waiting)
        member.kill()
        self.leave(member)
        await self.at.start()

    async def stall(self, which: int) -> None:
        """This worker is paused for longer than its lease."""
        member = self.one(which)
        self.stalled.add(member)
        await self.pass_(LEASE_SECONDS)

    async def wake(self, which: int) -> None:
        self.stalled.discard(self.one(which))
        await self.one(which).beat()
        await settle()

    async def drain(self, which: int) -> None:
        member = self.one(which)
        if member in self.stalled:
            return
        await member.pool.drain(1)
        await settle()
        await self.read(0)
        member.is_dead = True
        self.leave(member)
        await self.at.start()

    def leave(self, member: Member) -> None:
        """The client's connection goes with its worker."""
        if self.reads_at is member and self.reader is not None:
            self.reader.close()
            self.reader = None

    async def tell(self, _: int) -> None:
        """The server tells something on the newest of its streams."""
        wires = [wire for wire in self.at.server.live if wire.is_listening]
        if wires:
            number = next(self.numbers)
            self.told.append(number)
            wires[-1].tell(message("notifications/message", {"data": number}))
        await settle()

    async def read(self, _: int) -> None:
        if self.reader is None:
            return
        due = self.reader.due()
        for event in due or ():
            self.last_id = self.reader.event_id(event)
            if event.message:
                self.read_so_far.append(json.loads(event.message)["params"]["data"])
        if due is None:
            self.reader.close()
            self.reader = None

    async def come_back(self, which: int) -> None:
        await self.read(0)
        if self.reader is not None:
            self.reader.close()
            self.reader = None
        member, found = self.one(which), position(self.last_id)
        for _ in range(HOPS):
            try:
                workflow = await member.pool.lookup.find_position(ANONYMOUS, "x", found)
                await workflow.opened
                self.reader, self.reads_at = workflow.streams.resume(found), member
                return
            except Elsewhere as elsewhere:
                member = next(other for other in self.at.all if other.members.worker.id == elsewhere.worker)
            if member.is_dead:
                return

    async def pass_(self, seconds: float) -> None:
        while seconds > 0:
            self.at.clock.advance(0.5)
            seconds -= 0.5
            for member in self.living:
                if member not in self.stalled:
                    await member.beat()
            await settle(5)

    async def end(self) -> None:
        """All that live beat again; then nothing may be missing."""
        for member in tuple(self.stalled):
            self.stalled.discard(member)
            if not member.is_dead:
                await member.beat()
        await self.pass_(LEASE_SECONDS)
        assert await self.serve(self.one(0), WHOLE) is not None
        await self.come_back(0)
        assert self.reader is not None
        await self.call(0)
        await self.call(1)
        await self.tell(0)
        await self.read(0)

    def check(self) -> None:
        sent = [exchange.id for exchange in self.at.server.of("tools/call")]
        assert len(set(sent)) == len(sent), "ids on one upstream session are given once"
        assert all(count == 1 for count in self.executed.values()), "each call is executed once"
        assert self.read_so_far == self.told, "nothing is lost, nothing is doubled"
        assert len(self.at.server.of("initialize")) == 1
        assert self.at.server.deleted == []
        holders = [member for member in self.living if member.pool.workflows]
        assert len(holders) == 1


async def play(steps: list[tuple[str, int]]) -> None:
    async with workers() as at:
        world = World(at)
        await world.begin()
        for name, which in steps:
            step: Any = getattr(world, name) if name != "pass" else world.pass_
            await step(which if name != "pass" else LEASE_SECONDS)
        await world.end()
        world.check()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=14))
def test_g5_g6_g7_whatever_becomes_of_workers(steps: list[tuple[str, int]]) -> None:
    anyio.run(play, steps)
