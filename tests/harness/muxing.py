"""The multiplexer on a test's bench: a clock that a test turns, a directory that it can stop, a client without HTTP."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import anyio
import msgspec
from trunkline.mux.directory import Claimed
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.envelope import Envelope, parse
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.event_log import Position, Stream
from trunkline.mux.exchange import Exchange
from trunkline.mux.limits import MAX_BODY_BYTES, EventLogLimits, Pooling
from trunkline.mux.pool import Arrival, Begun, Pool
from trunkline.mux.ports import NONE, Headers, PoolResult
from trunkline.mux.principal import ANONYMOUS, Principal
from trunkline.mux.record import WorkflowRecord
from trunkline.mux.streams import Reader
from trunkline.mux.upstream import Upstream
from trunkline.mux.workflow import Workflow

from harness.changing import Changing
from harness.memory_wire import Exchange as ServersExchange
from harness.memory_wire import MemoryServer

PATIENCE: Final = 10.0
"""Seconds after which waiting fails the test."""

ALICE: Final = Principal("issuer", "acme", "alice")
BOB: Final = Principal("issuer", "acme", "bob")
CAROL: Final = Principal("issuer", "other", "carol")

T = TypeVar("T")


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now
        self._read = anyio.Event()

    def __call__(self) -> float:
        self._read.set()
        self._read = anyio.Event()
        return self.now

    async def read(self) -> None:
        """Wait until somebody looks at it, and has done what is to be done by then without waiting."""
        with anyio.fail_after(PATIENCE):
            await self._read.wait()

    def advance(self, seconds: float) -> None:
        """Let so many seconds pass."""
        self.now += seconds


class _Gate:
    """Where the calls of one operation wait."""

    def __init__(self, *, before: bool, once: bool) -> None:
        self.before = before
        self.once = once
        self.used = False
        self.opened = anyio.Event()


class SlowDirectory(Changing, MemoryDirectory):
    """A directory behind a network: what was paused is done at once, and answered when the test lets it.

    With `before`, an operation waits before it is done instead; with `once`, only its next call waits.
    """

    def __init__(self) -> None:
        Changing.__init__(self)
        MemoryDirectory.__init__(self)
        self.calls: Counter[str] = Counter()
        self.failing: dict[str, Exception] = {}
        """Operations that raise."""
        self.fails_at = 0
        """The so-manieth call of all does."""
        self._gates: dict[str, list[_Gate]] = {}

    @property
    def records(self) -> list[WorkflowRecord]:
        """All that is stored."""
        return list(self._records.values())

    def pause(self, op: str, *, before: bool = False, once: bool = False) -> None:
        """Let an operation wait from now on, until `let`."""
        self._gates.setdefault(op, []).append(_Gate(before=before, once=once))

    def let(self, op: str) -> None:
        """Let all calls of an operation go on."""
        for gate in self._gates.pop(op, []):
            gate.opened.set()

    async def lose(self, session_id: str) -> None:
        """Remove a record, unasked."""
        await super().remove(self._records[session_id])

    async def reached(self, op: str, times: int = 1) -> None:
        """Wait until an operation was called so often."""
        await self.until(lambda: self.calls[op] >= times)

    async def claim(self, record: WorkflowRecord) -> Claimed:
        return await self._do("claim", lambda: super(SlowDirectory, self).claim(record))

    async def get(self, session_id: str) -> WorkflowRecord | None:
        return await self._do("get", lambda: super(SlowDirectory, self).get(session_id))

    async def find(self, principal: Principal, server: str, key: str) -> WorkflowRecord | None:
        return await self._do("find", lambda: super(SlowDirectory, self).find(principal, server, key))

    async def replace(self, record: WorkflowRecord) -> WorkflowRecord | None:
        return await self._do("replace", lambda: super(SlowDirectory, self).replace(record))

    async def remove(self, record: WorkflowRecord) -> bool:
        return await self._do("remove", lambda: super(SlowDirectory, self).remove(record))

    async def draw_ids(self, session_id: str, above: int = 0) -> range:
        return await self._do("draw_ids", lambda: super(SlowDirectory, self).draw_ids(session_id, above))

    async def _do(self, op: str, work: Callable[[], Awaitable[T]]) -> T:
        self.calls[op] += 1
        self.happened()
        if op in self.failing:
            raise self.failing[op]
        if self.calls.total() == self.fails_at:
            raise DirectoryUnavailable(f"a test lets call {self.fails_at} fail")
        gate = self._gate(op)
        if gate is not None and gate.before:
            await gate.opened.wait()
        done = await work()
        if gate is not None:
            await gate.opened.wait()
        return done

    def _gate(self, op: str) -> _Gate | None:
        for gate in self._gates.get(op, []):
            if not gate.once or not gate.used:
                gate.used = True
                return gate
        return None


def request(method: str = "tools/call", params: Any = None, *, id: bytes = b"1") -> Envelope:
    """A client's request, with an id of any spelling."""
    text = b'{"jsonrpc":"2.0","id":%s,"method":%s,"params":%s}' % (
        id,
        json.dumps(method).encode(),
        json.dumps({} if params is None else params).encode(),
    )
    return parse(text, limit=MAX_BODY_BYTES)


