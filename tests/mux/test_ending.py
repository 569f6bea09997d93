"""An end is carried out and recorded, whoever asked for it, and whatever becomes of them."""

import asyncio

import pytest
from harness.memory_wire import echo
from harness.muxing import ALICE, BOB, begin, bench, cancelled, initialize, request, settle
from trunkline.mux.leftovers import FIRST_SECONDS
from trunkline.mux.policy import EVICTABLE_AFTER

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("before", [True, False])
async def test_an_end_is_recorded_though_who_asked_for_it_left(before: bool) -> None:
    async with bench() as at:
        workflow = (await begin(at.pool, ALICE, key="chat")).workflow
        at.directory.pause("remove", before=before)
        ending = asyncio.create_task(at.pool.end(workflow, "deleted"))
        await at.directory.reached("remove")
        await cancelled(ending)
        at.directory.let("remove")
        await at.closed()
        at.at_rest()


async def test_a_reset_is_carried_out_though_its_client_left() -> None:
    async with bench() as at:
        await begin(at.pool, ALICE, key="chat")
        at.directory.pause("remove", before=True)
        message = initialize("2025-06-18")
        beginning = asyncio.create_task(begin(at.pool, ALICE, key="chat", message=message))
        await at.directory.reached("remove")
        await cancelled(beginning)
        at.directory.let("remove")
        await at.closed()
        at.at_rest()
        assert (await begin(at.pool, ALICE, key="chat", message=message)).state == "reset"


async def test_an_eviction_is_carried_out_though_the_newcomer_left() -> None:
    async with bench(max_workflows=1) as at:
        await begin(at.pool, ALICE)
        at.clock.advance(EVICTABLE_AFTER)
        at.directory.pause("remove", before=True)
        beginning = asyncio.create_task(begin(at.pool, BOB, key="chat"))
        await at.directory.reached("remove")
        await cancelled(beginning)
        at.directory.let("remove")
        await at.closed()
        assert (await begin(at.pool, BOB, key="chat")).state == "resumed"
        assert [record.principal for record in at.directory.records] == [BOB]


class _Faulty:
    """A trace that cannot be told the end of a call. Implements `Span`."""

    def ended(self, outcome: str) -> None:
        raise RuntimeError("a defect")


async def test_an_end_is_carried_out_though_who_hears_of_its_calls_fails() -> None:
    async with bench() as at:
        client = await at.client(ALICE, key="chat")
        exchanges = [client.workflow.calls.exchange(1) for _ in range(2)]
        for exchange in exchanges:
            client.workflow.wire_came()
            client.workflow.calls.take(request(), exchange, {}, _Faulty())
        await at.pool.end(client.workflow, "deleted")
        for exchange in exchanges:
            assert (await client.answer(exchange))["error"]["code"] == -31002
        await at.closed()
        at.at_rest()
        assert (await begin(at.pool, ALICE, key="chat")).state == "reset"


async def test_an_answer_arrives_though_who_traces_it_fails() -> None:
    async with bench(on_request=echo) as at:
        client = await at.client()
        exchange = client.workflow.calls.exchange(1)
        client.workflow.wire_came()
        client.workflow.calls.take(request(), exchange, {}, _Faulty())
        assert "result" in await client.answer(exchange)
        assert "result" in await client.answer(client.call())


async def test_who_ends_a_workflow_is_not_told_that_its_record_stays_a_little() -> None:
    async with bench() as at:
        workflow = (await begin(at.pool)).workflow
        at.directory.failing["remove"] = ConnectionError("the directory is away")
        await at.pool.end(workflow, "deleted")
        del at.directory.failing["remove"]
        at.clock.advance(FIRST_SECONDS)
        await at.directory.reached("remove", 2)
        await settle()
        assert at.directory.records == []
