"""Streams of one workflow at several workers."""

import asyncio
import json
from collections.abc import Collection
from typing import Any

import anyio
import pytest
from harness.changing import until
from harness.clustering import Member, Workers, journal, notice, resume, started, streamed, two
from harness.memory_wire import message
from harness.muxing import events, idle, settle, some
from trunkline.mux import membership as membership_module
from trunkline.mux.directory import LEASE_SECONDS, Entry
from trunkline.mux.errors import DirectoryUnavailable
from trunkline.mux.event_log import MAX_EMPTY, Position
from trunkline.mux.placement import NAMES
from trunkline.mux.principal import ANONYMOUS

pytestmark = pytest.mark.anyio


async def test_names_tell_which_worker_gave_them() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        for member, client in ((a, await a.find(session_id)), (b, await b.beside(session_id))):
            _, reader = await streamed(member, client)
            assert reader.stream.number // NAMES == member.number
            reader.close()


async def test_g5_a_stream_beside_the_holder_is_resumed_where_it_is() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        _, reader = await streamed(b, await b.beside(session_id))
        event_id = reader.event_id((await reader.next(1) or [])[0])
        reader.close()
        (await at.server.got("tools/call")).answer({"n": 1})
        member, again = await resume(at, a, event_id)
        assert member is b
        assert [json.loads(text)["result"] async for _, text in events(again)] == [{"n": 1}]


async def test_g5_a_stream_of_a_dead_worker_is_resumed_from_its_log() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        _, reader = await streamed(a, await a.find(session_id), b'"mine"')
        event_id = reader.event_id((await reader.next(1) or [])[0])
        call = await at.server.got("tools/call")
        call.say(message("notifications/message", {"level": "info", "data": 1}))
        call.say(message("notifications/message", {"level": "info", "data": 2}))
        [first] = (await some(reader, 2))[:1]
        await journal(a)
        await at.lose(a)
        _, again = await resume(at, b, first[0])
        told = [json.loads(text) async for _, text in events(again)]
        assert told[0]["params"]["data"] == 2
        assert told[1]["id"] == "mine"
        assert told[1]["error"]["data"] == {"executed": "unknown"}
        _, whole = await resume(at, b, event_id)
        assert len([text async for _, text in events(whole)]) == 3


async def test_g5_a_call_goes_on_at_who_was_taken_for_dead_though_its_user_has_begun_anew_elsewhere() -> None:
    async with started(2, reuse="user") as (at, a, b):
        before = await a.client()
        _, reader = await streamed(a, before)
        event_id = reader.event_id((await reader.next(1) or [])[0])
        reader.close()
        await b.beat(after=LEASE_SECONDS)
        await b.client()
        await a.beat()
        await until(lambda: before.workflow.ended or not before.workflow.is_doubted)
        (await at.server.got("tools/call")).answer({"n": 1})
        member, again = await resume(at, b, event_id)
        assert member is a
        assert [json.loads(text)["result"] async for _, text in events(again)] == [{"n": 1}]


async def test_g5_a_successor_leaves_the_streams_of_who_lives_to_them() -> None:
    async with two() as (at, a, b, session_id):
        c = await at.start()
        at.server.on_request = None
        exchange, reader = await streamed(c, await c.beside(session_id))
        await reader.next(1)
        await journal(c)
        await at.lose(a)
        held = (await b.find(session_id)).workflow
        assert exchange.stream is not None
        assert not held.knows(exchange.stream.number), "its call goes on, and is not told as lost"
        (await at.server.got("tools/call")).answer({"n": 1})
        assert [json.loads(text)["result"] async for _, text in events(reader)] == [{"n": 1}]


async def test_g5_a_holder_takes_the_streams_of_who_died_and_leaves_those_of_who_lives_to_them() -> None:
    async with two() as (at, a, b, session_id):
        c = await at.start()
        at.server.on_request = None
        left, living = [await streamed(at_, await at_.beside(session_id)) for at_ in (b, c)]
        event_id = left[1].event_id((await left[1].next(1) or [])[0])
        await living[1].next(1)
        await journal(b)
        await journal(c)
        await at.lose(b)
        member, _ = await resume(at, c, event_id)
        assert member is a
        assert living[0].stream is not None
        assert not (await a.find(session_id)).workflow.knows(living[0].stream.number)


