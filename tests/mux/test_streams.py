"""G5: a client that drops and comes back by event id misses nothing and gets nothing twice."""

import asyncio
import json

import pytest
from harness.memory_wire import Exchange as Upstream
from harness.memory_wire import message
from harness.muxing import ALICE, Bench, Client, bench, events, idle, position, some
from trunkline.mux.event_log import Stream, Trimmed
from trunkline.mux.exchange import Exchange
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.streams import Reader

pytestmark = pytest.mark.anyio


def log(n: int, size: int = 0) -> bytes:
    return message("notifications/message", {"level": "info", "data": n, "pad": "." * size})


def data(got: list[tuple[str, bytes]]) -> list[int]:
    return [json.loads(text)["params"]["data"] for _, text in got]


async def rest(reader: Reader) -> list[bytes]:
    """What comes until the stream's end, priming left out."""
    return [text async for _, text in events(reader) if text]


async def streaming(at: Bench, client: Client) -> tuple[Exchange, Upstream, Reader]:
    """A call whose first message has come, so that it is a stream; and the stream's reader."""
    exchange = client.call()
    upstream = at.server.of("tools/call")[-1]
    upstream.say(log(0))
    stream = await exchange.ready
    assert isinstance(stream, Stream)
    reader = client.workflow.streams.attach(stream, 0)
    client.leave()
    assert data(await some(reader)) == [0]
    return exchange, upstream, reader


async def test_a_client_that_drops_comes_back_without_a_gap_and_without_a_repeat() -> None:
    async with bench() as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        upstream.say(log(1))
        seen = (await some(reader))[0][0]
        reader.close()
        upstream.say(log(2))
        upstream.answer({"done": True})
        back = client.workflow.streams.resume(position(seen))
        first, last = await rest(back)
        assert json.loads(first)["params"]["data"] == 2
        assert json.loads(last)["result"] == {"done": True}
        back.close()
        assert at.counts["replayed_events",] == 0, "nothing of it was on a wire before"


async def test_what_was_sent_on_a_wire_that_broke_is_sent_again_and_counted() -> None:
    async with bench() as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        upstream.say(log(1))
        seen = (await some(reader))[0][0]
        for n in (2, 3):
            upstream.say(log(n))
        assert data(await some(reader, 2)) == [2, 3]
        reader.close()
        back = client.workflow.streams.resume(position(seen))
        assert data(await some(back, 2)) == [2, 3]
        back.close()
        assert at.counts["replayed_events",] == 2


async def test_a_client_may_come_back_while_its_old_wire_is_not_known_to_be_dead() -> None:
    async with bench() as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        upstream.say(log(1))
        (seen, _), *_ = await some(reader)
        waiting = asyncio.create_task(reader.next(10))
        await asyncio.sleep(0)
        back = client.workflow.streams.resume(position(seen))
        assert await waiting is None, "the older wire ends, so that nothing goes to both"
        upstream.say(log(2))
        assert data(await some(back)) == [2]
        reader.close()
        reader.close()
        upstream.say(log(3))
        assert data(await some(back)) == [3]
        back.close()
        assert not client.workflow.is_attached


async def test_on_the_standalone_stream_the_older_wire_takes_over_again() -> None:
    async with bench() as at:
        client = await at.client()
        session = at.server.session
        older = client.workflow.streams.attach_standalone()
        session.tell(log(1))
        assert data(await some(older)) == [1]
        newer = client.workflow.streams.attach_standalone()
        session.tell(log(2))
        assert await idle(older)
        assert data(await some(newer)) == [2]
        newer.close()
        session.tell(log(3))
        assert data(await some(older)) == [3], "and gets nothing that the other one got"
        older.close()


async def test_what_comes_while_no_wire_is_there_waits_for_the_client() -> None:
    async with bench() as at:
        client = await at.client()
        for n in (1, 2):
            at.server.session.tell(log(n))
        reader = client.workflow.streams.attach_standalone()
        got = await some(reader, 2)
        assert data(got) == [1, 2]
        reader.close()
        at.server.session.tell(log(3))
        back = client.workflow.streams.resume(position(got[0][0]))
        assert data(await some(back, 2)) == [2, 3]
        back.close()


