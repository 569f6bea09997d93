"""What a client counts on a socket, and what its log has to know of that, at the worker that comes after."""

import json

import pytest
from harness.clustering import (
    QUESTION,
    Member,
    Workers,
    carried,
    journal,
    notice,
    resume,
    started,
    streamed,
    two,
    workers,
)
from harness.muxing import initialize
from trunkline.mux.duplex import Duplex
from trunkline.mux.envelope import parse
from trunkline.mux.limits import EventLogLimits
from trunkline.mux.placement import NAMES
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio


async def socket_at(member: Member, session_id: str) -> Duplex:
    """A socket of the session at this worker, whose client has just connected."""
    duplex = (await member.find(session_id)).workflow.duplexes.new()
    duplex.attach()
    return duplex


async def dies(at: Workers, member: Member) -> None:
    """The journal has what this worker knows; then it is gone, and its lease over."""
    await journal(member)
    await at.lose(member)


@pytest.mark.parametrize(("count", "missed"), [(2, [1, 2, 3]), (3, [2, 3]), (4, [2, 3]), (5, [3]), (6, [3]), (7, [])])
async def test_g5_a_count_on_a_socket_that_carried_others_as_well_means_the_same_at_a_successor(
    count: int, missed: list[int]
) -> None:
    async with two() as (at, a, b, session_id):
        duplex = await socket_at(a, session_id)
        duplex.tally.skip(2)  # answers to what came before the workflow was known
        duplex.meet(duplex.tally)
        for n, ordinal in ((1, 4), (2, 6), (3, None)):  # between them, the stream of an exchange that was resumed here
            duplex.add(notice(n))
            if ordinal is not None:
                duplex.tally.add_other(ordinal)
        await dies(at, a)
        assert await carried(b, session_id, count) == missed


@pytest.mark.parametrize(("count", "missed"), [(1, [2, 3]), (0, [3])])
async def test_g5_on_a_socket_that_its_client_never_saw_a_count_means_the_one_before(
    count: int, missed: list[int]
) -> None:
    async with two() as (at, a, b, session_id):
        duplex = await socket_at(a, session_id)
        duplex.meet(duplex.tally)
        for n in (1, 2, 3):
            duplex.add(notice(n))
        duplex.attach_after(2)
        await dies(at, a)
        assert await carried(b, session_id, count) == missed


@pytest.mark.parametrize(("count", "missed"), [(0, [3, 4, 5]), (1, [4, 5]), (2, [5]), (3, [])])
@pytest.mark.parametrize("deaths", [1, 2])
async def test_g5_a_count_on_a_socket_that_began_with_what_a_dead_worker_wrote_means_what_came_on_it(
    deaths: int, count: int, missed: list[int]
) -> None:
    async with two() as (at, a, b, session_id):
        c = await at.start()
        duplex = await socket_at(a, session_id)
        duplex.meet(duplex.tally)
        for n in (1, 2, 3):
            duplex.add(notice(n))
        await dies(at, a)
        again = (await b.find(session_id)).workflow.duplexes.newest
        assert again is not None
        reader = again.attach_after(2)
        again.meet(again.tally)
        for n in (4, 5):
            again.add(notice(n))
        assert len(reader.due() or ()) == 3
        again.detach(reader)
        if deaths == 2:
            await dies(at, b)
        assert await carried(b if deaths == 1 else c, session_id, count) == missed


async def test_g5_a_count_on_a_socket_that_began_where_a_dead_worker_stopped_means_what_came_on_it() -> None:
    async with two() as (at, a, b, session_id):
        duplex = await socket_at(a, session_id)
        duplex.meet(duplex.tally)
        duplex.add(notice(1))
        await dies(at, a)
        again = (await b.find(session_id)).workflow.duplexes.newest
        assert again is not None
        reader = again.attach_after(1)
        again.meet(again.tally)
        for n in (2, 3, 4):
            again.add(notice(n))
        again.detach(reader)
        assert await carried(b, session_id, 2) == [4]


async def test_g5_what_a_log_has_to_know_of_is_not_trimmed_with_what_it_held() -> None:
    async with started(2, event_log=EventLogLimits(events=40)) as (at, a, b):
        client = await a.client(message=initialize(capabilities={"sampling": {}}))
        session_id = client.workflow.record.session_id
        at.server.session.tell(QUESTION)
        duplex = client.workflow.duplexes.new()
        reader = duplex.attach()
        duplex.meet(duplex.tally)
        client.workflow.calls.take(parse(b'{"jsonrpc":"2.0","id":"owed","method":"tools/call"}', limit=100), duplex, {})
        exchange, other = await streamed(a, client, b'"owed too"')
        await other.next(1)
        for n in range(1, 101):
            duplex.add(notice(n))
            reader.due()
        await dies(at, a)
        workflow = (await b.find(session_id)).workflow
        assert workflow.duplexes.newest is not None
        again = workflow.duplexes.newest.attach_after(98)
        due = [json.loads(event.message) for event in again.due() or ()]
        assert [one["params"]["data"] for one in due[:-1]] == [99, 100]
        assert (due[-1]["id"], due[-1]["error"]["data"]) == ("owed", {"executed": "unknown"})
        assert workflow.knows(a.number * NAMES + 1), "the question"
        assert exchange.stream is not None
        assert workflow.knows(exchange.stream.number)