async def test_g5_what_waits_for_the_client_stays_where_it_is_when_a_stream_of_the_dead_is_taken() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        standalone = (await a.find(session_id)).workflow.streams.attach_standalone()
        tell = at.server.session.tell
        tell(notice(1))
        [(event_id, _)] = await some(standalone)
        _, left = await streamed(b, await b.beside(session_id))
        left_id = left.event_id((await left.next(1) or [])[0])
        await journal(a)
        await journal(b)
        await at.lose(b)
        await resume(at, a, left_id)
        standalone.close()
        for n in (2, 3):
            tell(notice(n))
        _, again = await resume(at, a, event_id)
        assert [json.loads(text)["params"]["data"] for _, text in await some(again, 2)] == [2, 3]


async def test_g5_a_stream_of_a_worker_that_began_since_and_died_is_resumed_from_its_log() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        await at.lose(a)
        await b.find(session_id)
        c = await at.start()
        await b.members.numbers()
        _, reader = await streamed(c, await c.beside(session_id), b'"mine"')
        event_id = reader.event_id((await reader.next(1) or [])[0])
        await journal(c)
        await at.lose(c)
        member, again = await resume(at, b, event_id)
        assert member is b
        [told] = [json.loads(text) async for _, text in events(again)]
        assert told["id"] == "mine"
        assert told["error"]["data"] == {"executed": "unknown"}


async def told_of(at: Workers, member: Member, session_id: str, met: Member) -> dict[str, Any]:
    """What a client hears of a call that its worker carried until it was killed, at the worker that it meets then."""
    _, reader = await streamed(member, await member.beside(session_id), b'"mine"')
    event_id = reader.event_id((await reader.next(1) or [])[0])
    await journal(member)
    await at.lose(member)
    served_by, again = await resume(at, met, event_id)
    assert served_by is met
    [told] = [json.loads(text) async for _, text in events(again)]
    assert told["id"] == "mine"
    answer: dict[str, Any] = told
    return answer


async def test_g5_so_is_one_of_a_worker_that_began_while_the_log_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        await at.lose(a)
        read, is_read, goes_on = at.directory.read, anyio.Event(), anyio.Event()

        async def slow(session_id: str) -> list[Entry]:
            entries = await read(session_id)
            is_read.set()
            await goes_on.wait()
            return entries

        monkeypatch.setattr(at.directory, "read", slow)
        finding = asyncio.create_task(b.find(session_id))
        await is_read.wait()
        c = await at.start()
        await b.members.numbers()
        goes_on.set()
        await finding
        assert (await told_of(at, c, session_id, b))["error"]["data"] == {"executed": "unknown"}


async def test_g5_so_is_one_of_a_worker_that_was_paused_while_the_log_was_read() -> None:
    async with two() as (at, a, b, session_id):
        c = await at.start()
        await b.members.numbers()
        at.server.on_request = None
        a.kill()
        await b.beat(after=LEASE_SECONDS)
        await b.find(session_id)
        await c.beat()
        await b.members.numbers()
        assert (await told_of(at, c, session_id, b))["error"]["data"] == {"executed": "unknown"}


async def test_g5_so_is_one_of_a_worker_that_came_and_went_while_this_one_was_paused() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        await at.lose(a)
        await b.find(session_id)
        c = await at.start()
        _, reader = await streamed(c, await c.beside(session_id), b'"mine"')
        event_id = reader.event_id((await reader.next(1) or [])[0])
        await journal(c)
        c.kill()
        await b.beat(after=LEASE_SECONDS)
        await settle()
        _, again = await resume(at, b, event_id)
        [told] = [json.loads(text) async for _, text in events(again)]
        assert (told["id"], told["error"]["data"]) == ("mine", {"executed": "unknown"})


async def test_a_worker_that_lives_after_all_keeps_its_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        _, reader = await streamed(b, await b.beside(session_id))
        event_id = reader.event_id((await reader.next(1) or [])[0])
        await a.beat(after=LEASE_SECONDS)
        numbers = a.members.numbers

        async def late() -> Collection[int]:
            await b.beat()
            return await numbers()

        monkeypatch.setattr(a.members, "numbers", late)
        member, again = await resume(at, a, event_id)
        assert member is b
        (await at.server.got("tools/call")).answer({"n": 1})
        assert [json.loads(text)["result"] async for _, text in events(again)] == [{"n": 1}]


