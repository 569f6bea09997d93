"""Spares, shared sessions and circuits under anything that clients and a server may do, in any order.

What must hold is read off at the server: each session says by its headers and its handshake whose it is, and each call
by its arguments who made it.
"""

import asyncio
from collections import Counter
from contextlib import AbstractContextManager
from typing import Any

import anyio.from_thread
from harness.memory_wire import Exchange, Session
from harness.muxing import ALICE, BOB, CAROL, Bench, Client, begin, bench, initialize, settle
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from hypothesis.stateful import initialize as first
from trunkline.mux import spares
from trunkline.mux.errors import SessionLost, TrunklineError, UpstreamUnreachable
from trunkline.mux.principal import Principal

PRINCIPALS = (ALICE, BOB, CAROL)
KINDS = (0, 1)
MAX_WORKFLOWS_PER_USER = 4
MAX_CHANNELS_PER_USER = 3
SPARES = 2


def whose(session: Session) -> str:
    return session.headers["x-whose"]


class World:
    """Clients, and a server that keeps book."""

    def __init__(self, at: Bench, reuse: str) -> None:
        self.at = at
        self.reuse = reuse
        self.begins: list[asyncio.Task[Any]] = []
        self.clients: list[tuple[Client, str]] = []
        self.is_deaf = False
        at.server.on_request = self.hear
        at.server.answers_initialize = self.answer_handshake
        self.most = 0
        """The most handshakes of one key that were under way at once."""

    def handshakes(self) -> Counter[tuple[str, ...]]:
        """Sessions whose handshake is under way, by key."""
        open_ones = [session for session in self.at.server.live if session not in self.at.server.closing]
        return Counter(
            (whose(session), str(exchange.json["params"]["capabilities"]))
            for session in open_ones
            if not session.initialized
            for exchange in session.of("initialize")
        )

    async def begin(self, principal: Principal, kind: int, times: int) -> None:
        message = initialize(capabilities={"experimental": {"kind": {"n": kind}}})
        headers = {"x-whose": principal.subject}
        for _ in range(times):
            beginning = begin(self.at.pool, principal, message=message, session_headers=headers)
            self.begins.append(asyncio.ensure_future(beginning))
        await self.turn()

    async def call(self, n: int, times: int) -> None:
        for _ in range(times if self.clients else 0):
            client, subject = self.clients[n % len(self.clients)]
            client.call({"arguments": {"whose": subject, "workflow": client.workflow.handle}})
            client.leave()
        await self.turn()

    async def answer(self) -> None:
        for exchange in self.at.server.of("tools/call"):
            if not exchange.is_over:
                exchange.answer()
        await self.turn()

    async def end(self, n: int) -> None:
        if self.at.pool.workflows:
            await self.at.pool.end(self.at.pool.workflows[n % len(self.at.pool.workflows)], "deleted")
        await self.turn()

    async def lose(self, n: int, *, told: bool) -> None:
        live = self.at.server.live
        if live and told:
            live[n % len(live)].receiver.lost(SessionLost("the server is gone", executed="unknown"))
        elif live:
            live[n % len(live)].forget()
        await self.turn()

    async def go(self, *, away: bool) -> None:
        self.at.server.unreachable = UpstreamUnreachable("connection refused", executed="no") if away else None

    def answer_handshake(self, exchange: Exchange) -> None:
        self.most = max(self.most, *self.handshakes().values(), 0)
        exchange.answer(self.at.server.result)

    def hear(self, exchange: Exchange) -> None:
        """Spares are asked whether they live."""
        if exchange.kind == "ping" and not self.is_deaf:
            exchange.answer()

    async def deafen(self, *, on: bool) -> None:
        self.is_deaf = on

    async def hold(self, *, stage: Any, on: bool) -> None:
        (self.at.server.pause if on else self.at.server.let)(stage)
        await self.turn()

    async def later(self, seconds: float) -> None:
        self.at.clock.advance(seconds)
        await self.at.swept()
        await self.turn()

    async def turn(self) -> None:
        """Let happen what is due, and greet those who have begun."""
        await settle(10)
        for task in [task for task in self.begins if task.done()]:
            self.begins.remove(task)
            error = task.exception()
            if error is None:
                workflow = task.result().workflow
                self.clients.append((Client(workflow), workflow.principal.subject))
            else:
                assert isinstance(error, TrunklineError), error
        self.clients = [entry for entry in self.clients if not entry[0].workflow.ended]

    async def check(self) -> None:
        server = self.at.server
        for session in server.sessions:
            asked = [exchange.json["params"]["arguments"] for exchange in session.of("tools/call")]
            assert {call["whose"] for call in asked} <= {whose(session)}, "a session of two principals"
            if self.reuse == "workflow":
                assert len({call["workflow"] for call in asked}) <= 1, "a used session went to another workflow"
        if self.reuse == "user":
            assert max(self.most, *self.handshakes().values(), 0) <= 1, "two handshakes of one key at once"
        open_ones = [channel for _, channel in self.at.pool.channels if not channel.is_closing]
        held = Counter(dict(channel._config.handshake.session_headers)["x-whose"] for channel in open_ones)
        cap = MAX_WORKFLOWS_PER_USER if self.reuse == "workflow" else MAX_CHANNELS_PER_USER
        assert all(count <= cap for count in held.values()), held
        states = [circuit.state for circuit in self.at.pool.circuits]
        assert len(states) <= 2, "one for each tenant"

    async def over(self) -> None:
        for stage in ("connect", "initialize", "establish"):
            self.at.server.let(stage)  # type: ignore[arg-type]
        await self.at.pool.drain(0)
        if self.begins:
            await asyncio.wait(self.begins, timeout=10)
        await self.turn()
        assert self.begins == []
        await self.check()


