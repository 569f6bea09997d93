"""The old path when clients cancel, leave or end: what was withdrawn is not sent, and nothing is left."""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

import pytest
from harness.memory_wire import Exchange as Upstream
from harness.memory_wire import Stage, echo
from harness.muxing import Bench, begin, notification, settle
from trunkline.compat.per_request import PerRequestLine
from trunkline.mux.errors import WorkflowEnded

pytestmark = pytest.mark.anyio

OldPath = Callable[..., AbstractAsyncContextManager[Bench]]

CALL = ["initialize", "notifications/initialized", "tools/call"]
STAGES: tuple[Stage, ...] = ("connect", "initialize", "establish")


def answer_lists(exchange: Upstream) -> None:
    """Answer the question for tools, and nothing else."""
    if exchange.kind == "tools/list":
        exchange.answer({"tools": []})


def cancelled(id: int = 1) -> Any:
    return notification("notifications/cancelled", {"requestId": id, "reason": "enough"})


async def test_e12_a_cancelled_call_is_withdrawn_from_its_own_session(old_path: OldPath) -> None:
    async with old_path() as at:
        client = await at.client()
        hit, other = client.call(id=b"1"), client.call(id=b"2")
        await at.server.got("tools/call", 2)
        first, second = at.server.of("tools/call")
        client.workflow.notify(cancelled(1), {})
        assert (await client.answer(hit))["error"]["code"] == -32800
        told = await at.server.got("notifications/cancelled")
        assert told.session is first.session
        assert told.json["params"] == {"requestId": int(first.id), "reason": "enough"}
        await at.closed(2)
        second.answer()
        assert "result" in await client.answer(other)


@pytest.mark.parametrize("stage", STAGES)
async def test_a_call_that_is_cancelled_before_its_session_is_open_is_never_sent(
    old_path: OldPath, stage: Stage
) -> None:
    async with old_path() as at:
        client = await at.client()
        at.server.pause(stage)
        exchange = client.call()
        await at.server.reached(stage, 2)
        client.workflow.notify(cancelled(), {})
        assert (await client.answer(exchange))["error"]["code"] == -32800
        at.server.let(stage)
        await settle()
        assert at.server.of("tools/call") == []
        await at.server.until(lambda: not at.server.live)


async def test_a_call_that_is_cancelled_while_the_habits_go_on_is_never_sent(old_path: OldPath) -> None:
    async with old_path(habits=True) as at:
        client = await at.client()
        exchange = client.call()
        listed = await at.server.got("tools/list")
        client.workflow.notify(cancelled(), {})
        assert (await client.answer(exchange))["error"]["code"] == -32800
        listed.answer({"tools": []})
        await at.closed(2)
        assert at.server.of("tools/call") == []


@pytest.mark.parametrize("habits", [False, True])
async def test_a_cancel_of_nothing_does_nothing(old_path: OldPath, habits: bool) -> None:
    async with old_path(habits=habits) as at:
        at.server.on_request = echo
        client = await at.client()
        await client.answer(client.call())
        client.workflow.notify(cancelled(), {})
        client.workflow.notify(cancelled(9), {})
        await at.closed(2)
        assert at.server.of("notifications/cancelled") == []


@pytest.mark.parametrize("habits", [False, True])
async def test_e14_a_call_goes_on_when_its_client_leaves_and_its_session_is_closed(
    old_path: OldPath, habits: bool
) -> None:
    async with old_path(habits=habits) as at:
        at.server.on_request = answer_lists
        client = await at.client()
        client.call()
        client.leave()
        upstream = await at.server.got("tools/call")
        assert upstream.json["method"] == "tools/call"
        upstream.answer()
        await at.closed(2)
        assert at.pool.channels == []
        assert at.counts["calls", "x", "tools/call", "ok"] == 1


@pytest.mark.parametrize("habits", [False, True])
@pytest.mark.parametrize("stage", [*STAGES, "call", "tools/list"])
async def test_a_workflow_that_ends_fails_its_calls_at_once_and_closes_their_sessions(
    old_path: OldPath, stage: Any, habits: bool
) -> None:
    async with old_path(habits=habits) as at:
        client = await at.client()
        if stage in STAGES:
            at.server.pause(stage)
        exchange = client.call()
        if stage in STAGES:
            await at.server.reached(stage, 2)
        elif habits:
            listed = await at.server.got("tools/list")
            if stage == "call":
                listed.answer({"tools": []})
        await settle()
        is_sent = bool(at.server.of("tools/call"))
        await at.pool.end(client.workflow, "deleted")
        error = (await client.answer(exchange))["error"]
        assert (error["code"], error["data"]) == (-31002, {"executed": "unknown" if is_sent else "no"})
        at.server.let(stage)
        await at.ended("deleted")
        await at.server.until(lambda: not at.server.live)
        late = await client.answer(client.call())
        assert late["error"]["data"] == {"executed": "no"}


@pytest.mark.parametrize("stage", STAGES)
async def test_a_workflow_that_ends_while_it_opens_does_not_wait_for_its_server(
    old_path: OldPath, stage: Stage
) -> None:
    async with old_path() as at:
        at.server.pause(stage)
        beginning = asyncio.create_task(begin(at.pool))
        await at.server.reached(stage)
        await at.pool.end(at.pool.workflows[0], "deleted")
        with pytest.raises(WorkflowEnded):
            await beginning
        if stage == "initialize":
            await at.server.until(lambda: at.server.closing)
        at.server.let(stage)
        await at.ended("deleted")


@pytest.mark.parametrize("ends", ["line", "cancel"])
@pytest.mark.parametrize("habits", [False, True])
async def test_what_ends_in_the_moment_a_session_is_open_ends_the_call_unsent(
    old_path: OldPath, habits: bool, ends: str
) -> None:
    async with old_path(habits=habits) as at:
        client = await at.client()
        at.server.pause("establish")
        exchange = client.call()
        await at.server.reached("establish", 2)

        async def end() -> None:
            await at.server.until(lambda: not at.server._paused)
            assert at.pool.channels[0][1].is_open
            if ends == "line":
                client.workflow.line.close(WorkflowEnded("deleted"))
            else:
                client.workflow.notify(cancelled(), {})

        ending = asyncio.create_task(end())
        await settle()
        at.server.let("establish")
        await ending
        error = (await client.answer(exchange))["error"]
        assert error["code"] == (-31002 if ends == "line" else -32800)
        assert error.get("data", {"executed": "no"}) == {"executed": "no"}
        await at.closed(2)
        assert at.server.of("tools/call") == at.server.of("tools/list") == []


async def test_nothing_is_kept_of_calls_that_are_over(old_path: OldPath) -> None:
    async with old_path(habits=True) as at:
        at.server.on_request = echo
        client = await at.client()
        for exchange in [client.call(id=b"%d" % n) for n in range(20)]:
            await client.answer(exchange)
        await at.closed(21)
        await at.swept()
        line = client.workflow.line
        assert isinstance(line, PerRequestLine)
        assert not line._calls
        assert not line._unsent
