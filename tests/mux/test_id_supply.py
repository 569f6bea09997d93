"""The request ids of an upstream session: there before they are needed, each once, whatever the directory does."""

import asyncio

import pytest
from harness.memory_wire import echo
from harness.muxing import Client, bench, settle
from trunkline.mux.demux import Demux
from trunkline.mux.directory import ID_BLOCK
from trunkline.mux.id_supply import LOW_IDS, IdSupply

pytestmark = pytest.mark.anyio


async def call(client: Client, times: int) -> None:
    for _ in range(times):
        await client.answer(client.call())


async def test_e4_the_next_block_of_ids_is_drawn_before_the_last_one_is_used_up() -> None:
    async with bench(on_request=echo) as at:
        client = await at.client()
        await call(client, ID_BLOCK - LOW_IDS - 1)  # and the handshake took one
        await settle()
        assert at.directory.calls["draw_ids"] == 1
        at.directory.pause("draw_ids")
        await call(client, 1)
        await at.directory.reached("draw_ids", 2)
        await call(client, LOW_IDS)
        at.directory.let("draw_ids")
        await settle()
        await call(client, 2)
        ids = [int(exchange.id) for exchange in at.server.session.exchanges if exchange.request is not None]
        assert ids == list(range(1, ID_BLOCK + 3)), "in order, and none twice"


async def test_half_a_block_of_calls_is_sent_while_the_next_one_is_drawn() -> None:
    """At 3,000 calls a second that is a sixth of a second, which a database with two workers takes now and then."""
    async with bench(on_request=echo) as at:
        client = await at.client()
        at.directory.pause("draw_ids")
        while at.directory.calls["draw_ids"] < 2:
            await call(client, 1)
            await settle()
        for _ in range(ID_BLOCK // 2):
            assert "result" in await client.answer(client.call())
        at.directory.let("draw_ids")


async def test_without_an_id_a_call_is_refused_and_the_session_goes_on() -> None:
    async with bench(max_inflight_per_workflow=2000, max_inflight_per_channel=2000) as at:
        client = await at.client()
        at.directory.pause("draw_ids")
        exchanges = [client.call() for _ in range(ID_BLOCK)]
        refused = await client.answer(exchanges.pop())
        assert refused["error"]["data"] == {"limit": "upstream_ids"}
        at.directory.let("draw_ids")
        await at.directory.reached("draw_ids", 2)
        await settle()
        at.server.on_request = echo
        assert "result" in await client.answer(client.call())
        for _ in exchanges:
            client.leave()


async def test_a_directory_that_fails_is_told_once_until_it_serves_again(caplog: pytest.LogCaptureFixture) -> None:
    async with bench(on_request=echo) as at:
        client = await at.client()
        for times in (1, 2):
            at.directory.failing["draw_ids"] = ConnectionError("the directory is away")
            await call(client, ID_BLOCK - 8)
            await settle()
            assert at.directory.calls["draw_ids"] > 100 * times, "each call asks for ids"
            assert caplog.text.count("no ids could be drawn") == times
            del at.directory.failing["draw_ids"]
            await call(client, 1)
            await settle()


async def test_a_directory_that_fails_for_a_while_costs_no_session() -> None:
    async with bench(on_request=echo) as at:
        client = await at.client()
        at.directory.failing["draw_ids"] = ConnectionError("the directory is away")
        await call(client, ID_BLOCK - 1)
        refused = await client.answer(client.call())
        assert refused["error"]["data"] == {"limit": "upstream_ids"}
        await settle()
        del at.directory.failing["draw_ids"]
        tried = at.directory.calls["draw_ids"]
        await client.answer(client.call())
        await at.directory.reached("draw_ids", tried + 1)
        await settle()
        assert "result" in await client.answer(client.call())
        assert len(at.server.sessions) == 1


async def test_a_session_whose_record_is_gone_ends_when_it_needs_ids() -> None:
    async with bench(on_request=echo) as at:
        client = await at.client()
        await at.directory.lose(client.workflow.record.session_id)
        await call(client, ID_BLOCK - LOW_IDS)
        await at.ended("upstream_lost")
        await at.closed()


async def test_e4_who_is_to_draw_anew_while_a_block_is_on_its_way_draws_one_more() -> None:
    """What is on its way may come from a directory that has been lost since: the next one hears what was drawn."""
    heard: list[int] = []
    asked, may = asyncio.Event(), asyncio.Event()

    async def draw_ids(above: int) -> range:
        heard.append(above)
        if len(heard) == 2:
            asked.set()
            await may.wait()
            raise ConnectionError("it is away")
        if len(heard) == 3:
            ids.draw_anew()
        return range(above + 1, above + 1 + ID_BLOCK)

    ids = IdSupply(Demux(max_inflight=1, timeout=1), draw_ids, "x")
    await ids.draw()
    ids.draw_anew()
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(ids.refill())
        await asked.wait()
        may.set()
    assert heard == [0, ID_BLOCK]
    await ids.refill()  # what failed is due still; and meanwhile it is asked for again
    await ids.refill()
    await ids.refill()
    assert heard == [0, ID_BLOCK, ID_BLOCK, 2 * ID_BLOCK]