async def test_what_ended_here_that_was_another_ones_does_not_come_back_with_a_stream_of_a_third_one() -> None:
    async with two(resume_window=1) as (at, a, b, session_id):
        c = await at.start()
        at.server.on_request = None
        wire = (await a.find(session_id)).workflow.duplexes.new()
        reader = wire.attach()
        wire.meet(wire.tally)
        wire.add(notice(1))
        reader.due()
        _, left = await streamed(c, await c.beside(session_id))
        event_id = left.event_id((await left.next(1) or [])[0])
        await journal(a)
        await journal(c)
        await at.lose(a)
        held = (await b.find(session_id)).workflow
        assert held.knows(wire.stream.number)
        held.stir()
        await at.pass_time(2)
        assert (held.knows(wire.stream.number), held.duplexes.newest) == (False, None)
        await at.lose(c)
        member, _ = await resume(at, b, event_id)
        assert member is b
        assert (held.knows(wire.stream.number), held.duplexes.newest) == (False, None)


async def test_who_serves_calls_beside_the_holder_takes_nothing_of_the_dead_with_a_stream_of_its_own() -> None:
    async with two() as (at, a, b, session_id):
        c = await at.start()
        at.server.on_request = None
        _, left = await streamed(c, await c.beside(session_id))
        await left.next(1)
        await journal(c)
        await at.lose(c)
        beside = (await b.beside(session_id)).workflow
        made_up = Position(beside.record.event_token, b.number * NAMES + 1000, 0, 1)
        assert await b.pool.lookup.find_position(ANONYMOUS, "x", made_up) is beside
        assert not beside.knows(left.stream.number)
        member, _ = await resume(at, b, left.event_id(left.stream.events[0]))
        assert member is a


async def test_what_ended_here_does_not_come_back_with_a_stream_of_the_dead() -> None:
    async with two(resume_window=1) as (at, a, b, session_id):
        held = (await a.find(session_id)).workflow
        wire = held.duplexes.new()
        reader = wire.attach()
        wire.meet(wire.tally)
        wire.add(notice(1))
        exchange, answered = await streamed(a, await a.find(session_id))
        assert len([text async for _, text in events(answered) if text]) == 1
        assert exchange.stream is not None
        mine = (exchange.stream.number, wire.stream.number)
        reader.due()
        wire.detach(reader)
        answered.close()
        at.server.on_request = None
        _, left = await streamed(b, await b.beside(session_id))
        event_id = left.event_id((await left.next(1) or [])[0])
        await journal(a)
        await journal(b)
        await at.lose(b)
        held.stir()
        await at.pass_time(LEASE_SECONDS)
        assert ([*map(held.knows, mine)], held.duplexes.newest) == ([False, False], None)
        member, _ = await resume(at, a, event_id)
        assert member is a
        assert ([*map(held.knows, mine)], held.duplexes.newest) == ([False, False], None)


async def test_g5_a_client_that_has_more_than_the_log_is_believed() -> None:
    async with two() as (at, a, b, session_id):
        client = await a.find(session_id)
        reader = client.workflow.streams.attach_standalone()
        tell = at.server.session.tell
        tell(notice(1))
        await some(reader)
        await journal(a)
        a.view.is_cut = True
        tell(notice(2))
        [(event_id, _)] = await some(reader)
        await at.lose(a)
        _, again = await resume(at, b, event_id)
        at.server.session.tell(notice(3))
        [(newest, text)] = await some(again)
        assert json.loads(text)["params"]["data"] == 3
        again.close()
        _, once_more = await resume(at, b, newest)
        assert await idle(once_more)


async def test_g5_who_was_paused_sends_a_client_on_that_has_heard_its_successor_already() -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        await b.beat(after=LEASE_SECONDS)
        with at.directory.unheard():
            reader = (await b.find(session_id)).workflow.streams.attach_standalone()
        at.server.session.tell(notice(1))
        [(event_id, _)] = await some(reader)
        reader.close()
        a.view.is_cut = True
        with pytest.raises(DirectoryUnavailable):
            await resume(at, a, event_id)
        assert mine.ended is None
        a.view.is_cut = False
        member, again = await resume(at, a, event_id)
        assert member is b
        assert await idle(again)
        assert mine.ended is not None
        assert mine.ended.cause == "taken_over"


