"""Settings that change while the pool runs: what began goes on, what begins meets the new ones, nothing is left."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest
from harness.changing import Changing
from harness.memory_wire import MemoryServer, echo
from harness.muxing import ALICE, BOB, PATIENCE, Client, Clock, SlowDirectory, begin, initialize, settle
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.breaker import MAX_FAILURES
from trunkline.mux.channel import Channel
from trunkline.mux.errors import (
    CircuitOpen,
    InvalidParams,
    Overloaded,
    SessionLost,
    UnknownServer,
    UnknownSession,
    UpstreamUnreachable,
)
from trunkline.mux.generations import Version
from trunkline.mux.limits import EventLogLimits, Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.upstream import Upstream

pytestmark = pytest.mark.anyio

WINDOW, IDLE = 30.0, 300.0
SWEEPING = Pooling(resume_window=0.08)
"""The process's own bounds: the short window only makes the sweep come often."""


class Site(Changing):
    """A pool before the server `x`, whose settings change, and `y`, whose settings stay."""

    def __init__(self, **pooling: Any) -> None:
        super().__init__()
        self.clock = Clock()
        self.directory = SlowDirectory()
        self.old, self.new, self.other = MemoryServer(), MemoryServer(), MemoryServer()
        for server in (self.old, self.new, self.other):
            server.on_request = echo
        self.released: list[Upstream] = []
        self.pooling = Pooling(**{"resume_window": WINDOW, "idle_timeout": IDLE, **pooling})
        self.upstreams = {"x": Upstream("x", self.old, self.pooling), "y": Upstream("y", self.other, self.pooling)}

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Site"]:
        async with self.old.running(), self.new.running(), self.other.running():
            self.pool = Pool(self.upstreams, self.directory, pooling=SWEEPING, clock=self.clock, release=self._release)
            async with self.pool.running():
                yield self
            assert (self.pool.workflows, self.pool.channels, self.directory.records) == ([], [], [])
            assert [server.live for server in (self.old, self.new, self.other)] == [[], [], []]

    def change(self, generation: int = 1, **changes: Any) -> None:
        """The server `x` is at the new place from now on."""
        moved = replace(self.upstreams["x"], connector=self.new, generation=generation, **changes)
        self.pool.reconfigure({**self.upstreams, "x": moved}, SWEEPING)

    def remove(self) -> None:
        """There is no server `x` any longer."""
        self.pool.reconfigure({"y": self.upstreams["y"]}, SWEEPING)

    async def until_released(self, count: int = 1) -> None:
        await self.until(lambda: len(self.released) >= count)

    async def _release(self, upstream: Upstream) -> None:
        version = upstream.name, upstream.generation
        assert not any(channel.version == version for _, channel in self.pool.channels)
        self.released.append(upstream)
        self.happened()

    @property
    def states(self) -> list[tuple[str, str]]:
        return sorted((server, channel.state) for server, channel in self.pool.channels)

    def closed(self, cause: str) -> int:
        """Workflows that ended for this cause."""
        return self.pool.statistics.counts["workflows_closed", cause]


async def test_what_began_goes_on_and_what_begins_meets_the_new_settings() -> None:
    async with Site().running() as at:
        at.old.on_request = None
        old = Client((await begin(at.pool, ALICE)).workflow)
        waiting = old.call({"arguments": 1})
        call = await at.old.got("tools/call")
        at.change()
        new = Client((await begin(at.pool, ALICE)).workflow)
        assert "result" in await new.answer(new.call())
        echo(call)
        assert (await old.answer(waiting))["result"]["structuredContent"] == 1
        at.old.on_request = echo
        again = old.call({"arguments": 2})
        assert (await old.answer(again))["result"]["structuredContent"] == 2
        assert (len(at.old.sessions), len(at.new.sessions)) == (1, 1)
        assert at.states == [("x", "draining"), ("x", "idle")]