@pytest.mark.parametrize(("revision", "primed"), [("2025-11-25", [b"", b""]), ("2025-06-18", [])])
async def test_t7_only_clients_that_understand_it_get_a_priming_event(revision: str, primed: list[bytes]) -> None:
    async with bench(revision=revision) as at:
        client = await at.client()
        exchange = client.call()
        upstream = await at.server.got("tools/call")
        exchange.decide_for_stream()
        stream = await exchange.ready
        assert isinstance(stream, Stream)
        readers = [client.workflow.streams.attach(stream, 0), client.workflow.streams.attach_standalone()]
        first = [event for reader in readers for event in (await reader.next(0) or [])]
        assert [event.message for event in first] == primed
        if primed:
            back = client.workflow.streams.resume(position(readers[0].event_id(first[0])))
            upstream.answer({"n": 1})
            assert json.loads((await rest(back))[0])["result"] == {"n": 1}
            back.close()
        for reader in readers:
            reader.close()
        client.leave()


async def test_a_log_on_the_stream_of_a_call_stays_on_it_and_one_without_goes_to_the_standalone() -> None:
    async with bench() as at:
        client = await at.client()
        standalone = client.workflow.streams.attach_standalone()
        await standalone.next(0)
        _, first, reader1 = await streaming(at, client)
        _, second, reader2 = await streaming(at, client)
        first.say(log(1))
        second.say(log(2))
        at.server.session.tell(log(3))
        assert [data(await some(reader)) for reader in (reader1, reader2, standalone)] == [[1], [2], [3]]
        assert [await idle(reader) for reader in (reader1, reader2, standalone)] == [True] * 3
        for reader in (reader1, reader2, standalone):
            reader.close()


async def test_an_event_id_of_another_workflow_leads_there_and_not_here() -> None:
    async with bench() as at:
        first, second = await at.client(ALICE), await at.client(ALICE)
        _, _, reader1 = await streaming(at, first)
        stream = reader1.stream
        spelled = [workflow.streams.event_id(stream, 1) for workflow in (first.workflow, second.workflow)]
        assert spelled[0] != spelled[1]
        for client, event_id in zip((first, second), spelled, strict=True):
            assert await at.pool.lookup.find_position(ALICE, "x", position(event_id)) is client.workflow
        reader1.close()


# The bounds.


async def test_g10_what_a_client_does_not_read_ends_its_workflow_when_it_no_longer_fits() -> None:
    async with bench(event_log=EventLogLimits(events=4)) as at:
        client = await at.client()
        other = await at.client()
        exchange, upstream, reader = await streaming(at, client)
        assert exchange.is_open
        for n in range(1, 6):
            upstream.say(log(n))
        await at.ended("event_log_overflow")
        assert client.workflow.ended
        assert client.workflow.ended.cause == "event_log_overflow"
        await rest(reader)
        reader.close()
        assert not other.workflow.ended


async def test_g10_the_byte_bound_of_a_workflow_holds_too() -> None:
    async with bench(event_log=EventLogLimits(bytes=1000)) as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        for n in range(4):
            upstream.say(log(n, size=300))
        await at.ended("event_log_overflow")
        reader.close()


async def test_g10_what_one_client_leaves_untaken_ends_no_workflow_of_another() -> None:
    async with bench(total_bytes=4000) as at:
        greedy, client = await at.client(), await at.client()
        _, flood, away = await streaming(at, greedy)
        away.close()
        for n in range(5):
            flood.say(log(n, size=600))
        _, upstream, reader = await streaming(at, client)
        for n in range(3):
            upstream.say(log(n, size=100))
        assert data(await some(reader, 3)) == [0, 1, 2]
        await at.ended("event_log_overflow")
        assert greedy.workflow.ended
        assert not client.workflow.ended
        reader.close()


async def test_g10_what_a_client_is_told_at_the_end_of_its_workflow_ends_no_other() -> None:
    async with bench(total_bytes=4000) as at:
        greedy, client = await at.client(), await at.client()
        _, flood, there = await streaming(at, greedy)
        for n in range(1, 6):
            flood.say(log(n, size=600))
        _, upstream, reader = await streaming(at, client)
        upstream.say(log(1, size=5000))
        assert data(await some(reader)) == [1]
        await at.ended("event_log_overflow")
        assert (greedy.workflow.ended is not None, client.workflow.ended) == (True, None)
        assert json.loads((await rest(there))[-1])["error"]["data"] == {"executed": "unknown"}
        for one in (there, reader):
            one.close()


async def test_what_was_delivered_is_trimmed_without_harm() -> None:
    async with bench(event_log=EventLogLimits(events=4)) as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        for n in range(50):
            upstream.say(log(n))
            assert data(await some(reader)) == [n]
        upstream.answer()
        assert len(await rest(reader)) == 1
        reader.close()
        assert not client.workflow.ended