@pytest.mark.parametrize("is_met_at_the_holder", [True, False])
async def test_g5_a_wire_of_who_was_paused_is_gone_on_with_at_the_holder_though_no_log_tells_of_it(
    is_met_at_the_holder: bool,
) -> None:
    async with two() as (at, a, b, session_id):
        mine = (await a.find(session_id)).workflow
        a.view.is_cut = True
        wire = mine.duplexes.new()
        reader = wire.attach()
        wire.add(notice(1))
        [(event_id, _)] = await some(reader)
        await b.beat(after=LEASE_SECONDS)
        await b.find(session_id)
        a.view.is_cut = False
        await a.beat()
        await until(lambda: mine.ended)
        member, again = await resume(at, b if is_met_at_the_holder else a, event_id)
        assert member is b, "its messages find it there, and so does what the server tells unasked"
        assert [text async for _, text in events(again)] == []
        assert not a.pool._residents.served


async def test_a_stream_that_no_log_tells_of_ends_without_ending_the_workflow() -> None:
    async with two() as (at, a, b, session_id):
        at.server.on_request = None
        a.view.is_cut = True
        _, reader = await streamed(a, await a.find(session_id))
        event_id = reader.event_id((await reader.next(1) or [])[0])
        await at.lose(a)
        _, again = await resume(at, b, event_id)
        assert [text async for _, text in events(again)] == []
        assert (await b.find(session_id)).workflow.ended is None


async def test_g10_streams_that_a_client_makes_up_are_neither_kept_nor_looked_for_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(membership_module, "DOUBT_SECONDS", 0.0)  # who lives is not what is counted here
    async with two() as (at, a, _, session_id):
        workflow = (await a.find(session_id)).workflow
        reads, read = list[str](), at.directory.read

        async def counted(session_id: str) -> list[Entry]:
            reads.append(session_id)
            return await read(session_id)

        monkeypatch.setattr(at.directory, "read", counted)
        made_up = [worker * NAMES + n for worker in (a.number, 98, 99) for n in range(1000, 1040)]
        for number in made_up:
            found = Position(workflow.record.event_token, number, 0, 1)
            assert await a.pool.lookup.find_position(ANONYMOUS, "x", found) is workflow
            reader = workflow.streams.resume(found)
            assert reader.due() is None
            reader.close()
        assert workflow.ended is None
        assert sum(map(workflow.streams.knows, made_up)) <= MAX_EMPTY + 1
        assert len(reads) <= 2, "once for this worker, and once for those that are dead"


async def test_g10_a_successor_looks_for_no_stream_of_the_dead_that_its_log_did_not_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (at, a, b, session_id):
        await at.lose(a)
        workflow = (await b.find(session_id)).workflow

        async def read(session_id: str) -> list[Entry]:
            raise AssertionError("the log was read when this worker took over")

        monkeypatch.setattr(at.directory, "read", read)
        made_up = Position(workflow.record.event_token, a.number * NAMES + 1000, 0, 1)
        assert await b.pool.lookup.find_position(ANONYMOUS, "x", made_up) is workflow


async def test_g8_what_was_not_sent_yet_waits_for_the_client_elsewhere() -> None:
    async with two() as (at, a, b, session_id):
        client = await a.find(session_id)
        reader = client.workflow.streams.attach_standalone()
        at.server.session.tell(notice(1))
        [(event_id, _)] = await some(reader)
        reader.close()
        at.server.session.tell(notice(2))
        await a.pool.drain(1)
        _, again = await resume(at, b, event_id)
        at.server.session.tell(notice(3))
        assert [json.loads(text)["params"]["data"] for _, text in await some(again, 2)] == [2, 3]


async def test_g8_an_answer_that_came_beside_the_holder_is_kept_before_its_worker_has_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with two() as (at, _, b, session_id):
        at.server.on_request = None
        append = at.directory.append

        async def slow(*what: Any) -> None:
            await settle(100)
            await append(*what)

        c = Member(at, "worker-3")
        at.all.append(c)
        async with c.members.running(), c.pool.running():
            _, reader = await streamed(c, await c.beside(session_id), b'"mine"')
            event_id = reader.event_id((await reader.next(1) or [])[0])
            reader.close()
            await journal(c)
            monkeypatch.setattr(at.directory, "append", slow)
            (await at.server.got("tools/call")).answer({"n": 1})
            assert await c.pool.drain(1)
        c.is_dead = True
        await at.pass_time(LEASE_SECONDS)
        _, again = await resume(at, b, event_id)
        assert [json.loads(text)["result"] async for _, text in events(again)] == [{"n": 1}]
