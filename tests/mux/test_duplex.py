"""A client's wire that carries everything: its ids, its one stream, and the connections that take it up."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from harness.memory_wire import MemoryServer, message
from harness.muxing import Client, begin, idle, notification, request, some
from trunkline.mux.directory.memory import MemoryDirectory
from trunkline.mux.duplex import MAX_NAMES, Duplex
from trunkline.mux.event_log import Trimmed
from trunkline.mux.limits import Pooling
from trunkline.mux.pool import Pool
from trunkline.mux.ports import NONE
from trunkline.mux.streams import Reader
from trunkline.mux.upstream import Upstream
from trunkline.mux.workflow import Workflow

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def workflow_of(server: MemoryServer) -> AsyncIterator[Workflow]:
    pooling = Pooling()
    upstream = Upstream(name="x", connector=server, pooling=pooling)
    async with server.running(), Pool({"x": upstream}, MemoryDirectory(), pooling=pooling).running() as pool:
        yield (await begin(pool)).workflow


@asynccontextmanager
async def one_wire() -> AsyncIterator[tuple[MemoryServer, Workflow, Duplex, Reader]]:
    """A wire of a client, and a connection that takes it up."""
    server = MemoryServer()
    async with workflow_of(server) as workflow:
        duplex = workflow.duplexes.new()
        yield server, workflow, duplex, duplex.attach()


def call(workflow: Workflow, duplex: Duplex, id: bytes, n: int) -> None:
    workflow.calls.take(request("tools/call", {"arguments": {"n": n}}, id=id), duplex, NONE)


async def answered(server: MemoryServer, workflow: Workflow, duplex: Duplex, count: int) -> None:
    """So many calls, each answered before the next: their ids count from 0."""
    for n in range(count):
        call(workflow, duplex, b"%d" % n, n)
        (await server.got("tools/call", n + 1)).answer({})


async def ids_of(reader: Reader, count: int) -> list[object]:
    return [json.loads(text).get("id") for _, text in await some(reader, count)]


async def test_calls_at_once_are_answered_on_its_stream_in_the_order_of_their_answers() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        for n in range(3):
            call(workflow, duplex, b"%d" % n, n)
        exchanges = [await server.got("tools/call", n) for n in (1, 2, 3)]
        for exchange in reversed(exchanges):
            exchange.answer({})
        assert await ids_of(reader, 3) == [2, 1, 0]
        assert await idle(reader)


async def test_g1_the_same_id_twice_in_flight_is_refused_and_the_first_goes_on() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        call(workflow, duplex, b"1", 1)
        call(workflow, duplex, b"1", 2)
        refused = json.loads((await some(reader))[0][1])
        assert (refused["id"], refused["error"]["code"]) == (1, -32600)
        assert workflow.statistics.counts["refused", "duplicate_id"] == 1
        (await server.got("tools/call")).answer({"n": 1})
        assert json.loads((await some(reader))[0][1])["result"] == {"n": 1}
        assert len(server.of("tools/call")) == 1
        call(workflow, duplex, b"1", 3)
        (await server.got("tools/call", 2)).answer({"n": 3})
        assert json.loads((await some(reader))[0][1])["result"] == {"n": 3}


async def test_g1_ids_of_two_wires_do_not_meet_and_a_cancel_means_its_own() -> None:
    server = MemoryServer()
    async with workflow_of(server) as workflow:
        one = workflow.duplexes.new()
        first = one.attach()
        two = workflow.duplexes.new()
        second = two.attach()
        assert one is not two
        call(workflow, one, b"1", 1)
        call(workflow, two, b"1", 2)
        await server.got("tools/call", 2)
        workflow.notify(notification("notifications/cancelled", {"requestId": 1}), NONE, two)
        assert json.loads((await some(second))[0][1])["error"]["code"] == -32800
        assert await idle(first)
        (await server.got("tools/call")).answer({})
        assert await ids_of(first, 1) == [1]


async def test_over_http_a_cancel_means_a_call_of_a_wire_only_once_that_lost_its_connection() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        call(workflow, duplex, b"7", 1)
        await server.got("tools/call")
        workflow.notify(notification("notifications/cancelled", {"requestId": 7}), NONE)
        assert await idle(reader)
        duplex.detach(reader)
        workflow.notify(notification("notifications/cancelled", {"requestId": 7}), NONE)
        assert await ids_of(duplex.attach(), 1) == [7]


async def test_g10_so_many_of_its_connections_are_known_by_name() -> None:
    async with workflow_of(MemoryServer()) as workflow:
        duplex = workflow.duplexes.new()
        for n in range(MAX_NAMES + 1):
            duplex.name(str(n))
        found = [workflow.duplexes.named(str(n)) for n in range(MAX_NAMES + 1)]
        assert found == [None, *[duplex] * MAX_NAMES]


async def test_a_connection_goes_on_after_the_count_that_the_client_names() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        await answered(server, workflow, duplex, 4)
        assert await ids_of(reader, 4) == [0, 1, 2, 3]
        duplex.detach(reader)
        assert workflow.duplexes.left is duplex
        again = duplex.attach_after(3)
        duplex.meet(duplex.tally)
        assert await ids_of(again, 1) == [3]
        call(workflow, duplex, b"4", 4)
        (await server.got("tools/call", 5)).answer({})
        assert await ids_of(again, 1) == [4]
        duplex.detach(again)
        assert await ids_of(duplex.attach_after(1), 1) == [4], "the count is that of the last connection"


async def test_a_count_means_the_last_connection_that_the_client_has_shown_itself_on() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        await answered(server, workflow, duplex, 4)
        assert await ids_of(reader, 4) == [0, 1, 2, 3]
        duplex.detach(reader)
        unknown = duplex.attach_after(3)
        of_unknown = duplex.tally
        duplex.detach(unknown)
        again = duplex.attach_after(3)
        duplex.meet(of_unknown)
        assert await ids_of(again, 1) == [3]
        duplex.detach(again)
        assert await ids_of(duplex.attach_after(3), 1) == [3], "what an older one shows comes too late"
        assert await ids_of(duplex.attach_after(0), 1) == [3], "nothing was sent on the newest"


async def test_without_acknowledgement_it_goes_on_with_all_that_is_held() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        await answered(server, workflow, duplex, 3)
        assert await ids_of(reader, 3) == [0, 1, 2]
        duplex.detach(reader)
        assert await ids_of(duplex.attach(), 3) == [0, 1, 2]


async def test_what_was_not_acknowledged_and_is_gone_ends_the_workflow() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        duplex.acknowledge(1)
        await answered(server, workflow, duplex, 3)
        await ids_of(reader, 3)
        duplex.detach(reader)
        workflow.streams.expire(workflow.now() + 1)
        with pytest.raises(Trimmed):
            duplex.attach()
        assert workflow.ended is not None


async def test_without_a_count_it_goes_on_after_what_was_acknowledged() -> None:
    async with one_wire() as (server, workflow, duplex, reader):
        await answered(server, workflow, duplex, 3)
        assert await ids_of(reader, 3) == [0, 1, 2]
        duplex.acknowledge(2)
        duplex.acknowledge(1)
        duplex.detach(reader)
        assert await ids_of(duplex.attach(), 1) == [2]


async def test_a_count_of_what_was_never_sent_ends_the_workflow() -> None:
    async with one_wire() as (_, workflow, duplex, reader):
        duplex.detach(reader)
        with pytest.raises(Trimmed):
            duplex.attach_after(1)
        assert workflow.ended is not None
        assert workflow.ended.cause == "event_log_trimmed"


async def test_a_newer_connection_takes_the_wire_over() -> None:
    async with one_wire() as (server, workflow, duplex, old):
        new = duplex.attach_after(0)
        assert await old.next(1) is None
        call(workflow, duplex, b"1", 1)
        (await server.got("tools/call")).answer({})
        assert await ids_of(new, 1) == [1]
        duplex.detach(old)
        assert duplex.is_attached


async def test_what_belongs_to_no_request_goes_to_the_newest_wire_or_waits_for_the_last() -> None:
    server = MemoryServer()
    async with workflow_of(server) as workflow:
        one = workflow.duplexes.new()
        first = one.attach()
        two = workflow.duplexes.new()
        second = two.attach()
        server.session.tell(message("notifications/tools/list_changed"))
        assert len(await some(second)) == 1
        assert await idle(first)
        two.acknowledge(1)
        two.detach(second)
        server.session.tell(message("notifications/prompts/list_changed"))
        assert b"prompts" in (await some(first))[0][1]
        one.detach(first)
        server.session.tell(message("notifications/resources/list_changed"))
        assert b"resources" in (await some(two.attach()))[0][1]


async def test_what_a_server_asks_within_a_call_goes_to_the_wire_that_called() -> None:
    server = MemoryServer()
    async with workflow_of(server) as workflow:
        client = Client(workflow)
        exchange = client.call()
        asking = workflow.duplexes.new()
        reader = asking.attach()
        newest = workflow.duplexes.new()
        other = newest.attach()
        call(workflow, asking, b"5", 1)
        (await server.got("tools/call", 2)).say(message("notifications/message", {"level": "info", "data": 1}))
        assert b"notifications/message" in (await some(reader))[0][1]
        assert await idle(other)
        (await server.got("tools/call", 1)).answer({})
        assert (await client.answer(exchange))["id"] == 1
