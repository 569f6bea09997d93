"""What changes at a worker while the directory is being told of something else: settings, a drain, an end."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
from harness.clustering import Workers, orphaned, started
from harness.memory_wire import echo
from harness.muxing import ALICE, Client, begin, cancelled, settle
from trunkline.mux.directory import LEASE_SECONDS
from trunkline.mux.errors import Elsewhere, UnknownSession, WorkflowEnded
from trunkline.mux.placement import WHOLE
from trunkline.mux.ports import Connector

pytestmark = pytest.mark.anyio


class Unanswered:
    """An operation of the directory that is done, or `before` it is, and not answered until the test lets it."""

    def __init__(self, at: Workers, op: str, monkeypatch: pytest.MonkeyPatch, *, before: bool = False) -> None:
        self.begun = anyio.Event()
        self._answer = anyio.Event()
        work: Callable[..., Awaitable[Any]] = getattr(at.directory, op)

        async def slow(*arguments: Any) -> Any:
            monkeypatch.setattr(at.directory, op, work)
            done = None if before else await work(*arguments)
            self.begun.set()
            await self._answer.wait()
            return await work(*arguments) if before else done

        monkeypatch.setattr(at.directory, op, slow)

    async def let(self) -> None:
        """Answer, and let happen what follows."""
        self._answer.set()
        await settle()


async def noted_later(at: Workers, client: Client, monkeypatch: pytest.MonkeyPatch) -> Unanswered:
    """The change of a workflow's record that follows from a wish of its client, on its way."""
    noting = Unanswered(at, "replace", monkeypatch)
    await client.answer(client.call({"level": "debug"}, method="logging/setLevel"))
    await noting.begun.wait()
    return noting


async def test_g8_a_worker_that_begins_to_drain_while_it_takes_over_leaves_it_to_another_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with orphaned() as (at, b, c, session_id):
        taking = Unanswered(at, "replace", monkeypatch)
        finding = asyncio.create_task(b.find(session_id))
        await taking.begun.wait()
        await b.pool.drain(0)
        await taking.let()
        with pytest.raises(Elsewhere) as elsewhere:
            await finding
        assert elsewhere.value.worker == c.members.worker.id
        assert b.pool.workflows == []
        client = await c.find(session_id)
        assert "result" in await client.answer(client.call())
        assert (len(at.server.of("initialize")), at.server.deleted) == (1, [])


async def test_what_is_taken_over_while_settings_change_goes_on_under_the_new_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with orphaned() as (at, b, _, session_id):
        taking = Unanswered(at, "replace", monkeypatch)
        finding = asyncio.create_task(b.find(session_id))
        await taking.begun.wait()
        b.reconfigure()
        await taking.let()
        client = await finding
        assert client.workflow.generation == 1
        assert "result" in await client.answer(client.call())
        assert len(at.server.of("initialize")) == 1


class Unmoved:
    """A server whose sessions nobody but who opened them can go on with. Implements `Connector`."""

    def __init__(self, connector: Connector) -> None:
        self.connect = connector.connect


@pytest.mark.parametrize("stateless", [False, True])
async def test_a_session_that_no_worker_can_go_on_with_any_longer_is_not_tried_again_and_again(stateless: bool) -> None:
    """Its server has become one on another transport."""
    async with orphaned() as (at, b, c, session_id):
        for member in (b, c):
            to = {"connector": Unmoved(at.server), "stateless": stateless, "generation": 1}
            upstreams = {name: replace(it, **to) for name, it in member.pool.upstreams.items()}
            member.pool.reconfigure(upstreams, member.pool.pooling)
        await at.pass_time(1)  # nothing is open under the settings of before
        if stateless:
            client = await b.find(session_id)
            assert "result" in await client.answer(client.call())
            return
        for member in (b, c):
            with pytest.raises(UnknownSession):
                await member.find(session_id)
        assert await at.directory.get(session_id) is None


async def test_settings_are_kept_for_those_who_are_served_beside_their_holder_under_them() -> None:
    async with started(2, reuse="none", resume_window=30, on_request=echo) as (at, a, b):
        client = await b.beside((await a.client()).workflow.record.session_id)
        await client.answer(client.call())
        b.reconfigure()
        await at.pass_time(1)
        assert [upstream.name for upstream in b.released] == ["y"]
        again = await b.beside(client.workflow.record.session_id)
        assert "result" in await again.answer(again.call())
        await at.pass_time(90)
        assert [upstream.name for upstream in b.released] == ["y", "x"]
        await settle()