async def test_what_is_detached_and_idle_ends_after_the_window_and_what_is_used_does_not() -> None:
    async with Site().running() as at:
        idle = (await begin(at.pool, ALICE)).workflow
        used = (await begin(at.pool, ALICE)).workflow
        reader = used.streams.attach_standalone()
        untouched = (await begin(at.pool, ALICE, "y")).workflow
        at.change()
        fresh = (await begin(at.pool, ALICE)).workflow
        at.clock.advance(WINDOW - 1)
        await at.clock.read()
        assert idle.ended is None
        at.clock.advance(1)
        await at.old.until(lambda: len(at.old.closing) == 1)
        assert [workflow.ended is None for workflow in (idle, used, untouched, fresh)] == [False, True, True, True]
        assert at.closed("reconfigured") == 1
        reader.close()
        at.clock.advance(WINDOW)
        await at.until_released()
        assert at.closed("reconfigured") == 2
        assert [upstream.connector for upstream in at.released] == [at.old]
        assert [untouched.ended, fresh.ended] == [None, None]
        at.clock.advance(IDLE)
        await at.other.until(lambda: at.other.closing)
        assert at.closed("idle") == 2


async def test_settings_are_released_when_their_last_session_has_said_good_bye_and_not_before() -> None:
    async with Site().running() as at:
        at.old.goodbye_seconds = PATIENCE
        workflow = (await begin(at.pool, ALICE)).workflow
        at.change()
        at.old.pause("close")
        await at.pool.end(workflow, "deleted")
        await at.old.reached("close")
        for _ in range(3):
            await at.clock.read()
        assert at.released == []
        at.old.let("close")
        await at.until_released()


async def test_settings_that_nobody_had_are_released_at_once() -> None:
    async with Site().running() as at:
        at.change()
        await at.until_released()
        assert at.pool.upstreams["x"].connector is at.new


async def test_a_server_that_is_gone_takes_nobody_and_keeps_whom_it_has() -> None:
    async with Site().running() as at:
        workflow = (await begin(at.pool, ALICE, key="chat")).workflow
        session_id = workflow.record.session_id
        at.remove()
        for options in ({}, {"key": "other"}):
            with pytest.raises(UnknownServer, match="there is no server x"):
                await begin(at.pool, ALICE, **options)
        with pytest.raises(UnknownServer):
            await at.pool.come_to_begin(ALICE, "x")
        assert (await begin(at.pool, ALICE, key="chat")).workflow is workflow
        assert await at.pool.lookup.find(ALICE, "x", session_id) is workflow
        with pytest.raises(UnknownSession):
            await at.pool.lookup.find(BOB, "x", session_id)
        client = Client(workflow)
        assert "result" in await client.answer(client.call())
        with pytest.raises(UnknownServer):
            await begin(at.pool, ALICE, key="chat", message=initialize(capabilities={"roots": {}}))
        assert workflow.ended is None, "nothing ends for what cannot begin"
        at.clock.advance(WINDOW)
        await at.until_released()
        with pytest.raises(UnknownServer):
            await begin(at.pool, ALICE, key="chat")
        assert at.closed("reconfigured") == 1
        assert len(at.old.sessions) == 1


async def test_a_key_goes_on_with_its_workflow_and_after_its_end_begins_anew_on_the_new_settings() -> None:
    async with Site().running() as at:
        first = (await begin(at.pool, ALICE, key="chat")).workflow
        at.change()
        again = await begin(at.pool, ALICE, key="chat")
        assert (again.workflow, again.state) == (first, "resumed")
        assert await at.pool.lookup.find_key(ALICE, "x", "chat") is first
        at.clock.advance(WINDOW)
        await at.until_released()
        anew = await begin(at.pool, ALICE, key="chat")
        assert (anew.state, anew.workflow.generation) == ("reset", 1)
        assert (len(at.old.sessions), len(at.new.sessions)) == (1, 1)


async def test_another_handshake_of_an_idle_client_begins_on_the_new_settings() -> None:
    async with Site().running() as at:
        first = (await begin(at.pool, ALICE, key="chat")).workflow
        at.change()
        again = await begin(at.pool, ALICE, key="chat", message=initialize(capabilities={"roots": {}}))
        assert (again.state, again.workflow.generation, first.ended is None) == ("reset", 1, False)