def notification(method: str, params: Any = None) -> Envelope:
    """A client's notification."""
    return parse(
        json.dumps({"jsonrpc": "2.0", "method": method, "params": params or {}}).encode(), limit=MAX_BODY_BYTES
    )


def response(id: bytes | int, result: Any = None) -> Envelope:
    """A client's answer to what a server asked."""
    spelled = id if isinstance(id, bytes) else b"%d" % id
    text = b'{"jsonrpc":"2.0","id":%s,"result":%s}' % (spelled, json.dumps(result or {}).encode())
    return parse(text, limit=MAX_BODY_BYTES)


def initialize(revision: str = "2025-11-25", capabilities: Mapping[str, Any] | None = None, **params: Any) -> Envelope:
    """A client's `initialize`."""
    members = {
        "protocolVersion": revision,
        "capabilities": dict(capabilities or {}),
        "clientInfo": {"name": "test", "version": "1"},
        **params,
    }
    return request("initialize", members, id=b"0")


class Client:
    """A client's wires on one workflow: what a transport does for it, without the transport."""

    def __init__(self, workflow: Workflow) -> None:
        self.workflow = workflow
        self.told: list[PoolResult | None] = []
        """What the pool did for each of its calls."""

    def call(
        self, params: Any = None, *, id: bytes = b"1", method: str = "tools/call", headers: Headers = NONE
    ) -> Exchange:
        """Begin an exchange of one call; the client waits for it until `outcome` or `leave`."""
        return self.send(request(method, params, id=id), headers=headers)

    def send(self, *messages: Envelope, headers: Headers = NONE) -> Exchange:
        """Begin an exchange of these calls."""
        exchange = self.workflow.calls.exchange(len(messages))
        self.workflow.wire_came()
        for message in messages:
            self.told.append(self.workflow.calls.take(message, exchange, headers))
        return exchange

    async def answers(self, exchange: Exchange) -> list[dict[str, Any]]:
        """All messages of an exchange, plain or streamed, priming left out; then its wire leaves."""
        return [json.loads(text) for text in await self.raw_answers(exchange)]

    async def raw_answers(self, exchange: Exchange) -> list[bytes]:
        """The same, byte for byte."""
        try:
            with anyio.fail_after(PATIENCE):
                outcome = await exchange.ready
                if not isinstance(outcome, Stream):
                    return outcome
                reader = self.workflow.streams.attach(outcome, 0)
                try:
                    return [message async for _, message in events(reader) if message]
                finally:
                    reader.close()
        finally:
            self.workflow.wire_left()

    async def answer(self, exchange: Exchange) -> dict[str, Any]:
        """The last message of an exchange."""
        return (await self.answers(exchange))[-1]

    def leave(self) -> None:
        """The wire of an exchange goes before its answer."""
        self.workflow.wire_left()


async def events(reader: Reader) -> AsyncIterator[tuple[str, bytes]]:
    """Each event of a stream until its end: its event id and its message."""
    while (due := await reader.next(PATIENCE)) is not None:
        assert due, f"nothing came for {PATIENCE} s"
        for event in due:
            yield reader.event_id(event), event.message


async def some(reader: Reader, count: int = 1) -> list[tuple[str, bytes]]:
    """So many events of a stream, priming left out; the test fails where they do not come, or more come with them."""
    got: list[tuple[str, bytes]] = []
    with anyio.fail_after(PATIENCE):
        while len(got) < count:
            due = await reader.next(PATIENCE)
            assert due is not None, f"the stream ended after {got}"
            got += [(reader.event_id(event), event.message) for event in due if event.message]
    assert len(got) == count, got
    return got


async def idle(reader: Reader) -> bool:
    """True where nothing is due on a reader at this moment, and it has not ended."""
    return await reader.next(0) == []


def position(event_id: str) -> Position:
    """What an event id spells."""
    read = Position.read(event_id)
    assert read is not None, event_id
    return read


async def cancelled(task: "asyncio.Task[object]") -> None:
    """Cancel a client's task, and wait until it is over."""
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def settle(turns: int = 20) -> None:
    """Let every task that can go on do so: for what must *not* happen, where there is no event to wait for."""
    for _ in range(turns):
        await anyio.lowlevel.checkpoint()