async def test_g5_what_a_client_came_back_for_is_not_trimmed_before_it_has_it() -> None:
    async with bench(event_log=EventLogLimits(events=4)) as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        seen = position(client.workflow.streams.event_id(reader.stream, reader.stream.sent))
        for n in (1, 2):
            upstream.say(log(n))
        assert data(await some(reader, 2)) == [1, 2]
        reader.close()
        back = client.workflow.streams.resume(seen)
        for n in (3, 4):
            upstream.say(log(n))
        assert data(await some(back, 4)) == [1, 2, 3, 4]
        back.close()
        late = client.workflow.streams.resume(seen)
        upstream.say(log(5))
        await at.ended("event_log_overflow")
        late.close()


@pytest.mark.parametrize("to", ["trimmed", "ahead", "another epoch", "no such stream"])
async def test_a_position_that_is_no_longer_held_ends_the_workflow_with_that_reason(to: str) -> None:
    async with bench(event_log=EventLogLimits(events=4)) as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        first = position(client.workflow.streams.event_id(reader.stream, reader.stream.sent))
        for n in range(9):
            upstream.say(log(n))
            await some(reader)
        where = {
            "trimmed": first,
            "ahead": first._replace(n=99),
            "another epoch": first._replace(epoch=1, n=reader.stream.last),
            "no such stream": first._replace(stream=99),
        }[to]
        reader.close()
        with pytest.raises(Trimmed):
            client.workflow.streams.resume(where)
        await at.ended("event_log_trimmed")


async def test_g5_a_client_that_takes_its_time_gets_what_is_older_than_the_resume_window() -> None:
    async with bench(resume_window=5) as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        for n in (1, 2):
            upstream.say(log(n))
            at.clock.advance(6)
            await at.swept()
        assert data(await some(reader, 2)) == [1, 2]
        reader.close()
        at.clock.advance(6)
        await at.swept()
        assert at.held == 0


async def test_what_nobody_reads_any_longer_is_kept_for_the_resume_window_alone() -> None:
    async with bench(resume_window=5) as at:
        client = await at.client()
        _, upstream, older = await streaming(at, client)
        newest = client.workflow.streams.attach(older.stream, older.stream.sent)
        older.close()
        upstream.say(log(1))
        at.clock.advance(6)
        await at.swept()
        assert data(await some(newest)) == [1], "it is still read"
        upstream.say(log(2))
        newest.close()
        at.clock.advance(6)
        await at.swept()
        assert at.held == 0


async def test_what_was_sent_is_kept_for_the_resume_window() -> None:
    async with bench(resume_window=50) as at:
        client = await at.client()
        _, upstream, reader = await streaming(at, client)
        reader.close()
        upstream.answer()
        at.clock.advance(25)
        before = at.held
        at.server.session.tell(log(1))
        later = at.held - before
        at.clock.advance(25)
        await at.swept()
        back = client.workflow.streams.resume(position(client.workflow.streams.event_id(reader.stream, 0)))
        assert len(await rest(back)) == 2
        back.close()
        at.clock.advance(0.1)
        await at.swept()
        assert at.held == later > 0, "what came later is still there"
        with pytest.raises(Trimmed):
            client.workflow.streams.resume(position(client.workflow.streams.event_id(reader.stream, 0)))


@pytest.mark.parametrize("is_socket", [True, False])
async def test_what_is_said_once_a_client_listens_no_longer_is_no_loss_after_the_resume_window(
    is_socket: bool,
) -> None:
    limits = EventLogLimits(events=10)
    async with bench(event_log=limits, resume_window=100) as at:
        workflow = (await at.client()).workflow
        duplex = workflow.duplexes.new() if is_socket else None
        reader = workflow.streams.attach_standalone() if duplex is None else duplex.attach()
        reader.due()
        reader.close() if duplex is None else duplex.detach(reader)
        for n in range(5):  # a server that goes on talking
            at.clock.advance(21)
            at.server.session.tell(log(n))
            await at.swept()
        for n in range(100):
            at.server.session.tell(log(n))
        assert workflow.ended is None
        reader = workflow.streams.attach_standalone()
        told = [event.message for event in reader.due() or () if event.message]
        assert json.loads(told[-1])["params"]["data"] == 99, "who begins to listen hears the newest"
        reader.close()


async def test_a_socket_that_nobody_comes_back_to_is_forgotten_though_its_server_talks() -> None:
    async with bench(resume_window=100) as at:
        workflow = (await at.client()).workflow
        duplex = workflow.duplexes.new()
        duplex.detach(duplex.attach())
        for n in range(20):
            at.clock.advance(21)
            at.server.session.tell(log(n))
            await at.swept()
        assert workflow.duplexes.newest is None