async def test_sessions_that_are_shared_are_of_one_generation_and_end_with_their_last_workflow() -> None:
    async with Site(reuse="user").running() as at:
        one, two = [(await begin(at.pool, ALICE)).workflow for _ in range(2)]
        await begin(at.pool, BOB)
        assert len(at.old.sessions) == 2
        at.change()
        three = (await begin(at.pool, ALICE)).workflow
        assert (len(at.old.live), len(at.new.live)) == (2, 1)
        for workflow in (one, two):
            client = Client(workflow)
            assert "result" in await client.answer(client.call())
        await at.pool.end(one, "deleted")
        await at.clock.read()
        assert len(at.old.live) == 2
        await at.pool.end(two, "deleted")
        await at.old.until(lambda: len(at.old.live) == 1)
        assert at.pool.statistics.counts["channels_closed", "x", "reconfigured"] == 1
        assert three.ended is None
        at.clock.advance(WINDOW)
        await at.until_released()


async def test_a_shared_session_that_nobody_has_ends_at_once() -> None:
    async with Site(reuse="user").running() as at:
        await at.pool.end((await begin(at.pool, ALICE)).workflow, "deleted")
        assert len(at.old.live) == 1
        at.change()
        await at.old.until(lambda: not at.old.live)
        await at.until_released()


@pytest.mark.parametrize("reuse", ["workflow", "user"])
async def test_a_lost_session_is_not_opened_anew_under_old_settings(reuse: str) -> None:
    site = Site(reuse=reuse)
    site.upstreams["x"] = replace(site.upstreams["x"], stateless=True)
    async with site.running() as at:
        client = Client((await begin(at.pool, ALICE)).workflow)
        at.change()
        at.old.session.forget()
        await client.answer(client.call())
        assert client.workflow.ended is not None
        assert at.closed("reconfigured") == 1
        await at.until_released()
        assert len(at.old.sessions) == 1


async def test_the_old_path_goes_on_for_those_who_have_it() -> None:
    site = Site(reuse="none")
    site.upstreams["x"] = replace(site.upstreams["x"], make_line=PerRequestLine)
    async with site.running() as at:
        client = Client((await begin(at.pool, ALICE)).workflow)
        at.change(pooling=Pooling(reuse="workflow"), make_line=None)
        assert "result" in await client.answer(client.call())
        assert (len(at.old.sessions), len(at.new.sessions)) == (2, 0)
        at.clock.advance(WINDOW)
        await at.until_released()


async def test_what_is_being_opened_goes_on_under_the_settings_it_began_with() -> None:
    async with Site().running() as at:
        at.old.pause("connect")
        opening = asyncio.create_task(begin(at.pool, ALICE))
        await at.old.reached("connect")
        at.change()
        at.old.let("connect")
        workflow = (await opening).workflow
        assert (workflow.generation, workflow.is_superseded) == (0, True)
        assert at.states == [("x", "draining")]


@pytest.mark.parametrize("gone", [False, True])
@pytest.mark.parametrize("before", [False, True])
async def test_what_meets_the_change_halfway_is_refused_and_leaves_nothing(gone: bool, before: bool) -> None:
    async with Site().running() as at:
        at.directory.pause("claim", before=before)
        beginning = asyncio.create_task(begin(at.pool, ALICE, key="chat"))
        await at.directory.reached("claim")
        await settle()
        if gone:
            at.remove()
        else:
            at.change()
        at.directory.let("claim")
        with pytest.raises(UnknownServer if gone else Overloaded) as refused:
            await beginning
        assert gone or refused.value.data["limit"] == "reconfigured"
        assert (at.directory.records, at.old.sessions, at.pool.workflows) == ([], [], [])
        await at.until_released()
        if not gone:
            assert (await begin(at.pool, ALICE, key="chat")).workflow.generation == 1


async def test_who_met_the_server_under_other_settings_begins_nothing_and_goes_on_with_what_there_is() -> None:
    async with Site().running() as at:
        first = (await begin(at.pool, ALICE, key="chat", generation=0)).workflow
        at.change()
        assert (await begin(at.pool, ALICE, key="chat", generation=0)).workflow is first
        with pytest.raises(Overloaded, match="have just changed") as refused:
            await begin(at.pool, ALICE, generation=0)
        assert refused.value.limit == "reconfigured"
        assert (await begin(at.pool, ALICE, generation=1)).workflow.generation == 1
        client = Client(first)
        client.call()
        with pytest.raises(InvalidParams):
            await begin(at.pool, ALICE, key="chat", message=initialize(capabilities={"roots": {}}))
        client.leave()


