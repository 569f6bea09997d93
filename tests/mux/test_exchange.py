"""One exchange: plain answers or a stream, and what becomes of it when its client leaves."""

import pytest
from harness.memory_wire import message
from harness.muxing import bench, request
from trunkline.mux.event_log import Stream
from trunkline.mux.limits import EventLogLimits

pytestmark = pytest.mark.anyio

LOG = message("notifications/message", {"level": "info", "data": 1})


async def test_an_answer_that_comes_first_is_plain() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        at.server.of("tools/call")[0].answer()
        assert isinstance(await exchange.ready, list)
        assert (exchange.is_open, exchange.stream) == (False, None)
        exchange.decide_for_stream()
        assert exchange.stream is None, "what is decided stays so"
        client.leave()


async def test_anything_before_the_answer_makes_a_stream_in_the_servers_order() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        [upstream] = at.server.of("tools/call")
        upstream.say(LOG)
        assert isinstance(await exchange.ready, Stream)
        upstream.say(LOG)
        upstream.answer()
        assert [answer.get("method", "answer") for answer in await client.answers(exchange)] == [
            "notifications/message",
            "notifications/message",
            "answer",
        ]
        assert not exchange.is_open


async def test_e10_a_batch_is_answered_when_all_its_calls_are() -> None:
    async with bench(revision="2025-03-26") as at:
        client = await at.client()
        exchange = client.send(request(id=b"1"), request(id=b'"2"'), request("ping", id=b"3"))
        first, second = at.server.of("tools/call")
        second.answer()
        assert exchange.is_open
        assert not exchange.ready.done()
        first.refuse()
        answers = await client.answers(exchange)
        assert [answer["id"] for answer in answers] == [3, "2", 1]
        assert "error" in answers[2]


async def test_e10_the_answers_of_a_batch_that_becomes_a_stream_are_all_on_it() -> None:
    async with bench(revision="2025-03-26") as at:
        client = await at.client()
        exchange = client.send(request(id=b"1"), request(id=b"2"))
        first, second = at.server.of("tools/call")
        first.answer()
        second.say(LOG)
        second.answer()
        answers = await client.answers(exchange)
        assert [answer.get("id") for answer in answers] == [1, None, 2]


async def test_e14_an_exchange_goes_on_when_its_client_leaves() -> None:
    async with bench() as at:
        client = await at.client()
        exchange = client.call()
        client.leave()
        [upstream] = at.server.of("tools/call")
        assert not upstream.is_cut
        assert at.server.of("notifications/cancelled") == []
        assert client.workflow.idle_since is None
        upstream.answer()
        assert isinstance(await exchange.ready, list)


async def test_g5_a_plain_answer_that_was_cut_is_counted() -> None:
    async with bench() as at:
        client = await at.client()
        for cut in (False, True):
            exchange = client.call()
            exchange.cut = cut
            client.leave()
            at.server.of("tools/call")[-1].answer()
            await exchange.ready
            assert at.counts["cut_answers", "x"] == cut


async def test_what_comes_for_an_exchange_that_was_cut_is_lost_with_it_and_takes_no_room() -> None:
    async with bench(event_log=EventLogLimits(events=4), revision="2025-06-18") as at:
        client = await at.client()
        exchange = client.call({"_meta": {"progressToken": "t"}})
        exchange.cut = True
        [upstream] = at.server.of("tools/call")
        for n in range(9):
            progress = {"progressToken": int(upstream.id), "progress": n}
            upstream.say(message("notifications/progress", progress))
        upstream.answer()
        assert isinstance(await exchange.ready, list)
        client.leave()
        assert (client.workflow.ended, at.held) == (None, 0)
        assert at.counts["cut_answers", "x"] == 1