async def begin(pool: Pool, principal: Principal = ANONYMOUS, server: str = "x", **options: Any) -> Begun:
    """`pool.begin` with a plain `initialize`, or with the `message` given."""
    with anyio.fail_after(PATIENCE):
        message = options.pop("message", None) or initialize()
        return await pool.begin(principal, server, message, Arrival(**options))


@asynccontextmanager
async def patience(seconds: float = PATIENCE) -> AsyncIterator[None]:
    """Fail the test where what is inside takes longer."""
    with anyio.fail_after(seconds):
        yield


def members(text: bytes) -> dict[str, bytes]:
    """The first level of a JSON object, each value as it was spelled."""
    return {name: bytes(raw) for name, raw in msgspec.json.decode(text, type=dict[str, msgspec.Raw]).items()}


class Bench:
    """A pool between tests and two servers in memory, `x` and `y`, with a clock and a directory that a test rules."""

    def __init__(self, pooling: Pooling, *, stateless: bool, revision: str, total_bytes: int) -> None:
        self.clock = Clock()
        self.directory = SlowDirectory()
        self.server = MemoryServer(revision=revision)
        self.other = MemoryServer(revision=revision)
        upstreams = {
            name: Upstream(name, server, pooling, stateless=stateless)
            for name, server in (("x", self.server), ("y", self.other))
        }
        # The pool's own section bounds the process; its short window only makes the sweep come often.
        whole = Pooling(resume_window=0.08, event_log=EventLogLimits(total_bytes=total_bytes))
        self.pool = Pool(upstreams, self.directory, pooling=whole, clock=self.clock)

    @property
    def counts(self) -> Counter[tuple[str, ...]]:
        """What was counted so far."""
        return self.pool.statistics.counts

    @property
    def held(self) -> int:
        """Bytes that the event logs of all workflows hold."""
        return self.pool._budget.held

    async def client(self, principal: Principal = ANONYMOUS, **options: Any) -> Client:
        """A client of a new workflow, or of the one that the options name."""
        return Client((await begin(self.pool, principal, **options)).workflow)

    async def ended(self, cause: str, times: int = 1) -> None:
        """Wait until so many workflows ended for this cause, and their records are gone."""
        with anyio.fail_after(PATIENCE):
            while self.counts["workflows_closed", cause] < times or self.directory.calls["remove"] < times:
                await self.directory.reached("remove", self.directory.calls["remove"] + 1)
        await settle()

    @asynccontextmanager
    async def sibling(self) -> AsyncIterator[Pool]:
        """A second pool over the same servers and records."""
        pool = Pool(self.pool.upstreams, self.directory, pooling=Pooling(), clock=self.clock)
        async with pool.running():
            yield pool

    async def swept(self) -> None:
        """Wait until the pool has looked for what is due; for a test that lets nothing else happen meanwhile."""
        await self.clock.read()

    async def later(self, seconds: float) -> None:
        """Time passes, and the pool has looked for what is due, twice."""
        self.clock.advance(seconds)
        for _ in range(2):
            await self.swept()
        await settle()

    async def closed(self, sessions: int = 1) -> None:
        """Wait until so many sessions of the server `x` have ended, and their channels are gone."""
        await self.server.until(lambda: sum(session.is_closed for session in self.server.sessions) >= sessions)
        await settle()

    def at_rest(self) -> None:
        """Nothing is left of any workflow."""
        pool, servers = self.pool, (self.server, self.other)
        assert (pool.workflows, pool.channels, pool.inflight.total()) == ([], [], 0)
        census = pool._residents.held.census
        assert (census.total, census.users, census.tenants) == (0, {}, {})
        assert (pool._residents.held.by_token, self.directory.records, self.held) == ({}, [], 0)
        assert pool.burden.held == 0
        assert [server.live for server in servers] == [[], []]
        assert all(opener == closer for server in servers for opener, closer in server.owners)


@asynccontextmanager
async def bench(
    *,
    stateless: bool = False,
    revision: str = "2025-11-25",
    total_bytes: int = 1 << 20,
    on_request: Callable[[ServersExchange], None] | None = None,
    **pooling: Any,
) -> AsyncIterator[Bench]:
    """A bench for one test; when the test is over, everything must have returned to zero."""
    made = Bench(Pooling(**pooling), stateless=stateless, revision=revision, total_bytes=total_bytes)
    made.server.on_request = on_request
    async with made.server.running(), made.other.running():
        async with made.pool.running():
            yield made
        made.at_rest()
