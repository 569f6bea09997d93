"""Several workers in one process: pools over one directory and servers in memory, on a clock that a test turns.

    async with started(2) as (at, a, b):
        client = await a.client()
        a.kill()                      # without a good-bye, as by SIGKILL
        await b.beat(after=LEASE_SECONDS)
        again = await b.find(client.workflow)

Nobody beats but by `beat`.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux import membership as membership_module
from trunkline.mux.directory import LEASE_SECONDS, Worker
from trunkline.mux.errors import DirectoryUnavailable, Elsewhere
from trunkline.mux.event_log import Stream
from trunkline.mux.exchange import Exchange
from trunkline.mux.limits import Pooling
from trunkline.mux.membership import Membership
from trunkline.mux.placement import CALLS, WHOLE, Concern
from trunkline.mux.pool import Pool
from trunkline.mux.ports import Headers, Receiver, Wire
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.mux.streams import Reader
from trunkline.mux.upstream import Upstream
from trunkline.mux.workflow import Workflow

from harness.changing import until
from harness.memory_wire import Exchange as ServersExchange
from harness.memory_wire import MemoryServer, Session, echo, message
from harness.muxing import PATIENCE, Client, Clock, begin, position, settle
from harness.shared_memory import SharedMemoryDirectory


class View:
    """The directory as one worker sees it: through a network that a test may cut."""

    def __init__(self, directory: SharedMemoryDirectory) -> None:
        self._directory = directory
        self.is_cut = False
        self.fails_at = 0
        """The so-manieth call fails, but for heartbeats and what tells who lives."""
        self.is_done = False
        """Whether that is done all the same, and its answer lost."""
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._directory, name)
        if name in ("watch", "mailbox"):
            return attribute

        async def call(*args: Any) -> Any:
            if self.is_cut:
                raise DirectoryUnavailable("a test has cut the network")
            is_counted = name not in ("beat", "workers", "retire", "enroll")
            self.calls += is_counted
            if is_counted and self.calls == self.fails_at:
                if self.is_done:
                    await attribute(*args)
                raise DirectoryUnavailable("a test lets this call fail")
            return await attribute(*args)

        return call


class Reach:
    """A server as one worker reaches it. Implements `AdoptingConnector`."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self.wires: list[Session] = []

    @asynccontextmanager
    async def connect(self, receiver: Receiver, headers: Headers, *, listen: bool) -> AsyncIterator[Wire]:
        """See `Connector.connect`."""
        async with self._server.connect(receiver, headers, listen=listen) as wire:
            assert isinstance(wire, Session)
            self.wires.append(wire)
            yield wire

    @asynccontextmanager
    async def adopt(
        self, receiver: Receiver, headers: Headers, session: str, revision: str, *, listen: bool
    ) -> AsyncIterator[Wire]:
        """See `AdoptingConnector.adopt`."""
        async with self._server.adopt(receiver, headers, session, revision, listen=listen) as wire:
            assert isinstance(wire, Session)
            self.wires.append(wire)
            yield wire


class Member:
    """One worker."""

    def __init__(self, at: "Workers", id: str) -> None:
        self._clock = at.clock
        self.view = View(at.directory)
        self.reach = {"x": Reach(at.server), "y": Reach(at.other)}
        upstreams = {name: Upstream(name, reach, **at.settings) for name, reach in self.reach.items()}
        self.members = Membership(self.view, Worker(id, "host"), on_lapse=self._lapse, clock=at.clock)
        whole = Pooling(resume_window=0.08)  # its short window only makes the sweep come often
        self.released: list[Upstream] = []
        """Settings that serve nobody any longer."""
        self.pool = Pool(
            upstreams,
            self.view,
            pooling=whole,
            clock=at.clock,
            release=self._release,
            members=self.members,
            shared=self.view,
        )
        self.is_dead = False

    def _lapse(self, since: float) -> None:
        self.pool.lapse(since)

    async def _release(self, upstream: Upstream) -> None:
        self.released.append(upstream)

    def reconfigure(self, **settings: Any) -> None:
        """The settings of all servers change, these among them."""
        changed = {
            name: replace(it, generation=it.generation + 1, **settings) for name, it in self.pool.upstreams.items()
        }
        self.pool.reconfigure(changed, self.pool.pooling)

    def __repr__(self) -> str:
        return f"Member({self.members.worker.id})"

    @property
    def number(self) -> int:
        """The number that the directory gave it."""
        return self.members.worker.number

    def kill(self) -> None:
        """End it without a good-bye: nothing that it does reaches anybody any longer."""
        self.is_dead = self.view.is_cut = True
        for reach in self.reach.values():
            for wire in reach.wires:
                wire.vanish()

    async def beat(self, *, after: float = 0.0) -> None:
        """Send one heartbeat, so many seconds from now."""
        self._clock.advance(after)
        await self.members.beat()

    async def client(self, principal: Principal = ANONYMOUS, server: str = "x", **options: Any) -> Client:
        """A client of a workflow that begins here, or that the options name."""
        return Client((await begin(self.pool, principal, server, **options)).workflow)

    async def find(self, session_id: str, concern: Concern = WHOLE, principal: Principal = ANONYMOUS) -> Client:
        """A client's wires on a workflow that is found here."""
        with anyio.fail_after(PATIENCE):
            workflow = await self.pool.lookup.find(principal, "x", session_id, concern)
            await asyncio.shield(workflow.opened)
        return Client(workflow)

    async def beside(self, session_id: str) -> Client:
        """The same for calls."""
        return await self.find(session_id, CALLS)