async def test_what_ends_while_a_change_of_its_record_is_on_its_way_is_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    async with started(1, reuse="user", on_request=echo) as (at, a):
        client = await a.client(ALICE, key="chat")
        noting = await noted_later(at, client, monkeypatch)
        await a.pool.end(client.workflow, "deleted")
        await noting.let()
        assert await at.directory.get(client.workflow.record.session_id) is None
        assert (await begin(a.pool, ALICE, key="chat")).state == "reset"


@pytest.mark.parametrize("later", [True, False])
@pytest.mark.parametrize("fails", [1, 2, 3])
async def test_what_ends_while_its_record_changes_is_removed_though_the_directory_fails_at_first(
    fails: int, later: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with started(1, reuse="user", on_request=echo) as (at, a):
        client = await a.client(ALICE, key="chat")
        noting = await noted_later(at, client, monkeypatch)
        a.view.fails_at = a.view.calls + fails
        await a.pool.end(client.workflow, "deleted")
        await noting.let()
        if later:
            await at.pass_time(1)
            assert await at.directory.get(client.workflow.record.session_id) is None
        assert (await begin(a.pool, ALICE, key="chat")).state == "reset"


async def test_g8_what_is_let_go_while_a_change_of_its_record_is_on_its_way_is_taken_over_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(1, reuse="user", on_request=echo) as (at, a):
        client = await a.client(ALICE)
        noting = await noted_later(at, client, monkeypatch)
        await a.pool.drain(0)
        await noting.let()
        record = await at.directory.get(client.workflow.record.session_id)
        assert record is not None
        assert (record.worker, record.wish.level) == ("", "debug")


async def test_g8_what_is_let_go_as_soon_as_it_was_taken_over_goes_on_at_another_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with orphaned(ALICE, reuse="user") as (at, b, c, session_id):
        await b.client(ALICE)  # with a session of its own, which the other workflow is to share
        taking = Unanswered(at, "replace", monkeypatch)
        finding = asyncio.create_task(b.find(session_id, WHOLE, ALICE))
        await taking.begun.wait()
        noting = Unanswered(at, "replace", monkeypatch)
        await taking.let()
        await noting.begun.wait()
        letting_go = [Unanswered(at, "replace", monkeypatch, before=True) for _ in range(2)]
        await b.pool.drain(0)
        await noting.let()
        for one in reversed(letting_go):
            await one.let()
        with pytest.raises(WorkflowEnded):
            await finding
        record = await at.directory.get(session_id)
        assert record is not None
        assert record.worker == ""
        client = await c.find(session_id, WHOLE, ALICE)
        assert "result" in await client.answer(client.call())


async def test_what_ends_while_a_directory_that_forgot_it_is_told_of_it_again_is_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(1) as (at, a):
        workflow = (await a.client()).workflow
        at.clock.advance(LEASE_SECONDS)
        at.directory.forget(workflow.record.session_id)
        telling = Unanswered(at, "publish", monkeypatch, before=True)
        await a.beat()
        await telling.begun.wait()
        await a.pool.end(workflow, "deleted")
        await telling.let()
        assert await at.directory.get(workflow.record.session_id) is None


async def test_what_a_client_that_left_did_not_hear_of_a_record_the_next_one_does(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with started(1) as (at, a):
        workflow = (await a.client()).workflow
        await at.directory.remove(workflow.record)
        await settle()
        comparing = Unanswered(at, "get", monkeypatch)
        finding = asyncio.create_task(a.find(workflow.record.session_id))
        await comparing.begun.wait()
        await cancelled(finding)
        await comparing.let()
        with pytest.raises(UnknownSession):
            await a.find(workflow.record.session_id)


async def test_who_comes_for_the_key_of_what_ended_does_not_wait_until_its_record_is_removed() -> None:
    async with started(1) as (_, a):
        workflow = (await a.client(ALICE, key="chat")).workflow
        a.view.fails_at = a.view.calls + 1
        await a.pool.end(workflow, "deleted")
        assert a.pool.statistics.counts["leftovers", "kept"] == 1
        assert (await begin(a.pool, ALICE, key="chat")).state == "reset"