class LinesMachine(RuleBasedStateMachine):
    """Drives a world in an event loop beside the machine."""

    reuse = "workflow"

    @first()
    def open(self) -> None:
        self._ping_seconds = spares.PING_SECONDS
        spares.PING_SECONDS = 0.05  # type: ignore[misc]
        self._portal_context = anyio.from_thread.start_blocking_portal()
        self.portal = self._portal_context.__enter__()
        made = bench(
            reuse=self.reuse,
            spares=SPARES,
            stateless=True,
            idle_timeout=500,
            max_channel_age=400,
            max_inflight_per_channel=2,
            max_workflows_per_user=MAX_WORKFLOWS_PER_USER,
            max_channels_per_user=MAX_CHANNELS_PER_USER,
        )
        self._bench: AbstractContextManager[Bench] = self.portal.wrap_async_context_manager(made)
        at = self._bench.__enter__()
        self.world = self.portal.call(World, at, self.reuse)

    def do(self, name: str, *arguments: Any, **options: Any) -> None:
        async def act() -> None:
            await getattr(self.world, name)(*arguments, **options)

        self.portal.call(act)

    @rule(principal=st.sampled_from(PRINCIPALS), kind=st.sampled_from(KINDS), times=st.integers(1, 4))
    def begin(self, principal: Principal, kind: int, times: int) -> None:
        self.do("begin", principal, kind, times)

    @rule(n=st.integers(0, 20), times=st.integers(1, 8))
    def call(self, n: int, times: int) -> None:
        self.do("call", n, times)

    @rule()
    def answer(self) -> None:
        self.do("answer")

    @rule(n=st.integers(0, 20))
    def end(self, n: int) -> None:
        self.do("end", n)

    @rule(n=st.integers(0, 20), told=st.booleans())
    def lose(self, n: int, told: bool) -> None:
        self.do("lose", n, told=told)

    @rule(away=st.booleans())
    def go(self, away: bool) -> None:
        self.do("go", away=away)

    @rule(stage=st.sampled_from(["connect", "initialize", "establish"]), on=st.booleans())
    def hold(self, stage: str, on: bool) -> None:
        self.do("hold", stage=stage, on=on)

    @rule(on=st.booleans())
    def deafen(self, on: bool) -> None:
        self.do("deafen", on=on)

    @rule(seconds=st.sampled_from([0.2, 1.5, 40.0, 450.0]))
    def later(self, seconds: float) -> None:
        self.do("later", seconds)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "world"):
            self.do("check")

    def teardown(self) -> None:
        if hasattr(self, "world"):
            try:
                self.do("over")
            finally:
                self._bench.__exit__(None, None, None)
                self._portal_context.__exit__(None, None, None)
                spares.PING_SECONDS = self._ping_seconds  # type: ignore[misc]


class SharedMachine(LinesMachine):
    """The same, with shared sessions."""

    reuse = "user"


CALM = settings(max_examples=50, stateful_step_count=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
TestSpared = LinesMachine.TestCase
TestSpared.settings = CALM
TestShared = SharedMachine.TestCase
TestShared.settings = CALM