class Workers:
    """The workers of one test, and what they share."""

    def __init__(self, stack: AsyncExitStack, settings: dict[str, Any]) -> None:
        self.clock = Clock()
        self.directory = SharedMemoryDirectory(self.clock)
        self.server, self.other = MemoryServer(), MemoryServer()
        self.settings = settings
        self.all: list[Member] = []
        self._stack = stack

    async def start(self) -> Member:
        """One worker more."""
        member = Member(self, f"worker-{len(self.all) + 1}")
        await self._stack.enter_async_context(member.members.running())
        await self._stack.enter_async_context(member.pool.running())
        self.all.append(member)
        return member

    async def pass_time(self, seconds: float) -> None:
        """Let so many seconds pass, in steps in which all that live beat and look for what is due."""
        while seconds > 0:
            self.clock.advance(min(seconds, 0.5))
            seconds -= 0.5
            for member in self.all:
                if not member.is_dead:
                    await member.beat()
                    tuple(member.pool._sweep.look_after(self.clock()))
            await settle()

    async def lose(self, member: Member) -> None:
        """A worker is killed, and its lease ends."""
        member.kill()
        await self.pass_time(LEASE_SECONDS)

    async def drain(self, member: Member) -> None:
        """A worker drains."""
        await member.pool.drain(1)
        await settle()

    async def interrupt(self) -> None:
        """The directory's word of changes was interrupted."""
        self.directory._tell("")
        await settle()

    async def serve(self, session_id: str, first: Member, concern: Concern = WHOLE) -> tuple[Member, Workflow]:
        """Where a request is served that comes to this worker, as forwarding finds it."""
        member = first
        for _ in range(4):
            try:
                return member, (await member.find(session_id, concern)).workflow
            except Elsewhere as elsewhere:
                member = next(other for other in self.all if other.members.worker.id == elsewhere.worker)
        raise AssertionError("a request went round in circles")


QUESTION = message("sampling/createMessage", {"messages": [], "maxTokens": 1}, id="q1")
"""What a server asks a client."""


def notice(n: int) -> bytes:
    """What a server tells a client."""
    return message("notifications/message", {"data": n})


async def streamed(member: Member, client: Client, id: bytes = b"1") -> tuple[Exchange, Reader]:
    """A call whose answer is a stream, and who reads it."""
    exchange = client.call(id=id)
    exchange.decide_for_stream()
    outcome = await exchange.ready
    assert isinstance(outcome, Stream)
    return exchange, client.workflow.streams.attach(outcome, 0)


async def journal(member: Member) -> None:
    """Wait until what this worker wrote has arrived."""
    assert member.pool._cluster is not None
    await until(lambda: not member.pool._cluster.journal._waiting)


async def resume(at: Workers, first: Member, event_id: str, principal: Principal = ANONYMOUS) -> tuple[Member, Reader]:
    """Come back to an event, from the worker that is met first."""
    member = first
    for _ in range(4):
        try:
            workflow = await member.pool.lookup.find_position(principal, "x", position(event_id))
            await workflow.opened
            return member, workflow.streams.resume(position(event_id))
        except Elsewhere as elsewhere:
            member = next(other for other in at.all if other.members.worker.id == elsewhere.worker)
    raise AssertionError("a request went round in circles")


async def carried(member: Member, session_id: str, count: int) -> list[int]:
    """What a client is sent that comes back, with a count, to the wire which carries everything."""
    duplex = (await member.find(session_id)).workflow.duplexes.newest
    assert duplex is not None, "its client is refused"
    reader = duplex.attach_after(count)
    try:
        return [json.loads(event.message)["params"]["data"] for event in reader.due() or ()]
    finally:
        duplex.detach(reader)


@asynccontextmanager
async def workers(*, movable: bool = True, stateless: bool = False, **pooling: Any) -> AsyncIterator[Workers]:
    """A bench for one test. Whoever is not killed leaves in order."""
    make_line = PerRequestLine if pooling.get("reuse") == "none" else None
    beat, membership_module.BEAT_SECONDS = membership_module.BEAT_SECONDS, 3600.0  # type: ignore[misc]
    try:
        async with AsyncExitStack() as outer, AsyncExitStack() as stack:
            at = Workers(stack, {"pooling": Pooling(**pooling), "stateless": stateless, "make_line": make_line})
            at.server.is_movable = at.other.is_movable = movable
            await outer.enter_async_context(at.server.running())
            await outer.enter_async_context(at.other.running())
            yield at
    finally:
        membership_module.BEAT_SECONDS = beat  # type: ignore[misc]


@asynccontextmanager
async def started(
    count: int, *, on_request: Callable[[ServersExchange], None] | None = None, **settings: Any
) -> AsyncIterator[tuple[Workers, *tuple[Member, ...]]]:
    """A bench with so many workers."""
    async with workers(**settings) as at:
        at.server.on_request = on_request
        for _ in range(count):
            await at.start()
        yield at, *at.all


@asynccontextmanager
async def two(**settings: Any) -> AsyncIterator[tuple[Workers, Member, Member, str]]:
    """A bench with two workers, and the session id of a workflow that the first one holds."""
    async with started(2, on_request=echo, **settings) as (at, a, b):
        yield at, a, b, (await a.client()).workflow.record.session_id


@asynccontextmanager
async def orphaned(
    principal: Principal = ANONYMOUS, **settings: Any
) -> AsyncIterator[tuple[Workers, Member, Member, str]]:
    """A bench with two workers that live, and the session id of a workflow whose worker is dead."""
    async with started(3, on_request=echo, **settings) as (at, a, b, c):
        session_id = (await a.client(principal)).workflow.record.session_id
        await at.lose(a)
        yield at, b, c, session_id