async def test_g5_what_a_server_says_at_a_successor_before_a_socket_comes_back_is_for_that_socket() -> None:
    async with started(2) as (at, a, b):
        client = await a.client(message=initialize(capabilities={"sampling": {}}))
        session_id = client.workflow.record.session_id
        duplex = await socket_at(a, session_id)
        duplex.meet(duplex.tally)
        at.server.session.tell(notice(1))
        await dies(at, a)
        workflow = (await b.find(session_id)).workflow  # by another request of the same client
        at.server.session.tell(notice(2))
        at.server.session.tell(QUESTION)
        assert workflow.duplexes.newest is not None
        due = [json.loads(event.message) for event in workflow.duplexes.newest.attach_after(1).due() or ()]
        assert [one["method"] for one in due] == ["notifications/message", "sampling/createMessage"]


async def test_g5_a_client_that_went_from_a_socket_to_a_get_stream_is_told_there_at_a_successor_as_well() -> None:
    async with two() as (at, a, b, session_id):
        await socket_at(a, session_id)
        workflow = (await a.find(session_id)).workflow
        reader = workflow.streams.attach_standalone()
        at.server.session.tell(notice(1))
        *_, last = [reader.event_id(event) for event in reader.due() or ()]
        await dies(at, a)
        await b.find(session_id)
        at.server.session.tell(notice(2))
        _, again = await resume(at, b, last)
        assert [json.loads(event.message)["params"]["data"] for event in again.due() or ()] == [2]


async def said(workflow: Workflow) -> list[int]:
    """What a client is told that begins to listen by a GET."""
    due = workflow.streams.attach_standalone().due() or ()
    return [json.loads(event.message)["params"]["data"] for event in due if event.message]


@pytest.mark.parametrize("is_moved", [True, False])
async def test_g5_what_a_server_says_at_a_successor_is_for_no_socket_that_was_given_up(is_moved: bool) -> None:
    async with workers(resume_window=20) as at:
        a, b = await at.start(), await at.start()
        session_id = (await a.client()).workflow.record.session_id
        duplex = (await a.find(session_id)).workflow.duplexes.new()
        reader = duplex.attach()
        at.server.session.tell(notice(1))
        duplex.detach(reader)
        await at.pass_time(21 if is_moved else 1)
        await dies(at, a)
        workflow = (await b.find(session_id)).workflow  # by another request of the same client
        at.server.session.tell(notice(2))
        assert await said(workflow) == ([2] if is_moved else [])


@pytest.mark.parametrize("revision", ["2025-06-18", "2025-11-25"])
async def test_g5_what_is_said_at_a_successor_is_for_the_get_stream_that_came_after_a_socket(revision: str) -> None:
    async with workers() as at:
        at.server.result["protocolVersion"] = revision
        a, b = await at.start(), await at.start()
        client = await a.client(message=initialize(revision))
        session_id = client.workflow.record.session_id
        await socket_at(a, session_id)
        client.workflow.streams.attach_standalone()  # of which a client that is not primed holds no event id
        await dies(at, a)
        workflow = (await b.find(session_id)).workflow
        at.server.session.tell(notice(1))
        assert await said(workflow) == [1]


async def test_g5_where_a_server_is_heard_is_known_after_two_deaths_and_a_log_that_was_trimmed() -> None:
    async with workers(event_log=EventLogLimits(events=40)) as at:
        a, b, c = await at.start(), await at.start(), await at.start()
        session_id = (await a.client()).workflow.record.session_id
        duplex = (await a.find(session_id)).workflow.duplexes.new()
        reader = duplex.attach()
        for n in range(100):
            duplex.add(notice(n))
            reader.due()
        await dies(at, a)
        await b.find(session_id)
        await dies(at, b)
        workflow = (await c.find(session_id)).workflow
        at.server.session.tell(notice(100))
        assert await said(workflow) == []
        assert workflow.duplexes.newest is not None
        assert len(workflow.duplexes.newest.attach_after(100).due() or ()) == 1
