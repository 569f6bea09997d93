"""What is due in a pool is done, for as long as it runs: idle workflows end, leftovers go, and nobody is held up."""

import asyncio

import pytest
from harness.memory_wire import echo
from harness.muxing import ALICE, begin, bench, settle
from trunkline.mux import sweep
from trunkline.mux.leftovers import FIRST_SECONDS
from trunkline.mux.lines import Lines

pytestmark = pytest.mark.anyio


async def test_a_workflow_idles_from_the_end_of_its_last_response() -> None:
    async with bench(idle_timeout=100) as at:
        client, canary = await at.client(), await at.client()
        at.clock.advance(60)
        exchange = client.call()
        client.leave()
        at.clock.advance(60)
        await at.ended("idle")
        assert canary.workflow.ended
        assert not client.workflow.ended, "its call is still in flight"
        (await at.server.got("tools/call")).answer()
        assert await exchange.ready

        canary = await at.client()
        at.clock.advance(-0.1)  # the canary is idle for as long, by a hair less
        canary.call(method="ping")
        canary.leave()
        at.clock.advance(100)
        await at.ended("idle", 2)
        assert canary.workflow.ended
        assert not client.workflow.ended
        at.clock.advance(0.2)
        await at.ended("idle", 3)


async def test_others_go_on_while_workflows_are_looked_after(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "SWEEP_SLICE", 2)
    async with bench(idle_timeout=10) as at:
        for _ in range(6):
            await begin(at.pool)
        seen = {6}
        at.clock.advance(10)
        async with asyncio.timeout(10):
            while at.pool.workflows:
                seen.add(len(at.pool.workflows))
                await asyncio.sleep(0)
        assert seen == {6, 4, 2}, "each slice is a turn of the loop"
        assert at.counts["workflows_closed", "idle"] == 6


async def test_a_wire_keeps_a_workflow_from_idling() -> None:
    async with bench(idle_timeout=10) as at:
        client = await at.client()
        reader = client.workflow.streams.attach_standalone()
        canary = await at.client()
        at.clock.advance(1000)
        await at.ended("idle")
        assert (client.workflow.ended, bool(canary.workflow.ended)) == (None, True)
        reader.close()
        assert client.workflow.idle_since == at.clock.now


async def test_a_record_that_could_not_be_removed_is_removed_later(caplog: pytest.LogCaptureFixture) -> None:
    async with bench(idle_timeout=10) as at:
        first = (await begin(at.pool, ALICE, key="chat")).workflow
        at.directory.failing["remove"] = ConnectionError("the directory is away")
        at.clock.advance(10)
        await at.directory.reached("remove")
        await settle()
        assert at.directory.records == [first.record]
        at.clock.advance(FIRST_SECONDS)
        await at.directory.reached("remove", 2)
        del at.directory.failing["remove"]
        at.clock.advance(2 * FIRST_SECONDS)
        await at.directory.reached("remove", 3)
        await settle()
        assert at.directory.records == []
        assert at.counts["leftovers", "kept"] == 2
        assert (await begin(at.pool, ALICE, key="chat")).state == "reset"
        at.clock.advance(10)
        await at.ended("idle", 2)
    assert "a record could not be removed: ConnectionError" in caplog.text
    assert first.record.session_id not in caplog.text


async def test_a_defect_in_a_sweep_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(on_request=echo) as at:
        client = await at.client(ALICE)
        expire = Lines.expire

        def broken(self: Lines, now: float) -> None:
            raise AssertionError("a defect")

        monkeypatch.setattr(Lines, "expire", broken)
        at.clock.advance(1)
        for _ in range(2):
            await at.swept()
        assert "result" in await client.answer(client.call())
        monkeypatch.setattr(Lines, "expire", expire)