async def test_a_shared_session_that_has_aged_is_not_opened_anew_under_old_settings() -> None:
    async with Site(reuse="user", max_channel_age=10.0).running() as at:
        workflow = (await begin(at.pool, ALICE)).workflow
        reader = workflow.streams.attach_standalone()
        at.change()
        at.clock.advance(100)
        for _ in range(3):
            await at.clock.read()
        await settle()
        assert (len(at.old.sessions), at.states) == (1, [("x", "draining")])
        reader.close()


async def test_a_server_that_was_away_is_tried_at_once_where_it_is_now() -> None:
    async with Site().running() as at:
        at.old.unreachable = UpstreamUnreachable("connection refused", executed="no")
        for _ in range(MAX_FAILURES):
            with pytest.raises(UpstreamUnreachable):
                await begin(at.pool, ALICE)
        with pytest.raises(CircuitOpen):
            await begin(at.pool, ALICE)
        at.change()
        assert at.pool.failures == {}
        assert (await begin(at.pool, ALICE)).workflow.generation == 1


@pytest.mark.parametrize("is_open", [False, True], ids=["opening", "open"])
async def test_what_fails_under_old_settings_after_they_changed_says_nothing_of_the_new_ones(is_open: bool) -> None:
    async with Site().running() as at:
        if not is_open:
            at.old.pause("connect")
        beginning = [asyncio.create_task(begin(at.pool, ALICE)) for _ in range(MAX_FAILURES)]
        await (asyncio.wait(beginning) if is_open else at.old.reached("connect", MAX_FAILURES))
        at.change()
        at.old.unreachable = UpstreamUnreachable("connection refused", executed="no")
        at.old.let("connect")
        for session in at.old.live:
            session.receiver.lost(SessionLost("the server is gone", executed="unknown"))
        await asyncio.wait(beginning)
        assert all(isinstance(task.exception(), UpstreamUnreachable) is not is_open for task in beginning)
        assert (at.pool.failures, at.pool.circuits) == ({}, [])
        assert (await begin(at.pool, ALICE)).workflow.generation == 1


async def test_a_hundred_changes_leave_one_generation() -> None:
    async with Site().running() as at:
        kept = (await begin(at.pool, ALICE, "y")).workflow
        for generation in range(1, 101):
            workflow = (await begin(at.pool, ALICE)).workflow
            at.change(generation)
            if generation % 2:
                await at.pool.end(workflow, "deleted")
        at.clock.advance(WINDOW)
        await at.until_released(100)
        assert [upstream.generation for upstream in sorted(at.released, key=lambda one: one.generation)] == [
            *range(100)
        ]
        assert at.pool.workflows == [kept]
        assert at.states == [("y", "idle")]


async def test_what_is_open_is_looked_at_once_for_all_settings_that_were_superseded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers, sessions, looks = 20, 20, 0
    read = Channel.version.fget
    assert read is not None

    def looked(channel: Channel) -> Version:
        nonlocal looks
        looks += 1
        return read(channel)

    left, are_released = servers, anyio.Event()

    async def release(upstream: Upstream) -> None:
        nonlocal left
        left -= 1
        if not left:
            are_released.set()

    server = MemoryServer()
    upstreams = {name: Upstream(name, server) for name in ("y", *(f"x{n}" for n in range(servers)))}
    async with (
        server.running(),
        Pool(upstreams, SlowDirectory(), pooling=SWEEPING, release=release).running() as pool,
    ):
        for _ in range(sessions):
            await begin(pool, ALICE, "y")
        monkeypatch.setattr(Channel, "version", property(looked))
        pool.reconfigure({name: replace(one, generation=1) for name, one in upstreams.items()}, SWEEPING)
        with anyio.fail_after(PATIENCE):
            await are_released.wait()
        assert looks < servers * sessions


async def test_the_bounds_of_the_process_change_with_it() -> None:
    async with Site().running() as at:
        at.pool.reconfigure(at.upstreams, Pooling(max_workflows=3, event_log=EventLogLimits(total_bytes=100)))
        assert (at.pool.pooling.max_workflows, at.pool._budget.limit) == (3, 100)
