"""One client of several workers, and what becomes of its sessions: the moves that `test_cluster_machine` combines."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere, SessionLost, UnknownSession
from trunkline.mux.event_log import Stream
from trunkline.mux.placement import CALLS, WHOLE, Concern
from trunkline.mux.principal import ANONYMOUS
from trunkline.mux.streams import Reader
from trunkline.mux.workflow import Workflow

from harness.changing import until
from harness.clustering import Member, Workers
from harness.memory_wire import Exchange, message
from harness.muxing import Client, position, settle

T = TypeVar("T")

HOPS = 4


@dataclass
class Talk:
    """One session of the client, and everything that it was told."""

    session_id: str
    upstream: str
    told: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=list)
    last_id: str = ""
    reader: Reader | None = None
    reads_at: Member | None = None
    has_ended: bool = False


@dataclass
class Asked:
    """A call whose client left before its answer, and comes back for it."""

    number: int
    talk: Talk
    at: Member
    event_id: str
    may_fail: bool
    may_vanish: bool = False
    """True once the logs were lost that another worker would need to tell of it."""
    outcome: dict[str, Any] | None = None


class World:
    """One client, and what becomes of its sessions."""

    def __init__(self, at: Workers) -> None:
        self.at = at
        self.executed: Counter[int] = Counter()
        self.numbers = itertools.count()
        self.stalled: set[Member] = set()
        self.have_stalled: set[Member] = set()
        self.talks: list[Talk] = []
        self.other: Talk | None = None
        """A session beside, with which all of them share one of the server's."""
        self.is_shared = at.settings["pooling"].reuse == "user"
        self.asked: list[Asked] = []
        self.open: list[Exchange] = []
        self.saved: Any = None
        at.server.on_request = self._execute

    @property
    def talk(self) -> Talk:
        return self.talks[-1]

    def _execute(self, exchange: Exchange) -> None:
        arguments = exchange.json["params"]["arguments"]
        self.executed[arguments["n"]] += 1
        if arguments.get("slow"):
            self.open.append(exchange)
        else:
            exchange.answer({"n": arguments["n"]})

    @property
    def living(self) -> list[Member]:
        return [member for member in self.at.all if not member.is_dead]

    def one(self, which: int) -> Member:
        return self.living[which % len(self.living)]

    async def begin(self, which: int = 0) -> None:
        talk, member, client = await self._begin(which)
        self.talks.append(talk)
        if self.is_shared and self.other is None:
            self.other, _, _ = await self._begin(which)
        talk.reader, talk.reads_at = client.workflow.streams.attach_standalone(), member
        await self.tell(0)
        await self.read(0)
        assert talk.last_id

    async def _begin(self, which: int) -> tuple[Talk, Member, Client]:
        member = self.one(which)
        while True:
            try:
                client = await member.client()
            except Elsewhere as elsewhere:
                member = self._named(elsewhere.worker)
                if member.is_dead:
                    await self.pass_(0.5)
                    member = self.one(which)
            else:
                record = client.workflow.record
                return Talk(record.session_id, record.upstream_session[1:]), member, client

    def _named(self, worker: str) -> Member:
        return next(member for member in self.at.all if member.members.worker.id == worker)

    def _talk_of(self, which: int) -> Talk:
        return self.other if self.other is not None and which % 2 else self.talk

    async def serve(self, first: Member, concern: Concern, talk: Talk | None = None) -> tuple[Member, Workflow] | None:
        """Where a request is served; None where that worker is dead and not yet known to be, or nobody can tell."""
        session_id = (talk or self.talk).session_id

        async def find(member: Member) -> Workflow:
            return (await member.find(session_id, concern)).workflow

        return await self._follow(first, find)

    async def _follow(self, first: Member, ask: Callable[[Member], Awaitable[T]]) -> tuple[Member, T] | None:
        """What a worker says, or the one that it names; None as `serve`."""
        member = first
        for _ in range(HOPS):
            try:
                return member, await ask(member)
            except Elsewhere as elsewhere:
                member = self._named(elsewhere.worker)
            except DirectoryUnavailable:
                return None
            if member.is_dead:
                return None
        raise AssertionError("a request went round in circles")

    # What happens.

    async def call(self, which: int) -> None:
        served = await self.serve(self.one(which), CALLS, self._talk_of(which))
        if served is None:
            return
        client, number = Client(served[1]), next(self.numbers)
        answer = await client.answer(client.call({"arguments": {"n": number}}, id=b"%d" % number))
        assert (answer["id"], answer.get("result")) == (number, {"n": number})

    async def ask(self, which: int) -> None:
        """A call that takes long: its answer is a stream, which the client leaves."""
        talk = self._talk_of(which)
        served = await self.serve(self.one(which // 2 if self.is_shared else which), CALLS, talk)
        if served is None:
            return
        member, workflow = served
        client, number = Client(workflow), next(self.numbers)
        exchange = client.call({"arguments": {"n": number, "slow": True}}, id=b"%d" % number)
        exchange.decide_for_stream()
        outcome = await exchange.ready
        assert isinstance(outcome, Stream)
        reader = workflow.streams.attach(outcome, 0)
        [primed] = reader.due() or []
        asked = Asked(number, talk, member, reader.event_id(primed), may_fail=member in self.have_stalled)
        asked.may_vanish = member in self.stalled  # who is paused serves nobody
        self.asked.append(asked)
        reader.close()
        client.leave()
        await settle()

    async def answer(self, _: int) -> None:
        for exchange in self.open:
            if not exchange.is_over:
                exchange.answer({"n": exchange.json["params"]["arguments"]["n"]})
        self.open.clear()
        await settle()

    async def fetch(self, which: int) -> None:
        for asked in self.asked:
            if asked.outcome is None and not asked.talk.has_ended:
                await self._fetch(asked, self.one(which))

    async def _fetch(self, asked: Asked, first: Member) -> None:
        found = await self._resume(first, asked.event_id)
        if found is None:
            return
        _, reader = found
        due = reader.due()
        for event in due or ():
            if event.message:
                asked.outcome = json.loads(event.message)
        if due is None or (asked.outcome is None and reader.due() is None):
            asked.outcome = asked.outcome or {}
        reader.close()

    async def kill(self, which: int) -> None:
        member = self.one(which)
        assert member.pool._cluster is not None
        journal = member.pool._cluster.journal
        await until(lambda: not journal._waiting)
        member.kill()
        self.leave(member)
        await self.start()

    async def stall(self, which: int) -> None:
        """This worker is paused for longer than its lease."""
        member = self.one(which)
        self.stalled.add(member)
        self.have_stalled.add(member)
        for asked in self.asked:
            asked.may_fail |= asked.at is member
        await self.pass_(LEASE_SECONDS)

    async def wake(self, which: int) -> None:
        self.stalled.discard(self.one(which))
        await self.one(which).beat()
        await settle()

    async def drain(self, which: int) -> None:
        """A worker is to end, and the calls in flight there are answered before it does."""
        member = self.one(which)
        if member not in self.stalled:
            draining = asyncio.create_task(member.pool.drain(5))
            await settle()
            await self.call_at_its_end(member)
            await self.answer(0)
            await draining
            await self._drained(member)

    async def cut(self, which: int) -> None:
        """A worker is to end, and waits for nothing."""
        member = self.one(which)
        if member not in self.stalled:
            await member.pool.drain(0)
            await self._drained(member)

    async def _drained(self, member: Member) -> None:
        await settle()
        await self.read(0)
        member.is_dead = True
        self.leave(member, may_fail=bool(self.open))
        await self.start()

    async def call_at_its_end(self, member: Member) -> None:
        """A call that comes to a worker which is to end: it runs, here or elsewhere, or it surely does not."""
        served = None
        with suppress(SessionLost):  # it was not begun
            served = await self.serve(member, CALLS)
        if served is None:
            return
        client, number = Client(served[1]), next(self.numbers)
        answer = await client.answer(client.call({"arguments": {"n": number}}, id=b"%d" % number))
        assert answer["id"] == number
        if "error" in answer:
            assert (answer["error"]["data"]["executed"], self.executed[number]) == ("no", 0)

    def leave(self, member: Member, *, may_fail: bool = True) -> None:
        """The client's connection goes with its worker, and so do the calls in flight there."""
        for asked in self.asked:
            asked.may_fail |= may_fail and asked.at is member
        if self.talk.reads_at is member and self.talk.reader is not None:
            self.talk.reader.close()
            self.talk.reader = None

    async def tell(self, _: int) -> None:
        """The server tells something on the newest of its streams; who is paused hears nothing."""
        deaf = [wire for member in self.stalled for wire in member.reach["x"].wires]
        if self.is_shared:  # it may have another one at each worker
            holders = [member for member in self.living if self.talk.session_id in member.pool._workflows]
            heard = [wire for member in holders for wire in member.reach["x"].wires]
        else:
            heard = [wire for wire in self.at.server.live if wire.id == self.talk.upstream]
        wires = [wire for wire in self.at.server.live if wire in heard and wire.is_listening and wire not in deaf]
        if wires:
            number = next(self.numbers)
            self.talk.told.append(number)
            method = "tools/list_changed" if self.is_shared else "message"  # which concerns all who share it
            wires[-1].tell(message(f"notifications/{method}", {"data": number}))
        await settle()

    async def read(self, _: int) -> None:
        talk = self.talk
        if talk.reader is None:
            return
        due = talk.reader.due()
        for event in due or ():
            talk.last_id = talk.reader.event_id(event)
            if event.message:
                talk.read.append(json.loads(event.message)["params"]["data"])
        if due is None:
            talk.reader.close()
            talk.reader = None

    async def come_back(self, which: int) -> None:
        await self.read(0)
        talk = self.talk
        if talk.reader is not None:
            talk.reader.close()
            talk.reader = None
        found = await self._resume(self.one(which), talk.last_id)
        if found is not None:
            talk.reads_at, talk.reader = found

    async def _resume(self, first: Member, event_id: str) -> tuple[Member, Reader] | None:
        found = position(event_id)

        async def resume(member: Member) -> Reader:
            workflow = await member.pool.lookup.find_position(ANONYMOUS, "x", found)
            await workflow.opened
            return workflow.streams.resume(found)

        return await self._follow(first, resume)

    async def delete(self, which: int) -> None:
        """The client ends its session, wherever it is held, and begins another one."""
        await self.read(0)
        served = await self.serve(self.one(which), WHOLE)
        if served is None:
            return
        member, workflow = served
        await member.pool.end(workflow, "deleted")
        await settle()
        talk = self.talk
        talk.has_ended = True
        if talk.reader is not None:
            talk.reader.close()
            talk.reader = None
        for other in self.living:
            try:
                await other.find(talk.session_id)
            except (UnknownSession, DirectoryUnavailable):
                continue
            raise AssertionError("a session goes on that its client has ended")
        self.saved = None
        await self.begin(which)

    # A directory that loses data.

    async def save(self, _: int) -> None:
        """What the directory has now is what it may go back to."""
        directory, session_id = self.at.directory, self.talk.session_id
        record = await directory.get(session_id)
        self.saved = record, directory._next_id.get(session_id), list(directory.logs.get(session_id, ()))

    async def go_back(self, _: int) -> None:
        """The directory has what it had before; who holds the session lives, with a lease where a take-over is lost."""
        directory, session_id = self.at.directory, self.talk.session_id
        stored = await directory.get(session_id)
        await self.read(0)
        if self.saved is None or stored is None or self.saved[0] is None or self.talk.read != self.talk.told:
            return
        record, next_id, log = self.saved
        is_same = record.worker == stored.worker
        if stored.worker not in self._ids_of(m for m in self.living if is_same or m not in self.stalled):
            return
        directory.go_back(record)
        if record.epoch < stored.epoch:  # else nobody knows of the loss, and ids of that moment may be drawn again
            directory._next_id[session_id] = next_id
        directory.logs[session_id] = log
        await self._hear_of_a_loss()

    async def empty(self, _: int) -> None:
        """The directory has nothing any more; who holds the session lives, and no other one thinks that it does."""
        directory, session_id = self.at.directory, self.talk.session_id
        stored = await directory.get(session_id)
        await self.read(0)
        holders = self._ids_of(member for member in self.living if session_id in member.pool._workflows)
        if stored is None or holders != {stored.worker} or self.talk.read != self.talk.told:
            return
        directory.forget(session_id)
        self.saved = None
        await self._hear_of_a_loss()

    def _ids_of(self, members: Iterable[Member]) -> set[str]:
        return {member.members.worker.id for member in members}

    async def _hear_of_a_loss(self) -> None:
        for asked in self.asked:
            asked.may_vanish = asked.may_fail = True
        self.at.directory._tell("")
        await settle(40)

    async def pass_(self, seconds: float) -> None:
        while seconds > 0:
            self.at.clock.advance(0.5)
            seconds -= 0.5
            for member in self.living:
                if member not in self.stalled:
                    await member.beat()
            await self._look()
            await settle(5)

    async def start(self) -> None:
        """One worker more, of which the others know."""
        await self.at.start()
        await self._look()

    async def _look(self) -> None:
        """Who lives is read now and then."""
        for member in self.living:
            if member not in self.stalled:
                with suppress(DirectoryUnavailable):
                    await member.members.numbers()

    async def end(self) -> None:
        """All that live beat again; then nothing may be missing."""
        for member in tuple(self.stalled):
            self.stalled.discard(member)
            if not member.is_dead:
                await member.beat()
        await self.pass_(LEASE_SECONDS)
        await self.answer(0)
        assert await self.serve(self.one(0), WHOLE) is not None
        await self.come_back(0)
        assert self.talk.reader is not None
        await self.call(0)
        await self.call(1)
        assert self.other is None or await self.serve(self.one(0), WHOLE, self.other) is not None
        await self.tell(0)
        await self.read(0)
        await self.fetch(0)

    async def check(self) -> None:
        sent = [(exchange.session.id, exchange.id) for exchange in self.at.server.of("tools/call")]
        assert len(set(sent)) == len(sent), "ids on one upstream session are given once"
        assert all(count == 1 for count in self.executed.values()), "each call is executed once"
        assert self.talk.read == self.talk.told, "nothing is lost, nothing is doubled"
        for asked in self.asked:
            self._check_outcome(asked)
        if not self.is_shared:
            assert len(self.at.server.of("initialize")) == len(self.talks)
            assert set(self.at.server.deleted) <= {talk.upstream for talk in self.talks if talk.has_ended}
        for talk in [*self.talks, *([self.other] if self.other is not None else [])]:
            holders = [member for member in self.living if talk.session_id in member.pool._workflows]
            assert len(holders) == (not talk.has_ended)
            assert (await self.at.directory.get(talk.session_id) is None) == talk.has_ended
            sessions = [member.pool._workflows[talk.session_id].upstream_session for member in holders]
            assert not {session[1:] for session in sessions} & set(self.at.server.deleted)

    def _check_outcome(self, asked: Asked) -> None:
        told = asked.outcome
        if asked.talk.has_ended and told is None:
            return
        assert told is not None
        assert told or asked.may_vanish, "its client waits for what nobody will tell"
        if told:
            assert told["id"] == asked.number
            if "result" in told:
                assert told["result"] == {"n": asked.number}
            else:
                assert asked.may_fail or asked.talk.has_ended, told
                assert told["error"]["code"] == -31002
